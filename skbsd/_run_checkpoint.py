"""The checkpoint of a call of `fit`: which file is its own, and going on from it."""

from typing import Any

from skorch.callbacks import (
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    Initializer,
    LRScheduler,
    ParamMapper,
    Unfreezer,
)

from ._callback_state import shows_only
from ._checkpoint import CheckpointFile, announce
from ._generators import Generators
from ._parts import PartedBeliefs
from ._ranks import OneRank
from ._rules import Choice, resolve_prior_strength, schedule_length
from ._run import Run
from ._run_state import RunState

# Parameters that change nothing of what is learnt, or no more than rounding does.
_WITHOUT_EFFECT = (
    "callbacks",
    "checkpoint",
    "cuda_graph",
    "device",
    "devices",
    "gather_posterior",
    "posterior_folder",
    "verbose",
)
# Callbacks of skorch's that do the same in an epoch however many follow.
_UNAWARE = (
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    Initializer,
    LRScheduler,
    ParamMapper,
    Unfreezer,
)
_SHOWING = ("callbacks__print_log", "callbacks__epoch_timer")


class RunCheckpoint:
    """What a run writes after every epoch, and goes on from.

    Parameters
    ----------
    file : CheckpointFile
        Is read at once, so that one that cannot be used is noticed before training.
    ranks : OneRank
        The processes that train together, of which the first reads and writes.

    Attributes
    ----------
    is_done : bool
        Whether the call was finished before.
    """

    def __init__(self, file: CheckpointFile, ranks: OneRank):
        self._file = file
        self._ranks = ranks
        self._saved, self._source = ranks.first_does(file.read), file.path
        self.is_done = self._saved is not None and self._saved["is_done"]
        beginning = None
        if self._saved is None:
            beginning = ranks.first_does(file.read_beginning)
        if beginning is not None:
            self._saved, self._source = beginning
        self._state: RunState | None = None

    def attach(self, run: Run, generators: Generators, beliefs: PartedBeliefs) -> None:
        """Take note of the run, before it begins."""
        self._run = run
        self._state = RunState(run, generators, beliefs)

    def resume(self, verbose: int) -> None:
        """Have the run go on from the file, where there is one, and say so."""
        if self._state is None:
            return
        if self._saved is None:
            self._state.save()  # notices what is not covered before an epoch is lost
            return
        self._state.load(self._saved["run"])
        self._saved = None  # it may be large
        done, total = self._run.epoch, self._run.max_epochs
        text = f"epoch {done + 1} of {total}"
        if self.is_done:
            text = f"done after {done} of {total} epochs"
        if self._ranks.is_first:
            announce(f"Resumed: {text}, from {self._source}", verbose)

    def write(self, *, is_done: bool = False) -> None:
        """Write the state of the run; `is_done` where it will not go on."""
        if self._state is not None:
            state = {"is_done": is_done, "run": self._state.save()}
            self._ranks.first_does(lambda: self._file.write(state, self._run.epoch))


def parameters_that_count(net: Any) -> dict[str, Any]:
    """Return what makes a call with the same data another one.

    Parameters
    ----------
    net : BSDClassifier
    """
    params = {
        name: value
        for name, value in net.get_params(deep=False).items()
        if name not in _WITHOUT_EFFECT and not name.startswith(_SHOWING)
    }
    callbacks = net.callbacks
    if isinstance(callbacks, list):
        pairs = [c if isinstance(c, tuple | list) else ("", c) for c in callbacks]
        callbacks = [pair for pair in pairs if not shows_only(pair[1])]
    return {"class": type(net), "callbacks": callbacks or None, **params}


def what_counts(net: Any, choice: Choice) -> tuple[dict[str, Any], int | None]:
    """Return what tells a training from others, and its length where that is apart.

    Parameters
    ----------
    net : BSDClassifier
    choice : Choice
        Of learning rate and rule.

    Returns
    -------
    parameters : dict
        All that the first epochs depend on.
    n_epochs : int or None
        None where the length of the call is one of the parameters, so that no call is
        the beginning of another one.
    """
    params = {**parameters_that_count(net), "choice": choice}
    if not _may_be_a_beginning(net):
        return params, None
    n_epochs = int(params.pop("max_epochs"))
    del params["schedule_epochs"]
    length = int(schedule_length(net))
    strength = resolve_prior_strength(choice.prior_strength, length)
    moves = net.lr_schedule != "constant" and not any(
        issubclass(kind, LRScheduler) for kind in _kinds_of_callbacks(net)
    )
    params |= {"prior_strength": strength, "schedule": length if moves else None}
    return params, n_epochs


def _may_be_a_beginning(net: Any) -> bool:
    """Whether nothing but the schedules can know how long the call is to be.

    Code of the user's may look at `max_epochs`, and act as training ends; an average of
    the weights is no longer there then.
    """
    if net.averaging is not None or not type(net).__module__.startswith("skbsd."):
        return False
    if any(
        name.startswith("callbacks__") and not name.startswith(_SHOWING)
        for name in net.get_params(deep=False)
    ):
        return False
    return all(kind in _UNAWARE for kind in _kinds_of_callbacks(net)) and not any(
        getattr(callback, "load_best", False) for callback in _own_callbacks(net)
    )


def _own_callbacks(net: Any) -> list[Any]:
    """Return the user's callbacks (instances or classes) that may change something."""
    given = net.callbacks if isinstance(net.callbacks, list) else []
    callbacks = [c[1] if isinstance(c, tuple | list) else c for c in given]
    return [callback for callback in callbacks if not shows_only(callback)]


def _kinds_of_callbacks(net: Any) -> list[type]:
    own = _own_callbacks(net)
    return [c if isinstance(c, type) else type(c) for c in own]


def start_of(net: Any) -> dict[str, Any]:
    """Return what a call that goes on with a network begins with.

    Parameters
    ----------
    net : BSDClassifier
        Fitted, or with weights that were loaded.
    """
    posterior = getattr(net, "posterior_", None)
    generators = getattr(net, "_generators", None)
    return {
        "module": dict(net.module_.state_dict()),
        "optimizer": net.optimizer_.state_dict(),
        "posterior": None if posterior is None else posterior.state_dict(),
        "generators": None if generators is None else generators.states,
        "n_epochs": len(net.history_ or ()),
    }
