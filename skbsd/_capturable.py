"""When training steps can be recorded as a CUDA graph."""

from typing import Any, Protocol

from torch import nn
from torch.nn.modules import module as global_hooks

from ._architecture import HOOKS, is_altered
from ._batches import Batches, ResidentBatches
from ._forward import Forward
from ._listeners import Listeners
from ._optimizer import is_fused, is_hooked
from ._ranks import OneRank
from ._sparse import SparseRows
from ._structure import leaves
from .objectives import Objective

# Recording a step takes about as long as this number of steps.
FEWEST_STEPS = 20
# Packages whose modules perform the same operations for each batch.
_STATIC = ("skbsd.networks", "torch.nn.", "torchvision.models.resnet")


class Recordable(Protocol):
    """The interface of a run that can be recorded."""

    batches: Batches
    forward: Forward
    objective: Objective
    augmentation: Any
    max_epochs: int
    ranks: OneRank


def obstacle(
    run: Recordable, net: Any, listeners: Listeners, *, asked_for: bool
) -> str | None:
    """Return the reason why steps cannot be recorded, or None.

    Parameters
    ----------
    run : Recordable
    net : BSDClassifier
    listeners : Listeners
    asked_for : bool
        Whether the user requested recordings of code from outside this library. A
        recording does not run Python code again.
    """
    batches = run.batches
    if run.ranks.size > 1:
        return "several processes train together"
    if not isinstance(batches, ResidentBatches):
        return "the data come through a loader"
    if any(isinstance(x, SparseRows) for x in leaves(batches.x)):
        return "X is sparse"
    if batches.transform is not None and not batches.is_copied:
        return "the images are too large to be augmented ahead"
    if batches.whole * run.max_epochs < FEWEST_STEPS:
        return f"there are fewer than {FEWEST_STEPS} batches of the same size"
    if listeners.to_batches(training=True) or listeners.to_gradients:
        return "a callback looks at single batches or gradients"
    if not is_fused(net.optimizer_) or is_hooked(net.optimizer_):
        return "the optimizer is not one of torch's, fused and without hooks"
    if not is_ours(net.train_step):
        return f"{type(net).__name__} has a train_step of its own"
    if run.forward.reuses_output:
        return "the compiled network is a CUDA graph already"
    if net.posterior_.device.type != net.device_.type:
        return "the beliefs lie in a file"
    counts = run.objective.counts_correct
    if counts and not net.posterior_.on_kernel(run.forward.dtype):
        return "the kernel of the posterior step is not there"
    second = getattr(run.objective, "augmentation", None)
    parts = (run.objective, net.train_step_single, net.infer, run.augmentation, second)
    if asked_for or (all(map(is_ours, parts)) and is_static(net.module_)):
        return None
    return "network, objective or augmentation are not of this library"


def is_ours(part: Any) -> bool:
    """Whether a function, or the class of an object, belongs to this library.

    Parameters
    ----------
    part : object
        None and strings, which name parts of this library, do.
    """
    if part is None or isinstance(part, str):
        return True
    return str(getattr(part, "__module__", "")).partition(".")[0] == "skbsd"


def is_static(module: nn.Module) -> bool:
    """Whether a network performs the same operations for each batch, without hooks.

    Parameters
    ----------
    module : nn.Module
    """
    # torch stores global module hooks under the same names.
    if not is_ours(module) or any(getattr(global_hooks, f"_global{h}") for h in HOOKS):
        return False
    return all(
        type(m).__module__.startswith(_STATIC) and not is_altered(m)
        for m in module.modules()
    ) and not any(
        p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters()
    )
