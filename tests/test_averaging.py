"""The average of the weights: its formula, and when it is in the network."""

import copy
import pickle

import numpy as np
import pytest
import test_checkpoint
import torch
from helpers import quick, same_weights
from modules import Interrupting, Linear
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback, EarlyStopping, Freezer
from skorch.dataset import ValidSplit
from test_checkpoint import killed_after
from torch import nn

from skbsd import BSDClassifier
from skbsd._averaging import Averaging, WeightAverage, averaging_for

__all__ = ["killed_after"]  # a fixture

LONG = {"module": Linear, "max_epochs": 10, "batch_size": 15}  # 100 steps
SPLIT = ValidSplit(5, stratified=True)


class Recorded(BSDClassifier):
    """Stores the weights after each step and at the end of each epoch."""

    steps: list = []  # noqa: RUF012
    ends: list = []  # noqa: RUF012

    def train_step(self, batch, **fit_params):
        result = super().train_step(batch, **fit_params)
        self.steps.append([p.detach().clone() for p in self.module_.parameters()])
        return result


class AtEpochEnd(Callback):
    def on_epoch_end(self, net, **kwargs):
        net.ends.append([p.detach().clone() for p in net.module_.parameters()])


class Diverging(Linear):
    """Returns NaN from its 35th training step on."""

    steps = 0

    def forward(self, x):
        self.steps += self.training
        diverges = self.training and self.steps >= 35
        return super().forward(x) * (float("nan") if diverges else 1.0)


def recorded(X, y, **kwargs):
    model = Recorded(
        **{**LONG, **kwargs}, random_state=0, calibration=None, callbacks=[AtEpochEnd]
    )
    model.steps, model.ends = [], []
    return model.fit(X, y)


def average(steps, h):
    """Return the sum with weights (1 - 1/h)^age, which are scaled to sum 1."""
    w = (1 - 1 / h) ** torch.arange(len(steps) - 1, -1, -1.0).double()
    w /= w.sum()
    return [
        torch.einsum("t,t...->...", w, torch.stack(p).double()).float()
        for p in zip(*steps, strict=True)
    ]


class TestFormula:
    @pytest.mark.parametrize("h", [1.0, 2.5, 20.0])
    def test_weights_fall_with_age(self, h):
        module = nn.Linear(3, 2)
        averaging = WeightAverage(module, round(20 * h))
        steps = []
        for _ in range(12):
            averaging.take_back()
            with torch.no_grad():
                module.weight.add_(torch.randn(2, 3))
            averaging.update()
            steps.append([p.detach().clone() for p in module.parameters()])
            averaging.put()
            expected = average(steps, h)
            torch.testing.assert_close(list(module.parameters()), expected)
        averaging.take_back()
        assert torch.equal(module.weight, steps[-1][0])

    def test_short_runs_keep_the_last_weights(self, iris):
        kwargs = {"max_epochs": 2, "batch_size": 15}
        model = quick(averaging="ema", **kwargs).fit(*iris)
        assert same_weights(model, quick(**kwargs).fit(*iris))

    def test_what_is_averaged(self):
        module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 2))
        module[2].register_buffer("mask", torch.tensor([-np.inf, 0.0]))
        module[1].weight.requires_grad_(False)
        frozen = module[1].weight.clone()
        averaging = WeightAverage(module, 100)
        means = []
        for _ in range(4):
            averaging.take_back()
            module(torch.randn(9, 2) + 1)
            means.append(module[0].running_mean.clone())
            averaging.update()
        averaging.put()
        (mean,) = average([[m] for m in means], 5.0)
        torch.testing.assert_close(module[0].running_mean, mean)
        assert module[0].num_batches_tracked == 4
        assert torch.equal(module[1].weight, frozen)
        assert module[2].mask.tolist() == [-np.inf, 0.0]

    def test_memory_formats(self):
        one = nn.Conv2d(3, 4, 3)
        other = copy.deepcopy(one).to(memory_format=torch.channels_last)
        for module in (one, other):
            averaging = WeightAverage(module, 100)
            for factor in (1, 2, 3):
                with torch.no_grad():
                    module.weight.mul_(factor)
                averaging.update()
            averaging.put()
        torch.testing.assert_close(one.weight, other.weight)

    def test_nothing_to_put(self):
        module = nn.Linear(2, 2)
        before = module.weight.clone()
        averaging = WeightAverage(module, 100)
        averaging.put()
        averaging.take_back()
        averaging.put()
        assert torch.equal(module.weight, before)
        WeightAverage(nn.ReLU(), 100).update()
        assert type(averaging_for(None, module, 100)) is Averaging


