"""The training step of a batch in two views, with a contrastive loss."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ._batches import Batch
from ._forward import ForwardPass
from ._rules import UpdateRule
from .contrastive import Contrastive, contrastive_loss
from .posterior import DirichletPosterior, smooth, soft_cross_entropy


class EmbeddingWatch:
    """Remembers what the last layer of a network was given.

    Parameters
    ----------
    network : nn.Module
    n_classes : int
    layer : str or None
        The layer's name; None watches all linear layers with an output per class, of
        which the one that ran last counts.

    Raises
    ------
    ValueError
        Where there is no such layer.
    """

    def __init__(self, network: nn.Module, n_classes: int, layer: str | None):
        self._name = type(network).__name__
        self._handles: list[RemovableHandle] = []
        self.seen: Tensor | None = None
        modules = dict(network.named_modules())
        if layer is None:
            self._layers = [
                m
                for m in modules.values()
                if isinstance(m, nn.Linear) and m.out_features == n_classes
            ]
            if not self._layers:
                raise ValueError(
                    f"the module {self._name} has no nn.Linear with {n_classes} "
                    "outputs, whose input contrastive learning could take as the "
                    "embedding. Name the layer: contrastive=Contrastive(layer=...)."
                )
        elif layer in modules:
            self._layers = [modules[layer]]
        else:
            raise ValueError(
                f"the module {self._name} has no layer {layer!r}, which contrastive "
                f"names; its layers are {sorted(filter(None, modules))}."
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch within the context only: the hooks are no part of the network."""
        if self._handles:
            yield
            return
        try:
            self._handles = [
                module.register_forward_pre_hook(self._see, with_kwargs=True)
                for module in self._layers
            ]
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles = []
            self.seen = None

    def take(self, n: int) -> Tensor:
        """Return the embeddings of the last forward pass, and forget them.

        Parameters
        ----------
        n : int
            How many there should be.

        Returns
        -------
        Tensor of shape (n, d)
        """
        seen, self.seen = self.seen, None
        if seen is None:
            raise ValueError(
                f"the module {self._name} ran without the layer that contrastive "
                "learning takes the embedding from. Name the one to take it from: "
                "contrastive=Contrastive(layer=...)."
            )
        if seen.ndim != 2 or len(seen) != n:
            raise ValueError(
                f"the embedding has shape {tuple(seen.shape)}; contrastive learning "
                f"needs ({n}, d), a row per view of a sample. Name a layer with such "
                "an input: contrastive=Contrastive(layer=...)."
            )
        return seen

    def _see(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        self.seen = next(inputs, None)


class Projection(NamedTuple):
    """The head that embeddings are contrasted through, and its optimizer.

    Parameters
    ----------
    head : nn.Module
    optimizer : torch.optim.Optimizer
    """

    head: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, lr: float) -> None:
        """Learn from the gradients at the network's rate, and forget them."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()


class TwoViews(ForwardPass):
    """Contrastive learning, for :class:`skbsd.BSDClassifier`."""

    posterior_: DirichletPosterior
    _rule: UpdateRule
    _contrast: Contrastive | None = None  # while training
    _contrast_losses: list[Tensor]
    # Kept for the next call of partial_fit, and by no copy.
    _watch: EmbeddingWatch
    _projection: Projection | None
    _contrasted: Any = None  # the network and the setting that they are for

    @contextmanager
    def _contrasting(self) -> Iterator[None]:
        """Train with two views within the context, where the user wants it."""
        setting: Any = self.contrastive
        self._contrast = None
        self._contrast_losses = []
        if setting is None:
            for name in ("_watch", "_projection", "_contrasted"):
                self.__dict__.pop(name, None)
            yield
            return
        if isinstance(self.optimizer_, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS evaluates the loss several times per step; contrastive learning "
                "needs an optimizer that does not, such as torch.optim.AdamW."
            )
        if not isinstance(setting, Contrastive):
            setting = Contrastive(weight=float(setting))
        if self._contrasted != (self.module_, setting):
            if setting.weight > 0:
                self._watch = EmbeddingWatch(
                    self.module_, len(self.classes_), setting.layer
                )
            self._projection = None
            self._contrasted = (self.module_, setting)
        self._contrast = setting
        # A compiled network has its hooks built in: they must not change.
        built_in = self.compile and setting.weight > 0
        try:
            with self._watch.watching() if built_in else nullcontext():
                yield
        finally:
            self._contrast = None
            self._contrast_losses = []

    def _two_view_step(self, batch: Batch, setting: Contrastive) -> dict:
        """Update the posterior with the mean of both views' predictions.

        The views pass one after the other: batches are no larger than without
        contrastive learning, and batch normalization normalizes like with like.
        """
        if not isinstance(batch.x, Tensor):
            raise ValueError(
                "contrastive learning makes two views of batches that are tensors, got "
                f"{type(batch.x).__name__}; pass contrastive=None."
            )
        images = batch.x.ndim == 4 or self.image_shape is not None
        if isinstance(setting.augmentation, str) and not images:
            raise ValueError(
                f"contrastive's augmentation {setting.augmentation!r} needs images, X "
                f"has samples of shape {tuple(batch.x.shape[1:])}; pass 4-D X or "
                "image_shape, or a callable as Contrastive(augmentation=...)."
            )
        contrasts = setting.weight > 0
        logits: list[Tensor] = []
        embeddings: list[Tensor] = []
        with self._watch.watching() if contrasts else nullcontext():
            # A copy, as an augmentation may work in place.
            for x, augmentation in (
                (batch.x.clone(), self.augmentation),
                (batch.x, setting.augmentation),
            ):
                view = self._logits(x, augmentation)
                self._check_first(view)
                exact = torch.promote_types(view.dtype, torch.float32)
                logits.append(view.to(exact))
                if contrasts:
                    embeddings.append(self._watch.take(len(view)))
        weight = batch.weight
        # The logarithm of the sum: to logits, a constant is nothing.
        mean = torch.logaddexp(*(view.detach().log_softmax(dim=1) for view in logits))
        self.posterior_.update(
            mean, batch.rows, weight, self._rule, assume_unique=batch.unique
        )
        target = self._target(batch).to(exact)
        losses = [soft_cross_entropy(view, target, weight) for view in logits]
        loss = torch.stack(losses).mean()
        if not contrasts:
            loss.backward()
            return {"loss": loss.detach(), "y_pred": mean}
        both = torch.cat(embeddings)
        projection = self._projection or self._new_projection(both, setting)
        with self._autocast():
            first, second = projection.head(both).chunk(2)
        contrast = contrastive_loss(
            first,
            second,
            temperature=setting.temperature,
            agreement=target @ target.T if setting.supervised else None,
            weight=weight,
        )
        self._contrast_losses.append(contrast.detach())
        loss = loss + setting.weight * contrast
        loss.backward()
        # Parameters that no pattern of the user's names are the last group.
        projection.step(self.optimizer_.param_groups[-1]["lr"])
        return {"loss": loss.detach(), "y_pred": mean}

    def _new_projection(self, embeddings: Tensor, setting: Contrastive) -> Projection:
        """Build it when the first embeddings tell how large they are."""
        d = embeddings.shape[1]
        head = nn.Sequential(
            nn.Linear(d, d), nn.ReLU(), nn.Linear(d, setting.n_components)
        ).to(embeddings.device, self._float_dtype)
        optimizer = self._build_optimizer(head.named_parameters(), grouped=False)
        self._projection = Projection(head, optimizer)
        return self._projection

    def _target(self, batch: Batch) -> Tensor:
        """Return what a batch whose beliefs were updated is trained towards."""
        return smooth(self.posterior_.mean(batch.rows), self._rule.smoothing)

    def _record_contrast(self) -> None:
        """Write the mean of an epoch's contrastive losses into the history."""
        if self._contrast_losses:
            mean = torch.stack(self._contrast_losses).mean().item()
            self.history.record("contrastive_loss", mean)
            self._contrast_losses = []
