"""A digest of parameters and data, to tell calls of `fit` apart."""

import dataclasses
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.utils.data import Dataset

_REPR = (bool, int, float, complex, str, bytes, range, slice, type(None), type(...))
_IN_CLASSES = (*_REPR, list, tuple, dict, set, frozenset, types.FunctionType)
_STR = (PurePath, torch.dtype, torch.device, np.dtype)


class UnknownIdentityError(TypeError):
    """A value that cannot be distinguished from others of its type."""


def digest(value: Any) -> str:
    """Return a hash of a value's contents, the same in every process.

    Parameters
    ----------
    value : object
        Plain data, an array, tensor, network, function or class, or an object that
        consists of these.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    UnknownIdentityError
        If the contents of an object are not accessible.
    """
    content = _Content()
    content.feed(value)
    return content.hasher.hexdigest()


class _Content:
    """A hash of the types and the contents of values."""

    def __init__(self):
        self.hasher = hashlib.blake2b(digest_size=16)
        self._open: list[int] = []  # ids of the values that contain the current one

    def feed(self, *values: Any) -> None:
        for value in values:
            kind = type(value)
            self.hasher.update(f"{kind.__module__}.{kind.__qualname__}(".encode())
            if id(value) in self._open:
                # A value that contains itself, such as a recursive function.
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
        elif sparse.issparse(value):
            rows = value.tocsr()  # what else it knows depends on what was done to it
            self.feed(rows.shape, rows.indptr, rows.indices, rows.data)
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
            # Viewed as bytes, as dates do not support the buffer protocol.
            flat = np.ascontiguousarray(array).reshape(-1)
            self.hasher.update(flat.view(np.uint8).data)

    def _feed_function(self, function: types.FunctionType) -> None:
        """Feed name, code and defaults, as functions such as lambdas share a name."""
        self.feed(function.__module__ or "", function.__qualname__)
        self._feed_code(function.__code__, function.__globals__)
        self.feed(*map(_contents, function.__closure__ or ()))
        self.feed(function.__defaults__, function.__kwdefaults__)

    def _feed_code(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        """Feed instructions, and the plain global values that they use."""
        plain = [c for c in code.co_consts if not inspect.iscode(c)]
        self.feed(code.co_code, plain, code.co_names)
        read = [namespace[name] for name in code.co_names if name in namespace]
        self.feed(*(value for value in read if isinstance(value, _REPR)))
        for inner in code.co_consts:
            if inspect.iscode(inner):
                self._feed_code(inner, namespace)

    def _feed_class(self, value: type) -> None:
        """Feed the name of a class, and the code of the user's, which may be edited."""
        for kind in value.__mro__:
            self.feed(kind.__module__, kind.__qualname__)
            if not _is_of_user(kind.__module__):
                continue
            # Sorted, as the order may differ for a copy in another process.
            for name, part in sorted(vars(kind).items()):
                part = getattr(part, "__func__", part)  # static and class methods
                part = getattr(part, "fget", part)  # properties
                made_by_python = name.startswith("__") and not callable(part)
                if isinstance(part, _IN_CLASSES) and not made_by_python:
                    self.feed(name, part)

    def _feed_object(self, value: Any) -> None:
        self.feed(type(value))
        if isinstance(value, nn.Module):
            self.feed(repr(value), dict(value.state_dict()))
        elif isinstance(value, np.random.RandomState | torch.Generator):
            self.feed(value.get_state())
        elif isinstance(value, Dataset):
            # Its items may be random or slow to load; its attributes represent them.
            for name, part in sorted(vars(value).items()):
                with suppress(UnknownIdentityError):
                    self.feed(name, digest(part))
        elif dataclasses.is_dataclass(value):
            self.feed(
                {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            )
        elif hasattr(value, "__array__"):  # such as a DataFrame
            self.feed(np.asarray(value))
        elif isinstance(value, Collection) and not hasattr(value, "__dict__"):
            self.feed(len(value), *value)
        elif hasattr(value, "__dict__"):
            # Attributes that end in an underscore are fitted: they follow from others.
            self.feed({k: v for k, v in vars(value).items() if not k.endswith("_")})
        else:
            raise UnknownIdentityError(
                f"{value!r} of type {type(value).__name__} does not give access to its "
                "contents, so it cannot be compared with others."
            )


def _is_of_user(module: str) -> bool:
    """Whether a module may be edited between two calls, unlike installed ones."""
    root = module.partition(".")[0]
    if root == "__main__":
        return True
    if root in sys.stdlib_module_names or root == "skbsd":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or "site-packages" not in PurePath(file).parts


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
