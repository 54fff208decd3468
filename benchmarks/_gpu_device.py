"""Performance limits of a GPU, and time of the posterior step."""

import itertools
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence

import sklearn
import skorch
import torch
from _common import clocked
from _gpu_table import HEAD, Figures
from posterior_step import SIZES, TYPES, moved
from torch import Tensor
from torch.nn import functional as F

from skbsd import _kernels
from skbsd.posterior import DirichletPosterior, UpdateRule

Calls = Sequence[Callable[[], object]]

SMI = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem")
# Under load.
SMI_NOW = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
# Microseconds of the step, by samples and classes, with logits in bfloat16 and beliefs
# in float32.
TARGETS = {(1024, 1000): 5.0, (1024, 21841): 90.0}
PER_GRAPH = 20
MOST_REPEATS = 4096
# Like the default's rules, it weights and sharpens predictions.
SHARPENED = UpdateRule(weight=2.0, sharpness=1.5)


# Time


def on_host(call: Callable[[], object], repeats: int, device: str) -> float:
    """Return the seconds of the host for a call, without waiting for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    taken = time.perf_counter() - begin
    if device == "cuda":
        torch.cuda.synchronize()
    return taken / repeats


def graph_of(calls: Calls) -> torch.cuda.CUDAGraph:
    """Capture a sequence of calls as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # compiles, and fills caches
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph


def in_graph(
    calls: Calls, device: str, rounds: int, at_least: float = 0.01
) -> list[float]:
    """Return seconds per call of each round; on CUDA, calls are nodes of a graph.

    A round lasts at least about `at_least` seconds.
    """

    def one_by_one() -> None:
        for call in calls:
            call()

    run = graph_of(calls).replay if device == "cuda" else one_by_one
    repeats = 1
    while (taken := clocked(run, repeats, device)) < at_least / 4:
        if repeats >= MOST_REPEATS:
            break
        repeats *= 2
    repeats = min(MOST_REPEATS, max(1, round(repeats * at_least / max(taken, 1e-9))))
    times = [clocked(run, repeats, device) for _ in range(rounds)]
    return [t / repeats / len(calls) for t in times]


# Ceilings


