"""Calibration metrics of probabilistic classifiers, and scorers made of them.

Every metric takes class labels and predicted probabilities as scikit-learn's own
probabilistic metrics do, for two or more classes, with or without weights.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import sklearn.metrics
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax
from sklearn.isotonic import isotonic_regression
from sklearn.metrics._scorer import _Scorer
from sklearn.utils import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    column_or_1d,
)
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import _check_sample_weight

__all__ = [
    "CalibrationCurve",
    "ScoreDecomposition",
    "brier_decomposition",
    "calibration_curve",
    "expected_calibration_error",
    "get_scorer",
    "get_scorer_names",
    "log_loss_decomposition",
    "smooth_calibration_error",
]

_COMMON = {
    "y_true": ["array-like"],
    "y_proba": ["array-like"],
    "labels": ["array-like", None],
    "pos_label": [Real, str, "boolean", None],
    "sample_weight": ["array-like", None],
}
_MULTICLASS = {"multiclass": [StrOptions({"top-label", "classwise"})]}
_BINNING = {
    "n_bins": [Interval(Integral, 1, None, closed="left")],
    "strategy": [StrOptions({"uniform", "quantile"})],
}


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """The non-empty bins of a reliability diagram, in increasing confidence.

    Attributes
    ----------
    confidence, accuracy : ndarray of shape (n_nonempty_bins,)
        Mean predicted probability and frequency of the event in each bin.
    count : ndarray of shape (n_nonempty_bins,)
        Number of samples in each bin, or their total weight.
    edges : ndarray of shape (n_nonempty_bins, 2)
        Lower (inclusive) and upper (exclusive) limit of each bin. The last
        quantile bin, and the uniform bin of confidence one, include the upper.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.float64]
    edges: NDArray[np.float64]


class ScoreDecomposition(NamedTuple):
    """A proper score split in two parts, ``score = miscalibration + refinement``."""

    score: float
    miscalibration: float
    refinement: float


def _check_proba(y_proba):
    """Return probabilities in single or double precision, one column per class.

    One-dimensional input becomes the columns (negative, positive).
    """
    raw = np.asarray(y_proba)
    if raw.ndim not in (1, 2) or (raw.ndim == 2 and raw.shape[1] == 1):
        raise ValueError(
            f"y_proba has shape {raw.shape}, expected (n_samples,) with the "
            "probabilities of the positive class, or (n_samples, n_classes) with two "
            "columns or more. Reshape it, e.g. with y_proba.ravel() for one column."
        )
    proba = check_array(
        raw, ensure_2d=False, dtype=(np.float64, np.float32), input_name="y_proba"
    )
    for extreme in (proba.min(), proba.max()):
        if not 0 <= extreme <= 1:
            raise ValueError(
                f"y_proba contains {extreme}, expected probabilities in [0, 1]. Pass "
                "the output of predict_proba; apply a softmax to logits first."
            )
    if proba.ndim == 1:
        return np.column_stack([1 - proba, proba])
    # Single precision even for float64: lists and casts of float32 networks' outputs
    # are still probabilities.
    slack = np.finfo(np.float16 if raw.dtype == np.float16 else np.float32).eps ** 0.5
    total = proba.sum(axis=1, dtype=np.float64)
    worst = np.argmax(np.abs(total - 1))
    if abs(total[worst] - 1) > slack:
        raise ValueError(
            f"Row {worst} of y_proba sums to {total[worst]:.6g}, expected 1 within "
            f"{slack:.1g}. Normalise the rows, y_proba / y_proba.sum(axis=1)."
        )
    return proba


def _show(labels):
    """Write labels for a message, not all of a thousand."""
    return f"{labels[:10]!r}"[:-1] + (", ...]" if len(labels) > 10 else "]")


