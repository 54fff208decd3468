"""Samples and calls of the metrics that several test files use."""

import inspect

import numpy as np
import pytest
from scipy.special import softmax

from skbsd import metrics
from skbsd.metrics import (
    brier_decomposition,
    calibration_curve,
    expected_calibration_error,
    log_loss_decomposition,
    smooth_calibration_error,
)

STRATEGIES = ("uniform", "quantile")
NORMS = ("l1", "l2", "max")
EVENTS = ("top-label", "classwise")
METRICS = (
    expected_calibration_error,
    calibration_curve,
    smooth_calibration_error,
    brier_decomposition,
    log_loss_decomposition,
)


def numbers(result):
    """Flatten the result of any metric."""
    if isinstance(result, list):
        return np.concatenate([numbers(part) for part in result])
    if isinstance(result, metrics.CalibrationCurve):
        result = [result.confidence, result.accuracy, result.count, *result.edges.T]
    return np.ravel(result).astype(float)


def variants():
    """Yield every metric with all values of its options."""
    for metric in METRICS:
        parameters = inspect.signature(metric).parameters
        calls = [{}]
        for name, values in (
            ("multiclass", EVENTS),
            ("strategy", STRATEGIES),
            ("norm", NORMS),
            ("scale_by_half", (True, False)),
        ):
            if name in parameters:
                calls = [{**call, name: value} for call in calls for value in values]
        for call in calls:
            yield pytest.param(
                metric, call, id="-".join([metric.__name__, *map(str, call.values())])
            )


VARIANTS = list(variants())


def sample(n, n_classes, *, seed=0, dtype=np.float64, sharpness=2.0):
    """Return labels, and overconfident predictions for them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes))
    # The largest of Gumbel-perturbed logits is a draw from their softmax.
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    return y, softmax((sharpness * logits).astype(dtype), axis=1)
