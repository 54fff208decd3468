"""The fraction of wrong labels, overall, by class and by pair, with intervals."""

from copy import copy
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params

from ._bootstrap import bootstrap
from ._checks import fitted_classifier
from ._label_model import (
    LEAST_PER_CLASS,
    MOST_CLASSES,
    Fitted,
    Likelihood,
    Model,
)
from ._proba import group_sums

# Smallest normal probability in single precision, approximately.
_LEAST_PROBA = 1e-38
# The fit of a resample starts at the estimate, which is close, so few steps suffice.
_MAX_STEPS = 12
# Most probabilities in a resample. For more, a part of the samples is resampled.
_MOST_PROBA = 200_000


@dataclass(frozen=True, eq=False)
class NoiseRates:
    """Estimated fractions of wrong labels, with confidence intervals.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The classes of the estimator.
    n_samples : int
        Number of training samples with an out-of-fold prediction.
    n_labels : ndarray of int of shape (n_classes,)
        Of these, the number that are labelled as each class.
    rate : float
        Fraction of all labels that are wrong, in [0, 1].
    interval : ndarray of shape (2,)
        Lower and upper limit of `rate`.
    by_class : ndarray of shape (n_classes,)
        Fraction of the labels of each class that are wrong, in [0, 1]. NaN for a class
        without labels.
    by_class_interval : ndarray of shape (2, n_classes)
        Lower and upper limits of `by_class`.
    pairs : ndarray of int of shape (n_pairs, 2)
        Indices in `classes` of the true class and of the given label of the most
        frequent errors, the most frequent ones first.
    by_pair : ndarray of shape (n_pairs,)
        For each pair, the fraction of the samples with this label whose true class is
        the other one, in [0, 1].
    by_pair_interval : ndarray of shape (2, n_pairs)
        Lower and upper limits of `by_pair`.
    confidence_level : float
        Confidence level of the intervals.

    See Also
    --------
    estimate_noise_rates : Computes them for a fitted classifier.

    Examples
    --------
    >>> import numpy as np
    >>> from skbsd.label_noise import NoiseRates
    >>> rates = NoiseRates(
    ...     classes=np.array(["cat", "dog"]),
    ...     n_samples=100,
    ...     n_labels=np.array([40, 60]),
    ...     rate=0.13,
    ...     interval=np.array([0.08, 0.19]),
    ...     by_class=np.array([0.1, 0.15]),
    ...     by_class_interval=np.array([[0.05, 0.1], [0.17, 0.21]]),
    ...     pairs=np.array([[0, 1], [1, 0]]),
    ...     by_pair=np.array([0.15, 0.1]),
    ...     by_pair_interval=np.array([[0.1, 0.05], [0.21, 0.17]]),
    ...     confidence_level=0.95,
    ... )
    >>> rates.classes[rates.by_class.argmax()]
    np.str_('dog')
    """

    classes: NDArray
    n_samples: int
    n_labels: NDArray
    rate: float
    interval: NDArray
    by_class: NDArray
    by_class_interval: NDArray
    pairs: NDArray
    by_pair: NDArray
    by_pair_interval: NDArray
    confidence_level: float


