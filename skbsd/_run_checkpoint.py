"""The checkpoint of a call of `fit`: its identity, and resuming from it."""

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

# Parameters that do not affect the result, or no more than rounding does.
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
# skorch's callbacks whose action in an epoch does not depend on the number of epochs.
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
    """Writes a run's state after every epoch, and resumes the run from it.

    Parameters
    ----------
    file : CheckpointFile
        It is read immediately, so that an unusable file is detected before training.
    ranks : OneRank
        The processes that train together. The first one reads and writes the file.

    Attributes
    ----------
    is_done : bool
        Whether the call was already finished.
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
        """Attach the run, before it begins."""
        self._run = run
        self._state = RunState(run, generators, beliefs)

    def resume(self, verbose: int) -> None:
        """Resume the run from the file, if it exists, and report that."""
        if self._state is None:
            return
        if self._saved is None:
            self._state.save()  # detects uncovered state before an epoch is trained
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
        """Write the state of the run; pass `is_done` if it has ended."""
        if self._state is not None:
            state = {"is_done": is_done, "run": self._state.save()}
            self._ranks.first_does(lambda: self._file.write(state, self._run.epoch))


def parameters_that_count(net: Any) -> dict[str, Any]:
    """Return the parameters that affect the result of a call.

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
    """Return the parameters that identify a training, and its number of epochs.

    Parameters
    ----------
    net : BSDClassifier
    choice : Choice
        The chosen learning rate and rule.

    Returns
    -------
    parameters : dict
        All parameters that affect the first epochs.
    n_epochs : int or None
        Number of epochs. None if it is one of the parameters, so that a shorter call is
        never the beginning of a longer one.
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
    """Whether only the schedules depend on the number of epochs.

    Custom code may read `max_epochs`, and act at the end of training. A finished run
    also no longer has the state of its weight average.
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
    """Return the user's callbacks (instances or classes) that may affect training."""
    given = net.callbacks if isinstance(net.callbacks, list) else []
    callbacks = [c[1] if isinstance(c, tuple | list) else c for c in given]
    return [callback for callback in callbacks if not shows_only(callback)]


def _kinds_of_callbacks(net: Any) -> list[type]:
    own = _own_callbacks(net)
    return [c if isinstance(c, type) else type(c) for c in own]


def start_of(net: Any) -> dict[str, Any]:
    """Return the initial state of a call that continues to train a network.

    Parameters
    ----------
    net : BSDClassifier
        Fitted, or with loaded weights.
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
