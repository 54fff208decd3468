"""The mathematics of the method, in pure functions.

In the paper's symbols, `prior_strength` is c, `prior_floor` is eps and `discount` is
gamma. A row of concentrations is alpha, and its mean q is the training target.
"""

from typing import Any

import torch
from torch import Tensor

from ._rules import UpdateRule

# Number of bits of a float32 that are lost in a shorter type.
_LOST_BITS = {torch.float16: 13, torch.bfloat16: 16}


def prior_concentration(
    labels: Tensor,
    n_classes: int,
    *,
    prior_strength: float,
    prior_floor: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return priors: `prior_strength` on the label, `prior_floor` elsewhere.

    Parameters
    ----------
    labels : Tensor of shape (n_samples,)
        Class indices in [0, n_classes).
    n_classes : int
        Number of classes K.
    prior_strength : float
        Concentration of the label, c > 0. Infinity is stored as a quarter of the
        largest number of `dtype`, compared with which other entries are negligible.
    prior_floor : float
        Concentration of each other class, eps > 0.
    dtype : torch.dtype, default=torch.float32
        Type of the result.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        The concentrations alpha_0 [1]_.

    References
    ----------
    .. [1] A. Adelöw, M. Gamba, A. Maki, "Bayesian Self-Distillation for Image
       Classification", arXiv:2512.24162.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import prior_concentration
    >>> prior_concentration(torch.tensor([2, 0]), 3, prior_strength=10.0,
    ...                     prior_floor=0.5)
    tensor([[ 0.5000,  0.5000, 10.0000],
            [10.0000,  0.5000,  0.5000]])
    """
    # A quarter, so that the sum of the row does not overflow when evidence is added.
    strength = min(prior_strength, torch.finfo(dtype).max / 4)
    alpha = torch.full(
        (len(labels), n_classes), prior_floor, dtype=dtype, device=labels.device
    )
    return alpha.scatter_(1, labels.unsqueeze(1), strength)


def sharpen(proba: Tensor, sharpness: float | Tensor) -> Tensor:
    """Raise probabilities to the power of `sharpness`, scaled to sum to one.

    This is softmax(sharpness * logits), which is not part of the paper. A sharpness
    above 1 reduces the probabilities of the less likely classes.

    Parameters
    ----------
    proba : Tensor of shape (n_samples, n_classes)
        Predicted probabilities, softmax(logits).
    sharpness : float or Tensor that broadcasts
        The power, in (0, inf); 1 changes nothing.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Each row sums to one.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import sharpen
    >>> sharpen(torch.tensor([[0.75, 0.25]]), 2.0)
    tensor([[0.9000, 0.1000]])
    """
    if _is_number(sharpness, 1):
        return proba
    return (sharpness * proba.log()).softmax(dim=-1)


def update_concentration(
    alpha: Tensor, evidence: Tensor, discount: float | Tensor
) -> Tensor:
    """Return the concentrations after one more prediction, gamma * alpha + evidence.

    Parameters
    ----------
    alpha : Tensor of shape (n_samples, n_classes)
        Concentrations before the update.
    evidence : Tensor of shape (n_samples, n_classes)
        Evidence of the prediction, detached. In the paper, it is the predicted
        probabilities; with an :class:`UpdateRule`, it is
        w * softmax(sharpness * logits).
    discount : float or Tensor that broadcasts
        Factor gamma of the previous concentrations, in (0, 1].

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Concentrations after the update.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import update_concentration
    >>> alpha = torch.tensor([[4.0, 2.0]])
    >>> update_concentration(alpha, torch.tensor([[0.75, 0.25]]), discount=0.5)
    tensor([[2.7500, 1.2500]])
    """
    if isinstance(discount, Tensor):
        return torch.addcmul(evidence, alpha, discount)
    return torch.add(evidence, alpha, alpha=discount)


def posterior_mean(alpha: Tensor) -> Tensor:
    """Return the mean of a Dirichlet, the training target q = alpha / sum(alpha).

    Parameters
    ----------
    alpha : Tensor of shape (n_samples, n_classes)
        Concentrations, all positive.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Each row sums to one.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import posterior_mean
    >>> posterior_mean(torch.tensor([[3.0, 1.0]]))
    tensor([[0.7500, 0.2500]])
    """
    return alpha / alpha.sum(dim=-1, keepdim=True)


def smooth(target: Tensor, smoothing: float | Tensor) -> Tensor:
    """Mix targets with the uniform distribution, as label smoothing does.

    Parameters
    ----------
    target : Tensor of shape (n_samples, n_classes)
        Probabilities.
    smoothing : float or Tensor that broadcasts
        Share of the uniform distribution, in [0, 1).

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Each row sums to one.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import smooth
    >>> smooth(torch.tensor([[1.0, 0.0]]), 0.5)
    tensor([[0.7500, 0.2500]])
    """
    if _is_number(smoothing, 0):
        return target
    return (1 - smoothing) * target + smoothing / target.shape[-1]


def soft_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of soft targets, -sum_k q_k log softmax(logits)_k.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Output of the network.
    target : Tensor of shape (n_samples, n_classes)
        Probabilities; each row sums to one.
    weight : Tensor of shape (n_samples,), optional
        Factor of each sample's loss. The mean is over the number of samples, not
        over the sum of the weights.

    Returns
    -------
    Tensor of shape ()
        The loss, in nats.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import soft_cross_entropy
    >>> soft_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.75, 0.25]]))
    tensor(0.6931)
    """
    losses = -(target * logits.log_softmax(dim=-1)).sum(dim=-1)
    return (losses if weight is None else weight * losses).mean()


def soft_cross_entropy_gradient(
    proba: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return the gradient of the soft cross-entropy in the logits, (p - q) weight / n.

    Parameters
    ----------
    proba : Tensor of shape (n_samples, n_classes)
        Predicted probabilities p, softmax(logits).
    target : Tensor of shape (n_samples, n_classes)
        Probabilities q, treated as constant, as everywhere in the method.
    weight : Tensor of shape (n_samples,), optional
        Factor of each sample's loss.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Gradient of :func:`soft_cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import soft_cross_entropy_gradient
    >>> soft_cross_entropy_gradient(torch.tensor([[0.5, 0.5]]),
    ...                             torch.tensor([[0.75, 0.25]]))
    tensor([[-0.2500,  0.2500]])
    """
    gradient = (proba - target) / proba.shape[-2]
    return gradient if weight is None else gradient * weight.unsqueeze(-1)


def dither_steps(lost_bits: int) -> tuple[int, int, int]:
    """Return the increments of the dither of :func:`rounded`.

    Any number of multiples of the golden ratio fills the range evenly. Rows and classes
    use other irrational numbers, so that the three sequences are independent.

    Parameters
    ----------
    lost_bits : int
        Number of bits that rounding removes. The dither is taken modulo 2**lost_bits.

    Returns
    -------
    tuple of (int, int, int)
        Increments from one update of a row to the next, from row to row, and from class
        to class. They are odd, so that their multiples take all values.
    """
    fractions = (5**0.5 / 2 - 0.5, 3**0.5 - 1, 2**0.5 - 1)
    update, row, column = (int(f * 2**lost_bits) | 1 for f in fractions)
    return update, row, column


def rounded(alpha: Tensor, dtype: torch.dtype, index: Tensor, visits: Tensor) -> Tensor:
    """Round concentrations to the type of a store, without bias.

    Rounding to nearest would lose predicted probabilities that are small compared with
    the belief in each update, and thus their sum over many updates. Here, a value is
    rounded up with a frequency proportional to its distance from the next lower number.
    To this end, a dither is added to the bits before truncation. From one update of a
    row to the next, the dither covers its range evenly. It depends only on row, class
    and number of updates, so that results are reproducible.

    Parameters
    ----------
    alpha : Tensor of shape (n, n_classes)
        Not negative.
    dtype : torch.dtype
        For types of 32 bits or more, values are only converted.
    index, visits : Tensor of shape (n,)
        Row number of each belief, and number of its earlier updates.

    Returns
    -------
    Tensor of shape (n, n_classes)
        Values that `dtype` represents exactly are unchanged. Values below the smallest
        normal number of `dtype` are rounded to nearest.
    """
    lost = _LOST_BITS.get(dtype)
    if lost is None:
        return alpha.to(dtype)
    by_update, by_row, by_class = dither_steps(lost)
    mask = 2**lost - 1
    phase = by_update * visits.long() + by_row * index
    column = torch.arange(alpha.shape[1], device=alpha.device)
    dither = (phase.unsqueeze(1) + by_class * column) & mask
    # Positive floats have the same order as their bits, read as integers.
    bits = alpha.float().view(torch.int32) + dither.int()
    return (bits & ~mask).view(torch.float32).to(dtype)


def updated(before: Tensor, proba: Tensor, rule: Any) -> tuple[Tensor, Tensor]:
    """Return the concentrations after an update, and the resulting targets.

    Parameters
    ----------
    before, proba : Tensor of shape (..., n, n_classes)
        Concentrations and predicted probabilities.
    rule : UpdateRule
        Or an object with the same attributes as tensors that broadcast, which holds the
        rules of several stores.
    """
    evidence = sharpen(proba, rule.sharpness)
    if not _is_number(rule.weight, 1):
        evidence = rule.weight * evidence
    after = update_concentration(before, evidence, rule.discount)
    return after, smooth(posterior_mean(after), rule.smoothing)


def _is_number(value: float | Tensor, number: float) -> bool:
    """Whether a value is a certain number; False for tensors, which are not read."""
    return not isinstance(value, Tensor) and value == number


@torch.no_grad()
def posterior_step(
    logits: Tensor,
    alpha: Tensor,
    visits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    rule: UpdateRule,
) -> tuple[Tensor, Tensor]:
    """Update beliefs with the functions above; return loss and gradient.

    Used on devices without a specialised implementation. Parameters and results are
    those of :func:`skbsd._cpu.posterior_step`.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_proba = logits.log_softmax(dim=-1, dtype=dtype)
    proba = log_proba.exp()
    before = alpha.index_select(0, index).to(dtype)
    after, target = updated(before, proba, rule)
    losses = -(target * log_proba).sum(dim=-1)
    finite = losses.isfinite()
    after = torch.where(finite.unsqueeze(-1), after, before)
    stored = rounded(after, alpha.dtype, index, visits.index_select(0, index))
    alpha.index_copy_(0, index, stored)
    visits.index_add_(0, index, finite.to(visits.dtype))
    gradient = soft_cross_entropy_gradient(proba, target, weight).to(logits.dtype)
    return (losses if weight is None else weight * losses).mean(), gradient
