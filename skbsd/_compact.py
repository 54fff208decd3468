"""The mathematics of the compact store, and its step in plain PyTorch.

A row keeps the evidence of m classes, of which the label is the first, and the sum of
all the others', which counts as spread evenly over them. What is left of the prior
needs no memory: it follows from label and number of visits.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._formulas import (
    sharpen,
    smooth,
    soft_cross_entropy_gradient,
    update_concentration,
)
from ._rules import UpdateRule

# Up to so many classes, an index is kept in 16 bits: as int16, whose negative numbers
# stand for those from 2**15 on, since few operations know uint16.
_SHORT = 2**16

# What a row's values in float16 sum to. Only their proportions count.
SCALE = 2.0**15

# The bits of a float32 that a float16 has no room for.
LOST = 0x1FFF


class CompactRows(NamedTuple):
    """The tensors of a compact store.

    Parameters
    ----------
    classes : Tensor of int of shape (n_samples, n_kept)
        The classes of each row, all different, the label first.
    values : Tensor of shape (n_samples, n_kept)
        Proportions of their evidence, whose sum is `total` less `rest`.
    total : Tensor of shape (n_samples,)
        Sum of a row's evidence.
    rest : Tensor of shape (n_samples,)
        The part of it that belongs to other classes.
    """

    classes: Tensor
    values: Tensor
    total: Tensor
    rest: Tensor


class CompactPrior(NamedTuple):
    """The prior of a compact store.

    Parameters
    ----------
    strength, floor, discount : float
        c, eps and gamma. A finite number stands for an infinite c.
    n_classes : int
        K.
    """

    strength: float
    floor: float
    discount: float
    n_classes: int

    @property
    def total(self) -> float:
        """Its sum."""
        return self.strength + (self.n_classes - 1) * self.floor

    def left(self, visits: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the factor that is left of it after so many visits, gamma^T."""
        if self.discount == 1:
            return torch.ones_like(visits, dtype=dtype)
        return self.discount ** visits.to(dtype)


class Evidence(NamedTuple):
    """Rows of a compact store in full precision.

    Parameters
    ----------
    classes : Tensor of int64 of shape (n, n_kept)
    held : Tensor of shape (n, n_kept)
        The evidence of each.
    total, rest : Tensor of shape (n,)
        Of all classes, and of those that are not kept.
    """

    classes: Tensor
    held: Tensor
    total: Tensor
    rest: Tensor

    def dense(self, n_classes: int) -> Tensor:
        """Return the evidence of all classes, of shape (n, n_classes)."""
        each = self.rest / max(1, n_classes - self.classes.shape[1])
        return each.unsqueeze(1).repeat(1, n_classes).scatter_(1, *self[:2])


# Classes that a row keeps unless another number is asked for.
N_KEPT = 32


def n_kept_of(posterior_dtype: str) -> int | None:
    """Return how many classes a row keeps by the estimator's parameter.

    Parameters
    ----------
    posterior_dtype : str
        "compact", or "compact-m" with a number m.

    Returns
    -------
    int or None
        None for another text.
    """
    if posterior_dtype == "compact":
        return N_KEPT
    kind, _, number = posterior_dtype.partition("-")
    if kind != "compact" or not number.isdecimal() or int(number) < 2:
        return None
    return int(number)


def index_dtype(n_classes: int) -> torch.dtype:
    """Return the type that class indices are kept in."""
    return torch.int16 if n_classes <= _SHORT else torch.int32


def first_classes(labels: Tensor, n_classes: int, n_kept: int) -> Tensor:
    """Return the classes of rows without evidence: the label, and those after it.

    Parameters
    ----------
    labels : Tensor of shape (n,)
    n_classes, n_kept : int

    Returns
    -------
    Tensor of shape (n, n_kept)
    """
    after = torch.arange(n_kept, device=labels.device)
    classes = (labels.unsqueeze(1) + after) % n_classes
    return classes.to(index_dtype(n_classes))


def read(rows: CompactRows, index: Tensor | None, dtype: torch.dtype) -> Evidence:
    """Read rows of the store.

    Parameters
    ----------
    rows : CompactRows
    index : Tensor of shape (n,) or None
        Which; None is all.
    dtype : torch.dtype
        Of the result.
    """
    if index is not None:
        rows = CompactRows(*(part.index_select(0, index) for part in rows))
    classes = rows.classes.long()
    if rows.classes.dtype == torch.int16:
        classes &= _SHORT - 1
    values, total, rest = (part.to(dtype) for part in rows[1:])
    # Exact in sum, however the values were rounded.
    factor = (total - rest) / values.sum(dim=1)
    held = values * torch.where(total > rest, factor, 0).unsqueeze(1)
    return Evidence(classes, held, total, rest)


def compress(evidence: Tensor, labels: Tensor, total: Tensor, n_kept: int) -> Evidence:
    """Keep the label and the classes of most evidence.

    Parameters
    ----------
    evidence : Tensor of shape (n, n_classes)
        Of every class.
    labels : Tensor of shape (n,)
        The class that is always kept.
    total : Tensor of shape (n,)
        Sum of the evidence.
    n_kept : int
        How many classes are kept.
    """
    label = labels.unsqueeze(1)
    others = evidence.scatter(1, label, -1.0).topk(n_kept - 1, dim=1, sorted=False)
    classes = torch.cat([label, others.indices], dim=1)
    held = evidence.gather(1, classes)
    if n_kept == evidence.shape[1]:
        return Evidence(classes, held, total, torch.zeros_like(total))
    # By difference, so that the total stays exact.
    return Evidence(classes, held, total, (total - held.sum(dim=1)).clamp(min=0))


