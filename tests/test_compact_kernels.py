"""The kernel of the compact store, compared with its formulas in double precision.

As in `test_kernels.py`: compiled where there is a CUDA device, and everywhere through
Triton's interpreter, in a process of its own. To run that one alone:

    TRITON_INTERPRET=1 pytest tests/test_compact_kernels.py
"""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from skbsd import _compact, _compact_kernels
from skbsd._compact import CompactRows
from skbsd.posterior import CompactPosterior, UpdateRule

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RUNS = INTERPRETED or torch.cuda.is_available()
MARKS = [] if INTERPRETED else [pytest.mark.gpu]
N = 20


@pytest.fixture(autouse=True)
def silent_numpy():
    # The interpreter's arithmetic is NumPy's, which warns of infinities.
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def chunked(monkeypatch):
    """Let rows of some hundred classes count as too long for registers."""
    monkeypatch.setattr(_compact_kernels, "LONGEST_ROW", 256)
    monkeypatch.setattr(_compact_kernels, "CHUNK", 256)
    monkeypatch.setattr(_compact_kernels, "TILE", 512)


@pytest.fixture(params=["whole", "chunked"])
def n_classes(request):
    if request.param == "chunked":
        request.getfixturevalue("chunked")
    return {"whole": 40, "chunked": 700}[request.param]


def store(n_classes, n_kept, *, dtype=torch.float32, **kwargs):
    """Return a store after some updates."""
    labels = torch.arange(N) * 7 % n_classes
    options = {"n_kept": n_kept, "prior_strength": 20.0, "dtype": dtype}
    posterior = CompactPosterior(labels, n_classes, **(options | kwargs))
    rule = UpdateRule(discount=posterior.discount)
    rows = CompactRows(*posterior._rows_of_all().values())
    for seed in range(2):
        _compact.posterior_step(
            draw(N, n_classes, seed),
            rows,
            posterior.visits,
            torch.arange(N),
            None,
            rule,
            posterior._prior(),
        )
    return posterior.to(DEVICE)


def draw(n, n_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, n_classes, generator=generator)


def check(logits, n_kept=6, *, weight=None, rule=UpdateRule(), **kwargs):  # noqa: B008
    """Step, and compare everything that is returned and changed."""
    n, n_classes = logits.shape
    index = torch.randperm(N, generator=torch.Generator().manual_seed(n))[:n]
    found = []
    for step in (_compact_kernels.posterior_step, _compact.posterior_step):
        posterior = store(n_classes, n_kept, discount=rule.discount, **kwargs)
        rows = CompactRows(*posterior._rows_of_all().values())
        z = logits.to(DEVICE)
        if step is _compact.posterior_step:
            z = z.double()
        arguments = z, rows, posterior.visits, index.to(DEVICE)
        weights = weight if weight is None else weight.to(DEVICE, z.dtype)
        result = step(*arguments, weights, rule, posterior._prior())
        found.append((*result, posterior))
    (loss, slope, one), (expected, gradient, other) = found
    eps = torch.finfo(logits.dtype).eps
    torch.testing.assert_close(
        loss.double(), expected, rtol=1e-5, atol=1e-7, equal_nan=True
    )
    torch.testing.assert_close(
        slope,
        gradient.to(slope),
        rtol=max(1e-4, 2 * eps),
        atol=1e-7,
        equal_nan=True,
    )
    coarse = 2e-3 if one.dtype == torch.float16 else 1e-5
    torch.testing.assert_close(
        one.concentration(), other.concentration(), rtol=coarse, atol=1e-4
    )
    torch.testing.assert_close(one._total, other._total)
    torch.testing.assert_close(one._rest, other._rest, rtol=1e-4, atol=1e-5)
    assert torch.equal(one.visits, other.visits)
    if rule.weight:
        kept = [p.kept_classes().sort().values for p in (one, other)]
        assert (kept[0] == kept[1]).float().mean() > 0.99
    return one


class TestStep:
    __test__ = RUNS
    pytestmark = MARKS

    @pytest.mark.parametrize("n", [1, 5, 19])
    def test_rows(self, n_classes, n):
        check(draw(n, n_classes, 9))
        weight = torch.linspace(0.0, 2.0, n)
        check(draw(n, n_classes, 9), weight=weight, rule=UpdateRule(discount=0.9))

    @pytest.mark.parametrize("n_kept", [2, 6, 39, 40])
    def test_classes_kept(self, n_kept):
        check(draw(5, 40, 9), n_kept)

    @pytest.mark.parametrize("n_classes", [2, 3, 9, 257])
    def test_few_classes_and_odd_numbers(self, n_classes):
        check(draw(5, n_classes, 9), min(n_classes, 4))

    @pytest.mark.parametrize("kept", [torch.float32, torch.float16])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_types(self, n_classes, dtype, kept):
        check(draw(5, n_classes, 9).to(dtype), dtype=kept)

    @pytest.mark.parametrize("weight", [0.0, 0.3, 5.0])
    @pytest.mark.parametrize("sharpness", [1.0, 10.0, 0.5])
    def test_evidence(self, n_classes, weight, sharpness):
        rule = UpdateRule(weight, sharpness, 0.2, 0.9)
        check(draw(5, n_classes, 9), rule=rule)

    @pytest.mark.parametrize("offset", [-500.0, 500.0])
    def test_a_common_offset(self, n_classes, offset):
        check(draw(5, n_classes, 9) + offset)

    def test_infinite_prior(self, n_classes):
        check(draw(5, n_classes, 9), prior_strength=math.inf)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_rows_that_are_not_finite_are_left(self, n_classes, value):
        logits = draw(5, n_classes, 9)
        logits[2, 7] = value
        posterior = check(logits)
        assert posterior.concentration().isfinite().all()
        assert posterior.visits.sum() == 2 * N + 4

    def test_the_best_of_many_are_found(self, chunked):
        """At the end of rows, next to each other, and far apart."""
        logits = draw(3, 701, 9)
        large = torch.linspace(19.0, 20.0, 5)
        logits[0, -5:] = large
        logits[1, 100:105] = large
        logits[2, ::150] = large
        check(logits, 12)

    def test_logits_that_are_a_view(self):
        check(draw(5, 80, 9)[:, ::2])
        check(draw(9, 40, 9)[::2])

    def test_is_what_the_store_uses(self):
        posterior = store(40, 6)
        assert posterior.on_kernel(torch.float32)
        assert not posterior.on_kernel(torch.float64)
        other = store(40, 6)
        rule = UpdateRule(2.0, 1.5)
        logits, index = draw(5, 40, 9).to(DEVICE), torch.arange(5, device=DEVICE)
        posterior.update(logits, index, rule=rule)
        rows = CompactRows(*other._rows_of_all().values())
        _compact.posterior_step(
            logits, rows, other.visits, index, None, rule, other._prior()
        )
        torch.testing.assert_close(posterior.mean(), other.mean())


@pytest.mark.skipif(INTERPRETED, reason="as the tests above, which it runs")
class TestOnTheCPU:
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
        assert not CompactPosterior(torch.arange(9), 9, n_kept=4).on_kernel(
            torch.float32
        )

    def test_is_of_no_use_where_it_fails(self):
        arguments = (torch.device("cpu"), torch.float32, 4, 9)
        with pytest.warns(RuntimeWarning, match="does not run on cpu.*slower"):
            assert not _compact_kernels._compiles(*arguments)
