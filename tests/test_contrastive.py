"""The contrastive loss compared with its definition, and training with it."""

import copy
import math
import pickle
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import quick, same_weights, weights
from modules import Convolution, Images, Linear, ReturnsTuple, WithBody
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.callbacks import Callback
from torch import nn

from skbsd import BSDClassifier
from skbsd.augmentation import strong
from skbsd.contrastive import Contrastive, contrastive_loss
from skbsd.posterior import DirichletPosterior


def same(x):
    """Augment nothing."""
    return x.clone()


def noise(x):
    """Augment a table."""
    return x + 0.1 * torch.randn_like(x)


SAME = Contrastive(augmentation=same)
NOISE = Contrastive(augmentation=noise)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 3, generator=generator)


def by_definition(first, second, temperature, agreement, weight):
    z = [v / v.norm() for v in (*first, *second)]
    n, total = len(first), 0.0
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        scale = sum(math.exp(z[i] @ z[k] / temperature) for k in others)
        share = sum(agreement[i % n][j % n] for j in others)
        for j in others:
            log_proba = (z[i] @ z[j]).item() / temperature - math.log(scale)
            positive = agreement[i % n][j % n] / share
            total -= weight[i % n] * positive * log_proba
    return float(total / (2 * n))


class TestLoss:
    @pytest.mark.parametrize("temperature", [0.1, 1.0])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("supervised", [False, True])
    def test_definition(self, views, temperature, weighted, supervised):
        q = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
        agreement = q @ q.T if supervised else torch.eye(5)
        weight = torch.linspace(0.5, 2.0, 5) if weighted else torch.ones(5)
        loss = contrastive_loss(
            *views,
            temperature=temperature,
            agreement=agreement if supervised else None,
            weight=weight if weighted else None,
        )
        expected = by_definition(
            *views, temperature, agreement.tolist(), weight.tolist()
        )
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    def test_identity_agreement_is_the_unsupervised_loss(self, views):
        plain = contrastive_loss(*views, temperature=0.5)
        torch.testing.assert_close(
            contrastive_loss(*views, temperature=0.5, agreement=torch.eye(5)), plain
        )

    def test_length_does_not_count(self, views):
        plain = contrastive_loss(*views, temperature=0.5)
        longer = contrastive_loss(7 * views[0], views[1], temperature=0.5)
        torch.testing.assert_close(longer, plain)

    @pytest.mark.parametrize("supervised", [False, True])
    def test_gradient_is_finite(self, views, supervised):
        views.requires_grad_()
        agreement = torch.eye(5) if supervised else None
        contrastive_loss(*views, temperature=0.5, agreement=agreement).backward()
        assert views.grad.isfinite().all()
        assert views.grad.abs().sum() > 0

    def test_half_precision_is_computed_in_full(self, views):
        half = views.bfloat16()
        loss = contrastive_loss(*half, temperature=0.1)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(
            loss, contrastive_loss(*half.float(), temperature=0.1)
        )


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("weight", -0.1),
            ("weight", math.inf),
            ("temperature", -1.0),
            ("temperature", math.nan),
            ("n_components", 0),
            ("n_components", 1.5),
            ("weight", "1"),
            ("augmentation", ["strong"]),
            ("augmentation", "unknown"),
            ("augmentation", None),
        ],
    )
    def test_out_of_range(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must .*{re.escape(repr(value))}"):
            Contrastive(**{name: value})

    @pytest.mark.parametrize("value", [0, -1.0, "strong", math.nan, True, False])
    def test_of_the_estimator(self, iris, value):
        with pytest.raises(ValueError, match="contrastive"):
            quick(contrastive=value).fit(*iris)

    def test_a_number_is_the_weight(self, digits):
        X, y = digits[0][:200], digits[1][:200]
        one = quick(contrastive=0.5).fit(X, y)
        assert same_weights(one, quick(contrastive=Contrastive(weight=0.5)).fit(X, y))
        assert not same_weights(one, quick(contrastive=1.0).fit(X, y))

    @pytest.mark.parametrize(
        "setting",
        [
            {"temperature": 0.5},
            {"n_components": 8},
            {"augmentation": "flip-crop"},
            {"supervised": True},
        ],
        ids=lambda setting: next(iter(setting)),
    )
    def test_each_does_something(self, digits, setting):
        X, y = digits[0][:200], digits[1][:200]
        one = quick(contrastive=Contrastive(**setting)).fit(X, y)
        assert not same_weights(one, quick(contrastive=Contrastive()).fit(X, y))

    def test_clone_and_search(self, digits):
        X, y = digits[0][:150], digits[1][:150]
        model = quick(contrastive=Contrastive(weight=0.5), max_epochs=1)
        assert clone(model).contrastive == model.contrastive
        grid = {"contrastive": [None, 1.0, Contrastive(temperature=0.1)]}
        search = GridSearchCV(model, grid, cv=2).fit(X, y)
        assert len(search.cv_results_["params"]) == 3


class TestStep:
    def test_without_weight_and_augmentation_it_is_plain(self, iris):
        """Two views of a network without batch statistics that are the same."""
        tiny = Contrastive(weight=1e-12, augmentation=same)
        for kwargs in (
            {"prior_strength": 5.0, "discount": 0.9},
            {"prior_strength": "auto", "max_epochs": 6},
            {"prior_strength": math.inf},
            {"prior_strength": math.inf, "module": None},  # in double precision
            {"prior_strength": 5.0, "posterior_dtype": "float16"},
        ):
            # One batch: the projection draws from the generator that shuffles.
            kwargs = {"module": Linear, "batch_size": -1} | kwargs
            kwargs |= {"class_weight": {0: 1, 1: 2, 2: 0.5}}
            one = quick(**kwargs).fit(*iris)
            two = quick(contrastive=tiny, **kwargs).fit(*iris)
            for a, b in zip(weights(one), weights(two), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                one.posterior_.concentration(),
                two.posterior_.concentration(),
                rtol=1e-4,
                atol=1e-4,
            )

    def test_two_views_alone(self, iris):
        """There is no projection, and no layer whose output it could take."""
        views = Contrastive(weight=0.0, augmentation=noise)
        network = nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Identity())
        model = quick(module=network, contrastive=views).fit(*iris)
        assert "contrastive_loss" not in model.history_[-1]
        assert model._projection is None
        plain = quick(module=network).fit(*iris)
        assert not same_weights(model, plain)
        assert (model.posterior_.visits == 3).all()

    def test_posterior_takes_in_the_mean_of_both_views(self, iris):
        X, y = iris
        seen = []

        class Watch(Linear):
            def forward(self, x):
                logits = super().forward(x)
                if self.training:
                    seen.append(logits.detach().softmax(1))
                return logits

        model = quick(
            module=Watch, contrastive=NOISE, batch_size=-1, prior_strength=5.0
        )
        model.fit(X, y)
        prior = DirichletPosterior(torch.from_numpy(y), 3, prior_strength=5.0)
        assert len(seen) == 6
        assert not torch.equal(*seen[:2])
        torch.testing.assert_close(
            model.posterior_.concentration(),
            prior.concentration() + sum(seen) / 2,
        )
        assert (model.posterior_.visits == 3).all()

    def test_losses_in_the_history(self, digits):
        model = quick(contrastive=1.0, max_epochs=5).fit(
            digits[0][:500], digits[1][:500]
        )
        contrast = model.history_[:, "contrastive_loss"]
        assert contrast[-1] < contrast[0] < math.log(2 * 128)
        assert all(
            total > part
            for total, part in zip(
                model.history_[:, "train_loss"], contrast, strict=True
            )
        )
        plain = quick(max_epochs=1).fit(digits[0][:100], digits[1][:100])
        assert "contrastive_loss" not in plain.history_[-1]

    def test_same_seed_same_model(self, digits):
        X, y = digits[0][:200], digits[1][:200]
        one, two = (quick(contrastive=1.0).fit(X, y) for _ in range(2))
        assert same_weights(one, two)

    def test_agreement_is_counted(self, digits):
        model = quick(contrastive=1.0, max_epochs=4).fit(*digits)
        agreement = model.posterior_.agreement
        assert agreement.n_epochs == 4
        assert 0.1 < agreement.mean < agreement.last <= 1

    def test_partial_fit_goes_on_with_the_projection(self, digits):
        X, y = digits[0][:200], digits[1][:200]
        model = quick(contrastive=1.0, max_epochs=2).partial_fit(X, y)
        head = model._projection.head
        before = copy.deepcopy(head.state_dict())
        model.partial_fit(X, y)
        assert model._projection.head is head
        assert not torch.equal(before["0.weight"], head[0].weight)
        model.fit(X, y)
        assert model._projection.head is not head

    def test_compiled_after_another_of_its_kind(self, iris):
        """A graph that was compiled without hooks is not reused with them."""
        torch.compiler.reset()
        kwargs = {"module": Linear, "compile": True, "compile__backend": "eager"}
        quick(**kwargs, batch_size=75).fit(*iris)
        model = quick(**kwargs, batch_size=75, contrastive=SAME).fit(*iris)
        model.set_params(contrastive=Contrastive(weight=0, augmentation=same))
        model.partial_fit(*iris)
        model.set_params(contrastive=SAME).partial_fit(*iris)
        assert "contrastive_loss" in model.history_[-1]

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_compiled(self, digits, backend):
        torch.compiler.reset()
        X, y = digits[0][:200], digits[1][:200]
        kwargs = {"module": Convolution, "contrastive": 1.0, "batch_size": 50}
        model = quick(compile=True, compile__backend=backend, **kwargs).fit(X, y)
        plain = quick(**kwargs).fit(X, y)
        for again in (False, True):
            if again:
                model.partial_fit(X, y)
                plain.partial_fit(X, y)
            np.testing.assert_allclose(
                model.predict_proba(X), plain.predict_proba(X), atol=1e-4
            )


