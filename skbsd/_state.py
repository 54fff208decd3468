"""Network and optimizer in the state of an estimator that is pickled or copied.

skorch stores them as a pickle within the pickle. Here they are NumPy arrays and plain
data whenever these describe them completely. Tools that read a state safely, such as
skops, can then read all of it, and others can compress or memory-map the arrays.
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
    """Components that only a pickle can store, such as a custom network.

    To let skops trust this type is as unsafe as to load a pickle: the author of the
    file can execute arbitrary code.

    Parameters
    ----------
    components : dict of str to object
    """

    def __init__(self, components: dict[str, Any]):
        self.data = _dumps.get()(components)


# The function that pickles components in the current thread.
_dumps: ContextVar[Any] = ContextVar("dumps", default=pickle.dumps)


def dumps_by_value(value: Any) -> bytes:
    """Pickle a value for another process, with the code of classes in ``__main__``.

    A pickle refers to a class by its module. Classes of a script or notebook are in
    ``__main__``, which is a different module in another process.

    Parameters
    ----------
    value : object
        Estimators and their contents.
    """
    before = _dumps.set(cloudpickle.dumps)
    try:
        return cloudpickle.dumps(value)
    finally:
        _dumps.reset(before)


def pack(components: dict[str, Any]) -> dict[str, Any] | PickledComponents:
    """Convert components to NumPy arrays and plain data, or else to a pickle.

    Parameters
    ----------
    components : dict of str to object
        Network, criterion and optimizer by attribute name.
    """
    try:
        return _packed(components)
    except (TypeError, ValueError):
        return PickledComponents(components)


def unpack(
    packed: dict[str, Any], device: torch.device, *, channels_last: bool
) -> dict[str, Any]:
    """Build the components on a device.

    Parameters
    ----------
    packed : dict
        Returned by :func:`pack`, and not a :class:`PickledComponents`.
    device : torch.device
    channels_last : bool
        Whether the network uses the channels-last memory format.
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
    """Return a tensor as an array on the CPU, which may share its memory."""
    return value.detach().cpu().contiguous().numpy()


def tensor(value: np.ndarray) -> Tensor:
    """Return a copy as a tensor, as the array may be a memory-mapped file."""
    return torch.tensor(np.asarray(value))


def _packed(components: dict[str, Any]) -> dict[str, Any]:
    """Return plain data; raise TypeError if it cannot describe the components."""
    if components.keys() != {"module_", "criterion_", "optimizer_"}:
        raise TypeError("the estimator has further components")
    module, criterion = components["module_"], components["criterion_"]
    optimizer = components["optimizer_"]
    network = _architecture.describe(module)
    parameters = list(module.parameters())
    if network is None or not all(p.requires_grad for p in parameters):
        raise TypeError("its class and arguments do not describe the network")
    if type(criterion) is not nn.CrossEntropyLoss or repr(criterion) != (
        repr(nn.CrossEntropyLoss())
    ):
        raise TypeError("the criterion is not the default one")
    if _OPTIMIZERS.get(type(optimizer).__name__) is not type(optimizer):
        raise TypeError("the optimizer is not one of the supported classes")
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
        raise TypeError(f"{value!r} is not an option of plain data")
    return value
