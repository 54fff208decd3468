"""What a call of `fit` has left on an estimator, to be that of another process too."""

import pickle
from typing import Any

import cloudpickle


def pack(net: Any) -> bytes:
    """Return what a call of `fit` has left.

    Classes that the script or notebook defines travel by their code. Callbacks that
    cannot be pickled stay behind.

    Parameters
    ----------
    net : BSDClassifier
        Fitted.
    """
    state = {k: v for k, v in net.__getstate__().items() if k not in _own(net)}
    callbacks = state.pop("callbacks_", None)
    try:
        packed = cloudpickle.dumps(callbacks)
    except Exception:  # whatever a pickle of somebody's object may raise
        packed = cloudpickle.dumps(None)
    return cloudpickle.dumps((state, packed))


def unpack(net: Any, packed: bytes) -> None:
    """Leave on an estimator what `pack` has found on another one.

    Parameters
    ----------
    net : BSDClassifier
        With the same parameters. What an earlier call has left goes.
    packed : bytes
    """
    state, callbacks = pickle.loads(packed)
    own = {k: v for k, v in vars(net).items() if k in _own(net)}
    device = net.device
    vars(net).clear()
    net.__setstate__(own | state)
    net.device = device
    net.callbacks_ = pickle.loads(callbacks)
    if net.callbacks_ is None:
        net._initialize_callbacks()


def _own(net: Any) -> set[str]:
    """Return the names of parameters, which each process has."""
    return {*net._constructor_names(), *net._params_to_validate, "_params_to_validate"}
