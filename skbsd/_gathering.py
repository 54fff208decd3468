"""What is predicted for all batches, as one tensor on the CPU."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

# Bytes that are gathered on the device before they are fetched.
_LARGEST_BUFFER = 2**28
# Bytes of logits that are worked on at once.
_LARGEST_PART = 2**24


def from_logits(
    function: Callable[[Tensor], Tensor], batches: Iterable[Tensor]
) -> Iterator[Tensor]:
    """Yield what a function makes of the logits of batches, a part at a time.

    Intermediate results then take little memory, however large the batches are.

    Parameters
    ----------
    function : callable
        Gets logits of float32 at least: a bfloat16 has too few digits for
        probabilities that sum to one. It returns a row for each sample.
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
    """Return logits of float32 at least; others are converted.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    """
    if logits.dtype in (torch.float32, torch.float64):
        return logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def gather(batches: Iterable[Tensor], n_samples: int | None) -> Tensor:
    """Put the predictions of batches together.

    Parameters
    ----------
    batches : iterable of Tensor of shape (n, ...)
    n_samples : int or None
        How many there will be, as far as is known beforehand.

    Returns
    -------
    Tensor of shape (n_samples, ...)
        On the CPU. Where the first batch is all there is, it is returned itself.

    Raises
    ------
    ValueError
        If there is no batch.
    """
    out, n = None, 0
    for part in batches:
        size = part.shape[0]
        if out is None:
            out = part if size == n_samples else _buffer(part, n_samples or size)
        while n + size > out.shape[0]:  # such as of a loader that repeats
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
    """Return memory for all samples: parts of their own would leave it in pieces.

    It is on the device, as each transfer waits for it, where that is not too much.
    """
    fits = n_samples * part[:1].nbytes <= _LARGEST_BUFFER
    where = part.device if fits else "cpu"
    return part.new_empty(n_samples, *part.shape[1:], device=where)
