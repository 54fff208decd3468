"""The state that skorch's callbacks carry from one epoch to the next."""

from typing import Any, NamedTuple

import numpy as np
import torch
from skorch.callbacks import Callback, EpochTimer, PrintLog
from skorch.callbacks import ProgressBar as BatchProgressBar

from ._identity import UnknownIdentityError, digest
from .callbacks import ProgressBar

# Attributes that skorch's callbacks recreate in each epoch or when training begins.
_MADE_ANEW = {
    "bar_",
    "batch_suffix_",
    "batches_per_epoch_",
    "checkpoint_",
    "epoch_start_time_",
    "epoch_suffix_",
    "first_batch_",
    "first_iteration_",
    "keys_ignored_",
    "name_",
    "pbar_",
    "policy_",
    "scoring_",
    "y_indexing_",
    "y_preds_",
    "y_trues_",
}

_SHOWING = (BatchProgressBar, EpochTimer, PrintLog, ProgressBar)


class UncoveredStateError(TypeError):
    """An object has state that a checkpoint cannot contain."""


def shows_only(callback: Any) -> bool:
    """Whether a callback (instance or class) only shows progress."""
    kind = callback if isinstance(callback, type) else type(callback)
    return issubclass(kind, _SHOWING)


class CallbackStates(NamedTuple):
    """The states of callbacks, by name.

    Parameters
    ----------
    callbacks : list of (name, callback)
        Callbacks after `on_train_begin`.
    at_start : dict
        Digests of their attributes at that time.
    """

    callbacks: list[tuple[str, Callback]]
    at_start: dict[str, dict[str, str]]

    @classmethod
    def of(cls, callbacks: list[tuple[str, Callback]]) -> "CallbackStates":
        """Record the attributes of callbacks at the beginning of training."""
        return cls(callbacks, {name: contents_of(c) for name, c in callbacks})

    def save(self) -> dict[str, dict[str, Any]]:
        """Return the state of each callback.

        Raises
        ------
        UncoveredStateError
            If a callback has an attribute that is neither plain data nor a tensor, and
            that has changed since the beginning of training.
        """
        return {name: self._state(name, c) for name, c in self.callbacks}

    def load(self, states: dict[str, dict[str, Any]]) -> None:
        """Restore the state of each callback."""
        for name, callback in self.callbacks:
            state = dict(states.get(name, {}))  # none for one that only shows progress
            own = state.pop("state_dict", None)
            if own is not None:
                callback.load_state_dict(own)
            for attribute, saved in state.pop("nested", {}).items():
                nested = getattr(callback, attribute, None)
                if nested is not None:  # None after a finished fit
                    nested.load_state_dict(saved)
            vars(callback).update(state)

    def _state(self, name: str, callback: Any) -> dict[str, Any]:
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            return {"state_dict": callback.state_dict()}
        state: dict[str, Any] = {}
        nested: dict[str, Any] = {}
        at_start = self.at_start[name]
        from_skorch = type(callback).__module__.startswith(("skorch.", "skbsd."))
        for attribute, value in vars(callback).items():
            if attribute in _MADE_ANEW:
                continue
            if from_skorch and not attribute.endswith("_"):
                continue  # a parameter
            if is_plain(value):
                state[attribute] = _as_dict(value)
            elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
                nested[attribute] = _plain_part(value.state_dict())
            elif at_start.get(attribute) == content_of(value):
                continue  # configuration
            else:
                raise UncoveredStateError(
                    f"the callback {name!r} has a {type(value).__name__} in its "
                    f"attribute {attribute!r}, which a checkpoint cannot contain. Add "
                    "the methods state_dict and load_state_dict to the callback, or "
                    "pass checkpoint=None."
                )
        return state | ({"nested": nested} if nested else {})


def contents_of(holder: Any) -> dict[str, str]:
    """Return digests of an object's attributes, to detect changes, also in place."""
    return {name: content_of(value) for name, value in vars(holder).items()}


def content_of(value: Any) -> str:
    """Return a value's digest, or its identity if its contents are inaccessible."""
    try:
        return digest(value)
    except UnknownIdentityError:
        return f"object {id(value)}"


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, strings, arrays and tensors."""
    if isinstance(value, list | tuple | set):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or isinstance(
        value, bool | int | float | str | bytes | np.generic | np.ndarray | torch.Tensor
    )


def _as_dict(value: Any) -> Any:
    """Convert an ordered dict, such as a network's state, to a plain dict."""
    return dict(value) if isinstance(value, dict) else value


def _plain_part(state: dict[str, Any]) -> dict[str, Any]:
    """Remove the configuration that torch's schedulers include in their state."""
    return {key: value for key, value in state.items() if is_plain(value)}