def _column_labels(values, labels, n_classes, pos_label, one_dim):
    """Return the label of each column, given the sorted labels of ``y_true``."""
    if labels is not None:
        known = column_or_1d(labels).tolist()
        if len(set(known)) != len(known) or len(known) != n_classes:
            raise ValueError(
                f"labels={_show(known)} has {len(set(known))} distinct of {len(known)} "
                f"labels, expected {n_classes} distinct ones: one for each class that "
                "y_proba describes, in the order of its columns."
            )
    elif len(values) == n_classes:
        known = list(values)
    elif one_dim and pos_label is not None and len(values) == 1:
        # Which label the absent class has does not matter.
        known = [v for v in values if v != pos_label] or [None]
        known.append(pos_label)
    elif n_classes == 2 and values == [-1]:
        known = [-1, 1]
    elif all(isinstance(v, Real) and v in range(n_classes) for v in values):
        known = list(range(n_classes))
    else:
        raise ValueError(
            f"y_true has {len(values)} distinct labels, {_show(values)}, but y_proba "
            f"describes {n_classes} classes. Pass labels, the class of each column of "
            "y_proba."
        )
    if pos_label is not None:
        if n_classes > 2:
            raise ValueError(
                f"pos_label={pos_label!r} was passed with {n_classes} classes; it is "
                "for two classes only. Leave it out, or pass one column of y_proba."
            )
        if pos_label not in known:
            raise ValueError(
                f"pos_label={pos_label!r} is not a label: expected one of {known}."
            )
        if one_dim and known[0] == pos_label:
            known.reverse()
        elif known[1] != pos_label:
            raise ValueError(
                f"pos_label={pos_label!r} is the label of the first of two columns "
                f"(labels {known}), expected the second. Pass y_proba[:, 0] for it, or "
                "labels in the order of the columns."
            )
    return known


def _validate(y_true, y_proba, labels, pos_label, sample_weight):
    """Return column indices of the true classes, probabilities and weights.

    Samples of no weight are left out: they must not make a bin or a quantile.
    """
    proba = _check_proba(y_proba)
    y = np.asarray(y_true)
    if y.ndim != 1 and (y.ndim != 2 or y.shape[1] != 1):
        raise ValueError(
            f"y_true has shape {y.shape}, expected one class label for each sample, "
            "(n_samples,). Multilabel targets are not supported: score each alone."
        )
    y = column_or_1d(y)
    check_consistent_length(y, proba, sample_weight)
    assert_all_finite(y, input_name="y_true")
    try:
        unique, inverse = np.unique(y, return_inverse=True)
    except TypeError as error:
        raise TypeError(
            f"y_true mixes labels of several types, such as {y[:5].tolist()}; expected "
            "all numbers or all strings. Convert it first."
        ) from error
    if y.dtype.kind == "f" and np.any(unique % 1):
        raise ValueError(
            f"y_true contains {unique[unique % 1 != 0][0]}, expected class labels, not "
            "continuous targets. Encode them as integers or strings."
        )
    values = unique.tolist()
    one_dim = np.ndim(y_proba) == 1
    known = _column_labels(values, labels, proba.shape[1], pos_label, one_dim)
    column = {label: k for k, label in enumerate(known)}
    unknown = [value for value in values if value not in column]
    if unknown:
        raise ValueError(
            f"y_true contains {_show(unknown)}, expected labels among {_show(known)}. "
            "Pass every class in labels, in the order of the columns of y_proba."
        )
    codes = np.array([column[value] for value in values])[inverse]
    weight = _check_sample_weight(
        sample_weight, proba, dtype=np.float64, ensure_non_negative=True
    )
    used = weight > 0
    if not used.any():  # scikit-learn 1.7 lets these through
        raise ValueError("sample_weight is zero everywhere; make one weight positive.")
    return codes[used], proba[used], weight[used]


