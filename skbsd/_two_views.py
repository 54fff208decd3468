"""The training step of a batch in two views, with a contrastive loss."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ._batches import Batch
from ._optimizer import rates_from_memory
from .contrastive import Contrastive, contrastive_loss
from .objectives import SelfDistillation, TrainingRun, to_float32
from .posterior import soft_cross_entropy


class EmbeddingWatch:
    """Records the input of a network's last layer, the embedding.

    Parameters
    ----------
    network : nn.Module
    n_classes : int
    layer : str or None
        The layer's name. None watches all linear layers with one output per class, and
        uses the one that ran last.

    Raises
    ------
    ValueError
        If there is no such layer.
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
        """Install the hooks within this context only."""
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
            The expected number of rows.

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


@dataclass
class Projection:
    """The projection head of the contrastive loss, and its optimizer.

    Parameters
    ----------
    head : nn.Sequential
    optimizer : torch.optim.Optimizer
    network : nn.Module
        The network whose embeddings it projects.
    setting : Contrastive
        The settings with which it was built.
    """

    head: nn.Sequential
    optimizer: torch.optim.Optimizer
    network: nn.Module
    setting: Contrastive

    def belongs_to(self, network: nn.Module, setting: Contrastive) -> bool:
        """Whether a further call can continue with it."""
        return self.network is network and self.setting == setting

    def step(self, lr: float | Tensor) -> None:
        """Take an optimizer step at the network's learning rate; clear gradients."""
        groups = self.optimizer.param_groups
        if isinstance(lr, Tensor):
            with rates_from_memory(self.optimizer, [lr] * len(groups)):
                self.optimizer.step()
        else:
            for group in groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()


class TwoViews(SelfDistillation):
    """Self-distillation of the mean of two views, with a contrastive loss.

    The network processes the views one after the other. Batches are therefore no larger
    than without contrastive learning, and batch normalisation does not mix views.

    Parameters
    ----------
    setting : Contrastive
    prior_strength : float or {"auto", "noisy"}
    evidence : {"auto", "plain", "weighted"}
    images : bool
        Whether X holds images, also as flat rows.
    build_optimizer : callable
        Returns the optimizer of a module's parameters.
    projection : Projection, optional
        From the previous call; reused if it belongs to the network.

    Attributes
    ----------
    projection : Projection or None
        None until the first embeddings determine its width.
    augmentation : str or callable
        Augmentation of the second view.
    """

    def __init__(
        self,
        setting: Contrastive,
        *,
        prior_strength: float | str,
        evidence: str,
        images: bool,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        projection: Projection | None = None,
    ):
        super().__init__(prior_strength, evidence)
        self.projection = projection
        self.augmentation = setting.augmentation
        self._setting = setting
        self._images = images
        self._build_optimizer = build_optimizer
        self._watch: EmbeddingWatch | None = None

    def begin(self, run: TrainingRun) -> None:
        """Find the layer whose input is the embedding."""
        super().begin(run)
        setting = self._setting
        if isinstance(run.optimizer, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS evaluates the loss several times per step; contrastive learning "
                "needs an optimizer that does not, such as torch.optim.AdamW."
            )
        if self.projection and not self.projection.belongs_to(run.module, setting):
            self.projection = None
        if setting.weight > 0:
            self._watch = EmbeddingWatch(run.module, run.n_classes, setting.layer)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Keep the hooks installed for a compiled network, whose graph has them."""
        built_in = self._watch is not None and self.run.is_compiled
        with self._watching() if built_in else nullcontext():
            yield

    def _watching(self) -> Any:
        return nullcontext() if self._watch is None else self._watch.watching()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the beliefs with the mean of both views; compute gradients."""
        self._check_batch(batch)
        with self._watching():
            # A copy, as an augmentation may work in place.
            first = self._view(batch.x.clone(), self.run.augmentation)
            second = self._view(batch.x, self._setting.augmentation)
        logits = [first[0], second[0]]
        # log(p1 + p2): softmax ignores the missing factor 1/2.
        mean = torch.logaddexp(*(view.detach().log_softmax(dim=1) for view in logits))
        self.run.posterior.update(
            mean, batch.rows, batch.weight, self._rule, assume_unique=batch.unique
        )
        target = self.target(batch).to(mean)
        losses = [soft_cross_entropy(view, target, batch.weight) for view in logits]
        loss = torch.stack(losses).mean()
        if first[1] is None or second[1] is None:
            loss.backward()
            return {"loss": loss.detach(), "y_pred": mean}
        contrast, projection = self._contrast(
            torch.cat([first[1], second[1]]), target, batch.weight
        )
        loss = loss + self._setting.weight * contrast
        loss.backward()
        self.run.add_gradients(projection.head.parameters())
        # Parameters that match none of the user's patterns are in the last group.
        projection.step(self.run.optimizer.param_groups[-1]["lr"])
        return {
            "loss": loss.detach(),
            "y_pred": mean,
            "contrastive_loss": contrast.detach(),
        }

    def _check_batch(self, batch: Batch) -> None:
        if not isinstance(batch.x, Tensor):
            raise ValueError(
                "contrastive learning needs batches that are one tensor, got "
                f"{type(batch.x).__name__}; pass contrastive=None."
            )
        augmentation = self._setting.augmentation
        images = self._images or batch.x.ndim == 4
        if isinstance(augmentation, str) and not images:
            raise ValueError(
                f"contrastive's augmentation {augmentation!r} needs images, X has "
                f"samples of shape {tuple(batch.x.shape[1:])}; pass 4-D X or "
                "image_shape, or a callable as Contrastive(augmentation=...)."
            )

    def _view(self, x: Tensor, augmentation: Any) -> tuple[Tensor, Tensor | None]:
        """Return logits and, if the contrastive loss is used, embeddings."""
        logits = to_float32(self.run.view(x, augmentation))
        embedding = None if self._watch is None else self._watch.take(len(logits))
        return logits, embedding

    def _contrast(
        self, embeddings: Tensor, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Projection]:
        """Return the contrastive loss, and the projection that was used."""
        setting = self._setting
        if self.projection is None:
            self.projection = self._new_projection(embeddings.shape[1])
        with self.run.autocast():
            first, second = self.projection.head(embeddings).chunk(2)
        contrast = contrastive_loss(
            first,
            second,
            temperature=setting.temperature,
            agreement=target @ target.T if setting.supervised else None,
            weight=weight,
        )
        return contrast, self.projection

    def _new_projection(self, width: int) -> Projection:
        """Build the projection for embeddings of this width."""
        head = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, self._setting.n_components),
        ).to(next(self.run.module.parameters()).device, self.run.dtype)
        self.run.equalise(head)
        optimizer = self._build_optimizer(head)
        return Projection(head, optimizer, self.run.module, self._setting)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the projection."""
        projection = self.projection
        if projection is None:
            return {}
        return {
            "width": projection.head[0].in_features,
            "head": dict(projection.head.state_dict()),
            "optimizer": projection.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        if not state:
            return
        self.projection = self._new_projection(state["width"])
        self.projection.head.load_state_dict(state["head"])
        self.projection.optimizer.load_state_dict(state["optimizer"])
