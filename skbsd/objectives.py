"""The objective that a training step of :class:`skbsd.BSDClassifier` minimises.

An :class:`Objective` exists for one call of `fit`. It receives one batch after the
other, computes gradients, and owns any state that it keeps per sample.
:class:`SelfDistillation` is the default. For a custom loss, derive from
:class:`Objective` and return an instance from
:meth:`skbsd.BSDClassifier.make_objective`.
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
from ._gathering import in_full
from ._rules import UpdateRule, is_weighted
from .posterior import CompactPosterior, Posterior, soft_cross_entropy

__all__ = ["Batch", "Objective", "SelfDistillation", "TrainingRun", "to_float32"]


class TrainingRun(Protocol):
    """The interface of a call of `fit` that an objective can use.

    Attributes
    ----------
    module : torch.nn.Module
        The network, in training mode.
    optimizer : torch.optim.Optimizer
        Its optimizer.
    posterior : DirichletPosterior or CompactPosterior
        The belief of each sample; row i belongs to row i of X.
    batches : iterable of Batch
        The batches of an epoch; the length is their number. If `batches.is_resident`,
        all data are on the device: `batches.x` is X, `batches.y` are its class
        indices, and `batches.rows` are the training rows.
    epoch : int
        Number of finished epochs of this call.
    max_epochs : int
        Total number of epochs of this call.
    n_classes : int
        Number of classes.
    dtype : torch.dtype
        Type of the network's parameters.
    augmentation : str, callable or None
        The estimator's parameter.
    is_compiled : bool
        Whether the network is compiled for training.

    See Also
    --------
    Objective : Accesses it as `self.run`.

    Examples
    --------
    Label smoothing that decreases during training:

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
        """Compute `logits` with a different augmentation.

        Parameters
        ----------
        x : Tensor of shape (n, ...)
            Inputs as they were given to `fit`.
        augmentation : str, callable or None
            Replaces the estimator's.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits.
        """

    def prepare(self, x: Any) -> Any:
        """Augment a batch and convert it to the network's input.

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
            The result of `prepare`.

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
            :class:`torch.autocast`, or a context that does nothing.
        """

    def equalise(self, module: nn.Module) -> None:
        """Copy a module's parameters from the first process to all others.

        For a module that the objective owns. With one process it does nothing.

        Parameters
        ----------
        module : torch.nn.Module
            Its parameters become those of the first process.
        """

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of an objective's own parameters over the processes.

        Gradients of the network are summed automatically. With one process it does
        nothing.

        Parameters
        ----------
        parameters : iterable of Tensor
            Their gradients become those of the loss of the whole batch.
        """

    def write(self, name: str, value: float) -> None:
        """Write a value into the history of the epoch.

        Parameters
        ----------
        name : str
            Key in the history.
        value : float
            The value.
        """


class Objective:
    """Base class of training objectives.

    A subclass implements `loss`, and `begin` if it has state. A subclass that does more
    than a forward pass and a loss overrides `step`.

    Attributes
    ----------
    run : TrainingRun
        The call of `fit` that it belongs to; set by `begin`.
    accepts_weight : bool
        Whether it uses sample weights, which are in `batch.weight`. If not, `fit`
        raises an error for weights.
    counts_correct : bool
        Whether `end_epoch` needs the number of correct predictions.
    augments_once : bool
        Whether it uses each batch once per step, through `run.logits`, so that images
        can be augmented in advance. It applies to the class that sets it, and is not
        inherited.

    See Also
    --------
    skbsd.BSDClassifier.make_objective : Returns one for each call of `fit`.

    Examples
    --------
    Cross-entropy minus 0.1 times the entropy of the prediction:

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
        """Start a call of `fit`, before its first step.

        Parameters
        ----------
        run : TrainingRun
            The call.
        """
        self.run = run

    def begin_epoch(self) -> None:
        """Start an epoch."""

    def end_epoch(self, correct: Correct) -> None:
        """Finish an epoch, after its training pass.

        Parameters
        ----------
        correct : Correct
            The number of correct predictions and of samples, or the sums of their
            weights. Zeros unless `counts_correct`.
        """

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enclose all epochs in a context, for resources with that lifetime.

        Yields
        ------
        None
            Once; the epochs run inside.
        """
        yield

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss of a batch.

        Parameters
        ----------
        logits : Tensor of shape (n, n_classes)
            In float32 or wider.
        batch : Batch
            `x`, `y` (class indices), `rows` (of X) and `weight` of n samples.

        Returns
        -------
        Tensor of shape ()
            The mean loss over the batch.
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
            The "loss" and the logits as "y_pred", on the device. Further tensors of
            shape () are averaged over the batches of the epoch, and written into the
            history under their keys.
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
        """Compute loss and gradients of the last step's batch again.

        For optimizers that evaluate the loss several times per step, such as LBFGS.

        Parameters
        ----------
        batch : Batch
            The batch of the last `step`.

        Returns
        -------
        Tensor of shape ()
            The loss.

        Raises
        ------
        ValueError
            Unless a subclass supports it without updating its state twice.
        """
        raise ValueError(
            f"{type(self).__name__} would update its state several times in one step "
            "of this optimizer; use an optimizer that evaluates the loss once, such as "
            "torch.optim.AdamW."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, between two epochs.

        Returns
        -------
        dict of str to Tensor, number or dict
            Empty, unless a subclass has state.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint, after `begin`.

        Parameters
        ----------
        state : dict
            From `state_dict`.
        """


