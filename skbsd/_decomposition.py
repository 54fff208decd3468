"""Proper scores split into miscalibration and refinement."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax
from sklearn.isotonic import isotonic_regression
from sklearn.utils._param_validation import StrOptions, validate_params

from ._proba import COMMON, binary_events, group_sums, validate


class ScoreDecomposition(NamedTuple):
    """A proper score split in two parts, ``score = miscalibration + refinement``.

    Parameters
    ----------
    score : float
        The total score; 0 is the best.
    miscalibration : float
        The part of the score that recalibration removes; never negative.
    refinement : float
        The score that remains after recalibration.

    Examples
    --------
    >>> from skbsd.metrics import brier_decomposition
    >>> parts = brier_decomposition([0, 0, 1, 1], [0.25, 0.25, 0.25, 0.75])
    >>> round(parts.miscalibration / parts.score, 2)
    0.11
    """

    score: float
    miscalibration: float
    refinement: float


def _recalibrated(confidence, hit, weight):
    """Return the isotonic (PAV) recalibration of one event's probabilities."""
    # Equal probabilities must stay equal, so they are pooled first.
    _, inverse = np.unique(confidence, return_inverse=True)
    mass = group_sums(inverse, weight)
    frequency = group_sums(inverse, weight * hit) / mass
    return isotonic_regression(frequency, sample_weight=mass)[inverse]


def _decomposition(score, refined):
    """Split a score; a recalibration that makes it worse is not applied."""
    refinement = min(float(refined), float(score))
    miscalibration = float(score) - refinement
    return ScoreDecomposition(miscalibration + refinement, miscalibration, refinement)


@validate_params(
    {**COMMON, "scale_by_half": ["boolean", StrOptions({"auto"})]},
    prefer_skip_nested_validation=True,
)
def brier_decomposition(
    y_true,
    y_proba,
    *,
    scale_by_half="auto",
    labels=None,
    pos_label=None,
    sample_weight=None,
) -> ScoreDecomposition:
    r"""Brier score split into miscalibration and refinement by isotonic regression.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True class labels.
    y_proba : array-like of shape (n_samples,) or (n_samples, n_classes)
        Predicted probabilities; those of the positive class if one-dimensional.
    scale_by_half : bool or "auto", default="auto"
        Halve the score, so that it lies in [0, 1] instead of [0, 2]. As in
        :func:`sklearn.metrics.brier_score_loss`, "auto" does so for two classes.
    labels : array-like of shape (n_classes,), default=None
        Class label of each column, in any order. By default the sorted labels of
        `y_true` if there is one for each column; otherwise integers from 0 to
        ``n_classes - 1`` are column indices.
    pos_label : int, float, bool or str, default=None
        Positive class if there are two; by default the second of the labels.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights; an integer weight is the same as repeating the sample.

    Returns
    -------
    decomposition : ScoreDecomposition
        The `score`, equal to :func:`sklearn.metrics.brier_score_loss`, its
        `miscalibration`, never negative, and its `refinement`.

    Raises
    ------
    ValueError
        If the probabilities, labels or weights are invalid, or rows of `y_proba`
        do not sum to one.

    See Also
    --------
    log_loss_decomposition : Decomposition of the log loss.

    Notes
    -----
    The Brier score is a sum over the classes of binary scores,
    :math:`\sum_k E[(p_k - 1[y = k])^2]`. Each is split by CORP [1]_: refinement is
    the score of the pool-adjacent-violators (PAV) recalibration of :math:`p_k`, the
    best non-decreasing one, and miscalibration is the part that recalibration removes.
    In the terms of [1]_ refinement is uncertainty minus discrimination. The maps are
    fitted to each class separately, so recalibrated rows need not sum to one. They are
    evaluated on the data that they are fitted to, so miscalibration is overestimated on
    few samples.

    References
    ----------
    .. [1] T. Dimitriadis, T. Gneiting and A. I. Jordan, "Stable reliability diagrams
       for probabilistic classifiers", PNAS 118(8), 2021. :arxiv:`2008.03033`

    Examples
    --------
    >>> from skbsd.metrics import brier_decomposition
    >>> brier_decomposition([0, 0, 1, 1], [0.25, 0.25, 0.25, 0.75])
    ScoreDecomposition(score=0.1875, miscalibration=0.020..., refinement=0.166...)
    """
    codes, proba, weight = validate(y_true, y_proba, labels, pos_label, sample_weight)
    score = refined = 0.0
    for confidence, hit in binary_events(codes, proba.astype(np.float64), "classwise"):
        score += np.average((confidence - hit) ** 2, weights=weight)
        best = _recalibrated(confidence, hit, weight)
        refined += np.average((best - hit) ** 2, weights=weight)
    if scale_by_half == "auto":
        scale_by_half = proba.shape[1] == 2
    scale = 0.5 if scale_by_half else 1.0
    return _decomposition(scale * score, scale * refined)


