"""Steps of several networks at once, compared with torch's optimizers."""

import numpy as np
import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from skbsd._stacked_optimizer import can_stack, same_options, stacked_groups

SETTINGS = [
    (SGD, {}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "nesterov": True}),
    (SGD, {"momentum": 0.8, "dampening": 0.3}),
    (SGD, {"maximize": True, "momentum": 0.5}),
    (Adam, {}),
    (Adam, {"betas": (0.5, 0.7), "eps": 1e-3, "amsgrad": True}),
    (AdamW, {}),
    (AdamW, {"amsgrad": True, "maximize": True}),
]
SETTING = pytest.mark.parametrize(("kind", "options"), SETTINGS)
LR, DECAY = [0.1, 0.01, 0.3], [0.0, 0.1, 0.5]


def optimizers(kind, weights, options):
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    made = [
        kind([p], lr=lr, weight_decay=decay, **options)
        for p, lr, decay in zip(parameters, LR, DECAY, strict=True)
    ]
    return parameters, made


@SETTING
@pytest.mark.parametrize("decays", [True, False])
def test_steps_are_those_of_torch(kind, options, decays):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 20, dtype=torch.float64, generator=generator)
    parameters, each = optimizers(kind, weights, options)
    if not decays:
        for optimizer in each:
            optimizer.param_groups[0]["weight_decay"] = 0.0
    stacked = weights.clone()
    (group,) = stacked_groups(each, [stacked])
    n_steps = np.zeros(3, int)
    for epoch in range(3):
        rates = np.outer(LR, [1.0, 0.5, 0.1]) * (epoch + 1)
        group.load_rates(rates, n_steps[:, None] + np.arange(1, 4))
        for step in range(3):
            # The last member has no third step.
            members = slice(0, 3) if step < 2 else slice(0, 2)
            gradient = torch.randn(3, 20, dtype=torch.float64, generator=generator)
            group.step(members, step, gradient[members].clone())
            for i in range(members.stop):
                parameters[i].grad = gradient[i].clone()
                each[i].param_groups[0]["lr"] = rates[i, step]
                each[i].step()
            n_steps[members] += 1
            expected = torch.stack([p.detach() for p in parameters])
            torch.testing.assert_close(stacked, expected, rtol=1e-12, atol=1e-12)
    for i, (parameter, optimizer) in enumerate(zip(parameters, each, strict=True)):
        own, theirs = group.state(i, n_steps[i]), optimizer.state[parameter]
        if kind is SGD and "momentum" not in options:
            assert not own
            continue
        assert own.keys() == theirs.keys()
        for name in own:
            torch.testing.assert_close(own[name], theirs[name], rtol=1e-12, atol=1e-12)


def test_what_can_be_stacked():
    weight = torch.nn.Parameter(torch.zeros(2))
    assert can_stack(AdamW([weight]))
    assert not can_stack(torch.optim.RMSprop([weight]))
    assert not can_stack(AdamW([weight], lr=torch.tensor(0.1)))
    assert not can_stack(SGD([weight], differentiable=True))

    class Own(AdamW):
        pass

    assert not can_stack(Own([weight]))


def test_what_may_differ():
    weight = torch.nn.Parameter(torch.zeros(2))
    one = AdamW([weight], lr=0.1, weight_decay=0.1)
    assert same_options(one, AdamW([weight], lr=0.2, weight_decay=0.3))
    assert not same_options(one, AdamW([weight], betas=(0.8, 0.9)))
    assert not same_options(one, Adam([weight]))
    assert not same_options(one, AdamW([weight], amsgrad=True))
