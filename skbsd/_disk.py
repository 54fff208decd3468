"""Tensors in memory-mapped files, which may be larger than the machine's memory."""

import math
import os
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor


def allocate(
    shape: tuple[int, ...], dtype: torch.dtype, folder: str | os.PathLike[str]
) -> Tensor:
    """Return a tensor of zeros in a file that is removed with the tensor.

    If the system permits, the file's name is removed as soon as it is mapped. Then
    nothing remains of the file even if the process is killed, and the file cannot be
    mistaken for a saved state.

    Parameters
    ----------
    shape : tuple of int
    dtype : torch.dtype
    folder : path-like
        Created if it does not exist. Its disk needs enough free space for the tensor.

    Returns
    -------
    Tensor
        On the CPU.

    Raises
    ------
    OSError
        If the disk has too little free space, or the file cannot be created.
    """
    size = math.prod(shape)
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    path = _file_of(size * dtype.itemsize, Path(folder).expanduser())
    try:
        tensor = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
        tensor = tensor.view(shape)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    try:
        path.unlink()
    except OSError:  # Windows cannot remove a file that is in use
        weakref.finalize(tensor, _remove, path)
    return tensor


def _file_of(n_bytes: int, folder: Path) -> Path:
    """Create a file of zeros, with its disk space allocated."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(".skbsd-beliefs", dir=folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{os.fspath(folder)!r} is not a writable folder for the beliefs "
            f"({error.strerror}); set posterior_folder to another folder",
        ) from error
    try:
        # Without allocation, a full disk would kill the process during a step.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, n_bytes)
        else:
            os.truncate(descriptor, n_bytes)
    except OSError as error:
        os.unlink(name)
        raise OSError(
            error.errno,
            f"the beliefs take {n_bytes:,} bytes, which do not fit on the disk of "
            f"{os.fspath(folder)!r} ({error.strerror}); choose a folder on another "
            "disk, or the compact store (posterior_dtype='compact')",
        ) from error
    except BaseException:
        os.unlink(name)
        raise
    finally:
        os.close(descriptor)
    return Path(name)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
