"""The step of the compact store on the CPU, in NumPy and in blocks of rows.

Only the necessary operations process all classes: exponentials, their sum, two products
for the loss, a search for the maxima, and the gradient. The beliefs have few columns.
"""

import math
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ._compact import LOST, SCALE, CompactPrior, CompactRows, dither
from ._cpu import TINY, in_blocks, ones_of, sharp_evidence
from ._rules import UpdateRule

# Values per block. It uses fewer arrays than a dense step, so a block may be larger.
_BLOCK = 2**19

# Rows with fewer classes are searched directly, without division into parts.
_SHORTEST = 512


def posterior_step(
    logits: Tensor,
    rows: CompactRows,
    visits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    rule: UpdateRule,
    prior: CompactPrior,
) -> tuple[Tensor, Tensor]:
    """Update beliefs; return loss and gradient.

    Parameters and results are those of :func:`skbsd._compact.posterior_step`.
    """
    store = _Store(rows, visits)
    step = partial(_step_rows, store, rule, prior, len(logits))
    return in_blocks(step, logits, index, weight, _BLOCK)


class _Belief(NamedTuple):
    """Evidence of some rows: of the kept classes, of all classes, and of the rest."""

    classes: np.ndarray
    held: np.ndarray
    total: np.ndarray
    rest: np.ndarray


class _Store:
    """The tensors of a compact store as arrays that share their memory."""

    def __init__(self, rows: CompactRows, visits: Tensor):
        classes = rows.classes.numpy()
        if classes.dtype == np.int16:  # negative numbers represent larger indices
            classes = classes.view(np.uint16)
        self.classes = classes
        self.values = rows.values.numpy()
        self.total = rows.total.numpy()
        self.rest = rows.rest.numpy()
        self.visits = visits.numpy()

    def read(self, index: np.ndarray, dtype: np.dtype) -> _Belief:
        """Return rows in a type for computation."""
        held = self.values.take(index, axis=0).astype(dtype)
        total = self.total.take(index).astype(dtype, copy=False)
        rest = self.rest.take(index).astype(dtype, copy=False)
        # Rescaled, so that the sum is exact despite rounding; 0 without any evidence.
        factor = (total - rest) / (held @ ones_of(held.shape[1], held.dtype))
        held *= np.where(total > rest, factor, 0).astype(dtype)[:, np.newaxis]
        classes = self.classes.take(index, axis=0).astype(np.int64)
        return _Belief(classes, held, total, rest)

    def write(self, index: np.ndarray, new: _Belief, kept: slice | np.ndarray) -> None:
        """Store those rows of the computed beliefs that `kept` selects."""
        held = new.held
        if self.values.dtype == np.float16:
            held = self._rounded(new, index)
        rows = index[kept]
        self.classes[rows] = new.classes[kept]
        self.values[rows] = held[kept]
        self.total[rows] = new.total[kept]
        self.rest[rows] = new.rest[kept]
        self.visits[rows] += 1

    def _rounded(self, new: _Belief, index: np.ndarray) -> np.ndarray:
        """Round like :func:`skbsd._compact._rounded`."""
        held = new.held.astype(np.float32)
        total = held @ ones_of(held.shape[1], held.dtype)
        held *= np.where(total > 0, SCALE / total, 0).astype(np.float32)[:, np.newaxis]
        visits = self.visits.take(index).astype(np.int64)
        bits = held.view(np.int32)
        bits += dither(visits, index, new.classes).astype(np.int32)
        bits &= ~LOST
        return held