def _events(codes, proba, multiclass) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield the probability and the occurrence of each event to be calibrated."""
    if multiclass == "top-label":
        yield proba.max(axis=1), (proba.argmax(axis=1) == codes).astype(float)
    else:
        for k in range(proba.shape[1]):
            yield proba[:, k], (codes == k).astype(float)


def _sums(index, weight, length=0) -> NDArray[np.float64]:
    return np.bincount(index, weights=weight, minlength=length).astype(np.float64)


def _uniform_bins(confidence, n_bins):
    # torch's linspace and single precision put a confidence that lies on an edge in
    # the bin where torchmetrics puts it; numpy's linspace differs in the last bit.
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float32, device="cpu").numpy()
    index = np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1
    return index, np.append(edges, 1.0)


def _quantile_bins(confidence, weight, n_bins):
    values, inverse = np.unique(confidence, return_inverse=True)
    mass = _sums(inverse, weight)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    # The slack keeps the rounding of a sum of weights from moving an edge.
    rank = np.minimum(np.floor(n_bins * middle + 1e-9), n_bins - 1)
    _, start, group = np.unique(rank, return_index=True, return_inverse=True)
    return group[inverse], np.append(values[start], values[-1])


def _curve(confidence, hit, weight, n_bins, strategy):
    """Bin an event's probabilities and occurrences."""
    if strategy == "uniform":
        index, edges = _uniform_bins(confidence, n_bins)
    else:
        index, edges = _quantile_bins(confidence, weight, n_bins)
    count = _sums(index, weight, len(edges) - 1)
    used = count > 0
    mean_confidence, accuracy = (
        _sums(index, weight * value, len(count))[used] / count[used]
        for value in (confidence.astype(np.float64), hit)
    )
    limits = np.column_stack([edges[:-1], edges[1:]]).astype(np.float64)[used]
    return CalibrationCurve(mean_confidence, accuracy, count[used], limits)


def _curve_error(curve, norm):
    """Reduce the gaps of a curve to one number."""
    gap = np.abs(curve.accuracy - curve.confidence)
    share = curve.count / curve.count.sum()
    if norm == "max":
        return gap.max()
    return np.sum(share * gap) if norm == "l1" else np.sqrt(np.sum(share * gap**2))


@validate_params(
    {**_COMMON, **_BINNING, **_MULTICLASS}, prefer_skip_nested_validation=True
)
def calibration_curve(
    y_true,
    y_proba,
    *,
    n_bins=15,
    strategy="uniform",
    multiclass="top-label",
    labels=None,
    pos_label=None,
    sample_weight=None,
) -> CalibrationCurve | list[CalibrationCurve]:
    """Bin predicted probabilities for a reliability diagram, for any classes.

    Parameters
    ----------
    y_true, y_proba, n_bins, strategy, multiclass, labels, pos_label, sample_weight
        As in :func:`expected_calibration_error`, which sums up this curve.

    Returns
    -------
    curve : CalibrationCurve or list of CalibrationCurve
        The non-empty bins, of the most probable class if ``multiclass="top-label"``;
        one curve per class, in the order of the columns, if ``"classwise"``. The
        columns of one-dimensional ``y_proba`` are (negative, positive).

    See Also
    --------
    sklearn.calibration.calibration_curve : The same for the positive class of two.

    Examples
    --------
    >>> from skbsd.metrics import calibration_curve
    >>> y_proba = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]
    >>> curve = calibration_curve(["a", "c", "c"], y_proba,
    ...                           labels=["a", "b", "c"], n_bins=2)
    >>> curve.confidence, curve.accuracy, curve.count
    (array([0.7]), array([0.66666667]), array([3.]))
    >>> curve.edges
    array([[0.5, 1. ]])
    >>> curves = calibration_curve([0, 1, 1], [0.2, 0.6, 0.9], multiclass="classwise",
    ...                            n_bins=2)
    >>> curves[1].accuracy
    array([0., 1.])
    """
    codes, proba, weight = _validate(y_true, y_proba, labels, pos_label, sample_weight)
    curves = [
        _curve(confidence, hit, weight, n_bins, strategy)
        for confidence, hit in _events(codes, proba, multiclass)
    ]
    return curves[0] if multiclass == "top-label" else curves


