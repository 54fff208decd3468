"""Invalid input raises an error with the value, the expectation and advice.

And nothing is lost: an estimator that was fitted before is as it was.
"""

import copy
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick, weights
from modules import (
    Convolution,
    Images,
    Interrupting,
    Linear,
    ReturnsNaN,
    ReturnsProbabilities,
    ReturnsString,
    Squeezed,
)
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping
from torch.utils.data import (
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from skbsd import BSDClassifier

NAN, INF = float("nan"), float("inf")

PARAMETERS = [
    ("prior_strength", [0, -1.0, NAN, "100", None]),
    ("discount", [0, -0.5, 1.1, NAN, INF, None]),
    ("prior_floor", [0, -1e-3, NAN, INF, "1e-3", None]),
    ("max_epochs", [-1, 2.5, None]),
    ("schedule_epochs", [0, -1, 2.5, "long"]),
    ("batch_size", [0, -2, 1.5, None]),
    ("lr", [-1.0, NAN, "0.1"]),
    ("lr_schedule", ["unknown", None]),
    ("weight_decay", [-1.0, NAN]),
    ("augmentation", ["unknown", 3]),
    ("image_shape", [(8, 8), (1, 8, 0), "188", (1, 2, 2.0)]),
    ("precision", ["float8", None]),
    ("compile", ["yes"]),
    ("device", ["unknown", 3, "cuda:99"]),
    ("optimizer", ["sgd", None]),
    ("train_split", [0.2]),
    ("class_weight", ["unknown"]),
    ("callbacks", ["unknown", 3]),
    ("random_state", ["zero", -1]),
    ("module", ["mlp", 3]),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in PARAMETERS for value in values],
)
def test_parameters(iris, name, value):
    model = quick(**{name: value})
    with pytest.raises(ValueError, match=name) as error:
        model.fit(*iris)
    shown = value if isinstance(value, str) else repr(value)
    assert shown in str(error.value)
    assert not hasattr(model, "module_")


def test_floor_above_strength(iris):
    with pytest.raises(ValueError, match=r"prior_floor=10 must be smaller than"):
        quick(prior_floor=10, prior_strength=0.5).fit(*iris)


def test_typing_error(iris):
    with pytest.raises(ValueError, match=r"'max_epoch' .*Did you mean max_epochs"):
        BSDClassifier(max_epoch=3).fit(*iris)
    with pytest.raises(ValueError, match=r"Did you mean iterator_train__\*"):
        BSDClassifier(iterator_train_shuffle=True).fit(*iris)


class TestY:
    @pytest.mark.parametrize("value", [NAN, INF])
    def test_not_finite(self, iris, value):
        y = iris[1].astype(float)
        y[7] = value
        with pytest.raises(ValueError, match=r"Input y contains (NaN|infinity)"):
            quick().fit(iris[0], y)

    def test_missing_string(self, iris):
        y = np.array(["a", "b", "c"], dtype=object)[iris[1]]
        y[0] = NAN
        with pytest.raises(ValueError, match="y contains NaN or None, first in row 0"):
            quick().fit(iris[0], y)

    def test_continuous(self, iris):
        with pytest.raises(ValueError, match="continuous"):
            quick().fit(iris[0], iris[0][:, 0])

    def test_multi_label(self, iris):
        one_hot = np.eye(3, dtype=int)[iris[1]]
        with pytest.raises(ValueError, match=r"\(150, 3\).*argmax"):
            quick().fit(iris[0], one_hot)

    @pytest.mark.parametrize("label", [1, "a", True])
    def test_one_class(self, iris, label):
        with pytest.raises(ValueError, match=f"single class.*{label}.*at least two"):
            quick().fit(iris[0], np.full(150, label))

    def test_none(self, iris):
        with pytest.raises(ValueError, match="requires y to be passed"):
            quick().fit(iris[0])


