import copy
import io
import math
import pickle

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from skbsd._formulas import rounded
from skbsd.posterior import (
    DirichletPosterior,
    UpdateRule,
    posterior_mean,
    prior_concentration,
    sharpen,
    smooth,
    soft_cross_entropy,
    soft_cross_entropy_gradient,
    update_concentration,
)

N, K = 7, 4


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def labels(generator):
    return torch.randint(K, (N,), generator=generator)


def draw(generator, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=dtype)


def make(labels, **kwargs):
    parameters = {
        "prior_strength": 5.0,
        "discount": 0.9,
        "prior_floor": 0.1,
        "dtype": torch.float64,
    }
    return DirichletPosterior(labels, K, **(parameters | kwargs))


class TestFormulas:
    def test_prior(self):
        alpha = prior_concentration(
            torch.tensor([1, 0]), 3, prior_strength=5.0, prior_floor=0.25
        )
        assert alpha.tolist() == [[0.25, 5.0, 0.25], [5.0, 0.25, 0.25]]

    def test_update(self):
        alpha = torch.tensor([[2.0, 4.0]])
        proba = torch.tensor([[0.25, 0.75]])
        assert update_concentration(alpha, proba, 0.5).tolist() == [[1.25, 2.75]]

    @pytest.mark.parametrize("sharpness", [0.3, 1.0, 2.0, 10.0])
    def test_sharpening_multiplies_the_logits(self, generator, sharpness):
        logits = draw(generator, N, K)
        torch.testing.assert_close(
            sharpen(logits.softmax(1), sharpness), (sharpness * logits).softmax(1)
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_sharpening_of_what_is_far_from_one(self, dtype):
        proba = torch.tensor([[0.1] * 10, [0.0] + [0.2, 0.1] + [0.1] * 7], dtype=dtype)
        sharp = sharpen(proba, 100.0)
        torch.testing.assert_close(sharp[0], proba[0], atol=1e-3, rtol=0)
        assert sharp[1].tolist() == pytest.approx([0, 1] + 8 * [0], abs=1e-6)

    def test_mean(self):
        assert posterior_mean(torch.tensor([[1.0, 3.0]])).tolist() == [[0.25, 0.75]]

    @pytest.mark.parametrize("weighted", [False, True])
    def test_loss_is_torchs(self, generator, weighted):
        logits = draw(generator, N, K)
        target = draw(generator, N, K).softmax(1)
        weight = draw(generator, N).exp() if weighted else None
        losses = cross_entropy(logits, target, reduction="none")
        expected = (losses if weight is None else weight * losses).mean()
        torch.testing.assert_close(soft_cross_entropy(logits, target, weight), expected)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_gradient_is_autograds(self, generator, weighted):
        logits = draw(generator, N, K).requires_grad_()
        target = draw(generator, N, K).softmax(1)
        weight = draw(generator, N).exp() if weighted else None
        soft_cross_entropy(logits, target, weight).backward()
        gradient = soft_cross_entropy_gradient(logits.softmax(1), target, weight)
        torch.testing.assert_close(gradient, logits.grad, rtol=1e-12, atol=1e-15)


class TestRounding:
    """Convert beliefs to the type of a store."""

    def test_wide_types_are_converted_to(self, generator):
        alpha = draw(generator, N, K).exp()
        for dtype in (torch.float32, torch.float64):
            found = rounded(alpha, dtype, torch.arange(N), torch.zeros(N))
            assert torch.equal(found, alpha.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_goes_to_a_neighbour_and_is_right_on_average(self, generator, dtype):
        alpha = (3 * draw(generator, N, K)).exp().float()
        index, n = torch.arange(N), 2**16
        total = torch.zeros(N, K, dtype=torch.float64)
        for visits in range(0, n, 16):
            found = rounded(alpha, dtype, index, torch.full((N,), visits))
            assert ((found / alpha - 1).abs() < torch.finfo(dtype).eps).all()
            total += found
        error = total / (n / 16) / alpha - 1
        assert error.abs().max() < 0.002 * torch.finfo(dtype).eps

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_leaves_what_is_exact(self, generator, dtype):
        exact = draw(generator, N, K).exp().to(dtype)
        exact[0, 0] = 0.0
        for visits in range(50):
            found = rounded(
                exact.float(), dtype, torch.arange(N), torch.full((N,), visits)
            )
            assert torch.equal(found, exact)


class TestStep:
    @pytest.mark.parametrize("discount", [0.9, 1.0])
    def test_closed_form(self, generator, labels, discount):
        """alpha_T = gamma^T alpha_0 + sum_t gamma^(T-t) p_t."""
        posterior = make(labels, discount=discount)
        prior = posterior.concentration()
        index = torch.arange(N)
        steps = [draw(generator, N, K) for _ in range(6)]
        for logits in steps:
            posterior.step(logits, index)
        T = len(steps)
        expected = discount**T * prior + sum(
            discount ** (T - t) * logits.softmax(1)
            for t, logits in enumerate(steps, start=1)
        )
        torch.testing.assert_close(posterior.concentration(), expected)
        torch.testing.assert_close(
            posterior.mean(), expected / expected.sum(1, keepdim=True)
        )

    def test_closed_form_with_weighted_and_sharpened_evidence(self, generator, labels):
        """alpha_T = gamma^T alpha_0 + sum_t gamma^(T-t) w_t softmax(s_t z_t)."""
        posterior = make(labels, discount=0.9)
        expected = posterior.concentration()
        total = torch.zeros_like(expected)
        index = torch.arange(N)
        for weight, sharpness in ((0.0, 1.0), (0.5, 1.0), (0.7, 2.0), (1.0, 0.5)):
            logits = draw(generator, N, K).requires_grad_()
            rule = UpdateRule(weight=weight, sharpness=sharpness, discount=0.9)
            loss = posterior.step(logits, index, rule=rule)
            evidence = weight * (sharpness * logits.detach()).softmax(1)
            expected = 0.9 * expected + evidence
            total = 0.9 * total + evidence
            torch.testing.assert_close(posterior.concentration(), expected)
            torch.testing.assert_close(posterior.evidence(), total)
            # The loss is that of the prediction itself.
            target = expected / expected.sum(1, keepdim=True)
            torch.testing.assert_close(loss, cross_entropy(logits, target))
            loss.backward()
            gradient = (logits.detach().softmax(1) - target) / N
            torch.testing.assert_close(logits.grad, gradient)

    def test_smoothing_is_of_the_targets_alone(self, generator, labels):
        """q' = (1 - s) q + s / K."""
        one, other = make(labels), make(labels)
        logits, index = draw(generator, N, K).requires_grad_(), torch.arange(N)
        one.step(logits, index)
        loss = other.step(logits, index, rule=UpdateRule(smoothing=0.2, discount=0.9))
        assert torch.equal(one.concentration(), other.concentration())
        target = 0.8 * one.mean() + 0.2 / K
        torch.testing.assert_close(smooth(one.mean(), 0.2), target)
        torch.testing.assert_close(loss, cross_entropy(logits, target))
        loss.backward()
        gradient = (logits.detach().softmax(1) - target) / N
        torch.testing.assert_close(logits.grad, gradient)

    @pytest.mark.parametrize("discount", [0.8, 1.0])
    def test_total_and_label_mass(self, generator, labels, discount):
        c, eps, T = 5.0, 0.1, 9
        posterior = make(labels, discount=discount)
        for _ in range(T):
            posterior.step(draw(generator, N, K), torch.arange(N))
        total = c + (K - 1) * eps
        for _ in range(T):
            total = discount * total + 1
        sums = posterior.concentration().sum(1)
        torch.testing.assert_close(sums, torch.full_like(sums, total))
        if discount == 1:
            assert total == pytest.approx(c + (K - 1) * eps + T)
        expected = torch.full_like(sums, discount**T * c / total)
        torch.testing.assert_close(posterior.label_mass(), expected)

    def test_total_tends_to_its_limit(self, generator, labels):
        posterior = make(labels, discount=0.5)
        for _ in range(60):
            posterior.step(draw(generator, N, K), torch.arange(N))
        sums = posterior.concentration().sum(1)
        torch.testing.assert_close(sums, torch.full_like(sums, 1 / (1 - 0.5)))

    def test_target_is_a_moving_average(self, generator, labels):
        posterior = make(labels)
        before = posterior.mean()
        logits = draw(generator, N, K)
        posterior.step(logits, torch.arange(N))
        share = 1 / posterior.concentration().sum(1, keepdim=True)
        expected = (1 - share) * before + share * logits.softmax(1)
        torch.testing.assert_close(posterior.mean(), expected)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_loss_and_gradient(self, generator, labels, weighted):
        """The loss is to the updated target, which is held constant."""
        posterior = make(labels)
        index = torch.tensor([5, 0, 3])
        weight = torch.tensor([0.5, 2.0, 1.0]).double() if weighted else None
        logits = draw(generator, 3, K).requires_grad_()
        loss = posterior.step(logits, index, weight)
        (3 * loss).backward()  # the chain rule goes on above
        reference = logits.detach().clone().requires_grad_()
        expected = soft_cross_entropy(reference, posterior.mean(index), weight)
        (3 * expected).backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(logits.grad, reference.grad, rtol=1e-12, atol=1e-15)

    def test_target_before_or_after_the_update_only_rescales(self, generator, labels):
        posterior = make(labels)
        before = posterior.mean()
        logits = draw(generator, N, K).requires_grad_()
        posterior.step(logits, torch.arange(N)).backward()
        total = posterior.concentration().sum(1, keepdim=True)
        factor = (total - 1) / total  # gamma S_{t-1} / (gamma S_{t-1} + 1)
        early = soft_cross_entropy_gradient(logits.detach().softmax(1), before)
        torch.testing.assert_close(logits.grad, factor * early)

    def test_only_the_batch_moves(self, generator, labels):
        posterior = make(labels)
        before = posterior.concentration()
        posterior.step(draw(generator, 2, K), torch.tensor([1, 4]))
        moved = (posterior.concentration() != before).any(1)
        assert moved.nonzero().flatten().tolist() == [1, 4]
        assert posterior.visits.tolist() == [0, 1, 0, 0, 1, 0, 0]

    def test_rows_do_not_depend_on_their_order(self, generator, labels):
        order = torch.randperm(N, generator=generator)
        one, other = make(labels), make(labels[order])
        for _ in range(3):
            logits = draw(generator, N, K)
            batch = torch.randperm(N, generator=generator)
            one.step(logits[batch], batch)
            other.step(logits[order], torch.arange(N))
        torch.testing.assert_close(one.mean()[order], other.mean())
        torch.testing.assert_close(one.label_mass()[order], other.label_mass())

    def test_infinite_prior_is_cross_entropy(self, generator, labels):
        posterior = make(labels, prior_strength=math.inf, dtype=torch.float32)
        for _ in range(3):
            logits = draw(generator, N, K, dtype=torch.float32).requires_grad_()
            loss = posterior.step(logits, torch.arange(N))
            loss.backward()
            reference = logits.detach().clone().requires_grad_()
            expected = cross_entropy(reference, labels)
            expected.backward()
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(logits.grad, reference.grad)
        torch.testing.assert_close(posterior.mean(), one_hot(labels, K).float())
        assert posterior.label_mass().tolist() == [1.0] * N
        assert (posterior.concentration().isinf().sum(1) == 1).all()

    def test_large_prior_tends_to_cross_entropy(self, generator, labels):
        logits = draw(generator, N, K)
        gaps = [
            make(labels, prior_strength=c, prior_floor=1e-9, discount=1.0)
            .step(logits, torch.arange(N))
            .sub(cross_entropy(logits, labels))
            .abs()
            .item()
            for c in (1e2, 1e4, 1e6)
        ]
        assert gaps[0] > 50 * gaps[1] > 50 * 50 * gaps[2]
        assert gaps[2] < 1e-5

    def test_undiscounted_prior_decays_as_one_over_visits(self, generator, labels):
        posterior = make(labels, discount=1.0, prior_strength=30.0, prior_floor=1e-12)
        for _ in range(20):
            posterior.step(draw(generator, N, K), torch.arange(N))
        expected = torch.full((N,), 30 / (30 + 20), dtype=torch.float64)
        torch.testing.assert_close(posterior.label_mass(), expected)

    def test_prediction_that_is_not_finite_leaves_the_row(self, labels):
        posterior = make(labels)
        before = posterior.concentration()
        logits = torch.zeros(2, K, dtype=torch.float64)
        logits[0, 1] = math.nan
        loss = posterior.step(logits, torch.tensor([2, 3]))
        assert loss.isnan()
        assert posterior.concentration().isfinite().all()
        assert torch.equal(posterior.concentration()[2], before[2])
        assert posterior.visits[[2, 3]].tolist() == [0, 1]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_low_precision_logits(self, generator, labels, dtype):
        logits = draw(generator, N, K, dtype=torch.float32).to(dtype).requires_grad_()
        one = make(labels, dtype=torch.float32)
        loss = one.step(logits, torch.arange(N))
        loss.backward()
        other = make(labels, dtype=torch.float32)
        expected = other.step(logits.detach().float(), torch.arange(N))
        assert logits.grad.dtype == dtype
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(one.mean(), other.mean())

    def test_float16_store_follows_the_float32_one(self, generator, labels):
        """Half the memory for a target L1 error of some thousandths."""
        stores = [
            make(labels, dtype=d, discount=1.0) for d in (torch.float16, torch.float32)
        ]
        for _ in range(100):
            logits = 3 * draw(generator, N, K, dtype=torch.float32)
            for store in stores:
                store.step(logits, torch.arange(N))
        error = (stores[0].mean().float() - stores[1].mean()).abs().sum(1)
        assert error.max() < 0.01

    @pytest.mark.parametrize("n_classes", [10, 100])
    @pytest.mark.parametrize("discount", [1.0, 0.999])
    @pytest.mark.parametrize("noise", [0.0, 1.0])
    def test_float16_store_does_not_drift(self, generator, n_classes, discount, noise):
        """Small evidence is not lost to rounding in 2,000 updates."""
        labels = torch.randint(n_classes, (N,), generator=generator)
        stores = [
            DirichletPosterior(labels, n_classes, discount=discount, dtype=dtype)
            for dtype in (torch.float16, torch.float64)
        ]
        mean = 3 * draw(generator, N, n_classes)
        for _ in range(2000):
            logits = mean + noise * draw(generator, N, n_classes)
            for store in stores:
                store.update(logits, torch.arange(N), assume_unique=True)
        error = (stores[0].mean() - stores[1].mean()).abs().sum(1)
        assert error.mean() < 0.005
        total, exact = (store._alpha.double().sum() for store in stores)
        torch.testing.assert_close(total, exact, rtol=0.003, atol=0)


class TestTarget:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_is_the_smoothed_mean(self, labels, generator, dtype):
        posterior = make(labels, dtype=dtype)
        index = torch.tensor([6, 2, 5])
        rule = UpdateRule(weight=2.0, sharpness=3.0, smoothing=0.2, discount=0.9)
        logits = draw(generator, 3, K)
        posterior.step(logits, index, rule=rule)
        evidence = 2 * (3 * logits).softmax(1)
        alpha = 0.9 * make(labels).concentration(index) + evidence
        mean = alpha / alpha.sum(1, keepdim=True)
        tolerance = {"atol": 1e-3, "rtol": 0} if dtype == torch.float16 else {}
        for target, expected in (
            (posterior.target(index, rule), 0.8 * mean + 0.2 / K),
            (posterior.target(index), mean),
        ):
            torch.testing.assert_close(target.double(), expected, **tolerance)
            assert target.dtype == torch.promote_types(dtype, torch.float32)
        everything = posterior.target(rule=rule)
        assert everything.shape == (N, K)
        assert torch.equal(everything[index], posterior.target(index, rule))

    def test_is_what_the_loss_was_taken_to(self, labels, generator):
        posterior = make(labels)
        index, logits = torch.arange(4), draw(generator, 4, K)
        rule = UpdateRule(smoothing=0.3, discount=0.9)
        loss = posterior.step(logits, index, rule=rule)
        expected = cross_entropy(logits, posterior.target(index, rule))
        torch.testing.assert_close(loss, expected)


class TestLoadedRule:
    def test_must_have_the_discount(self, labels):
        with pytest.raises(ValueError, match=r"discount must be .* 0\.9, got 1\.0"):
            make(labels).load_rule(UpdateRule())
        make(labels).load_rule()
        make(labels).load_rule(UpdateRule(discount=0.9))
        make(labels, prior_strength=math.inf).load_rule(UpdateRule(discount=0.5))

    def test_changes_no_belief(self, labels):
        posterior = make(labels)
        posterior.load_rule(UpdateRule(weight=5.0, discount=0.9))
        assert torch.equal(posterior.concentration(), make(labels).concentration())


class TestErrors:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"prior_strength": 0.0}, "prior_strength must lie in .*got 0.0"),
            ({"prior_strength": -1.0}, "prior_strength"),
            ({"prior_strength": math.nan}, "prior_strength.*nan"),
            ({"discount": 0.0}, "discount must lie in .*got 0.0"),
            ({"discount": 1.5}, "discount"),
            ({"discount": math.nan}, "discount"),
            ({"prior_floor": 0.0}, "prior_floor must lie in .*got 0.0"),
            ({"prior_floor": math.inf}, "prior_floor"),
            ({"prior_floor": math.nan}, "prior_floor"),
            ({"prior_strength": 1.0, "prior_floor": 2.0}, "must be smaller than"),
            ({"prior_strength": 1e39, "dtype": torch.float32}, "does not fit"),
            (
                {"prior_strength": math.inf, "dtype": torch.float16},
                "does not fit in a store of torch.float16.*float32",
            ),
        ],
    )
    def test_parameters(self, labels, kwargs, message):
        with pytest.raises(ValueError, match=message):
            make(labels, **kwargs)

    def test_labels(self):
        with pytest.raises(ValueError, match=r"\[0, 4\), got values from 0 to 4"):
            make(torch.tensor([0, 4]))
        with pytest.raises(ValueError, match="one-dimensional"):
            make(torch.zeros(2, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"integers, got torch.float32"):
            make(torch.tensor([0.0, 1.5]))
        with pytest.raises(ValueError, match="n_classes must be at least 2, got 1"):
            DirichletPosterior(torch.tensor([0]), 1)

    def test_repeated_row(self, labels):
        posterior = make(labels)
        before = posterior.concentration()
        with pytest.raises(ValueError, match="row 3 occurs more than once"):
            posterior.step(torch.zeros(3, K), torch.tensor([3, 1, 3]))
        assert torch.equal(posterior.concentration(), before)

    @pytest.mark.parametrize("method", ["step", "update"])
    def test_discount_of_a_rule(self, labels, method):
        posterior = make(labels, discount=0.9)
        before = posterior.concentration()
        message = r"discount must be that of the posterior, 0.9, got 1.0"
        with pytest.raises(ValueError, match=message):
            getattr(posterior, method)(
                torch.zeros(1, K), torch.tensor([3]), rule=UpdateRule()
            )
        assert torch.equal(posterior.concentration(), before)

    @pytest.mark.parametrize("discount", [0.5, 1.0])
    @pytest.mark.parametrize("of_the_rule", [None, 0.5, 1.0])
    def test_discount_of_an_infinite_prior_has_no_effect(
        self, labels, discount, of_the_rule
    ):
        posterior = make(labels, prior_strength=math.inf, discount=discount)
        rule = None if of_the_rule is None else UpdateRule(discount=of_the_rule)
        before = posterior._alpha.clone()
        for _ in range(3):
            posterior.step(torch.zeros(N, K), torch.arange(N), rule=rule)
        moved = (posterior._alpha - before).scatter(1, labels[:, None], 0.75)
        torch.testing.assert_close(moved, torch.full_like(moved, 0.75))

    @pytest.mark.parametrize("shape", [(3, K + 1), (2, K), (K,)])
    def test_shape_of_logits(self, labels, shape):
        with pytest.raises(ValueError, match=r"logits must have shape \(3, 4\)"):
            make(labels).step(torch.zeros(shape), torch.tensor([0, 1, 2]))


class TestState:
    @pytest.fixture
    def posterior(self, generator, labels):
        posterior = make(labels)
        posterior.step(draw(generator, 3, K), torch.tensor([0, 2, 4]))
        return posterior

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
    )
    def test_copies(self, posterior, copied):
        other = copied(posterior)
        assert torch.equal(other.concentration(), posterior.concentration())
        assert torch.equal(other.label_mass(), posterior.label_mass())
        assert repr(other) == repr(posterior)

    def test_state_dict_through_torch_save(self, posterior, labels):
        file = io.BytesIO()
        torch.save(posterior.state_dict(), file)
        file.seek(0)
        other = make(labels, prior_strength=9.0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other.concentration(), posterior.concentration())
        assert torch.equal(other.label_mass(), posterior.label_mass())
        assert repr(other) == repr(posterior)

    def test_labels_are_copied(self, posterior, labels):
        before = labels.clone()
        posterior = make(labels)
        labels += 1
        assert torch.equal(posterior.labels, before)

    def test_state_of_other_labels(self, posterior, labels):
        other = make(labels.flip(0))
        before = other.concentration()
        with pytest.raises(ValueError, match=r"labels differ, first that of row \d"):
            other.load_state_dict(posterior.state_dict())
        assert torch.equal(other.concentration(), before)
        assert torch.equal(other.labels, labels.flip(0))

    def test_infinite_prior_from_a_wider_type(self, labels):
        wide = make(labels, prior_strength=math.inf, dtype=torch.float64)
        narrow = make(labels, dtype=torch.float32)
        narrow.load_state_dict(wide.state_dict())
        torch.testing.assert_close(narrow.mean(), one_hot(labels, K).float())

    def test_state_of_other_data(self, posterior):
        other = make(torch.zeros(N + 1, dtype=torch.int64))
        before = other.concentration()
        with pytest.raises(ValueError, match=r"must have shape .*other data"):
            other.load_state_dict(posterior.state_dict())
        with pytest.raises(ValueError, match="must have the entries"):
            other.load_state_dict({})
        assert torch.equal(other.concentration(), before)

    def test_what_is_returned_is_a_copy(self, posterior):
        before = posterior.concentration()
        posterior.concentration().zero_()
        posterior.mean().zero_()
        assert torch.equal(posterior.concentration(), before)

    def test_rows(self, posterior):
        index = torch.tensor([4, 0])
        assert torch.equal(
            posterior.concentration(index), posterior.concentration()[index]
        )
        assert torch.equal(posterior.mean(index), posterior.mean()[index])
        assert len(posterior) == N
        assert posterior.n_classes == K

    def test_to_meta_device_moves_every_tensor(self, posterior):
        assert posterior.to("meta") is posterior
        assert {t.device.type for t in posterior.state_dict().values()} == {
            "meta",
            "cpu",
        }
        assert posterior.device.type == "meta"
