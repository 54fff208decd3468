"""The mathematics of the compact store, and its step in plain PyTorch.

A row stores the evidence of m classes, the first of which is the label, and the sum of
the evidence of all other classes, which is treated as evenly distributed over them. The
prior's contribution is not stored: it follows from the label and number of visits.
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

# Up to this number of classes, an index is stored in 16 bits. The type is int16, where
# negative numbers represent indices from 2**15 on, as few operations support uint16.
_SHORT = 2**16

# Sum of a row's values in float16. Only their proportions matter.
SCALE = 2.0**15

# Mask of the bits of a float32 that are lost in a float16.
LOST = 0x1FFF


class CompactRows(NamedTuple):
    """The tensors of a compact store.

    Parameters
    ----------
    classes : Tensor of int of shape (n_samples, n_kept)
        The distinct classes of each row, with the label first.
    values : Tensor of shape (n_samples, n_kept)
        Proportions of their evidence, which sums to ``total - rest``.
    total : Tensor of shape (n_samples,)
        Sum of a row's evidence over all classes.
    rest : Tensor of shape (n_samples,)
        Sum of the evidence of all other classes.
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
        c, eps and gamma. An infinite c is represented by a large finite number.
    n_classes : int
        Number of classes K.
    """

    strength: float
    floor: float
    discount: float
    n_classes: int

    @property
    def total(self) -> float:
        """Sum of the prior concentrations."""
        return self.strength + (self.n_classes - 1) * self.floor

    def left(self, visits: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the factor gamma^T of the prior after T visits."""
        if self.discount == 1:
            return torch.ones_like(visits, dtype=dtype)
        return self.discount ** visits.to(dtype)


class Evidence(NamedTuple):
    """Rows of a compact store in full precision.

    Parameters
    ----------
    classes : Tensor of int64 of shape (n, n_kept)
    held : Tensor of shape (n, n_kept)
        The evidence of each of these classes.
    total, rest : Tensor of shape (n,)
        The evidence of all classes, and of those that are not kept.
    """

    classes: Tensor
    held: Tensor
    total: Tensor
    rest: Tensor

    def dense(self, n_classes: int) -> Tensor:
        """Return the evidence of all classes, of shape (n, n_classes)."""
        each = self.rest / max(1, n_classes - self.classes.shape[1])
        return each.unsqueeze(1).repeat(1, n_classes).scatter_(1, *self[:2])


# Default number of classes that a row keeps.
N_KEPT = 32


def n_kept_of(posterior_dtype: str) -> int | None:
    """Return the number of classes per row for the estimator's parameter.

    Parameters
    ----------
    posterior_dtype : str
        "compact", or "compact-m" with a number m.

    Returns
    -------
    int or None
        None for any other value.
    """
    if posterior_dtype == "compact":
        return N_KEPT
    kind, _, number = posterior_dtype.partition("-")
    if kind != "compact" or not number.isdecimal() or int(number) < 2:
        return None
    return int(number)


def index_dtype(n_classes: int) -> torch.dtype:
    """Return the type that class indices are stored in."""
    return torch.int16 if n_classes <= _SHORT else torch.int32


def first_classes(labels: Tensor, n_classes: int, n_kept: int) -> Tensor:
    """Return the classes of rows without evidence: the label, and its successors.

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
        Row numbers; None means all rows.
    dtype : torch.dtype
        Type of the result.
    """
    if index is not None:
        rows = CompactRows(*(part.index_select(0, index) for part in rows))
    classes = rows.classes.long()
    if rows.classes.dtype == torch.int16:
        classes &= _SHORT - 1
    values, total, rest = (part.to(dtype) for part in rows[1:])
    # Rescaled, so that the sum is exact despite the rounding of the values.
    factor = (total - rest) / values.sum(dim=1)
    held = values * torch.where(total > rest, factor, 0).unsqueeze(1)
    return Evidence(classes, held, total, rest)