class TestWeights:
    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            (np.zeros(150), "zero"),
            (-np.ones(150), "[Nn]egative"),
            (np.full(150, NAN), "NaN"),
            (np.full(150, INF), "infinity"),
            (np.ones(149), r"149|\(150,\)"),
            (np.ones((150, 2)), "1D"),
        ],
    )
    def test_sample_weight(self, iris, weight, message):
        with pytest.raises(ValueError, match=message):
            quick().fit(*iris, sample_weight=weight)

    @pytest.mark.parametrize("value", [-1.0, NAN, INF])
    def test_class_weight(self, iris, value):
        with pytest.raises(ValueError, match=r"class_weight=.*negative values, NaN"):
            quick(class_weight={0: value, 1: 1, 2: 1}).fit(*iris)

    def test_one_class_left(self, iris):
        X, y = iris
        with pytest.raises(ValueError, match=r"only one class is left .*: .*2"):
            quick().fit(X, y, sample_weight=(y == 2))

    def test_class_weight_of_unknown_class(self, iris):
        with pytest.raises(ValueError, match="class"):
            quick(class_weight={7: 1.0}).fit(*iris)


class TestModule:
    def test_width_of_the_output(self, iris):
        for width in (1, 2, 4):
            model = quick(module=Linear, module__out_features=width)
            with pytest.raises(ValueError, match=rf"\(128, {width}\).*3 classes.*last"):
                model.fit(*iris)
            with pytest.raises(NotFittedError):
                model.predict(iris[0])

    def test_probabilities(self, iris):
        with pytest.warns(UserWarning, match="probabilities; expected logits"):
            quick(module=ReturnsProbabilities).fit(*iris)

    def test_log_probabilities(self, iris):
        network = torch.nn.Sequential(Linear(), torch.nn.LogSoftmax(dim=1))
        with pytest.warns(UserWarning, match="logarithms of probabilities"):
            quick(module=network).fit(*iris)

    def test_no_tensor(self, iris):
        with pytest.raises(TypeError, match="returned str; expected a Tensor"):
            quick(module=ReturnsString).fit(*iris)

    def test_nan(self, iris):
        with pytest.raises(ValueError, match=r"NaN or infinite in epoch 1 .*lr=0.01"):
            quick(module=ReturnsNaN).fit(*iris)

    def test_none_without_data(self):
        with pytest.raises(ValueError, match="module=None chooses the network"):
            BSDClassifier().initialize()

    @pytest.mark.parametrize(
        "parameters",
        [
            {"optimizer__unknown": 1},
            {"module__unknown": 1},
            {"callbacks": [EarlyStopping()]},  # monitors valid_loss: there is none
            {"optimizer": torch.optim.SGD, "lr": 1e38, "lr_schedule": "constant"},
        ],
        ids=["optimizer", "module", "callback", "rate"],
    )
    def test_a_refit_that_fails_at_the_start_changes_nothing(self, iris, parameters):
        X, y = iris
        model = quick(max_epochs=5).fit(X, y)
        proba = model.predict_proba(X)
        model.set_params(**parameters)
        with pytest.raises((TypeError, ValueError, KeyError)):
            model.fit(X[:, :2], np.array(["a", "b", "c"])[y])
        assert_array_equal(model.classes_, [0, 1, 2])
        assert_array_equal(model.predict_proba(X), proba)
        assert model.n_iter_ == len(model.history) == 5

    def test_a_partial_fit_that_fails_changes_nothing(self, digits):
        X, y = (a[:100] for a in digits)
        model = quick(module=Convolution).fit(X, y)
        with pytest.raises(ValueError, match=r"\(1, 6, 6\).*\(1, 8, 8\)"):
            model.partial_fit(X[:, :, :6, :6], y)
        assert len(model.history) == 3
        assert (model.posterior_.visits == 3).all()
        model.partial_fit(X, y)
        assert (model.posterior_.visits == 6).all()

    def test_fitted_estimator_survives(self, iris):
        X, y = iris
        model = quick().fit(X, y)
        proba = model.predict_proba(X)
        for bad in (
            {"module": Linear, "module__out_features": 2},
            {"module": Linear, "module__unknown": 2},
            {"module": ReturnsString},
            {"lr": -1.0},
        ):
            with pytest.raises((ValueError, TypeError)):
                model.set_params(**bad).fit(X, y)
            model.set_params(module=None, lr=0.01)
            assert_array_equal(model.predict_proba(X), proba)
            assert_array_equal(model.classes_, [0, 1, 2])
            assert len(model.history) == 3


