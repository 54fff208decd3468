import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skbsd._bootstrap import bootstrap
from skbsd.metrics import expected_calibration_error


def mean_of(x):
    return lambda weight: np.average(x, weights=weight)


def test_basic_interval_is_the_quantiles_mirrored():
    x = np.random.default_rng(0).exponential(size=50)
    seen = []

    def mean(weight):
        seen.append(np.average(x, weights=weight))
        return seen[-1]

    interval = bootstrap(mean, np.ones(50), n_resamples=99, random_state=0)
    found, *resampled = seen
    assert len(resampled) == 99
    assert_allclose(interval, 2 * found - np.quantile(resampled, [0.975, 0.025]))


def test_width_is_that_of_the_normal_approximation():
    x = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap(
        mean_of(x),
        np.ones(2000),
        n_resamples=2000,
        confidence_level=0.9,
        random_state=0,
    )
    error = x.std() / np.sqrt(2000)
    assert_allclose(
        [low, high], x.mean() + 1.645 * error * np.array([-1, 1]), atol=1e-2
    )
    assert high - low == pytest.approx(2 * 1.645 * error, rel=0.1)


def test_covers_a_known_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        x = rng.exponential(size=60)
        low, high = bootstrap(
            mean_of(x), np.ones(60), confidence_level=0.8, random_state=seed
        )
        covered += low <= 1 <= high
    # Three standard deviations of 200 draws are 8.5 points.
    assert 0.70 <= covered / 200 <= 0.885


def test_bias_is_taken_out():
    """The mean absolute value of noise is above that of the truth, which is zero."""
    x = np.random.default_rng(0).normal(scale=0.1, size=(100, 40))

    def error(weight):
        return np.abs(np.average(x, axis=0, weights=weight)).mean()

    found = error(np.ones(100))
    low, high = bootstrap(error, np.ones(100), random_state=0)
    assert found > 0.005
    assert low < high < found


def test_weights_are_repetitions():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    weight = np.array([1.0, 2.0, 0.0, 3.0])
    totals = []

    def mean(w):
        totals.append(w / np.where(weight > 0, weight, 1))
        return np.average(x, weights=w)

    bootstrap(mean, weight, n_resamples=20, random_state=0)
    first, *drawn = totals
    assert_array_equal(first, weight > 0)
    for times in drawn:  # whole numbers, four draws of which some hit the third
        assert_array_equal(times, times.round())
        assert times.sum() <= 4


def test_shape_and_undefined_values():
    x = np.arange(10.0)

    def statistics(weight):
        first = x[0] if weight[0] else np.nan  # not in every resample
        return np.array([[np.average(x, weights=weight), first, np.nan]])

    interval = bootstrap(statistics, np.ones(10), n_resamples=50, random_state=0)
    assert interval.shape == (2, 1, 3)
    assert interval[0, 0, 0] < x.mean() < interval[1, 0, 0]
    assert_array_equal(interval[:, 0, 1], [0, 0])
    assert np.isnan(interval[:, 0, 2]).all()
    assert np.isnan(bootstrap(lambda weight: np.nan, np.ones(3))).all()


def test_one_seed_one_interval():
    x = np.random.default_rng(0).normal(size=30)
    first, again, other = (
        bootstrap(mean_of(x), np.ones(30), random_state=seed) for seed in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_intervals_of_a_calibration_error_that_is_zero_are_too_narrow():
    """As the report says, intervals hold the truth in half to two thirds of cases."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(60):
        confidence = rng.uniform(0.55, 1, 200)
        right = rng.uniform(size=200) < confidence
        low, high = bootstrap(
            lambda weight, right=right, confidence=confidence: (
                expected_calibration_error(right, confidence, sample_weight=weight)
            ),
            np.ones(200),
            n_resamples=60,
            random_state=0,
        )
        held.append(low <= 0 <= high)
    assert 0.4 < np.mean(held) < 0.85
