"""Reading rows of a file that is mapped to memory before they are needed.

Rows are needed in a random order. For each one that is not in memory the system would
wait for the disk, and read some megabytes about it; told beforehand, it reads those of
a batch side by side, and nothing else.
"""

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

# Larger files than this share of memory will not stay in it.
_SHARE = 0.5


class MappedRows:
    """The rows of an array in a file.

    Parameters
    ----------
    mapping : mmap
    start : int
        Of the array in the mapping, in bytes.
    size : int
        Of a row, in bytes.
    """

    def __init__(self, mapping: mmap.mmap, start: int, size: int):
        self._mapping = mapping
        self._start = start
        self._size = size

    @classmethod
    def of(cls, X: Any) -> "MappedRows | None":
        """Return those of an array, where it is one of a file larger than memory.

        Parameters
        ----------
        X : ndarray or object
        """
        if not isinstance(X, np.ndarray) or not hasattr(mmap, "MADV_WILLNEED"):
            return None
        mapping: Any = X
        while mapping is not None and not isinstance(mapping, mmap.mmap):
            mapping = getattr(mapping, "base", None)
        if mapping is None or X.nbytes <= _SHARE * memory():
            return None
        if not X.flags.c_contiguous:
            return None
        first = np.frombuffer(mapping, np.uint8, 1).ctypes.data
        return cls(mapping, X.ctypes.data - first, X[:1].nbytes)

    def read_ahead(self, rows: Any) -> None:
        """Have the system read some rows, and do not wait for it.

        Parameters
        ----------
        rows : ndarray or Tensor of int of shape (n,)
        """
        index = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        begins = self._start + np.sort(index) * self._size
        pages = begins // mmap.PAGESIZE * mmap.PAGESIZE
        lengths = begins + self._size - pages
        for page, length in zip(pages.tolist(), lengths.tolist(), strict=True):
            self._mapping.madvise(mmap.MADV_WILLNEED, page, length)


def memory() -> int:
    """Return the bytes of memory that this process shares with others."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no number, where there is no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
