"""The training step of a batch in two views, with a contrastive loss."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ._batches import Batch
from ._forward import ForwardPass
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
        with ExitStack() as stack:
            for module in self._layers:
                handle = module.register_forward_pre_hook(self._see)
                stack.callback(handle.remove)
            yield

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

    def _see(self, module: nn.Module, inputs: tuple) -> None:
        self.seen = inputs[0]


class Projection:
    """The head that embeddings are contrasted through, and its optimizer.

    Parameters
    ----------
    n_components : int
    dtype : torch.dtype
    build_optimizer : callable
        From named parameters to an optimizer.
    """

    def __init__(self, n_components: int, dtype: torch.dtype, build_optimizer):
        self.n_components = n_components
        self.dtype = dtype
        self.build_optimizer = build_optimizer
        self.head: nn.Module | None = None

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Project embeddings of shape (n, d); the first ones decide on d."""
        if self.head is None:
            d = embeddings.shape[1]
            self.head = nn.Sequential(
                nn.Linear(d, d), nn.ReLU(), nn.Linear(d, self.n_components)
            ).to(embeddings.device, self.dtype)
            self.optimizer = self.build_optimizer(self.head.named_parameters())
        return self.head(embeddings)

    def step(self, lr: float) -> None:
        """Learn from the gradients at the network's rate, and forget them."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()


class TwoViews(ForwardPass):
    """Contrastive learning, for :class:`skbsd.BSDClassifier`."""

    posterior_: DirichletPosterior
    _evidence: dict[str, float]
    _contrast: Contrastive | None = None  # while training
    _contrast_losses: list[Tensor]
    # Kept for the next call of partial_fit, and by no copy.
    _watch: EmbeddingWatch
    _projection: Projection
    _contrasted: Any = None  # the network and the setting that they are for

    @contextmanager
    def _contrasting(self) -> Iterator[None]:
        """Train with two views within the context, where the user wants it."""
        setting: Any = self.contrastive
        self._contrast_losses = []
        if setting is None:
            yield
            return
        if not isinstance(setting, Contrastive):
            setting = Contrastive(weight=float(setting))
        if self._takes_closure:
            raise ValueError(
                f"optimizer={self.optimizer.__name__} evaluates the loss several times "
                "per step; contrastive learning needs one that does not, such as "
                "torch.optim.AdamW."
            )
        if setting.weight > 0 and self._contrasted != (self.module_, setting):
            self._watch = EmbeddingWatch(
                self.module_, len(self.classes_), setting.layer
            )
            self._projection = Projection(
                setting.n_components, self._float_dtype, self._build_optimizer
            )
            self._contrasted = (self.module_, setting)
        self._contrast = setting
        try:
            with self._watch.watching() if setting.weight > 0 else nullcontext():
                yield
        finally:
            self._contrast = None

    def _augment(self, x: Tensor) -> Tensor:
        """Return both views of a batch, one after the other."""
        if self._contrast is None:
            return super()._augment(x)
        second = self._contrast.augmentation
        if isinstance(second, str) and x.ndim != 4:
            raise ValueError(
                f"contrastive's augmentation {second!r} needs images, X has samples of "
                f"shape {tuple(x.shape[1:])}; pass 4-D X or image_shape, or a callable "
                "as Contrastive(augmentation=...)."
            )
        return torch.cat([super()._augment(x), self._apply(second, x)])

    def _two_view_step(self, batch: Batch, setting: Contrastive) -> dict:
        """Update the posterior with the mean of both views' predictions."""
        logits = self._logits(batch.x, training=True)
        self._check_first(logits)
        embeddings = self._watch.take(len(logits)) if setting.weight > 0 else None
        n = len(batch.rows)
        known = logits.detach().float().log_softmax(dim=1)
        # The logarithm of the sum: to logits, a constant is nothing.
        mean = torch.logaddexp(known[:n], known[n:])
        weight = batch.weight
        self.posterior_.visit(
            mean, batch.rows, weight, assume_unique=batch.unique, **self._evidence
        )
        target = self._target(batch).to(mean)
        loss = soft_cross_entropy(
            logits.to(mean),
            target.repeat(2, 1),
            None if weight is None else weight.repeat(2),
        )
        if setting.weight > 0:
            contrast = self._contrastive_loss(embeddings, target, weight, setting)
            loss = loss + setting.weight * contrast
            self._contrast_losses.append(contrast.detach())
        loss.backward()
        if setting.weight > 0:
            self._projection.step(self.optimizer_.param_groups[0]["lr"])
        return {"loss": loss.detach(), "y_pred": mean}

    def _contrastive_loss(self, embeddings, target, weight, setting) -> Tensor:
        with self._autocast():
            first, second = self._projection(embeddings).chunk(2)
        return contrastive_loss(
            first,
            second,
            temperature=setting.temperature,
            agreement=target @ target.T if setting.supervised else None,
            weight=weight,
        )

    def _target(self, batch: Batch) -> Tensor:
        """Return what a batch that was visited is trained towards."""
        mean = self.posterior_.mean(batch.rows)
        return smooth(mean, self._evidence.get("smoothing", 0.0))

    def _record_contrast(self) -> None:
        """Write the mean of an epoch's contrastive losses into the history."""
        if self._contrast_losses:
            mean = torch.stack(self._contrast_losses).mean().item()
            self.history.record("contrastive_loss", mean)
            self._contrast_losses = []
