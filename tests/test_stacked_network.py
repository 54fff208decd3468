"""Networks along a leading dimension, and which of them can be stacked."""

import copy

import pytest
import torch
from modules import Dropout, InPlace, Linear, ReturnsObject
from torch import nn

from skbsd._stackable import same_code
from skbsd._stacked_network import StackedNetwork
from skbsd.networks import MLP, SmallResNet, SpeedNet

SHAPES = {MLP: (4,), SmallResNet: (1, 8, 8), SpeedNet: (1, 12, 12)}


def make(kind):
    torch.manual_seed(0)
    options = {MLP: {"hidden": (5,)}}.get(kind, {"widths": (4, 8)})
    first = SHAPES[kind][0]
    return [kind(first, 3, **options).double().train() for _ in range(3)]


def names_of(module):
    return [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize("kind", SHAPES)
def test_logits_gradients_and_statistics_are_those_of_each(kind):
    modules = make(kind)
    each = copy.deepcopy(modules)
    names = names_of(modules[0])
    groups = [names[:1], names[1:]]
    network = StackedNetwork(modules, groups)
    x = torch.randn(3, 6, *SHAPES[kind], dtype=torch.float64)
    # All at once, and then a part alone.
    for members in (slice(0, 3), slice(1, 3)):
        part = network.part(members)
        logits = part.logits(x[members])
        logits.square().sum().backward()
        gradients = part.gradients()
        for i, module in enumerate(each[members]):
            module.zero_grad()
            own = module(x[members][i])
            torch.testing.assert_close(logits[i], own)
            own.square().sum().backward()
            of_each = dict(module.named_parameters())
            for group, flat in zip(groups, gradients, strict=True):
                expected = torch.cat([of_each[n].grad.flatten() for n in group])
                torch.testing.assert_close(flat[i], expected)
    for weights in network.weights:
        weights.mul_(2)
    network.leave()
    for module, own in zip(modules, each, strict=True):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter, 2 * own.get_parameter(name))
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(buffer, own.get_buffer(name))


def test_frozen_weights_stay_as_they_are():
    modules = [Linear() for _ in range(2)]
    for module in modules:
        module.layer.bias.requires_grad_(False)
    network = StackedNetwork(modules, [["layer.weight"]])
    part = network.part(slice(0, 2))
    part.logits(torch.ones(2, 3, 4)).sum().backward()
    assert [g.shape for g in part.gradients()] == [(2, 12)]


@pytest.mark.parametrize(
    ("module", "obstacle"),
    [
        (Linear(), None),
        (ReturnsObject(), None),
        (SmallResNet(1, 3, (4,)), None),
        (Dropout(), "randomness"),
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout()), "randomness"),
        (InPlace(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_trial_tells_what_cannot_be_run_at_once(module, obstacle):
    modules = [copy.deepcopy(module).train() for _ in range(2)]
    network = StackedNetwork(modules, [names_of(module)])
    images = isinstance(module, SmallResNet)
    x = torch.randn(2, 4, *((1, 8, 8) if images else (4,)))
    state, given = torch.get_rng_state(), x.clone()
    buffers = [b.clone() for m in modules for b in m.buffers()]
    found = network.obstacle(x)
    assert found is None if obstacle is None else obstacle in found
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, given)
    network.leave()
    after = [b for m in modules for b in m.buffers()]
    assert all(map(torch.equal, buffers, after))


class Remembers(Linear):
    """Returns something else from its second call on."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


def test_a_trial_compares_the_logits():
    modules = [Remembers().train() for _ in range(2)]
    network = StackedNetwork(modules, [names_of(modules[0])])
    assert "other logits" in network.obstacle(torch.randn(2, 4, 4))


def test_a_trial_that_is_not_finite():
    modules = [Linear().train() for _ in range(2)]
    with torch.no_grad():
        modules[0].layer.bias[0] = torch.nan
    network = StackedNetwork(modules, [names_of(modules[0])])
    assert "not finite" in network.obstacle(torch.randn(2, 4, 4))


def test_networks_of_the_same_code():
    assert same_code(MLP(4, 3), MLP(4, 3))
    assert not same_code(MLP(4, 3), MLP(4, 2))
    assert not same_code(MLP(4, 3, (8,)), MLP(4, 3, (8, 8)))
    assert not same_code(Linear(scale=1.0), Linear(scale=2.0))
    assert not same_code(nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()))
    assert same_code(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    assert not same_code(nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=0.5))
    frozen = Linear()
    frozen.layer.bias.requires_grad_(False)
    assert not same_code(Linear(), frozen)
    one, other = Linear(), Linear()
    one.table, other.table = torch.zeros(3), torch.zeros(3)
    assert same_code(one, other)
    other.table[0] = 1
    assert not same_code(one, other)
