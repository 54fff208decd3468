"""The computations behind a reliability diagram."""

from numbers import Integral, Real

import numpy as np
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from .._bootstrap import bootstrap
from .._checks import check_predicts_proba
from .._proba import binary_events, group_sums, validate
from ..metrics import _quantile_bins, _uniform_bins, calibration_curve

_BOOTSTRAP = {
    "n_bootstraps": [Interval(Integral, 0, None, closed="left")],
    "confidence_level": [Interval(Real, 0, 1, closed="neither")],
    "random_state": ["random_state"],
}


def _curve_intervals(confidence, hit, weight, n_bins, strategy, **resampling):
    """Return intervals of the accuracy in each non-empty bin, and of the ECE.

    The bins stay where they are; which samples there are varies.
    """
    if strategy == "uniform":
        index, _ = _uniform_bins(confidence, n_bins)
    else:
        index, _ = _quantile_bins(confidence, weight, n_bins)
    bins, index = np.unique(index, return_inverse=True)

    def statistics(weight):
        count = group_sums(index, weight, len(bins))
        correct = group_sums(index, weight * hit, len(bins))
        gaps = np.abs(correct - group_sums(index, weight * confidence, len(bins)))
        accuracy = np.divide(
            correct, count, out=np.full(len(bins), np.nan), where=count > 0
        )
        return np.append(accuracy, gaps.sum() / count.sum())

    # Limits of the basic interval may lie outside the statistics' range.
    interval = np.clip(bootstrap(statistics, weight, **resampling), 0, 1)
    return {"accuracy_interval": interval[:, :-1], "ece_interval": interval[:, -1]}


def curve_of_estimator(caller: str, estimator, X, y, *, pos_label, **options) -> dict:
    """Return the arguments of a display of a fitted classifier, on some data."""
    check_predicts_proba(estimator, "the diagram")
    y_proba = estimator.predict_proba(X)
    return curve_of_classes(
        caller, estimator.classes_, y, y_proba, pos_label=pos_label, **options
    )


def curve_of_classes(caller: str, labels, y, y_proba, *, pos_label, **options) -> dict:
    """Return the arguments of a display of probabilities in the order of `classes_`."""
    if pos_label is not None and len(labels) == 2 and labels[0] == pos_label:
        # The positive class comes second.
        y_proba, labels = np.asarray(y_proba)[:, ::-1], labels[::-1]
    return curve_of_predictions(
        caller, y, y_proba, labels=labels, pos_label=pos_label, **options
    )


def curve_of_predictions(
    caller: str,
    y_true,
    y_proba,
    *,
    n_bins,
    strategy,
    labels,
    pos_label,
    sample_weight,
    n_bootstraps,
    confidence_level,
    random_state,
) -> dict:
    """Return the arguments of a display of predicted probabilities."""
    resampling = {"confidence_level": confidence_level, "random_state": random_state}
    validate_parameter_constraints(
        _BOOTSTRAP, {"n_bootstraps": n_bootstraps, **resampling}, caller
    )
    multiclass = "top-label" if pos_label is None else "classwise"
    curve = calibration_curve(
        y_true,
        y_proba,
        n_bins=n_bins,
        strategy=strategy,
        multiclass=multiclass,
        labels=labels,
        pos_label=pos_label,
        sample_weight=sample_weight,
    )
    if pos_label is not None:
        curve = curve[1]
    # Computed from the points themselves, so that diagram and figure agree.
    ece = np.average(np.abs(curve.accuracy - curve.confidence), weights=curve.count)
    shown = {**vars(curve), "ece": float(ece), "pos_label": pos_label}
    if n_bootstraps:
        codes, proba, weight = validate(
            y_true, y_proba, labels, pos_label, sample_weight
        )
        # Of two classes the positive one comes second.
        *_, (confidence, hit) = binary_events(codes, proba, multiclass)
        resampling["n_resamples"] = n_bootstraps
        shown |= _curve_intervals(
            confidence, hit, weight, n_bins, strategy, **resampling
        )
    return shown
