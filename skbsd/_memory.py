"""Memory of a GPU: how much is left, and going on with smaller batches without it."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def free_memory(device: torch.device) -> int:
    """Return the bytes that a GPU has left for tensors.

    The driver does not know of memory that torch holds in reserve: after a large fit it
    would seem full.

    Parameters
    ----------
    device : torch.device
    """
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return free + reserved - torch.cuda.memory_allocated(device)


def release_reserve(device: torch.device) -> None:
    """Give memory back that torch holds in reserve, where it is a quarter of all.

    A CUDA graph reserves memory of its own, which can be used otherwise only after it
    was given back.

    Parameters
    ----------
    device : torch.device
    """
    reserved = torch.cuda.memory_reserved(device)
    _, total = torch.cuda.mem_get_info(device)
    if reserved - torch.cuda.memory_allocated(device) > total / 4:
        torch.cuda.empty_cache()


def in_parts(call: Callable[[Any], Tensor], batches: Iterable[Any]) -> Iterator[Tensor]:
    """Yield what a function returns for each batch, or for parts of it.

    Where a batch takes more memory than a GPU has, it is halved until it fits, and so
    are the batches that follow. A warning says so, once.

    Parameters
    ----------
    call : callable
        From a batch to one row for each of its samples.
    batches : iterable of Tensor
        Those that are no Tensor cannot be halved.

    Raises
    ------
    torch.OutOfMemoryError
        If a single sample takes too much.
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
                    f"{len(part)} samples at once take more memory than the GPU has; "
                    "prediction goes on with smaller batches. Free memory that other "
                    "models and processes hold, or set batch_size lower.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            largest = len(part) // 2
            torch.cuda.empty_cache()


def _try(call: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor | None:
    """Return None where memory is too small, and nothing of the attempt is left."""
    try:
        return call(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        return None
