"""The posterior step on the CPU.

NumPy on the memory of the tensors: its operations cost less to call than PyTorch's,
which counts for small batches. Large ones are done in blocks of rows that stay in a
core's cache from one operation to the next, several blocks at a time; an operation
that is spread over the cores by itself would have them wait for each other each time.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

# Values of a block, of which there are four kinds in use: together 2 MB of float32.
_BLOCK = 2**17


def posterior_step(
    logits: Tensor,
    alpha: Tensor,
    visits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    discount: float,
) -> tuple[Tensor, Tensor]:
    """Update beliefs; return losses and gradient.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Detached.
    alpha : Tensor of shape (n_samples, n_classes)
        Its rows `index` become discount * alpha + softmax(logits), those whose loss
        is not finite excepted.
    visits : Tensor of shape (n_samples,)
        Raised by one where alpha is updated.
    index : Tensor of shape (n,)
        Distinct rows.
    weight : Tensor of shape (n,) or None
    discount : float

    Returns
    -------
    losses : Tensor of shape (n,)
        Cross-entropy of the updated means with the logits, times weight / n.
    gradient : Tensor of shape (n, n_classes)
        (p - q) * weight / n, of the logits' type.
    """
    n, n_classes = logits.shape
    x = logits.to(torch.promote_types(logits.dtype, torch.float32)).numpy()
    rows, store, counts = index.numpy(), alpha.numpy(), visits.numpy()
    losses, gradient = np.empty(n, x.dtype), np.empty(x.shape, x.dtype)
    scale = 1 / n if weight is None else (weight / n).unsqueeze(-1).numpy()

    def step(start: int, stop: int) -> None:
        block = slice(start, stop)
        _step_rows(
            x[block],
            rows[block],
            store,
            counts,
            scale if weight is None else scale[block],
            discount,
            losses[block],
            gradient[block],
        )

    size = max(1, _BLOCK // n_classes)
    if n <= size:
        step(0, n)
    else:
        n_threads = torch.get_num_threads()
        size = min(size, -(-n // n_threads))
        starts = range(0, n, size)
        stops = [*starts[1:], n]
        apply = map if n_threads == 1 else _pool(n_threads).map
        list(apply(step, starts, stops))
    return torch.from_numpy(losses), torch.from_numpy(gradient).to(logits.dtype)


def _step_rows(
    x, index, alpha, visits, scale, discount: float, losses, gradient
) -> None:
    """Do the step for some samples; fill `losses` and `gradient`."""
    with np.errstate(all="ignore"):  # what is not finite is looked for below
        z = x - x.max(axis=1, keepdims=True)
        proba = np.exp(z, out=gradient)
        total = proba.sum(axis=1, keepdims=True)
        proba /= total
        after = alpha.take(index, axis=0).astype(x.dtype, copy=False)
        if discount != 1:
            after *= discount
        after += proba
        target = after / after.sum(axis=1, keepdims=True)
        np.einsum("ij,ij->i", target, z, out=losses)
        np.subtract(np.log(total[:, 0]), losses, out=losses)
        if not np.isfinite(losses.sum()):
            finite = np.isfinite(losses)
            index, after = index[finite], after[finite]
        alpha[index] = after
        visits[index] += 1
        gradient -= target
        gradient *= scale
        losses *= scale if isinstance(scale, float) else scale[:, 0]


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="skbsd")


if hasattr(os, "register_at_fork"):
    # A forked process has the pool, but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
