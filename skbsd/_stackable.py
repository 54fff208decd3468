"""Decides which trainings can be stacked, and gives reasons for those that cannot."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._architecture import is_altered
from ._batches import ResidentBatches
from ._capturable import is_ours
from ._optimizer import is_hooked
from ._ranks import current
from ._run import Run
from ._stacked_optimizer import can_stack, same_options
from .objectives import SelfDistillation
from .posterior import DirichletPosterior

# Hooks of the estimator that a stack does not call.
_NOT_CALLED = ("fit", "infer", "train_step", "train_step_single", "on_batch_begin")
# Values that these parameters must have.
_PLAIN = {
    "averaging": None,
    "checkpoint": None,
    "compile": False,
    "contrastive": None,
    "posterior_folder": None,
    "train_split": None,
    "verbose": 0,
    "warm_start": False,
}
# On a CPU, a stack saves only the overhead between operations. A stack is slower there
# for convolutional networks, for few networks, and for large networks or batches, which
# fit into a core's cache if they are trained one by one (benchmarks/stacked.py).
_FEWEST_ON_CPU = 8
_MOST_WEIGHTS_ON_CPU = 2**15
_MOST_PRODUCTS_ON_CPU = 2**22  # number of weights times batch size


def obstacle_of(net: Any) -> str | None:
    """Return the reason why an estimator's parameters rule out a stack, or None.

    Parameters
    ----------
    net : BSDClassifier
    """
    if current(net.devices).size > 1:
        return "several processes train a network together"
    if net.devices not in (None, 1):
        return f"devices={net.devices!r}"
    for name, plain in _PLAIN.items():
        value = getattr(net, name)
        if value is not plain and value != plain:
            return f"{name}={value!r}"
    if (net.callbacks and net.callbacks != "disable") or net.get_params_for(
        "callbacks"
    ):
        return "the classifier has callbacks"
    if getattr(net, "_skl_callbacks", None):
        return "scikit-learn's callbacks are set on the classifier"
    for name in _NOT_CALLED:
        hook = getattr(type(net), name)
        if name in vars(net) or not (is_ours(hook) or _is_skorchs(hook)):
            return f"{type(net).__name__} has a {name} of its own"
    return None


def _is_skorchs(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "skorch"


def obstacle_in(run: Run) -> str | None:
    """Return the reason why a run that has begun cannot be stacked, or None.

    Parameters
    ----------
    run : Run
    """
    if not isinstance(run.batches, ResidentBatches):
        return "a DataLoader supplies the data"
    if not isinstance(run.batches.x, Tensor):
        return "X is sparse, or several inputs"
    if run.batches.transform is not None:
        return "the augmentation depends on row numbers"
    if type(run.posterior) is not DirichletPosterior:
        return f"the beliefs are stored in a {type(run.posterior).__name__}"
    if run.forward.dtype == torch.bfloat16:
        # vmap does not apply autocast.
        return "the network runs in bfloat16 (pass precision='float32')"
    if type(run.objective) is not SelfDistillation:
        return f"the objective is {type(run.objective).__name__}, not SelfDistillation"
    if not can_stack(run.optimizer) or is_hooked(run.optimizer) or run.optimizer.state:
        name = type(run.optimizer).__name__
        return f"the optimizer {name} is not torch's SGD, Adam or AdamW without hooks"
    for module in run.module.modules():
        if is_altered(module):
            return f"a {type(module).__name__} of the network has hooks"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"the network has {type(module).__name__}, which draws at random"
    tensors = [*run.module.parameters(), *run.module.buffers()]
    if any(map(is_lazy, tensors)):
        return "the network has lazy parameters"
    if any(p.grad_fn is not None for p in tensors):
        return "a weight of the network is computed from others"
    return None


def slowness(run: Run, n_members: int) -> str | None:
    """Return the reason why a stack would be slower than separate runs, or None.

    Parameters
    ----------
    run : Run
        One of the members, which all have the same architecture.
    n_members : int
        Number of members in the stack.
    """
    if run.net.device_.type != "cpu":
        return None
    weights = [p.numel() for p in run.module.parameters()]
    if any(p.ndim > 2 for p in run.module.parameters()):
        return "convolutional networks are faster one by one on a CPU"
    size = sum(weights)
    products = size * max(_sizes(run))
    if size > _MOST_WEIGHTS_ON_CPU or products > _MOST_PRODUCTS_ON_CPU:
        return "networks or batches of this size are faster one by one on a CPU"
    if n_members < _FEWEST_ON_CPU:
        return "so few networks are faster one by one on a CPU"
    return None


def _sizes(run: Run) -> list[int]:
    assert isinstance(run.batches, ResidentBatches)
    return run.batches.sizes


def kind(run: Run) -> tuple:
    """Return a key that two runs must have in common to be stacked.

    Parameters
    ----------
    run : Run
        Without an obstacle.
    """
    batches, posterior = run.batches, run.posterior
    assert isinstance(batches, ResidentBatches)
    return (
        run.net.device_,
        run.dtype,
        run.preparation.shape,
        run.max_epochs,
        "one batch" if len(batches) == 1 else batches.batch_size,
        batches.weight is None,
        batches.x.dtype,
        tuple(batches.x.shape[1:]),
        posterior.dtype,
        posterior.n_classes,
        run.image_shape,
    )


def are_alike(one: Run, other: Run) -> bool:
    """Whether two runs of equal kind have the same architecture and optimizer.

    Parameters
    ----------
    one, other : Run
    """
    if not same_options(one.optimizer, other.optimizer):
        return False
    names = [
        [
            [named[id(p)] for p in group["params"]]
            for group in run.optimizer.param_groups
        ]
        for run in (one, other)
        for named in [{id(p): name for name, p in run.module.named_parameters()}]
    ]
    return names[0] == names[1] and same_code(one.module, other.module)


def same_code(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks perform the same operations on their weights.

    Parameters
    ----------
    one, other : nn.Module
    """
    modules, others = dict(one.named_modules()), dict(other.named_modules())
    return modules.keys() == others.keys() and all(
        type(module) is type(others[name])
        and _same(_attributes(module), _attributes(others[name]))
        for name, module in modules.items()
    )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes, with shapes and types in place of tensors."""
    own = {n: v for n, v in vars(module).items() if n not in ("_modules", "training")}
    for kept in ("_parameters", "_buffers"):
        own[kept] = {
            name: None if t is None else (t.shape, t.dtype, t.requires_grad)
            for name, t in own[kept].items()
        }
    return own


def _same(one: Any, other: Any) -> bool:
    """Compare values of attributes; values that cannot be compared count as unequal."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _same(one[key], other[key]) for key in one
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    try:
        return bool(one == other)
    except Exception:
        return False
