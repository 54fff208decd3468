"""Selects the GPU and the number of threads for fits in worker processes.

Searches run fits in processes of joblib, Dask or Ray. Resources that the backend
assigns are respected; this module decides only what the backend leaves open.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STARTED_AS = os.getpid()
# A GPU is not chosen if its free memory is below this fraction of the largest one.
_ENOUGH = 0.5


def is_worker() -> bool:
    """Whether this process is a worker of loky, multiprocessing, Dask or Ray.

    A package that is not imported cannot have started this process.
    """
    if multiprocessing.parent_process() is not None or _dask_worker() is not None:
        return True
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def _dask_worker() -> Any:
    """Return the Dask worker that runs this code, or None."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_worker()
    except ValueError:  # not within a task
        return None


# Threads


def threads_given() -> int | None:
    """Return the number of threads for a fit; None keeps torch's number.

    joblib (loky) and Ray set `OMP_NUM_THREADS` when they start a worker, which torch
    reads. A fit in a Dask worker uses all threads of the worker, as fits in one process
    take turns. If a nanny of Dask started the worker, Dask has set `OMP_NUM_THREADS` to
    1 or to the configured number.
    """
    worker = _dask_worker()
    if worker is None:
        return None
    given = worker.state.nthreads
    return given if worker.nanny is None else max(given, torch.get_num_threads())


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Set torch's number of threads within the context.

    Parameters
    ----------
    n : int or None
        None leaves the number unchanged.
    """
    before = torch.get_num_threads()
    if n is None or n == before:
        yield
        return
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread_after_fork() -> AbstractContextManager[None]:
    """Make torch use one thread if this process was forked from another one.

    If OpenMP has run in the parent, the child would wait forever for its threads.
    """
    return nullcontext() if os.getpid() == _STARTED_AS else threads(1)


# GPUs


def own_gpu() -> int:
    """Return the number of the GPU that "auto" selects in this process.

    This is torch's current GPU, except in workers that see several GPUs, because their
    backend has assigned none. Each such worker chooses one GPU and keeps it. The
    processes of a single data-parallel fit have been assigned theirs.
    """
    current = torch.cuda.current_device()
    n_gpus = torch.cuda.device_count()
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return current
    if n_gpus == 1 or current != 0 or not is_worker():
        return current
    gpu, _ = _claimed(os.getpid(), n_gpus)
    return gpu


@cache
def _claimed(pid: int, n_gpus: int) -> tuple[int, list[int]]:
    """Choose a GPU once per process; return it and the open files that lock it."""
    names = [_uuid(gpu) for gpu in range(n_gpus)]
    held: list[int] = []

    def claim(gpu: int, slot: int) -> bool:
        descriptor = _lock(names[gpu], slot)
        if descriptor is not None:
            held.append(descriptor)
        return descriptor is not None

    free = free_memories(names)
    try:
        return choose_gpu(free, claim), held
    except OSError:  # files cannot be locked
        candidates = _candidates(free)
        return candidates[pid % len(candidates)], held


def choose_gpu(free: list[int], claim: Callable[[int, int], bool]) -> int:
    """Return the GPU with the fewest workers among those with enough free memory.

    Parameters
    ----------
    free : list of int
        Free memory of each GPU, in bytes.
    claim : callable
        Called with the number of a GPU and a worker slot, counted from 0. Returns
        whether this process could claim the slot.
    """
    candidates = _candidates(free)
    # Workers that start simultaneously see the same free memory, so they need claims.
    return next(gpu for slot in count() for gpu in candidates if claim(gpu, slot))


def _candidates(free: list[int]) -> list[int]:
    """Return the GPUs with enough free memory, in descending order of it."""
    enough = [gpu for gpu, left in enumerate(free) if left >= _ENOUGH * max(free)]
    return sorted(enough, key=lambda gpu: -free[gpu])


def _lock(name: str, slot: int) -> int | None:
    """Lock a file until the process ends; return None if another process has it.

    The system releases the lock even if the process crashes.

    Raises
    ------
    OSError
        If files cannot be locked.
    """
    if fcntl is None:
        raise OSError("files cannot be locked on this system")
    path = Path(tempfile.gettempdir(), f"skbsd-{os.getuid()}-gpu-{name}-{slot}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _uuid(gpu: int) -> str:
    """Return a GPU's identifier, which does not depend on the process's numbering."""
    return str(getattr(torch.cuda.get_device_properties(gpu), "uuid", gpu))


def free_memories(names: list[str]) -> list[int]:
    """Return the free memory of GPUs, in bytes.

    nvidia-smi is tried first, because torch would create a context on each GPU, which
    occupies some hundred megabytes until the process ends.

    Parameters
    ----------
    names : list of str
        Their UUIDs.
    """
    known = _known_to_driver()
    if all(name in known for name in names):
        return [known[name] for name in names]
    return [torch.cuda.mem_get_info(gpu)[0] for gpu in range(len(names))]


def _known_to_driver() -> dict[str, int]:
    """Return the free memory of the GPUs that nvidia-smi lists, in bytes, by UUID."""
    query = ["--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(
            ["nvidia-smi", *query],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.split(", ") for line in listed.splitlines())
    return {
        row[0].removeprefix("GPU-"): int(row[1]) * 2**20
        for row in rows
        if len(row) == 2 and row[1].isdigit()
    }
