"""Behaviour that scikit-learn's users expect, in addition to the common checks."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick, same_weights, weights
from modules import (
    Dropout,
    Linear,
    WithBody,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import (
    cross_val_score,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cross_entropy

from skbsd import BSDClassifier
from skbsd.networks import MLP, SmallResNet


class Subclass(BSDClassifier):
    def __init__(self, module=None, *, extra=1, **kwargs):
        super().__init__(module, **kwargs)
        self.extra = extra


class AsSkorchDocuments(BSDClassifier):
    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


class ToIndex(torch.nn.Module):
    def forward(self, x):
        return (x > 0).long()


class TestAccuracy:
    """With defaults except for random_state."""

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
        """Compare each step with a hand-written loop."""
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
            for c in (3.0, np.inf)
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
        assert_allclose(
            model.predict_log_proba(X), np.log(model.predict_proba(X)), rtol=1e-4
        )

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

    def test_threads_take_turns(self, iris):
        def fit(_):
            return quick(batch_size=16).fit(*iris)

        with ThreadPoolExecutor(2) as pool:
            models = list(pool.map(fit, range(4)))
        assert all(same_weights(models[0], model) for model in models)

    def test_module_within_a_parameter_is_copied(self, iris):
        body = torch.nn.Linear(4, 8)
        before = body.weight.clone()
        model = quick(module=WithBody, module__body=body).fit(*iris)
        assert torch.equal(body.weight, before)
        assert same_weights(model, clone(model).fit(*iris))

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
        assert model.lr == "auto"

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

    def test_modules_with_special_parameters(self, iris):
        X, y = iris
        lazy = quick(module=torch.nn.LazyLinear(3), max_epochs=30, lr=0.1).fit(X, y)
        assert lazy.score(X, y) > 0.8
        sparse = torch.nn.Sequential(
            ToIndex(), torch.nn.EmbeddingBag(8, 3, sparse=True, mode="sum")
        )
        quick(module=sparse, optimizer=torch.optim.SGD, weight_decay=0.0).fit(X, y)

    @pytest.mark.parametrize("kind", [Subclass, AsSkorchDocuments])
    def test_subclass_with_further_parameters(self, iris, kind):
        model = kind(extra=2, max_epochs=3, module__hidden=(5,))
        assert {"extra", "lr", "module__hidden"} <= model.get_params().keys()
        assert (
            model.get_params().keys()
            == Subclass(module__hidden=(5,)).get_params().keys()
        )
        assert clone(model).fit(*iris).extra == 2

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
        X, y = X[30:], y[30:]  # 20 of the first class, 50 of the others
        balanced = quick(class_weight="balanced").fit(X, y)
        weight = np.where(y == 0, 5.0, 2.0)
        other = quick().fit(X, y, sample_weight=weight)
        assert_allclose(
            balanced.predict_proba(X), other.predict_proba(X), rtol=1e-4, atol=1e-6
        )

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

    def test_another_prior_is_another_posterior(self, iris):
        model = quick().fit(*iris).set_params(prior_strength=7.0).partial_fit(*iris)
        assert model.posterior_.prior_strength == 7.0
        assert (model.posterior_.visits == 3).all()

    @pytest.mark.parametrize("again", ["partial_fit", "fit"])
    def test_goes_on_from_loaded_weights(self, iris, tmp_path, again):
        X, y = iris
        model = quick(module=Linear, max_epochs=30).fit(X, y)
        model.save_params(f_params=tmp_path / "params")
        other = quick(module=Linear, warm_start=True, lr=1e-9, random_state=1)
        other.initialize().load_params(f_params=tmp_path / "params")
        getattr(other, again)(X, y)
        assert_allclose(other.predict_proba(X), model.predict_proba(X), atol=1e-4)
        assert_array_equal(other.classes_, [0, 1, 2])

    def test_stream_with_weights_and_missing_classes(self, iris):
        X, y = iris
        model = quick(class_weight={0: 5}).partial_fit(X, y, classes=[0, 1, 2])
        model.partial_fit(X[60:], y[60:])
        model.partial_fit(X[:20], y[:20], sample_weight=np.ones(20))
        assert (model.posterior_.visits == 3).all()

    def test_warm_start(self, iris):
        model = quick(warm_start=True).fit(*iris).fit(*iris)
        assert model.n_iter_ == 6
        assert quick().fit(*iris).fit(*iris).n_iter_ == 3
