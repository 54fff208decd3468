"""Simulate wrong labels for experiments, and find wrong labels in data.

During training, each sample's posterior adds up the network's predictions for it. This
evidence, without the prior for the given label, is based largely on the other samples.
A sample is probably mislabelled if its evidence favours another class than its label.
"""

from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch, check_random_state, column_or_1d

from ._checks import fitted_classifier
from ._noise_rates import NoiseRates, estimate_noise_rates

__all__ = [
    "NoiseRates",
    "estimate_noise_rates",
    "find_label_issues",
    "flip_labels",
    "label_quality",
]


def flip_labels(y, rate=None, kind="symmetric", *, random_state=None):
    """Replace a fraction of the labels by wrong ones, for experiments.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        True labels of any kind.
    rate : float, default=None
        Fraction of the labels to change, in [0, 1]: of all labels or of each class,
        depending on `kind`. Must be None if `kind` is a matrix.
    kind : {"symmetric", "asymmetric", "pairs"}, mapping or array-like, \
            default="symmetric"
        How the new labels are chosen. Classes are in sorted order, and the number of
        changed labels is rounded to a whole number:

        - "symmetric": change the fraction `rate` of all labels, drawn without
          replacement. Each becomes one of the *other* classes with equal probability,
          so exactly this fraction is wrong [1]_.
        - "asymmetric": change the fraction `rate` of each class to the next class, and
          of the last class to the first [3]_.
        - "pairs": change the fraction `rate` of each class to the other class of its
          pair: the first and the second, the third and the fourth and so on. If the
          number of classes is odd, the last one keeps its labels.
        - a mapping from class to class: change the fraction `rate` of each class among
          its keys to the class that it is mapped to, which must be different [2]_.
        - a matrix of shape (n_classes, n_classes) whose rows sum to one: each label of
          class i becomes class j with probability ``kind[i, j]``. It is unchanged with
          probability ``kind[i, i]``: only with this kind can a drawn label be the true
          one.
    random_state : int, RandomState instance or None, default=None
        Pass an int for reproducible draws.

    Returns
    -------
    labels : ndarray of shape (n_samples,)
        The new labels, with the dtype of `y`.
    flipped : ndarray of bool of shape (n_samples,)
        True for each sample whose label differs from `y`.

    Raises
    ------
    ValueError
        If `rate` is outside [0, 1], or is given together with a matrix; if `kind` is
        unknown, names classes that are not in `y`, or is a matrix whose rows are not
        probabilities.

    References
    ----------
    .. [1] D. Angluin, P. Laird, "Learning From Noisy Examples", Machine Learning 2,
       1988.
    .. [2] G. Patrini et al., "Making Deep Neural Networks Robust to Label Noise",
       CVPR 2017; also for transition matrices.
    .. [3] B. Han et al., "Co-teaching", NeurIPS 2018.

    Examples
    --------
    >>> from skbsd.label_noise import flip_labels
    >>> y = ["cat", "dog"] * 5
    >>> labels, flipped = flip_labels(y, 0.2, random_state=0)
    >>> int(flipped.sum())
    2
    >>> labels, flipped = flip_labels(y, 0.4, {"cat": "dog"}, random_state=0)
    >>> (labels == "dog").sum()
    np.int64(7)
    """
    y = column_or_1d(np.asarray(y))
    rng = check_random_state(random_state)
    classes, codes = np.unique(y, return_inverse=True)
    if isinstance(kind, Mapping | str):
        if rate is None or not 0 <= rate <= 1:
            raise ValueError(f"rate must lie in [0, 1], got {rate!r}.")
        if isinstance(kind, str) and kind == "symmetric":
            new = _flip_symmetric(codes, len(classes), rate, rng)
        else:
            new = _flip_to(codes, _counterparts(kind, classes), rate, rng)
    else:
        if rate is not None:
            raise ValueError(
                f"rate={rate!r} has no meaning for a transition matrix, whose diagonal "
                "is the fraction of unchanged labels; pass rate=None."
            )
        new = _flip_by_matrix(codes, _check_matrix(kind, len(classes)), rng)
    return classes[new], new != codes


def _flip_symmetric(codes, n_classes: int, rate: float, rng) -> np.ndarray:
    n = round(rate * len(codes))
    if n and n_classes < 2:
        raise ValueError(
            f"y has one class only, but rate={rate:g} needs another class for labels."
        )
    rows = rng.choice(len(codes), n, replace=False)
    new = codes.copy()
    # A step of 1 to n_classes - 1, modulo n_classes, never returns the same class.
    new[rows] = (new[rows] + rng.randint(1, max(n_classes, 2), n)) % n_classes
    return new


