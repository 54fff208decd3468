"""What skorch's callbacks remember from one epoch to the next."""

from typing import Any, NamedTuple

import numpy as np
import torch
from skorch.callbacks import Callback, EpochTimer, PrintLog
from skorch.callbacks import ProgressBar as BatchProgressBar

from ._identity import UnknownIdentityError, digest
from .callbacks import ProgressBar

# What skorch's own callbacks make anew, within each epoch or as training begins.
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
    """Something remembers what a checkpoint cannot hold."""


def shows_only(callback: Any) -> bool:
    """Whether a callback (instance or class) shows progress, and changes nothing."""
    kind = callback if isinstance(callback, type) else type(callback)
    return issubclass(kind, _SHOWING)


class CallbackStates(NamedTuple):
    """The states of callbacks, by their names.

    Parameters
    ----------
    callbacks : list of (name, callback)
        After `on_train_begin`.
    at_start : dict
        Digests of their attributes then.
    """

    callbacks: list[tuple[str, Callback]]
    at_start: dict[str, dict[str, str]]

    @classmethod
    def of(cls, callbacks: list[tuple[str, Callback]]) -> "CallbackStates":
        """Take note of callbacks as training begins."""
        return cls(callbacks, {name: contents_of(c) for name, c in callbacks})

    def save(self) -> dict[str, dict[str, Any]]:
        """Return the state of each callback.

        Raises
        ------
        UncoveredStateError
            For one that keeps what is no plain data and no tensor, where it is not what
            it was when training began.
        """
        return {name: self._state(name, c) for name, c in self.callbacks}

    def load(self, states: dict[str, dict[str, Any]]) -> None:
        """Give each callback its state."""
        for name, callback in self.callbacks:
            state = dict(states.get(name, {}))  # none of one that only shows
            own = state.pop("state_dict", None)
            if own is not None:
                callback.load_state_dict(own)
            for attribute, saved in state.pop("nested", {}).items():
                nested = getattr(callback, attribute, None)
                if nested is not None:  # of a fit that was done there is none
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
                    f"the callback {name!r} keeps a {type(value).__name__} in its "
                    f"attribute {attribute!r}, which a checkpoint cannot hold. Give "
                    "the callback the methods state_dict and load_state_dict, or pass "
                    "checkpoint=None."
                )
        return state | ({"nested": nested} if nested else {})


def contents_of(holder: Any) -> dict[str, str]:
    """Return what tells whether the attributes of an object change, also in place."""
    return {name: content_of(value) for name, value in vars(holder).items()}


def content_of(value: Any) -> str:
    """Return a digest or, of what shows nothing of its contents, its identity."""
    try:
        return digest(value)
    except UnknownIdentityError:
        return f"object {id(value)}"


def is_plain(value: Any) -> bool:
    """Whether a value is made of numbers, strings, arrays and tensors."""
    if isinstance(value, list | tuple | set):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or isinstance(
        value, bool | int | float | str | bytes | np.generic | np.ndarray | torch.Tensor
    )


def _as_dict(value: Any) -> Any:
    """Turn an ordered one, such as a network's state, into a plain dict."""
    return dict(value) if isinstance(value, dict) else value


def _plain_part(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out what torch's schedulers list of their configuration."""
    return {key: value for key, value in state.items() if is_plain(value)}
