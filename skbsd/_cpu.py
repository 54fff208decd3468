"""The posterior step on the CPU.

It uses NumPy on the memory of the tensors, as NumPy's operations have less overhead
than PyTorch's, which matters for small batches. Large batches are processed in blocks
of rows that stay in a core's cache across operations, with several blocks in parallel.
Parallelising each operation instead would synchronise the cores after each one.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._formulas import dither_steps
from ._rules import UpdateRule

# Values per block. A step uses four such arrays: together 4 MB of float32. With smaller
# blocks, threads wait for the interpreter more often.
_BLOCK = 2**18

# Increments of the 13-bit dither of a store in float16.
_BY_UPDATE, _BY_ROW, _BY_CLASS = dither_steps(13)

# In sums of exponentials above this, the effect of underflow is negligible.
TINY = 1e-30


def usable(alpha: Tensor) -> bool:
    """Whether NumPy supports the type of the store."""
    return alpha.dtype in (torch.float32, torch.float64, torch.float16)


def posterior_step(
    logits: Tensor,
    alpha: Tensor,
    visits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    rule: UpdateRule,
) -> tuple[Tensor, Tensor]:
    """Update beliefs; return loss and gradient.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Detached.
    alpha : Tensor of shape (n_samples, n_classes)
        The rows at `index` are updated by the rule if their loss is finite.
    visits : Tensor of shape (n_samples,)
        Incremented for each updated row.
    index : Tensor of shape (n,)
        Distinct row numbers.
    weight : Tensor of shape (n,) or None
        Weight of each sample in the loss.
    rule : UpdateRule

    Returns
    -------
    loss : Tensor of shape ()
        Mean cross-entropy of the rule's targets with the logits, times weight.
    gradient : Tensor of shape (n, n_classes)
        (p - q) * weight / n, in the logits' type.
    """
    arguments = alpha.numpy(), visits.numpy(), rule, len(logits)
    return in_blocks(partial(_step_rows, *arguments), logits, index, weight, _BLOCK)


def in_blocks(
    step_rows: Callable[..., float],
    logits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Perform a step in blocks of rows; return loss and gradient.

    Parameters
    ----------
    step_rows : callable
        Takes the logits, the index, an array for the gradient and, if `weight` is not
        None, the weight of a block. It fills the gradient, and returns the block's
        contribution to the mean loss.
    logits, index, weight : Tensor
        As in `posterior_step`.
    block : int
        Number of logits per block.
    """
    n, n_classes = logits.shape
    if n == 0:  # the mean of an empty batch
        return logits.new_full((), np.nan), logits
    is_wide = logits.dtype in (torch.float32, torch.float64)
    x = (logits if is_wide else logits.float()).numpy()
    gradient = np.empty(x.shape, x.dtype)
    by_sample = [x, index.numpy(), gradient]
    if weight is not None:
        by_sample.append(weight.numpy().astype(x.dtype, copy=False))
    size = max(1, block // n_classes)
    if n <= size:
        loss = step_rows(*by_sample)
    else:
        n_threads = torch.get_num_threads()
        size = min(size, -(-n // n_threads))
        blocks = [slice(i, i + size) for i in range(0, n, size)]
        apply = map if n_threads == 1 else _pool(n_threads).map
        loss = sum(apply(lambda b: step_rows(*(a[b] for a in by_sample)), blocks))
    slope = torch.from_numpy(gradient)
    mean = torch.scalar_tensor(loss, dtype=slope.dtype)
    return mean, slope if is_wide else slope.to(logits.dtype)


def stacked_step(
    logits: Tensor,
    alpha: Tensor,
    visits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    rule: Any,
) -> tuple[Tensor, Tensor]:
    """Perform the steps of several stores whose rows are concatenated.

    Parameters
    ----------
    logits : Tensor of shape (m, n, n_classes)
        Logits of m stores, detached.
    alpha : Tensor of shape (n_rows, n_classes)
        Concentrations of all stores, in float32 or float64.
    visits : Tensor of shape (n_rows,)
    index : Tensor of shape (m, n)
        Distinct rows of `alpha`.
    weight : Tensor of shape (m, n) or None
    rule : object
        With the attributes of an :class:`UpdateRule`, which are numbers or tensors of
        shape (m, 1, 1).

    Returns
    -------
    losses : Tensor of shape (m,)
    gradient : Tensor of shape (m, n, n_classes)
        Gradient of each store's mean loss with respect to its logits.
    """
    m, n, n_classes = logits.shape
    x = logits.numpy().reshape(m * n, n_classes)
    gradient = np.empty_like(x)
    by_row = {
        name: np.repeat(value.numpy().astype(x.dtype).reshape(m, 1), n, axis=0)
        if isinstance(value, Tensor)
        else value
        for name, value in rule._asdict().items()
    }
    weights = None if weight is None else weight.numpy().ravel().astype(x.dtype)
    arguments = alpha.numpy(), visits.numpy(), type(rule)(**by_row)
    losses = _step_rows(
        *arguments, n, x, index.numpy().ravel(), gradient, weights, n_stores=m
    )
    slope = torch.from_numpy(gradient).view_as(logits)
    return torch.from_numpy(losses).to(slope), slope


def _step_rows(
    alpha, visits, rule: Any, n: int, x, index, gradient, weight=None, n_stores=None
) -> Any:
    """Perform the step for some of n samples; fill `gradient`, return their loss.

    With `n_stores`, the samples are n for each store, and each store has a loss.
    """
    with np.errstate(all="ignore"):  # non-finite rows are detected below
        kept: slice | np.ndarray = slice(None)
        target, belief, logs = _posterior(alpha, rule, x, index, gradient)
        loss = _loss(target, x, logs, n, weight, n_stores)
        if not np.isfinite(loss).all():
            # Rare: exponentials out of range, or non-finite rows.
            x = x - np.max(x, axis=1, keepdims=True)
            kept = np.isfinite(x).all(axis=1)
            target, belief, logs = _posterior(alpha, rule, x, index, gradient)
            loss = _loss(target, x, logs, n, weight, n_stores)
        rows = index[kept]
        if alpha.dtype == np.float16:
            belief = _rounded_to_half(belief, index, visits)
        alpha[rows] = belief[kept]
        visits[rows] += 1
        gradient -= target
        gradient *= 1 / n if weight is None else (weight / n)[:, np.newaxis]
        # Computed as a difference, so rounding may make it negative.
        return max(loss, 0.0) if n_stores is None else np.maximum(loss, 0.0)


def _loss(target, x, logs, n, weight, n_stores):
    """Return the mean loss; with `n_stores`, that of each store."""
    if n_stores is not None:
        losses = logs - np.einsum("ij,ij->i", target, x)
        if weight is not None:
            losses *= weight
        return losses.reshape(n_stores, n).sum(axis=1) / n
    if weight is None:
        return float(logs.sum() - np.vdot(target, x)) / n
    return float((logs - np.einsum("ij,ij->i", target, x)) @ weight) / n


def _posterior(alpha, rule: Any, x, index, proba):
    """Fill `proba`; return targets, beliefs and logarithms of the sums.

    Logarithms are NaN if the exponentials of a row underflow, and so is its loss.
    """
    ones = ones_of(x.shape[1], x.dtype)
    np.exp(x, out=proba)
    total = proba @ ones
    proba /= total[:, np.newaxis]
    belief = alpha.take(index, axis=0)
    if belief.dtype != x.dtype:
        belief = belief.astype(x.dtype)
    if _differs(rule.discount, 1):
        belief *= rule.discount
    logs = np.log(total)
    if _differs(rule.sharpness, 1):
        belief += sharp_evidence(x - logs[:, np.newaxis], rule, ones)
    elif _differs(rule.weight, 1):
        belief += rule.weight * proba
    else:
        belief += proba
    target = belief / (belief @ ones)[:, np.newaxis]
    if _differs(rule.smoothing, 0):
        target *= 1 - rule.smoothing
        target += rule.smoothing / x.shape[1]
    if not total.min() > TINY:
        logs[~(total > TINY)] = np.nan
    return target, belief, logs


def _differs(value: Any, number: float) -> bool:
    """Whether a value differs from a number, or is a column of values."""
    return isinstance(value, np.ndarray) or value != number


def sharp_evidence(log_proba: np.ndarray, rule: Any, ones: np.ndarray) -> np.ndarray:
    """Turn log_proba into weight * softmax(sharpness * log_proba), in place.

    Computing a power of the probabilities would take ten times as long.

    Parameters
    ----------
    log_proba : ndarray of shape (n, n_classes)
    rule : UpdateRule
    ones : ndarray of shape (n_classes,)
        From :func:`ones_of`, to compute sums.
    """
    log_proba *= rule.sharpness
    # The largest probability of K classes is at least 1 / K.
    if len(ones) ** -np.max(rule.sharpness) < TINY:
        log_proba -= np.max(log_proba, axis=1, keepdims=True)
    evidence = np.exp(log_proba, out=log_proba)
    evidence *= rule.weight / (evidence @ ones)[:, np.newaxis]
    return evidence


def _rounded_to_half(belief, index, visits):
    """Round like :func:`skbsd._formulas.rounded`, in place."""
    phase = visits.take(index) * _BY_UPDATE + index * _BY_ROW
    phase &= 0x1FFF
    dither = np.add.outer(phase.astype(np.int32), _dither_of_classes(belief.shape[1]))
    dither &= 0x1FFF
    belief = belief.astype(np.float32, copy=False)
    bits = belief.view(np.int32)
    bits += dither
    bits &= ~0x1FFF
    return belief


@lru_cache
def _dither_of_classes(n: int) -> np.ndarray:
    return (np.arange(n) * _BY_CLASS & 0x1FFF).astype(np.int32)


@lru_cache
def ones_of(n: int, dtype: np.dtype) -> np.ndarray:
    """Return a vector of ones; a product with it sums short rows several times faster.

    Parameters
    ----------
    n : int
    dtype : dtype
    """
    return np.ones(n, dtype)


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="skbsd")


if hasattr(os, "register_at_fork"):
    # A forked process inherits the pool, but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
