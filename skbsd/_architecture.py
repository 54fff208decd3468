"""Descriptions of the networks of :mod:`skbsd.networks` in plain data."""

from typing import Any

import torch
from torch import Tensor, nn

from .networks import MLP, ResNet, SmallResNet, SpeedNet

NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network for network in (MLP, SmallResNet, ResNet, SpeedNet)
}

# Attributes in which a module stores its hooks.
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def describe(module: Any) -> dict[str, Any] | None:
    """Return the name and the arguments of a network, or None.

    None is returned for a network of another class, and for one that was changed after
    it was built, for example by another activation or a hook.

    Parameters
    ----------
    module : nn.Module
    """
    if NETWORKS.get(type(module).__name__) is not type(module):
        return None
    try:
        description = {
            "name": type(module).__name__,
            "arguments": _arguments(module),
        }
        same = _shape_of(build(description)) == _shape_of(module)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        return None  # parts of the network are missing
    return description if same and not any(map(is_altered, module.modules())) else None


def build(description: dict[str, Any]) -> nn.Module:
    """Build a network without weights.

    Parameters
    ----------
    description : dict
        Result of :func:`describe`; it may come from an untrusted file.

    Returns
    -------
    nn.Module
        The network on the device "meta", where it takes no memory.

    Raises
    ------
    ValueError
        For an invalid description.
    """
    try:
        network = NETWORKS[description["name"]]
        with torch.device("meta"):
            return network(**description["arguments"])
    except (
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"{description!r} does not describe a network: {error}"
        ) from error


def build_with(description: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """Build a network with given weights.

    Parameters
    ----------
    description : dict
        As in :func:`build`.
    weights : dict of str to Tensor
        State of the network, with a single floating type. Memory is allocated only
        after its shapes have been checked.

    Returns
    -------
    nn.Module
        The network on the CPU.

    Raises
    ------
    ValueError
        For an invalid description, or for weights that do not match it.
    """
    module = build(description)
    floats = {w.dtype for w in weights.values() if w.is_floating_point()}
    if len(floats) == 1:
        module.to(floats.pop())
    check_weights(module, weights)
    module.to_empty(device="cpu")
    module.load_state_dict(weights)
    return module


def check_weights(module: nn.Module, weights: dict[str, Any]) -> None:
    """Raise ValueError if weights have other names, shapes or types than a module.

    Parameters
    ----------
    module : nn.Module
    weights : dict of str to Tensor
    """
    own = module.state_dict()
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    if missing or unknown:
        raise ValueError(
            f"the weights lack {sorted(missing)}, and the network lacks "
            f"{sorted(unknown)}"
        )
    for name, tensor in own.items():
        if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor):
            continue
        found = weights[name]
        expected = (tuple(tensor.shape), tensor.dtype)
        if not isinstance(found, Tensor) or expected != (
            tuple(found.shape),
            found.dtype,
        ):
            raise ValueError(
                f"{name} has shape {tuple(found.shape)} and {found.dtype}, but the "
                f"network expects {expected[0]} and {expected[1]}"
            )


def _arguments(module: Any) -> dict[str, Any]:
    if isinstance(module, MLP):
        linear: list[Any] = [m for m in module.layers if isinstance(m, nn.Linear)]
        return {
            "in_features": linear[0].in_features,
            "n_classes": linear[-1].out_features,
            "hidden": [layer.out_features for layer in linear[:-1]],
        }
    if isinstance(module, SmallResNet):
        blocks: list[Any] = list(module.blocks)
        return {
            "in_channels": module.stem[0].in_channels,
            "n_classes": module.head.out_features,
            "widths": [block.conv2.out_channels for block in blocks],
        }
    if isinstance(module, SpeedNet):
        speed_blocks: list[Any] = list(module.blocks)
        return {
            "in_channels": module.whitening.weight.shape[1],
            "n_classes": module.head.out_features,
            "widths": [block.convs[0].out_channels for block in speed_blocks],
            "depth": len(speed_blocks[0].convs),
        }
    body: Any = module.body
    stages = (body.layer1, body.layer2, body.layer3, body.layer4)
    convolutions = 3 if hasattr(body.layer1[0], "conv3") else 2
    return {
        "in_channels": body.conv1.in_channels,
        "n_classes": body.fc.out_features,
        "depth": 2 + convolutions * sum(map(len, stages)),
    }


def _shape_of(module: nn.Module) -> tuple:
    """Return a value that identifies the structure of a network, without weights."""
    return repr(module), [type(m) for m in module.modules()]


def is_altered(module: nn.Module) -> bool:
    """Whether a module was changed by hooks or by a replaced `forward`.

    Parameters
    ----------
    module : nn.Module
    """
    return "forward" in vars(module) or any(getattr(module, name) for name in HOOKS)
