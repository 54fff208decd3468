"""Making labels wrong, and finding them."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier, label_noise
from skbsd.label_noise import find_label_issues, flip_labels, label_quality

Y = np.repeat([10, 20, 30, 40, 50], 20)


class TestSymmetric:
    @pytest.mark.parametrize("rate", [0, 0.07, 0.4, 1])
    def test_exactly_so_many_become_another_class(self, rate):
        labels, flipped = flip_labels(Y, rate, random_state=0)
        assert flipped.sum() == round(rate * len(Y))
        assert_array_equal(flipped, labels != Y)
        assert set(labels) <= set(Y)

    def test_other_classes_are_equally_likely(self):
        y = np.repeat([0, 1, 2, 3], 5000)
        labels, _ = flip_labels(y, 0.3, random_state=0)
        counts = np.array([np.bincount(labels[y == k], minlength=4) for k in range(4)])
        off = counts[~np.eye(4, dtype=bool)]
        # 500 each; the standard deviation of a count is about 22.
        assert np.abs(off - 500).max() < 100
        assert off.sum() == 6000

    def test_random_state(self):
        one, two = (flip_labels(Y, 0.5, random_state=3)[0] for _ in range(2))
        assert_array_equal(one, two)
        assert (one != flip_labels(Y, 0.5, random_state=4)[0]).any()


class TestCounterparts:
    @pytest.mark.parametrize(
        ("kind", "becomes"),
        [
            ("asymmetric", {10: 20, 20: 30, 30: 40, 40: 50, 50: 10}),
            ("pairs", {10: 20, 20: 10, 30: 40, 40: 30}),
            ({10: 50, 30: 10}, {10: 50, 30: 10}),
            ({}, {}),
        ],
    )
    def test_share_of_each_class(self, kind, becomes):
        labels, flipped = flip_labels(Y, 0.26, kind, random_state=0)
        for label in np.unique(Y):
            of_class = label == Y
            if label in becomes:
                assert flipped[of_class].sum() == 5  # of 5.2
                assert set(labels[of_class & flipped]) == {becomes[label]}
            else:
                assert not flipped[of_class].any()

    def test_one_class(self):
        for kind in ("asymmetric", "pairs"):
            labels, flipped = flip_labels(["a", "a"], 1.0, kind)
            assert list(labels) == ["a", "a"]
            assert not flipped.any()


class TestMatrix:
    def test_probabilities(self):
        y = np.repeat([0, 1, 2], 20_000)
        matrix = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7]])
        labels, flipped = flip_labels(y, kind=matrix, random_state=0)
        found = [np.bincount(labels[y == k], minlength=3) / 20_000 for k in range(3)]
        assert_allclose(found, matrix, atol=0.015)
        assert_array_equal(np.array(found) == 0, matrix == 0)
        assert_array_equal(flipped, labels != y)

    @pytest.mark.parametrize(
        ("matrix", "message"),
        [
            (np.eye(3), r"shape \(5, 5\)"),
            (np.full((5, 5), 0.3), "sum to one"),
            (2 * np.eye(5) - np.full((5, 5), 0.2), "sum to one"),
        ],
    )
    def test_checks(self, matrix, message):
        with pytest.raises(ValueError, match=message):
            flip_labels(Y, kind=matrix)

    def test_identity(self):
        assert not flip_labels(Y, kind=np.eye(5))[1].any()

    def test_rate_has_no_meaning(self):
        with pytest.raises(ValueError, match=r"rate=0.2 has no meaning"):
            flip_labels(Y, 0.2, np.eye(5))


class TestLabels:
    @pytest.mark.parametrize(
        "y",
        [
            np.array([True, False] * 5),
            np.array(["cat", "dog"] * 5),
            np.array(["cat", "dog"] * 5, dtype=object),
            np.arange(10, dtype=np.uint8),
            np.array([0.5, 1.5] * 5),
        ],
        ids=lambda y: y.dtype.name,
    )
    def test_types_are_kept(self, y):
        labels, flipped = flip_labels(y, 0.3, random_state=0)
        assert labels.dtype == y.dtype
        assert flipped.sum() == 3

    @pytest.mark.parametrize("make", [list, pd.Series, torch.tensor])
    def test_containers(self, make):
        labels, _ = flip_labels(make(Y.tolist()), 0.3, random_state=0)
        assert_array_equal(labels, flip_labels(Y, 0.3, random_state=0)[0])

    def test_input_is_left_alone(self):
        y = Y.copy()
        flip_labels(y, 0.5, "pairs", random_state=0)
        assert_array_equal(y, Y)

    @pytest.mark.parametrize("rate", [-0.1, 1.1, None, np.nan])
    @pytest.mark.parametrize("kind", ["symmetric", "pairs", {10: 20}])
    def test_rate(self, rate, kind):
        with pytest.raises(ValueError, match=rf"rate must lie in \[0, 1\], got {rate}"):
            flip_labels(Y, rate, kind)

    def test_kind(self):
        with pytest.raises(ValueError, match=r"kind must be .* got 'pair'"):
            flip_labels(Y, 0.1, "pair")
        with pytest.raises(ValueError, match="look at 60"):
            flip_labels(Y, 0.1, {10: 60})
        with pytest.raises(ValueError, match="look at 10"):
            flip_labels(Y, 0.1, {10: 10})
        with pytest.raises(ValueError, match="one class only"):
            flip_labels([1, 1], 0.5)


@pytest.fixture(scope="module")
def noisy(digits):
    X, y = digits
    labels, flipped = flip_labels(y, 0.2, random_state=0)
    X = X.reshape(len(X), -1) / 16
    model = BSDClassifier(prior_strength="noisy", max_epochs=20, random_state=0)
    return model.fit(X, labels), labels, flipped


class TestQuality:
    def test_is_the_labels_share_of_the_evidence(self, iris):
        """sum_t gamma^(T-t) p_t[y] over the sum of all classes' sums."""
        X, y = iris
        model = quick(
            prior_strength=7.0, discount=0.8, batch_size=-1, max_epochs=1, lr=0.05
        )
        model.set_params(lr_schedule="constant").partial_fit(X, y)
        expected = np.zeros((len(y), 3))
        for _ in range(4):
            proba = model.predict_proba(X)
            model.partial_fit(X, y)
            expected = 0.8 * expected + proba
        # The first prediction, before any step, is what is missing.
        first = model.posterior_.evidence().numpy() - expected
        assert_allclose(first.sum(1), 0.8**4, rtol=1e-4)
        evidence = expected + first
        share = evidence[np.arange(len(y)), y] / evidence.sum(1)
        assert_allclose(label_quality(model), share, rtol=1e-4)

    def test_finds_wrong_labels(self, noisy):
        model, _, flipped = noisy
        quality = label_quality(model)
        assert ((quality >= 0) & (quality <= 1)).all()
        assert roc_auc_score(flipped, -quality) > 0.98

    @pytest.mark.parametrize("dtype", ["float32", "float16", "compact-4"])
    def test_any_store(self, digits, noisy, dtype):
        X, _ = digits
        _, labels, flipped = noisy
        model = quick(posterior_dtype=dtype, max_epochs=10)
        quality = label_quality(model.fit(X.reshape(len(X), -1) / 16, labels))
        assert ((quality >= 0) & (quality <= 1)).all()
        assert roc_auc_score(flipped, -quality) > 0.95

    @pytest.mark.parametrize("dtype", ["float32", "float16", "compact-2"])
    def test_no_evidence(self, iris, dtype):
        X, y = iris
        weight = np.arange(len(y)) % 2
        model = quick(posterior_dtype=dtype).fit(X, y, sample_weight=weight)
        quality = label_quality(model)
        assert_array_equal(np.isnan(quality), weight == 0)
        assert (weight[find_label_issues(model)["row"]] == 1).all()
        # The first epoch counts nothing by default.
        model = quick(max_epochs=1, posterior_dtype=dtype).fit(X, y)
        assert np.isnan(label_quality(model)).all()
        assert len(find_label_issues(model)) == 0
        with pytest.raises(ValueError, match="prior_strength='noisy'"):
            label_quality(quick(prior_strength=np.inf).fit(X, y))
        X = X.astype(np.float32)
        model = quick(prior_strength=1e9, batch_size=20).fit(X, y)
        with pytest.raises(ValueError, match=r"prior_strength=1e\+09 is so large"):
            label_quality(model)

    def test_not_a_classifier(self, iris):
        pipeline = make_pipeline(StandardScaler(), quick()).fit(*iris)
        assert_array_equal(label_quality(pipeline), label_quality(pipeline[-1]))
        assert len(label_quality(pipeline)) == len(iris[1])
        with pytest.raises(ValueError, match=r"got StandardScaler as last step"):
            label_quality(make_pipeline(StandardScaler()).fit(iris[0]))
        with pytest.raises(ValueError, match="not fitted"):
            label_quality(BSDClassifier())