def _step_rows(
    store: _Store,
    rule: UpdateRule,
    prior: CompactPrior,
    n: int,
    x: np.ndarray,
    index: np.ndarray,
    gradient: np.ndarray,
    weight: np.ndarray | None = None,
) -> float:
    """Perform the step for some of n samples; fill `gradient`, return their loss."""
    with np.errstate(all="ignore"):  # non-finite rows are detected below
        kept: slice | np.ndarray = slice(None)
        before = store.read(index, x.dtype)
        left = _left(prior, store.visits, index, x.dtype)
        scale = np.full(len(x), 1 / n, x.dtype) if weight is None else weight / n
        arguments = rule, prior, before, left, scale, gradient
        new, losses, least = _posterior(x, *arguments)
        if not (math.isfinite(losses.sum()) and least > TINY):
            # Rare: exponentials out of range, or non-finite rows.
            x = x - np.max(x, axis=1, keepdims=True)
            kept = np.isfinite(x).all(axis=1)
            new, losses, _ = _posterior(x, *arguments)
        store.write(index, new, kept)
        # Computed as a difference, so rounding may make it negative.
        return max(float(losses @ scale), 0.0)


def _left(
    prior: CompactPrior, visits: np.ndarray, index: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Return the factor gamma^(T + 1) of each row's prior after the update."""
    if prior.discount == 1:
        return np.ones(len(index), dtype)
    left = prior.discount ** (visits.take(index) + 1.0)
    return left.astype(dtype)


def _posterior(
    x: np.ndarray,
    rule: UpdateRule,
    prior: CompactPrior,
    before: _Belief,
    left: np.ndarray,
    scale: np.ndarray,
    gradient: np.ndarray,
) -> tuple[_Belief, np.ndarray, float]:
    """Fill `gradient`, with each row multiplied by its scale.

    Return beliefs, losses, and the smallest sum of exponentials.

    For evidence e, the target of a class that is not kept is share * e + even, where
    `even` is the same for all these classes.
    """
    ones = ones_of(x.shape[1], x.dtype)
    powers = np.exp(x, out=gradient)
    sums = powers @ ones
    logs = np.log(sums)
    sharp = None
    if rule.sharpness != 1:
        sharp = sharp_evidence(x - logs[:, np.newaxis], rule, ones)
    n_others = prior.n_classes - before.classes.shape[1]

    places = before.classes + _starts(x)

    def evidence(places: np.ndarray) -> np.ndarray:
        if sharp is not None:
            return sharp.take(places)
        found = powers.take(places)
        found *= (rule.weight / sums)[:, np.newaxis]
        return found

    held = rule.discount * before.held
    own = evidence(places)
    held += own
    total = rule.discount * before.total + rule.weight
    each = before.rest * (rule.discount / max(1, n_others))
    mass = left * prior.total + total
    share = (1 - rule.smoothing) / mass
    uniform = rule.smoothing / prior.n_classes
    even = share * (each + left * prior.floor) + uniform

    target = held + (left * prior.floor)[:, np.newaxis]
    target[:, 0] += left * (prior.strength - prior.floor)
    target *= share[:, np.newaxis]
    target += uniform

    # The sum of q_k x_k as if no class were kept, plus a correction for kept classes.
    if sharp is None:
        mean = np.einsum("ij,ij->i", powers, x) * (rule.weight / sums)
    else:
        mean = np.einsum("ij,ij->i", sharp, x)
    differ = target - share[:, np.newaxis] * own - even[:, np.newaxis]
    differs = np.einsum("ij,ij->i", differ, x.take(places))
    losses = logs - share * mean - even * (x @ ones) - differs

    slope = powers.take(places)
    slope /= sums[:, np.newaxis]
    slope -= target
    slope *= scale[:, np.newaxis]
    new = _Belief(before.classes, held, total, before.rest)
    if n_others:
        # The search excludes kept classes; their gradient has been computed already.
        searched = powers if sharp is None else sharp
        searched.reshape(-1)[places] = -1
        factor = rule.weight / sums if sharp is None else np.ones_like(sums)
        new = _compressed(new, searched, factor, each)
    if sharp is None:
        gradient *= (scale * (1 - share * rule.weight) / sums)[:, np.newaxis]
    else:
        gradient *= (scale / sums)[:, np.newaxis]
        sharp *= (scale * share)[:, np.newaxis]
        gradient -= sharp
    gradient -= (scale * even)[:, np.newaxis]
    gradient.reshape(-1)[places] = slope
    return new, losses, sums.min()


def _compressed(
    held: _Belief, searched: np.ndarray, factor: np.ndarray, each: np.ndarray
) -> _Belief:
    """Keep the label, and those of all other classes that have the most evidence.

    The evidence of a class that is not held is ``each + factor * searched``. After some
    visits, it rarely exceeds the evidence of a class that is held.
    """
    n_others = held.classes.shape[1] - 1
    n_sought = min(n_others, searched.shape[1] - n_others - 1)
    maxima = _maxima(searched, n_sought)
    highest = maxima.max(axis=1) * factor + each
    rows = np.flatnonzero(highest > held.held[:, 1:].min(axis=1))
    classes, values = held.classes, held.held
    if len(rows):
        classes = classes.copy()  # the step may have to be repeated
        some = len(rows) < len(maxima)
        if some:
            searched, maxima = searched[rows], maxima[rows]
            factor, each = factor[rows], each[rows]
        found = _largest(searched, maxima, n_sought)
        evidence = searched.take(found + _starts(searched))
        evidence *= factor[:, np.newaxis]
        evidence += each[:, np.newaxis]
        pool = np.concatenate([values[rows, 1:], evidence], axis=1)
        pooled = np.concatenate([classes[rows, 1:], found], axis=1)
        best = _best(pool, n_others)
        best += _starts(pool)
        classes[rows, 1:] = pooled.take(best)
        values[rows, 1:] = pool.take(best)
    # Computed as a difference, so that the total stays exact.
    rest = held.total - values @ ones_of(values.shape[1], values.dtype)
    return _Belief(classes, values, held.total, np.maximum(rest, 0))


def _maxima(values: np.ndarray, n: int) -> np.ndarray:
    """Return the maxima of interleaved parts of each row, and the remaining values."""
    n_rows, n_columns = values.shape
    n_parts, length = _parts(n, n_columns)
    if length == 1:
        return values
    whole = n_parts * length
    parts = values[:, :whole].reshape(n_rows, length, n_parts)
    return np.concatenate([np.maximum.reduce(parts, axis=1), values[:, whole:]], axis=1)


def _largest(values: np.ndarray, maxima: np.ndarray, n: int) -> np.ndarray:
    """Return the columns of the n largest values of each row, in arbitrary order.

    They are in the n parts with the largest maxima.
    """
    n_parts, length = _parts(n, values.shape[1])
    best = _best(maxima, n)
    if length == 1:
        return best
    # Each remaining column is a part of length one, padded with columns out of range.
    last = best >= n_parts
    best[last] += n_parts * (length - 1)
    columns = best[:, :, np.newaxis] + np.arange(0, n_parts * length, n_parts)
    columns = columns.reshape(len(values), -1)
    beyond = columns >= values.shape[1]
    columns[beyond] = 0
    found = values.take(columns + _starts(values))
    found[beyond] = -2  # below the -1 of excluded classes
    best = _best(found, n)
    best += _starts(columns)
    return columns.take(best)


def _best(values: np.ndarray, n: int) -> np.ndarray:
    """Return the columns of the n largest values of each row, in arbitrary order."""
    # NumPy finds the smallest values faster than the largest.
    return np.argpartition(-values, n - 1, axis=1)[:, :n]


def _starts(values: np.ndarray) -> np.ndarray:
    """Return the flat index of each row's first value."""
    return np.arange(0, values.size, values.shape[1])[:, np.newaxis]


@cache
def _parts(n: int, n_columns: int) -> tuple[int, int]:
    """Return number and length of parts that leave few columns to search."""
    if n_columns < _SHORTEST:
        return n_columns, 1
    wanted = max(2 * n, math.isqrt(n * n_columns))
    sizes = range(wanted, wanted * 3 // 2)
    n_parts = min(sizes, key=lambda size: n_columns % size)
    return n_parts, n_columns // n_parts
