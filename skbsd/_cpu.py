"""The posterior step on the CPU.

NumPy on the memory of the tensors: its operations cost less to call than PyTorch's,
which counts for small batches. Large ones are done in blocks of rows that stay in a
core's cache from one operation to the next, several blocks at a time; an operation
that is spread over the cores by itself would have them wait for each other each time.
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

# Values of a block, of which there are four kinds in use: together 4 MB of float32.
# Smaller ones have the threads wait for the interpreter more often.
_BLOCK = 2**18

# How the dither of a store in float16 rises, of 13 bits.
_BY_UPDATE, _BY_ROW, _BY_CLASS = dither_steps(13)

# Sums of exponentials above this have lost nothing that counts to underflow.
TINY = 1e-30


def usable(alpha: Tensor) -> bool:
    """Whether NumPy knows the type of the store."""
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
        Its rows `index` are updated by the rule, those whose loss is not finite
        excepted.
    visits : Tensor of shape (n_samples,)
        Raised by one where alpha is updated.
    index : Tensor of shape (n,)
        Distinct rows.
    weight : Tensor of shape (n,) or None
        Weight of each sample in the loss.
    rule : UpdateRule

    Returns
    -------
    loss : Tensor of shape ()
        Mean cross-entropy of the rule's targets with the logits, times weight.
    gradient : Tensor of shape (n, n_classes)
        (p - q) * weight / n, of the logits' type.
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
    """Do a step in blocks of rows; return loss and gradient.

    Parameters
    ----------
    step_rows : callable
        Takes logits, index, an array for the gradient and, where there is one, the
        weight of a block; fills the gradient, and returns the share of the mean loss.
    logits, index, weight : Tensor
        As in `posterior_step`.
    block : int
        Values of a block.
    """
    n, n_classes = logits.shape
    if n == 0:  # the mean of nothing
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
    """Do the steps of several stores, whose rows are in one.

    Parameters
    ----------
    logits : Tensor of shape (m, n, n_classes)
        Of m stores, detached.
    alpha : Tensor of shape (n_rows, n_classes)
        Of float32 or float64.
    visits : Tensor of shape (n_rows,)
    index : Tensor of shape (m, n)
        Distinct rows of `alpha`.
    weight : Tensor of shape (m, n) or None
    rule : object
        With the attributes of an :class:`UpdateRule`, numbers or tensors of shape
        (m, 1, 1).

    Returns
    -------
    losses : Tensor of shape (m,)
    gradient : Tensor of shape (m, n, n_classes)
        Of each store's mean loss in its logits.
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
    """Do the step for some of n samples; fill `gradient`, return their loss.

    With `n_stores`, they are n samples of each of so many stores, with a loss of each.
    """
    with np.errstate(all="ignore"):  # rows that are not finite are looked for
        kept: slice | np.ndarray = slice(None)
        target, belief, logs = _posterior(alpha, rule, x, index, gradient)
        loss = _loss(target, x, logs, n, weight, n_stores)
        if not np.isfinite(loss).all():
            # Rarely: exponentials out of range, or rows that are not finite.
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
        # A difference, which may be rounded to below zero.
        return max(loss, 0.0) if n_stores is None else np.maximum(loss, 0.0)


def _loss(target, x, logs, n, weight, n_stores):
    """Return the mean loss, of each store where there are several."""
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

    These are NaN where exponentials vanish, and so is the loss.
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
    """Whether a value is another number, or a column of several."""
    return isinstance(value, np.ndarray) or value != number


def sharp_evidence(log_proba: np.ndarray, rule: Any, ones: np.ndarray) -> np.ndarray:
    """Turn log_proba into weight * softmax(sharpness * log_proba), in place.

    A power of the probabilities would take ten times as long.

    Parameters
    ----------
    log_proba : ndarray of shape (n, n_classes)
    rule : UpdateRule
    ones : ndarray of shape (n_classes,)
        What sums are taken with.
    """
    log_proba *= rule.sharpness
    # The largest probability of K classes is 1 / K at least.
    if len(ones) ** -np.max(rule.sharpness) < TINY:
        log_proba -= np.max(log_proba, axis=1, keepdims=True)
    evidence = np.exp(log_proba, out=log_proba)
    evidence *= rule.weight / (evidence @ ones)[:, np.newaxis]
    return evidence


def _rounded_to_half(belief, index, visits):
    """Do what :func:`skbsd._formulas.rounded` does, in place."""
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
    """Return what to multiply by: several times as fast as sums of short rows.

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
    # A forked process has the pool, but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
