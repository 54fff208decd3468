"""The state of a run between two epochs, for checkpoints."""

from typing import Any

import torch
from torch import Tensor, nn

from ._callback_state import (
    CallbackStates,
    UncoveredStateError,
    content_of,
    contents_of,
)
from ._generators import Generators
from ._history import HistoryColumns, from_columns
from ._optimizer import match_strides
from ._parts import PartedBeliefs
from ._run import Run
from .objectives import Objective


def check_loading(options: dict[str, Any]) -> None:
    """Raise an error for samplers and generators, as checkpoints omit their state.

    Parameters
    ----------
    options : dict
        Options of `iterator_train`.
    """
    drawing = sorted(options.keys() & {"batch_sampler", "generator", "sampler"})
    if drawing:
        raise UncoveredStateError(
            "a checkpoint does not contain the state of "
            f"{', '.join(f'iterator_train__{name}' for name in drawing)}; omit it, "
            "so that the order depends on random_state, or pass checkpoint=None."
        )


def check_components(net: Any) -> None:
    """Raise an error for networks and optimizers in addition to skorch's default ones.

    Parameters
    ----------
    net : BSDClassifier
        Initialized.
    """
    others = [
        f"{name}_"
        for name in (*net._modules, *net._optimizers)
        if name not in ("module", "optimizer")
    ]
    if others:
        raise UncoveredStateError(
            "a checkpoint contains only module_ and optimizer_, and not "
            f"{', '.join(others)} of {type(net).__name__}; pass checkpoint=None."
        )


class RunState:
    """The state of a run between two epochs, as plain data and tensors.

    Parameters
    ----------
    run : Run
        A run that has not begun.
    generators : Generators
        The generators that training uses.
    beliefs : PartedBeliefs
        The beliefs of the samples of all processes.
    """

    def __init__(self, run: Run, generators: Generators, beliefs: PartedBeliefs):
        self._beliefs = beliefs
        self._run = run
        self._generators = generators
        self._history = HistoryColumns()
        self._callbacks = CallbackStates.of(run.net.callbacks_)
        self._objective_before = contents_of(run.objective)

    def save(self) -> dict[str, Any]:
        """Return the state; in the first process, with the states of the others.

        Raises
        ------
        UncoveredStateError
            If a module, an objective or a callback has further state.
        """
        run = self._run
        parameters = run.module.named_parameters()
        self._history.update(run.net.history)
        own = {
            "generators": self._generators.save(run.net.device_),
            "objective": self._objective_state(),
        }
        first, *others = run.ranks.gathered(own, only_first=True)
        return {
            "others": others,
            "epoch": run.epoch,
            "step": run.step,
            "has_stopped": run.has_stopped,
            "module": _module_state(run.module),
            "frozen": [name for name, p in parameters if not p.requires_grad],
            "averaging": run.averaging.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "posterior": self._beliefs.save(run.posterior),
            "objective": first["objective"],
            "generators": first["generators"],
            "history": self._history.packed(),
            "callbacks": self._callbacks.save(),
            "compile_time": run.forward.compile_time,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Load a state into the run, which must have begun, to resume from it."""
        run = self._run
        run.epoch, run.step = state["epoch"], state["step"]
        run.has_stopped = state["has_stopped"]
        _load_module(run.module, state["module"])
        for name, parameter in run.module.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
        run.averaging.load_state_dict(state["averaging"])
        run.optimizer.load_state_dict(state["optimizer"])
        match_strides(run.optimizer)
        self._beliefs.load(run.posterior, state["posterior"])
        self._load_own(state)
        run.net.history[:] = from_columns(state["history"])
        self._callbacks.load(state["callbacks"])
        run.forward.compile_time = state["compile_time"]

    def _load_own(self, state: dict[str, Any]) -> None:
        """Load the parts of the state that differ between processes."""
        run, ranks = self._run, self._run.ranks
        own = [state, *state["others"]]
        same_number = len(own) == ranks.size
        if not same_number:
            run.step = run.epoch * len(run.batches)  # their number may have changed
        mine = own[ranks.rank] if same_number else state
        run.objective.load_state_dict(mine["objective"])
        self._generators.load(run.net.device_, mine["generators"])
        if not same_number and not ranks.is_first:
            self._generators.part_ways(run.net.device_, ranks.rank, ranks.size)

    def _objective_state(self) -> dict[str, Any]:
        """Return the objective's state; raise an error if it has undeclared state."""
        objective, before = self._run.objective, self._objective_before
        if type(objective).state_dict is not Objective.state_dict:
            return objective.state_dict()
        remembers = [
            name
            for name, value in vars(objective).items()
            if name != "run" and before.get(name) != content_of(value)
        ]
        if remembers:
            raise UncoveredStateError(
                f"the objective {type(objective).__name__} has changed its attributes "
                f"{', '.join(sorted(remembers))}, which a checkpoint does not contain. "
                "Implement its methods state_dict and load_state_dict, or pass "
                "checkpoint=None."
            )
        return {}


def _module_state(module: nn.Module) -> dict[str, Any]:
    """Return parameters and all buffers, including non-persistent ones."""
    state = dict(module.state_dict())
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UncoveredStateError(
                f"the module {type(module).__name__} has the extra state {name!r}, "
                "which a checkpoint cannot contain; pass checkpoint=None."
            )
    others = {n: b for n, b in module.named_buffers() if n not in state}
    return {"state_dict": state, "other_buffers": others}


@torch.no_grad()
def _load_module(module: nn.Module, state: dict[str, Any]) -> None:
    module.load_state_dict(state["state_dict"])
    for name, buffer in module.named_buffers():
        if name in state["other_buffers"]:
            buffer.copy_(state["other_buffers"][name])