class SelfDistillation(Objective):
    """Bayesian self-distillation: the target is the mean of each sample's belief.

    Parameters
    ----------
    prior_strength : float or {"auto", "noisy"}
        As given to :class:`skbsd.BSDClassifier`; a name selects its update rule.
    evidence : {"auto", "plain", "weighted"}
        How predictions are weighted in the update.

    See Also
    --------
    skbsd.posterior.DirichletPosterior.update : The mathematics.

    Examples
    --------
    With a penalty on the absolute weights, whose gradients are added:

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
        self._rule: UpdateRule | None = None  # None is the paper's rule

    def begin(self, run: TrainingRun) -> None:
        """Determine whether predictions are weighted by their reliability.

        Parameters
        ----------
        run : TrainingRun
            The call.
        """
        super().begin(run)
        # An infinite prior is never updated.
        self.counts_correct = math.isfinite(
            run.posterior.prior_strength
        ) and is_weighted(self._evidence, self._prior_strength)

    def begin_epoch(self) -> None:
        """Derive the epoch's rule from the agreement in previous epochs."""
        posterior = self.run.posterior
        if self.counts_correct:
            self._rule = posterior.agreement.rule(
                self._prior_strength, posterior.discount
            )
        posterior.load_rule(self._rule)

    def end_epoch(self, correct: Correct) -> None:
        """Add the epoch to the agreement, and record a compact store's tail mass.

        Parameters
        ----------
        correct : Correct
            The number of predictions that agreed with the labels.
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
            The "loss" and the logits as "y_pred", on the device.
        """
        logits = self.run.logits(batch.x)
        loss, gradient = self.run.posterior.update(
            logits, batch.rows, batch.weight, self._rule, assume_unique=batch.unique
        )
        backward(logits, gradient)
        return {"loss": loss, "y_pred": logits}

    def evaluate_again(self, batch: Batch) -> Tensor:
        """Compute loss and gradients with the targets after the step's update.

        Parameters
        ----------
        batch : Batch
            The batch of the last `step`.

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
        """Return an empty state, as checkpoints contain the posterior anyway.

        Returns
        -------
        dict
            Empty.
        """
        return {}

    def target(self, batch: Batch) -> Tensor:
        """Return the targets of a batch after its update.

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
    :meth:`Objective.loss` receives converted logits.

    Parameters
    ----------
    logits : Tensor
        Of any floating type.

    Returns
    -------
    Tensor
        Of the same shape; `logits` unchanged if no conversion is needed.

    Examples
    --------
    >>> import torch
    >>> from skbsd.objectives import to_float32
    >>> to_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return in_full(logits)
