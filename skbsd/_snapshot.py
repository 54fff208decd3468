"""The state of an estimator before a call of `fit`, to restore it."""

import copy
from typing import Any

from torch.nn.parameter import is_lazy


class Snapshot:
    """The attributes of an estimator, and copies of states that change in place.

    Parameters
    ----------
    net : BSDClassifier
    keep : bool
        Whether the call continues to train the network. In this case, its weights,
        optimizer and beliefs change in place. Otherwise, the call creates new objects.
    """

    def __init__(self, net: Any, *, keep: bool):
        self._net = net
        self._attributes = dict(vars(net))
        self._n_epochs = len(net.history_ or ())
        self._states: dict[str, Any] = {}
        if keep and not any(map(is_lazy, net.module_.parameters())):
            self._states = {
                name: copy.deepcopy(getattr(net, name).state_dict())
                for name in ("module_", "optimizer_")
            }
            if hasattr(net, "posterior_"):
                # Beliefs in a file are copied to another file.
                copied = copy.deepcopy(net.posterior_)
                self._states["posterior_"] = copied.state_dict()

    def release(self) -> None:
        """Free the copies, which may be large, if they are no longer needed."""
        self._states = {}

    def restore(self) -> None:
        """Restore the estimator's state."""
        attributes = vars(self._net)
        attributes.clear()
        attributes.update(self._attributes)
        del (self._net.history_ or [])[self._n_epochs :]
        for name, state in self._states.items():
            getattr(self._net, name).load_state_dict(state)
