"""Checks, before training, that the scores exist that callbacks monitor."""

import inspect
from typing import Any

from skorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    GradientNormClipping,
    InputShapeSetter,
    LoadInitState,
    LRScheduler,
    ParamMapper,
)
from torch.optim.lr_scheduler import ReduceLROnPlateau


def check_monitors(net: Any, *, reset: bool) -> None:
    """Raise an error if a callback monitors validation scores that do not exist.

    Parameters
    ----------
    net : BSDClassifier
    reset : bool
        Whether callbacks will be initialized anew, from the parameters.

    Raises
    ------
    ValueError
        If `train_split` is None and one of skorch's callbacks monitors a score whose
        name begins with "valid_".
    """
    if net.train_split is not None or net.callbacks == "disable":
        return
    callbacks = _from_parameters(net) if reset else [(*c, {}) for c in net.callbacks_]
    # Hooks from other libraries or the user may record scores of any name.
    if any(map(_has_foreign_hooks, [net, *(c for _, c, _ in callbacks)])):
        return
    recorded = {
        _value(callback, "name", params)
        for _, callback, params in callbacks
        if _value(callback, "on_train", params)
    }
    for name, callback, params in callbacks:
        monitor = _monitored(callback, params)
        if not (isinstance(monitor, str) and monitor.startswith("valid_")):
            continue
        if monitor.removesuffix("_best") in recorded:
            continue
        kind = _class_of(callback).__name__
        best = "_best" if monitor.endswith("_best") else ""
        raise ValueError(
            f"the callback {kind if name == kind else f'{kind} {name!r}'} monitors "
            f"{monitor!r}, but without validation data nothing records it: train_split "
            "is None. Pass train_split=ValidSplit(5) of skorch.dataset, or give the "
            f'callback monitor="train_loss{best}".'
        )


def acts_on_steps(callback: Any) -> bool:
    """Whether one of skorch's callbacks acts on each step, or on the network itself.

    If several processes train together, all of them call such callbacks.
    """
    if isinstance(callback, LRScheduler):
        return callback.step_every == "batch"
    return isinstance(
        callback, GradientNormClipping | InputShapeSetter | LoadInitState | ParamMapper
    )


def monitors_validation(callback: Any) -> bool:
    """Whether one of skorch's callbacks monitors validation scores.

    Parameters
    ----------
    callback : Callback or its class
    """
    monitor = _monitored(callback, {})
    return isinstance(monitor, str) and monitor.startswith("valid_")


def _from_parameters(net: Any) -> list[tuple[str, Any, dict]]:
    """Return each callback with its name and its ``callbacks__*`` parameters."""
    return [
        (
            name,
            getattr(net, f"callbacks__{name}", callback),
            net.get_params_for(f"callbacks__{name}"),
        )
        for name, callback in net._uniquely_named_callbacks()
    ]


def _class_of(callback) -> type:
    return callback if isinstance(callback, type) else type(callback)


def _has_foreign_hooks(listener) -> bool:
    kind = _class_of(listener)
    hooks = [getattr(kind, name) for name in dir(kind) if name.startswith("on_")]
    homes = [getattr(hook, "__module__", "").partition(".")[0] for hook in hooks]
    return any(home not in ("skorch", "skbsd") for home in homes)


def _monitored(callback, params: dict):
    """Return the name of the score that one of skorch's callbacks monitors, or None."""
    kind = _class_of(callback)
    if issubclass(kind, LRScheduler):
        # Other policies do not use scores.
        policy = _value(callback, "policy", params)
        if policy not in (ReduceLROnPlateau, "ReduceLROnPlateau"):
            return None
    elif not issubclass(kind, EarlyStopping | Checkpoint):
        return None
    return _value(callback, "monitor", params)


def _value(callback, name: str, params: dict):
    """Return a parameter of a callback, which is an instance or a class."""
    if name in params or not isinstance(callback, type):
        return params.get(name, getattr(callback, name, None))
    parameter = inspect.signature(callback).parameters.get(name)
    return None if parameter is None else parameter.default
