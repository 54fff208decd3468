"""The compact store, compared with plain PyTorch and with dense beliefs."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from skbsd import _compact, _compact_cpu
from skbsd._compact import CompactRows
from skbsd.posterior import CompactPosterior, DirichletPosterior, UpdateRule

N = 40
RULES = {
    "paper": UpdateRule(),
    "weighted": UpdateRule(weight=2.5),
    "unweighted": UpdateRule(weight=0.0),
    "sharp": UpdateRule(weight=1.5, sharpness=2.0),
    "smooth": UpdateRule(smoothing=0.2),
    "all": UpdateRule(weight=3.0, sharpness=1.7, smoothing=0.1),
}


def draw(n, n_classes, seed=0, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, n_classes, generator=generator)
    index = torch.randperm(N, generator=generator)[:n]
    return logits.to(dtype), index


def labels_of(n_classes):
    return torch.randint(
        n_classes, (N,), generator=torch.Generator().manual_seed(n_classes)
    )


def compact(n_classes, n_kept, **kwargs):
    options = {"prior_strength": 20.0, "dtype": torch.float32, "n_kept": n_kept}
    return CompactPosterior(labels_of(n_classes), n_classes, **(options | kwargs))


def dense(n_classes, **kwargs):
    options = {"prior_strength": 20.0}
    return DirichletPosterior(labels_of(n_classes), n_classes, **(options | kwargs))


def discounted(rule, discount):
    return UpdateRule(rule.weight, rule.sharpness, rule.smoothing, discount)


def both(
    n_classes, n_kept, *, n=30, steps=3, rule=RULES["paper"], weight=None, **kwargs
):
    """Return the results of two implementations of the step on equal predictions."""
    found = []
    for step in (_compact_cpu.posterior_step, _compact.posterior_step):
        posterior = compact(n_classes, n_kept, discount=rule.discount, **kwargs)
        rows = CompactRows(*posterior._rows_of_all().values())
        for seed in range(steps):
            logits, index = draw(n, n_classes, seed)
            logits = logits.to(posterior._total.dtype)
            loss, gradient = step(
                logits,
                rows,
                posterior.visits,
                index,
                weight,
                rule,
                posterior._prior(),
            )
        found.append((loss, gradient, posterior))
    return found


def assert_same_beliefs(one, other, rtol=1e-5, atol=1e-6):
    torch.testing.assert_close(
        one.concentration(), other.concentration(), rtol=rtol, atol=atol
    )
    torch.testing.assert_close(one.label_mass(), other.label_mass())
    assert torch.equal(one.visits, other.visits)


class TestAgreesWithTheFormulas:
    """The step in NumPy, and in PyTorch, in single and double precision."""

    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("discount", [1.0, 0.9])
    @pytest.mark.parametrize(("n_classes", "n_kept"), [(9, 4), (700, 12), (5, 5)])
    def test_by_rule(self, n_classes, n_kept, discount, name):
        rule = discounted(RULES[name], discount)
        one, other = both(n_classes, n_kept, rule=rule, dtype=torch.float64)
        torch.testing.assert_close(one[:2], other[:2], rtol=1e-9, atol=1e-12)
        assert_same_beliefs(one[2], other[2], rtol=1e-9, atol=1e-12)
        if rule.weight:  # else any class is as good as another
            kept = [found[2].kept_classes().sort().values for found in (one, other)]
            assert torch.equal(*kept)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_in_blocks_and_with_weights(self, monkeypatch, threads):
        monkeypatch.setattr(_compact_cpu, "_BLOCK", 2000)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        weight = torch.linspace(0.0, 2.0, 30)
        one, other = both(700, 12, weight=weight, rule=RULES["all"])
        torch.testing.assert_close(one[:2], other[:2], rtol=1e-4, atol=1e-6)
        assert_same_beliefs(one[2], other[2], rtol=1e-4, atol=1e-5)

    def test_float16_is_rounded_alike(self):
        one, other = both(60, 8, dtype=torch.float16)
        alike = one[2].kept_classes() == other[2].kept_classes()
        assert alike[:, 0].all()
        torch.testing.assert_close(one[2].mean(), other[2].mean(), rtol=1e-2, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_types_of_logits(self, dtype):
        posterior = compact(60, 8)
        logits, index = draw(30, 60, dtype=dtype)
        loss, gradient = posterior.update(logits, index)
        assert gradient.dtype == dtype
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        expected, _ = compact(60, 8).update(logits.float(), index)
        torch.testing.assert_close(loss.float(), expected, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("offset", [-500.0, 500.0])
    @pytest.mark.parametrize("sharpness", [1.0, 2.0])
    def test_a_common_offset(self, offset, sharpness):
        rule = UpdateRule(sharpness=sharpness)
        stores = [compact(700, 8) for _ in range(2)]
        logits, index = draw(30, 700)
        for posterior, shift in zip(stores, (0.0, offset), strict=True):
            for _ in range(2):
                loss, gradient = posterior.update(logits + shift, index, rule=rule)
        # Digits are lost beside the offset alone.
        assert_same_beliefs(*stores, rtol=1e-2, atol=1e-2)
        assert loss.isfinite()
        assert gradient.isfinite().all()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("backend", [_compact_cpu, _compact])
    def test_rows_that_are_not_finite_are_left(self, value, backend):
        logits, index = draw(9, 700)
        posterior = compact(700, 8)
        rows = CompactRows(*posterior._rows_of_all().values())
        rest = posterior.visits, index, None, UpdateRule(), posterior._prior()
        backend.posterior_step(logits, rows, *rest)
        before = copy.deepcopy(posterior)
        logits[4, 2] = value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss, _ = backend.posterior_step(logits, rows, *rest)
        assert not loss.isfinite()
        for name, part in posterior._rows_of_all().items():
            old = before._rows_of_all()[name]
            assert torch.equal(part[index[4]], old[index[4]])
            assert part.float().isfinite().all()
        moved = (posterior._total != before._total)[index]
        assert moved.tolist() == [i != 4 for i in range(9)]
        assert posterior.visits[index].tolist() == [2 - (i == 4) for i in range(9)]


class TestLargest:
    @pytest.mark.parametrize("n_columns", [40, 511, 512, 700, 997, 1000, 5003])
    @pytest.mark.parametrize("n", [1, 7, 31])
    def test_are_found_wherever_they_are(self, n_columns, n):
        rng = np.random.default_rng(n_columns)
        values = rng.random((50, n_columns), np.float32)
        # In a row, some of them at the end, and more than one in a part.
        values[:10, -n:] += 1
        values[10:20, :n] += 1
        values[20:30, :: max(1, n_columns // n)] += 1
        maxima = _compact_cpu._maxima(values, n)
        found = _compact_cpu._largest(values, maxima, n)
        expected = np.argsort(-values, axis=1)[:, :n]
        assert np.array_equal(np.sort(found), np.sort(expected))

    def test_few_parts_are_looked_at(self):
        n_parts, length = _compact_cpu._parts(31, 21841)
        assert 31 * length + n_parts < 21841 / 8


class TestBesideDense:
    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("n_kept", [10, 32])
    def test_all_classes_kept_is_dense(self, name, n_kept):
        rule = discounted(RULES[name], 0.9)
        one = compact(10, n_kept, discount=0.9)
        other = dense(10, discount=0.9)
        weight = torch.linspace(0.5, 2.0, 30)
        for seed in range(5):
            logits, index = draw(30, 10, seed)
            found = one.update(logits, index, weight, rule)
            expected = other.update(logits, index, weight, rule)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert_same_beliefs(one, other)
        torch.testing.assert_close(one.evidence(), other.evidence(), rtol=0, atol=1e-4)
        torch.testing.assert_close(
            one.target(index, rule), other.target(index, rule), rtol=1e-5, atol=1e-6
        )
        assert not one.tail_mass().any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("discount", [1.0, 0.99])
    def test_loss_after_100_visits(self, dtype, discount):
        """For predictions that vary about a mean of each row, as a network's do."""
        n_classes = 400
        one = compact(n_classes, 32, dtype=dtype, discount=discount)
        other = dense(n_classes, discount=discount)
        mean = 3 * draw(N, n_classes, 99)[0]
        index = torch.arange(N)
        for seed in range(100):
            logits = mean + draw(N, n_classes, seed, scale=1.0)[0]
            loss, _ = one.update(logits, index)
            expected, _ = other.update(logits, index)
        assert abs(loss - expected) < 1e-3
        assert 0 < one.tail_mass().mean() < 0.2

    def test_totals_are_exact(self):
        """However values are rounded: c + (K - 1) eps + T, discounted."""
        for discount in (1.0, 0.9):
            posterior = compact(
                300, 16, dtype=torch.float16, discount=discount, prior_floor=0.01
            )
            total = 20 + 299 * 0.01
            for seed in range(50):
                logits, _ = draw(N, 300, seed)
                posterior.update(logits, torch.arange(N))
                total = discount * total + 1
            sums = posterior.concentration().double().sum(dim=1)
            torch.testing.assert_close(
                sums, torch.full_like(sums, total), rtol=2e-6, atol=0
            )
            expected = discount**50 * 20 / total
            torch.testing.assert_close(
                posterior.label_mass().double(),
                torch.full_like(sums, expected),
                rtol=1e-3,  # of float16
                atol=0,
            )

    def test_the_label_is_always_kept(self):
        posterior = compact(300, 2)
        for seed in range(5):
            logits, index = draw(N, 300, seed)
            posterior.update(logits, index)
            classes = posterior.kept_classes()
            assert torch.equal(classes[:, 0], posterior.labels)
            assert (classes[:, 0] != classes[:, 1]).all()

    @pytest.mark.parametrize("n_kept", [3, 7, 8])
    def test_no_class_is_kept_twice(self, n_kept):
        """With fewer classes than are kept, and with predictions of weight zero."""
        posterior = compact(9, n_kept)
        for seed in range(12):
            rule = UpdateRule(weight=float(seed % 3))
            posterior.update(*draw(N, 9, seed), rule=rule)
            classes = posterior.kept_classes().sort(dim=1).values
            assert (classes.diff(dim=1) > 0).all()

    def test_classes_beyond_15_bits(self):
        n_classes = 2**15 + 100
        posterior = CompactPosterior(torch.tensor([n_classes - 1]), n_classes)
        logits = torch.zeros(1, n_classes)
        logits[0, n_classes - 50 : n_classes - 20] = 20.0
        for backend in (posterior, copy.deepcopy(posterior)):
            backend.update(logits, torch.tensor([0]))
            kept = set(backend.kept_classes()[0].tolist())
            expected = {*range(n_classes - 50, n_classes - 20), n_classes - 1}
            assert expected <= kept
            assert len(kept) == 32

    def test_more_classes_than_16_bits_tell(self):
        posterior = CompactPosterior(torch.tensor([69_999]), 70_000)
        assert posterior.kept_classes()[0, :2].tolist() == [69_999, 0]
        assert posterior.state_dict()["classes"].dtype == torch.int32

    @pytest.mark.parametrize("backend", ["NumPy", "PyTorch"])
    def test_rounding_has_no_bias(self, backend):
        generator = torch.Generator().manual_seed(0)
        held = (3 * torch.randn(N, 8, generator=generator)).exp()
        total = held.sum(dim=1)
        posterior = compact(300, 8, dtype=torch.float16)
        rows, index = posterior._compact_rows(), torch.arange(N)
        new = _compact.Evidence(
            posterior.kept_classes(), held, total, torch.zeros_like(total)
        )
        found, n = torch.zeros(N, 8, dtype=torch.float64), 4000
        for visits in range(n):
            if backend == "NumPy":
                posterior.visits.fill_(visits)
                store = _compact_cpu._Store(rows, posterior.visits)
                belief = _compact_cpu._Belief(*(part.numpy() for part in new))
                store.write(index.numpy(), belief, slice(None))
            else:
                chosen = torch.ones(N, dtype=torch.bool)
                _compact.write(rows, index, new, torch.full((N,), visits), chosen)
            share = rows.values.double() / _compact.SCALE
            assert (share * total.unsqueeze(1) / held - 1).abs().max() < 1e-3
            found += share
        error = found / n * total.unsqueeze(1) / held - 1
        # A last digit is 1e-3 of a value, so the mean of 4,000 is good to 1e-5.
        assert error.abs().max() < 4e-5

    def test_what_is_rounded_is_right_on_average(self):
        """In 16 bits too, small evidence adds up if there is much already."""
        one, other = compact(100, 40, dtype=torch.float16), dense(100)
        mean = 2 * draw(N, 100, 99)[0]
        for _ in range(1000):
            for posterior in (one, other):
                posterior.update(mean, torch.arange(N), assume_unique=True)
        error = (one.mean() - other.mean())[:, :].gather(1, one.kept_classes())
        assert error.abs().max() < 5e-3
        assert error.abs().mean() < 1e-4
        assert error.sum(dim=1).abs().max() < 2e-3


