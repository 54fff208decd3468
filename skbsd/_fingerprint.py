"""Fingerprints that show whether two calls of `fit` received the same samples."""

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

# Number of 64-bit integers in each sum; also the number of sums computed at once on a
# GPU.
_ROW = 4096


def fingerprint(X: Any, y: np.ndarray) -> tuple:
    """Return a fingerprint that is equal for equal samples.

    Parameters
    ----------
    X : ndarray, Tensor, sparse matrix or Dataset, or a dict or list of arrays
        The fingerprint of a tensor on a GPU is computed there. It equals that of the
        same array.
    y : ndarray of shape (n_samples,)
        Class indices.
    """
    return (*_checksum(X), *_checksum(y))


def _checksum(values: Any) -> tuple:
    if isinstance(values, Dataset):
        # The items may be random or costly to load, so only labels are compared.
        tensors = values.tensors if type(values) is TensorDataset else ()
        return (type(values).__name__, *map(_checksum, tensors))
    if isinstance(values, Mapping):
        parts = (part for item in values.items() for part in item)
        return ("dict", *(p if isinstance(p, str) else _checksum(p) for p in parts))
    if isinstance(values, list | tuple):
        return ("list", *map(_checksum, values))
    if sparse.issparse(values):
        # Operations on the matrix may change the type of the indices.
        indices = values.indptr.astype(np.int64), values.indices.astype(np.int64)
        return (values.shape, *map(_checksum, (*indices, values.data)))
    # torch computes the sums of bfloat16, which NumPy does not support.
    stays = getattr(values, "is_cuda", False) or values.dtype == torch.bfloat16
    if isinstance(values, Tensor) and not stays:
        values = values.cpu().numpy()
    if isinstance(values, Tensor):
        octets: Any = values.contiguous().view(-1).view(torch.uint8)
    else:
        octets = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    kind = str(values.dtype).removeprefix("torch.")
    return (tuple(values.shape), kind, _digest(octets))


def _digest(octets: Any) -> str:
    """Hash weighted sums of long rows, which is faster than to hash all octets.

    The sums are modulo 2**64 and their weights are odd, so that a change of a single
    number always changes the hash.
    """
    whole = len(octets) // (8 * _ROW) * 8 * _ROW
    content = hashlib.blake2b(digest_size=16)
    on_device = isinstance(octets, Tensor)
    sums = _sums_on_device if on_device else _sums
    if whole:
        content.update(sums(octets[:whole]).tobytes())
    rest = octets[whole:].cpu().numpy() if on_device else octets[whole:]
    content.update(rest.tobytes())
    return content.hexdigest()


def _sums(octets: np.ndarray) -> np.ndarray:
    return np.einsum("ij,j->i", octets.view(np.int64).reshape(-1, _ROW), _weights())


def _sums_on_device(octets: Tensor) -> np.ndarray:
    if octets.data_ptr() % 8:
        octets = octets.clone()
    rows = octets.view(torch.int64).view(-1, _ROW)
    weights = torch.from_numpy(_weights()).to(octets.device)
    sums = [(part * weights).sum(dim=1) for part in rows.split(_ROW)]
    return torch.cat(sums).cpu().numpy()


@cache
def _weights() -> np.ndarray:
    """Return pseudorandom odd 64-bit integers, the same in every process."""
    octets = hashlib.shake_128(b"skbsd").digest(8 * _ROW)
    return np.frombuffer(octets, "<i8").astype(np.int64) | 1
