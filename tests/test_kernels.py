"""The kernel, compared with the posterior's formulas in double precision.

Compiled where there is a CUDA device, and everywhere through Triton's interpreter, on
the CPU. Triton decides to interpret when it is imported, so for that the tests run
again in a process of their own. To run that one alone:

    TRITON_INTERPRET=1 pytest tests/test_kernels.py
"""

import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from skbsd import _kernels
from skbsd._formulas import rounded
from skbsd._kernels import launch, numbers_of, operator, posterior_step, usable
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

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RUNS = INTERPRETED or torch.cuda.is_available()
MARKS = [] if INTERPRETED else [pytest.mark.gpu]
N = 40


@pytest.fixture(autouse=True)
def silent_numpy():
    # The interpreter's arithmetic is NumPy's, which warns of infinities.
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def chunked(monkeypatch):
    """Let rows of some hundred classes count as too long for registers."""
    monkeypatch.setattr(_kernels, "LONGEST_ROW", 256)
    monkeypatch.setattr(_kernels, "CHUNK", 256)
    # Two rows to a program: the interpreter of Triton 3.2 takes a mask of one element
    # that is false for none at all.
    monkeypatch.setattr(_kernels, "TILE", 512)


@pytest.fixture(params=["whole", "chunked"])
def n_classes(request):
    if request.param == "chunked":
        request.getfixturevalue("chunked")
    return {"whole": 10, "chunked": 300}[request.param]