class TestInAFit:
    @pytest.mark.parametrize("averaging", [None, "ema"])
    def test_training_is_not_changed(self, iris, averaging):
        model = recorded(*iris, averaging=averaging)
        expected = recorded(*iris)
        for one, other in zip(model.steps, expected.steps, strict=True):
            assert all(map(torch.equal, one, other))
        assert same_weights(model, expected) is (averaging is None)

    def test_epochs_end_with_the_average(self, iris):
        model = recorded(*iris, averaging="ema")
        assert len(model.ends) == 10
        for epoch, end in enumerate(model.ends, 1):
            expected = average(model.steps[: 10 * epoch], 5.0)
            torch.testing.assert_close(end, expected)
        assert all(map(torch.equal, model.module_.parameters(), model.ends[-1]))

    def test_validation_is_of_the_average(self, iris):
        model = quick(**LONG, averaging="ema", train_split=SPLIT).fit(*iris)
        valid = SPLIT(model.get_dataset(*iris), iris[1])[1]
        X, y = iris[0][valid.indices], iris[1][valid.indices]
        proba = model.predict_proba(X)[np.arange(len(y)), y]
        assert model.history_[-1, "valid_loss"] == pytest.approx(
            -np.log(proba).mean(), rel=1e-5
        )

    def test_best_epoch(self, iris):
        stop = EarlyStopping(patience=1, threshold=2.0, load_best=True)
        kwargs = {**LONG, "train_split": SPLIT, "callbacks": [AtEpochEnd(), stop]}
        model = Recorded(**kwargs, averaging="ema", calibration=None, random_state=0)
        model.ends, model.steps = [], []
        model.fit(*iris)
        assert len(model.ends) == 2
        assert all(map(torch.equal, model.module_.parameters(), model.ends[0]))

    def test_partial_fit_goes_on_from_the_average(self, iris):
        model = recorded(*iris, averaging="ema")
        plain = copy.deepcopy(model).set_params(averaging=None)
        model.steps, model.ends = [], []
        model.partial_fit(*iris)
        plain.steps = []
        plain.partial_fit(*iris)
        assert all(map(torch.equal, model.steps[-1], plain.steps[-1]))
        torch.testing.assert_close(model.ends[-1], average(model.steps, 5.0))

    def test_warm_start(self, iris):
        model = recorded(*iris, averaging="ema", warm_start=True)
        model.steps, model.ends = [], []
        model.fit(*iris)
        torch.testing.assert_close(model.ends[-1], average(model.steps, 5.0))

    def test_copies_predict_with_the_average(self, iris, tmp_path):
        model = quick(**LONG, averaging="ema").fit(*iris)
        model.save(tmp_path / "model")
        loaded = BSDClassifier.load(tmp_path / "model", module=Linear)
        for other in (pickle.loads(pickle.dumps(model)), loaded):
            assert same_weights(other, model)
            assert other.averaging == "ema"

    def test_layers_that_a_callback_freezes(self, iris):
        """The weights are unchanged, bit for bit."""
        freezer = Freezer("layer.bias")
        models = [
            quick(**LONG, averaging=averaging, callbacks=[freezer]).fit(*iris)
            for averaging in (None, "ema")
        ]
        one, other = (model.module_.layer for model in models)
        assert torch.equal(one.bias, other.bias)
        assert not torch.equal(one.weight, other.weight)

    def test_folds(self, iris):
        """Predictions of unseen samples are those of averages, too."""
        one, other = (
            BSDClassifier(
                **LONG, averaging=averaging, random_state=0, lr=1e-2, prior_strength=60
            ).fit(*iris)
            for averaging in (None, "ema")
        )
        assert one.temperature_ != other.temperature_
        assert other.score(*iris) > 0.7

    def test_unknown_averages(self, iris):
        with pytest.raises(ValueError, match=r"'averaging' parameter.*Got 'swa'"):
            quick(averaging="swa").fit(*iris)


class TestInterrupted:
    def test_by_the_user(self, iris):
        """The seventh step of the second epoch of four."""
        kwargs = {"module": Interrupting, "batch_size": 30, "max_epochs": 20}
        with pytest.warns(ConvergenceWarning, match="interrupted in epoch 2"):
            model = quick(**kwargs, averaging="ema").fit(*iris)
        steps = recorded(*iris, **(kwargs | {"module": Linear})).steps
        torch.testing.assert_close(
            list(model.module_.parameters()), average(steps[:6], 5.0)
        )

    def test_by_divergence(self, iris):
        kwargs = {"averaging": "ema", "lr": 1e-2}
        model = Recorded(
            **{**LONG, "module": Diverging}, **kwargs, random_state=0, calibration=None
        )
        model.steps = []
        with pytest.raises(ValueError, match="NaN or infinite in epoch 4"):
            model.fit(*iris)
        torch.testing.assert_close(
            list(model.module_.parameters()), average(model.steps[:30], 5.0)
        )
        assert np.isfinite(model.predict_proba(iris[0])).all()

    @pytest.mark.parametrize(
        "kwargs", [{}, {"train_split": SPLIT}, {"optimizer": torch.optim.SGD}]
    )
    def test_by_the_end_of_the_process(self, iris, tmp_path, killed_after, kwargs):
        kwargs = {**LONG, "averaging": "ema", **kwargs}
        test_checkpoint.TestGoesOn.check(kwargs, *iris, tmp_path, killed_after)
