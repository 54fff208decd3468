"""The learning-rate schedule over one call of `fit`, and over several."""

import numpy as np
import pytest
import torch
from helpers import quick
from modules import Linear
from skorch.callbacks import Callback, Checkpoint, LRScheduler

from skbsd._learning_rate import SCHEDULES, LearningRate


class Rates(Callback):
    """Stores the learning rate of every step."""

    def on_train_begin(self, net, **kwargs):
        self.rates_ = []

    def on_batch_end(self, net, training, **kwargs):
        if training:
            self.rates_.append(net.optimizer_.param_groups[0]["lr"])


def rates(model):
    return dict(model.callbacks_)["Rates"].rates_


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_rates_of_the_steps(schedule):
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    rate, seen = LearningRate(optimizer, schedule, 4), []
    (group,) = optimizer.param_groups
    with rate.applied():
        for step in range(4):
            rate.set(step)
            seen.append(group["lr"])
    expected = [2 * SCHEDULES[schedule](p) for p in (0.125, 0.375, 0.625, 0.875)]
    assert seen == pytest.approx(expected)
    assert group["lr"] == 2
    assert "initial_lr" not in group


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_after_a_checkpoint_of_skorch(iris, tmp_path, schedule):
    """The file has the schedule's last rate; the next fit uses its peak rate again."""
    kwargs = {"module": Linear, "lr_schedule": schedule, "max_epochs": 5}
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path)
    model = quick(callbacks=[checkpoint, Rates], **kwargs).fit(*iris)
    saved = torch.load(tmp_path / "optimizer.pt")["param_groups"][0]
    assert saved["lr"] < 1e-3
    other = quick(callbacks=[Rates], **kwargs).fit(*iris)
    other.load_params(checkpoint=checkpoint)
    other.partial_fit(*iris)
    assert rates(other) == rates(model)
    assert max(rates(other)) > 5e-3


def test_a_rate_that_is_set_between_two_fits(iris):
    model = quick(callbacks=[Rates]).fit(*iris)
    before = np.array(rates(model))
    model.set_params(lr=1e-3).partial_fit(*iris)
    np.testing.assert_allclose(rates(model), before / 10)


def test_a_rate_that_is_set_after_a_scheduler_of_skorch(iris):
    policy = LRScheduler("StepLR", step_size=1)
    model = quick(callbacks=[policy, Rates]).fit(*iris)
    model.set_params(lr=1e-4).partial_fit(*iris)
    assert 0 < max(rates(model)) <= 1.001e-4
