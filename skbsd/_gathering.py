"""The logits of all batches, as one tensor on the CPU."""

from collections.abc import Iterable

import torch
from torch import Tensor

# Bytes of logits that are gathered on the device before they are fetched.
_LARGEST_BUFFER = 2**28


def gather(batches: Iterable[Tensor], n_samples: int | None) -> Tensor:
    """Put the logits of batches together.

    Parameters
    ----------
    batches : iterable of Tensor of shape (n, n_classes)
    n_samples : int or None
        How many there will be, as far as is known beforehand.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        On the CPU, of float32 at least.

    Raises
    ------
    ValueError
        If there is no batch.
    """
    out, n = None, 0
    for logits in batches:
        if out is None:
            # One buffer, as parts would leave memory in pieces; on the device, as
            # each transfer waits for it, where that is not too much.
            length = len(logits) if n_samples is None else n_samples
            fits = length * logits[:1].nbytes <= _LARGEST_BUFFER
            where = logits.device if fits else "cpu"
            out = logits.new_empty(length, logits.shape[1], device=where)
        while n + len(logits) > len(out):  # such as of a loader that repeats
            more = max(len(out), len(logits))
            out = torch.cat([out, out.new_empty(more, out.shape[1])])
        out[n : n + len(logits)] = logits
        n += len(logits)
    if out is None:
        raise ValueError("X has no samples; expected at least one to predict for.")
    logits = out[:n].cpu()
    # A bfloat16 has too few digits for probabilities that sum to one.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
