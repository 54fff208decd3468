"""What a process that fits for others may use: a GPU of its own, and its threads.

Searches run fits in processes of joblib, Dask or Ray. What the backend has assigned
counts; this is about what backends leave open.
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
# A GPU with less than this share of the most free memory is left to others.
_ENOUGH = 0.5


def is_worker() -> bool:
    """Whether this process works for another one: of loky, multiprocessing, Dask, Ray.

    Packages that are not imported cannot have started it.
    """
    if multiprocessing.parent_process() is not None or _dask_worker() is not None:
        return True
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def _dask_worker() -> Any:
    """Return the Dask worker that runs this, where one does."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_worker()
    except ValueError:  # not within a task
        return None


# Threads


def threads_given() -> int | None:
    """Return how many threads a fit is to use; None is as many as torch does.

    joblib (loky) and Ray tell torch by `OMP_NUM_THREADS` as they start a worker. A Dask
    worker has as many as it was given: fits in one process take turns. Where Dask
    started it, it was told to use one, or what the user has configured.
    """
    worker = _dask_worker()
    if worker is None:
        return None
    given = worker.state.nthreads
    return given if worker.nanny is None else max(given, torch.get_num_threads())


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Have torch use so many threads within the context.

    Parameters
    ----------
    n : int or None
        None leaves the number as it is.
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
    """Have torch use one thread, in a process that was forked from another one.

    Where OpenMP ran in that one, this one would wait for its threads forever.
    """
    return nullcontext() if os.getpid() == _STARTED_AS else threads(1)


# GPUs


def own_gpu() -> int:
    """Return the number of the GPU that "auto" means in this process.

    That is the current one, but in workers that see several GPUs, as the backend has
    assigned none: these take one each, and keep it. The processes of a single fit
    were told theirs.
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
    """Choose a GPU once in a process; the open files hold its claim."""
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
    except OSError:  # no locks here
        candidates = _candidates(free)
        return candidates[pid % len(candidates)], held


def choose_gpu(free: list[int], claim: Callable[[int, int], bool]) -> int:
    """Return the GPU with the fewest workers, of those with enough free memory.

    Parameters
    ----------
    free : list of int
        Free memory of each GPU.
    claim : callable
        Called with a GPU and a number from 0 on; returns whether the GPU could be
        claimed as its worker of this number.
    """
    candidates = _candidates(free)
    # Workers that start at the same moment see the same memory: claims tell them apart.
    return next(gpu for slot in count() for gpu in candidates if claim(gpu, slot))


def _candidates(free: list[int]) -> list[int]:
    """Return the GPUs with enough free memory, the most first."""
    enough = [gpu for gpu, left in enumerate(free) if left >= _ENOUGH * max(free)]
    return sorted(enough, key=lambda gpu: -free[gpu])


def _lock(name: str, slot: int) -> int | None:
    """Lock a file until the process ends, however it does; None where another has it.

    Raises
    ------
    OSError
        Where files cannot be locked.
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
    """Return what names a GPU on this machine, whatever processes number it."""
    return str(getattr(torch.cuda.get_device_properties(gpu), "uuid", gpu))


def free_memories(names: list[str]) -> list[int]:
    """Return the free memory of GPUs, in bytes.

    The driver's own tool is asked first: torch would take some hundred megabytes of
    each GPU to find out, and keep them.

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
    """Return the free memory of the GPUs that nvidia-smi lists, by UUID."""
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
