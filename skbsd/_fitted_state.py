"""Transfer of an estimator's fitted state to another process."""

import pickle
from typing import Any

from ._sklearn_tasks import CONTEXTS
from ._state import dumps_by_value


class _Fitted:
    """An estimator's state without its parameters."""

    def __init__(self, net: Any):
        self._net = net
        self.state: dict[str, Any] = {}

    def __getstate__(self):
        # Computed while pickling, as the estimator's components are pickled here.
        left_out = _own(self._net) | {"callbacks_"}
        state = self._net.__getstate__()
        return {k: v for k, v in state.items() if k not in left_out}

    def __setstate__(self, state):
        self.state = state


def pack(net: Any) -> bytes:
    """Return the pickled fitted state of an estimator.

    Classes that are defined in the script or notebook are pickled with their code.
    Callbacks that cannot be pickled are omitted.

    Parameters
    ----------
    net : BSDClassifier
        Fitted.
    """
    try:
        callbacks = dumps_by_value(net.callbacks_)
    except Exception:  # pickling a custom object may raise anything
        callbacks = dumps_by_value(None)
    return dumps_by_value((_Fitted(net), callbacks))


def unpack(net: Any, packed: bytes) -> None:
    """Replace an estimator's fitted state by one from `pack`.

    Parameters
    ----------
    net : BSDClassifier
        With the same parameters. Its previous fitted state is discarded.
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
    """Return the names of attributes that stay: parameters and scikit-learn's own."""
    parameters = {*net._constructor_names(), *net._params_to_validate}
    return {*parameters, "_params_to_validate", "_skl_callbacks", *CONTEXTS}
