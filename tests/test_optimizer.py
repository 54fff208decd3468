"""Support for PyTorch's optimizers."""

import pytest
import torch
from helpers import quick, same_weights
from skorch.callbacks import Callback
from torch.optim import optimizer as torch_optimizer

from skbsd._optimizer import step_function


@pytest.fixture
def optimizer():
    return torch.optim.AdamW([torch.zeros(2, requires_grad=True)])


def test_steps_without_hooks_are_the_same(optimizer):
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(2)
    expected = torch.zeros(2, requires_grad=True)
    expected.grad = torch.ones(2)
    step_function(optimizer)()
    torch.optim.AdamW([expected]).step()
    assert torch.equal(parameter, expected)


def test_hooks_are_called(optimizer):
    assert step_function(optimizer) != optimizer.step
    handle = optimizer.register_step_pre_hook(lambda *args: None)
    assert step_function(optimizer) == optimizer.step
    handle.remove()
    handle = torch_optimizer.register_optimizer_step_post_hook(lambda *args: None)
    assert step_function(optimizer) == optimizer.step
    handle.remove()
    assert step_function(optimizer) != optimizer.step
    with torch.profiler.profile():
        assert step_function(optimizer) == optimizer.step
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert step_function(optimizer) == optimizer.step


def test_hooks_that_a_callback_registers(iris):
    steps = []

    class Registers(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                net.optimizer_.register_step_post_hook(lambda *args: steps.append(1))

    model = quick(callbacks=[Registers]).fit(*iris)
    assert len(steps) == 2 * 2  # of the second epoch on
    assert same_weights(model, quick().fit(*iris))
