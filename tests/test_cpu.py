"""The posterior step on the CPU, compared with the formulas."""

import math
import os
import warnings

import numpy as np
import pytest
import torch

from skbsd import _cpu, _formulas
from skbsd.posterior import DirichletPosterior, UpdateRule

N = 50
PAPER = UpdateRule()


def draw(n, n_classes, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(n * n_classes)
    logits = scale * torch.randn(n, n_classes, generator=generator)
    index = torch.randperm(N, generator=generator)[:n]
    return logits.to(dtype), index


def store(n_classes, dtype=torch.float32, strength=20.0):
    labels = torch.arange(N) % n_classes
    kwargs = {"prior_strength": strength, "dtype": dtype}
    return DirichletPosterior(labels, n_classes, **kwargs)


def both(logits, index, *, weight=None, rule=PAPER, **kwargs):
    """Return loss, gradient, beliefs and visits, from here and from the formulas."""
    found = []
    for step in (_cpu.posterior_step, _formulas.posterior_step):
        posterior = store(logits.shape[1], **kwargs)
        for _ in range(2):  # beliefs that are not the prior
            rows = (posterior._alpha, posterior.visits, index)
            loss, gradient = step(logits, *rows, weight, rule)
        found.append((loss, gradient, posterior._alpha, posterior.visits))
    return found


def assert_same(found, expected, rtol=None, atol=None):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, check_dtype=False)


@pytest.fixture(params=["whole", "blocks", "threads"])
def blocks(request, monkeypatch):
    if request.param != "whole":
        monkeypatch.setattr(_cpu, "_BLOCK", 16)
    if request.param == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.usefixtures("blocks")
