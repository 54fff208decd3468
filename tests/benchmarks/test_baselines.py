"""The rivals of the benchmarks follow their formulas."""

import gc
import inspect
import io
import math
import pickle
import weakref

import losses
import numpy as np
import pytest
import sklearn
import torch
from baselines import METHODS, Rival
from helpers import same_weights
from modules import Convolution, Images, Linear
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils.fixes import parse_version
from skorch.dataset import ValidSplit
from torch import nn
from torch.nn import functional as F

from skbsd import BSDClassifier

RIVALS = {n: m for n, m in METHODS.items() if inspect.isclass(m) and n != "BSD"}
NEEDS_1_8 = pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.8"),
    reason="scikit-learn has temperature scaling from 1.8 on",
)
REMEMBERING = ["temporal ensembling", "ELR", "SELC", "PS-KD", "DLB"]
ALL = [pytest.param(n, marks=NEEDS_1_8 if n == "temperature" else ()) for n in METHODS]
SETTINGS = {"max_epochs": 12, "batch_size": 32, "random_state": 0}
SETTINGS["calibration"] = None


def with_objective(name, changed):
    """Return a method with another objective in place of its own."""

    class Changed(METHODS[name]):
        objective = changed

    return Changed


def watched(name, data, **kwargs):
    """Fit, and return (logits, rows, loss) of each step, in a list for each epoch."""
    epochs = []

    class Watched(METHODS[name].objective):
        def begin_epoch(self):
            super().begin_epoch()
            epochs.append([])

        def loss(self, logits, batch):
            loss = super().loss(logits, batch)
            step = logits.detach().clone(), batch.rows, loss.item()
            epochs[-1].append([np.asarray(value) for value in step])
            return loss

    with_objective(name, Watched)(**{**SETTINGS, "max_epochs": 5, **kwargs}).fit(*data)
    return epochs


def seeing():
    """Return a network, and a list of its training inputs and outputs."""
    calls = []

    class Seeing(Linear):
        def forward(self, x):
            logits = super().forward(x)
            if self.training:
                calls.append((x.numpy(), logits.detach().numpy()))
            return logits

    return calls, Seeing


def mirrored(images):
    return images.flip(3)


def shifted(images):
    return images.roll(int(torch.randint(2, ())), dims=3)


def hard(log_proba, y):
    return -log_proba[np.arange(len(y)), y].mean()


def soft(log_proba, target):
    return -(target * log_proba).sum(axis=1).mean()