def smi(fields: Sequence[str]) -> dict[str, str]:
    """Return fields of nvidia-smi for the first GPU; empty if it is not installed."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=" + ",".join(fields), "--format=csv,noheader"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    entries = result.stdout.splitlines()[0].split(",")
    return dict(zip(fields, map(str.strip, entries), strict=False))


def versions(device: str) -> dict[str, str]:
    """Return the hardware and the versions that measurements depend on."""
    found = {}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["name"] = card.name
        found["capability"] = f"{card.major}.{card.minor}"
        found["multiprocessors"] = str(card.multi_processor_count)
        found["memory"] = f"{card.total_memory / 2**30:.1f} GiB"
        found |= smi(SMI)
    found["torch"] = torch.__version__
    found["CUDA"] = str(torch.version.cuda)
    if torch.backends.cudnn.is_available():
        found["cuDNN"] = str(torch.backends.cudnn.version())
    if _kernels.triton is not None:
        found["triton"] = _kernels.triton.__version__
    found["Python"] = platform.python_version()
    found["scikit-learn"] = sklearn.__version__
    found["skorch"] = skorch.__version__
    return found


def measure_ceilings(figures: Figures, device: str, *, tiny: bool) -> None:
    """Measure the bandwidth of a copy, matrix products and kernel launches."""
    stage = "ceilings"
    for name, value in versions(device).items():
        figures.add(stage, HEAD, name, "", value)
    rounds = 3 if tiny else 11
    measure_copy(figures, 2**12 if tiny else 2**30, device, rounds)
    size = 64 if tiny else 8192
    for name in ("bfloat16", "TF32", "float32"):
        measure_product(figures, name, size, device, rounds)
    measure_launches(figures, device, 20 if tiny else 500, rounds)


def measure_copy(figures: Figures, n: int, device: str, rounds: int) -> None:
    """Measure the bandwidth of a copy of `n` bytes, both read and written."""
    source = torch.empty(n, dtype=torch.uint8, device=device).random_()
    copied = torch.empty_like(source)
    at_least = 0.1 if n > 2**20 else 0
    times = in_graph([lambda: copied.copy_(source)], device, rounds, at_least)
    case = f"copy of {n:,} bytes"
    figures.add("ceilings", case, "bandwidth", "GB/s", rates(2 * n, times))


def rates(volume: float, times: list[float]) -> list[float]:
    """Return rates in 1e9 per second."""
    return [volume / max(t, 1e-12) / 1e9 for t in times]


def measure_product(figures, name: str, size: int, device: str, rounds: int) -> None:
    """Measure the product of two square matrices of random numbers."""
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
    try:
        at_least = 0.1 if size > 64 else 0
        times = in_graph([lambda: a @ b], device, rounds, at_least)
        teraflops = [rate / 1000 for rate in rates(2 * size**3, times)]
        case = f"product of {size} x {size}"
        figures.add("ceilings", case, name, "TFLOP/s", teraflops)
        if device == "cuda" and name == "bfloat16":
            for _ in range(max(1, int(1.5 / max(statistics.median(times), 1e-3)))):
                a @ b
            for field, value in smi(SMI_NOW).items():  # while it works
                figures.add("ceilings", HEAD, f"{field} under load", "", value)
            torch.cuda.synchronize()
    finally:
        torch.set_float32_matmul_precision(before)


def measure_launches(figures, device: str, n: int, rounds: int) -> None:
    """Measure launches of a kernel on one number, alone and as nodes of graphs."""
    x = torch.zeros(1, device=device)

    def call() -> None:
        x.zero_()

    call()
    host = [1e6 * on_host(call, n, device) for _ in range(rounds)]
    figures.add("ceilings", "kernel on one number", "host, each", "us", host)
    both = [1e6 * clocked(call, n, device) / n for _ in range(rounds)]
    figures.add("ceilings", "kernel on one number", "one after another", "us", both)
    nodes = [1e6 * t for t in in_graph(100 * [call], device, rounds)]
    figures.add("ceilings", "kernel on one number", "node of a graph", "us", nodes)
    if device == "cuda":
        for k in (1, 100):
            replay = graph_of(k * [call]).replay
            times = [1e6 * on_host(replay, 100, device) for _ in range(rounds)]
            figures.add("ceilings", f"graph of {k} nodes", "host, each", "us", times)


# The posterior step


def step_calls(B: int, K: int, logit, store, device: str) -> dict[str, list[Callable]]:
    """Return the calls to time by kind, each call with different rows."""
    n_batches = 16 if K <= 10_000 else 2
    labels = torch.randint(K, (n_batches * B,), device=device)
    posterior, other = (DirichletPosterior(labels, K, dtype=store) for _ in range(2))
    posterior.load_rule()
    other.load_rule(SHARPENED)
    numbers = _kernels.numbers_of(UpdateRule(), torch.device(device))
    batches = torch.randperm(len(labels), device=device).split(B)
    targets = [labels[index] for index in batches]
    logits = torch.randn(B, K, device=device).to(logit)
    wanted = logits.clone().requires_grad_()
    half = moved(B, K, logit, store) // 2
    source = torch.zeros(n_batches, half, dtype=torch.uint8, device=device)
    copied = torch.empty_like(source)

    def step(index: Tensor) -> None:
        posterior.update(logits, index, assume_unique=True)

    def sharpened(index: Tensor) -> None:
        other.update(logits, index, rule=SHARPENED, assume_unique=True)

    def kernel(index: Tensor) -> None:
        _kernels.launch(
            logits, posterior._alpha, posterior.visits, index, None, numbers, False
        )

    def ce(y: Tensor) -> None:
        torch.autograd.grad(F.cross_entropy(wanted, y), wanted)

    def copy(i: int) -> None:
        copied[i].copy_(source[i])

    def calls(function: Callable, arguments: Sequence) -> list[Callable]:
        cycle = itertools.islice(itertools.cycle(arguments), PER_GRAPH)
        return [lambda x=x: function(x) for x in cycle]

    kinds = {
        "step": calls(step, batches),
        "step, sharpened": calls(sharpened, batches),
        "cross-entropy": calls(ce, targets),
        "copy": calls(copy, range(n_batches)),
    }
    if _kernels.usable(logits, posterior._alpha):
        kinds["kernel"] = calls(kernel, batches)
    return kinds


def measure_posterior(figures: Figures, device: str, *, tiny: bool) -> None:
    """Measure the step in microseconds, compared with a copy of as many bytes."""
    sizes = [(16, 10)] if tiny else SIZES
    rounds = 3 if tiny else 9
    for (B, K), (logit, store) in itertools.product(sizes, TYPES[device]):
        names = [str(t).removeprefix("torch.") for t in (logit, store)]
        case = f"{B} x {K}, logits {names[0]}, store {names[1]}"
        is_wanted = (logit, store) == (torch.bfloat16, torch.float32)
        target = TARGETS.get((B, K)) if is_wanted else None
        kinds = step_calls(B, K, logit, store, device)
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(1 if tiny else 3):  # interleaved
            for kind, calls in kinds.items():
                times[kind] += in_graph(calls, device, rounds // 3)
        for kind, values in times.items():
            figures.add(
                "posterior",
                case,
                kind,
                "us",
                [1e6 * t for t in values],
                target if kind == "step" else None,
            )
        volume = moved(B, K, logit, store)
        for kind in ("step", "copy"):
            figures.add(
                "posterior", case, f"{kind}, rate", "GB/s", rates(volume, times[kind])
            )
        for other in ("copy", "cross-entropy"):
            pairs = zip(times["step"], times[other], strict=True)
            ratios = [a / max(b, 1e-12) for a, b in pairs]
            figures.add("posterior", case, f"step / {other}", "", ratios)
        host = [1e6 * on_host(kinds["step"][0], 50, device) for _ in range(rounds)]
        figures.add("posterior", case, "step, host", "us", host)
        del kinds
        if device == "cuda":
            torch.cuda.empty_cache()
