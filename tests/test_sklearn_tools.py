"""Saving and loading, and the tools of scikit-learn around an estimator."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from helpers import quick, same_weights
from modules import (
    Linear,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    StratifiedKFold,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skorch.exceptions import DeviceWarning


class TestPersistence:
    @pytest.mark.parametrize("precise", [True, False])
    def test_pickle_and_joblib_and_deepcopy(self, iris, tmp_path, precise):
        X, y = iris if precise else (iris[0][::2], iris[1][::2])
        model = quick().fit(X, y)
        joblib.dump(model, tmp_path / "model.joblib")
        for other in (
            pickle.loads(pickle.dumps(model)),
            joblib.load(tmp_path / "model.joblib"),
            copy.deepcopy(model),
        ):
            assert_array_equal(other.predict_proba(X), model.predict_proba(X))
            assert torch.equal(other.posterior_.mean(), model.posterior_.mean())
            assert other.device == "auto"
            # And training goes on, with the optimizer's state and the generators.
            a = copy.deepcopy(model).partial_fit(X, y)
            assert same_weights(other.partial_fit(X, y), a)
            assert other.posterior_.visits.tolist() == [6] * len(y)

    def test_from_a_gpu_to_a_machine_without(self, iris, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        model = quick().fit(*iris)
        model.device, model.device_ = "cuda", torch.device("cuda")
        with pytest.warns(DeviceWarning):
            other = pickle.loads(pickle.dumps(model))
        assert other.device_.type == torch.device(other.device).type == "cpu"
        assert other.predict(iris[0]).shape == (150,)

    def test_unfitted(self):
        assert pickle.loads(pickle.dumps(quick(lr=0.5))).lr == 0.5

    @pytest.mark.parametrize("safe", [False, True])
    def test_save_and_load_params(self, iris, tmp_path, safe):
        model = quick(module=Linear).fit(*iris)
        files = {"f_params": tmp_path / "params", "f_posterior": tmp_path / "posterior"}
        if not safe:
            files["f_history"] = tmp_path / "history.json"
            files["f_optimizer"] = tmp_path / "optimizer"
        model.save_params(**files, use_safetensors=safe)
        other = quick(module=Linear, random_state=1, max_epochs=1).fit(*iris)
        other.load_params(**files, use_safetensors=safe)
        assert same_weights(model, other)
        assert torch.equal(model.posterior_.mean(), other.posterior_.mean())
        assert other.device == "auto"
        fresh = quick(module=Linear).initialize()
        fresh.load_params(f_params=files["f_params"], use_safetensors=safe)
        assert_allclose(
            fresh.predict_proba(iris[0]), model.predict_proba(iris[0]), atol=1e-6
        )

    def test_beliefs_about_other_samples(self, iris, tmp_path):
        """Rows of X in another order, whose targets would be those of other samples."""
        X, y = iris
        order = np.random.default_rng(0).permutation(len(y))
        quick().fit(X[order], y[order]).save_params(f_posterior=tmp_path / "beliefs")
        model = quick().fit(X, y)
        before = model.posterior_.concentration()
        with pytest.raises(ValueError, match=r"other data: \d+ of 150 labels differ"):
            model.load_params(f_posterior=tmp_path / "beliefs")
        assert torch.equal(model.posterior_.concentration(), before)
        model.posterior_.labels = model.posterior_.labels[order]
        with pytest.raises(ValueError, match="samples in posterior_ differ from y"):
            model.partial_fit(X, y)

    def test_compiled_model_is_saved_as_the_plain_one(self, iris):
        model = quick(module=Linear, compile=True, compile__backend="eager").fit(*iris)
        assert set(model.module_.state_dict()) == {"layer.weight", "layer.bias"}
        other = pickle.loads(pickle.dumps(model))
        assert_array_equal(other.predict_proba(iris[0]), model.predict_proba(iris[0]))


class TestMetaEstimators:
    def test_grid_search(self, iris):
        model = make_pipeline(StandardScaler(), quick(max_epochs=20))
        search = GridSearchCV(
            model,
            {"bsdclassifier__prior_strength": [10.0, np.inf]},
            scoring=["accuracy", "neg_log_loss"],
            refit="accuracy",
            n_jobs=2,
            cv=3,
        ).fit(*iris)
        assert search.best_score_ > 0.9

    def test_halving_grid_search(self, iris):
        search = HalvingGridSearchCV(
            quick(max_epochs=20), {"lr": [1e-5, 1e-2]}, n_jobs=2, random_state=0, cv=3
        ).fit(*iris)
        assert search.best_params_ == {"lr": 1e-2}

    def test_cross_validate(self, iris):
        scores = cross_validate(
            quick(max_epochs=20), *iris, n_jobs=2, cv=3, return_estimator=True
        )
        assert scores["test_score"].mean() > 0.8
        assert all(len(e.posterior_) == 100 for e in scores["estimator"])

    def test_column_transformer(self, iris):
        X, y = iris
        frame = pd.DataFrame(X, columns=list("abcd")).assign(
            e=np.array(["u", "v"])[y % 2]
        )
        model = make_pipeline(
            make_column_transformer(
                (StandardScaler(), list("abcd")), (OneHotEncoder(), ["e"])
            ),
            quick(max_epochs=20),
        )
        assert model.fit(frame, y).score(frame, y) > 0.9

    @pytest.mark.parametrize("n_classes", [2, 3])
    @pytest.mark.skipif(
        sklearn.utils.fixes.parse_version(sklearn.__version__)
        < sklearn.utils.fixes.parse_version("1.8"),
        reason="scikit-learn has temperature scaling from 1.8 on",
    )
    def test_temperature_scaling(self, iris, n_classes):
        X, y = iris
        y = np.minimum(y, n_classes - 1)
        model = quick(max_epochs=20)
        scaled = CalibratedClassifierCV(model, method="temperature", cv=3).fit(X, y)
        assert scaled.score(X, y) > 0.8
        frozen = FrozenEstimator(model.fit(X, y))
        scaled = CalibratedClassifierCV(frozen, method="temperature").fit(X, y)
        assert_array_equal(scaled.predict(X), model.predict(X))

    def test_metadata_routing(self, iris):
        X, y = iris
        weight = np.random.default_rng(0).random(150)
        cv = StratifiedKFold(3)
        with sklearn.config_context(enable_metadata_routing=True):
            model = quick().set_fit_request(sample_weight=True)
            model.set_score_request(sample_weight=True)
            scaler = StandardScaler().set_fit_request(sample_weight=False)
            pipeline = make_pipeline(scaler, model)
            scores = cross_validate(
                pipeline, X, y, params={"sample_weight": weight}, cv=cv
            )
            pipeline.fit(X, y, sample_weight=weight)
        assert np.isfinite(scores["test_score"]).all()
        scaled = StandardScaler().fit_transform(X)
        assert same_weights(pipeline[-1], quick().fit(scaled, y, sample_weight=weight))
        assert not same_weights(pipeline[-1], quick().fit(scaled, y))
