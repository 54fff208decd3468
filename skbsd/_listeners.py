"""Determines which callbacks use single batches, losses and gradients."""

from collections.abc import Iterable
from typing import Any, Protocol

from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
)
from skorch.utils import TeeGenerator
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ._batches import Batch
from ._default_callbacks import ValidationAccuracy

_BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_grad_computed")


class Notifying(Protocol):
    """The interface of a skorch net through which listeners are notified."""

    classes_: Any

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Call a hook of the net and of its callbacks."""

    def get_all_learnable_params(self) -> Iterable:
        """Return the names and values of all learnable parameters."""


class Listeners:
    """The hooks of the net and its callbacks that run within an epoch.

    Work for which no hook exists is skipped: losses stay on the device until the epoch
    ends, and labels are not decoded.

    Parameters
    ----------
    net : NeuralNet
    callbacks : list of skorch callbacks

    Attributes
    ----------
    to_gradients : bool
        Whether any hook uses gradients before they are applied.
    to_losses : bool
        Whether any hook may read a batch's loss before the epoch ends.
    to_accuracy : bool
        Whether a callback records the accuracy that is counted on the device.
    """

    def __init__(self, net: Notifying, callbacks: list[Callback]):
        self._net = net
        self._callbacks = callbacks
        of_net = _overrides(net, NeuralNet)
        self.to_gradients = _overrides(net, NeuralNet, ("on_grad_computed",)) or any(
            map(sees_gradients, callbacks)
        )
        self.to_losses = of_net or any(map(_reads_losses, callbacks))
        self.to_accuracy = any(
            isinstance(c, ValidationAccuracy) and c.counted for c in callbacks
        )

    def to_batches(self, *, training: bool) -> bool:
        """Whether any hook uses single batches of a pass."""
        return _overrides(self._net, NeuralNet) or any(
            _looks_at_batches(c, training=training) for c in self._callbacks
        )

    def begin_batch(self, batch: Batch, *, training: bool) -> tuple:
        """Notify of a batch; return it in skorch's form, with decoded labels."""
        pair = LabelledBatch((batch.x, batch.y))
        pair.classes = self._net.classes_
        self._net.notify("on_batch_begin", batch=pair, training=training)
        return pair

    def end_batch(self, pair: tuple, step: dict, *, training: bool) -> None:
        """Notify of the end of a batch, with its loss and its predictions."""
        self._net.notify("on_batch_end", batch=pair, training=training, **step)

    def gradients(self, batch: Batch) -> None:
        """Notify of computed gradients, if any hook uses them."""
        if self.to_gradients:
            self._net.notify(
                "on_grad_computed",
                named_parameters=TeeGenerator(self._net.get_all_learnable_params()),
                batch=(batch.x, batch.y),
                training=True,
            )


class LabelledBatch(tuple):
    """A pair (x, y) whose labels are decoded on access.

    Copying them from a GPU synchronises with it, and most callbacks do not need them.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        The labels that the second entry of the tuple indexes.
    """

    classes: Any

    def __getitem__(self, i):
        return super().__getitem__(0) if i == 0 else tuple(self)[i]

    def __iter__(self):
        x, codes = super().__iter__()
        yield x
        yield self.classes[codes.cpu().numpy()]


def sees_gradients(callback: Callback) -> bool:
    """Whether a callback receives gradients, and thus may change them.

    Parameters
    ----------
    callback : Callback
    """
    return _overrides(callback, Callback, ("on_grad_computed",))


def _looks_at_batches(callback: Callback, *, training: bool) -> bool:
    if isinstance(callback, ValidationAccuracy) and callback.counted:
        return False
    if isinstance(callback, EpochScoring):
        return callback.on_train == training
    if type(callback) is LRScheduler:
        return callback.step_every == "batch"
    return _overrides(callback, Callback)


def _reads_losses(callback: Callback) -> bool:
    if isinstance(callback, EpochScoring | GradientNormClipping):
        return False
    if type(callback) is LRScheduler:
        by_batch = callback.step_every == "batch"
        return by_batch and callback.policy_ is ReduceLROnPlateau
    return _overrides(callback, Callback)


def _overrides(listener, base: type, hooks=_BATCH_HOOKS) -> bool:
    """Whether the listener or its class overrides one of the hooks.

    skorch accepts any object with the methods of a callback, whatever its class.
    """
    return any(
        h in vars(listener) or getattr(type(listener), h, None) is not getattr(base, h)
        for h in hooks
    )