def _tempered_log_loss(logits, codes, weight):
    """Minimise the log loss of softmax(logits / T) over temperatures T > 0."""
    weight = weight / weight.sum()
    logits = logits - logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(codes)), codes]

    def slope(inverse):
        mean = np.sum(softmax(inverse * logits, axis=1) * logits, axis=1)
        return weight @ (mean - chosen)

    # The loss is convex in 1/T, so its slope has at most one root. If every prediction
    # is right, the loss has only an infimum, at T = 0, which a large 1/T reaches: the
    # slope underflows to zero there.
    if slope(0.0) >= 0:
        best = 0.0
    else:
        high = 1.0
        while slope(high) < 0:
            high *= 2
        best = brentq(slope, 0.0, high, xtol=1e-12)
    return weight @ (logsumexp(best * logits, axis=1) - best * chosen)


@validate_params(COMMON, prefer_skip_nested_validation=True)
def log_loss_decomposition(
    y_true, y_proba, *, labels=None, pos_label=None, sample_weight=None
) -> ScoreDecomposition:
    r"""Log loss split into miscalibration and refinement by temperature scaling.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True class labels.
    y_proba : array-like of shape (n_samples,) or (n_samples, n_classes)
        Predicted probabilities; those of the positive class if one-dimensional.
    labels : array-like of shape (n_classes,), default=None
        Class label of each column, in any order. By default the sorted labels of
        `y_true` if there is one for each column; otherwise integers from 0 to
        ``n_classes - 1`` are column indices.
    pos_label : int, float, bool or str, default=None
        Positive class if there are two; by default the second of the labels.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights; an integer weight is the same as repeating the sample.

    Returns
    -------
    decomposition : ScoreDecomposition
        The `score`, equal to :func:`sklearn.metrics.log_loss`, its
        `miscalibration`, never negative, and its `refinement`.

    Raises
    ------
    ValueError
        If the probabilities, labels or weights are invalid, or rows of `y_proba`
        do not sum to one.

    See Also
    --------
    brier_decomposition : Decomposition of the Brier score.

    Notes
    -----
    Miscalibration is the loss that the best recalibration removes, and refinement the
    loss that remains [1]_:

    .. math:: \mathrm{refinement} = \min_{T > 0} E[-\log
        \mathrm{softmax}(\log p / T)_y].

    The log loss is not a sum over classes, so isotonic regression cannot split it
    as it does the Brier score. One temperature [2]_ works for any number of classes and
    hardly overfits, but it corrects only over- and underconfidence common to all
    samples: this miscalibration is a lower bound on that of all maps. Probabilities
    are clipped as in scikit-learn.

    References
    ----------
    .. [1] E. Berta, D. Holzmüller, M. I. Jordan and F. Bach, "Rethinking early
       stopping: Refine, then calibrate", 2025. :arxiv:`2501.19195`
    .. [2] C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern
       neural networks", ICML 2017. :arxiv:`1706.04599`

    Examples
    --------
    >>> from skbsd.metrics import log_loss_decomposition
    >>> parts = log_loss_decomposition([0, 1, 1, 1], [0.1, 0.1, 0.9, 0.9])
    >>> [round(part, 4) for part in parts]
    [0.6547, 0.0923, 0.5623]
    """
    codes, proba, weight = validate(y_true, y_proba, labels, pos_label, sample_weight)
    eps = np.finfo(proba.dtype).eps
    logits = np.log(np.clip(proba, eps, 1 - eps), dtype=np.float64)
    score = np.average(-logits[np.arange(len(codes)), codes], weights=weight)
    return _decomposition(score, _tempered_log_loss(logits, codes, weight))
