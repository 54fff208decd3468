"""Predictions of all batches, gathered into one tensor on the CPU."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

# Most bytes of a buffer on the device.
_LARGEST_BUFFER = 2**28
# Most bytes of logits that are processed at once.
_LARGEST_PART = 2**24


def from_logits(
    function: Callable[[Tensor], Tensor], batches: Iterable[Tensor]
) -> Iterator[Tensor]:
    """Apply a function to the logits of batches, and yield the result of each part.

    Processing in parts limits the memory for intermediate results of large batches.

    Parameters
    ----------
    function : callable
        Receives logits in at least float32, as bfloat16 has too few digits for
        probabilities that sum to one. It returns one row per sample.
    batches : iterable of Tensor of shape (n, n_classes)
    """
    for logits in batches:
        if logits.nbytes <= _LARGEST_PART:
            yield function(in_full(logits))
            continue
        size = max(1, _LARGEST_PART // logits[:1].nbytes)
        for part in logits.split(size):
            yield function(in_full(part))


def in_full(logits: Tensor) -> Tensor:
    """Return logits in at least float32; lower precisions are converted.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    """
    if logits.dtype in (torch.float32, torch.float64):
        return logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def gather(batches: Iterable[Tensor], n_samples: int | None) -> Tensor:
    """Concatenate the predictions of batches.

    Parameters
    ----------
    batches : iterable of Tensor of shape (n, ...)
    n_samples : int or None
        Total number of samples, if known in advance.

    Returns
    -------
    Tensor of shape (n_samples, ...)
        Predictions on the CPU. If the first batch contains all samples, it is returned
        without a copy.

    Raises
    ------
    ValueError
        If `batches` is empty.
    """
    out, n = None, 0
    for part in batches:
        size = part.shape[0]
        if out is None:
            out = part if size == n_samples else _buffer(part, n_samples or size)
        while n + size > out.shape[0]:  # e.g. with a loader that repeats samples
            more = max(out.shape[0], size)
            out = torch.cat([out, out.new_empty(more, *out.shape[1:])])
        if out is not part:
            out[n : n + size] = part
        n += size
    if out is None:
        raise ValueError("X has no samples; expected at least one to predict for.")
    out = out if n == out.shape[0] else out[:n]
    return out if out.is_cpu else out.cpu()


def _buffer(part: Tensor, n_samples: int) -> Tensor:
    """Return a buffer for all samples; separate parts would fragment the memory.

    If it is small enough, it is on the device, as each transfer would synchronise.
    """
    fits = n_samples * part[:1].nbytes <= _LARGEST_BUFFER
    where = part.device if fits else "cpu"
    return part.new_empty(n_samples, *part.shape[1:], device=where)
