"""Calibration metrics of probabilistic classifiers, and scorers made of them.

Every metric takes class labels and predicted probabilities as scikit-learn's own
probabilistic metrics do, for two or more classes, with or without weights.

The scorers are negated errors, for the `scoring` parameters of scikit-learn:

- ``neg_brier_miscalibration`` and ``neg_log_loss_miscalibration``, of the
  miscalibration of the two decompositions;
- ``neg_expected_calibration_error`` and ``neg_classwise_calibration_error``, of
  :func:`expected_calibration_error`, for the top label and for each class;
- ``neg_smooth_calibration_error``, of :func:`smooth_calibration_error`.

:func:`get_scorer` returns a copy of each by its name.
"""

import copy
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import sklearn.metrics
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.optimize import brentq
from sklearn.metrics._scorer import _Scorer
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from ._decomposition import (
    ScoreDecomposition,
    brier_decomposition,
    log_loss_decomposition,
)
from ._proba import COMMON, MULTICLASS, binary_events, group_sums, validate

__all__ = [
    "CalibrationCurve",
    "ScoreDecomposition",
    "brier_decomposition",
    "calibration_curve",
    "expected_calibration_error",
    "get_scorer",
    "get_scorer_names",
    "log_loss_decomposition",
    "neg_brier_miscalibration",
    "neg_classwise_calibration_error",
    "neg_expected_calibration_error",
    "neg_log_loss_miscalibration",
    "neg_smooth_calibration_error",
    "smooth_calibration_error",
]

_BINNING = {
    "n_bins": [Interval(Integral, 1, None, closed="left")],
    "strategy": [StrOptions({"uniform", "quantile"})],
}


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """The non-empty bins of a reliability diagram, in increasing confidence.

    Parameters
    ----------
    confidence, accuracy : ndarray of shape (n_nonempty_bins,)
        Mean predicted probability and frequency of the event in each bin.
    count : ndarray of shape (n_nonempty_bins,)
        Number of samples in each bin, or their total weight.
    edges : ndarray of shape (n_nonempty_bins, 2)
        Lower (inclusive) and upper (exclusive) limit of each bin. The last
        quantile bin, and the uniform bin of confidence one, include the upper.

    See Also
    --------
    calibration_curve : What makes one.

    Examples
    --------
    >>> from skbsd.metrics import calibration_curve
    >>> calibration_curve([0, 1, 1, 1], [0.1, 0.4, 0.9, 0.9], n_bins=2)
    CalibrationCurve(confidence=array([...]), accuracy=..., count=..., edges=...)
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.float64]
    edges: NDArray[np.float64]


def _uniform_bins(confidence, n_bins):
    # torch's linspace and single precision put a confidence that lies on an edge in
    # the bin where torchmetrics puts it; numpy's linspace differs in the last bit.
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float32, device="cpu").numpy()
    index = np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1
    return index, np.append(edges, 1.0)


def _quantile_bins(confidence, weight, n_bins):
    values, inverse = np.unique(confidence, return_inverse=True)
    mass = group_sums(inverse, weight)
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
    count = group_sums(index, weight, len(edges) - 1)
    used = count > 0
    mean_confidence, accuracy = (
        group_sums(index, weight * value, len(count))[used] / count[used]
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
    {**COMMON, **_BINNING, **MULTICLASS}, prefer_skip_nested_validation=True
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
    y_true : array-like of shape (n_samples,)
        True class labels.
    y_proba : array-like of shape (n_samples,) or (n_samples, n_classes)
        Predicted probabilities; of the positive class if one-dimensional.
    n_bins : int, default=15
        Number of bins.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width, or of equal weight; equal confidences share a bin.
    multiclass : {"top-label", "classwise"}, default="top-label"
        Bin the probability of the predicted class, or that of each class against the
        rest.
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
    curve : CalibrationCurve or list of CalibrationCurve
        The non-empty bins, of the most probable class if ``multiclass="top-label"``;
        one curve per class, in the order of the columns, if ``"classwise"``. The
        columns of one-dimensional ``y_proba`` are (negative, positive).

    Raises
    ------
    ValueError
        If the probabilities, labels or weights are invalid, or rows of `y_proba`
        do not sum to one.

    See Also
    --------
    expected_calibration_error : The gaps of this curve summed up.
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
    codes, proba, weight = validate(y_true, y_proba, labels, pos_label, sample_weight)
    curves = [
        _curve(confidence, hit, weight, n_bins, strategy)
        for confidence, hit in binary_events(codes, proba, multiclass)
    ]
    return curves[0] if multiclass == "top-label" else curves


@validate_params(
    {
        **COMMON,
        **_BINNING,
        **MULTICLASS,
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
    codes, proba, weight = validate(y_true, y_proba, labels, pos_label, sample_weight)
    errors = [
        _curve_error(_curve(confidence, hit, weight, n_bins, strategy), norm)
        for confidence, hit in binary_events(codes, proba, multiclass)
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
    mass = group_sums(left, residual * (1 - share), n_intervals + 1)
    mass += group_sums(left + 1, residual * share, n_intervals + 1)

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


@validate_params({**COMMON, **MULTICLASS}, prefer_skip_nested_validation=True)
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
    y_true : array-like of shape (n_samples,)
        True class labels.
    y_proba : array-like of shape (n_samples,) or (n_samples, n_classes)
        Predicted probabilities; of the positive class if one-dimensional.
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
    codes, proba, weight = validate(y_true, y_proba, labels, pos_label, sample_weight)
    events = binary_events(codes, proba, multiclass)
    return float(np.mean([_smooth_error(*event, weight) for event in events]))


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


neg_brier_miscalibration = _negated(_miscalibration, split=brier_decomposition)
neg_classwise_calibration_error = _negated(
    expected_calibration_error, multiclass="classwise"
)
neg_expected_calibration_error = _negated(expected_calibration_error)
neg_log_loss_miscalibration = _negated(_miscalibration, split=log_loss_decomposition)
neg_smooth_calibration_error = _negated(smooth_calibration_error)

_SCORERS = {
    "neg_brier_miscalibration": neg_brier_miscalibration,
    "neg_classwise_calibration_error": neg_classwise_calibration_error,
    "neg_expected_calibration_error": neg_expected_calibration_error,
    "neg_log_loss_miscalibration": neg_log_loss_miscalibration,
    "neg_smooth_calibration_error": neg_smooth_calibration_error,
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