def _counterparts(kind, classes: np.ndarray) -> dict[int, int]:
    """Return the new class of each class, both as positions in the sorted order."""
    n = len(classes)
    if isinstance(kind, Mapping):
        place = {label: i for i, label in enumerate(classes.tolist())}
        unknown = [c for pair in kind.items() for c in pair if c not in place]
        same = [before for before, after in kind.items() if before == after]
        if unknown or same:
            raise ValueError(
                f"kind maps {dict(kind)}, but each class must be mapped to a different "
                f"one of y's classes {classes.tolist()}; correct "
                f"{(unknown + same)[0]!r}."
            )
        return {place[before]: place[after] for before, after in kind.items()}
    if kind == "asymmetric":
        return {i: (i + 1) % n for i in range(n)} if n > 1 else {}
    if kind == "pairs":
        return {i: i ^ 1 for i in range(n) if i ^ 1 < n}
    raise ValueError(
        "kind must be 'symmetric', 'asymmetric', 'pairs', a mapping from class to "
        f"class or a transition matrix, got {kind!r}."
    )


def _flip_to(codes, counterparts: dict[int, int], rate: float, rng) -> np.ndarray:
    new = codes.copy()
    for before, after in counterparts.items():
        rows = np.flatnonzero(codes == before)
        new[rng.choice(rows, round(rate * len(rows)), replace=False)] = after
    return new


def _check_matrix(kind, n_classes: int) -> np.ndarray:
    matrix = np.asarray(kind, dtype=float)
    if matrix.shape != (n_classes, n_classes):
        raise ValueError(
            f"a transition matrix must have shape ({n_classes}, {n_classes}), a row "
            f"and a column for each class of y, got {matrix.shape}."
        )
    if not ((matrix >= 0).all() and np.allclose(matrix.sum(axis=1), 1)):
        raise ValueError(
            "each row of a transition matrix must be probabilities that sum to one, "
            f"got rows that sum to {matrix.sum(axis=1)} and a smallest entry of "
            f"{matrix.min()}."
        )
    return matrix


def _flip_by_matrix(codes, matrix: np.ndarray, rng) -> np.ndarray:
    # The first class whose cumulated probability exceeds a uniform draw.
    below = matrix.cumsum(axis=1)[codes] <= rng.uniform(size=(len(codes), 1))
    return np.minimum(below.sum(axis=1), len(matrix) - 1)


def label_quality(estimator) -> np.ndarray:
    """Score each training label by the network's predictions during training.

    Parameters
    ----------
    estimator : BSDClassifier or Pipeline
        Fitted, with a finite prior strength.

    Returns
    -------
    ndarray of shape (n_samples,)
        Score of each row of the X given to `fit`, in [0, 1]; low for labels that are
        probably wrong. NaN for samples without evidence, such as those of weight zero.

    Raises
    ------
    NotFittedError
        If the estimator was not fitted.
    ValueError
        If it is not a BSDClassifier, or has no evidence at all: its prior strength is
        infinite, or so large that evidence is lost to rounding.

    Notes
    -----
    The score is the given label's share of the sample's evidence. The evidence is the
    weighted sum of the predictions in the sample's posterior, without the prior, which
    belongs to the label itself. Confident learning calls the corresponding value from
    cross-validation self-confidence [1]_; here it is averaged over training instead of
    computed by folds. Predictions for training samples are biased towards their labels,
    the more so the more the network has memorised, but the ranking remains useful.

    References
    ----------
    .. [1] C. Northcutt, L. Jiang, I. Chuang, "Confident Learning: Estimating
       Uncertainty in Dataset Labels", JAIR 70, 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.metrics import roc_auc_score
    >>> from skbsd import BSDClassifier
    >>> from skbsd.label_noise import flip_labels, label_quality
    >>> X, y = load_digits(return_X_y=True)
    >>> labels, flipped = flip_labels(y, 0.1, random_state=0)
    >>> model = BSDClassifier(prior_strength="noisy", max_epochs=10, random_state=0)
    >>> quality = label_quality(model.fit(X / 16, labels))
    >>> roc_auc_score(flipped, 1 - quality) > 0.99
    True
    """
    return _Shares(fitted_classifier(estimator, "posterior_")).of_labels()


