"""The kernel, compiled for a Hopper GPU without one: registers and memory accesses.

`test_kernels.py` is about what it computes.
"""

import math
import re
import subprocess
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from skbsd import _compact_kernels, _kernels
from skbsd._kernels import numbers_of, posterior_step
from skbsd.posterior import CompactPosterior, UpdateRule

triton = pytest.importorskip("triton")
compilers = pytest.importorskip("triton.backends.compiler")

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARPER = UpdateRule(sharpness=2.0)

pytestmark = [
    pytest.mark.skipif(_kernels.interpreted, reason="Triton interprets the kernel"),
    pytest.mark.skipif(not CUOBJDUMP.exists(), reason="Triton has no cuobjdump"),
]


class Hopper:
    """Replaces Triton's GPU driver, with the methods that the compiler calls."""

    def get_current_target(self):
        return compilers.GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 90  # key of compiled kernels, a number that no device has

    def get_current_stream(self, device):
        return 0


class Compiling:
    """Replaces the kernel, and compiles it instead of launching it."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.compiled = []
        self.options = []

    def __getitem__(self, grid):
        def compile_only(*args, **options):
            done = self.kernel.warmup(*args, grid=grid, **options)
            self.compiled.append(done)
            self.options.append(options)

        return compile_only


@contextmanager
def hopper():
    """Let Triton compile for Hopper within the context."""
    driver = triton.runtime.driver
    before = dict(vars(driver))  # to look at the active one would create it
    driver.set_active(Hopper())
    try:
        yield
    finally:
        vars(driver).update(before)


@pytest.fixture
def kernel(monkeypatch):
    compiling = Compiling(_kernels._step)
    monkeypatch.setattr(_kernels, "_step", compiling)
    with hopper():
        yield compiling


def compiled(kernel, n_classes, dtype, store, rule=None, *, n=4, weighted=False):
    """Run a step without computation; return the compiled kernel."""
    logits = torch.zeros(n, n_classes, dtype=dtype)
    index = torch.arange(n)
    weight = torch.ones(n) if weighted else None
    alpha = torch.ones(n, n_classes, dtype=store)
    posterior_step(logits, alpha, index.int(), index, weight, rule or UpdateRule())
    return kernel.compiled[-1]


def resources(done, folder):
    """Return the registers and bytes of stack that each thread takes."""
    file = folder / "kernel.cubin"
    file.write_bytes(done.asm["cubin"])
    command = [CUOBJDUMP, "--dump-resource-usage", file]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return map(int, re.search(r"REG:(\d+) STACK:(\d+)", text).groups())


def moves(done):
    """Return how many bytes each access to global memory moves at once."""
    accesses = re.findall(
        r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", done.asm["ptx"]
    )
    return [int(n or 1) * int(bits) // 8 for n, bits in accesses]


def check_moves(done, launched, n_classes, dtype, store):
    """Check that a thread moves four numbers at once, or as alignment allows."""
    rows, block = launched["ROWS"], launched["BLOCK"]
    numbers = rows * block // (32 * launched["num_warps"])
    together = math.gcd(n_classes, 4)
    found = Counter(moves(done))
    # Logits and gradient are of one type; beliefs are read and written in another.
    wanted = Counter()
    for size in (dtype.itemsize, store.itemsize):
        wanted[size * together] += 2 * numbers // together
    assert wanted <= found


WIDE = (torch.float32, torch.float32)
MIXED = (torch.bfloat16, torch.float32)
SHORT = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("n_classes", [2, 10, 100, 1000, 16384, 21841])
@pytest.mark.parametrize(
    ("types", "full"),
    [(WIDE, False), (SHORT, False), (WIDE, True), (MIXED, True), (SHORT, True)],
    ids=["wide", "short", "wide-full", "mixed-full", "short-full"],
)
def test_keeps_to_registers_and_moves_them_together(
    kernel, n_classes, types, full, tmp_path
):
    """If `full`, predictions are sharpened and samples weighted."""
    rule = SHARPER if full else UpdateRule()
    done = compiled(kernel, n_classes, *types, rule, weighted=full)
    registers, stack = resources(done, tmp_path)
    assert stack <= 32  # next to nothing is spilled
    # A multiprocessor has 2**16, for 21 warps at once; for 16 where rows are so short
    # that a thread holds what belongs to four of them.
    assert registers <= (96 if n_classes > 2 else 128)
    check_moves(done, kernel.options[-1], n_classes, *types)


def test_moves_chunks_together(kernel):
    done = compiled(kernel, 20000, torch.float32, torch.float32)
    assert kernel.options[-1]["BLOCK"] < 20000
    check_moves(done, kernel.options[-1], 20000, torch.float32, torch.float32)


def test_would_notice_rows_that_are_not_aligned(kernel):
    """The check of memory accesses fails if each number is moved separately."""
    logits = torch.zeros(4, 11)
    index = torch.arange(4)
    posterior_step(
        logits[:, :8], torch.ones(4, 8), index.int(), index, None, UpdateRule()
    )
    with pytest.raises(AssertionError):
        check_moves(
            kernel.compiled[-1], kernel.options[-1], 8, torch.float32, torch.float32
        )


def test_a_kernel_serves_all_batches(kernel):
    """Neither the rule nor the batch's size or address causes another compilation."""
    logits, alpha = torch.zeros(9, 10), torch.ones(20, 10)
    index, weight = torch.arange(10), torch.ones(10)
    visits = torch.zeros(20, dtype=torch.int32)
    numbers = numbers_of(SHARPER, torch.device("cpu"))
    for rule in (SHARPER, UpdateRule(1.0, 1.0), UpdateRule(0.3, 5.0, 0.1, 0.9)):
        numbers.copy_(numbers_of(rule, torch.device("cpu")))
        for n, start in ((9, 0), (8, 1), (1, 1)):
            batch = slice(start, start + n)
            posterior_step(
                logits[:n],
                alpha,
                visits,
                index[batch],
                weight[batch],
                rule,
                numbers,
                sharpen=True,
            )
    assert len(kernel.compiled) == 9
    assert len(set(map(id, kernel.compiled))) == 1
    posterior_step(logits, alpha, visits, index[:9], None, UpdateRule())
    assert len(set(map(id, kernel.compiled))) == 2


@pytest.mark.parametrize("n_classes", [64, 1000, 16384, 21841])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [UpdateRule(), SHARPER], ids=["plain", "sharp"])
def test_of_the_compact_store(n_classes, dtype, rule, tmp_path, monkeypatch):
    compiling = Compiling(_compact_kernels._step)
    monkeypatch.setattr(_compact_kernels, "_step", compiling)
    posterior = CompactPosterior(torch.arange(4), n_classes)
    with hopper():
        _compact_kernels.posterior_step(
            torch.zeros(4, n_classes, dtype=dtype),
            posterior._compact_rows(),
            posterior.visits,
            torch.arange(4),
            torch.ones(4),
            rule,
            posterior._prior(),
        )
    (done,) = compiling.compiled
    registers, stack = resources(done, tmp_path)
    assert stack <= 64  # little is spilled
    assert registers <= (64 if n_classes > 64 else 128)
    # Logits are read twice, and their gradient is written.
    together = math.gcd(n_classes, 4) * dtype.itemsize
    assert max(moves(done)) >= together


def test_driver_is_put_back():
    driver = triton.runtime.driver
    before = dict(vars(driver))
    with pytest.raises(ZeroDivisionError), hopper():
        raise ZeroDivisionError(driver.active.get_current_target())
    assert vars(driver) == before
