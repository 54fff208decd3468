"""What a training step of :class:`skbsd.BSDClassifier` minimises.

An :class:`Objective` lives for one call of `fit`. It gets the batches one after the
other, computes gradients, and keeps what it remembers of the samples.
:class:`SelfDistillation` is the default. For a loss of one's own, derive from
:class:`Objective`, and return it from :meth:`skbsd.BSDClassifier.make_objective`.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ._accuracy import Correct
from ._batches import Batch, Batches
from ._forward import backward
from ._rules import UpdateRule, is_weighted
from .posterior import CompactPosterior, Posterior, soft_cross_entropy

__all__ = ["Batch", "Objective", "SelfDistillation", "TrainingRun", "to_float32"]


class TrainingRun(Protocol):
    """What an objective sees of the call of `fit` that it serves.

    Attributes
    ----------
    module : torch.nn.Module
        The network, in training mode.
    optimizer : torch.optim.Optimizer
        Its optimizer.
    posterior : DirichletPosterior or CompactPosterior
        The belief about each sample; row i belongs to row i of X.
    batches : iterable of Batch
        Those of an epoch, with their number as length. Where `batches.is_resident`,
        all data are on the device: `batches.x` is X, `batches.y` are its class
        indices, and `batches.rows` are the rows that are trained on.
    epoch : int
        How many epochs of this call are finished.
    max_epochs : int
        How many there will be.
    n_classes : int
        Number of classes.
    dtype : torch.dtype
        Of the network's parameters.
    augmentation : str, callable or None
        The estimator's.
    is_compiled : bool
        Whether the network is trained compiled.

    See Also
    --------
    Objective : What uses it, as `self.run`.

    Examples
    --------
    Labels that are smoothed less and less:

    >>> from sklearn.datasets import load_iris
    >>> from torch.nn import functional as F
    >>> from skbsd import BSDClassifier
    >>> from skbsd.objectives import Objective
    >>> class Annealed(Objective):
    ...     def loss(self, logits, batch):
    ...         left = 1 - self.run.epoch / self.run.max_epochs
    ...         return F.cross_entropy(logits, batch.y, label_smoothing=0.2 * left)
    >>> class AnnealedClassifier(BSDClassifier):
    ...     def make_objective(self):
    ...         return Annealed()
    >>> model = AnnealedClassifier(random_state=0).fit(*load_iris(return_X_y=True))
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    posterior: Posterior
    batches: Batches
    epoch: int
    max_epochs: int
    n_classes: int
    dtype: torch.dtype
    augmentation: Any
    is_compiled: bool

    def logits(self, x: Any) -> Tensor:
        """Augment and prepare a batch, and run the network.

        Parameters
        ----------
        x : Tensor of shape (n, ...)
            Inputs as they were given to `fit`.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits, with their gradients.
        """

    def view(self, x: Any, augmentation: Any) -> Tensor:
        """Do what `logits` does, under another augmentation.

        Parameters
        ----------
        x : Tensor of shape (n, ...)
            Inputs as they were given to `fit`.
        augmentation : str, callable or None
            In place of the estimator's.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits.
        """

    def prepare(self, x: Any) -> Any:
        """Augment a batch, and make of it what the network takes.

        Parameters
        ----------
        x : Tensor of shape (n, ...)
            Inputs as they were given to `fit`.

        Returns
        -------
        Tensor of shape (n, ...)
            Floats; uint8 images are standardised.
        """

    def infer(self, x: Any) -> Tensor:
        """Run the network on a prepared batch.

        Parameters
        ----------
        x : Tensor of shape (n, ...)
            What `prepare` has returned.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits.
        """

    def autocast(self) -> Any:
        """Return the context of the estimator's precision.

        Returns
        -------
        context manager
            :class:`torch.autocast`, or one that does nothing.
        """

    def equalise(self, module: nn.Module) -> None:
        """Have all processes that train together start with the same parameters.

        For a module of the objective's own. With one process nothing happens.

        Parameters
        ----------
        module : torch.nn.Module
            Its parameters become those of the first process.
        """

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up gradients that are not the network's over the processes.

        Those of the network are added up anyway. With one process nothing happens.

        Parameters
        ----------
        parameters : iterable of Tensor
            Their gradients become those of the loss of the whole batch.
        """

    def write(self, name: str, value: float) -> None:
        """Write a number into the history of the epoch.

        Parameters
        ----------
        name : str
            Its key.
        value : float
            The number.
        """


class Objective:
    """Base of what a training step minimises.

    A subclass has a `loss`, and `begin` where it remembers something. One that does
    more than a forward pass and a loss overrides `step`.

    Attributes
    ----------
    run : TrainingRun
        The call of `fit` that it serves, from `begin` on.
    accepts_weight : bool
        Whether it heeds sample weights, as `batch.weight`; otherwise they are refused.
    counts_correct : bool
        Whether `end_epoch` wants to know how many predictions were correct.
    augments_once : bool
        Whether it sees each batch once per step, through `run.logits`, so that images
        may be augmented before. It counts for a class that states it, and not for its
        subclasses.

    See Also
    --------
    skbsd.BSDClassifier.make_objective : What returns it.

    Examples
    --------
    Cross-entropy, less 0.1 times the entropy of the prediction:

    >>> from sklearn.datasets import load_iris
    >>> from torch.nn import functional as F
    >>> from skbsd import BSDClassifier
    >>> from skbsd.objectives import Objective
    >>> class Confident(Objective):
    ...     def loss(self, logits, batch):
    ...         entropy = F.cross_entropy(logits, logits.softmax(dim=1))
    ...         return F.cross_entropy(logits, batch.y) - 0.1 * entropy
    >>> class ConfidentClassifier(BSDClassifier):
    ...     def make_objective(self):
    ...         return Confident()
    >>> model = ConfidentClassifier(random_state=0).fit(*load_iris(return_X_y=True))
    """

    run: TrainingRun
    accepts_weight = False
    counts_correct = False
    augments_once = False

    def begin(self, run: TrainingRun) -> None:
        """Take note of the call, before its first step.

        Parameters
        ----------
        run : TrainingRun
            The call.
        """
        self.run = run

    def begin_epoch(self) -> None:
        """Get ready for an epoch."""

    def end_epoch(self, correct: Correct) -> None:
        """Take note of how the training pass of an epoch went.

        Parameters
        ----------
        correct : Correct
            How many predictions were correct, of how many samples; or the sums of
            their weights. Zeros unless `counts_correct`.
        """

    @contextmanager
    def active(self) -> Iterator[None]:
        """Surround the epochs, for what must not outlast them.

        Yields
        ------
        None
            Once; the epochs run then.
        """
        yield

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss of a batch.

        Parameters
        ----------
        logits : Tensor of shape (n, n_classes)
            In float32 at least.
        batch : Batch
            `x`, `y` (class indices), `rows` (of X) and `weight` of n samples.

        Returns
        -------
        Tensor of shape ()
            What is minimised.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no loss; override `loss` or `step`."
        )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute loss and gradients of a batch.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.

        Returns
        -------
        dict of str to Tensor
            The "loss" and "y_pred", the logits, on the device. Further tensors of shape
            () are averaged over the batches of the epoch and written into the history
            by name.
        """
        logits = self.run.logits(batch.x)
        loss = self.loss(to_float32(logits), batch)
        if not (isinstance(loss, Tensor) and loss.ndim == 0):
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
            raise TypeError(
                f"{type(self).__name__}.loss returned {found}; expected a Tensor of "
                "shape (), the mean over the batch."
            )
        loss.backward()
        return {"loss": loss.detach(), "y_pred": logits}

    def evaluate_again(self, batch: Batch) -> Tensor:
        """Compute loss and gradients of the batch of the last step once more.

        For optimizers that evaluate the loss several times per step, such as LBFGS.

        Parameters
        ----------
        batch : Batch
            That of the last `step`.

        Returns
        -------
        Tensor of shape ()
            The loss.

        Raises
        ------
        ValueError
            Unless a subclass can do that without remembering the batch twice.
        """
        raise ValueError(
            f"{type(self).__name__} would update what it remembers several times in a "
            "step of this optimizer; use one that evaluates the loss once, such as "
            "torch.optim.AdamW."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, between two epochs.

        Returns
        -------
        dict of str to Tensor, number or dict
            Nothing, unless a subclass remembers something.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, after `begin`.

        Parameters
        ----------
        state : dict
            Of `state_dict`.
        """


class SelfDistillation(Objective):
    """Bayesian self-distillation: towards the mean of each sample's belief.

    Parameters
    ----------
    prior_strength : float or {"auto", "noisy"}
        As given to :class:`skbsd.BSDClassifier`: names have rules of their own.
    evidence : {"auto", "plain", "weighted"}
        What a prediction counts.

    See Also
    --------
    skbsd.posterior.DirichletPosterior.update : The mathematics.

    Examples
    --------
    With a penalty on the size of the weights, whose gradients add to the others:

    >>> from sklearn.datasets import load_iris
    >>> from skbsd import BSDClassifier
    >>> from skbsd.objectives import SelfDistillation
    >>> class Sparse(SelfDistillation):
    ...     def step(self, batch):
    ...         result = super().step(batch)
    ...         weights = self.run.module.parameters()
    ...         penalty = 1e-4 * sum(w.abs().sum() for w in weights)
    ...         penalty.backward()
    ...         return {**result, "loss": result["loss"] + penalty.detach()}
    >>> class SparseClassifier(BSDClassifier):
    ...     def make_objective(self):
    ...         return Sparse(self.prior_strength, self.evidence)
    >>> model = SparseClassifier(random_state=0).fit(*load_iris(return_X_y=True))
    """

    accepts_weight = True
    augments_once = True

    def __init__(self, prior_strength: float | str, evidence: str):
        self._prior_strength = prior_strength
        self._evidence = evidence
        self._rule: UpdateRule | None = None  # None is the paper's

    def begin(self, run: TrainingRun) -> None:
        """Find out whether predictions count by how reliable they are.

        Parameters
        ----------
        run : TrainingRun
            The call.
        """
        super().begin(run)
        # An infinite prior takes in nothing.
        self.counts_correct = math.isfinite(
            run.posterior.prior_strength
        ) and is_weighted(self._evidence, self._prior_strength)

    def begin_epoch(self) -> None:
        """Have the epoch's rule follow from how the last ones went."""
        posterior = self.run.posterior
        if self.counts_correct:
            self._rule = posterior.agreement.rule(
                self._prior_strength, posterior.discount
            )
        posterior.load_rule(self._rule)

    def end_epoch(self, correct: Correct) -> None:
        """Add an epoch to the agreement, and write down a compact store's tail mass.

        Parameters
        ----------
        correct : Correct
            How many predictions agreed with the labels.
        """
        if correct.total > 0:
            share = min(1.0, correct.correct / correct.total)
            self.run.posterior.agreement.add(share)
        if isinstance(self.run.posterior, CompactPosterior):
            tail = self.run.posterior.tail_mass().mean()
            self.run.write("tail_mass", tail.item())

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the beliefs with the predictions; compute gradients.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.

        Returns
        -------
        dict of str to Tensor
            The "loss" and "y_pred", the logits, on the device.
        """
        logits = self.run.logits(batch.x)
        loss, gradient = self.run.posterior.update(
            logits, batch.rows, batch.weight, self._rule, assume_unique=batch.unique
        )
        backward(logits, gradient)
        return {"loss": loss, "y_pred": logits}

    def evaluate_again(self, batch: Batch) -> Tensor:
        """Compute loss and gradients with the targets that the step has left.

        Parameters
        ----------
        batch : Batch
            That of the last `step`.

        Returns
        -------
        Tensor of shape ()
            The loss.
        """
        target = self.target(batch)
        logits = self.run.logits(batch.x)
        loss = soft_cross_entropy(logits, target.to(logits), batch.weight)
        loss.backward()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: nothing, as the posterior is kept anyway.

        Returns
        -------
        dict
            Empty.
        """
        return {}

    def target(self, batch: Batch) -> Tensor:
        """Return what a batch is trained towards, after its update.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Probabilities; each row sums to one.
        """
        return self.run.posterior.target(batch.rows, self._rule)


def to_float32(logits: Tensor) -> Tensor:
    """Convert logits to float32, unless they are in double precision.

    Under autocast a network returns bfloat16, which is too coarse for a loss.
    :meth:`Objective.loss` is given what is converted already.

    Parameters
    ----------
    logits : Tensor
        Of any floating type.

    Returns
    -------
    Tensor
        Of the same shape; `logits` themselves where there is nothing to convert.

    Examples
    --------
    >>> import torch
    >>> from skbsd.objectives import to_float32
    >>> to_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