@pytest.fixture
def batch():
    """Logits that need gradients, labels, and other logits; in double precision."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    return (2 * draw[0]).requires_grad_(), labels, 2 * draw[1]


class TestFormulas:
    def test_label_smoothing(self, batch):
        logits, y, _ = batch
        target = np.full((7, 4), 0.1 / 3)
        target[np.arange(7), y] = 0.9
        expected = soft(log_softmax(logits.detach().numpy(), axis=1), target)
        loss = losses.label_smoothing_loss(logits, y, 0.1)
        assert_allclose(loss.item(), expected)
        none = losses.label_smoothing_loss(logits, y, 0.0)
        assert_allclose(none.item(), F.cross_entropy(logits, y).item())

    def test_mixup(self, batch):
        logits, y, _ = batch
        others = y.flip(0)
        target = 0.3 * np.eye(4)[y] + 0.7 * np.eye(4)[others]
        expected = soft(log_softmax(logits.detach().numpy(), axis=1), target)
        loss = losses.mixup_loss(logits, y, others, 0.3)
        assert_allclose(loss.item(), expected)
        alone = losses.mixup_loss(logits, y, others, 1.0)
        assert_allclose(alone.item(), F.cross_entropy(logits, y).item())

    def test_ramp_up(self):
        assert_allclose(losses.ramp_up(0, 80), math.exp(-5))
        assert_allclose(losses.ramp_up(40, 80), math.exp(-1.25))
        assert losses.ramp_up(80, 80) == losses.ramp_up(200, 80) == 1
        # The same share of the budget, the same weight.
        assert losses.ramp_up(4, 8.0) == losses.ramp_up(40, 80)

    def test_an_average_without_bias_is_one_of_what_it_saw(self):
        values = torch.rand(6, 3, 2, dtype=torch.float64)
        average = torch.zeros(3, 2, dtype=torch.float64)
        for t, value in enumerate(values, start=1):
            average = losses.moving_average(average, value, 0.6)
            weight = 0.6 ** np.arange(t)[::-1]
            expected = np.average(values[:t], axis=0, weights=weight)
            assert_allclose(losses.unbiased(average, 0.6, t), expected)

    def test_elr_gradient_is_the_papers(self, batch):
        # Lemma 2 of arXiv:2007.00151: p - y + lam g, with
        # g_c = p_c / (1 - <p, t>) sum_k (t_k - t_c) p_k.
        logits, y, other = batch
        p, t = softmax(logits.detach().numpy(), axis=1), softmax(other.numpy(), axis=1)
        difference = t[:, None, :] - t[:, :, None]
        g = p * np.einsum("nck,nk->nc", difference, p)
        g /= 1 - (p * t).sum(axis=1, keepdims=True)
        proba, target = losses.clamped_softmax(logits), torch.from_numpy(t)
        loss = F.cross_entropy(logits, y) + 3 * losses.elr_penalty(proba, target)
        loss.backward()
        assert ((p > 1e-4) & (p < 1 - 1e-4)).all()  # nothing was clamped
        assert_allclose(logits.grad, (p - np.eye(4)[y] + 3 * g) / 7, atol=1e-12)

    def test_elr_clamps_and_rewards_agreement(self):
        logits = torch.tensor([[40.0, 0.0, 0.0]])
        proba = losses.clamped_softmax(logits)
        assert_allclose(proba, [[1 - 1e-4, 1e-4, 1e-4]])
        penalties = [
            losses.elr_penalty(proba, torch.tensor([t])).item()
            for t in ([0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.9, 0.1, 0.0])
        ]
        assert penalties[0] == 0 > penalties[1] > penalties[2]

    def test_progressive_target(self, batch):
        _, y, other = batch
        p = other.softmax(dim=1)
        assert_allclose(losses.progressive_target(y, p, 0.0), np.eye(4)[y])
        expected = 0.2 * np.eye(4)[y] + 0.8 * p.numpy()
        assert_allclose(losses.progressive_target(y, p, 0.8), expected)

    def test_distillation(self, batch):
        logits, _, teacher = batch
        q = softmax(teacher.numpy() / 4, axis=1)
        log_p = log_softmax(logits.detach().numpy() / 4, axis=1)
        expected = 16 * (q * (np.log(q) - log_p)).sum(axis=1).mean()
        loss = losses.distillation_loss(logits, teacher, 4.0)
        assert_allclose(loss.item(), expected)
        # T^2 makes up for the gradient, which is (p - q) / T at temperature T.
        loss.backward()
        assert_allclose(logits.grad, 4 * (np.exp(log_p) - q) / 7, atol=1e-12)

    def test_distillation_from_oneself_is_nothing(self, batch):
        logits, _, _ = batch
        loss = losses.distillation_loss(logits, logits, 4.0)
        loss.backward()
        assert_allclose(loss.item(), 0, atol=1e-12)
        assert_allclose(logits.grad, 0, atol=1e-12)

    def test_partners_are_all_of_the_class(self):
        labels = torch.tensor([1, 0, 1, 3, 3, 1])  # and none of class 2
        sorted_rows = labels.argsort(stable=True) + 10
        counts = labels.bincount(minlength=4)
        wanted = labels.repeat(200)
        drawn = losses.same_class(wanted, sorted_rows, counts) - 10
        assert_array_equal(labels[drawn], wanted)
        assert_array_equal(drawn.unique(), np.arange(6))


class TestSteps:
    """Each loss of a fit, computed anew from the logits of its steps."""

    def test_cross_entropy_is_bsd_with_an_infinite_prior(self, iris):
        expected = METHODS["CE"](**SETTINGS).fit(*iris).predict_proba(iris[0])
        rival = Rival(**SETTINGS).fit(*iris)
        assert_allclose(rival.predict_proba(iris[0]), expected, atol=1e-5)

    def test_temporal_ensembling(self, iris):
        steps = watched("temporal ensembling", iris, max_epochs=6)
        Z = np.zeros((150, 3))
        for epoch, batches in enumerate(steps):
            for logits, rows, loss in batches:
                p, y = softmax(logits, axis=1), iris[1][rows]
                expected = hard(log_softmax(logits, axis=1), y)
                if epoch:
                    target = Z[rows] / (1 - 0.6**epoch)
                    assert_allclose(target.sum(axis=1), 1, rtol=1e-5)
                    ramp = min(epoch / (6 * 80 / 300), 1)
                    weight = 30 * math.exp(-5 * (1 - ramp) ** 2)
                    expected += weight * ((p - target) ** 2).mean()
                Z[rows] = 0.6 * Z[rows] + 0.4 * p
                assert_allclose(loss, expected, rtol=1e-4)

    def test_elr(self, iris):
        steps = watched("ELR", iris)
        t = np.zeros((150, 3))
        for logits, rows, loss in (step for batches in steps for step in batches):
            p = softmax(logits, axis=1).clip(1e-4, 1 - 1e-4)
            t[rows] = 0.7 * t[rows] + 0.3 * p / p.sum(axis=1, keepdims=True)
            penalty = np.log(1 - (p * t[rows]).sum(axis=1)).mean()
            expected = hard(log_softmax(logits, axis=1), iris[1][rows]) + 3 * penalty
            assert_allclose(loss, expected, rtol=1e-4)

    def test_elr_of_strength_zero_is_cross_entropy(self, iris):
        model = METHODS["ELR"](strength=0.0, **SETTINGS).fit(*iris)
        expected = METHODS["CE"](**SETTINGS).fit(*iris).predict_proba(iris[0])
        assert_allclose(model.predict_proba(iris[0]), expected, atol=1e-5)

    def test_selc(self, iris):
        steps = watched("SELC", iris)  # the first of 5 epochs is warm-up
        y = np.eye(3)[iris[1]]
        for epoch, batches in enumerate(steps):
            for logits, rows, loss in batches:
                if epoch >= 1:
                    y[rows] = 0.9 * y[rows] + 0.1 * softmax(logits, axis=1)
                expected = soft(log_softmax(logits, axis=1), y[rows])
                assert_allclose(loss, expected, rtol=1e-4)

    def test_selc_without_warm_up_is_bsd(self, iris):
        # c = 1 / (1 - gamma) and eps -> 0; both update first, and use it then.
        selc = METHODS["SELC"](warm_up=0.0, **SETTINGS).fit(*iris)
        prior = {"prior_strength": 10.0, "discount": 0.9, "prior_floor": 1e-12}
        bsd = BSDClassifier(**prior, **SETTINGS).fit(*iris)
        expected = bsd.predict_proba(iris[0])
        assert_allclose(selc.predict_proba(iris[0]), expected, atol=1e-4)
        hard = METHODS["CE"](**SETTINGS).fit(*iris).predict_proba(iris[0])
        assert abs(hard - expected).max() > 0.01

    def test_ps_kd(self, iris):
        steps = watched("PS-KD", iris)
        last = np.eye(3)[iris[1]]
        for epoch, batches in enumerate(steps):
            share = 0.8 * (epoch + 1) / 5
            for logits, rows, loss in batches:
                log_p, label = log_softmax(logits, axis=1), np.eye(3)[iris[1][rows]]
                target = (1 - share) * label + share * last[rows]
                last[rows] = np.exp(log_p)
                assert_allclose(loss, soft(log_p, target), rtol=1e-4)
                if epoch == 0:
                    assert_allclose(loss, soft(log_p, label), rtol=1e-4)

    def test_mixup_mixes_what_the_network_sees(self, uint8_digits):
        X, y = uint8_digits[0][:128], uint8_digits[1][:128]
        seen, mixed = [], []

        class Seeing(Convolution):
            def forward(self, x):
                seen.append((self.training, x.clone()))
                return super().forward(x)

        class Mixing(losses.Mixup):
            def step(self, batch):
                self.batch = batch
                return super().step(batch)

            def draw(self, x):
                drawn = super().draw(x)
                mixed.append((*drawn, self.batch))
                return drawn

        settings = {"augmentation": mirrored, "channels_last": False, "max_epochs": 1}
        model = with_objective("mixup", Mixing)(Seeing, **{**SETTINGS, **settings})
        model.fit(X, y)
        inputs = [x for training, x in seen if training]
        assert len(inputs) == len(mixed) == 4
        for x, (share, other, batch) in zip(inputs, mixed, strict=True):
            alone = (batch.x.flip(3).float() - model.image_mean_.item()) / (
                model.image_std_.item()
            )
            expected = share * alone + (1 - share) * alone[other]
            assert_allclose(x, expected, atol=1e-5)
        assert len({share for share, _, _ in mixed}) == 4
        seen.clear()
        model.predict_proba(X)
        assert len(seen) == 1  # mixed nothing, or it would fail

    def test_cs_kd_learns_from_partners_of_the_training_part(self, digits):
        X, y = digits[0][:200], digits[1][:200]
        seen = []

        class Partners(losses.CSKD):
            def loss(self, logits, batch):
                seen.append((self.rows, self.classes, batch.rows))
                return super().loss(logits, batch)

        split = ValidSplit(5, stratified=True)
        model = with_objective("CS-KD", Partners)
        model(Convolution, train_split=split, **SETTINGS).fit(X, y)
        rows, classes, _ = seen[0]
        trained = torch.cat([batch for _, _, batch in seen]).unique()
        assert_array_equal(rows.sort().values, trained)
        assert len(trained) == 160
        assert_array_equal(classes, np.bincount(y[trained]))
        assert_array_equal(y[rows], np.sort(y[trained]))

    def test_cs_kd_with_the_sample_as_its_partner_is_cross_entropy(self, iris):
        # Each class has one sample, twice: no partner says anything else.
        X, y = np.repeat(iris[0][::10], 2, axis=0), np.repeat(np.arange(15), 2)
        kwargs = {"module": Linear(4, 15), **SETTINGS}
        cskd = METHODS["CS-KD"](**kwargs).fit(X, y).predict_proba(X)
        expected = METHODS["CE"](**kwargs).fit(X, y).predict_proba(X)
        assert_allclose(cskd, expected, atol=1e-5)

    def test_cs_kd(self, iris):
        calls, network = seeing()
        steps = watched("CS-KD", iris, module=network, lr=0.2)
        steps = [step for batches in steps for step in batches]
        assert len(calls) == 2 * len(steps)
        X, y = iris[0].astype(np.float32), iris[1]
        for (_, rows, loss), (_, logits), (partners, teacher) in zip(
            steps, calls[::2], calls[1::2], strict=True
        ):
            found = (partners[:, None] == X).all(axis=2)
            assert found.any(axis=1).all()
            assert_array_equal(y[found.argmax(axis=1)], y[rows])
            q, log_p = softmax(teacher / 4, axis=1), log_softmax(logits / 4, axis=1)
            kl = (q * (np.log(q) - log_p)).sum(axis=1).mean()
            expected = hard(log_softmax(logits, axis=1), y[rows]) + 16 * kl
            assert_allclose(loss, expected, rtol=1e-4)

    def test_dlb(self, iris):
        calls, network = seeing()
        steps = watched("DLB", iris, module=network, lr=0.2)
        steps = [step for batches in steps for step in batches]
        # One pass in the first step, and then one for the new samples, one for the old.
        assert len(calls) == 2 * len(steps) - 1
        logits, rows, loss = steps[0]
        log_p = log_softmax(logits, axis=1)
        assert_allclose(loss, hard(log_p, iris[1][rows]), rtol=1e-5)
        for i, (logits, rows, loss) in enumerate(steps[1:]):
            before, old_rows, _ = steps[i]
            inputs, again = calls[2 * i + 2]
            assert_allclose(inputs, iris[0][old_rows], rtol=1e-6)
            both = log_softmax(np.concatenate([again, logits]), axis=1)
            labels = iris[1][np.concatenate([old_rows, rows])]
            q = softmax(before / 3, axis=1)
            kl = (q * (np.log(q) - log_softmax(again / 3, axis=1))).sum(axis=1).mean()
            assert_allclose(loss, hard(both, labels) + 9 * kl, rtol=1e-4)

    @NEEDS_1_8
    def test_temperature(self, iris):
        X, y = iris
        model = METHODS["temperature"](**SETTINGS).fit(X, y)
        split = StratifiedShuffleSplit(1, test_size=0.1, random_state=0)
        train, held_out = next(split.split(X, y))
        network = METHODS["CE"](**SETTINGS).fit(X[train], y[train])
        logits, labels = network.decision_function(X[held_out]), y[held_out]
        best = minimize_scalar(
            lambda t: hard(log_softmax(logits / np.exp(t), axis=1), labels),
            bounds=(-5, 5),
        )
        expected = softmax(network.decision_function(X) / np.exp(best.x), axis=1)
        assert_allclose(model.predict_proba(X), expected, atol=1e-3)
        assert len(held_out) == 15


class TestEstimators:
    @pytest.mark.parametrize("name", ALL)
    def test_learns_reproducibly_and_afresh(self, name, iris):
        X, y = iris[0], np.array(["a", "b", "c"])[iris[1]]
        model = METHODS[name](**SETTINGS)
        proba = model.fit(X, y).predict_proba(X)
        assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
        assert model.score(X, y) > 0.93
        assert_array_equal(model.fit(X, y).predict_proba(X), proba)
        copy = clone(model)
        assert_array_equal(copy.fit(X, y).predict_proba(X), proba)
        other = METHODS[name](**{**SETTINGS, "random_state": 1})
        assert abs(other.fit(X, y).predict_proba(X) - proba).max() > 1e-4

    @pytest.mark.parametrize("name", ALL)
    def test_learns_from_augmented_images(self, name, uint8_digits):
        X, y = uint8_digits[0][:600], uint8_digits[1][:600]
        model = METHODS[name](
            Convolution, **{**SETTINGS, "max_epochs": 6, "augmentation": shifted}
        )
        assert model.fit(X, y).score(X, y) > 0.8

    @pytest.mark.parametrize("name", RIVALS)
    def test_is_not_cross_entropy(self, name, iris):
        proba = METHODS[name](**SETTINGS).fit(*iris).predict_proba(iris[0])
        other = METHODS["CE"](**SETTINGS).fit(*iris).predict_proba(iris[0])
        assert abs(proba - other).max() > 1e-3

    @pytest.mark.parametrize("name", RIVALS)
    def test_parameters(self, name, iris):
        own = set(inspect.signature(METHODS[name].__init__).parameters)
        own -= {"self", "module", "kwargs"}
        model = METHODS[name](module=Linear, module__scale=2.0, **SETTINGS)
        assert {"prior_strength", "module__scale", *own} <= model.get_params().keys()
        assert model.get_params()["prior_strength"] == math.inf
        (parameter,) = sorted(own)[:1]
        twin = clone(model.set_params(**{parameter: 0.25}))
        assert twin.get_params() == model.get_params()
        with pytest.raises(ValueError, match="Invalid parameter"):
            METHODS[name](smooth=1).fit(*iris)

    @pytest.mark.parametrize("name", RIVALS)
    def test_keeps_nothing_but_the_network(self, name, iris):
        objectives = []

        class Method(METHODS[name]):
            def make_objective(self):
                objective = super().make_objective()
                objectives.append(weakref.ref(objective))
                return objective

        Method(**SETTINGS).fit(*iris)
        gc.collect()
        assert [objective() for objective in objectives] == [None]
        model = METHODS[name](**SETTINGS).fit(*iris)
        loaded = pickle.loads(pickle.dumps(model))
        assert_array_equal(loaded.predict_proba(iris[0]), model.predict_proba(iris[0]))

    @pytest.mark.parametrize("name", REMEMBERING)
    def test_goes_on_from_its_state(self, name, iris):
        class Restarted(METHODS[name].objective):
            def begin_epoch(self):
                super().begin_epoch()
                if self.run.epoch == 6:
                    file = io.BytesIO()
                    torch.save(self.state_dict(), file)
                    self.begin(self.run)
                    self.load(file)

            def load(self, file):
                file.seek(0)
                self.load_state_dict(torch.load(file, weights_only=True))

        class Forgetful(Restarted):
            def load(self, file):
                pass

        expected = METHODS[name](**SETTINGS).fit(*iris)
        restarted = with_objective(name, Restarted)(**SETTINGS).fit(*iris)
        assert same_weights(restarted, expected)
        forgetful = with_objective(name, Forgetful)(**SETTINGS).fit(*iris)
        assert not same_weights(forgetful, expected)

    def test_one_batch_of_double_precision(self, iris):
        for name in RIVALS:
            model = METHODS[name](max_epochs=2, batch_size=-1, random_state=0)
            model.fit(*iris)
            assert next(model.module_.parameters()).dtype == torch.float64


class TestRefusals:
    def test_weights(self, iris):
        model = METHODS["ELR"](**SETTINGS)
        with pytest.raises(ValueError, match="ELR takes no sample or class weights"):
            model.fit(*iris, sample_weight=np.ones(150))
        with pytest.raises(ValueError, match="takes no sample or class weights"):
            model.set_params(class_weight="balanced").fit(*iris)
        assert not hasattr(model, "module_")

    def test_optimizers_with_a_closure(self, iris):
        with pytest.raises(ValueError, match="SELC would update its state"):
            METHODS["SELC"](optimizer=torch.optim.LBFGS, **SETTINGS).fit(*iris)

    def test_networks_of_another_width(self, iris):
        with pytest.raises(ValueError, match="3 classes"):
            METHODS["DLB"](nn.Linear(4, 2), **SETTINGS).fit(*iris)

    def test_cs_kd_from_a_loader(self, iris):
        data = Images(torch.tensor(iris[0], dtype=torch.float32), iris[1])
        with pytest.raises(ValueError, match="an array on the device"):
            METHODS["CS-KD"](Linear, **SETTINGS).fit(data)
        METHODS["DLB"](Linear, **SETTINGS).fit(data)

    def test_mixup_of_what_cannot_be_mixed(self, iris):
        data = Images(torch.arange(30).reshape(10, 3), np.arange(10) % 2)
        embedding = nn.Sequential(nn.Embedding(30, 2), nn.Flatten(), nn.Linear(6, 2))
        with pytest.raises(TypeError, match="Tensor of floats"):
            METHODS["mixup"](embedding, **SETTINGS).fit(data)