class Case:
    """A batch, a store, and the results of the step."""

    def __init__(self, n, n_classes, *, dtype=torch.float32, store=torch.float32):
        self.generator = torch.Generator().manual_seed(n_classes + n)
        self.logits = (3 * self.draw(n, n_classes)).to(DEVICE, dtype)
        self.alpha = (5 * self.draw(N, n_classes).exp()).to(DEVICE, store)
        self.visits = torch.arange(N, dtype=torch.int32, device=DEVICE)
        self.index = torch.randperm(N, generator=self.generator)[:n].to(DEVICE)
        self.weight = None
        self.rule = UpdateRule()

    def draw(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def weigh(self):
        self.weight = self.draw(len(self.index)).exp().to(DEVICE)
        return self.by(discount=0.9)

    def by(self, **fields):
        """Set fields of the rule."""
        self.rule = replace(self.rule, **fields)
        return self

    def step(self):
        return launch(
            self.logits,
            self.alpha,
            self.visits,
            self.index,
            self.weight,
            *self.numbers(),
        )

    def numbers(self):
        rule = self.rule
        return numbers_of(rule, torch.device(DEVICE)), rule.sharpness != 1

    def check(self):
        """Step, and compare everything the step returns and changes."""
        n, dtype = len(self.index), self.logits.dtype
        log_proba = self.logits.double().log_softmax(dim=1)
        proba = log_proba.exp()
        alpha = self.alpha.clone()
        before = alpha[self.index].double()
        rule = self.rule
        evidence = rule.weight * sharpen(proba, rule.sharpness)
        after = update_concentration(before, evidence, rule.discount)
        target = smooth(posterior_mean(after), rule.smoothing)
        weight = self.weight if self.weight is None else self.weight.double()
        shares = [
            soft_cross_entropy(
                self.logits[[i]].double(),
                target[[i]],
                weight if weight is None else weight[[i]],
            )
            for i in range(n)
        ]
        gradient = soft_cross_entropy_gradient(proba, target, weight)
        finite = torch.stack(shares).isfinite()
        visits = self.visits.clone()
        after = torch.where(finite[:, None], after, before)
        alpha[self.index] = rounded(after, alpha.dtype, self.index, visits[self.index])
        visits[self.index] += finite.int()

        losses, slope = self.step()
        assert losses.dtype == torch.float32
        torch.testing.assert_close(
            losses,
            torch.stack(shares).float() / n,
            rtol=1e-5,
            atol=1e-8,
            equal_nan=True,
        )
        assert slope.is_contiguous()
        torch.testing.assert_close(
            slope,
            gradient.to(dtype),
            rtol=max(1e-5, 2 * torch.finfo(dtype).eps),
            atol=1e-7,
            equal_nan=True,
        )
        # A last digit of float32 may decide how float16 is rounded, but seldom.
        torch.testing.assert_close(
            self.alpha, alpha, rtol=2 * torch.finfo(alpha.dtype).eps, atol=1e-7
        )
        if alpha.dtype == torch.float16 and n:
            assert (self.alpha == alpha).float().mean() > 0.99
        rest = torch.ones(N, dtype=torch.bool, device=DEVICE)
        rest[self.index[finite]] = False
        assert torch.equal(self.alpha[rest], alpha[rest])
        assert torch.equal(self.visits, visits)
        return losses, slope


class TestStep:
    __test__ = RUNS
    pytestmark = MARKS

    @pytest.mark.parametrize("n", [1, 5, 33])
    @pytest.mark.parametrize("n_classes", [2, 10, 100, 1000])
    def test_rows_in_registers(self, n, n_classes):
        Case(n, n_classes).check()
        Case(n, n_classes).weigh().check()

    @pytest.mark.parametrize("n", [1, 5, 33])
    @pytest.mark.parametrize("n_classes", [257, 512])
    def test_rows_in_chunks(self, chunked, n, n_classes):
        Case(n, n_classes).check()
        Case(n, n_classes).weigh().check()

    @pytest.mark.parametrize("store", [torch.float32, torch.float16])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_types(self, n_classes, dtype, store):
        Case(5, n_classes, dtype=dtype, store=store).weigh().check()

    @pytest.mark.parametrize("weight", [0.0, 0.3, 5.0])
    @pytest.mark.parametrize("sharpness", [1.0, 10.0, 0.5])
    def test_evidence(self, n_classes, weight, sharpness):
        fields = {"weight": weight, "sharpness": sharpness}
        Case(5, n_classes).weigh().by(**fields).check()
        other = Case(5, n_classes, dtype=torch.bfloat16, store=torch.float16)
        other.by(**fields).check()

    def test_smoothing(self, n_classes):
        losses, slope = Case(5, n_classes).check()
        for smoothing in (0.1, 0.9):
            case = Case(5, n_classes).by(smoothing=smoothing)
            smoothed = case.check()
            assert not torch.allclose(losses, smoothed[0])
            assert not torch.allclose(slope, smoothed[1])

    def test_weight_and_discount_do_something(self, n_classes):
        case, other = Case(5, n_classes), Case(5, n_classes).weigh()
        pairs = zip(
            (*case.step(), case.alpha), (*other.step(), other.alpha), strict=True
        )
        assert not any(torch.allclose(a, b, rtol=0.02) for a, b in pairs)

    def test_steps_add_up(self, n_classes):
        case = Case(5, n_classes).weigh()
        for _ in range(3):
            case.check()

    def test_infinite_prior_is_cross_entropy(self, n_classes):
        case = Case(5, n_classes)
        labels = torch.arange(N, device=DEVICE) % n_classes
        case.alpha = prior_concentration(
            labels, n_classes, prior_strength=math.inf, prior_floor=1e-3
        )
        for visit in range(1, 4):
            losses, gradient = case.step()
            truth = labels[case.index]
            torch.testing.assert_close(losses.sum(), cross_entropy(case.logits, truth))
            slope = case.logits.softmax(1) - one_hot(truth, n_classes)
            torch.testing.assert_close(gradient, slope / 5)
            assert case.alpha.isfinite().all()
            assert (case.visits[case.index] == case.index + visit).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("share", ["one", "some", "all"])
    def test_prediction_that_is_not_finite(self, n_classes, value, share):
        case = Case(5, n_classes).weigh()
        columns = {"one": [1], "some": slice(None, None, 2), "all": slice(None)}[share]
        case.logits[2, columns] = value
        losses, _ = case.check()
        assert losses.isfinite().tolist() == [True, True, False, True, True]

    def test_log_probability_that_overflows(self, n_classes):
        case = Case(2, n_classes)
        before = case.alpha.clone()
        case.logits[0, 0], case.logits[0, 1] = 3e38, -3e38
        losses, _ = case.step()
        assert losses.isfinite().tolist() == [False, True]
        assert torch.equal(case.alpha[case.index[0]], before[case.index[0]])

    def test_logits_of_great_size(self, n_classes):
        case = Case(5, n_classes)
        case.logits *= 1000
        case.logits[0] = -1e30
        case.check()

    def test_belief_that_is_not_finite_is_kept(self, n_classes):
        case = Case(2, n_classes)
        row = case.index[0].item()
        case.alpha[row, 1] = math.nan
        losses, _ = case.step()
        assert losses.isfinite().tolist() == [False, True]
        assert case.alpha[row].isfinite().sum() == n_classes - 1
        assert case.visits[row] == row

    @pytest.mark.parametrize("row", [-1, N, 2**40])
    def test_row_outside_the_store(self, n_classes, row):
        case = Case(3, n_classes)
        case.index[1] = row
        before = case.alpha.clone()
        inside = case.index[[0, 2]]
        losses, gradient = case.step()
        assert losses.isnan().tolist() == [False, True, False]
        assert gradient.isnan().any(1).tolist() == [False, True, False]
        changed = (case.alpha != before).any(1).nonzero().flatten()
        assert changed.tolist() == sorted(inside.tolist())

    @pytest.mark.parametrize(
        "strided",
        [
            lambda z: torch.cat([z, z], dim=1)[:, : z.shape[1]],
            lambda z: z.repeat_interleave(3, dim=0)[1::3],
            lambda z: z.t().contiguous().t(),
            lambda z: z[:1].expand_as(z),
        ],
        ids=["columns", "rows", "transposed", "expanded"],
    )
    def test_layout_of_logits(self, n_classes, strided):
        case = Case(5, n_classes)
        case.logits = strided(case.logits)
        case.check()

    def test_strided_index_and_weight(self, n_classes):
        case = Case(10, n_classes).weigh()
        case.logits = case.logits[::2]
        case.index, case.weight = case.index[::2], case.weight[1::2]
        case.check()

    def test_empty_batch(self, n_classes):
        case = Case(0, n_classes)
        before = case.alpha.clone()
        losses, gradient = case.step()
        assert losses.shape == (0,)
        assert gradient.shape == (0, n_classes)
        assert torch.equal(case.alpha, before)


class TestSharedPrograms:
    """Several rows to a program, the last of which may have fewer."""

    __test__ = RUNS
    pytestmark = MARKS

    @pytest.mark.parametrize(
        ("n_classes", "tile", "rows"), [(2, 32, 16), (3, 16, 4), (10, 64, 4)]
    )
    @pytest.mark.parametrize("left", [1, 0, -1])
    def test_rows_in_registers(self, monkeypatch, n_classes, tile, rows, left):
        monkeypatch.setattr(_kernels, "TILE", tile)
        Case(2 * rows + left, n_classes).check()
        case = Case(2 * rows + left, n_classes, store=torch.float16)
        case.weigh().by(sharpness=2.0).check()

    # The last chunk holds one class, some, and all but one.
    @pytest.mark.parametrize("n_classes", [33, 45, 63])
    @pytest.mark.parametrize("n", [3, 4, 5])
    def test_rows_in_chunks(self, monkeypatch, n_classes, n):
        for name, value in {"LONGEST_ROW": 16, "CHUNK": 16, "TILE": 32}.items():
            monkeypatch.setattr(_kernels, name, value)
        Case(n, n_classes).check()
        case = Case(n, n_classes, store=torch.float16)
        case.weigh().by(sharpness=2.0, smoothing=0.1).check()

    def test_row_that_is_not_finite_leaves_its_neighbours(self, monkeypatch):
        monkeypatch.setattr(_kernels, "TILE", 64)
        case = Case(7, 10).weigh()
        case.logits[2], case.logits[4, 3] = math.nan, -math.inf
        losses, _ = case.check()
        finite = losses.isfinite().tolist()
        assert finite == [True, True, False, True, False, True, True]


class TestNumbers:
    """Each launch reads the rule's values from memory."""

    __test__ = RUNS
    pytestmark = MARKS

    RULES = (
        UpdateRule(weight=0.3, sharpness=2.0),
        UpdateRule(weight=2.0, sharpness=0.5, smoothing=0.2, discount=0.9),
        UpdateRule(),
    )

    def test_change_between_launches(self, n_classes):
        numbers = torch.empty(4, device=DEVICE)
        one, other = Case(5, n_classes), Case(5, n_classes)
        for rule in self.RULES:
            numbers.copy_(numbers_of(rule, torch.device("cpu")))
            loss, gradient = posterior_step(
                one.logits,
                one.alpha,
                one.visits,
                one.index,
                None,
                self.RULES[0],
                numbers,
                sharpen=True,
            )
            losses, slope = other.by(**asdict(rule)).check()
            torch.testing.assert_close(loss, losses.sum())
            torch.testing.assert_close(gradient, slope)
            torch.testing.assert_close(one.alpha, other.alpha)

    @pytest.mark.parametrize("given", [True, False])
    def test_posterior_keeps_them_in_place(self, given):
        posterior = DirichletPosterior(
            torch.arange(N) % 3, 3, device=DEVICE, discount=1.0 if given else 0.9
        )
        rules = [UpdateRule(weight=w, sharpness=2.0, smoothing=0.1) for w in (0.5, 2.0)]
        case = Case(5, 3)
        places = set()
        for rule in rules if given else (None, None):
            before = posterior.concentration(case.index)
            posterior.update(case.logits, case.index, rule=rule, assume_unique=True)
            used = UpdateRule(discount=0.9) if rule is None else rule
            proba = sharpen(case.logits.softmax(1), used.sharpness)
            torch.testing.assert_close(
                posterior.concentration(case.index),
                used.discount * before + used.weight * proba,
            )
            numbers = posterior._numbers
            places.add(numbers.data_ptr())
            assert torch.equal(numbers, numbers_of(used, numbers.device))
        assert len(places) == 1


class TestOperator:
    __test__ = RUNS
    pytestmark = MARKS

    @pytest.mark.parametrize("weighted", [False, True])
    def test_is_what_it_declares(self, weighted):
        case = Case(5, 10).weigh()
        torch.library.opcheck(
            operator,
            (
                case.logits,
                case.alpha,
                case.visits,
                case.index,
                case.weight if weighted else None,
                *case.numbers(),
            ),
        )

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_in_a_compiled_function(self, backend):
        @torch.compile(fullgraph=True, backend=backend)
        def step(logits, alpha, visits, index, weight):
            loss, gradient = posterior_step(
                2 * logits, alpha, visits, index, weight, one.rule
            )
            return loss, 2 * gradient

        one, other = Case(5, 10).weigh(), Case(5, 10).weigh()
        loss, gradient = step(
            one.logits / 2, one.alpha, one.visits, one.index, one.weight
        )
        losses, slope = other.step()
        torch.testing.assert_close(loss, losses.sum())
        torch.testing.assert_close(gradient, 2 * slope)
        assert torch.equal(one.alpha, other.alpha)
        assert torch.equal(one.visits, other.visits)

    def test_usable(self):
        case = Case(2, 10)
        assert usable(case.logits, case.alpha)
        assert usable(case.logits.bfloat16(), case.alpha.half())
        assert not usable(case.logits.double(), case.alpha)
        assert not usable(case.logits, case.alpha.double())
        assert not usable(case.logits, case.alpha.bfloat16())
        assert not usable(case.logits, case.alpha.t().contiguous().t())
        assert not usable(case.logits, case.alpha.to("meta"))


class TestElsewhere:
    __test__ = not INTERPRETED

    def test_interpreted(self):
        """The tests above, on the CPU."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
            env=environment | {"TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def test_is_of_no_use_on_the_cpu(self):
        assert not usable(torch.zeros(2, 3), torch.ones(4, 3))

    def test_is_of_no_use_where_it_fails(self):
        arguments = (torch.device("cpu"), torch.float32, torch.float32, 3)
        with pytest.warns(RuntimeWarning, match="does not run on cpu.*slower"):
            assert not _kernels._compiles(*arguments)

    def test_imports_without_triton(self):
        code = (
            "import sys; sys.modules['triton'] = None; import torch; "
            "from skbsd._kernels import usable; "
            "assert not usable(torch.zeros(2, 3), torch.ones(4, 3))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
