"""What a call of `fit` has left on an estimator, to be that of another process too."""

import pickle
from typing import Any

from ._sklearn_tasks import CONTEXTS
from ._state import dumps_by_value


class _Fitted:
    """The part of an estimator's state that is not its parameters."""

    def __init__(self, net: Any):
        self._net = net
        self.state: dict[str, Any] = {}

    def __getstate__(self):
        # Here and not before, as components are pickled within.
        left_out = _own(self._net) | {"callbacks_"}
        state = self._net.__getstate__()
        return {k: v for k, v in state.items() if k not in left_out}

    def __setstate__(self, state):
        self.state = state


def pack(net: Any) -> bytes:
    """Return what a call of `fit` has left.

    Classes that the script or notebook defines travel by their code. Callbacks that
    cannot be pickled stay behind.

    Parameters
    ----------
    net : BSDClassifier
        Fitted.
    """
    try:
        callbacks = dumps_by_value(net.callbacks_)
    except Exception:  # whatever a pickle of somebody's object may raise
        callbacks = dumps_by_value(None)
    return dumps_by_value((_Fitted(net), callbacks))


def unpack(net: Any, packed: bytes) -> None:
    """Leave on an estimator what `pack` has found on another one.

    Parameters
    ----------
    net : BSDClassifier
        With the same parameters. What an earlier call has left goes.
    packed : bytes
    """
    fitted, callbacks = pickle.loads(packed)
    own = {k: v for k, v in vars(net).items() if k in _own(net)}
    device = net.device
    vars(net).clear()
    net.__setstate__(own | fitted.state)
    net.device = device
    net.callbacks_ = pickle.loads(callbacks)
    if net.callbacks_ is None:
        net._initialize_callbacks()


def _own(net: Any) -> set[str]:
    """Return the names of what each process has: parameters, and scikit-learn's own."""
    parameters = {*net._constructor_names(), *net._params_to_validate}
    return {*parameters, "_params_to_validate", "_skl_callbacks", *CONTEXTS}
