"""Parts of the training data, decided by their contents.

A row that is given twice, or once with twice the weight, lands in one part, and so do
rows in another order: what is fitted on the parts does not depend on such things.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from skorch.utils import is_dataset


def row_keys(X: Any, n_rows: int) -> np.ndarray:
    """Return a number for each row, the same for rows with the same contents.

    Parameters
    ----------
    X : ndarray, Tensor or Dataset
        The items of a Dataset are not looked at: their positions stand for them.
    n_rows : int

    Returns
    -------
    ndarray of uint64 of shape (n_rows,)
    """
    if is_dataset(X):
        rows = [i.to_bytes(8, "little") for i in range(n_rows)]
    else:
        array = X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else X
        flat = np.ascontiguousarray(array).reshape(n_rows, -1)
        rows = [row.tobytes() for row in flat]
    digests = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


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