class TestAgreesWithTheFormulas:
    @pytest.mark.parametrize("n_classes", [2, 10, 300])
    @pytest.mark.parametrize("n", [1, 7, 50])
    @pytest.mark.parametrize("discount", [1.0, 0.9])
    def test_sizes(self, n, n_classes, discount):
        assert_same(*both(*draw(n, n_classes), rule=UpdateRule(discount=discount)))

    @pytest.mark.parametrize(
        "fields",
        [(0.0, 1.0), (0.3, 1.0), (0.3, 2.0), (1.0, 0.3), (5.0, 10.0), (0.3, 1.0, 0.2)],
    )
    @pytest.mark.parametrize("n_classes", [2, 300])
    def test_rules(self, n_classes, fields):
        batch = draw(50, n_classes)
        found, expected = both(*batch, rule=UpdateRule(*fields, discount=0.9))
        assert_same(found, expected)
        plain = both(*batch, rule=UpdateRule(discount=0.9))[0]
        assert not torch.allclose(found[2], plain[2])

    @pytest.mark.parametrize("n_classes", [10, 300])
    def test_sharpening_of_what_is_far_from_one(self, n_classes):
        logits, index = torch.zeros(9, n_classes), draw(9, 2)[1]
        logits[:, 0] = -math.inf
        found, expected = both(logits, index, rule=UpdateRule(sharpness=100.0))
        assert_same(found[2:], expected[2:])
        rows = found[2][index, 1:] - store(n_classes)._alpha[index, 1:]
        logits[:, 0] = -1.0
        found, expected = both(logits, index, rule=UpdateRule(sharpness=100.0))
        assert_same(found, expected)
        assert (rows == 0).all()

    @pytest.mark.parametrize("weight", [torch.float32, torch.float64])
    def test_weights(self, weight):
        logits, index = draw(9, 4)
        weight = torch.linspace(0.1, 2.0, 9, dtype=weight)
        assert_same(*both(logits, index, weight=weight))
        unweighted = both(logits, index)[0]
        assert not torch.allclose(
            both(logits, index, weight=weight)[0][0], unweighted[0]
        )

    @pytest.mark.parametrize(
        "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    )
    @pytest.mark.parametrize("kept", [torch.float16, torch.float32, torch.float64])
    def test_types(self, dtype, kept):
        found, expected = both(*draw(9, 4, dtype), dtype=kept)
        assert found[0].dtype == torch.promote_types(dtype, torch.float32)
        assert found[1].dtype == dtype
        # A last digit may be rounded either way.
        coarse = torch.finfo(min(dtype, kept, key=lambda d: d.itemsize)).eps
        assert_same(found, expected, rtol=20 * coarse, atol=coarse)

    def test_float16_is_rounded_alike(self):
        """Equal except for rare differences in the last digit of float32."""
        found, expected = both(*draw(50, 40), dtype=torch.float16)
        assert (found[2] == expected[2]).float().mean() > 0.99
        assert not torch.equal(found[2], store(40, torch.float16)._alpha)

    @pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
    def test_logits_of_any_size(self, scale):
        assert_same(*both(*draw(9, 5, scale=scale)), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("offset", [-500.0, 500.0])
    def test_a_common_offset(self, offset):
        logits, index = draw(9, 5)
        assert_same(both(logits + offset, index)[0], both(logits, index)[0], 1e-3, 1e-4)

    def test_infinite_prior(self):
        assert_same(*both(*draw(9, 5), strength=math.inf))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_rows_that_are_not_finite_are_left(self, value):
        logits, index = draw(9, 5)
        logits[4, 2] = value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, expected = both(logits, index)
        assert_same(found[2:], expected[2:])
        assert not found[0].isfinite()
        others = torch.arange(9) != 4
        torch.testing.assert_close(found[1][others], expected[1][others])
        assert found[3][index].tolist() == [2, 2, 2, 2, 0, 2, 2, 2, 2]


def test_logits_that_are_a_view():
    logits, index = draw(9, 8)
    assert_same(*both(logits[:, ::2], index))
    assert_same(*both(logits.t()[:, :5].contiguous().t()[:, :4], index[:5]))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_what_numpy_is_told_to_raise_does_not_matter(scale):
    with np.errstate(all="raise"):
        both(*draw(9, 5, scale=scale), strength=math.inf)


def test_a_loss_is_never_negative():
    logits = torch.full((40, 5), 1.3)
    logits[torch.arange(40), torch.arange(40) % 5] = 46.7
    posterior = store(5, strength=math.inf)
    loss, _ = posterior.update(logits, torch.arange(40))
    assert 0 <= loss < 1e-6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(_cpu, "_BLOCK", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    both(*draw(50, 5))
    assert _cpu._pool.cache_info().currsize
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        os._exit(_cpu._pool.cache_info().currsize)
    assert os.waitpid(child, 0)[1] == 0


class TestUpdate:
    def test_is_the_step_without_autograd(self):
        logits, index = draw(9, 5)
        one, other = store(5), store(5)
        loss, gradient = one.update(logits, index)
        leaf = logits.clone().requires_grad_()
        total = other.step(leaf, index)
        (2 * total).backward()
        torch.testing.assert_close(total.detach(), loss)
        torch.testing.assert_close(leaf.grad, 2 * gradient)
        torch.testing.assert_close(one.mean(), other.mean())

    def test_any_integers_and_no_samples(self):
        logits, index = draw(9, 5)
        one, other = store(5), store(5)
        one.update(logits, index.int())
        other.update(logits, index)
        assert torch.equal(one.mean(), other.mean())
        loss, gradient = one.update(logits[:0], index[:0])
        assert loss.isnan()
        assert gradient.shape == (0, 5)

    def test_a_store_that_numpy_does_not_know(self):
        logits, index = draw(9, 5)
        one, other = store(5, torch.bfloat16), store(5)
        one.update(logits, index)
        other.update(logits, index)
        torch.testing.assert_close(one.mean().float(), other.mean(), rtol=0, atol=0.01)

    def test_weights(self):
        logits, index = draw(9, 5)
        weight = torch.rand(9).requires_grad_()
        assert not store(5).update(logits, index, weight)[0].requires_grad
        posterior = store(5)
        with pytest.raises(ValueError, match=r"weight must have shape \(9,\).*\(8,\)"):
            posterior.update(logits, index, weight[1:])
        assert not posterior.visits.any()

    @pytest.mark.parametrize("row", [-1, N])
    def test_rows_that_are_not_there(self, row):
        with pytest.raises(
            ValueError, match=rf"rows must lie in \[0, {N}\), got .*{row}"
        ):
            store(3).update(torch.zeros(2, 3), torch.tensor([1, row]))
