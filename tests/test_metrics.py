import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from metric_calls import (
    EVENTS,
    METRICS,
    NORMS,
    STRATEGIES,
    VARIANTS,
    numbers,
    sample,
)
from scipy.stats import norm as gaussian
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.classification.calibration_error import _ce_compute

from skbsd.metrics import (
    calibration_curve,
    expected_calibration_error,
    smooth_calibration_error,
)


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
