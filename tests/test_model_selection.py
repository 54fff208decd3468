"""Searches whose networks are trained in stacks, compared with scikit-learn's."""

import copy
import pickle
import tempfile
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from helpers import quick, weights
from modules import Convolution, Dropout, Linear, ReturnsTuple
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedKFold,
    StratifiedShuffleSplit,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EpochScoring
from torch import nn

from skbsd import BSDClassifier
from skbsd._fitting import Fitting
from skbsd.model_selection import StackedGridSearchCV
from skbsd.objectives import SelfDistillation

GRID = {"prior_strength": [5.0, "auto"], "lr": [3e-3, 1e-2]}


class Keeps:
    """A scorer that stores its arguments."""

    def __init__(self):
        self.models = []

    def __call__(self, estimator, X, y, sample_weight=None):
        self.models.append(copy.deepcopy(estimator))
        return estimator.score(X, y)


def both(estimator, grid, X, y, *, fit=None, stacked=None, **options):
    """Return scikit-learn's search and the stacked one, and the models of each."""
    searches, models = [], []
    options = {"cv": 3, "refit": False} | options
    for kind, extra in (
        (GridSearchCV, {}),
        (StackedGridSearchCV, {"stack": True} | (stacked or {})),
    ):
        keep = Keeps()
        scoring = options.get("scoring", keep)
        search = kind(estimator, grid, **(options | {"scoring": scoring}), **extra)
        searches.append(search.fit(X, y, **(fit or {})))
        models.append(keep.models)
    return (*searches, *models)


def double(**kwargs):
    """Return a classifier in double precision: its table is one batch."""
    return quick(**({"batch_size": -1, "max_epochs": 5} | kwargs))


def assert_same(one, other, tolerance):
    """Assert that two fitted classifiers are equal."""
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    a, b = one.posterior_, other.posterior_
    torch.testing.assert_close(a.mean(), b.mean(), rtol=0, atol=tolerance)
    assert torch.equal(a.visits, b.visits)
    assert one.history_[:, "train_loss"] == pytest.approx(
        other.history_[:, "train_loss"], abs=tolerance
    )
    assert vars(one).keys() == vars(other).keys()


def assert_all_same(one, other, ours, theirs, tolerance, n=None):
    n = len(theirs) if n is None else n
    assert other.n_stacked_ == n
    assert len(ours) == len(theirs) > 0
    for a, b in zip(theirs, ours, strict=True):
        assert_same(a, b, tolerance)
    for name in one.cv_results_:
        if name.startswith(("split", "mean_test", "rank")):
            np.testing.assert_allclose(
                one.cv_results_[name], other.cv_results_[name], atol=1e-6
            )


def test_networks_are_those_of_single_fits_in_double_precision(iris):
    X, y = iris
    grid = [GRID, {"discount": [0.9], "weight_decay": [0.0, 0.3]}]
    one, other, theirs, ours = both(double(), grid, X, y)
    assert theirs[0].module_.layers[0].weight.dtype == torch.float64
    assert_all_same(one, other, ours, theirs, 1e-9)


def test_networks_are_those_of_single_fits_in_batches(iris):
    # Folds of 37 and 38 samples: batches of 16, and last ones of 5, 6 or 17.
    X, y = iris[0][:149], iris[1][:149]
    grid = [GRID, {"random_state": [1], "prior_floor": [1e-3, 1e-2]}]
    one, other, theirs, ours = both(quick(batch_size=16), grid, X, y, cv=KFold(4))
    assert {len(m.posterior_) for m in ours} == {111, 112}
    assert_all_same(one, other, ours, theirs, 1e-5)