class TestDivergence:
    def test_stops_and_keeps_the_last_finite_weights(self, iris):
        X, y = iris
        model = quick(
            module=Linear,
            optimizer=torch.optim.SGD,
            lr_schedule="constant",
            lr=1e-3,
            max_epochs=1,
        ).fit(X, y)
        model.set_params(lr=1e38, max_epochs=20)
        with pytest.raises(ValueError, match=r"epoch \d+ .*lr=1e\+38.*Lower lr"):
            model.partial_fit(X, y)
        assert np.isfinite(model.predict_proba(X)).all()
        assert model.posterior_.mean().isfinite().all()
        now = list(model.module_.state_dict().values())
        assert all(t.isfinite().all() for t in now)

    def test_the_epoch_does_not_count(self, iris):
        model = quick(module=ReturnsNaN)
        with pytest.raises(ValueError, match="epoch 1"):
            model.fit(*iris)
        assert model.n_iter_ == 0
        assert all(p.isfinite().all() for p in model.module_.parameters())

    def test_weights_of_the_epoch_before(self, iris):
        """After divergence in the second epoch, the results of the first remain."""
        kwargs = {"module": Linear, "lr_schedule": "constant"}
        kwargs |= {"optimizer": torch.optim.SGD, "batch_size": -1, "weight_decay": 0.0}
        model = quick(lr=0.5, max_epochs=1, **kwargs).fit(*iris)
        proba = model.predict_proba(iris[0])
        with torch.no_grad():
            model.optimizer_.param_groups[0]["lr"] = INF
        with pytest.raises(ValueError, match="epoch 2"):
            model.partial_fit(*iris)
        assert_array_equal(model.predict_proba(iris[0]), proba)


class TestInterrupt:
    def test_leaves_a_usable_model(self, iris):
        """Ctrl-C in the fourth epoch: six steps of two per epoch are done."""
        X, y = iris
        model = quick(module=Interrupting, max_epochs=20)
        with pytest.warns(ConvergenceWarning, match=r"interrupted in epoch 4 of 20"):
            model.fit(X, y)
        assert model.n_iter_ == 3
        assert (model.posterior_.visits == 3).all()
        assert model.predict(X).shape == (150,)
        model.module_.steps = 100
        model.set_params(max_epochs=1).partial_fit(X, y)
        assert (model.posterior_.visits == 4).all()

    def test_the_warning_points_at_the_users_line(self, iris):
        model = quick(module=Interrupting, max_epochs=20)
        with pytest.warns(ConvergenceWarning) as caught:
            model.fit(*iris)
        assert caught[0].filename == __file__

    def test_without_a_finished_epoch_nothing_changes(self, iris):
        model = quick(module=Interrupting, batch_size=15)
        with pytest.raises(KeyboardInterrupt):
            model.fit(*iris)
        assert not hasattr(model, "module_")
        for method in ("fit", "partial_fit"):
            model = quick(module=Interrupting).fit(*iris)
            before, attributes = weights(model), vars(model).keys()
            optimizer = copy.deepcopy(model.optimizer_.state_dict())
            beliefs = model.posterior_.concentration()
            model.module_.steps = 5  # one step is done
            model.set_params(batch_size=15)
            with pytest.raises(KeyboardInterrupt):
                getattr(model, method)(*iris)
            assert all(map(torch.equal, before, weights(model)))
            assert torch.equal(model.posterior_.concentration(), beliefs)
            assert vars(model).keys() == attributes
            assert len(model.history_) == model.n_iter_ == 3
            state = model.optimizer_.state_dict()["state"]
            for i, values in optimizer["state"].items():
                for name, value in values.items():
                    assert torch.equal(state[i][name], value)

    def test_while_callbacks_hear_of_the_end_of_an_epoch(self, iris):
        """Unlike early stopping, which also raises KeyboardInterrupt, it warns."""

        class Slow(Callback):
            def on_epoch_end(self, net, **kwargs):
                if len(net.history) == 2:
                    signal.raise_signal(signal.SIGINT)

        class Stops(Callback):
            def on_epoch_end(self, net, **kwargs):
                if len(net.history) == 2:
                    raise KeyboardInterrupt

        with pytest.warns(ConvergenceWarning, match=r"interrupted in epoch 2 of 5"):
            quick(max_epochs=5, callbacks=[Slow]).fit(*iris)
        assert quick(max_epochs=5, callbacks=[Stops]).fit(*iris).n_iter_ == 2

    def test_stops_a_search(self, iris):
        search = GridSearchCV(
            quick(module=Interrupting, max_epochs=20), {"lr": [0.01, 0.1]}, cv=2
        )
        with pytest.raises(KeyboardInterrupt):
            search.fit(*iris)


