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

_REPR = (bool, int, float, complex, str, bytes, range, slice, type(None), type(...))
_STR = (PurePath, torch.dtype, torch.device, np.dtype)

# Whose classes are what their names say, in the versions that a checkpoint compares.
_LIBRARIES = {"builtins", "numpy", "skbsd", "sklearn", "skorch", "torch", "torchvision"}


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
    content = _Content()
    content.feed(value)
    return content.hasher.hexdigest()


class _Content:
    """A hash that values are fed to, what they are and what they hold."""

    def __init__(self):
        self.hasher = hashlib.blake2b(digest_size=16)
        self._open: list[int] = []  # the values that the current one is part of

    def feed(self, *values: Any) -> None:
        for value in values:
            kind = type(value)
            self.hasher.update(f"{kind.__module__}.{kind.__qualname__}(".encode())
            if id(value) in self._open:
                # Part of itself, as a function that calls itself.
                depth = len(self._open) - self._open.index(id(value))
                self.hasher.update(f"up {depth}".encode())
            else:
                self._open.append(id(value))
                self._feed_parts(value)
                self._open.pop()
            self.hasher.update(b")")

    def _feed_parts(self, value: Any) -> None:
        if isinstance(value, _REPR):
            self.hasher.update(repr(value).encode())
        elif isinstance(value, _STR):
            self.hasher.update(str(value).encode())
        elif isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            self.feed(str(tensor.dtype), tuple(tensor.shape))
            self.hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, np.ndarray | np.generic):
            self._feed_array(np.asarray(value))
        elif isinstance(value, Mapping):
            self.feed(len(value), *(part for item in value.items() for part in item))
        elif isinstance(value, set | frozenset):
            self.feed(*sorted(digest(item) for item in value))
        elif isinstance(value, list | tuple):
            self.feed(len(value), *value)
        elif isinstance(value, functools.partial):
            self.feed(value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            self.feed(value.__self__, value.__func__)
        elif isinstance(value, types.FunctionType):
            self._feed_function(value)
        elif inspect.isclass(value):
            self._feed_class(value)
        elif inspect.isroutine(value):
            self.feed(value.__module__ or "", value.__qualname__)
        else:
            self._feed_object(value)

    def _feed_array(self, array: np.ndarray) -> None:
        self.feed(array.dtype.str, array.shape)
        if array.dtype.hasobject:
            self.feed(array.tolist())
        else:
            # As bytes: dates have no buffer.
            flat = np.ascontiguousarray(array).reshape(-1)
            self.hasher.update(flat.view(np.uint8).data)

    def _feed_function(self, function: types.FunctionType) -> None:
        """Tell functions apart by their code too: some have no name of their own."""
        code = function.__code__
        constants = [c for c in code.co_consts if not inspect.iscode(c)]
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        self.feed(function.__module__ or "", function.__qualname__)
        self.feed(code.co_code, constants, code.co_names, cells)
        self.feed(function.__defaults__, function.__kwdefaults__)

    def _feed_class(self, value: type) -> None:
        """Tell a class of the user's apart by its code: it may have been edited."""
        for kind in value.__mro__:
            self.feed(kind.__module__, kind.__qualname__)
            if kind.__module__.partition(".")[0] not in _LIBRARIES:
                functions = [
                    part
                    for part in vars(kind).values()
                    if isinstance(part, types.FunctionType)
                ]
                self.feed(*functions)

    def _feed_object(self, value: Any) -> None:
        self.feed(type(value))
        if isinstance(value, nn.Module):
            self.feed(repr(value), dict(value.state_dict()))
        elif isinstance(value, np.random.RandomState | torch.Generator):
            self.feed(value.get_state())
        elif isinstance(value, Dataset):
            # Its contents may be random or costly; labels stand for them elsewhere.
            self.feed(*value.tensors if type(value) is TensorDataset else ())
        elif dataclasses.is_dataclass(value):
            self.feed(
                {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            )
        elif hasattr(value, "__dict__"):
            # What ends in an underscore was fitted, and follows from the rest.
            self.feed({k: v for k, v in vars(value).items() if not k.endswith("_")})
        else:
            raise UnknownIdentityError(
                f"{value!r} of type {type(value).__name__} shows nothing of its "
                "contents."
            )
