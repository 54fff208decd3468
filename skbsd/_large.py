"""Operations on arrays that are too large to copy, such as memory-mapped files."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Largest number of bytes of inputs that may be copied.
COPY = 2**28
# Number of bytes that are processed at once of larger inputs.
PART = 2**22


def parts(X: Any) -> Iterator[Any]:
    """Yield consecutive blocks of rows of an array, each small enough to copy.

    Parameters
    ----------
    X : ndarray or Tensor of shape (n_samples, ...)
    """
    size = max(1, PART // max(1, X[:1].nbytes))
    for start in range(0, len(X), size):
        yield X[start : start + size]


def standard_deviations(X: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each column, without a copy of a large table.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)

    Returns
    -------
    ndarray of shape (n_features,)
    """
    if X.nbytes <= COPY:
        return X.std(axis=0)
    first = next(parts(X)).mean(axis=0, dtype=np.float64)
    sums = np.zeros((2, X.shape[1]))
    for part in parts(X):
        # Close to zero, so that the difference of squares loses few digits.
        centred = part - first
        sums += centred.sum(axis=0), np.einsum("ij,ij->j", centred, centred)
    mean, square = sums / len(X)
    return np.sqrt(np.maximum(square - mean * mean, 0))


def shared(X: np.ndarray) -> Tensor:
    """Return a tensor that shares an array's memory, and must not be written to.

    This avoids torch's warning about read-only arrays, such as those of a DataFrame or
    of a memory-mapped file.

    Parameters
    ----------
    X : ndarray
    """
    if X.flags.writeable:
        return torch.from_numpy(X)
    return torch.from_numpy(np.asarray(_Writeable(X)))


class _Writeable:
    """Presents the memory of an array to NumPy as writable."""

    def __init__(self, X: np.ndarray):
        self._X = X  # keeps the memory alive
        interface = dict(X.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
