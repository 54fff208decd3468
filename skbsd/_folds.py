"""Parts of the training data, decided by their contents.

A row that is given twice, or once with twice the weight, lands in one part, and so do
rows in another order: what is fitted on the parts does not depend on such things.
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
    """Return a number for each row, the same for rows that belong together.

    Parameters
    ----------
    data : TrainingData
        The items of a Dataset are not looked at: their positions stand for them.
    rows : ndarray of int
        Which rows.
    groups : ndarray of shape (n_samples,) or None
        What belongs together; by default rows of the same contents.

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
    keys = np.empty(n, dtype=np.uint64)  # filled one by one: there may be many
    octets = keys.data.cast("B")
    for i, content in enumerate(contents):
        octets[8 * i : 8 * i + 8] = hashlib.blake2b(content, digest_size=8).digest()
    return keys


def deal(keys: np.ndarray, codes: np.ndarray, n_folds: int) -> np.ndarray:
    """Deal rows out to folds, each class evenly.

    Parameters
    ----------
    keys : ndarray of shape (n,)
        Rows with the same key stay together.
    codes : ndarray of shape (n,)
        Class of each row. Of rows that stay together the smallest counts.
    n_folds : int

    Returns
    -------
    ndarray of int of shape (n,)
        From 0 to `n_folds` - 1.
    """
    unique, group = np.unique(keys, return_inverse=True)
    group_class = np.full(len(unique), codes.max() + 1)
    np.minimum.at(group_class, group, codes)
    # By class, and within it by key; the count goes on from class to class, so that
    # small classes do not all begin with the first fold.
    order = np.lexsort((unique, group_class))
    fold = np.empty(len(unique), dtype=np.int64)
    fold[order] = np.arange(len(unique)) % n_folds
    return fold[group]


def are_alike(keys: np.ndarray, codes: np.ndarray) -> bool:
    """Whether folds of such rows will have the same distribution.

    They will not where many rows are the same but for their labels, as in tables of few
    categories: each fold has other rows then.

    Parameters
    ----------
    keys, codes : ndarray of shape (n,)
        As in `deal`.
    """
    pairs = np.unique(np.stack([keys, codes.astype(keys.dtype)]), axis=1)
    return len(np.unique(keys)) > 0.95 * pairs.shape[1]
