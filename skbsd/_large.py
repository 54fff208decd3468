"""Arrays too large to be copied, such as those of a file that is mapped to memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Bytes that a copy of the inputs may take.
COPY = 2**28
# Bytes that are looked at at once of what is not copied.
PART = 2**22


def parts(X: Any) -> Iterator[Any]:
    """Yield consecutive rows of an array, as many as may be copied.

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
        # Near to zero, so that few digits are lost in the difference of squares.
        centred = part - first
        sums += centred.sum(axis=0), np.einsum("ij,ij->j", centred, centred)
    mean, square = sums / len(X)
    return np.sqrt(np.maximum(square - mean * mean, 0))


def shared(X: np.ndarray) -> Tensor:
    """Return a tensor that shares the memory of an array, which nobody must write to.

    torch warns of arrays that are read-only, such as a DataFrame's or those of a file
    that is mapped for reading.

    Parameters
    ----------
    X : ndarray
    """
    if X.flags.writeable:
        return torch.from_numpy(X)
    return torch.from_numpy(np.asarray(_Writeable(X)))


class _Writeable:
    """Shows NumPy the memory of an array as if it could be written to."""

    def __init__(self, X: np.ndarray):
        self._X = X  # keeps the memory
        interface = dict(X.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