@pytest.mark.parametrize("n", [64, 65, 66])
def test_last_batches_of_any_size(iris, n):
    # With 64 and 65 of 128 samples, 1 is left over, which joins the batch before.
    X, y = iris[0][50:], iris[1][50:]
    rng = np.random.default_rng(0)
    rows = rng.permutation(100)
    splits = [(rows[: n + i], rows[n + i :]) for i in range(2)]
    one, other, theirs, ours = both(quick(batch_size=32), GRID, X, y, cv=splits)
    assert_all_same(one, other, ours, theirs, 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9, "lr": 0.05},
        {"optimizer": torch.optim.Adam, "weight_decay": 0.1},
        {"optimizer__amsgrad": True, "lr_schedule": "constant"},
        {
            "lr_schedule": "cosine",
            "optimizer__param_groups": [("layers.0.*", {"lr": 1e-3})],
        },
        {"evidence": "weighted", "class_weight": "balanced"},
        {"posterior_dtype": "float16", "batch_size": 16},
        {"prior_strength": float("inf")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(iris, options):
    grid = {"random_state": [0, 3]}
    if "lr" not in options:
        grid["lr"] = [1e-3, 1e-2]
    tolerance = 1e-4 if "batch_size" in options else 1e-9
    estimator = double(**options)
    one, other, theirs, ours = both(estimator, grid, *iris, cv=2)
    assert_all_same(one, other, ours, theirs, tolerance)


def test_sample_weight(iris):
    X, y = iris
    weight = np.random.default_rng(0).uniform(0, 2, len(y)).round(1)
    weight[:8] = 0  # left out: of the folds' samples other numbers are left
    result = both(double(), GRID, X, y, fit={"sample_weight": weight})
    assert_all_same(result[0], result[1], result[3], result[2], 1e-9)


def test_images_with_statistics_of_their_own(uint8_digits):
    X, y = uint8_digits[0][:90], uint8_digits[1][:90]
    one, other, theirs, ours = both(
        quick(batch_size=32, max_epochs=2, module__widths=(4, 8)),
        {"prior_strength": [20.0, 60.0]},
        X,
        y,
        cv=2,
    )
    # Batch normalisation's running statistics are among the weights.
    assert_all_same(one, other, ours, theirs, 1e-4)
    assert not np.array_equal(ours[0].image_mean_, ours[1].image_mean_)


def test_augmentation_draws_as_in_a_single_fit(digits):
    X, y = digits[0][:90], digits[1][:90]
    one, other, theirs, ours = both(
        quick(
            batch_size=32,
            max_epochs=2,
            module__widths=(4, 8),
            augmentation="flip-crop",
        ),
        {"lr": [1e-3, 1e-2]},
        X,
        y,
        cv=2,
    )
    assert_all_same(one, other, ours, theirs, 1e-4)


def test_networks_of_the_user(iris):
    for module in (Linear, ReturnsTuple, Linear(scale=2.0)):
        result = both(double(module=module), {"lr": [1e-3, 1e-2]}, *iris)
        assert_all_same(result[0], result[1], result[3], result[2], 1e-6)


def test_networks_that_differ_are_stacks_of_their_own(iris):
    grid = [
        {"module__hidden": [(8,), (16,)], "lr": [1e-3, 1e-2]},
        {"max_epochs": [2, 3]},
        {"module": [Linear], "module__scale": [1.0, 2.0]},
    ]
    one, other, theirs, ours = both(double(), grid, *iris)
    assert_all_same(one, other, ours, theirs, 1e-6)


def test_stacks_of_a_limited_size(iris):
    one, other, theirs, ours = both(double(), GRID, *iris, stacked={"max_stack": 5})
    assert_all_same(one, other, ours, theirs, 1e-9)


def test_pipelines(iris):
    X = iris[0] * [1, 10, 100, 0.1] + 5
    model = make_pipeline(StandardScaler(), PCA(), double())
    grid = {"pca__n_components": [2, 3], "bsdclassifier__lr": [1e-3, 1e-2]}
    one, other, theirs, ours = both(model, grid, X, iris[1])
    assert other.n_stacked_ == 12
    for a, b in zip(theirs, ours, strict=True):
        assert_same(a[-1], b[-1], 1e-9)
        np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), atol=1e-9)
    np.testing.assert_allclose(
        one.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"]
    )


def test_pipeline_with_metadata(iris):
    weight = np.linspace(0.5, 1.5, 150)
    model = make_pipeline(StandardScaler(), double())
    _, other, theirs, ours = both(
        model,
        {"bsdclassifier__lr": [1e-3, 1e-2]},
        *iris,
        fit={"bsdclassifier__sample_weight": weight},
    )
    assert other.n_stacked_ == 6
    for a, b in zip(theirs, ours, strict=True):
        assert_same(a[-1], b[-1], 1e-9)


@pytest.mark.parametrize("calibration", ["auto", "hold-out"])
def test_calibration_is_part_of_a_fit(iris, calibration):
    model = double(calibration=calibration, lr="auto", prior_strength="auto")
    grid = {"weight_decay": [0.0, 0.3], "random_state": [0, 1]}
    one, other, theirs, ours = both(model, grid, *iris)
    assert_all_same(one, other, ours, theirs, 1e-8)
    for a, b in zip(theirs, ours, strict=True):
        assert a.temperature_ == pytest.approx(b.temperature_, abs=1e-5)
        assert a.choice_.lr == pytest.approx(b.choice_.lr)
        np.testing.assert_allclose(
            a.out_of_fold_proba_, b.out_of_fold_proba_, atol=1e-5
        )
        assert a.calibration_.n_folds == b.calibration_.n_folds