class TestPriors:
    def test_infinite_prior_is_cross_entropy(self):
        posterior = compact(
            50, 8, prior_strength=math.inf, dtype=torch.float16, discount=0.5
        )
        for seed in range(3):
            logits, index = draw(30, 50, seed)
            logits.requires_grad_()
            loss = posterior.step(logits, index)
            loss.backward()
            leaf = logits.detach().clone().requires_grad_()
            expected = cross_entropy(leaf, posterior.labels[index])
            expected.backward()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
            torch.testing.assert_close(logits.grad, leaf.grad, rtol=1e-4, atol=1e-7)
        expected = one_hot(posterior.labels, 50).float()
        torch.testing.assert_close(posterior.mean(), expected)
        assert (posterior.concentration().isinf().sum(1) == 1).all()
        assert posterior.label_mass().tolist() == [1.0] * N
        assert not posterior.tail_mass().any()
        assert not posterior.evidence().any()

    def test_a_strong_prior_loses_no_evidence(self):
        posterior = compact(50, 8, prior_strength=1e7, dtype=torch.float16)
        logits, index = draw(N, 50)
        posterior.update(logits, index)
        expected = logits.softmax(1).max(1).values
        found = posterior.evidence(index).max(1).values
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
        assert not posterior._has_lost_evidence

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"n_kept": 1}, "n_kept must be an integer of at least 2.*got 1"),
            ({"n_kept": 2.5}, "n_kept must be an integer of at least 2.*got 2.5"),
            ({"dtype": torch.bfloat16}, "dtype must be one of.*got torch.bfloat16"),
            ({"prior_strength": 0.0}, "prior_strength must lie in .*got 0.0"),
            ({"prior_floor": 30.0}, "must be smaller than"),
            ({"discount": 0.0}, "discount must lie in .*got 0.0"),
        ],
    )
    def test_errors(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            compact(50, **({"n_kept": 8} | kwargs))


class TestState:
    @pytest.fixture(params=[torch.float16, torch.float32])
    def posterior(self, request):
        posterior = compact(300, 8, dtype=request.param, discount=0.9)
        for seed in range(3):
            posterior.update(*draw(30, 300, seed))
        posterior.agreement.add(0.5)
        return posterior

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
    )
    def test_copies_go_on_alike(self, posterior, copied):
        other = copied(posterior)
        assert repr(other) == repr(posterior)
        assert other.agreement == posterior.agreement
        logits, index = draw(30, 300, 7)
        before = other.mean()
        posterior.update(logits, index)
        assert torch.equal(other.mean(), before)
        other.update(logits, index)
        for one, two in zip(
            posterior.state_dict().values(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(one, two)

    def test_state_dict(self, posterior):
        other = compact(300, 8, dtype=posterior.dtype)
        other.load_state_dict(posterior.state_dict())
        assert torch.equal(other.mean(), posterior.mean())
        assert repr(other) == repr(posterior)
        more = CompactPosterior(posterior.labels, 301, n_kept=8)
        with pytest.raises(ValueError, match=r"\['n_classes'\] must be 301, got 300"):
            more.load_state_dict(posterior.state_dict())
        with pytest.raises(ValueError, match="must have the entries"):
            dense(300).load_state_dict(posterior.state_dict())
        with pytest.raises(ValueError, match=r"must have shape \(40, 9\)"):
            compact(300, 9).load_state_dict(posterior.state_dict())

    def test_rows(self, posterior):
        index = torch.tensor([4, 0])
        for method in (
            "concentration",
            "mean",
            "evidence",
            "tail_mass",
            "kept_classes",
            "target",
        ):
            found = getattr(posterior, method)
            assert torch.equal(found()[index], found(index))

    def test_bytes_of_a_row(self):
        labels = torch.zeros(1000, dtype=torch.int64)
        for n_classes in (1000, 21841):
            posterior = CompactPosterior(labels, n_classes)
            # 32 values and classes, two sums, the label and the number of visits.
            assert posterior.nbytes == 1000 * (32 * (2 + 2) + 2 * 4 + 8 + 4)

    def test_moves(self, posterior):
        assert posterior.to("meta").device.type == "meta"