@validate_params(
    {
        **_COMMON,
        **_BINNING,
        **_MULTICLASS,
        "norm": [StrOptions({"l1", "l2", "max"})],
    },
    prefer_skip_nested_validation=True,
)
def expected_calibration_error(
    y_true,
    y_proba,
    *,
    n_bins=15,
    strategy="uniform",
    norm="l1",
    multiclass="top-label",
    labels=None,
    pos_label=None,
    sample_weight=None,
) -> float:
    r"""Binned gap between predicted probabilities and frequencies.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True class labels.
    y_proba : array-like of shape (n_samples,) or (n_samples, n_classes)
        Predicted probabilities; of the positive class if one-dimensional.
    n_bins : int, default=15
        Number of bins.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width, or of equal weight; equal confidences share a bin.
    norm : {"l1", "l2", "max"}, default="l1"
        Mean gap (ECE), root mean square gap, or largest gap (MCE) over the bins.
    multiclass : {"top-label", "classwise"}, default="top-label"
        Calibrate the probability of the predicted class, or of each class against
        the rest, averaging the errors over the classes.
    labels : array-like of shape (n_classes,), default=None
        Class label of each column, in any order. By default the sorted labels of
        `y_true` if there is one for each column; otherwise integers from 0 to
        ``n_classes - 1`` are column indices.
    pos_label : int, float, bool or str, default=None
        Positive class of two; by default the second of the labels.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights; an integer weight is the same as repeating the sample.

    Returns
    -------
    error : float
        Calibration error in [0, 1]; 0 is the best.

    Raises
    ------
    ValueError
        If the probabilities, labels or weights are invalid, or rows of `y_proba`
        do not sum to one.

    See Also
    --------
    calibration_curve : The bins themselves.
    smooth_calibration_error : A calibration error without bins.

    Notes
    -----
    With :math:`B_b` the samples of bin b and n their number, the ECE is [1]_ [2]_

    .. math:: \sum_b \frac{|B_b|}{n} |\mathrm{acc}(B_b) - \mathrm{conf}(B_b)|.

    Top-label errors equal ``MulticlassCalibrationError`` of torchmetrics: uniform bins
    are :math:`[b/B, (b+1)/B)` in single precision, so that a confidence of exactly 1
    falls in a bin of its own. Sums are in double precision, though; in torchmetrics
    they drift by some 1e-6 on a thousand samples. The classwise error is that of
    [3]_. Quantile bins put a confidence in bin :math:`\lfloor B F \rfloor`, where F
    is the weight below plus half the weight at that confidence.

    References
    ----------
    .. [1] M. P. Naeini, G. Cooper and M. Hauskrecht, "Obtaining well calibrated
       probabilities using Bayesian binning", AAAI 2015.
    .. [2] C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern
       neural networks", ICML 2017, equation 3. :arxiv:`1706.04599`
    .. [3] M. Kull et al., "Beyond temperature scaling", NeurIPS 2019.
       :arxiv:`1910.12656`

    Examples
    --------
    >>> from skbsd.metrics import expected_calibration_error
    >>> y_true = [0, 1, 1, 1]
    >>> y_proba = [0.1, 0.4, 0.9, 0.9]
    >>> round(expected_calibration_error(y_true, y_proba, n_bins=2), 4)
    0.075
    >>> expected_calibration_error(y_true, y_proba, n_bins=2, multiclass="classwise")
    0.175
    >>> expected_calibration_error(["b", "a"], [[0.8, 0.1, 0.1], [0.3, 0.5, 0.2]],
    ...                            labels=["b", "a", "c"], strategy="quantile")
    0.35
    """
    codes, proba, weight = _validate(y_true, y_proba, labels, pos_label, sample_weight)
    errors = [
        _curve_error(_curve(confidence, hit, weight, n_bins, strategy), norm)
        for confidence, hit in _events(codes, proba, multiclass)
    ]
    return float(np.mean(errors))