def test_wrong_labels_choose_another_rule(digits):
    X, y = digits[0][:600].reshape(600, -1) / 16, digits[1][:600]
    wrong = np.where(np.arange(600) % 3 == 0, (y + 1) % 10, y)
    model = double(calibration="auto", max_epochs=20, module__hidden=(16,))
    one, other, theirs, ours = both(
        model, {"random_state": [0], "lr": [1e-2, "auto"]}, X, wrong, cv=2
    )
    assert "noisy" in {m.choice_.prior_strength for m in ours}
    assert_all_same(one, other, ours, theirs, 1e-7)


def test_a_fitted_member_goes_on_as_any_other(iris):
    X, y = iris
    *_, theirs, ours = both(
        quick(batch_size=32),
        {"lr": [1e-3, 1e-2]},
        X,
        y,
        cv=[(np.arange(150), np.arange(150))],
    )
    for a, b in zip(theirs, ours, strict=True):
        assert_same(a.partial_fit(X, y), b.partial_fit(X, y), 1e-5)


# The interface of scikit-learn


def test_refit_and_attributes(iris):
    X, y = iris
    names = np.array(["a", "b", "c"])[y]
    frame = pd.DataFrame(X, columns=list("pqrs"))
    search = StackedGridSearchCV(double(), GRID, cv=3, return_train_score=True)
    search.fit(frame, names)
    plain = GridSearchCV(double(), GRID, cv=3, return_train_score=True)
    plain.fit(frame, names)
    assert search.best_params_ == plain.best_params_
    assert search.best_score_ == pytest.approx(plain.best_score_)
    assert search.cv_results_.keys() == plain.cv_results_.keys()
    assert search.feature_names_in_.tolist() == list("pqrs")
    assert search.classes_.tolist() == ["a", "b", "c"]
    assert search.n_stacked_ == 12
    np.testing.assert_array_equal(search.predict(frame), plain.predict(frame))
    assert_same(search.best_estimator_, plain.best_estimator_, 0)
    assert vars(search).keys() - vars(plain).keys() == {
        "stack",
        "max_stack",
        "n_stacked_",
    }
    assert (search.cv_results_["mean_fit_time"] > 0.001).all()
    assert search.get_params()["estimator"] is search.estimator
    assert "__sklearn_clone__" not in vars(search.best_estimator_)
    assert "__sklearn_clone__" not in vars(search.scorer_._estimator)


def test_several_metrics_and_a_callable_refit(iris):
    def second(results):
        assert "rank_test_neg_log_loss" in results
        return 1

    scoring = ["accuracy", "neg_log_loss"]
    one, other, *_ = both(double(), GRID, *iris, scoring=scoring, refit=second)
    assert other.best_index_ == one.best_index_ == 1
    assert other.n_stacked_ == 12
    for name in one.cv_results_:
        if "test" in name:
            np.testing.assert_allclose(
                one.cv_results_[name], other.cv_results_[name], atol=1e-9
            )
    assert_same(one.best_estimator_, other.best_estimator_, 0)


def test_nothing_is_trained_twice(iris, monkeypatch):
    def train(self):
        raise AssertionError("trained by itself")

    monkeypatch.setattr(Fitting, "train", train)
    search = StackedGridSearchCV(double(), GRID, cv=3, refit=False, error_score="raise")
    scores = search.fit(*iris).cv_results_["mean_test_score"]
    assert len(scores) == 4
    with pytest.raises(AssertionError, match="by itself"):
        search.set_params(refit=True).fit(*iris)


def test_groups_and_random_splits(iris):
    groups = np.arange(150) % 7
    one, other, theirs, ours = both(
        double(), GRID, *iris, cv=GroupKFold(3), fit={"groups": groups}
    )
    assert_all_same(one, other, ours, theirs, 1e-9)
    # Splits that are drawn anew whenever they are asked for.
    splitter = StratifiedShuffleSplit(3, test_size=0.3)
    search = StackedGridSearchCV(double(), GRID, cv=splitter, stack=True).fit(*iris)
    assert search.n_stacked_ == 12
    # A generator can be asked once.
    splits = StratifiedKFold(3).split(*iris)
    search = StackedGridSearchCV(double(), GRID, cv=splits, stack=True).fit(*iris)
    assert search.n_stacked_ == 12


