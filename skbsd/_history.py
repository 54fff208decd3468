"""What a history of epochs comes to, in a few figures."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

_DTYPES = {float: torch.float64, int: torch.int64}

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


def to_columns(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a history with a column for each figure of the batches.

    A history has two numbers or more for every batch: as objects of their own they
    would take longer to write than a network.
    """
    return [
        {**epoch, "batches": _columns(epoch.get("batches", []))} for epoch in history
    ]


def from_columns(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Undo :func:`to_columns`."""
    return [{**epoch, "batches": _batches(epoch["batches"])} for epoch in rows]


def _columns(batches: list[dict[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
    keys = list(batches[0]) if batches else []
    # Those of training come first, with keys of their own.
    n = next((i for i, b in enumerate(batches) if list(b) != keys), len(batches))
    columns = {key: [batch[key] for batch in batches[:n]] for key in keys}
    kinds = {key: {type(value) for value in column} for key, column in columns.items()}
    if not keys or any(kind not in ({float}, {int}) for kind in kinds.values()):
        return batches
    return {
        "columns": {
            key: torch.tensor(c, dtype=_DTYPES[kinds[key].pop()])
            for key, c in columns.items()
        },
        "rest": _columns(batches[n:]),
    }


def _batches(columns: Any) -> list[dict[str, Any]]:
    if isinstance(columns, list):
        return columns
    lists = {key: column.tolist() for key, column in columns["columns"].items()}
    rows = zip(*lists.values(), strict=True)
    return [dict(zip(lists, row, strict=True)) for row in rows] + _batches(
        columns["rest"]
    )
