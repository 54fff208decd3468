"""Beliefs of several trainings in one store, compared with separate posteriors."""

import copy

import pytest
import torch

from skbsd._stacked_beliefs import StackedBeliefs
from skbsd.posterior import DirichletPosterior, UpdateRule

N_CLASSES = 4
ROWS = (30, 31, 30)
RULES = {
    "paper": [None] * 3,
    "one": [UpdateRule(2.0, 1.5, 0.1, 0.9)] * 3,
    "several": [
        UpdateRule(2.0, 1.5, 0.1, 0.9),
        UpdateRule(0.5, 1.0, 0.0, 0.8),
        UpdateRule(1.0, 3.0, 0.3, 1.0),
    ],
}


def make(rules, dtype, prior_strength=(5.0, 50.0, 0.5)):
    generator = torch.Generator().manual_seed(1)
    return [
        DirichletPosterior(
            torch.randint(N_CLASSES, (n,), generator=generator),
            N_CLASSES,
            prior_strength=c,
            discount=1.0 if rule is None else rule.discount,
            prior_floor=0.01,
            dtype=dtype,
        )
        for n, c, rule in zip(ROWS, prior_strength, rules, strict=True)
    ]


def check(posteriors, rules, logits_dtype, *, weighted, on_any_device, tolerance):
    """Update twice, the first two members once more, and compare."""
    generator = torch.Generator().manual_seed(0)
    own = copy.deepcopy(posteriors)
    beliefs = StackedBeliefs(posteriors)
    beliefs.load_rules(rules)
    update = beliefs._update if on_any_device else beliefs.update
    for members in (slice(0, 3), slice(0, 3), slice(0, 2)):
        m = members.stop
        logits = 3 * torch.randn(m, 7, N_CLASSES, generator=generator)
        logits = logits.to(logits_dtype)
        rows = torch.stack(
            [torch.randperm(30, generator=generator)[:7] for _ in range(m)]
        )
        weight = torch.rand(m, 7, generator=generator) if weighted else None
        losses, gradient = update(members, logits, rows, weight)
        for i in range(m):
            w = None if weight is None else weight[i]
            loss, slope = own[i].update(logits[i], rows[i], w, rules[i])
            torch.testing.assert_close(losses[i], loss, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(
                gradient[i], slope, rtol=tolerance, atol=tolerance
            )
    assert not torch.equal(posteriors[0].mean(), own[0].mean())  # not given back yet
    beliefs.leave()
    for one, other in zip(posteriors, own, strict=True):
        torch.testing.assert_close(
            one.concentration(), other.concentration(), rtol=tolerance, atol=tolerance
        )
        assert torch.equal(one.visits, other.visits)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("on_any_device", [False, True])
def test_updates_are_those_of_each(rules, weighted, on_any_device):
    double = torch.float64
    check(
        make(rules, double),
        rules,
        double,
        weighted=weighted,
        on_any_device=on_any_device,
        tolerance=1e-12 if not weighted else 1e-7,
    )


@pytest.mark.parametrize("store", [torch.float16, torch.float32])
@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16])
def test_other_types(store, logits):
    rules = RULES["several"]
    # A rounding of the store that falls on the other side is 2^-10 of the value.
    tolerance = 2e-3 if store == torch.float16 else 1e-5
    check(
        make(rules, store),
        rules,
        logits,
        weighted=False,
        on_any_device=False,
        tolerance=1e-2 if logits == torch.bfloat16 else tolerance,
    )


def test_an_infinite_prior_takes_in_nothing():
    rules = [None, UpdateRule(weight=2.0, discount=0.9), None]
    posteriors = make(rules, torch.float64, (float("inf"), float("inf"), 5.0))
    check(
        posteriors,
        rules,
        torch.float64,
        weighted=False,
        on_any_device=False,
        tolerance=1e-12,
    )
    assert (posteriors[0].mean().max(dim=1).values == 1).all()


@pytest.mark.parametrize("on_any_device", [False, True])
def test_logits_that_are_not_finite_are_one_member_s_own(on_any_device):
    posteriors = make([None] * 3, torch.float32)
    before = [posterior.concentration() for posterior in posteriors]
    beliefs = StackedBeliefs(posteriors)
    beliefs.load_rules([None] * 3)
    update = beliefs._update if on_any_device else beliefs.update
    logits = torch.zeros(3, 2, N_CLASSES)
    logits[1, 0] = torch.nan
    logits[2, 1, 0] = 500.0  # whose exponential overflows
    losses, gradient = update(slice(0, 3), logits, torch.tensor([[0, 1]] * 3), None)
    assert losses.isfinite().tolist() == [True, False, True]
    assert gradient.isfinite().all(dim=(1, 2)).tolist() == [True, False, True]
    beliefs.leave()
    assert posteriors[1].visits[:2].tolist() == [0, 1]
    assert torch.equal(posteriors[1].concentration()[0], before[1][0])
    assert posteriors[2].visits[:2].tolist() == [1, 1]
