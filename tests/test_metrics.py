import inspect
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from scipy.stats import norm as gaussian
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, make_scorer
from sklearn.metrics import get_scorer as sklearn_get_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.preprocessing import scale
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.classification.calibration_error import _ce_compute

from skbsd import metrics
from skbsd.metrics import (
    brier_decomposition,
    calibration_curve,
    expected_calibration_error,
    get_scorer,
    get_scorer_names,
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
SCORERS = {
    "neg_brier_miscalibration": lambda y, p: brier_decomposition(y, p).miscalibration,
    "neg_classwise_calibration_error": lambda y, p: expected_calibration_error(
        y, p, multiclass="classwise"
    ),
    "neg_expected_calibration_error": expected_calibration_error,
    "neg_log_loss_miscalibration": lambda y, p: (
        log_loss_decomposition(y, p).miscalibration
    ),
    "neg_smooth_calibration_error": smooth_calibration_error,
}


def numbers(result):
    """Flatten the result of any metric."""
    if isinstance(result, list):
        return np.concatenate([numbers(part) for part in result])
    if isinstance(result, metrics.CalibrationCurve):
        result = [result.confidence, result.accuracy, result.count, *result.edges.T]
    return np.ravel(result).astype(float)


def variants():
    """Every metric with every choice of its own."""
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
    """Overconfident predictions and the labels drawn from milder ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes))
    # The largest of Gumbel-perturbed logits is a draw from their softmax.
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    return y, softmax((sharpness * logits).astype(dtype), axis=1)


def edge_case(name, dtype):
    """Named inputs on which binning is delicate."""
    y, p = sample(60, 4, dtype=dtype)
    if name == "tied":
        p = np.full((60, 4), 0.1, dtype)
        p[np.arange(60), np.arange(60) % 4] = 0.7
    elif name == "tied-top":
        p = np.full((60, 4), 0.25, dtype)
    elif name == "edges":
        top = np.concatenate([np.arange(a, b + 1) / b for a, b in [(8, 15), (6, 10)]])
        top = np.resize(np.append(top, [1.0, 0.5]), 60).astype(dtype)
        p = np.column_stack([top, 1 - top, 0 * top, 0 * top])
    elif name == "certain":
        p = np.eye(4, dtype=dtype)[np.arange(60) % 4]
        p[::3] = 0.25
    elif name == "absent-class":
        y = np.where(y == 2, 0, y)
    elif name == "binary":
        y, p = sample(60, 2, dtype=dtype)
    return y, p


def torchmetrics_error(y, p, n_bins, norm):
    return multiclass_calibration_error(
        torch.tensor(p), torch.tensor(y), p.shape[1], n_bins=n_bins, norm=norm
    ).item()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_bins", [1, 2, 10, 15])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "case", ["random", "tied", "tied-top", "edges", "certain", "absent-class", "binary"]
)
def test_top_label_error_is_that_of_torchmetrics(case, dtype, n_bins, norm):
    y, p = edge_case(case, dtype)
    error = expected_calibration_error(y, p, n_bins=n_bins, norm=norm)
    assert type(error) is float
    assert error == pytest.approx(torchmetrics_error(y, p, n_bins, norm), abs=1e-6)
    if p.shape[1] == 2:
        p_1 = p[:, 1]
        columns = np.column_stack([1 - p_1, p_1])
        error = expected_calibration_error(y, p_1, n_bins=n_bins, norm=norm)
        expected = torchmetrics_error(y, columns, n_bins, norm)
        assert error == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_many_samples_are_summed_in_double_precision(tied, norm):
    # Torchmetrics sums in single precision, which errs by more than 1e-6 here.
    y, p = sample(20_000, 3, dtype=np.float32)
    if tied:
        p[:] = np.float32([0.7, 0.2, 0.1])
    error = expected_calibration_error(y, p, norm=norm)
    expected = _ce_compute(
        torch.tensor(p.max(axis=1)).double(),
        torch.tensor(p.argmax(axis=1) == y),
        torch.linspace(0, 1, 16).double(),
        norm=norm,
    )
    assert error == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("n_bins", range(1, 40))
def test_confidence_on_an_edge_is_in_the_bin_above(n_bins):
    # Alone at the lower edge of its bin: one bin per edge, and one of its own for 1.
    edges = torch.linspace(0, 1, n_bins + 1).numpy()
    curve = calibration_curve(
        np.ones(n_bins + 1, int), edges, n_bins=n_bins, multiclass="classwise"
    )[1]
    np.testing.assert_array_equal(curve.edges[:, 0], edges)
    np.testing.assert_array_equal(curve.edges[:, 1], [*edges[1:], 1.0])
    np.testing.assert_array_equal(curve.confidence, edges)
    below = np.nextafter(edges[1:], 0)
    curve = calibration_curve(
        np.ones(n_bins, int), below, n_bins=n_bins, multiclass="classwise"
    )[1]
    np.testing.assert_array_equal(curve.edges[:, 0], edges[:-1])


def test_uniform_curve_by_hand():
    y = [0, 1, 0, 1, 1, 0]
    p = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    negative, positive = calibration_curve(y, p, n_bins=2, multiclass="classwise")
    np.testing.assert_allclose(positive.confidence, [0.125, 0.625, 1.0])
    np.testing.assert_allclose(positive.accuracy, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(positive.count, [2, 2, 2])
    np.testing.assert_allclose(positive.edges, [[0, 0.5], [0.5, 1], [1, 1]])
    # 1 - p is 1, .75, .5, .25, 0, 0: the edge .5 is now on the other side.
    np.testing.assert_allclose(negative.confidence, [0.25 / 3, 0.625, 1.0])
    np.testing.assert_allclose(negative.accuracy, [1 / 3, 0.5, 1.0])
    top = calibration_curve(y, p, n_bins=2)
    np.testing.assert_allclose(top.confidence, [2 / 3, 1.0])  # .5, .75, .75 and ones
    np.testing.assert_allclose(top.accuracy, [2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("p", "n_bins", "count", "edges"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 3, [2, 2, 2], [[1, 3], [3, 5], [5, 6]]),
        ([0.1, 0.1, 0.1, 0.1, 0.5, 0.6], 3, [4, 2], [[1, 5], [5, 6]]),
        ([0.1, 0.2, 0.6, 0.6, 0.6, 0.6], 3, [2, 4], [[1, 6], [6, 6]]),
        ([0.1, 0.6, 0.6, 0.6, 0.6], 2, [1, 4], [[1, 6], [6, 6]]),
        ([0.1, 0.1, 0.1, 0.1, 0.6], 2, [4, 1], [[1, 6], [6, 6]]),
        ([0.4] * 6, 4, [6], [[4, 4]]),
        ([0.1, 0.2, 0.3], 7, [1, 1, 1], [[1, 2], [2, 3], [3, 3]]),
        ([0.1, 0.2, 0.3, 0.4], 1, [4], [[1, 4]]),
    ],
)
def test_quantile_bins_by_hand(p, n_bins, count, edges):
    curve = calibration_curve(
        np.arange(len(p)) % 2, p, n_bins=n_bins, strategy="quantile", labels=[0, 1],
        multiclass="classwise",
    )[1]  # fmt: skip
    np.testing.assert_array_equal(curve.count, count)
    np.testing.assert_allclose(curve.edges, np.array(edges) / 10)


@pytest.mark.parametrize("scale_of_weights", [1, 0.1, 1 / 3, 1e-9])
def test_quantile_bins_have_equal_mass(scale_of_weights):
    y, p = sample(700, 2)
    weight = np.full(700, scale_of_weights)
    curve = calibration_curve(
        y, p, n_bins=10, strategy="quantile", sample_weight=weight
    )
    np.testing.assert_allclose(curve.count, 70 * scale_of_weights)
    np.testing.assert_array_equal(curve.edges[:-1, 1], curve.edges[1:, 0])
    assert curve.edges[[0, -1], [0, 1]].tolist() == [
        p.max(axis=1).min(),
        p.max(axis=1).max(),
    ]


@pytest.mark.parametrize("n_bins", [2, 3, 5, 10])
def test_quantile_bins_do_not_depend_on_the_scale_of_weights(n_bins):
    for n in range(2, 30):
        y, p = np.arange(n) % 2, np.linspace(0.1, 0.9, n)
        settings = {"n_bins": n_bins, "strategy": "quantile", "multiclass": "classwise"}
        plain = calibration_curve(y, p, **settings)[1]
        scaled = calibration_curve(y, p, sample_weight=[0.1] * n, **settings)[1]
        np.testing.assert_array_equal(scaled.edges, plain.edges)


def test_errors_by_hand():
    y = ["a", "c", "c", "b"]
    p = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.05, 0.9, 0.05]]
    # Gaps of the bins [.5, .75) and [.75, 1): |1/2 - .65| and |1 - .85|.
    error = {
        norm: expected_calibration_error(y, p, n_bins=4, norm=norm) for norm in NORMS
    }
    assert error == pytest.approx({"l1": 0.15, "l2": 0.15, "max": 0.15})
    weight = [1, 3, 1, 1]  # .675 against 1/4, and .85 against 1
    weighted = [
        expected_calibration_error(y, p, n_bins=4, norm=norm, sample_weight=weight)
        for norm in NORMS
    ]
    squares = (4 * 0.425**2 + 2 * 0.15**2) / 6
    expected = [(4 * 0.425 + 2 * 0.15) / 6, squares**0.5, 0.425]
    np.testing.assert_allclose(weighted, expected)
    # With one bin a class is off by its mean probability less its frequency.
    classwise = expected_calibration_error(y, p, n_bins=1, multiclass="classwise")
    off = np.abs(np.mean(p, axis=0) - [0.25, 0.25, 0.5])
    assert classwise == pytest.approx(off.mean())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("events", EVENTS)
def test_the_error_is_the_sum_over_the_curve(strategy, events):
    y, p = sample(300, 3)
    settings = {"strategy": strategy, "multiclass": events, "n_bins": 8}
    curves = calibration_curve(y, p, **settings)
    curves = curves if events == "classwise" else [curves]
    gaps = [np.abs(c.accuracy - c.confidence) for c in curves]
    shares = [c.count / c.count.sum() for c in curves]
    pairs = list(zip(shares, gaps, strict=True))
    for norm, expected in (
        ("l1", np.mean([np.sum(share * gap) for share, gap in pairs])),
        ("l2", np.mean([np.sqrt(np.sum(share * gap**2)) for share, gap in pairs])),
        ("max", np.mean([gap.max() for gap in gaps])),
    ):
        assert expected_calibration_error(y, p, norm=norm, **settings) == expected
    assert all(len(c.count) and (c.count > 0).all() for c in curves)
    assert len(curves) == (3 if events == "classwise" else 1)


@pytest.mark.parametrize(("metric", "settings"), VARIANTS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_integer_weights_repeat_samples(metric, settings, n_classes):
    y, p = sample(60, n_classes)
    weight = np.random.default_rng(1).integers(0, 4, size=60)
    p[:5] = p[5]  # ties
    p[np.argmin(weight)] = np.eye(n_classes)[0]  # alone, but without weight
    settings = {**settings, "labels": range(n_classes)}
    weighted = numbers(metric(y, p, sample_weight=weight, **settings))
    repeated = numbers(metric(y.repeat(weight), p.repeat(weight, axis=0), **settings))
    np.testing.assert_allclose(weighted, repeated, atol=1e-9)
    if settings.get("norm") == "max":
        return  # the worst sample may be alone in its bin, whatever its weight
    plain = numbers(metric(y, p, **settings))
    assert plain.shape != weighted.shape or not np.allclose(weighted, plain, atol=1e-4)


@pytest.mark.parametrize(("metric", "settings"), VARIANTS)
def test_order_of_samples_and_names_of_labels_do_not_matter(metric, settings):
    y, p = sample(80, 3)
    expected = numbers(metric(y, p, **settings))
    order = np.random.default_rng(0).permutation(80)
    np.testing.assert_allclose(
        numbers(metric(y[order], p[order], **settings)), expected, atol=1e-9
    )
    names = np.array(["x", "z", "y"])
    named = metric(names[y], p, labels=names, **settings)
    np.testing.assert_array_equal(numbers(named), expected)
    if settings.get("multiclass") != "classwise":
        named = metric(names[y], p[:, [0, 2, 1]], **settings)  # sorted by default
        np.testing.assert_allclose(numbers(named), expected, atol=1e-12)


@pytest.mark.parametrize(("metric", "settings"), VARIANTS)
def test_two_classes_as_one_column_or_two(metric, settings):
    y, p = sample(60, 2)
    p = np.column_stack([1 - p[:, 1], p[:, 1]])
    expected = numbers(metric(y, p, **settings))

    def check(*args, **kwargs):
        result = numbers(metric(*args, **kwargs, **settings))
        np.testing.assert_array_equal(result, expected)

    check(y, p[:, 1])
    check(y, p[:, 1], pos_label=1)
    check(y, p, pos_label=1)
    check(2 * y - 1, p[:, 1])
    check(y == 1, p[:, 1])
    names = np.array(["no", "yes"])[y]
    check(names, p[:, 1])
    check(names, p[:, 1], pos_label="yes", labels=["yes", "no"])
    check(names, p[:, 1], pos_label="yes")
    other = np.array(["no", "aye"])[y]  # "aye" is the smaller of the two
    check(other, p[:, 1], pos_label="aye")
    check(other, p[:, 1], labels=["no", "aye"])
    check(other, p, labels=["no", "aye"])


@pytest.mark.parametrize(("metric", "settings"), VARIANTS)
@pytest.mark.parametrize("one_dim", [True, False])
def test_two_classes_of_which_one_is_absent(metric, settings, one_dim):
    _, p = sample(20, 2)
    p = np.column_stack([1 - p[:, 1], p[:, 1]])
    columns = p[:, 1] if one_dim else p
    for value in (0, 1):
        expected = numbers(
            metric(np.full(20, value), columns, labels=[0, 1], **settings)
        )
        for label, kwargs in (
            (value, {}),
            (bool(value), {}),
            (float(value), {}),
            (2 * value - 1, {}),
            ("ab"[value], {"labels": ["a", "b"]}),
            *([("ab"[value], {"pos_label": "b"})] if one_dim else []),
        ):
            # A float -1.0 or 1.0 is a label as good as the integer.
            result = metric(np.full(20, label), columns, **kwargs, **settings)
            np.testing.assert_array_equal(numbers(result), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_containers_and_precisions(metric):
    y, p = sample(60, 3)
    expected = numbers(metric(y, p))
    for labels in (y.tolist(), pd.Series(y), torch.tensor(y), y[:, None], y * 1.0):
        for proba in (p.tolist(), pd.DataFrame(p), torch.tensor(p)):
            np.testing.assert_array_equal(numbers(metric(labels, proba)), expected)
    for lesser, tolerance in ((np.float32, 1e-5), (np.float16, 2e-2)):
        result = numbers(metric(y, p.astype(lesser)))
        np.testing.assert_allclose(result[:1], expected[:1], atol=tolerance)
    # Rounded to single precision and back, as by tolist(), these are probabilities.
    metric(y, p.astype(np.float32).astype(np.float64))
    categories = pd.Series(y).map({0: "a", 1: "b", 2: "c"}).astype("category")
    np.testing.assert_array_equal(numbers(metric(categories, p)), expected)


def direct_smooth_error(f, y, sigma, n_nodes=2000):
    """Quadrature at midpoints, with the images of the kernel written out."""
    t = (np.arange(n_nodes) + 0.5) / n_nodes
    kernel = sum(
        gaussian.pdf(t[:, None], sign * f + 2 * shift, sigma)
        for shift in (-1, 0, 1)
        for sign in (-1, 1)
    )
    return np.abs(kernel @ (y - f) / len(f)).mean()


@pytest.mark.parametrize(
    ("a", "b", "power", "n"),
    [(1, 1, 1, 200), (1, 1, 2, 200), (0.1, 0.1, 3, 100), (8, 2, 1, 7), (2, 2, 9, 100)],
)
def test_smooth_error_is_the_fixed_point_of_direct_quadrature(a, b, power, n):
    rng = np.random.default_rng(0)
    f = rng.beta(a, b, size=n)
    y = (rng.uniform(size=n) < f**power).astype(int)
    for error, event in (
        (smooth_calibration_error(y, f, multiclass="classwise", labels=[0, 1]), (f, y)),
        (
            smooth_calibration_error(y, f, labels=[0, 1]),
            (np.maximum(f, 1 - f), (f > 0.5) == y),
        ),
    ):
        # The quadrature does not increase with sigma: it has one fixed point.
        assert direct_smooth_error(*event, error) == pytest.approx(error, abs=5e-6)
        assert 0.001 < error < 0.8


def test_smooth_error_of_small_gaps_needs_a_fine_grid():
    # Opposite residuals a distance apart that a coarse grid cannot tell from none.
    f = np.repeat([0.5 - 5e-4, 0.5 + 5e-4], 2000)
    y = np.repeat([1, 0, 1, 0], [1020, 980, 980, 1020])
    error = smooth_calibration_error(y, f, multiclass="classwise")
    gap = 0.0105
    np.testing.assert_allclose((y - f)[:2000].mean(), gap)
    np.testing.assert_allclose((y - f)[2000:].mean(), -gap)
    # The integral has a closed form far from 0 and 1.
    assert gap * (2 * gaussian.cdf(5e-4 / error) - 1) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("off", [0.0, 1e-4, 0.03, 0.25, 0.5])
def test_smooth_error_of_a_constant_is_its_bias(off):
    error = smooth_calibration_error([0, 1] * 10, [0.5 + off] * 20)
    assert error == pytest.approx(off, abs=1e-9)


@pytest.mark.parametrize(("p", "expected"), [([0.0, 1.0], 0.0), ([1.0, 0.0], 1.0)])
def test_smooth_error_of_certainty(p, expected):
    assert smooth_calibration_error([0, 1], p) == pytest.approx(expected, abs=1e-9)


def test_smooth_error_of_calibrated_predictions_vanishes():
    rng = np.random.default_rng(0)
    errors = []
    for n in (100, 1000, 10_000, 100_000):
        f = rng.uniform(size=n)
        errors.append(smooth_calibration_error(rng.uniform(size=n) < f, f))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 < errors[0]


def test_brier_decomposition_by_hand():
    # PAV maps 1/4 to 1/3 and 3/4 to 1.
    parts = brier_decomposition([0, 0, 1, 1], [0.25, 0.25, 0.25, 0.75])
    np.testing.assert_allclose(parts, [3 / 16, 3 / 16 - 1 / 6, 1 / 6])
    # PAV pools the first two, in the wrong order.
    parts = brier_decomposition([1, 0, 1], [0.1, 0.2, 0.8], scale_by_half=False)
    np.testing.assert_allclose(parts.refinement, 2 * 0.5 / 3)
    # A perfect ranking is refined to nothing, however bad the probabilities.
    parts = brier_decomposition([0, 0, 1], [0.1, 0.2, 0.3])
    assert parts.refinement == pytest.approx(0, abs=1e-15)


def test_log_loss_decomposition_by_hand():
    # Confidence .9, right three times of four: tempering turns it into 3/4.
    parts = log_loss_decomposition([0, 1, 1, 1], [0.1, 0.1, 0.9, 0.9])
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    score = -0.75 * np.log(0.9) - 0.25 * np.log(0.1)
    np.testing.assert_allclose(parts, [score, score - entropy, entropy])
    # Worse than chance: the best temperature is infinite.
    parts = log_loss_decomposition([0, 1, 2], np.roll(np.eye(3), 1, axis=0))
    assert parts.refinement == pytest.approx(np.log(3))
    # Always right: the best temperature is zero, and ties remain.
    parts = log_loss_decomposition([0, 1, 2], 0.1 + 0.7 * np.eye(3))
    assert parts.refinement == 0
    parts = log_loss_decomposition([0, 1], [[0.4, 0.4, 0.2], [0.1, 0.8, 0.1]])
    assert parts.refinement == pytest.approx(np.log(2) / 2)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_log_loss_refinement_is_the_least_of_all_temperatures(sharpness):
    y, p = sample(200, 4, sharpness=sharpness)

    def loss(inverse):
        logits = inverse * np.log(p)
        return np.mean(logsumexp(logits, axis=1) - logits[np.arange(200), y])

    best = minimize_scalar(loss, bounds=(0, 20), method="bounded").fun
    parts = log_loss_decomposition(y, p)
    assert parts.refinement == pytest.approx(best, abs=1e-9)
    assert parts.miscalibration == pytest.approx(log_loss(y, p) - best, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_decompositions_add_up_to_the_scores_of_scikit_learn(n_classes, dtype):
    y, p = sample(150, n_classes, dtype=dtype)
    labels, weight = np.arange(n_classes), np.linspace(0.1, 2, 150)
    p[0] = np.eye(n_classes)[(y[0] + 1) % n_classes]  # an infinite loss, if unclipped
    settings = {"labels": labels, "sample_weight": weight}
    results = [(log_loss_decomposition(y, p, **settings), log_loss(y, p, **settings))]
    for half in (True, False, "auto"):
        settings["scale_by_half"] = half
        parts = brier_decomposition(y, p, **settings)
        results.append((parts, brier_score_loss(y, p, **settings)))
    for parts, score in results:
        assert parts.score == parts.miscalibration + parts.refinement
        assert parts.score == pytest.approx(
            score, rel=5e-6 if dtype == np.float32 else 1e-12
        )
        assert parts.miscalibration > 0
        assert parts.refinement > 0


@pytest.mark.parametrize("split", [brier_decomposition, log_loss_decomposition])
def test_miscalibration_is_never_negative(split):
    for seed in range(30):
        y, p = sample(25, 3, seed=seed, sharpness=[0.0, 0.5, 1.0, 4.0][seed % 4])
        parts = split(y, p, labels=range(3))
        assert parts.miscalibration >= 0
        assert parts.refinement >= 0


def test_recalibrated_predictions_are_calibrated():
    y, p = sample(200, 3)
    frequencies = np.tile(np.bincount(y) / 200, (200, 1))
    parts = brier_decomposition(y, frequencies)
    assert parts.miscalibration == pytest.approx(0, abs=1e-15)

    def loss(inverse):
        return log_loss(y, softmax(inverse * np.log(p), axis=1))

    best = minimize_scalar(loss, bounds=(0, 5), method="bounded").x
    tempered = softmax(best * np.log(p), axis=1)
    assert log_loss_decomposition(y, p).miscalibration > 0.01
    assert log_loss_decomposition(y, tempered).miscalibration < 1e-9


Y, P = [0, 1, 2, 1], np.array([[0.6, 0.3, 0.1]] * 4)
TWO = [0.1, 0.2, 0.3, 0.4]
BAD_ROW = [*P[:3].tolist(), [0.6, 0.3, 0.2]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("y", "p", "kwargs", "message"),
    [
        (Y, P * np.nan, {}, "y_proba contains NaN"),
        (Y, P * np.inf, {}, "y_proba contains infinity"),
        (Y, P - 0.2, {}, r"contains -0\.1.*, expected probabilities in \[0, 1\]"),
        ([0, 1, 1, 0], [0.5, 0.5, 0.5, 1.5], {}, r"contains 1\.5, .*softmax"),
        (Y, BAD_ROW, {}, r"Row 3 of y_proba sums to 1\.1, expected 1"),
        (Y, np.float32(P) * np.float32(1.001), {}, r"sums to 1\.001"),
        (Y, P[:, :, None], {}, r"shape \(4, 3, 1\), expected \(n_samples,\)"),
        (Y, P[:, :1], {}, r"shape \(4, 1\).*ravel"),
        (Y[:3], P, {}, r"inconsistent numbers of samples: \[3, 4\]"),
        (Y, P, {"sample_weight": [1, 2]}, "inconsistent numbers of samples"),
        ([], np.empty((0, 3)), {}, "0 sample"),
        (np.eye(3, dtype=int)[Y], P, {}, r"shape \(4, 3\).*Multilabel"),
        ([0.0, 1.0, np.nan, 1.0], P, {}, "y_true contains NaN"),
        ([0.0, 1.0, 0.5, 1.0], P, {}, "y_true contains 0.5, expected class labels"),
        ([0, 1, 2, 5], P, {"labels": [0, 1, 2]}, r"\[5\], expected labels among"),
        (Y, P, {"labels": ["0", "1", "2"]}, r"\[0, 1, 2\], expected labels among"),
        (Y, P, {"labels": [0, 1]}, r"labels=\[0, 1\] has 2 .* expected 3 distinct"),
        (Y, P, {"labels": [0, 1, 1]}, "has 2 distinct of 3 labels"),
        (["a", "b", "a", "b"], P, {}, r"\['a', 'b'\].* 3 classes. Pass labels"),
        ([0, 1, 3, 1, 4], np.tile(P[0], (5, 1)), {}, "y_true has 4 distinct labels"),
        (["a"] * 4, TWO, {}, "Pass labels"),
        (Y, TWO, {}, "y_true has 3 distinct labels"),
        ([0, 1, 1, 1], TWO, {"pos_label": 2}, r"pos_label=2 is not .* \[0, 1\]"),
        (["a"] * 4, TWO, {"labels": ["a", "b"], "pos_label": "c"}, "pos_label='c'"),
        (Y, P, {"pos_label": 1}, "pos_label=1 was passed with 3 classes"),
        ([0, 1, 1, 1], [[0.5, 0.5]] * 4, {"pos_label": 0}, "the first of two columns"),
        (Y, P, {"sample_weight": [1, 1, 1, -1]}, "Negative values"),
        (Y, P, {"sample_weight": [1, 1, 1, np.nan]}, "sample_weight contains NaN"),
        (Y, P, {"sample_weight": [0, 0, 0, 0]}, "zero"),
        (Y, P, {"sample_weight": np.ones((4, 1))}, "must be 1D"),
    ],
)
def test_invalid_input(metric, y, p, kwargs, message):
    with pytest.raises(ValueError, match=message):
        metric(y, p, **kwargs)


@pytest.mark.parametrize("metric", METRICS)
def test_labels_of_mixed_types(metric):
    with pytest.raises(TypeError, match="y_true mixes labels of several types"):
        metric(np.array([0, "a", 2, 1], dtype=object), P)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("n_bins", value) for value in (0, -1, 2.0, "10", None)],
        ("strategy", "kmeans"),
        ("norm", "l3"),
        ("multiclass", "ovr"),
        ("scale_by_half", "yes"),
        ("pos_label", [1]),
        ("sample_weight", 1.0),
        ("labels", 3),
        ("y_proba", 0.5),
        ("y_true", None),
    ],
)
def test_invalid_parameters(name, value):
    for metric in METRICS:
        if name in inspect.signature(metric).parameters:
            arguments = {"y_true": Y, "y_proba": P, name: value}
            y, p = arguments.pop("y_true"), arguments.pop("y_proba")
            with pytest.raises(
                ValueError, match=f"The '{name}' parameter of {metric.__name__}"
            ):
                metric(y, p, **arguments)


@pytest.fixture(scope="module")
def data():
    """Bundled data sets: three classes, and two named by strings."""
    X, y = load_iris(return_X_y=True)
    X_2, y_2 = load_breast_cancer(return_X_y=True)
    return {
        "integers": (scale(X[:, :2]), y),
        "strings": (scale(X[:, :2]), np.array(["se", "ve", "vi"])[y]),
        "two": (scale(X_2[:150, :3]), np.array(["good", "bad"])[y_2[:150]]),
    }


class Fixed(ClassifierMixin, BaseEstimator):
    """Predict the probabilities it is given as X."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return np.asarray(X)


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("kind", ["integers", "strings", "two"])
def test_scorer_is_the_negated_metric(data, name, kind):
    X, y = data[kind]
    scorer = get_scorer(name)
    classifier = LogisticRegression().fit(X, y)
    expected = -SCORERS[name](y, classifier.predict_proba(X))
    assert scorer(classifier, X, y) == pytest.approx(expected)
    assert expected < 0
    assert pickle.loads(pickle.dumps(scorer))(classifier, X, y) == pytest.approx(
        expected
    )
    scores = cross_val_score(LogisticRegression(), X, y, scoring=scorer, cv=3)
    assert ((scores < 0) & (scores > -0.5)).all()


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("absent", ["a", "b", "c", "bc"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_scorer_of_a_fold_without_a_class(name, absent, n_classes):
    codes, p = sample(60, n_classes)
    names = np.array(list("abc"))
    classifier = Fixed().fit(p, names[np.arange(n_classes)])
    kept = ~np.isin(names[codes], list(absent))
    expected = -SCORERS[name](codes[kept], p[kept])
    score = get_scorer(name)(classifier, p[kept], names[codes[kept]])
    assert score == pytest.approx(expected)


def test_scorer_keeps_labels_that_are_given(data):
    X, y = data["two"]
    classifier = LogisticRegression().fit(X, y)
    p = classifier.predict_proba(X)
    for kwargs in ({}, {"pos_label": "bad"}, {"pos_label": "good"}):
        scorer = make_scorer(
            smooth_calibration_error, response_method="predict_proba", **kwargs
        )
        assert scorer(classifier, X, y) == pytest.approx(smooth_calibration_error(y, p))


def test_scorers_in_a_grid_search_of_two_processes(data):
    X, y = data["strings"]
    scoring = {name: get_scorer(name) for name in SCORERS}
    search = GridSearchCV(
        LogisticRegression(),
        {"C": [0.01, 1]},
        scoring=scoring,
        refit="neg_log_loss_miscalibration",
        cv=2,
        n_jobs=2,
        error_score="raise",
    )
    search.fit(X, y)
    for name in SCORERS:
        assert (search.cv_results_[f"mean_test_{name}"] < 0).all()
    # Strong regularisation makes for underconfidence.
    assert search.best_params_ == {"C": 1}
    assert search.score(X, y) < 0


def test_scorers_together_with_those_of_scikit_learn(data):
    X, y = data["two"]
    scoring = {name: get_scorer(name) for name in [*SCORERS, "accuracy", "roc_auc"]}
    scores = cross_validate(LogisticRegression(), X, y, scoring=scoring, cv=2)
    assert all(np.isfinite(scores[f"test_{name}"]).all() for name in scoring)


@pytest.mark.parametrize("name", SCORERS)
def test_scorer_takes_routed_weights(data, name):
    X, y = data["strings"]
    weight = np.where(np.arange(len(y)) % 3, 0.0, 1.0)
    kept = weight > 0
    with config_context(enable_metadata_routing=True):
        scorer = get_scorer(name).set_score_request(sample_weight=True)
        classifier = LogisticRegression().set_fit_request(sample_weight=False)
        result = cross_validate(
            classifier, X, y, scoring=scorer, cv=[(np.arange(150), np.arange(150))],
            params={"sample_weight": weight},
        )  # fmt: skip
        classifier.fit(X, y)
        expected = get_scorer(name)(classifier, X[kept], y[kept])
        assert scorer(classifier, X, y, sample_weight=weight) == pytest.approx(expected)
        # A request is of one copy.
        requests = get_scorer(name).get_metadata_routing().score.requests
        assert requests.get("sample_weight") is None
    np.testing.assert_allclose(result["test_score"], expected)


def test_get_scorer():
    names = get_scorer_names()
    assert names == sorted(names)
    assert {*SCORERS, "accuracy", "neg_log_loss"} <= set(names)
    assert all(callable(get_scorer(name)) for name in names)
    assert get_scorer("neg_smooth_calibration_error") is not get_scorer(
        "neg_smooth_calibration_error"
    )
    assert str(get_scorer("accuracy")) == str(sklearn_get_scorer("accuracy"))
    assert get_scorer(len) is len
    assert get_scorer(None) is None
    with pytest.raises(ValueError, match=r"'ece' is not .*neg_expected_calibration"):
        get_scorer("ece")
    assert metrics.__all__ == sorted(metrics.__all__)