def test_metadata_routing(iris):
    with sklearn.config_context(enable_metadata_routing=True):
        model = double().set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=False)
        search = StackedGridSearchCV(model, GRID, cv=GroupKFold(3), stack=True)
        weight, groups = np.linspace(0.5, 1, 150), np.arange(150) % 7
        search.fit(*iris, sample_weight=weight, groups=groups)
        plain = GridSearchCV(model, GRID, cv=GroupKFold(3))
        plain.fit(*iris, sample_weight=weight, groups=groups)
    assert search.n_stacked_ == 12
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


def test_several_processes(iris):
    X, y = iris
    search = StackedGridSearchCV(
        double(), GRID, cv=3, n_jobs=2, refit=False, scoring="neg_log_loss"
    )
    # Processes that are forked need not import torch.
    with joblib.parallel_config("multiprocessing"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        search.fit(X, y)
    one = clone(search).set_params(n_jobs=None).fit(X, y)
    assert search.n_stacked_ == 12
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], one.cv_results_["mean_test_score"]
    )


def test_copies(iris):
    search = StackedGridSearchCV(double(), GRID, cv=3)
    fitted = clone(search).fit(*iris)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(iris[0]), fitted.predict(iris[0]))
    assert again.n_stacked_ == 12
    assert vars(clone(fitted)).keys() == vars(search).keys()
    assert clone(fitted).fit(*iris).n_stacked_ == 12


def test_global_state_is_left_alone(iris):
    model = double()
    before = dict(vars(model)), torch.get_rng_state()
    StackedGridSearchCV(model, GRID, cv=2).fit(*iris)
    assert vars(model) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack": "yes"}, "stack"),
        ({"max_stack": 1}, "max_stack"),
        ({"cv": "three"}, "cv"),
        ({"refit": "best", "scoring": ["accuracy", "f1"]}, "refit"),
    ],
)
def test_bad_parameters(iris, options, message):
    with pytest.raises(ValueError, match=message):
        StackedGridSearchCV(double(), GRID, **options).fit(*iris)


def test_unknown_parameter_of_the_estimator(iris):
    with pytest.raises(ValueError, match="depth"):
        StackedGridSearchCV(double(), {"depth": [1, 2]}).fit(*iris)


# Fits that fail


def test_fits_that_fail_get_the_error_score(iris):
    grid = {"lr": [1e-2, -1.0]}
    search = StackedGridSearchCV(double(), grid, cv=3, refit=False, stack=True)
    with (
        pytest.warns(FitFailedWarning, match="3 fits failed"),
        pytest.warns(UserWarning, match="test scores are non-finite"),
    ):
        search.fit(*iris)
    assert np.isnan(search.cv_results_["mean_test_score"][1])
    assert search.cv_results_["mean_test_score"][0] > 0.3
    assert search.n_stacked_ == 3
    with pytest.raises(ValueError, match="'lr' parameter"):
        search.set_params(error_score="raise").fit(*iris)


def test_one_that_diverges_leaves_the_others_alone(iris):
    grid = {"lr": [1e-3, 1e30]}
    model = double(optimizer=torch.optim.SGD)
    search = StackedGridSearchCV(
        model, grid, cv=2, refit=False, stack=True, error_score=-1.0
    )
    with pytest.warns(FitFailedWarning, match="DivergenceError"):
        search.fit(*iris)
    one = GridSearchCV(model, {"lr": [1e-3]}, cv=2, refit=False).fit(*iris)
    scores = search.cv_results_["mean_test_score"]
    np.testing.assert_allclose(scores, [one.cv_results_["mean_test_score"][0], -1])
    assert search.n_stacked_ == 2


def test_an_interrupt_ends_the_search(iris):
    class Pressed(Linear):
        steps = 0

        def forward(self, x):
            type(self).steps += 1
            if self.steps == 9:
                raise KeyboardInterrupt
            return super().forward(x)

    search = StackedGridSearchCV(double(module=Pressed), GRID, cv=2, stack=True)
    with pytest.raises(KeyboardInterrupt):
        search.fit(*iris)
    assert not hasattr(search, "cv_results_")


# What is not stacked


class DependsOnValues(Linear):
    def forward(self, x):
        x = super().forward(x)
        return x if x.sum() > 0 else 2 * x


class Unused(Linear):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(2, 2)


class OwnStep(BSDClassifier):
    def train_step(self, batch, **fit_params):
        return super().train_step(batch, **fit_params)


class OwnObjective(BSDClassifier):
    class Objective(SelfDistillation):
        pass

    def make_objective(self):
        return self.Objective(self.prior_strength, self.evidence)