@pytest.fixture(scope="module")
def pair(digits):
    X, y = digits[0][:200], digits[1][:200]
    return [quick(contrastive=c).fit(X, y) for c in (None, 1.0)]


class TestLeavesNoTrace:
    def test_network(self, pair):
        plain, model = pair
        assert model.module_.state_dict().keys() == plain.module_.state_dict().keys()
        assert repr(model.module_) == repr(plain.module_)
        for module in model.module_.modules():
            assert not module._forward_pre_hooks
        assert model._run is None

    def test_saved_models(self, pair, tmp_path):
        sizes = [len(pickle.dumps(model)) for model in pair]
        assert sizes[1] - sizes[0] < 1000  # the history has a column more
        for name, model in zip(("plain", "model"), pair, strict=True):
            model.save_params(
                f_params=tmp_path / f"{name}.pt", f_optimizer=tmp_path / f"{name}.opt"
            )
        for suffix in ("pt", "opt"):
            one, two = (tmp_path / f"{n}.{suffix}" for n in ("plain", "model"))
            assert abs(one.stat().st_size - two.stat().st_size) < 100

    def test_goes_on_after_loading(self, pair, digits):
        X, y = digits[0][:200], digits[1][:200]
        model = pickle.loads(pickle.dumps(pair[1]))
        assert len(model.partial_fit(X, y).history_) == 6

    def test_hooks_go_when_training_fails(self, iris):
        class Fails(Linear):
            fails = False

            def forward(self, x):
                out = super().forward(x)
                if self.fails:
                    raise RuntimeError("stop")
                return out

        model = quick(contrastive=SAME, module=Fails).fit(*iris)
        model.module_.fails = True
        with pytest.raises(RuntimeError, match="stop"):
            model.partial_fit(*iris)
        assert not model.module_.layer._forward_pre_hooks
        assert model._run is None

    def test_copies_made_while_training(self, iris):
        copies = []

        class Copy(Callback):
            def on_batch_end(self, net, **kwargs):
                if len(copies) < 3:
                    copies.append(copy.deepcopy(net))

        quick(contrastive=SAME, module=Linear, callbacks=[Copy()]).fit(*iris)
        model = copies[-1]
        assert not model.module_.layer._forward_pre_hooks
        model.set_params(contrastive=None).partial_fit(*iris)
        assert "contrastive_loss" not in model.history_[-1]

    def test_plain_fit_lets_go_of_the_network(self, iris):
        model = quick(contrastive=SAME, module=Linear).fit(*iris)
        assert model._projection is not None
        model.set_params(contrastive=None).fit(*iris)
        assert model._projection is None

    def test_recovers_from_divergence(self, iris):
        model = quick(contrastive=SAME, module=Linear).fit(*iris)
        with pytest.raises(ValueError, match="NaN or infinite"):
            model.set_params(lr=1e30).partial_fit(*iris)
        model.set_params(lr=1e-2).partial_fit(*iris)
        assert math.isfinite(model.history_[-1, "contrastive_loss"])


