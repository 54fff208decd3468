"""Operations on the inputs of a network: one array, or several in a dict or list.

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
    """Whether x is a dict, list or tuple of several inputs.

    Parameters
    ----------
    x : object
    """
    return isinstance(x, Mapping | list | tuple)


def map_leaves(function: Callable[..., Any], x: Any, *others: Any) -> Any:
    """Apply a function to each leaf, and return the results in the same structure.

    Parameters
    ----------
    function : callable
    x : inputs
    *others : inputs
        Inputs of the same structure, whose leaves are further arguments of `function`.
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
    """Yield each leaf with its name as a Python expression, such as ``X['image']``.

    Parameters
    ----------
    x : inputs
    name : str
        Name of `x`.
    """
    if not is_nested(x):
        yield name, x
        return
    parts = x.items() if isinstance(x, Mapping) else enumerate(x)
    for key, part in parts:
        yield from named_leaves(part, f"{name}[{key!r}]")


def leaves(x: Any) -> list[Any]:
    """Return the leaves in their order.

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
        Checked inputs.
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
        if isinstance(leaf, SparseRows):  # the rows become dense, as they are few
            return leaf.index_select(0, torch.from_numpy(rows).to(leaf.device))
        return leaf[rows]

    return map_leaves(part, x)


def take(x: Any, rows: Tensor) -> Any:
    """Gather some rows on their device; rows of sparse matrices become dense.

    Parameters
    ----------
    x : Tensor or SparseRows, or a dict or list of these
    rows : Tensor of int
        Rows, on the device of `x`.
    """
    if isinstance(x, Tensor):  # the fast path, as this runs in each step
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
    """Return the structure with each leaf, a tuple, replaced by its entry i.

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
    """Return the memory in bytes of all gathered samples; infinite for sparse inputs.

    Parameters
    ----------
    x : Tensor or SparseRows, or a dict or list of these
    """
    if isinstance(x, Tensor):
        return x.nbytes
    has_sparse = any(isinstance(leaf, SparseRows) for leaf in leaves(x))
    return float("inf") if has_sparse else sum(leaf.nbytes for leaf in leaves(x))


def row_bytes(x: Any) -> int:
    """Return the memory in bytes of a sample in a batch.

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
