"""Network and optimizer in the state of an estimator that is pickled or copied.

skorch puts them there as a pickle within the pickle. Here they are NumPy arrays and
plain data wherever that tells all of them, so that tools that read a state safely, as
skops does, read all of it, and others compress or map the arrays.
"""

import inspect
import pickle
from contextvars import ContextVar
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from . import _architecture
from ._optimizer import can_fuse, load_state

_OPTIMIZERS = {
    optimizer.__name__: optimizer
    for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
}


class PickledComponents:
    """Parts of an estimator that only a pickle can hold, such as a network of yours.

    Who has skops trust this type trusts whoever wrote the file as with pickle.

    Parameters
    ----------
    components : dict of str to object
    """

    def __init__(self, components: dict[str, Any]):
        self.data = _dumps.get()(components)


# How components are pickled, in this thread.
_dumps: ContextVar[Any] = ContextVar("dumps", default=pickle.dumps)


def dumps_by_value(value: Any) -> bytes:
    """Pickle for another process that runs now, with the code of a script's classes.

    A pickle names the module of a class. What a script or notebook defines is in
    ``__main__``, which is another module there.

    Parameters
    ----------
    value : object
        Estimators and what they hold.
    """
    before = _dumps.set(cloudpickle.dumps)
    try:
        return cloudpickle.dumps(value)
    finally:
        _dumps.reset(before)


def pack(components: dict[str, Any]) -> dict[str, Any] | PickledComponents:
    """Express components in NumPy and plain data, or in a pickle.

    Parameters
    ----------
    components : dict of str to object
        Network, criterion and optimizer by the names of the attributes.
    """
    try:
        return _packed(components)
    except (TypeError, ValueError):
        return PickledComponents(components)


def unpack(
    packed: dict[str, Any], device: torch.device, *, channels_last: bool
) -> dict[str, Any]:
    """Build what was packed, on a device.

    Parameters
    ----------
    packed : dict
        Not a pickle.
    device : torch.device
    channels_last : bool
        Whether the network stores images pixel by pixel.
    """
    weights = {name: tensor(array) for name, array in packed["weights"].items()}
    module = _architecture.build_with(packed["network"], weights).to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)
    parameters = list(module.parameters())
    kind = _OPTIMIZERS[packed["optimizer"]]
    fusible = can_fuse(kind, module, device)
    groups = []
    for group in packed["groups"]:
        fused = bool(group.get("fused")) and fusible
        chosen = [parameters[i] for i in group["params"]]
        groups.append(group | {"params": chosen, "fused": fused or None})
    accepted = inspect.signature(kind).parameters
    defaults = {k: v for k, v in packed["defaults"].items() if k in accepted}
    defaults["fused"] = bool(defaults.get("fused") and fusible) or None
    optimizer = kind(groups, **defaults)
    n = 0
    ids = []
    for group in groups:
        ids.append(list(range(n, n + len(group["params"]))))
        n += len(group["params"])
    load_state(
        optimizer,
        {
            "state": {
                index: {
                    name: tensor(value) if isinstance(value, np.ndarray) else value
                    for name, value in values.items()
                }
                for index, values in packed["state"].items()
            },
            "param_groups": [
                {**group, "params": own} for group, own in zip(groups, ids, strict=True)
            ],
        },
    )
    return {
        "module_": module,
        "criterion_": nn.CrossEntropyLoss().to(device),
        "optimizer_": optimizer,
    }


def array(value: Tensor) -> np.ndarray:
    """Return a tensor as an array, on the CPU; it may share its memory."""
    return value.detach().cpu().contiguous().numpy()


def tensor(value: np.ndarray) -> Tensor:
    """Return a copy as a tensor: an array may be a file's, and written to then."""
    return torch.tensor(np.asarray(value))


def _packed(components: dict[str, Any]) -> dict[str, Any]:
    """Return plain data, or raise TypeError where they do not tell all."""
    if components.keys() != {"module_", "criterion_", "optimizer_"}:
        raise TypeError("there are other components")
    module, criterion = components["module_"], components["criterion_"]
    optimizer = components["optimizer_"]
    network = _architecture.describe(module)
    parameters = list(module.parameters())
    if network is None or not all(p.requires_grad for p in parameters):
        raise TypeError("the network is not told by its class")
    if type(criterion) is not nn.CrossEntropyLoss or repr(criterion) != (
        repr(nn.CrossEntropyLoss())
    ):
        raise TypeError("the criterion has state")
    if _OPTIMIZERS.get(type(optimizer).__name__) is not type(optimizer):
        raise TypeError("the optimizer is another one")
    state = optimizer.state_dict()
    rows = {id(p): i for i, p in enumerate(parameters)}
    groups = []
    for group in optimizer.param_groups:
        if not all(id(p) in rows for p in group["params"]):
            raise TypeError("the optimizer has parameters that the network lacks")
        options = {k: _number(v) for k, v in group.items() if k != "params"}
        groups.append({**options, "params": [rows[id(p)] for p in group["params"]]})
    return {
        "network": network,
        "weights": {n: array(w) for n, w in module.state_dict().items()},
        "optimizer": type(optimizer).__name__,
        "defaults": {k: _number(v) for k, v in optimizer.defaults.items()},
        "groups": groups,
        "state": {
            index: {
                name: array(value) if isinstance(value, Tensor) else _number(value)
                for name, value in values.items()
            }
            for index, values in state["state"].items()
        },
    }


def _number(value: Any) -> Any:
    items = value if isinstance(value, tuple | list) else (value,)
    plain = (bool, int, float, str, np.generic, type(None))
    if not all(isinstance(item, plain) for item in items):
        raise TypeError(f"{value!r} is no option")
    return value
