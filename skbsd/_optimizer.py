"""Helpers for PyTorch's optimizers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as hooks

_FUSIBLE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def can_fuse(optimizer: type, module: nn.Module, device: torch.device) -> bool:
    """Whether torch has a fused implementation of an optimizer for a network.

    Parameters
    ----------
    optimizer : type
        Class of the optimizer.
    module : nn.Module
    device : torch.device
    """
    sparse = any(getattr(m, "sparse", False) for m in module.modules())
    return (
        optimizer in _FUSIBLE
        and device.type in ("cpu", "cuda")
        and not sparse
        and all(p.is_floating_point() for p in module.parameters())
    )


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether an optimizer may evaluate the loss itself.

    Of torch's own optimizers, only LBFGS does; others may.
    """
    own = type(optimizer).__module__.startswith("torch.optim.")
    return not own or isinstance(optimizer, torch.optim.LBFGS)


def step_function(optimizer: Optimizer) -> Callable[[], Any]:
    """Return the function that takes a step, without the overhead of unused hooks.

    torch wraps the `step` of each optimizer, to annotate it for profilers and to call
    hooks, which takes 5 % of a step of the default network for tables. A scheduler of
    torch wraps the method of the instance.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer

    Returns
    -------
    callable
        Valid for one epoch, as hooks may be added or removed.
    """
    step = type(optimizer).step
    listened_to = (
        "step" in vars(optimizer)
        or is_hooked(optimizer)
        or torch.autograd._profiler_enabled()
    )
    unwrapped = getattr(step, "__wrapped__", None)
    if listened_to or unwrapped is None or not getattr(step, "hooked", False):
        return optimizer.step
    return partial(unwrapped, optimizer)


def is_hooked(optimizer: Optimizer) -> bool:
    """Whether hooks run before or after each step, or replace it.

    The wrapper with which a scheduler of torch counts steps is not a hook.
    """
    step = vars(optimizer).get("step")
    return bool(
        (step is not None and not hasattr(step, "_wrapped_by_lr_sched"))
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or hooks._global_optimizer_pre_hooks
        or hooks._global_optimizer_post_hooks
    )


def is_fused(optimizer: Optimizer) -> bool:
    """Whether an optimizer is a fused optimizer of torch."""
    return type(optimizer) in _FUSIBLE and all(
        group["fused"] for group in optimizer.param_groups
    )


@contextmanager
def rates_from_memory(optimizer: Optimizer, rates: list[Tensor]) -> Iterator[None]:
    """Make a fused optimizer read its rates from device memory, as in a CUDA graph.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    rates : list of Tensor of shape ()
        One rate per parameter group.
    """
    before: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "capturable") if name in group}
        for group in optimizer.param_groups
    ]
    # torch warns if `capturable` does not match.
    is_recorded = rates[0].is_cuda and torch.cuda.is_current_stream_capturing()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = is_recorded
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)


def forget_gradients(optimizer: Optimizer) -> None:
    """Clear gradients without the tracing overhead of `zero_grad`."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def match_strides(optimizer: Optimizer) -> None:
    """Store an optimizer's state in the memory format of its parameters.

    On the CPU, fused optimizers iterate over the memory of parameter and state in
    parallel. They compute wrong results if one is channels-last and the other is not,
    as can happen with a state from a file.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (
                isinstance(value, torch.Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(
                    value
                )


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state that may come from another device, or from a file.

    Parameters
    ----------
    optimizer : Optimizer
    state : dict
        From `state_dict`.

    Raises
    ------
    ValueError
        If the state belongs to other parameters. Fused optimizers would access memory
        beyond the end of a tensor that is too small.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fused = type(optimizer) in _FUSIBLE
    for index, values in state["state"].items():
        for name, value in values.items():
            if not (fused and isinstance(value, torch.Tensor)):
                continue
            shape = () if name == "step" else parameters[index].shape
            if value.shape != shape or not value.is_floating_point():
                raise ValueError(
                    f"the optimizer's {name} of parameter {index} has shape "
                    f"{tuple(value.shape)} and {value.dtype}"
                )
    groups = []
    for own, group in zip(optimizer.param_groups, state["param_groups"], strict=True):
        if own.keys() - group.keys():
            raise ValueError(f"an optimizer's group lacks {own.keys() - group.keys()}")
        # The implementation depends on the current device.
        how = {key: own[key] for key in ("fused", "foreach") if key in own}
        groups.append(group | how)
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