class TestPrediction:
    @pytest.mark.parametrize(
        "method", ["predict", "predict_proba", "decision_function"]
    )
    def test_before_fit(self, iris, method):
        with pytest.raises(NotFittedError, match="not initialized yet"):
            getattr(BSDClassifier(), method)(iris[0])

    def test_number_of_features(self, iris):
        X, y = iris
        model = quick().fit(X, y)
        with pytest.raises(
            ValueError, match=r"3 features, but .* expecting 4 features"
        ):
            model.predict(X[:, :3])
        with pytest.raises(ValueError, match="3 features"):
            model.partial_fit(X[:, :3], y)

    def test_names_of_features(self, iris):
        frame = pd.DataFrame(iris[0], columns=list("abcd"))
        model = quick().fit(frame, iris[1])
        with pytest.raises(ValueError, match="feature names"):
            model.predict(frame[list("abdc")])

    def test_names_of_pixels(self, digits):
        frame = pd.DataFrame(digits[0][:50].reshape(50, -1)).add_prefix("pixel")
        model = quick(image_shape=(1, 8, 8), max_epochs=1).fit(frame, digits[1][:50])
        assert model.feature_names_in_[63] == "pixel63"
        with pytest.raises(ValueError, match="feature names"):
            model.predict(frame[frame.columns[::-1]])

    def test_image_sizes(self, digits):
        X, y = (a[:100] for a in digits)
        model = quick(module=Convolution, max_epochs=1).fit(X, y)
        with pytest.raises(ValueError, match=r"\(1, 6, 6\).*\(1, 8, 8\)"):
            model.predict(X[:, :, :6, :6])
        with pytest.raises(ValueError, match="3 channels"):
            model.predict(X.repeat(3, 1))
        with pytest.raises(ValueError, match=r"\(64,\).*\(1, 8, 8\)"):
            model.predict(X.reshape(100, -1))

    def test_type_of_images(self, uint8_digits):
        X, y = (a[:100] for a in uint8_digits)
        model = quick(max_epochs=1).fit(X, y)
        with pytest.raises(ValueError, match=r"float images.*fitted on uint8"):
            model.predict(X / 255)
        with pytest.raises(ValueError, match=r"float images.*fitted on uint8"):
            model.predict(Images(torch.tensor(X / 255), y))
        model.fit(X / 255, y)
        with pytest.raises(ValueError, match=r"uint8 images.*fitted on float"):
            model.predict(X)

    def test_type_of_flat_images(self, uint8_digits):
        X, y = (a[:100].reshape(100, -1) for a in uint8_digits)
        model = quick(max_epochs=1, image_shape=(1, 8, 8)).fit(X, y.ravel())
        with pytest.raises(ValueError, match=r"float images.*fitted on uint8"):
            model.predict(X.astype(float))

    def test_squeezed_output(self, iris):
        model = quick(module=Squeezed).fit(*iris)
        with pytest.raises(ValueError, match=r"returned shape \(3,\).*expected"):
            model.predict(iris[0][:1])


class TestWeightsWithoutFit:
    """Attributes that `initialize` and `load_params` alone cannot provide."""

    def test_classes(self, iris):
        model = quick(module=Linear).initialize()
        assert model.predict_proba(iris[0]).shape == (150, 3)
        with pytest.warns(UserWarning, match=r"has no classes_.*predict_proba"):
            indices = model.predict(iris[0])
        assert_array_equal(indices, model.predict_proba(iris[0]).argmax(axis=1))

    def test_statistics_of_images(self, uint8_digits):
        model = quick(module=Convolution).initialize()
        assert model.predict_proba(uint8_digits[0][:5] / 255).shape == (5, 10)
        with pytest.raises(ValueError, match=r"standardised.*joblib"):
            model.predict_proba(uint8_digits[0][:5])


