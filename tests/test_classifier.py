"""What scikit-learn's users expect of BSDClassifier, beyond the common checks."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from modules import (
    Convolution,
    Dropout,
    Images,
    InPlace,
    Linear,
    ReturnsObject,
    ReturnsTuple,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skorch.exceptions import DeviceWarning
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.models import resnet18

from skbsd import BSDClassifier
from skbsd.networks import MLP, SmallResNet


def quick(**kwargs):
    return BSDClassifier(**({"max_epochs": 3, "random_state": 0} | kwargs))


def weights(model):
    return [t.clone() for t in model.module_.state_dict().values()]


def same_weights(one, other):
    return all(map(torch.equal, weights(one), weights(other)))


class TestAccuracy:
    """Without an argument but random_state."""

    @pytest.mark.parametrize(
        ("load", "least"),
        [(load_iris, 0.94), (load_wine, 0.96), (load_breast_cancer, 0.96)],
    )
    def test_tables(self, load, least):
        X, y = load(return_X_y=True)
        model = make_pipeline(StandardScaler(), BSDClassifier(random_state=0))
        assert cross_val_score(model, X, y, cv=5).mean() >= least

    def test_digits(self):
        X, y = load_digits(return_X_y=True)
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, test_size=0.25, random_state=0
        )
        model = BSDClassifier(image_shape=(1, 8, 8), random_state=0)
        assert model.fit(X_train, y_train).score(X_test, y_test) >= 0.985
        assert isinstance(model.module_, SmallResNet)


class TestMethod:
    def test_infinite_prior_is_training_with_cross_entropy(self, iris):
        """Step for step, against a loop written by hand."""
        X, y = iris
        model = quick(
            module=MLP(4, 3),
            prior_strength=np.inf,
            batch_size=-1,
            max_epochs=30,
            optimizer=torch.optim.SGD,
            lr=0.1,
            lr_schedule="constant",
            weight_decay=1e-3,
        ).fit(X, y)
        network = copy.deepcopy(model.module)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=1e-3)
        inputs, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = cross_entropy(network(inputs), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert_allclose(model.history[:, "train_loss"], losses, rtol=1e-5)
        for ours, theirs in zip(
            model.module_.parameters(), network.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    def test_targets_soften_and_keep_the_label_mass(self, iris):
        model = quick(prior_strength=10.0, max_epochs=5).fit(*iris)
        posterior = model.posterior_
        assert posterior.visits.tolist() == [5] * 150
        expected = 10.0 / (10.0 + 2e-3 + 5)
        assert_allclose(posterior.label_mass(), expected, rtol=1e-6)
        assert (posterior.mean().max(1).values < 1).all()

    def test_order_of_rows_does_not_matter_in_one_batch(self, iris):
        X, y = iris
        X, y = X[::2], y[::2]  # 75 rows
        order = np.random.default_rng(0).permutation(len(y))
        one = quick(max_epochs=20).fit(X, y)
        other = quick(max_epochs=20).fit(X[order], y[order])
        assert_allclose(one.predict_proba(X), other.predict_proba(X), atol=1e-10)
        assert_allclose(one.posterior_.mean()[order], other.posterior_.mean())

    def test_prior_strength_matters(self, iris):
        proba = [
            quick(prior_strength=c, max_epochs=20).fit(*iris).predict_proba(iris[0])
            for c in (1.0, np.inf)
        ]
        assert proba[0].max(1).mean() < proba[1].max(1).mean() - 0.01


class TestLabels:
    @pytest.mark.parametrize(
        "values",
        [[3, 7, 40], ["a", "bb", "ccc"], [-1.0, 0.0, 5.0], [-5, 0, 2]],
        ids=str,
    )
    def test_kinds(self, iris, values):
        X, y = iris
        named = np.array(values)[y]
        model = quick(max_epochs=30).fit(X, named)
        assert_array_equal(model.classes_, values)
        predicted = model.predict(X)
        assert predicted.dtype == named.dtype
        assert model.score(X, named) > 0.9
        assert_array_equal(predicted, model.classes_[model.predict_proba(X).argmax(1)])

    def test_bool_and_object_and_torch(self, iris):
        X, y = iris
        assert quick(max_epochs=20).fit(X, y == 0).score(X, y == 0) > 0.9
        named = np.array(["x", "y", "z"], dtype=object)[y]
        assert quick(max_epochs=20).fit(X, named).predict(X).dtype == object
        model = quick().fit(torch.tensor(X), torch.tensor(y))
        assert_array_equal(model.classes_, [0, 1, 2])

    def test_pandas_categories(self, iris):
        X, y = iris
        named = pd.Series(pd.Categorical.from_codes(y, ["a", "b", "c"]))
        assert set(quick().fit(X, named).predict(X)) <= {"a", "b", "c"}


class TestOutputs:
    def test_decision_function_gives_logits(self, iris):
        X, y = iris
        model = quick().fit(X, y)
        logits = torch.from_numpy(model.decision_function(X))
        assert logits.shape == (150, 3)
        assert_allclose(model.predict_proba(X), logits.softmax(1), rtol=1e-6)
        assert_array_equal(model.predict(X), logits.argmax(1))

    def test_two_classes(self, iris):
        X, y = iris
        model = quick(max_epochs=20).fit(X, y == 1)
        scores = model.decision_function(X)
        assert scores.shape == (150,)
        proba = model.predict_proba(X)
        assert_allclose(proba[:, 1], 1 / (1 + np.exp(-scores)), rtol=1e-5)
        assert_array_equal(model.predict(X), scores > 0)

    def test_prediction_leaves_the_mode_of_the_network(self, iris):
        model = quick(module=Dropout).fit(*iris)
        model.module_.train()
        first = model.predict_proba(iris[0])
        assert model.module_.training
        assert_array_equal(first, model.predict_proba(iris[0]))


class TestRandomState:
    @pytest.mark.parametrize("module", [None, Dropout])
    def test_same_seed_same_model_bit_for_bit(self, iris, module):
        one, other = quick(module=module).fit(*iris), quick(module=module).fit(*iris)
        assert same_weights(one, other)
        assert torch.equal(one.posterior_.mean(), other.posterior_.mean())
        assert not same_weights(one, quick(module=module, random_state=1).fit(*iris))

    def test_images_with_augmentation(self, uint8_digits):
        X, y = (a[:300] for a in uint8_digits)
        models = [quick(augmentation="flip-crop").fit(X, y) for _ in range(2)]
        assert same_weights(*models)

    def test_fit_again_is_the_same(self, iris):
        model = quick().fit(*iris)
        before = weights(model)
        assert all(map(torch.equal, before, weights(model.fit(*iris))))

    def test_random_state_object_draws_anew(self, iris):
        model = quick(random_state=np.random.RandomState(0)).fit(*iris)
        before = weights(model)
        assert not all(map(torch.equal, before, weights(model.fit(*iris))))

    @pytest.mark.parametrize("module", [None, Dropout])
    def test_global_generators_are_left_alone(self, iris, module):
        before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        quick(module=module).fit(*iris).partial_fit(*iris).predict(iris[0])
        assert torch.equal(before[0], torch.get_rng_state())
        assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


class TestParameters:
    def test_fit_changes_no_parameter(self, iris):
        module = Linear()
        model = quick(module=module, callbacks=[])
        before = dict(model.get_params())
        layer = module.layer.weight.clone()
        model.fit(*iris)
        after = model.get_params()
        assert before.keys() == after.keys()
        assert all(before[name] is after[name] for name in before)
        assert torch.equal(module.layer.weight, layer)

    def test_prefixes(self, iris):
        model = quick(module=Linear, module__scale=2.0, optimizer__eps=1e-6)
        assert model.get_params()["module__scale"] == 2.0
        other = clone(model).set_params(module__scale=3.0).fit(*iris)
        assert other.module_.scale == 3.0
        assert other.optimizer_.param_groups[0]["eps"] == 1e-6
        assert model.module__scale == 2.0

    def test_default_network_takes_arguments(self, iris, digits):
        model = quick(module__hidden=(5,)).fit(*iris)
        assert model.module_.layers[0].out_features == 5
        X, y = (a[:200] for a in digits)
        model = quick(module__widths=(4, 8), max_epochs=1).fit(X, y)
        assert model.module_.head.in_features == 8

    def test_set_params_waits_for_the_next_fit(self, iris):
        model = quick(module=Linear).fit(*iris)
        before = weights(model)
        model.set_params(module__scale=2.0, compile=False, module=Linear)
        assert all(map(torch.equal, before, weights(model)))
        assert model.fit(*iris).module_.scale == 2.0

    def test_learning_rate_reaches_the_live_optimizer(self, iris):
        model = quick().fit(*iris)
        model.set_params(lr=0.5, optimizer__eps=1e-3)
        assert model.optimizer_.param_groups[0]["lr"] == 0.5
        assert model.optimizer_.param_groups[0]["eps"] == 1e-3

    @pytest.mark.parametrize("name", ["unknown", "modul__width", "module__", "history"])
    def test_set_params_unknown(self, name):
        model = quick()
        with pytest.raises(ValueError, match=f"Invalid parameter '{name}'.*Valid"):
            model.set_params(lr=0.5, **{name: 1})
        assert model.lr == 1e-2

    @pytest.mark.parametrize("name", ["hidden", "iterator_train_shuffle", "criterion"])
    def test_constructor_unknown(self, iris, name):
        model = quick(**{name: 1})  # as in scikit-learn, the constructor only assigns
        with pytest.raises(ValueError, match=name):
            model.fit(*iris)
        assert not hasattr(model, "module_")

    def test_repr_shows_what_is_not_default(self):
        assert repr(BSDClassifier(lr=0.5)) == "BSDClassifier(lr=0.5)"
        assert "BSDClassifier" in BSDClassifier()._repr_html_()

    def test_schedules_and_optimizers(self, iris):
        for schedule in ("one-cycle", "cosine", "constant"):
            model = quick(lr_schedule=schedule, max_epochs=30).fit(*iris)
            assert model.score(*iris) > 0.8
            assert model.optimizer_.param_groups[0]["lr"] == 1e-2
        model = quick(
            optimizer=torch.optim.SGD, lr=0.1, optimizer__momentum=0.9, max_epochs=30
        ).fit(*iris)
        assert model.optimizer_.param_groups[0]["weight_decay"] == 1e-2
        assert model.score(*iris) > 0.9

    def test_optimizer_with_a_closure(self, iris):
        """LBFGS evaluates the loss often, but a step is one visit."""
        model = quick(
            module=Linear,
            optimizer=torch.optim.LBFGS,
            lr=0.5,
            lr_schedule="constant",
            batch_size=-1,
            max_epochs=10,
        ).fit(*iris)
        assert model.score(*iris) > 0.9
        assert model.posterior_.visits.tolist() == [10] * 150

    def test_precision_and_compile(self, iris):
        model = quick(precision="bfloat16", max_epochs=20).fit(*iris)
        proba = model.predict_proba(iris[0])
        assert proba.dtype == np.float32
        assert_allclose(proba.sum(1), 1, atol=1e-6)
        assert model.score(*iris) > 0.8
        assert model.module_.layers[0].weight.dtype == torch.float32

    def test_double_precision_where_all_is_one_batch(self, iris):
        X, y = iris
        assert (
            quick().fit(X[::2], y[::2]).module_.layers[0].weight.dtype == torch.float64
        )
        single = quick(precision="float32").fit(X[::2], y[::2])
        assert single.module_.layers[0].weight.dtype == torch.float32
        assert quick().fit(X, y).module_.layers[0].weight.dtype == torch.float32


class TestWeights:
    def test_weights_are_repetitions(self, iris):
        X, y = (a[::3] for a in iris)
        weight = np.random.default_rng(0).integers(0, 4, len(y))
        one = quick(max_epochs=20).fit(X, y, sample_weight=weight)
        other = quick(max_epochs=20).fit(X.repeat(weight, 0), y.repeat(weight))
        assert_allclose(one.predict_proba(X), other.predict_proba(X), atol=1e-10)
        assert one.posterior_.visits.tolist() == [20 * (w > 0) for w in weight]
        means = one.posterior_.mean()[weight > 0]
        first = np.cumsum(weight)[weight > 0] - weight[weight > 0]
        assert_allclose(means, other.posterior_.mean()[first], atol=1e-10)

    def test_only_ratios_matter(self, iris):
        X, y = iris
        weight = np.random.default_rng(0).random(150)
        one = quick().fit(X, y, sample_weight=weight)
        other = quick().fit(X, y, sample_weight=1024 * weight)
        assert_allclose(one.predict_proba(X), other.predict_proba(X), rtol=1e-5)

    def test_class_weight(self, iris):
        X, y = iris
        plain = quick(max_epochs=10).fit(X, y)
        heavy = quick(max_epochs=10, class_weight={0: 1, 1: 1, 2: 100}).fit(X, y)
        assert (heavy.predict(X) == 2).sum() > (plain.predict(X) == 2).sum()
        balanced = quick(class_weight="balanced").fit(X, y)
        assert same_weights(balanced, quick().fit(X, y, sample_weight=np.ones(150)))

    def test_weight_of_images_enters_their_statistics(self, uint8_digits):
        X, y = (a[:64] for a in uint8_digits)
        weight = np.random.default_rng(0).integers(0, 3, len(y))
        one = quick(max_epochs=1).fit(X, y, sample_weight=weight)
        chosen = (X / 1.0).repeat(weight, 0)
        assert_allclose(one.image_mean_, chosen.mean((0, 2, 3)))
        assert_allclose(one.image_std_, chosen.std((0, 2, 3)))


class TestPartialFit:
    def test_same_data_keep_their_posterior(self, iris):
        X, y = iris
        model = quick().partial_fit(X, y)
        model.partial_fit(X.copy(), list(y))
        assert model.posterior_.visits.tolist() == [6] * 150
        assert model.n_iter_ == len(model.history) == 6
        model.partial_fit(X + 1, y)
        assert model.posterior_.visits.tolist() == [3] * 150
        model.partial_fit(X + 1, np.roll(y, 1))
        assert model.posterior_.visits.tolist() == [3] * 150

    def test_goes_on_where_fit_ended(self, iris):
        kwargs = {"module": MLP, "module__in_features": 4, "module__n_classes": 3}
        kwargs |= {"lr_schedule": "constant"}
        once = quick(max_epochs=4, **kwargs).fit(*iris)
        model = quick(max_epochs=3, **kwargs).fit(*iris)
        model.set_params(max_epochs=1).partial_fit(*iris)
        assert same_weights(once, model)
        assert torch.equal(once.posterior_.mean(), model.posterior_.mean())

    def test_classes_of_later_calls(self, iris):
        X, y = iris
        model = quick().partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
        assert_array_equal(model.classes_, [0, 1, 2])
        model.partial_fit(X, y)
        assert model.predict_proba(X).shape == (150, 3)

    def test_one_class_in_a_later_call(self, iris):
        X, y = iris
        quick().partial_fit(X, y).partial_fit(X[y == 0], y[y == 0])

    def test_warm_start(self, iris):
        model = quick(warm_start=True).fit(*iris).fit(*iris)
        assert model.n_iter_ == 6
        assert quick().fit(*iris).fit(*iris).n_iter_ == 3


class TestInputs:
    def test_kinds_of_tables_agree(self, iris):
        X, y = iris
        frame = pd.DataFrame(X, columns=list("abcd"))
        model = quick().fit(frame, y)
        assert_array_equal(model.feature_names_in_, list("abcd"))
        assert model.n_features_in_ == 4
        proba = model.predict_proba(frame)
        for other in (X.tolist(), torch.tensor(X), np.asfortranarray(X)):
            assert_array_equal(quick().fit(other, y).predict_proba(other), proba)

    def test_X_is_left_as_it_was(self, iris):
        X, y = iris[0].astype(np.float32), iris[1]
        for given in (X, torch.tensor(X)):
            before = copy.deepcopy(given)
            model = quick(module=InPlace).fit(given, y)
            first = model.predict_proba(given)
            assert_array_equal(given, before)
            assert_array_equal(model.predict_proba(given), first)

    def test_read_only_arrays(self, iris):
        X, y = (a.copy() for a in iris)
        X.flags.writeable = y.flags.writeable = False
        quick().fit(X, y).partial_fit(X, y).predict(X)

    def test_flat_rows_are_images(self, digits):
        X, y = (a[:300] for a in digits)
        flat = X.reshape(300, -1)
        one = quick(image_shape=(1, 8, 8)).fit(flat, y)
        other = quick().fit(X, y)
        assert same_weights(one, other)
        assert_array_equal(one.predict_proba(flat), other.predict_proba(X))
        assert one.n_features_in_ == other.n_features_in_ == 64

    def test_uint8_images_are_standardised(self, uint8_digits):
        X, y = (a[:300] for a in uint8_digits)
        model = quick().fit(X, y)
        assert_allclose(model.image_mean_, [X.mean()])
        assert_allclose(model.image_std_, [X.std()])
        scaled = ((X - X.mean()) / X.std()).astype(np.float32)
        other = quick().fit(scaled, y)
        assert_allclose(model.predict_proba(X), other.predict_proba(scaled), atol=1e-3)

    def test_other_image_size(self, digits):
        X, y = (a[:300] for a in digits)
        larger = X.repeat(2, 2).repeat(2, 3)
        assert quick().fit(X, y).predict_proba(larger).shape == (300, 10)

    def test_callable_augmentation_gets_the_images_as_given(self, uint8_digits):
        seen = []

        def augment(x):
            seen.append((x.dtype, tuple(x.shape[1:])))
            return x

        X, y = (a[:100] for a in uint8_digits)
        model = quick(augmentation=augment, max_epochs=1).fit(X, y)
        assert seen == [(torch.uint8, (1, 8, 8))]
        model.predict(X)
        assert len(seen) == 1

    def test_a_sample_left_alone_joins_the_batch_before(self, digits):
        X, y = (a[:129] for a in digits)
        model = quick(module=Convolution, batch_size=64).fit(X, y)
        assert model.history[0, "batches", :, "train_batch_size"] == [64, 65]

    @pytest.mark.parametrize("module", [ReturnsTuple, ReturnsObject])
    def test_outputs_of_networks(self, iris, module):
        one, other = quick(module=Linear).fit(*iris), quick(module=module).fit(*iris)
        assert_array_equal(one.predict_proba(iris[0]), other.predict_proba(iris[0]))

    def test_torchvision_network(self):
        rng = np.random.default_rng(0)
        X = rng.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
        y = np.arange(8) % 2
        model = quick(module=resnet18, module__num_classes=2, max_epochs=1, lr=1e-3)
        assert model.fit(X, y).predict_proba(X).shape == (8, 2)
        model = quick(module=resnet18(num_classes=2), max_epochs=1, lr=1e-3)
        assert model.fit(X, y).predict_proba(X).shape == (8, 2)

    def test_prediction_in_batches(self, iris):
        X, y = iris
        model = quick().fit(X, y)
        many = np.tile(X, (70, 1))
        assert_allclose(
            model.predict_proba(many)[-150:], model.predict_proba(X), atol=1e-6
        )


class TestDataset:
    def test_kinds(self, iris):
        X = torch.tensor(iris[0], dtype=torch.float32)
        y = torch.tensor(iris[1])
        whole = TensorDataset(X, y)
        halves = [Subset(whole, range(0, 150, 2)), Subset(whole, range(1, 150, 2))]
        for dataset in (whole, Images(X, y), ConcatDataset(halves), halves[0]):
            model = quick(max_epochs=10).fit(dataset)
            assert model.predict_proba(dataset).shape == (len(dataset), 3)
            assert len(model.posterior_) == len(dataset)
            assert (model.posterior_.visits == 10).all()
        with pytest.raises(AttributeError):
            model.n_features_in_  # noqa: B018

    def test_labels_of_any_kind(self, iris):
        X = torch.tensor(iris[0], dtype=torch.float32)
        named = np.array(["a", "b", "c"])[iris[1]]
        model = quick(max_epochs=20).fit(Images(X, named))
        assert (model.predict(X) == named).mean() > 0.8

    def test_rows_are_the_datasets(self, iris):
        """The posterior of item i belongs to item i, whatever the order."""
        X, y = torch.tensor(iris[0], dtype=torch.float32), iris[1]
        model = quick(prior_strength=1e6).fit(Images(X, y))
        assert_array_equal(model.posterior_.mean().argmax(1), y)

    def test_uint8_images_and_own_module(self, uint8_digits):
        X, y = (a[:200] for a in uint8_digits)
        model = quick(module=Convolution).fit(Images(torch.tensor(X), y))
        assert model.predict_proba(Images(torch.tensor(X), y)).shape == (200, 10)

    def test_partial_fit_and_weights(self, iris):
        dataset = Images(torch.tensor(iris[0], dtype=torch.float32), iris[1])
        weight = np.arange(150) % 2
        model = quick().partial_fit(dataset, sample_weight=weight)
        model.partial_fit(dataset, sample_weight=weight)
        assert model.posterior_.visits.tolist() == [6 * w for w in weight]

    def test_loader_parameters(self, iris):
        dataset = Images(torch.tensor(iris[0], dtype=torch.float32), iris[1])
        model = quick(iterator_train__batch_size=50, iterator_train__drop_last=True)
        model.fit(dataset)
        assert model.history[0, "batches", :, "train_batch_size"] == [50] * 3
        # The same for arrays, which then go through the loader too.
        model.set_params(iterator_train__batch_size=40).fit(*iris)
        assert model.history[0, "batches", :, "train_batch_size"] == [40] * 3


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
            alone = quick().fit(X, y, sample_weight=weight)
        assert np.isfinite(scores["test_score"]).all()
        assert same_weights(alone, quick().fit(X, y, sample_weight=weight))