def keep_best(kept: Evidence, columns: Tensor, evidence: Tensor) -> Evidence:
    """Keep the label, and the best of the other classes that are kept and of more.

    Parameters
    ----------
    kept : Evidence
        Of the classes kept so far.
    columns, evidence : Tensor of shape (n, n_more)
        Further classes and their evidence, which is negative where they do not count.

    Returns
    -------
    Evidence
        As much of all classes as before.
    """
    pool = torch.cat([kept.held[:, 1:], evidence], dim=1)
    pooled = torch.cat([kept.classes[:, 1:], columns], dim=1)
    best = pool.topk(kept.held.shape[1] - 1, dim=1, sorted=False).indices
    held = torch.cat([kept.held[:, :1], pool.gather(1, best)], dim=1)
    classes = torch.cat([kept.classes[:, :1], pooled.gather(1, best)], dim=1)
    # By difference, so that the total stays exact.
    rest = (kept.total - held.sum(dim=1)).clamp(min=0)
    return Evidence(classes, held, kept.total, rest)


def write(
    rows: CompactRows, index: Tensor, new: Evidence, visits: Tensor, chosen: Tensor
) -> None:
    """Store rows, in place.

    Parameters
    ----------
    rows : CompactRows
    index : Tensor of shape (n,)
        Which.
    new : Evidence
    visits : Tensor of shape (n,)
        How often each was updated before.
    chosen : Tensor of bool of shape (n,)
        The others are left as they are.
    """
    held = new.held
    if rows.values.dtype == torch.float16:
        held = _rounded(new, index, visits)
    for part, values in zip(rows, new._replace(held=held), strict=True):
        before = part.index_select(0, index)
        mask = chosen.view(-1, *[1] * (part.ndim - 1))
        part.index_copy_(0, index, torch.where(mask, values.to(part.dtype), before))


def _rounded(new: Evidence, index: Tensor, visits: Tensor) -> Tensor:
    """Round proportions to float16, up as often as they are near to the next number."""
    held = new.held.float()
    total = held.sum(dim=1, keepdim=True)
    held = held * torch.where(total > 0, SCALE / total, 0)
    bits = held.view(torch.int32) + dither(visits.long(), index, new.classes).int()
    return (bits & ~LOST).view(torch.float32)


def dither(visits: Any, index: Any, classes: Any) -> Any:
    """Return what is added to the bits of a float32 that are cut off then.

    It is a hash, without the regularity that :func:`skbsd._formulas.rounded` has: of
    proportions, what is added follows from how they were rounded before, and a regular
    dither would fall in with that.

    Parameters
    ----------
    visits, index : Tensor or ndarray of int64 of shape (n,)
        How often each row was updated, and its number.
    classes : Tensor or ndarray of int64 of shape (n, n_kept)

    Returns
    -------
    Tensor or ndarray of int64 of shape (n, n_kept)
        In [0, `LOST`].
    """
    of_row = visits * 0x9E3779B1 + index * 0x85EBCA77
    mixed = classes * 0xC2B2AE3D
    mixed += of_row[:, None]
    mixed &= 0xFFFFFFFF
    mixed ^= mixed >> 15
    mixed *= 0x2C1B3C6D
    mixed &= 0xFFFFFFFF
    mixed >>= 19
    return mixed


@torch.no_grad()
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

    For devices without a form of their own. The target is the mean of the belief before
    classes are dropped.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Detached.
    rows : CompactRows
        Those at `index` are updated by the rule, if their loss is finite.
    visits : Tensor of shape (n_samples,)
        Raised by one where a row is updated.
    index : Tensor of shape (n,)
        Distinct rows.
    weight : Tensor of shape (n,) or None
        Weight of each sample in the loss.
    rule : UpdateRule
    prior : CompactPrior

    Returns
    -------
    loss : Tensor of shape ()
        Mean cross-entropy of the rule's targets with the logits, times weight.
    gradient : Tensor of shape (n, n_classes)
        (p - q) * weight / n, of the logits' type.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_proba = logits.log_softmax(dim=-1, dtype=dtype)
    proba = log_proba.exp()
    evidence = sharpen(proba, rule.sharpness)
    if rule.weight != 1:
        evidence = rule.weight * evidence
    before = read(rows, index, dtype)
    after = update_concentration(before.dense(prior.n_classes), evidence, rule.discount)
    total = rule.discount * before.total + rule.weight
    visited = visits.index_select(0, index)
    left = prior.left(visited + 1, dtype)
    labels = before.classes[:, 0]
    alpha = dirichlet(after, labels, left, prior)
    mean = alpha / (left * prior.total + total).unsqueeze(1)
    target = smooth(mean, rule.smoothing)
    losses = -(target * log_proba).sum(dim=-1)
    finite = losses.isfinite()
    new = compress(after, labels, total, rows.values.shape[1])
    write(rows, index, new, visited, finite)
    visits.index_add_(0, index, finite.to(visits.dtype))
    gradient = soft_cross_entropy_gradient(proba, target, weight).to(logits.dtype)
    return (losses if weight is None else weight * losses).mean(), gradient


def dirichlet(
    evidence: Tensor, labels: Tensor, left: Tensor, prior: CompactPrior
) -> Tensor:
    """Add what is left of the prior to the evidence.

    Parameters
    ----------
    evidence : Tensor of shape (n, n_classes)
    labels, left : Tensor of shape (n,)
        Class of each row, and the factor of its prior.
    prior : CompactPrior

    Returns
    -------
    Tensor of shape (n, n_classes)
        Concentrations.
    """
    left = left.unsqueeze(1)
    alpha = evidence + left * prior.floor
    return alpha.scatter_add_(
        1, labels.unsqueeze(1), left * (prior.strength - prior.floor)
    )
