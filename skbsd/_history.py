"""A summary of the training history, and its conversion to columns for files."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

# Types of numbers in a history, with their type codes in arrays and their names.
_CODES = {bool: "b", float: "d", np.float64: "d", int: "q"}
_NUMBERS = {kind.__name__: kind for kind in _CODES}

# The metrics of an epoch: skorch's names, and names for people.
NAMES = {
    "train_loss": "training loss",
    "valid_loss": "validation loss",
    "valid_acc": "validation accuracy",
    "tail_mass": "tail mass of the beliefs",
}


class Outcome(NamedTuple):
    """Summary of a training.

    Parameters
    ----------
    n_epochs : int
        Number of finished epochs.
    seconds : float or None
        Training time; None if no callback measured it.
    last : dict of str to float
        The metrics in NAMES that the last epoch has.
    """

    n_epochs: int
    seconds: float | None
    last: dict[str, float]


def finished(history: Iterable[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """Return the epochs that were not interrupted."""
    return [epoch for epoch in history or () if "train_loss" in epoch]


def figures(epoch: Mapping[str, Any]) -> dict[str, float]:
    """Return those metrics in NAMES that an epoch has."""
    return {key: float(epoch[key]) for key in NAMES if key in epoch}


def outcome(history: Iterable[Mapping[str, Any]] | None) -> Outcome | None:
    """Return the summary of a history; None if no epoch was finished."""
    epochs = finished(history)
    if not epochs:
        return None
    timed = all("dur" in epoch for epoch in epochs)
    seconds = float(sum(epoch["dur"] for epoch in epochs)) if timed else None
    return Outcome(len(epochs), seconds, figures(epochs[-1]))


class HistoryColumns:
    """A growing history as columns of numbers for a file.

    A history contains at least two numbers per batch. As separate objects, they would
    take longer to write than a network. Each row is processed once, at the end of its
    epoch, so that the time per epoch does not grow with the number of epochs.
    """

    def __init__(self):
        self._epochs, self._batches = _Rows(), _Rows()
        self._n_batches: list[int] = []

    def update(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Add the new epochs of a history."""
        for epoch in history[len(self._n_batches) :]:
            row = dict(epoch)
            batches = row.pop("batches", [])
            self._epochs.add(row)
            for batch in batches:
                self._batches.add(batch)
            self._n_batches.append(len(batches))

    def packed(self) -> dict[str, Any]:
        """Return the columns as plain data and tensors."""
        return {
            "epochs": self._epochs.packed(),
            "batches": self._batches.packed(),
            "n_batches": torch.tensor(self._n_batches, dtype=torch.int64),
        }


def from_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a history from its packed columns."""
    batches = iter(_unpack(columns["batches"]))
    return [
        {"batches": list(islice(batches, n)), **row}
        for row, n in zip(
            _unpack(columns["epochs"]), columns["n_batches"].tolist(), strict=True
        )
    ]


class _Rows:
    """Rows, grouped by keys and types, with a column for each key of a group."""

    def __init__(self):
        self._groups: dict[tuple, _Group] = {}
        self._order = array("q")

    def add(self, row: Mapping[str, Any]) -> None:
        form = tuple((key, type(value)) for key, value in row.items())
        if form not in self._groups:
            self._groups[form] = _Group(form, len(self._groups))
        group = self._groups[form]
        group.add(row)
        self._order.append(group.number)

    def packed(self) -> dict[str, Any]:
        groups = [group.packed() for group in self._groups.values()]
        return {"groups": groups, "order": _as_tensor(self._order)}


class _Group:
    def __init__(self, form: tuple, number: int):
        self.number = number
        self._n_rows = 0
        self._columns = {
            key: array(_CODES[kind]) if kind in _CODES else [] for key, kind in form
        }
        self._kinds = {key: kind.__name__ for key, kind in form if kind in _CODES}

    def add(self, row: Mapping[str, Any]) -> None:
        self._n_rows += 1
        for key, column in self._columns.items():
            column.append(row[key])

    def packed(self) -> dict[str, Any]:
        columns = {
            key: {"type": self._kinds[key], "values": _as_tensor(column)}
            if isinstance(column, array)
            else column
            for key, column in self._columns.items()
        }
        return {"n_rows": self._n_rows, "columns": columns}


def _as_tensor(column: array) -> torch.Tensor:
    return torch.from_numpy(np.array(column))


def _unpack(packed: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = []
    for group in packed["groups"]:
        rows: list[dict[str, Any]] = [{} for _ in range(group["n_rows"])]
        for key, column in group["columns"].items():
            for row, value in zip(rows, _values(column), strict=True):
                row[key] = value
        groups.append(iter(rows))
    return [next(groups[i]) for i in packed["order"].tolist()]


def _values(column: Any) -> list[Any]:
    if isinstance(column, list):
        return column
    return list(map(_NUMBERS[column["type"]], column["values"].tolist()))
