"""Files of tensors and plain data, written completely or not at all.

They are safetensors files whose metadata have one entry, "skbsd": JSON with the number
of the format and a header. Reading a file creates values of the types below only, so it
cannot execute code.
"""

import base64
import json
import math
import os
import re
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Incremented by each change that makes files unreadable for older versions.
FORMAT = 1

_KEY = "skbsd"

# Names of types in the safetensors format.
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}

# Dtypes of arrays that are stored as bytes: all but objects and records.
_PLAIN = re.compile(r"[<>|=][biufcSUMm]\d+(\[\d*[A-Za-zμ]+\])?")

# Marks types that JSON lacks. A dict that has it as a key is written as pairs.
_TAG = "$"


class FileFormatError(ValueError):
    """A file that was not written by this library, or is damaged."""


def write_atomically(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, Any]
) -> None:
    """Write a file; if that fails, an existing file stays unchanged.

    Parameters
    ----------
    path : path-like
        In an existing folder.
    tensors : dict of str to Tensor
        On any device, with any strides.
    header : dict
        Values that :func:`encode` accepts, tensors included, such as an optimizer's
        state.

    Raises
    ------
    OSError
        If the file cannot be written.
    TypeError
        For a header or a tensor of other types.
    """
    tensors = dict(tensors)
    content = {"format": FORMAT, "header": encode(header, tensors)}
    metadata = {_KEY: json.dumps(content, allow_nan=False)}
    # The widest types come first, so that all tensors are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"a tensor of {tensor.dtype} cannot be saved ({name}).")
        start, end = end, end + tensor.numel() * tensor.element_size()
        layout[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(layout).encode()
    head += b" " * (-len(head) % 8)
    with replacing(Path(path)) as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in names:  # one by one, as the beliefs may be large
            array = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(array.view(torch.uint8).numpy().data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` once it is safely on the disk.

    `safetensors.torch.save_file` does not wait for the disk, and only the owner can
    read its files.
    """
    unique = f"{os.getpid()}.{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # The message names the file that the caller asked for.
            error.filename, error.filename2 = str(path), None
        raise
    _sync_folder(path.parent)


def remove_leftovers(path: Path, age: float = 600.0) -> None:
    """Remove temporary files that killed processes left behind.

    Parameters
    ----------
    path : Path
        The file that they were to replace.
    age : float, default=600
        Minimum seconds since the last write; another process may still be writing
        younger files.
    """
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(FileNotFoundError):  # another process removed it first
            if time.time() - temporary.stat().st_mtime > age:
                temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush the folder to the disk, if the system can, so that renames survive."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that :func:`write_atomically` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    header : dict
        Equal to the header that was written.
    tensors : dict of str to Tensor
        The tensors outside the header: on the CPU, contiguous, and independent of the
        file.

    Raises
    ------
    FileFormatError
        If the file was not written by this library, or is damaged.
    OSError
        If it cannot be opened; FileNotFoundError if it does not exist.
    """
    path = Path(path)
    with open(path, "rb"):
        pass  # unlike those of safe_open, errors of open name the file
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise FileFormatError(
                    f"{path} is a safetensors file that skbsd did not write: its "
                    f"metadata have no entry {_KEY!r}."
                )
            # Copies, as the file is memory-mapped and may change.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FileFormatError(
            f"{path} is not a safetensors file, or is damaged or truncated: {error}."
        ) from error
    return _header(path, text, tensors), tensors


def _header(path: Path, text: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the header; its tensors are removed from `tensors`."""
    try:
        content = json.loads(text)
        number = content["format"]
        if not isinstance(number, int):
            raise TypeError(f"its format is {number!r}")
        header = decode(content["header"], tensors) if number == FORMAT else {}
        if not isinstance(header, dict):
            raise TypeError(f"it is a {type(header).__name__}, not a dict")
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise FileFormatError(
            f"{path} has a damaged header: {type(error).__name__}: {error}."
        ) from error
    if number != FORMAT:
        advice = "Update skbsd to read it." if number > FORMAT else "It is damaged."
        raise FileFormatError(
            f"{path} has format {number}, and this version of skbsd reads format "
            f"{FORMAT}. {advice}"
        )
    return header


def encode(value: Any, tensors: dict[str, Tensor] | None = None) -> Any:
    """Convert plain data to the types of JSON.

    Parameters
    ----------
    value : object
        None, a bool, int, float, str, bytes, tuple, list or dict, a NumPy scalar or
        array, a torch.device, torch.dtype or torch.Size; containers of these, nested.
    tensors : dict of str to Tensor, optional
        Receives the tensors within the value. Without it, tensors are an error.

    Returns
    -------
    object
        For `json.dumps`; :func:`decode` returns an equal value of the same type, except
        a tuple for a torch.Size.

    Raises
    ------
    TypeError
        For other types, including subclasses of these.
    """

    def inner(value: Any) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else _tagged("float", repr(value))
        if type(value) is list:
            return [inner(item) for item in value]
        if type(value) in (tuple, torch.Size):
            return _tagged("tuple", [inner(item) for item in value])
        if type(value) is dict:
            if all(type(key) is str for key in value) and _TAG not in value:
                return {key: inner(item) for key, item in value.items()}
            return _tagged("dict", [[inner(k), inner(v)] for k, v in value.items()])
        if tensors is not None and isinstance(value, Tensor):
            name = f"header.{len(tensors)}"
            tensors[name] = value
            return _tagged("tensor", name)
        return _encoded_leaf(value)

    return inner(value)


def _encoded_leaf(value: Any) -> Any:
    if type(value) is bytes:
        return _tagged("bytes", base64.b64encode(value).decode())
    if isinstance(value, np.generic) and type(value) is value.dtype.type:
        return _tagged("scalar", _array(np.asarray(value)))
    if type(value) is np.ndarray:
        return _tagged("array", _array(value))
    if type(value) in (torch.device, torch.dtype):
        name = str(value).removeprefix("torch.")
        return _tagged(type(value).__name__, name)
    raise TypeError(f"{value!r} is not plain data.")


def _tagged(name: str, value: Any) -> dict[str, Any]:
    return {_TAG: name, "value": value}


def _array(array: np.ndarray) -> dict[str, Any]:
    shape = list(array.shape)
    if array.dtype.kind in "OT":  # objects, and strings of any length
        items = [encode(item) for item in array.reshape(-1).tolist()]
        kind = "object" if array.dtype.kind == "O" else "string"
        return {"dtype": kind, "shape": shape, "items": items}
    if not _PLAIN.fullmatch(array.dtype.str):
        raise TypeError(f"an array of {array.dtype} is not plain data.")
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": shape, "data": data}


def decode(value: Any, tensors: dict[str, Tensor] | None = None) -> Any:
    """Return the value that :func:`encode` converted.

    Parameters
    ----------
    value : object
        Returned by `json.loads`.
    tensors : dict of str to Tensor, optional
        Tensors by name; those within the value are removed from it.

    Returns
    -------
    object
        Equal to the argument of :func:`encode`.

    Raises
    ------
    ValueError, TypeError, LookupError or AttributeError
        If :func:`encode` cannot have returned the value.
    """
    tensors = {} if tensors is None else tensors

    def outer(value: Any) -> Any:
        if isinstance(value, list):
            return [outer(item) for item in value]
        if not isinstance(value, dict):
            return value
        if _TAG not in value:
            return {key: outer(item) for key, item in value.items()}
        kind, inner = value[_TAG], value["value"]
        if kind == "tuple":
            return tuple(outer(item) for item in inner)
        if kind == "dict":
            return {outer(key): outer(item) for key, item in inner}
        if kind == "tensor":
            return tensors.pop(inner)
        return _decoded_leaf(kind, inner)

    return outer(value)


def _decoded_leaf(kind: str, inner: Any) -> Any:
    if kind == "float" and inner in ("inf", "-inf", "nan"):
        return float(inner)
    if kind == "bytes":
        return base64.b64decode(inner, validate=True)
    if kind == "array":
        return _decoded_array(inner)
    if kind == "scalar":
        return _decoded_array(inner)[()]
    if kind == "device":
        try:
            return torch.device(inner)
        except RuntimeError as error:
            raise ValueError(f"{inner!r} is not a device") from error
    if kind == "dtype" and isinstance(getattr(torch, inner, None), torch.dtype):
        return getattr(torch, inner)
    raise ValueError(f"{kind!r} is not a type of a header's values")


def _decoded_array(value: dict[str, Any]) -> np.ndarray:
    kind, shape = value["dtype"], value["shape"]
    if kind in ("object", "string"):
        items = decode(value["items"])
        dtype = np.dtype(object) if kind == "object" else np.dtypes.StringDType()
        array = np.empty(len(items), dtype)
        for i, item in enumerate(items):  # one by one, as some may be sequences
            array[i] = item
        return array.reshape(shape)
    if not _PLAIN.fullmatch(kind):
        raise ValueError(f"{kind!r} is not a dtype of a plain array")
    data = base64.b64decode(value["data"], validate=True)
    return np.frombuffer(data, kind).reshape(shape).copy()
