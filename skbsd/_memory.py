"""GPU memory: its free amount, and smaller batches if it runs out."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def free_memory(device: torch.device) -> int:
    """Return the bytes of a GPU's memory that are available for tensors.

    The driver counts memory in torch's cache as used. After a large fit, the GPU would
    seem to be full.

    Parameters
    ----------
    device : torch.device
    """
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return free + reserved - torch.cuda.memory_allocated(device)


def release_reserve(device: torch.device) -> None:
    """Release torch's cached memory if it exceeds a quarter of the GPU's memory.

    A CUDA graph reserves a private pool. Other tensors can use this memory only after
    the pool has been released.

    Parameters
    ----------
    device : torch.device
    """
    reserved = torch.cuda.memory_reserved(device)
    _, total = torch.cuda.mem_get_info(device)
    if reserved - torch.cuda.memory_allocated(device) > total / 4:
        torch.cuda.empty_cache()


def in_parts(call: Callable[[Any], Tensor], batches: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the result of a function for each batch, or for parts of it.

    If a batch needs more memory than the GPU has, it is halved until it fits, and so
    are the following batches. A warning is issued once.

    Parameters
    ----------
    call : callable
        Takes a batch and returns one row for each of its samples.
    batches : iterable of Tensor
        Other types than Tensor are permitted, but such batches are not halved.

    Raises
    ------
    torch.OutOfMemoryError
        If a single sample needs too much memory.
    """
    largest = None
    for batch in batches:
        if not isinstance(batch, Tensor):
            yield call(batch)
            continue
        done, size = 0, batch.shape[0]
        while done < size:
            part = batch if largest is None else batch[done : done + largest]
            out = _try(call, part)
            if out is not None:
                yield out
                done += part.shape[0]
                continue
            if largest is None:
                warnings.warn(
                    f"a batch of {len(part)} samples needs more memory than the GPU "
                    "has; prediction continues with smaller batches. Free memory that "
                    "other models and processes use, or set a lower batch_size.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            largest = len(part) // 2
            torch.cuda.empty_cache()


def _try(call: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor | None:
    """Return the result, or None if memory runs out; no tensors of the call remain."""
    try:
        return call(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        return None