class Unused(Linear):
    """Never runs one of its layers."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, 5)


class ByKeyword(Linear):
    """Calls its layer with a keyword."""

    def forward(self, x):
        return self.layer(input=x)


class Tokens(nn.Module):
    """Has a linear layer for each of several tokens."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.layer(x.view(len(x), 2, 2)).mean(1)


class Auxiliary(nn.Module):
    """Registers a second classifier after the one that runs last."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)
        self.auxiliary = nn.Linear(4, 3)

    def forward(self, x):
        aside = self.auxiliary(x)
        return self.last(self.body(x).relu()) + 0 * aside


class TestEmbedding:
    @pytest.mark.parametrize(
        ("module", "width"),
        [(Linear, 4), (ReturnsTuple, 4), (ByKeyword, 4), (Auxiliary, 6), (None, 128)],
    )
    def test_is_the_input_of_the_last_layer(self, iris, module, width):
        model = quick(module=module, contrastive=SAME).fit(*iris)
        assert model._projection.head[0].in_features == width

    def test_named(self, iris):
        body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        setting = Contrastive(layer="body.0", augmentation=same)
        model = quick(module=WithBody, module__body=body, contrastive=setting)
        assert model.fit(*iris)._projection.head[0].in_features == 4

    @pytest.mark.parametrize(
        ("module", "layer", "message"),
        [
            (
                nn.Sequential(nn.Linear(4, 5), nn.Softmax(1)),
                None,
                "no nn.Linear with 3",
            ),
            (Linear, "head", "no layer 'head'.*'layer'"),
            (Unused, "other", "without the layer"),
            (Tokens, None, r"shape \(128, 2, 2\).*\(128, d\)"),
        ],
    )
    def test_is_not_there(self, iris, module, layer, message):
        setting = Contrastive(layer=layer, augmentation=same)
        model = quick(module=module, contrastive=setting)
        with pytest.raises(ValueError, match=message):
            model.fit(*iris)
        assert not hasattr(model, "posterior_")


class TestInputs:
    def test_tables_need_an_augmentation(self, iris):
        with pytest.raises(
            ValueError, match=r"'strong' needs images.*\(4,\).*callable"
        ):
            quick(contrastive=1.0).fit(*iris)
        assert quick(contrastive=NOISE, max_epochs=20).fit(*iris).score(*iris) > 0.9

    def test_bad_augmentation(self, iris):
        setting = Contrastive(augmentation=lambda x: x[:, :2])
        with pytest.raises(ValueError, match="turned a batch"):
            quick(contrastive=setting).fit(*iris)

    def test_augmentations_in_place(self, iris):
        """In-place changes of one view do not affect the other."""
        seen = []

        class Watch(Linear):
            def forward(self, x):
                if self.training:
                    seen.append(x.detach().clone())
                return super().forward(x)

        for own, other in ((None, 1.0), (2.0, None), (2.0, 1.0)):
            first, second = (
                None if value is None else (lambda x, value=value: x.add_(value))
                for value in (own, other)
            )
            setting = Contrastive(augmentation=second or same)
            X = torch.zeros(4, 4)
            quick(
                module=Watch, augmentation=first, contrastive=setting, max_epochs=1
            ).fit(X, [0, 1, 2, 0])
            views = seen[-2:]
            assert (views[0] == (own or 0)).all()
            assert (views[1] == (other or 0)).all()

    def test_augmentations_need_not_be_hashable(self, iris):
        class Shift:
            __hash__ = None

            def __call__(self, x):
                return x + 1

        setting = Contrastive(augmentation=Shift())
        model = quick(module=Linear, augmentation=Shift(), contrastive=setting)
        assert model.fit(*iris).n_iter_ == 3

    def test_groups_of_parameters(self, iris):
        """The projection has the learning rate of parameters without a group."""
        groups = [("body*", {"lr": 0.0})]
        body = nn.Linear(4, 8)
        model = quick(module=WithBody, module__body=body, contrastive=SAME)
        model.set_params(optimizer__param_groups=groups).fit(*iris)
        assert torch.equal(model.module_.body.weight, body.weight)
        (group,) = model._projection.optimizer.param_groups
        assert len(group["params"]) == 4
        assert group["lr"] > 0

    def test_optimizers_of_others(self, iris):
        class Own(torch.optim.AdamW):
            pass

        model = quick(contrastive=SAME, module=Linear, optimizer=Own).fit(*iris)
        plain = quick(contrastive=SAME, module=Linear, optimizer__fused=False)
        for a, b in zip(weights(model), weights(plain.fit(*iris)), strict=True):
            torch.testing.assert_close(a, b)

    def test_batches_that_are_no_tensors(self, iris):
        X, y = iris
        rows = torch.tensor(X, dtype=torch.float32)
        items = [({"x": x}, int(label)) for x, label in zip(rows, y, strict=True)]
        data = Images([item[0] for item in items], [item[1] for item in items])
        with pytest.raises(ValueError, match=r"one tensor, got dict.*contrastive=None"):
            quick(module=Linear, contrastive=SAME).fit(data)

    def test_optimizer_with_a_closure(self, iris):
        with pytest.raises(ValueError, match="LBFGS evaluates the loss several times"):
            quick(contrastive=SAME, optimizer=torch.optim.LBFGS).fit(*iris)

    @pytest.mark.parametrize("kind", ["uint8", "float", "flat", "dataset"])
    def test_images(self, digits, kind):
        X, y = digits[0][:300], digits[1][:300]
        kwargs = {"contrastive": 1.0, "max_epochs": 10, "augmentation": "flip-crop"}
        if kind == "uint8":
            X = (255 * X).astype(np.uint8)
        elif kind == "flat":
            X, kwargs["image_shape"] = X.reshape(len(X), -1), (1, 8, 8)
        if kind == "dataset":
            X = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y))
            model = quick(**kwargs).fit(X)
        else:
            model = quick(**kwargs).fit(X, y)
        assert (model.predict(X) == y).mean() > 0.3


@dataclass(frozen=True)
class AsImages:
    """Augments each row of a table as an image of one line.

    Its name, unlike a function's, is the same in every process that runs tests.
    """

    def __call__(self, x):
        return strong(x.view(len(x), 1, 1, -1)).view_as(x)


# How samples are contrasted depends on which are in a batch, and a sample of weight two
# is not contrasted with itself, as two of weight one would be.
WEIGHTS = "repeated samples are contrasted with each other"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@parametrize_with_checks(
    [
        BSDClassifier(
            calibration=None,
            contrastive=Contrastive(augmentation=AsImages()),
            random_state=0,
        )
    ],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": WEIGHTS,
        "check_sample_weight_equivalence_on_sparse_data": WEIGHTS,
    },
)
def test_common_checks(estimator, check):
    check(estimator)
