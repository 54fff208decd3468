"""A history stored as columns is restored unchanged."""

import numpy as np
from helpers import quick
from skorch.callbacks import BatchScoring
from skorch.dataset import ValidSplit

from skbsd._history import HistoryColumns, from_columns


def there_and_back(rows, parts=(0,)):
    columns = HistoryColumns()
    for n in (*parts, len(rows)):
        columns.update(rows[:n])
        packed = columns.packed()
    return from_columns(packed)


def typed(value):
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), value


def test_there_and_back(iris):
    scoring = BatchScoring("accuracy", name="batch_acc", lower_is_better=False)
    model = quick(train_split=ValidSplit(5), callbacks=[scoring], batch_size=50)
    rows = list(model.fit(*iris).history_)
    assert typed(there_and_back(rows, parts=(1, 2))) == typed(rows)


def test_what_is_no_number_and_rows_that_differ():
    rows = [
        {"batches": [], "epoch": 1, "note": "a", "x": np.float32(1)},
        {"batches": [{"a": 1}, {"a": 1.5}, {"a": 2}, {"b": True}], "epoch": 2},
        {"batches": [{}], "epoch": 3, "note": None, "x": float("inf")},
    ]
    assert typed(there_and_back(rows, parts=(1, 2))) == typed(rows)
    assert there_and_back([]) == []