def find_label_issues(estimator, *, threshold="auto"):
    r"""List the training samples whose labels are probably wrong, worst first.

    Parameters
    ----------
    estimator : BSDClassifier or Pipeline
        Fitted, with a finite prior strength.
    threshold : {"auto", "confident", "mixture"} or float, default="auto"
        Rule by which samples are listed. The named rules derive it from the data, see
        Notes. A number in [0, 1] lists the samples whose :func:`label_quality` is below
        it, and for which another class has more evidence than the label.

    Returns
    -------
    DataFrame or Bunch
        One row per issue, ordered by `given_mass`; a Bunch of arrays of the same names
        if pandas is not installed:

        - `row`: position in the X given to `fit`, for `iloc` of a DataFrame;
        - `given_label`, `suggested_label`;
        - `given_mass`, `suggested_mass`: the shares of these labels in the sample's
          evidence, in [0, 1]. The first is the :func:`label_quality`.

    Raises
    ------
    NotFittedError
        If the estimator was not fitted.
    ValueError
        If it is not a BSDClassifier or has no evidence, or if `threshold` is invalid.

    Notes
    -----
    "auto" lists the labels that are more probably wrong than right. The probability
    that sample i belongs to class k is proportional to
    :math:`p_{ik} \, s_{ik} \, C_{k y_i}`: the predicted probability by a network that
    was not trained on the sample, the class's share of the sample's evidence, and the
    probability that a sample of class k is labelled :math:`y_i`, as estimated for the
    `calibration_`. If the calibration found no wrong labels, none are listed; otherwise
    about as many as it found. An estimator that was fitted with ``calibration=None``
    has no such estimates, and "confident" is used instead.

    "confident" is the rule of confident learning [1]_, equations 1 and 2, with the
    evidence of one training in place of cross-validated probabilities. The threshold of
    a class is the mean share of evidence for it among the samples with this label. A
    sample is assigned to the class with the largest share among those that reach their
    thresholds, and is an issue if this is not its label. The rule needs no verified
    labels and no estimate of how many are wrong. A network that has memorised wrong
    labels agrees with them: the list becomes short and misses most of them, while the
    ranking by label quality remains useful. In that case fit with fewer epochs or with
    augmentation, or use "mixture".

    "mixture" fits two normal distributions to the margins, the logarithms of the
    ratio of the label's evidence to that of the strongest other class [2]_. It lists
    the samples that more probably belong to the lower distribution [3]_, unless this
    one is the larger of the two. It also finds memorised wrong labels, as long as they
    were learnt later than the others. It assumes that many labels are wrong. If only a
    few are, it may list a third of all samples, those that were hard to learn; if a
    class is rare, it may list that class.

    References
    ----------
    .. [1] C. Northcutt, L. Jiang, I. Chuang, "Confident Learning: Estimating
       Uncertainty in Dataset Labels", JAIR 70, 2021.
    .. [2] G. Pleiss et al., "Identifying Mislabeled Data using the Area Under the
       Margin Ranking", NeurIPS 2020.
    .. [3] E. Arazo et al., "Unsupervised Label Noise Modeling and Loss Correction",
       ICML 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skbsd import BSDClassifier
    >>> from skbsd.label_noise import find_label_issues, flip_labels
    >>> X, y = load_digits(return_X_y=True)
    >>> labels, flipped = flip_labels(y, 0.1, random_state=0)
    >>> model = BSDClassifier(prior_strength="noisy", max_epochs=10, random_state=0)
    >>> issues = find_label_issues(model.fit(X / 16, labels))
    >>> bool(flipped[issues["row"][:100]].all())
    True
    """
    classifier = fitted_classifier(estimator, "posterior_")
    if threshold == "auto" and getattr(classifier, "calibration_", None) is None:
        threshold = "confident"
    is_number = isinstance(threshold, Real) and 0 <= float(threshold) <= 1
    if not is_number and not (isinstance(threshold, str) and threshold in _RULES):
        raise ValueError(
            f"threshold must be one of {sorted(_RULES)} or a number in "
            f"[0, 1], got {threshold!r}."
        )
    shares = _Shares(classifier)
    codes, given = shares.codes, shares.of_labels()
    find = _strongest_class if is_number else _RULES[threshold](shares, given)
    suggested = np.empty(len(codes), np.int64)
    suggested_mass = np.empty(len(codes))
    for rows, part in shares.parts():
        found = find(rows, part)
        suggested[rows] = found
        suggested_mass[rows] = part[np.arange(len(part)), found]
    listed = given < threshold if is_number else suggested >= 0  # never of NaN
    issues = np.flatnonzero(listed & (suggested != codes))
    issues = issues[np.argsort(given[issues], kind="stable")]
    columns = {
        "row": issues,
        "given_label": classifier.classes_[codes[issues]],
        "suggested_label": classifier.classes_[suggested[issues]],
        "given_mass": given[issues],
        "suggested_mass": suggested_mass[issues],
    }
    try:
        import pandas as pd
    except ImportError:
        return Bunch(**columns)
    return pd.DataFrame(columns)


# Number of evidence values that are processed at a time.
_PART = 2**22

# From a slice of rows and their shares: the code of a class for each row, or -1.
_Find = Callable[[slice, np.ndarray], np.ndarray]


