"""What tells two calls of `fit` apart: a digest of parameters and data."""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

# Nested deeper than this, a value refers to itself.
_DEEPEST = 20


class UnknownIdentityError(TypeError):
    """A value that cannot be told from others of its kind."""


def digest(value: Any) -> str:
    """Return a hash of a value's contents, the same in every process.

    Parameters
    ----------
    value : object
        Plain data, arrays, tensors, networks, functions, classes, or objects of these.

    Returns
    -------
    str
        Of 32 hexadecimal digits.

    Raises
    ------
    UnknownIdentityError
        For an object that shows nothing of its contents.
    """
    hasher = hashlib.blake2b(digest_size=16)
    _feed(hasher, value, 0)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any, depth: int) -> None:
    """Add a value to the hash, what it is and what it holds."""

    def feed(*parts: Any) -> None:
        for part in parts:
            _feed(hasher, part, depth + 1)

    if depth > _DEEPEST:
        raise UnknownIdentityError(f"{type(value).__name__} refers to itself.")
    hasher.update(f"{type(value).__module__}.{type(value).__qualname__}(".encode())
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        hasher.update(repr(value).encode())
    elif isinstance(value, PurePath | torch.dtype | torch.device | np.dtype):
        hasher.update(str(value).encode())
    elif isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        feed(str(tensor.dtype), tuple(tensor.shape))
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray | np.generic):
        _feed_array(hasher, np.asarray(value), depth)
    elif isinstance(value, Mapping):
        feed(len(value), *(part for item in value.items() for part in item))
    elif isinstance(value, set | frozenset):
        feed(*sorted(digest(item) for item in value))
    elif isinstance(value, list | tuple):
        feed(len(value), *value)
    elif isinstance(value, nn.Module):
        feed(repr(value), dict(value.state_dict()))
    elif isinstance(value, np.random.RandomState | torch.Generator):
        feed(value.get_state())
    elif isinstance(value, functools.partial):
        feed(value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        feed(value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        _feed_function(feed, value)
    elif inspect.isclass(value) or inspect.isroutine(value):
        feed(value.__module__ or "", value.__qualname__)
    elif isinstance(value, Dataset):
        _feed_dataset(feed, value)
    elif dataclasses.is_dataclass(value):
        feed({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif hasattr(value, "__dict__"):
        # What ends in an underscore was fitted, and follows from the rest.
        feed({k: v for k, v in sorted(vars(value).items()) if not k.endswith("_")})
    else:
        raise UnknownIdentityError(
            f"{value!r} of type {type(value).__name__} shows nothing of its contents."
        )
    hasher.update(b")")


def _feed_array(hasher: Any, array: np.ndarray, depth: int) -> None:
    _feed(hasher, [array.dtype.str, array.shape], depth + 1)
    if array.dtype.hasobject:
        _feed(hasher, array.tolist(), depth + 1)
    else:
        # Octets, as dates have no buffer.
        octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        hasher.update(octets.data)


def _feed_function(feed: Any, function: types.FunctionType) -> None:
    """Those without a name of their own are told apart by their code."""
    code = function.__code__
    constants = [c for c in code.co_consts if not inspect.iscode(c)]
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    feed(function.__module__ or "", function.__qualname__)
    feed(code.co_code, constants, code.co_names)
    feed(cells, function.__defaults__, function.__kwdefaults__)


def _feed_dataset(feed: Any, dataset: Dataset) -> None:
    """Its contents may be random or costly; labels stand for them elsewhere."""
    tensors = dataset.tensors if type(dataset) is TensorDataset else ()
    feed(type(dataset).__qualname__, tuple(tensors))