# From this many grid intervals to a kernel width on, the grid's error is negligible.
_RESOLUTION = 32
_MIN_INTERVALS, _MAX_INTERVALS = 2**10, 2**17


def _smooth_error(confidence, hit, weight):
    """Solve smECE_sigma = sigma for one event, on a grid fine enough for sigma."""
    confidence = confidence.astype(np.float64)
    residual = weight / weight.sum() * (hit - confidence)
    n_intervals = _MIN_INTERVALS
    while True:
        sigma = _smooth_error_on_grid(confidence, residual, n_intervals)
        if n_intervals == _MAX_INTERVALS or n_intervals * sigma >= _RESOLUTION:
            return sigma
        wanted = _RESOLUTION / max(sigma, _RESOLUTION / _MAX_INTERVALS)
        n_intervals = 2 ** int(np.ceil(np.log2(wanted)))


def _smooth_error_on_grid(confidence, residual, n_intervals):
    position = confidence * n_intervals
    left = np.minimum(position.astype(np.intp), n_intervals - 1)
    share = position - left
    mass = _sums(left, residual * (1 - share), n_intervals + 1)
    mass += _sums(left + 1, residual * share, n_intervals + 1)

    # Cosines are the eigenfunctions of the Gaussian reflected at 0 and 1.
    inner = slice(1, -1)
    spectrum = mass.copy()
    spectrum[inner] /= 2
    spectrum = dct(spectrum, type=1)
    decay = -0.5 * (np.pi * np.arange(n_intervals + 1)) ** 2

    def excess(sigma):
        smooth = np.abs(dct(np.exp(decay * sigma**2) * spectrum, type=1))
        smooth[[0, -1]] /= 2
        return smooth.sum() / n_intervals - sigma

    # |bias| <= smECE_sigma <= total mass whatever sigma is: both bracket the root.
    # Rounding, or residuals of one sign, can make an end the root itself.
    low, high = abs(mass.sum()), np.abs(mass).sum()
    if excess(low) <= 0:
        return low
    return high if excess(high) >= 0 else brentq(excess, low, high, xtol=1e-12)


@validate_params({**_COMMON, **_MULTICLASS}, prefer_skip_nested_validation=True)
def smooth_calibration_error(
    y_true,
    y_proba,
    *,
    multiclass="top-label",
    labels=None,
    pos_label=None,
    sample_weight=None,
) -> float:
    r"""Calibration error by kernel smoothing, free of bins and of parameters (smECE).

    Unlike the binned error, it is continuous in the predictions, and it bounds
    the distance to the nearest perfectly calibrated predictor from both sides [1]_.

    Parameters
    ----------
    y_true, y_proba, multiclass, labels, pos_label, sample_weight
        As in :func:`expected_calibration_error`.

    Returns
    -------
    error : float
        Calibration error in [0, 1]; 0 is the best.

    See Also
    --------
    expected_calibration_error : The binned error.

    Notes
    -----
    For an event of probability f and outcome y, and a Gaussian kernel
    :math:`K_\sigma` of standard deviation :math:`\sigma` reflected at 0 and 1,

    .. math:: \mathrm{smECE}_\sigma = \int_0^1 |E[(y - f) K_\sigma(t, f)]| \, dt

    does not increase in :math:`\sigma`; the error is its only fixed point,
    :math:`\mathrm{smECE}_\sigma = \sigma` (Section 3 of [1]_). With two classes
    ``multiclass="classwise"`` gives the error of the positive class, as both
    classes have the same. Residuals are shared linearly between the nodes of a
    grid and smoothed by cosine transforms; steps are :math:`\sigma/32` at most,
    but not finer than :math:`2^{-17}`.

    References
    ----------
    .. [1] J. Błasiok and P. Nakkiran, "Smooth ECE: Principled reliability diagrams
       via kernel smoothing", ICLR 2024. :arxiv:`2309.12236`

    Examples
    --------
    >>> from skbsd.metrics import smooth_calibration_error
    >>> round(smooth_calibration_error([0, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]), 6)
    0.25
    >>> y_proba = [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]]
    >>> round(smooth_calibration_error([0, 1, 2], y_proba), 4)
    0.2667
    """
    codes, proba, weight = _validate(y_true, y_proba, labels, pos_label, sample_weight)
    events = _events(codes, proba, multiclass)
    return float(np.mean([_smooth_error(*event, weight) for event in events]))


