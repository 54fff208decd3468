"""Prefetches rows of a memory-mapped file.

Training needs the rows in a random order. For each row that is not in memory, the
system would wait for the disk and read some megabytes around it. With prefetching, the
system reads the rows of a batch in parallel, and nothing else.
"""

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

# Files larger than this fraction of memory are assumed not to stay in it.
_SHARE = 0.5


class MappedRows:
    """The rows of an array in a memory-mapped file.

    Parameters
    ----------
    mapping : mmap
    start : int
        Offset of the array in the mapping, in bytes.
    size : int
        Size of a row, in bytes.
    """

    def __init__(self, mapping: mmap.mmap, start: int, size: int):
        self._mapping = mapping
        self._start = start
        self._size = size

    @classmethod
    def of(cls, X: Any) -> "MappedRows | None":
        """Return the rows of an array if it maps a file that is large for memory.

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
        """Ask the system to read some rows, without waiting for them.

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
    """Return the memory of the machine or of this process's cgroup, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # not a number if there is no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