class Wrapper(ClassifierMixin, BaseEstimator):
    def __init__(self, inner=None, lr=1e-3):
        self.inner = inner
        self.lr = lr

    def fit(self, X, y):
        self.model_ = clone(self.inner).set_params(lr=self.lr).fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        return self.model_.predict(X)


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (double(module=Dropout), "randomness"),
        (double(module=nn.Sequential(nn.Dropout(), nn.Linear(4, 3))), "Dropout"),
        (double(module=DependsOnValues), "vmap cannot run"),
        (double(module=Unused), "do not depend on"),
        (double(callbacks=[EpochScoring("accuracy", name="x")]), "callbacks"),
        (double(precision="bfloat16"), "bfloat16"),
        (double(posterior_dtype="compact-2"), "CompactPosterior"),
        (double(posterior_folder=tempfile.gettempdir()), "posterior_folder="),
        (double(averaging="ema"), "averaging='ema'"),
        (double(optimizer=torch.optim.RMSprop), "RMSprop"),
        (double(iterator_train__num_workers=0), "DataLoader"),
        (OwnStep(calibration=None, max_epochs=2), "train_step of its own"),
        (OwnObjective(calibration=None, max_epochs=2), "not SelfDistillation"),
        (Wrapper(double()), "Wrapper is neither a BSDClassifier"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_others_are_fitted_one_by_one_with_a_warning(iris, estimator, reason):
    grid = {"lr": [1e-3, 1e-2]}
    search = StackedGridSearchCV(estimator, grid, cv=2, refit=False, stack=True)
    with pytest.warns(RuntimeWarning, match=f"4 of 4 fits.*{reason}") as warned:
        search.fit(*iris)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    plain = GridSearchCV(estimator, grid, cv=2, refit=False)
    plain.fit(*iris)
    assert search.n_stacked_ == 0
    if estimator.get_params().get("random_state") is not None:
        np.testing.assert_array_equal(
            plain.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
        )


def test_tables_too_large_to_be_converted_at_once(iris, monkeypatch):
    monkeypatch.setattr("skbsd._loading.COPY", 10)
    X, y = iris[0].astype(np.float64), iris[1]
    estimator = quick(batch_size=32, max_epochs=3)
    one, other, theirs, ours = both(estimator, GRID, X, y)
    assert theirs[0].module_.layers[0].weight.dtype == torch.float32
    assert_all_same(one, other, ours, theirs, 1e-5)


def test_other_estimators(iris):
    search = StackedGridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]})
    with pytest.warns(RuntimeWarning, match="LogisticRegression is neither"):
        search.fit(*iris)
    assert search.score(*iris) > 0.9


def test_a_part_of_the_fits_is_stacked(iris):
    grid = [{"lr": [1e-3, 1e-2]}, {"averaging": ["ema"]}, {"max_epochs": [7]}]
    search = StackedGridSearchCV(double(), grid, cv=2, refit=False, stack=True)
    with pytest.warns(RuntimeWarning, match=r"2 of 8 fits.*averaging='ema' \(2\)"):
        search.fit(*iris)
    assert search.n_stacked_ == 6


def test_auto_stacks_what_is_faster(iris, digits):
    X, y = digits[0][:60], digits[1][:60]
    search = StackedGridSearchCV(quick(module=Convolution), GRID, cv=2, refit=False)
    with pytest.warns(RuntimeWarning, match="convolutional networks are faster"):
        search.fit(X, y)
    search = StackedGridSearchCV(double(), {"lr": [0.01]}, cv=3, refit=False)
    with pytest.warns(RuntimeWarning, match="so few networks"):
        search.fit(*iris)
    search = StackedGridSearchCV(double(), GRID, cv=3, refit=False, stack=False)
    assert search.fit(*iris).n_stacked_ == 0


def test_warnings_of_members_are_given_once_each(iris):
    grid = {"prior_strength": [0.5, 100.0]}
    search = StackedGridSearchCV(
        double(max_epochs=20), grid, cv=2, refit=False, stack=True
    )
    with pytest.warns(UserWarning, match="comes from the label") as warned:
        search.fit(*iris)
    plain = GridSearchCV(double(max_epochs=20), grid, cv=2, refit=False)
    with pytest.warns(UserWarning, match="comes from the label") as expected:
        plain.fit(*iris)
    assert [str(w.message) for w in warned] == [str(w.message) for w in expected]


def test_callbacks_of_scikit_learn(iris, capsys):
    callbacks = pytest.importorskip("sklearn.callback")  # from 1.9 on
    pytest.importorskip("rich")
    search = StackedGridSearchCV(double(), GRID, cv=2)
    search.set_callbacks(callbacks.ProgressBar()).fit(*iris)
    assert search.n_stacked_ == 8
    assert "StackedGridSearchCV - search" in capsys.readouterr().out
