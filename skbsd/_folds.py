"""Folds of the training data that depend on the contents of its rows.

Copies of a row are in the same fold, so a row that is repeated is treated as a row of
twice the weight. The order of the rows has no influence.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from skorch.utils import is_dataset

from ._loading import TrainingData
from ._structure import leaves


def row_keys(
    data: TrainingData, rows: np.ndarray, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return a key for each row, equal for rows that must stay together.

    Parameters
    ----------
    data : TrainingData
        The items of a Dataset are not loaded: their positions are the keys.
    rows : ndarray of int
        Indices of the rows.
    groups : ndarray of shape (n_samples,) or None
        Groups of rows that stay together; by default rows with equal contents do.

    Returns
    -------
    ndarray of uint64 of shape (n_rows,)
    """
    if groups is not None:
        return np.unique(groups[rows], return_inverse=True)[1].astype(np.uint64)
    if is_dataset(data.X):
        return _digests((int(row).to_bytes(8, "little") for row in rows), len(rows))
    parts = [_contents(leaf, rows) for leaf in leaves(data.X)]
    if len(parts) == 1:
        return _digests(parts[0], len(rows))
    return _digests((b"".join(row) for row in zip(*parts, strict=True)), len(rows))


def _contents(X: Any, rows: np.ndarray) -> Iterator[Any]:
    """Yield the bytes of each row."""
    if sparse.issparse(X):
        for row in rows:
            part = slice(X.indptr[row], X.indptr[row + 1])
            yield X.indices[part].astype(np.int64).tobytes() + X.data[part].tobytes()
        return
    array = X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else X
    for row in rows:
        yield np.ascontiguousarray(array[row])


def _digests(contents: Iterable[Any], n: int) -> np.ndarray:
    keys = np.empty(n, dtype=np.uint64)  # filled in place, as n may be large
    octets = keys.data.cast("B")
    for i, content in enumerate(contents):
        octets[8 * i : 8 * i + 8] = hashlib.blake2b(content, digest_size=8).digest()
    return keys


def deal(keys: np.ndarray, codes: np.ndarray, n_folds: int) -> np.ndarray:
    """Assign rows to folds, with each class spread evenly.

    Parameters
    ----------
    keys : ndarray of shape (n,)
        Rows with the same key stay together.
    codes : ndarray of shape (n,)
        Class of each row; rows that stay together use the smallest among them.
    n_folds : int

    Returns
    -------
    ndarray of int of shape (n,)
        Fold of each row, from 0 to `n_folds` - 1.
    """
    unique, group = np.unique(keys, return_inverse=True)
    group_class = np.full(len(unique), codes.max() + 1)
    np.minimum.at(group_class, group, codes)
    # By class, and within it by key. The count continues from class to class, so that
    # small classes do not all begin with the first fold.
    order = np.lexsort((unique, group_class))
    fold = np.empty(len(unique), dtype=np.int64)
    fold[order] = np.arange(len(unique)) % n_folds
    return fold[group]


def are_alike(keys: np.ndarray, codes: np.ndarray) -> bool:
    """Whether the folds of these rows have similar distributions.

    They do not if many rows are equal except for their labels, as in tables of a few
    categorical columns: equal rows are then all in the same fold.

    Parameters
    ----------
    keys, codes : ndarray of shape (n,)
        As in :func:`deal`.
    """
    pairs = np.unique(np.stack([keys, codes.astype(keys.dtype)]), axis=1)
    return len(np.unique(keys)) > 0.95 * pairs.shape[1]
