"""One array, or several in a dict or a list: what is done to the inputs of a network.

Inputs are a leaf (a Tensor, an ndarray, a sparse matrix) or a dict or list of inputs.
All leaves have the same number of samples.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ._sparse import SparseRows


def is_nested(x: Any) -> bool:
    """Whether inputs are several.

    Parameters
    ----------
    x : object
    """
    return isinstance(x, Mapping | list | tuple)


def map_leaves(function: Callable[..., Any], x: Any, *others: Any) -> Any:
    """Apply a function to each leaf, and return what it returns in the same structure.

    Parameters
    ----------
    function : callable
    x : inputs
    *others : inputs
        Of the same structure, whose leaves are further arguments.
    """
    if isinstance(x, Mapping):
        return {
            key: map_leaves(function, value, *(other[key] for other in others))
            for key, value in x.items()
        }
    if isinstance(x, list | tuple):
        return [map_leaves(function, *parts) for parts in zip(x, *others, strict=True)]
    return function(x, *others)


def named_leaves(x: Any, name: str = "X") -> Iterator[tuple[str, Any]]:
    """Yield each leaf, after how a user would write it: ``X['image']``, ``X[0]``.

    Parameters
    ----------
    x : inputs
    name : str
        Of the whole.
    """
    if not is_nested(x):
        yield name, x
        return
    parts = x.items() if isinstance(x, Mapping) else enumerate(x)
    for key, part in parts:
        yield from named_leaves(part, f"{name}[{key!r}]")


def leaves(x: Any) -> list[Any]:
    """Return the leaves, in their order.

    Parameters
    ----------
    x : inputs
    """
    return [leaf for _, leaf in named_leaves(x)]


def n_samples(x: Any) -> int:
    """Return the number of samples.

    Parameters
    ----------
    x : inputs
        Checked.
    """
    return leaves(x)[0].shape[0]


def part_of_leaves(x: Any, rows: np.ndarray) -> Any:
    """Return some rows, as arrays of the same kind.

    Parameters
    ----------
    x : inputs
    rows : ndarray of int
    """

    def part(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[torch.from_numpy(rows).to(leaf.device)]
        if isinstance(leaf, SparseRows):  # few: they become dense
            return leaf.index_select(0, torch.from_numpy(rows).to(leaf.device))
        return leaf[rows]

    return map_leaves(part, x)


def take(x: Any, rows: Tensor) -> Any:
    """Gather some rows where they are; those of sparse matrices become dense.

    Parameters
    ----------
    x : Tensor or SparseRows, or a dict or list of them
    rows : Tensor of int
        On their device.
    """
    if isinstance(x, Tensor):  # first, as it is taken in each step
        return x.index_select(0, rows)
    return map_leaves(lambda leaf: leaf.index_select(0, rows), x)


def split(x: Any, sizes: list[int]) -> Iterator[Any]:
    """Yield consecutive batches of these sizes.

    Parameters
    ----------
    x : Tensor, or a dict or list of them
    sizes : list of int
    """
    if isinstance(x, Tensor):
        yield from x.split(sizes)
        return
    parts = map_leaves(lambda leaf: leaf.split(sizes), x)
    for i in range(len(sizes)):
        yield pick(parts, i)


def pick(parts: Any, i: int) -> Any:
    """Return entry i of the tuple that stands in place of each leaf.

    Parameters
    ----------
    parts : tuple, or a dict or list of them
    i : int
    """
    if isinstance(parts, Mapping):
        return {key: pick(part, i) for key, part in parts.items()}
    if isinstance(parts, list):
        return [pick(part, i) for part in parts]
    return parts[i]


def dense_bytes(x: Any) -> float:
    """Return how much memory all gathered samples take; infinite for sparse ones.

    Parameters
    ----------
    x : Tensor or SparseRows, or a dict or list of them
    """
    if isinstance(x, Tensor):
        return x.nbytes
    has_sparse = any(isinstance(leaf, SparseRows) for leaf in leaves(x))
    return float("inf") if has_sparse else sum(leaf.nbytes for leaf in leaves(x))


def row_bytes(x: Any) -> int:
    """Return how much memory a sample takes in a batch.

    Parameters
    ----------
    x : inputs
    """
    return sum(
        leaf.shape[1] * leaf.dtype.itemsize
        if sparse.issparse(leaf) or isinstance(leaf, SparseRows)
        else leaf[:1].nbytes
        for leaf in leaves(x)
    )