@validate_params(
    {
        "estimator": "no_validation",
        "n_pairs": [Interval(Integral, 0, None, closed="left")],
        "n_bootstraps": [Interval(Integral, 1, None, closed="left")],
        "confidence_level": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def estimate_noise_rates(
    estimator,
    *,
    n_pairs=20,
    n_bootstraps=200,
    confidence_level=0.95,
    random_state=None,
) -> NoiseRates:
    r"""Estimate the fractions of wrong labels, with bootstrap confidence intervals.

    Parameters
    ----------
    estimator : BSDClassifier or Pipeline
        An estimator fitted with calibration, so that it has out-of-fold predictions.
    n_pairs : int, default=20
        Number of pairs of true class and given label to report, at most.
    n_bootstraps : int, default=200
        Number of resamples of the out-of-fold predictions. Each fits the model of label
        errors again, which takes some hundredths of a second for 2,000 samples of 10
        classes.
    confidence_level : float, default=0.95
        Confidence level of the intervals, in (0, 1).
    random_state : int, RandomState instance or None, default=None
        Determines the resamples.

    Returns
    -------
    NoiseRates
        Rates and intervals: of all labels, by class, and by pair of classes.

    Raises
    ------
    NotFittedError
        If the estimator was not fitted.
    ValueError
        If the estimator is not a BSDClassifier, or has no out-of-fold predictions.

    See Also
    --------
    find_label_issues : The samples whose labels are probably wrong.
    skbsd.display.NoiseRateDisplay : Plots these rates.

    Notes
    -----
    If `fit` found wrong labels, a transition matrix C is fitted to all out-of-fold
    predictions p, together with a temperature; or, if there are two classes, more than
    100, or fewer than 20 samples per class, errors that hit all classes equally. (For
    the `calibration_`, `fit` prefers such errors as long as they explain the labels.
    They would spread errors between two classes over all of them.) Sample i is
    then of class k with probability :math:`r_{ik} \propto p_{ik} C_{k y_i}`, and its
    label is wrong with probability :math:`1 - r_{i y_i}`. The rates are means of these
    probabilities. `noise_rate_` belongs to the model of the `calibration_`, and is
    estimated only from the out-of-fold predictions of the chosen training rule, so it
    differs slightly from `rate`.

    The intervals are percentile intervals of the bootstrap over the samples, cut to
    [0, 1]. For large data, a random part is resampled, and the deviations are scaled to
    all of it. The intervals cover the choice of the samples and the fit of the model.
    They do not cover a network that is wrong in a systematic way, nor an error model
    that does not fit: labels that a hard task makes unpredictable have the same
    likelihood as wrong ones. If `fit` found no wrong labels, the rates are zero, and
    the upper limits are those of errors that hit all classes equally.

    The coverage of 95 % intervals was measured with ``benchmarks/noise_rates.py``, with
    few repeats. With predictions drawn from the model, 500 samples and four classes,
    intervals contained the true rate in 97 % of the cases for a rate of 15 %, and in
    85 % for a rate of 3 %. A class whose labels are all correct gets a small positive
    rate, and its interval often excludes zero. With fits to 600 digits, all six
    intervals contained the true rate when 10 % of the labels were flipped
    symmetrically, and three of six when 30 % were flipped within pairs of classes: such
    errors are partly learned, and underestimated.

    All samples count equally, whatever `sample_weight` was passed to `fit`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skbsd import BSDClassifier
    >>> from skbsd.label_noise import estimate_noise_rates, flip_labels
    >>> X, y = load_digits(return_X_y=True)
    >>> labels, flipped = flip_labels(y, 0.1, random_state=0)
    >>> model = BSDClassifier(max_epochs=20, random_state=0).fit(X / 16, labels)
    >>> rates = estimate_noise_rates(model, n_bootstraps=50, random_state=0)
    >>> bool(rates.interval[0] < 0.1 < rates.interval[1])
    True
    >>> rates.by_class.shape
    (10,)
    """
    classifier = fitted_classifier(estimator, "posterior_")
    codes, proba = _out_of_fold(classifier)
    transition = classifier.calibration_.transition
    n, n_classes = proba.shape
    # A separate generator: with the same seed, the first resample would consist of the
    # same draws as the labels that `flip_labels` flips.
    rng = np.random.RandomState(check_random_state(random_state).randint(2**31 - 1))
    errors, weight = _kind(transition, n, n_classes), np.ones(n)
    model = _LabelErrors(codes, proba, errors)
    values, n_labels = model.fit(weight), model.count(weight)
    found = model.rates(values, weight)
    pairs = _most_frequent(found * n_labels, n_pairs)
    limits = _limits(model, values, pairs, n_bootstraps, confidence_level, rng)
    if transition is None:
        found = np.where(np.isnan(found), np.nan, 0.0)
        limits[0] = np.where(np.isnan(limits[0]), np.nan, 0.0)
    split = np.cumsum([1, n_classes])
    (rate,), by_class, by_pair = np.split(_summary(found, n_labels, pairs), split)
    interval, of_class, of_pair = np.split(limits, split, axis=1)
    return NoiseRates(
        classes=classifier.classes_,
        n_samples=n,
        n_labels=n_labels.astype(int),
        rate=float(rate),
        interval=interval[:, 0],
        by_class=by_class,
        by_class_interval=of_class,
        pairs=pairs,
        by_pair=by_pair,
        by_pair_interval=of_pair,
        confidence_level=confidence_level,
    )


def _out_of_fold(classifier: Any) -> tuple[NDArray, NDArray]:
    """Return label codes and predictions of the samples that have predictions.

    Parameters
    ----------
    classifier : BSDClassifier
    """
    if getattr(classifier, "calibration_", None) is None:
        raise ValueError(
            "the classifier has no out-of-fold predictions for an estimate of label "
            f"errors: it was fitted with calibration={classifier.calibration!r}, or on "
            "too few samples. Fit it with calibration='auto'."
        )
    proba = getattr(classifier, "out_of_fold_proba_", None)
    if proba is None:
        raise ValueError(
            "the classifier has a calibration_, but no out_of_fold_proba_: with "
            "compact beliefs, or beliefs in a file, predictions of held-out samples "
            "are not kept, and neither are those of an external validation set. Only "
            "noise_rate_ and calibration_.noise_rate_interval are available."
        )
    known = np.isfinite(proba[:, 0])
    codes = classifier.posterior_.labels.cpu().numpy()
    return codes[known], proba[known].astype(float)


def _kind(transition: NDArray | None, n: int, n_classes: int) -> str:
    """Return the kind of errors to fit.

    This is a matrix if the samples suffice, even if symmetric errors explained the
    labels well enough for `fit`. Symmetric errors would spread errors between two
    classes over all of them.
    """
    is_enough = n >= LEAST_PER_CLASS * n_classes and 2 < n_classes <= MOST_CLASSES
    return "matrix" if transition is not None and is_enough else "symmetric"


class _LabelErrors:
    """A model of label errors, to be fitted to weighted out-of-fold predictions.

    Parameters
    ----------
    codes : ndarray of int of shape (n_samples,)
        Codes of the labels.
    proba : ndarray of shape (n_samples, n_classes)
        Calibrated predictions of true labels.
    errors : {"symmetric", "matrix"}
    """

    def __init__(self, codes: NDArray, proba: NDArray, errors: str):
        self.codes = codes
        self.logits = np.log(np.maximum(proba, _LEAST_PROBA))
        self.model = Model(proba.shape[1], False, errors)

    def part(self, rows: NDArray) -> "_LabelErrors":
        """Return the same model for some of the samples."""
        part = copy(self)
        part.codes, part.logits = self.codes[rows], self.logits[rows]
        return part

    def count(self, weight: NDArray) -> NDArray[np.float64]:
        """Count the labels of each class."""
        return group_sums(self.codes, weight, self.model.n_classes)

    def fit(self, weight: NDArray, start: NDArray | None = None) -> NDArray:
        """Return the parameters that maximise the penalised likelihood.

        Parameters
        ----------
        weight : ndarray of shape (n_samples,)
        start : ndarray, default=None
            Initial parameters, close to the solution.
        """
        likelihood = Likelihood(
            *map(torch.from_numpy, (self.logits, self.codes, weight))
        )
        n_steps = _MAX_STEPS
        if start is None:
            start, n_steps = self.model.start(Fitted(1.0, None, None, 0.0)), 200
        return minimize(
            likelihood.objective,
            start,
            args=(self.model,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": n_steps, "ftol": 1e-8},
        ).x

    def rates(self, values: NDArray, weight: NDArray) -> NDArray[np.float64]:
        """Return the fraction of the labels of class j whose true class is i != j.

        Parameters
        ----------
        values : ndarray
            Parameters.
        weight : ndarray of shape (n_samples,)

        Returns
        -------
        ndarray of shape (n_classes, n_classes)
            Columns of classes without labels are NaN.
        """
        codes, n_classes = self.codes, self.model.n_classes
        log_t, _, transition = self.model.parts(values)
        assert transition is not None
        true = softmax(self.logits * np.exp(-log_t), axis=1) * transition.T[codes]
        true *= (weight / true.sum(axis=1))[:, np.newaxis]
        true[np.arange(len(codes)), codes] = 0
        sums = np.zeros((n_classes, n_classes))
        np.add.at(sums, codes, true)
        total = self.count(weight)
        rates = np.full_like(sums, np.nan)
        return np.divide(sums.T, total, out=rates, where=total > 0)


def _most_frequent(counts: NDArray, n_pairs: int) -> NDArray[np.intp]:
    """Return the indices of the largest entries, of shape (n_entries, 2)."""
    counts = np.nan_to_num(counts)
    largest = np.argsort(-counts, axis=None, kind="stable")[:n_pairs]
    largest = largest[counts.ravel()[largest] > 0]
    return np.array(np.unravel_index(largest, counts.shape)).T


def _summary(rates: NDArray, n_labels: NDArray, pairs: NDArray) -> NDArray:
    """Return the rate of all labels, those by class, and those of some pairs."""
    by_class = rates.sum(axis=0)
    overall = np.nansum(by_class * n_labels) / n_labels.sum()
    return np.concatenate([[overall], by_class, rates[tuple(pairs.T)]])


def _limits(
    model: _LabelErrors, values, pairs, n_bootstraps, confidence_level, rng
) -> NDArray:
    """Return the lower and upper limits of a summary of the rates."""
    n, n_classes = model.logits.shape
    size = min(n, max(_MOST_PROBA // n_classes, 20 * n_classes))
    part = model
    if size < n:
        part = model.part(rng.choice(n, size, replace=False))

    def statistic(weight):
        used = weight > 0
        drawn, weight = part.part(used), weight[used]
        rates = drawn.rates(drawn.fit(weight, values), weight)
        return _summary(rates, drawn.count(weight), pairs)

    weight = np.ones(size)
    limits = bootstrap(
        statistic,
        weight,
        n_resamples=n_bootstraps,
        confidence_level=confidence_level,
        random_state=rng,
    )
    # Convert the basic interval, 2 t - q, back to the quantiles q: rates near zero have
    # a skewed distribution, for which percentile intervals have better coverage. The
    # standard deviation of a mean decreases with the root of the number of samples.
    deviations = (statistic(weight) - limits[::-1]) * np.sqrt(size / n)
    everything = np.ones(n)
    value = _summary(model.rates(values, everything), model.count(everything), pairs)
    return np.clip(value + deviations, 0, 1)
