"""What an estimator was before a call of `fit`, to be that again."""

import copy
from typing import Any

from torch.nn.parameter import is_lazy


class Snapshot:
    """The attributes of an estimator, and what a call changes in them in place.

    Parameters
    ----------
    net : BSDClassifier
    keep : bool
        Whether the call goes on with the network, whose weights, optimizer and beliefs
        then change in place. A new one leaves the old ones alone.
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
                # The copy of beliefs in a file is a file, too.
                copied = copy.deepcopy(net.posterior_)
                self._states["posterior_"] = copied.state_dict()

    def release(self) -> None:
        """Free the copies, where there is no way back: beliefs may be large."""
        self._states = {}

    def restore(self) -> None:
        """Make the estimator what it was."""
        attributes = vars(self._net)
        attributes.clear()
        attributes.update(self._attributes)
        del (self._net.history_ or [])[self._n_epochs :]
        for name, state in self._states.items():
            getattr(self._net, name).load_state_dict(state)
