"""Time of the posterior step, and its bytes per second.

For a batch of B samples and K classes, forward and backward to the logits:

- step: loss = posterior.step(logits, index, assume_unique=True); loss.backward()
- ce: loss = F.cross_entropy(logits, y); loss.backward()
- copy: copies as many bytes as the step has to move on the device, half of them read
  and half written. The two buffers stay the same, so they may be in a cache.

The step has to read the logits, read and write the rows of the batch, and write the
gradient: B * K * 2 * (bytes of a logit + bytes of an entry of the store). As in
training, each call takes the next batch of a permutation of 16 batches (of 2 for more
than 10,000 classes, to fit in memory), so rows are not always in the cache. Logits are
in the cache, as they are when a network has just written them.

Every round times each of the three once, in changing order, and repeats it for
--seconds; ratios are computed within a round.

    python benchmarks/posterior_step.py [--threads 1] [--output posterior_step.csv]
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from _common import NO_CUDA, Results, clocked, machine, ratios, rounds
from torch.nn import functional as F

from skbsd.posterior import DirichletPosterior

SIZES = [(128, 10), (512, 10), (512, 100), (1024, 1000), (1024, 21841)]
# Data types of the logits and of the store.
TYPES = {
    "cpu": [(torch.float32, torch.float32)],
    "cuda": list(
        itertools.product(
            (torch.float32, torch.bfloat16), (torch.float32, torch.float16)
        )
    ),
}
KINDS = ("step", "ce", "copy")


def moved(B: int, K: int, logit: torch.dtype, store: torch.dtype) -> int:
    """Bytes that the step has to read and write."""
    return 2 * B * K * (logit.itemsize + store.itemsize)


def calls(B: int, K: int, logit, store, device: str) -> dict[str, Callable[[], None]]:
    """Return the calls to time, by kind."""
    n_batches = 16 if K <= 10_000 else 2
    labels = torch.randint(K, (n_batches * B,), device=device)
    posterior = DirichletPosterior(labels, K, dtype=store)
    batches = torch.randperm(len(labels), device=device).split(B)
    indices = itertools.cycle(batches)
    targets = itertools.cycle([labels[index] for index in batches])
    logits = torch.randn(B, K, device=device).to(logit).requires_grad_()
    half = moved(B, K, logit, store) // 2
    source = torch.zeros(half, dtype=torch.uint8, device=device)
    copied = torch.empty_like(source)

    def step() -> None:
        logits.grad = None
        posterior.step(logits, next(indices), assume_unique=True).backward()

    def ce() -> None:
        logits.grad = None
        F.cross_entropy(logits, next(targets)).backward()

    def copy() -> None:
        copied.copy_(source)

    return {"step": step, "ce": ce, "copy": copy}


def repeats_for(call: Callable[[], None], at_least: float, device: str) -> int:
    """Return the number of calls that take `at_least` seconds; this also warms up."""
    repeats = 1
    while (taken := clocked(call, repeats, device)) < at_least / 4:
        repeats *= 2
    return max(1, round(repeats * at_least / taken))


def measure(args, device: str, B: int, K: int, logit, store) -> dict[str, list[float]]:
    """Return the microseconds per call of each round, by kind."""
    kinds = calls(B, K, logit, store, device)
    repeats = {k: repeats_for(call, args.seconds, device) for k, call in kinds.items()}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _, kind in rounds(args.rounds, KINDS):
        taken = clocked(kinds[kind], repeats[kind], device)
        times[kind].append(1e6 * taken / repeats[kind])
    return times


def shown(values: list[float]) -> str:
    summary = (statistics.median(values), min(values), max(values))
    return "{} ({}..{})".format(*(f"{v:.{0 if v > 999 else 2}f}" for v in summary))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--max-classes", type=int, help="skip larger sizes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="per measurement")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(machine())
    print("microseconds per call, median (min..max); GB/s of the median\n")
    columns = ("device", "B", "K", "logits", "store", "bytes", "kind", "round")
    results = Results(args.output, (*columns, "microseconds", "status"))
    print(
        f"{'':4} {'B':>5} {'K':>6} {'logits':8} {'store':8} {'step':>25} {'GB/s':>6} "
        f"{'ce':>25} {'copy':>25} {'GB/s':>6} {'step/ce':>20} {'step/copy':>20}"
    )
    for device, (B, K) in itertools.product(args.devices, SIZES):
        if args.max_classes and args.max_classes < K:
            continue
        for logit, store in TYPES[device]:
            volume = moved(B, K, logit, store)
            names = [str(dtype).removeprefix("torch.") for dtype in (logit, store)]
            head = f"{device:4} {B:5} {K:6} {names[0]:8} {names[1]:8}"
            if device == "cuda" and not torch.cuda.is_available():
                print(head, NO_CUDA)
                for kind in KINDS:
                    results.add(device, B, K, *names, volume, kind, "", "", NO_CUDA)
                continue
            times = measure(args, device, B, K, logit, store)
            for kind, values in times.items():
                for i, value in enumerate(values):
                    row = (device, B, K, *names, volume, kind, i, f"{value:.3f}", "ok")
                    results.add(*row)
            rate = {k: volume / statistics.median(v) / 1e3 for k, v in times.items()}
            print(
                f"{head} {shown(times['step']):>25} {rate['step']:6.1f} "
                f"{shown(times['ce']):>25} {shown(times['copy']):>25} "
                f"{rate['copy']:6.1f} {shown(ratios(times, 'step', 'ce')):>20} "
                f"{shown(ratios(times, 'step', 'copy')):>20}",
                flush=True,
            )


if __name__ == "__main__":
    main()
