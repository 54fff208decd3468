import numpy as np
import pytest
from helpers import quick
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from skbsd import BSDClassifier, _noise_rates
from skbsd.calibration import Calibration
from skbsd.label_noise import estimate_noise_rates

N, N_CLASSES = 1500, 3


def made(given, proba, transition):
    """A classifier that is fitted to some labels, with such predictions of them."""
    X = np.random.default_rng(0).normal(size=(len(given), 2))
    model = quick(max_epochs=1).fit(X, np.array(["a", "b", "c"])[given])
    model.calibration_ = Calibration(transition=transition)
    model.out_of_fold_proba_ = proba
    return model


@pytest.fixture(scope="module")
def certain():
    """True classes, labels of which 200 are wrong, and nearly certain predictions.

    Of the 500 samples of class 0, 150 are labelled as 1; of class 2, 50 as 0.
    """
    true = np.repeat([0, 1, 2], 500)
    given = true.copy()
    given[:150], given[1000:1050] = 1, 0
    proba = np.full((N, N_CLASSES), 0.001)
    proba[np.arange(N), true] = 0.998
    return true, given, proba


MATRIX = np.array([[0.7, 0.3, 0], [0, 1, 0], [0.1, 0, 0.9]])
SYMMETRIC = 0.8 * np.eye(3) + 0.2 / 3


@pytest.mark.parametrize("transition", [MATRIX, SYMMETRIC], ids=["matrix", "symmetric"])
def test_certain_predictions_give_the_counts_and_binomial_intervals(
    certain, transition
):
    _, given, proba = certain
    model = made(given, proba, transition)
    rates = estimate_noise_rates(model, n_bootstraps=150, random_state=0)
    counts = np.bincount(given)
    assert_array_equal(rates.classes, ["a", "b", "c"])
    assert_array_equal(rates.n_labels, counts)
    assert rates.n_samples == N
    assert rates.rate == pytest.approx(200 / N, abs=0.005)
    expected = np.array([50 / counts[0], 150 / counts[1], 0])
    assert_allclose(rates.by_class, expected, atol=0.01)
    assert_array_equal(rates.pairs[:2], [[0, 1], [2, 0]])
    assert_allclose(rates.by_pair[:2], expected[[1, 0]], atol=0.01)

    # The standard deviation of a proportion, within what 150 resamples allow.
    half = 1.96 * np.sqrt(rates.rate * (1 - rates.rate) / N)
    assert_allclose(np.diff(rates.interval) / 2, half, rtol=0.25)
    half = 1.96 * np.sqrt(expected * (1 - expected) / counts)[:2]
    assert_allclose(np.diff(rates.by_class_interval, axis=0)[0, :2] / 2, half, rtol=0.3)
    assert rates.interval[0] < rates.rate < rates.interval[1]


def test_where_fit_found_none_the_intervals_begin_at_zero(certain):
    true, _, proba = certain
    model = made(true, proba, None)
    rates = estimate_noise_rates(model, n_bootstraps=30, random_state=0)
    assert rates.rate == 0
    assert_array_equal(rates.by_class, 0)
    assert rates.interval[0] == 0
    assert 0 <= rates.interval[1] < 0.01
    assert_array_equal(rates.by_class_interval[0], 0)


def test_samples_without_predictions_are_left_out(certain):
    _, given, proba = certain
    model = made(given, proba.copy(), SYMMETRIC)
    model.out_of_fold_proba_[given == 2] = np.nan
    rates = estimate_noise_rates(model, n_bootstraps=10, random_state=0)
    assert rates.n_samples == np.sum(given != 2)
    assert rates.n_labels[2] == 0
    assert np.isnan(rates.by_class[2])
    assert np.isnan(rates.by_class_interval[:, 2]).all()
    assert np.isfinite(rates.by_class[:2]).all()
    assert 0 < rates.rate < 1


def test_large_data_are_resampled_in_part(certain, monkeypatch):
    _, given, proba = certain
    model = made(given, proba, SYMMETRIC)
    whole = estimate_noise_rates(model, n_bootstraps=100, random_state=0)
    monkeypatch.setattr(_noise_rates, "_MOST_PROBA", 400 * N_CLASSES)
    part = estimate_noise_rates(model, n_bootstraps=100, random_state=0)
    assert part.rate == whole.rate
    assert_array_equal(part.by_class, whole.by_class)
    assert_allclose(np.diff(part.interval), np.diff(whole.interval), rtol=0.5)
    assert part.interval[0] < part.rate < part.interval[1]


def test_seeds_and_parameters(certain):
    _, given, proba = certain
    model = made(given, proba, SYMMETRIC)

    def limits(**options):
        return estimate_noise_rates(model, n_bootstraps=20, **options)

    one = limits(random_state=0)
    assert_array_equal(one.interval, limits(random_state=0).interval)
    assert (one.interval != limits(random_state=1).interval).any()
    narrow = limits(random_state=0, confidence_level=0.5, n_pairs=1)
    assert np.diff(narrow.interval) < np.diff(one.interval)
    assert narrow.pairs.shape == (1, 2)
    assert narrow.by_pair_interval.shape == (2, 1)
    assert narrow.confidence_level == 0.5


def test_errors(certain, iris):
    _, given, proba = certain
    with pytest.raises(NotFittedError):
        estimate_noise_rates(BSDClassifier())
    with pytest.raises(ValueError, match="expected a fitted BSDClassifier"):
        estimate_noise_rates(LogisticRegression().fit(*iris))
    with pytest.raises(ValueError, match=r"calibration=None.*calibration='auto'"):
        estimate_noise_rates(quick(max_epochs=1).fit(*iris))
    model = made(given, None, None)
    with pytest.raises(ValueError, match="no out_of_fold_proba_: with compact"):
        estimate_noise_rates(model)
    model = made(given, proba, None)
    for option in ({"n_bootstraps": 0}, {"confidence_level": 1}, {"n_pairs": -1}):
        with pytest.raises(ValueError, match=f"'{next(iter(option))}' parameter"):
            estimate_noise_rates(model, **option)