def _recalibrated(confidence, hit, weight):
    """Return the isotonic (PAV) recalibration of one event's probabilities."""
    # Equal probabilities must stay equal, so they are pooled first.
    _, inverse = np.unique(confidence, return_inverse=True)
    mass = _sums(inverse, weight)
    frequency = _sums(inverse, weight * hit) / mass
    return isotonic_regression(frequency, sample_weight=mass)[inverse]


def _decomposition(score, refined):
    """Split a score; a map that loses to doing nothing is not applied."""
    refinement = min(float(refined), float(score))
    miscalibration = float(score) - refinement
    return ScoreDecomposition(miscalibration + refinement, miscalibration, refinement)


@validate_params(
    {**_COMMON, "scale_by_half": ["boolean", StrOptions({"auto"})]},
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
    y_true, y_proba, labels, pos_label, sample_weight
        As in :func:`expected_calibration_error`.
    scale_by_half : bool or "auto", default="auto"
        Halve the score, so that it lies in [0, 1] instead of [0, 2]. As in
        :func:`sklearn.metrics.brier_score_loss`, "auto" does so for two classes.

    Returns
    -------
    decomposition : ScoreDecomposition
        The `score`, equal to :func:`sklearn.metrics.brier_score_loss`, its
        `miscalibration`, never negative, and its `refinement`.

    See Also
    --------
    log_loss_decomposition : The same for the log loss.

    Notes
    -----
    The Brier score is a sum over the classes of binary scores,
    :math:`\sum_k E[(p_k - 1[y = k])^2]`. Each is split by CORP [1]_: refinement is
    the score of the pool-adjacent-violators (PAV) recalibration of :math:`p_k`, the
    best non-decreasing one, and miscalibration is what recalibration gains. In the
    terms of [1]_ refinement is uncertainty minus discrimination. The maps are fitted
    to each class alone, so recalibrated rows need not sum to one, and to the data
    they are judged on, so miscalibration is overestimated on few samples.

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
    codes, proba, weight = _validate(y_true, y_proba, labels, pos_label, sample_weight)
    score = refined = 0.0
    for confidence, hit in _events(codes, proba.astype(np.float64), "classwise"):
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

    # The loss is convex in 1/T, so its slope has at most one root. Where every
    # prediction is right the loss has only an infimum, at T = 0, which a large 1/T
    # reaches: the slope underflows to zero there.
    if slope(0.0) >= 0:
        best = 0.0
    else:
        high = 1.0
        while slope(high) < 0:
            high *= 2
        best = brentq(slope, 0.0, high, xtol=1e-12)
    return weight @ (logsumexp(best * logits, axis=1) - best * chosen)


@validate_params(_COMMON, prefer_skip_nested_validation=True)
def log_loss_decomposition(
    y_true, y_proba, *, labels=None, pos_label=None, sample_weight=None
) -> ScoreDecomposition:
    r"""Log loss split into miscalibration and refinement by temperature scaling.

    Parameters
    ----------
    y_true, y_proba, labels, pos_label, sample_weight
        As in :func:`expected_calibration_error`.

    Returns
    -------
    decomposition : ScoreDecomposition
        The `score`, equal to :func:`sklearn.metrics.log_loss`, its
        `miscalibration`, never negative, and its `refinement`.

    See Also
    --------
    brier_decomposition : The same for the Brier score.

    Notes
    -----
    Miscalibration is the loss that the best recalibration gains, and refinement the
    loss that remains [1]_:

    .. math:: \mathrm{refinement} = \min_{T > 0} E[-\log
        \mathrm{softmax}(\log p / T)_y].

    The log loss is not a sum over classes, so isotonic regression cannot split it
    as it does the Brier score. One temperature [2]_ serves any number of classes and
    hardly overfits, but it sees only over- and underconfidence common to all
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
    codes, proba, weight = _validate(y_true, y_proba, labels, pos_label, sample_weight)
    eps = np.finfo(proba.dtype).eps
    logits = np.log(np.clip(proba, eps, 1 - eps), dtype=np.float64)
    score = np.average(-logits[np.arange(len(codes)), codes], weights=weight)
    return _decomposition(score, _tempered_log_loss(logits, codes, weight))


class _ClassAwareScorer(_Scorer):
    """A scorer, as of make_scorer, that tells its metric the estimator's classes.

    The labels of a test fold are not enough: a class may be absent from it.
    """

    def _score(self, method_caller, estimator, X, y_true, **kwargs):
        if "labels" not in self._kwargs and hasattr(estimator, "classes_"):
            kwargs.setdefault("labels", estimator.classes_)
        return super()._score(method_caller, estimator, X, y_true, **kwargs)


def _miscalibration(
    y_true, y_proba, *, split, labels=None, pos_label=None, sample_weight=None
):
    return split(
        y_true, y_proba, labels=labels, pos_label=pos_label, sample_weight=sample_weight
    ).miscalibration


def _negated(metric, **kwargs):
    return _ClassAwareScorer(metric, -1, kwargs, response_method="predict_proba")


_SCORERS = {
    "neg_brier_miscalibration": _negated(_miscalibration, split=brier_decomposition),
    "neg_classwise_calibration_error": _negated(
        expected_calibration_error, multiclass="classwise"
    ),
    "neg_expected_calibration_error": _negated(expected_calibration_error),
    "neg_log_loss_miscalibration": _negated(
        _miscalibration, split=log_loss_decomposition
    ),
    "neg_smooth_calibration_error": _negated(smooth_calibration_error),
}


def get_scorer_names() -> list[str]:
    """Return the names that :func:`get_scorer` knows, scikit-learn's included.

    Returns
    -------
    names : list of str
        The sorted names.

    Examples
    --------
    >>> from skbsd.metrics import get_scorer_names
    >>> [name for name in get_scorer_names() if "calibration" in name]
    ['neg_brier_miscalibration', 'neg_classwise_calibration_error', ...]
    """
    return sorted({*_SCORERS, *sklearn.metrics.get_scorer_names()})


def get_scorer(scoring):
    """Return a scorer by its name, of this module or of scikit-learn.

    Parameters
    ----------
    scoring : str, callable or None
        One of :func:`get_scorer_names`. A callable or None is returned as it is.

    Returns
    -------
    scorer : callable
        A copy of the scorer, for the `scoring` parameter of scikit-learn. Errors
        are negated: greater is better.

    Raises
    ------
    ValueError
        If there is no scorer of that name.

    See Also
    --------
    sklearn.metrics.get_scorer : Scikit-learn's own, which knows only its own names.

    Notes
    -----
    The scorers of this module take the labels from the estimator's ``classes_``, so
    that a class may be absent from a test fold.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from skbsd.metrics import get_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scoring = get_scorer("neg_expected_calibration_error")
    >>> cross_val_score(GaussianNB(), X, y, scoring=scoring).round(3)
    array([...])
    """
    if isinstance(scoring, str):
        if scoring in _SCORERS:
            return copy.deepcopy(_SCORERS[scoring])
        names = get_scorer_names()
        if scoring not in names:
            raise ValueError(
                f"{scoring!r} is not the name of a scorer, expected one of {names}."
            )
    return sklearn.metrics.get_scorer(scoring)
