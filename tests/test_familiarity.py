import numpy as np
import pytest
import torch
from helpers import quick
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import TensorDataset

from skbsd import BSDClassifier
from skbsd._familiarity import top_log_odds


class TestTopLogOdds:
    def test_closed_form(self):
        proba = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]], dtype=torch.float64)
        odds = top_log_odds(proba.log() + 3)  # a constant changes nothing
        assert_allclose(odds, np.log([0.7 / 0.3, 0.5 / 0.5]), atol=1e-12)

    def test_equal_logits_are_the_least_familiar(self):
        z = torch.randn(1_000, 5, generator=torch.Generator().manual_seed(0))
        assert float(top_log_odds(torch.full((1, 5), 9.0))) == pytest.approx(-np.log(4))
        assert (top_log_odds(z) > -np.log(4)).all()

    def test_two_classes(self):
        z = torch.tensor([[1.0, 4.0], [2.0, -1.0]])
        assert_allclose(top_log_odds(z), [3, 3])

    def test_tells_samples_apart_whose_probability_rounds_to_one(self):
        z = torch.tensor([[50.0, 0, 0], [60.0, 0, 0], [1e4, 0, 0]])
        assert (z.softmax(1).amax(1) == 1).all()
        assert_allclose(top_log_odds(z), np.array([50, 60, 1e4]) - np.log(2))


class TestScoreSamples:
    @pytest.mark.parametrize("calibration", [None, "cross-fit"])
    def test_is_the_log_odds_of_the_largest_probability(self, iris, calibration):
        X, y = iris
        model = quick(max_epochs=10, calibration=calibration).fit(X, y)
        scores = model.score_samples(X)
        assert scores.shape == (150,)
        assert scores.dtype == np.float64
        assert_allclose(expit(scores), model.predict_proba(X).max(axis=1), rtol=1e-6)

    def test_is_of_calibrated_logits(self, iris):
        X, y = iris
        model = quick(max_epochs=10, calibration="cross-fit").fit(X, y)
        assert model.temperature_ != 1
        calibrated = model.calibration_(model.forward(X))
        assert_array_equal(model.score_samples(X), top_log_odds(calibrated))

    def test_two_classes_give_the_size_of_the_decision_function(self, iris):
        X, y = iris
        model = quick(max_epochs=10).fit(X, y == 1)
        expected = np.abs(model.decision_function(X))
        assert_allclose(model.score_samples(X), expected, rtol=1e-5, atol=1e-6)

    def test_unfamiliar_classes_score_lower(self, digits):
        X, y = digits
        known = y < 6
        model = quick(max_epochs=10).fit(X[known][:500] / 16, y[known][:500])
        new, learnt = X[~known] / 16, X[known][500:] / 16
        assert np.median(model.score_samples(new)) < np.quantile(
            model.score_samples(learnt), 0.25
        )

    def test_pipeline_and_data_frame(self):
        X, y = load_iris(return_X_y=True, as_frame=True)
        pipeline = make_pipeline(StandardScaler(), quick()).fit(X, y.map(str))
        scores = pipeline.score_samples(X)
        inner = pipeline[-1].score_samples(StandardScaler().fit_transform(X))
        assert_array_equal(scores, inner)
        assert_array_equal(pipeline.score_samples(X[50:60]), scores[50:60])

    def test_dataset(self, iris):
        X, y = (torch.tensor(a) for a in iris)
        model = quick().fit(X.float(), y)
        scores = model.score_samples(TensorDataset(X.float(), y))
        assert_array_equal(scores, model.score_samples(X.float()))

    def test_prediction_views_are_averaged_first(self, digits):
        X, y = digits
        model = quick(prediction_views="flip").fit(X[:200], y[:200])
        mirrored = np.ascontiguousarray(X[..., ::-1])
        assert_array_equal(model.score_samples(X), model.score_samples(mirrored))
        assert_array_equal(model.score_samples(X), top_log_odds(model.forward(X)))

    def test_errors(self, iris):
        X, y = iris
        with pytest.raises(NotFittedError, match="not initialized"):
            BSDClassifier().score_samples(X)
        model = quick().fit(X, y)
        with pytest.raises(ValueError, match="X has 3 features"):
            model.score_samples(X[:, :3])
        with pytest.raises(ValueError, match="0 sample"):
            model.score_samples(X[:0])