def compress(evidence: Tensor, labels: Tensor, total: Tensor, n_kept: int) -> Evidence:
    """Keep the label and the classes with the most evidence.

    Parameters
    ----------
    evidence : Tensor of shape (n, n_classes)
        Evidence of every class.
    labels : Tensor of shape (n,)
        The label of each row, which is always kept.
    total : Tensor of shape (n,)
        Sum of the evidence.
    n_kept : int
        Number of classes to keep.
    """
    label = labels.unsqueeze(1)
    others = evidence.scatter(1, label, -1.0).topk(n_kept - 1, dim=1, sorted=False)
    classes = torch.cat([label, others.indices], dim=1)
    held = evidence.gather(1, classes)
    if n_kept == evidence.shape[1]:
        return Evidence(classes, held, total, torch.zeros_like(total))
    # Computed as a difference, so that the total stays exact.
    return Evidence(classes, held, total, (total - held.sum(dim=1)).clamp(min=0))


def keep_best(kept: Evidence, columns: Tensor, evidence: Tensor) -> Evidence:
    """Keep the label, and those of the other classes that have the most evidence.

    Parameters
    ----------
    kept : Evidence
        The classes kept so far.
    columns, evidence : Tensor of shape (n, n_more)
        Further candidate classes and their evidence. Negative evidence excludes a
        candidate.

    Returns
    -------
    Evidence
        With the same total, and the same number of classes.
    """
    pool = torch.cat([kept.held[:, 1:], evidence], dim=1)
    pooled = torch.cat([kept.classes[:, 1:], columns], dim=1)
    best = pool.topk(kept.held.shape[1] - 1, dim=1, sorted=False).indices
    held = torch.cat([kept.held[:, :1], pool.gather(1, best)], dim=1)
    classes = torch.cat([kept.classes[:, :1], pooled.gather(1, best)], dim=1)
    # Computed as a difference, so that the total stays exact.
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
        Row numbers.
    new : Evidence
    visits : Tensor of shape (n,)
        Number of earlier updates of each row.
    chosen : Tensor of bool of shape (n,)
        Whether to store each row. The others stay unchanged.
    """
    held = new.held
    if rows.values.dtype == torch.float16:
        held = _rounded(new, index, visits)
    for part, values in zip(rows, new._replace(held=held), strict=True):
        before = part.index_select(0, index)
        mask = chosen.view(-1, *[1] * (part.ndim - 1))
        part.index_copy_(0, index, torch.where(mask, values.to(part.dtype), before))


def _rounded(new: Evidence, index: Tensor, visits: Tensor) -> Tensor:
    """Round proportions to float16 with dither, so that the rounding is unbiased."""
    held = new.held.float()
    total = held.sum(dim=1, keepdim=True)
    held = held * torch.where(total > 0, SCALE / total, 0)
    bits = held.view(torch.int32) + dither(visits.long(), index, new.classes).int()
    return (bits & ~LOST).view(torch.float32)


def dither(visits: Any, index: Any, classes: Any) -> Any:
    """Return the dither to add to the bits of a float32 before truncation.

    The dither is a hash, unlike the regular sequence in
    :func:`skbsd._formulas.rounded`. What an update adds to the proportions depends on
    their previous rounding, and a regular dither would be correlated with that.

    Parameters
    ----------
    visits, index : Tensor or ndarray of int64 of shape (n,)
        Number of updates of each row, and its row number.
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

    Used on devices without a specialised implementation. The target is the mean of the
    belief before classes are dropped.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Detached.
    rows : CompactRows
        The rows at `index` are updated by the rule if their loss is finite.
    visits : Tensor of shape (n_samples,)
        Incremented for each updated row.
    index : Tensor of shape (n,)
        Distinct row numbers.
    weight : Tensor of shape (n,) or None
        Weight of each sample in the loss.
    rule : UpdateRule
    prior : CompactPrior

    Returns
    -------
    loss : Tensor of shape ()
        Mean cross-entropy of the rule's targets with the logits, times weight.
    gradient : Tensor of shape (n, n_classes)
        (p - q) * weight / n, in the logits' type.
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
    """Return the concentrations: the evidence plus the discounted prior.

    Parameters
    ----------
    evidence : Tensor of shape (n, n_classes)
    labels, left : Tensor of shape (n,)
        Label of each row, and the factor of its prior.
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