class _Shares:
    """The share of each class in each sample's evidence, in parts of the samples.

    Parameters
    ----------
    classifier : BSDClassifier

    Attributes
    ----------
    codes : ndarray of shape (n_samples,)
        Class codes of the labels.
    n_classes : int
    """

    def __init__(self, classifier: Any):
        if np.isinf(classifier.prior_strength_):
            raise ValueError(
                "prior_strength=inf trains with cross-entropy, and stores no "
                "predictions to compare labels with; fit with prior_strength='noisy'."
            )
        posterior = classifier.posterior_
        if posterior._has_lost_evidence:
            raise ValueError(
                f"prior_strength={posterior.prior_strength:g} is so large that "
                f"predictions were lost to rounding in {posterior.dtype}; fit with "
                "prior_strength='noisy'."
            )
        self.classifier = classifier
        self.codes = posterior.labels.cpu().numpy()
        self.n_classes = posterior.n_classes

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield slices of samples and their shares, NaN if there is no evidence."""
        posterior = self.classifier.posterior_
        visits = posterior.visits.cpu().numpy()
        size = max(1, _PART // posterior.n_classes)
        for start in range(0, len(self.codes), size):
            rows = slice(start, min(start + size, len(self.codes)))
            index = torch.arange(rows.start, rows.stop, device=posterior.device)
            evidence = posterior.evidence(index).cpu().double().numpy()
            total = evidence.sum(axis=1, keepdims=True)
            shares = np.full_like(evidence, np.nan)
            np.divide(evidence, total, out=shares, where=total > 0)
            shares[visits[rows] == 0] = np.nan
            yield rows, shares

    def of_labels(self) -> np.ndarray:
        """Return the share of the given label of each sample."""
        own = np.empty(len(self.codes))
        for rows, part in self.parts():
            own[rows] = part[np.arange(len(part)), self.codes[rows]]
        return own


def _strongest_class(rows: slice, shares: np.ndarray) -> np.ndarray:
    return shares.argmax(axis=1)


def _probable_class(shares: _Shares, given: np.ndarray) -> _Find:
    """Find the likeliest other class if a label is probably wrong, else -1.

    Samples without an out-of-fold prediction are judged by their evidence alone.
    """
    classifier, codes = shares.classifier, shares.codes
    transition = classifier.calibration_.transition
    unseen = getattr(classifier, "out_of_fold_proba_", None)

    def find(rows: slice, part: np.ndarray) -> np.ndarray:
        n, labels = len(part), codes[rows]
        if transition is None:
            return np.full(n, -1)
        weight = part
        if unseen is not None:
            weight = part * np.nan_to_num(unseen[rows], nan=1.0)
        weight = weight * transition[:, labels].T
        own = weight[np.arange(n), labels].copy()
        total = weight.sum(axis=1)
        weight[np.arange(n), labels] = -1
        return np.where(own < total / 2, weight.argmax(axis=1), -1)

    return find


def _confident_class(shares: _Shares, given: np.ndarray) -> _Find:
    """Find the class that each sample is assigned to, -1 if there is none."""
    known = np.isfinite(given)
    own = [given[known & (shares.codes == k)] for k in range(shares.n_classes)]
    thresholds = np.array([s.mean() if len(s) else np.inf for s in own])

    def find(rows: slice, part: np.ndarray) -> np.ndarray:
        # Comparisons with NaN are false.
        reached = np.where(part >= thresholds, part, -1)
        return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)

    return find


def _mixture_class(shares: _Shares, given: np.ndarray) -> _Find:
    """Find the strongest other class of samples of the lower component, else -1."""
    from sklearn.mixture import GaussianMixture  # slow to import

    strongest = np.empty(len(given), np.int64)
    other = np.empty(len(given))
    for rows, part in shares.parts():
        at = np.arange(len(part))
        part[at, shares.codes[rows]] = -1.0
        strongest[rows] = part.argmax(axis=1)
        other[rows] = part[at, strongest[rows]]
    known = np.isfinite(other)
    # Replaces shares of zero, whose logarithm is infinite.
    least = np.finfo(np.float32).eps
    logs = [np.log(np.maximum(share, least)) for share in (given, other)]
    margins = (logs[0] - logs[1])[known, np.newaxis]
    found = np.full(len(given), -1)

    def find(rows: slice, part: np.ndarray) -> np.ndarray:
        return found[rows]

    if len(np.unique(margins)) < 2:
        return find
    kinds = GaussianMixture(2, n_init=3, reg_covar=1e-3, random_state=0).fit(margins)
    lowest = kinds.means_.argmin()
    if kinds.weights_[lowest] > 0.5:  # most labels are assumed to be correct
        return find
    # A wide lower component is the more probable one above the other one, too.
    lower = kinds.predict(margins) == lowest
    lower &= margins[:, 0] < kinds.means_.max()
    found[known] = np.where(lower, strongest[known], -1)
    return find


_RULES: dict[str, Callable[[_Shares, np.ndarray], _Find]] = {
    "auto": _probable_class,
    "confident": _confident_class,
    "mixture": _mixture_class,
}
