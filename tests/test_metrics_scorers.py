import pickle

import numpy as np
import pytest
from metric_calls import sample
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer as sklearn_get_scorer
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.preprocessing import scale

from skbsd import metrics
from skbsd.metrics import (
    brier_decomposition,
    expected_calibration_error,
    get_scorer,
    get_scorer_names,
    log_loss_decomposition,
    smooth_calibration_error,
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


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_are_attributes_of_the_module(data, name):
    scorer = getattr(metrics, name)
    assert name in metrics.__all__
    assert get_scorer(name) is not scorer
    assert str(get_scorer(name)) == str(scorer)
    X, y = data["strings"]
    classifier = LogisticRegression().fit(X, y)
    expected = get_scorer(name)(classifier, X, y)
    for each in (scorer, pickle.loads(pickle.dumps(scorer))):
        assert each(classifier, X, y) == expected
