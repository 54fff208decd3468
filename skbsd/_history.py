"""What a history of epochs comes to, in a few figures."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# The figures of an epoch as skorch names them, and as people do.
NAMES = {
    "train_loss": "training loss",
    "valid_loss": "validation loss",
    "valid_acc": "validation accuracy",
}


class Outcome(NamedTuple):
    """How training went.

    Parameters
    ----------
    n_epochs : int
    seconds : float or None
        None where no callback took the time.
    last : dict of str to float
        The figures of the last epoch, those of NAMES that it has.
    """

    n_epochs: int
    seconds: float | None
    last: dict[str, float]


def finished(history: Iterable[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """Return the epochs that were not interrupted."""
    return [epoch for epoch in history or () if "train_loss" in epoch]


def figures(epoch: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that an epoch has."""
    return {key: float(epoch[key]) for key in NAMES if key in epoch}


def outcome(history: Iterable[Mapping[str, Any]] | None) -> Outcome | None:
    """Sum up a history; None where no epoch was finished."""
    epochs = finished(history)
    if not epochs:
        return None
    timed = all("dur" in epoch for epoch in epochs)
    seconds = float(sum(epoch["dur"] for epoch in epochs)) if timed else None
    return Outcome(len(epochs), seconds, figures(epochs[-1]))
