"""Memory that lies in a file: tensors larger than the machine's memory."""

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
    """Return a tensor of zeros in a file that goes when the tensor does.

    The file has no name as soon as it is in use, where the system allows that: nothing
    is left of it even by a process that was killed, and nobody can take it for a state
    that was saved.

    Parameters
    ----------
    shape : tuple of int
    dtype : torch.dtype
    folder : path-like
        Is made if it is not there. On a disk with room for the tensor.

    Returns
    -------
    Tensor
        On the CPU.

    Raises
    ------
    OSError
        If there is no such room, or no file can be made there.
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
    except OSError:  # Windows keeps a file that is in use
        weakref.finalize(tensor, _remove, path)
    return tensor


def _file_of(n_bytes: int, folder: Path) -> Path:
    """Make a file of zeros for which the disk has room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(".skbsd-beliefs", dir=folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{os.fspath(folder)!r} is not a folder that beliefs can be written to "
            f"({error.strerror}); name another one as posterior_folder",
        ) from error
    try:
        # Without it, a full disk would kill the process in the middle of a step.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, n_bytes)
        else:
            os.truncate(descriptor, n_bytes)
    except OSError as error:
        os.unlink(name)
        raise OSError(
            error.errno,
            f"the beliefs take {n_bytes:,} bytes, for which there is no room in "
            f"{os.fspath(folder)!r} ({error.strerror}); name a folder on another disk, "
            "or take the compact store",
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
