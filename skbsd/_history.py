"""What a history of epochs comes to, in a few figures."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

# The types of numbers that a history holds, by their names in a file.
_NUMBERS = {"bool": bool, "float": float, "float64": np.float64, "int": int}
_DTYPES = {
    "bool": torch.bool,
    "float": torch.float64,
    "float64": torch.float64,
    "int": torch.int64,
}

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


def to_columns(history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a history as columns of numbers.

    It has two numbers or more for every batch: as objects of their own they would take
    longer to write than a network.
    """
    rows = [dict(epoch) for epoch in history]
    batches = [row.pop("batches", []) for row in rows]
    return {
        "epochs": _pack(rows),
        "batches": _pack([batch for part in batches for batch in part]),
        "n_batches": [len(part) for part in batches],
    }


def from_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Undo :func:`to_columns`."""
    batches = iter(_unpack(columns["batches"]))
    return [
        {"batches": list(islice(batches, n)), **row}
        for row, n in zip(_unpack(columns["epochs"]), columns["n_batches"], strict=True)
    ]


def _pack(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Put rows with the same keys and types together, a column for each key."""
    groups: dict[tuple, list[tuple]] = {}
    order = []
    for row in rows:
        form = tuple((key, type(value)) for key, value in row.items())
        groups.setdefault(form, []).append(tuple(row.values()))
        order.append(form)
    number = {form: i for i, form in enumerate(groups)}
    packed = []
    for form, group in groups.items():
        columns = zip(form, zip(*group, strict=True), strict=True)
        packed.append(
            {
                "n_rows": len(group),
                "columns": {
                    key: _column(kind, values) for (key, kind), values in columns
                },
            }
        )
    return {"groups": packed, "order": torch.tensor([number[form] for form in order])}


def _column(kind: type, values: tuple) -> Any:
    if kind not in _NUMBERS.values():
        return list(values)
    name = next(name for name, other in _NUMBERS.items() if other is kind)
    return {"type": name, "values": torch.tensor(values, dtype=_DTYPES[name])}


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