class TestPartialFit:
    def test_unseen_class(self, iris):
        X, y = iris
        model = quick().partial_fit(X[y < 2], y[y < 2])
        proba = model.predict_proba(X)
        with pytest.raises(ValueError, match=r"\[2\].*the classes are \[0, 1\]"):
            model.partial_fit(X, y)
        assert_array_equal(model.predict_proba(X), proba)
        with pytest.raises(ValueError, match=r"not among the known classes: \[0\]"):
            quick().partial_fit(X, y, classes=[1, 2])

    def test_other_classes(self, iris):
        model = quick().partial_fit(*iris)
        with pytest.raises(ValueError, match=r"classes=\[0, 1\] differ.*\[0, 1, 2\]"):
            model.partial_fit(*iris, classes=[0, 1])


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(4), 0


class TestDataset:
    def test_without_length(self):
        with pytest.raises(ValueError, match="Stream has no length"):
            quick().fit(Stream())

    def test_empty(self):
        with pytest.raises(ValueError, match="Dataset is empty"):
            quick().fit(Images([], []))

    def test_no_pairs(self):
        with pytest.raises(ValueError, match=r"pairs \(x, y\),.*got tuple of 1"):
            quick().fit(TensorDataset(torch.zeros(5, 4)))

    def test_sampling_with_replacement(self, iris):
        sampler = WeightedRandomSampler(
            np.ones(150), 150, generator=torch.Generator().manual_seed(0)
        )
        model = quick(iterator_train__sampler=sampler)
        with pytest.raises(ValueError, match="occurs more than once in the batch"):
            model.fit(*iris)

    @pytest.mark.parametrize("shuffle", [True, 1])
    def test_shuffled_predictions(self, iris, shuffle):
        message = rf"iterator_valid__shuffle={shuffle} would shuffle.*omit it"
        dataset = Images(torch.tensor(iris[0], dtype=torch.float32), iris[1])
        model = quick(iterator_valid__shuffle=shuffle)
        for given in (iris, (dataset,)):
            with pytest.raises(ValueError, match=message):
                model.fit(*given)
        assert not hasattr(model, "module_")
        model = quick().fit(dataset)
        proba = model.predict_proba(dataset)
        model.set_params(iterator_valid__shuffle=shuffle)
        for method in (model.predict, model.predict_proba, model.decision_function):
            with pytest.raises(ValueError, match=message):
                method(dataset)
        model.set_params(
            iterator_valid__shuffle=False,
            iterator_valid__sampler=SequentialSampler(dataset),
        )
        assert_array_equal(model.predict_proba(dataset), proba)

    def test_no_batch(self, iris):
        model = quick(iterator_train__drop_last=True, batch_size=1000)
        with pytest.raises(ValueError, match=r"no batch of 150 .*batch_size=1000"):
            model.fit(*iris)

    def test_collate_that_mixes_labels(self, iris):
        def collate(pairs):
            x, y = torch.utils.data.default_collate(pairs)
            return x, 0.5 * y

        with pytest.raises(ValueError, match="expected them unchanged"):
            quick(iterator_train__collate_fn=collate).fit(*iris)

    def test_loader(self, iris):
        loader = torch.utils.data.DataLoader(Images(*iris))
        with pytest.raises(TypeError, match=r"X is a DataLoader.*`dataset`"):
            quick().fit(loader, iris[1])

    def test_split_that_is_no_subset(self, iris):
        def split(dataset, y):
            return TensorDataset(torch.zeros(5, 4), torch.zeros(5)), None

        with pytest.raises(ValueError, match="train_split returned a TensorDataset"):
            quick(train_split=split).fit(*iris)

    def test_arguments_for_no_split(self, iris):
        with pytest.raises(
            TypeError, match=r"\['groups'\].*train_split, which is None"
        ):
            quick().fit(*iris, groups=np.ones(150))