class Given:
    """Stands for the shares of a classifier's samples: two samples at a time."""

    def __init__(self, shares, codes):
        self.shares, self.codes, self.n_classes = shares, codes, shares.shape[1]

    def parts(self):
        for start in range(0, len(self.codes), 2):
            yield slice(start, start + 2), self.shares[start : start + 2].copy()


def found_by(rule, shares, codes):
    """Return what a rule makes of shares."""
    given = Given(shares, codes)
    find = rule(given, shares[np.arange(len(codes)), codes])
    return np.concatenate([find(*part) for part in given.parts()])


class TestIssues:
    def test_columns(self, noisy):
        model, labels, _ = noisy
        issues = find_label_issues(model)
        assert list(issues.columns) == [
            "row",
            "given_label",
            "suggested_label",
            "given_mass",
            "suggested_mass",
        ]
        assert_array_equal(issues["given_label"], labels[issues["row"]])
        assert_array_equal(issues["given_mass"], label_quality(model)[issues["row"]])
        assert issues["given_mass"].is_monotonic_increasing
        assert (issues["given_label"] != issues["suggested_label"]).all()
        assert (issues["suggested_mass"] > issues["given_mass"]).mean() > 0.95

    def test_precision_recall_and_suggestions(self, noisy, digits):
        model, _, flipped = noisy
        issues = find_label_issues(model)
        found = np.zeros(len(flipped), bool)
        found[issues["row"]] = True
        assert flipped[found].mean() > 0.9
        assert found[flipped].mean() > 0.9
        wrong = flipped[issues["row"]]
        right = issues["suggested_label"] == digits[1][issues["row"]]
        assert right[wrong].mean() > 0.93

    def test_clean_labels(self, digits):
        X, y = digits
        model = BSDClassifier(prior_strength="noisy", max_epochs=20, random_state=0)
        issues = find_label_issues(model.fit(X.reshape(len(X), -1) / 16, y))
        assert len(issues) < 0.03 * len(y)

    def test_threshold(self, noisy):
        model, _, _ = noisy
        quality = label_quality(model)
        issues = find_label_issues(model, threshold=0.5)
        assert (quality[issues["row"]] < 0.5).all()
        rest = np.setdiff1d(np.flatnonzero(quality < 0.5), issues["row"])
        shares = model.posterior_.evidence()[torch.from_numpy(rest)]
        assert_array_equal(shares.argmax(1), model.posterior_.labels[rest])
        assert (issues["suggested_mass"] >= issues["given_mass"]).all()
        assert len(find_label_issues(model, threshold=0)) == 0
        some = find_label_issues(model, threshold=np.float32(0.5))
        assert len(some) == len(issues)
        for bad in (-1, 1.5, "low", None):
            with pytest.raises(
                ValueError, match=r"'confident', 'mixture'\] or a number"
            ):
                find_label_issues(model, threshold=bad)

    def test_confident_learning_by_hand(self):
        """Equations 1 and 2: thresholds 0.75 and 0.6."""
        from skbsd.label_noise import _confident_class

        shares = np.array(
            [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.76, 0.24], [0.5, 0.5]]
        )
        codes = np.array([0, 0, 1, 1, 1])
        thresholds = [0.75, (0.8 + 0.24 + 0.5) / 3]
        counted = [
            next((k for k in s.argsort()[::-1] if s[k] >= thresholds[k]), -1)
            for s in shares
        ]
        assert_array_equal(found_by(_confident_class, shares, codes), counted)
        assert list(counted) == [0, -1, 1, 0, -1]

    def test_mixture_finds_what_was_learnt_by_heart(self, digits):
        X, y = digits[0][:896] / 16, digits[1][:896]
        labels, flipped = flip_labels(y, 0.3, random_state=0)
        model = quick(max_epochs=20).fit(X, labels)
        assert model.score(X, labels) > 0.95
        assert len(find_label_issues(model)) < 0.2 * flipped.sum()
        issues = find_label_issues(model, threshold="mixture")
        listed = np.isin(np.arange(len(y)), issues["row"])
        assert flipped[listed].mean() > 0.8
        assert listed[flipped].mean() > 0.7
        assert (issues["suggested_label"] != issues["given_label"]).all()
        assert (np.diff(issues["given_mass"]) >= 0).all()

    def test_mixture_by_hand(self):
        from skbsd.label_noise import _mixture_class

        rng = np.random.default_rng(0)
        own = np.r_[rng.uniform(0.9, 0.95, 60), rng.uniform(0.4, 0.5, 20), np.nan]
        codes = np.arange(81) % 3
        shares = np.empty((81, 3))
        rows = np.arange(81)
        shares[rows, codes] = own
        shares[rows, (codes + 1) % 3] = 0.7 * (1 - own)
        shares[rows, (codes + 2) % 3] = 0.3 * (1 - own)
        found = found_by(_mixture_class, shares, codes)
        assert (found[:60] == -1).all()
        assert_array_equal(found[60:80], (codes[60:80] + 1) % 3)
        assert found[80] == -1
        # Most are of the lower kind: that is what these data are like.
        few = np.r_[:10, 60:80]
        assert (found_by(_mixture_class, shares[few], codes[few]) < 0).all()
        # All alike: there are no two kinds.
        alike = np.tile(shares[:1], (9, 1)), codes[:1].repeat(9)
        assert (found_by(_mixture_class, *alike) < 0).all()

    @pytest.mark.parametrize("threshold", ["auto", "confident", "mixture", 0.3])
    def test_some_samples_at_a_time(self, noisy, monkeypatch, threshold):
        model, _, _ = noisy
        expected = find_label_issues(model, threshold=threshold)
        quality = label_quality(model)
        monkeypatch.setattr(label_noise, "_PART", 700)
        found = find_label_issues(model, threshold=threshold)
        assert found.equals(expected)
        assert_array_equal(label_quality(model), quality)

    def test_labels_of_any_kind(self, iris):
        X, y = iris
        names = np.array(["setosa", "versicolor", "virginica"])
        labels, _ = flip_labels(names[y], 0.1, random_state=0)
        issues = find_label_issues(quick(max_epochs=40).fit(X, labels))
        assert len(issues) > 5
        assert set(issues["suggested_label"]) <= set(names)

    def test_without_pandas(self, noisy, monkeypatch):
        model, _, _ = noisy
        frame = find_label_issues(model)
        monkeypatch.setitem(sys.modules, "pandas", None)
        bunch = find_label_issues(model)
        for name in frame.columns:
            assert_array_equal(bunch[name], frame[name])
