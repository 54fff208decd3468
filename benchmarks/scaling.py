"""One fit with several processes: time, memory and bytes exchanged.

    python benchmarks/scaling.py --ranks 1 2 --output benchmarks/scaling.csv

Each measurement is a training by `torchrun` with a number of processes, of one thread
each on the CPU, or with one GPU each. In a round, every number of processes is measured
once. "strong" keeps the total batch size; "weak" keeps the batch size and the number of
samples of each process; "apart" trains independently in each process, which is the
limit of the machine without an exchange. The efficiency is the number of samples per
second and process, relative to that of one process in the same round.

`bytes/step` are the bytes of gradients that a process exchanges in a step, and
`bytes/epoch` the bytes of everything else (results of the epoch, statistics of
normalisation), both counted at the calls of torch.distributed. `memory` is the peak of
a process (on the GPU if there is one), and `beliefs` are the bytes of its part of the
posterior.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from _common import Results, machine, ratios, rounds, spread

from skbsd import BSDClassifier
from skbsd.networks import MLP, SmallResNet

COLUMNS = (
    "case",
    "scaling",
    "ranks",
    "round",
    "samples_per_s",
    "memory_mb",
    "beliefs_mb",
    "bytes_per_step",
    "bytes_per_epoch",
    "device",
)
# Network, its options, shape of a sample, classes, samples and batch size per process.
CASES = {
    "mlp": (MLP, {"hidden": (1024, 1024)}, (256,), 100, 20_000, 512),
    "resnet": (SmallResNet, {}, (3, 16, 16), 10, 2_048, 128),
}


def data(shape: tuple[int, ...], n_classes: int, n: int):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, *shape)).astype(np.float32)
    return X, np.arange(n) % n_classes


class Counted:
    """Counts the bytes that are passed to torch.distributed."""

    def __init__(self):
        self.gradients = self.others = 0
        reduce, broadcast = dist.all_reduce, dist.broadcast

        def all_reduce(tensor, *args, **kwargs):
            if kwargs.get("async_op"):
                self.gradients += tensor.nbytes
            else:
                self.others += tensor.nbytes
            return reduce(tensor, *args, **kwargs)

        def broadcasted(tensor, *args, **kwargs):
            self.others += tensor.nbytes
            return broadcast(tensor, *args, **kwargs)

        dist.all_reduce, dist.broadcast = all_reduce, broadcasted


def work(args) -> None:
    """Train in one of several processes, and print the measurements as JSON."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    kind, options, shape, n_classes, n, batch = CASES[args.case]
    factor = size if args.scaling == "weak" else 1
    X, y = data(shape, n_classes, n * factor)
    first = {"in_features": shape[0]} if kind is MLP else {"in_channels": shape[0]}
    model = BSDClassifier(
        kind,
        **{f"module__{k}": v for k, v in (first | options).items()},
        module__n_classes=n_classes,
        max_epochs=args.epochs,
        batch_size=batch * factor,
        calibration=None,
        gather_posterior=False,
        random_state=0,
        device=args.device,
    )
    counted = Counted()
    model.fit(X, y)
    # The first epoch includes one-time costs.
    seconds = statistics.median(model.history_[1:, "dur"])
    steps = len(model.history_[0, "batches"]) * args.epochs
    on_gpu = model.device_.type == "cuda"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    state = model.posterior_.state_dict()
    found = {
        "samples_per_s": len(X) / seconds,
        "memory_mb": (torch.cuda.max_memory_allocated() if on_gpu else peak) / 1e6,
        "beliefs_mb": sum(t.nbytes for t in state.values()) / 1e6,
        "bytes_per_step": counted.gradients / steps,
        "bytes_per_epoch": counted.others / args.epochs,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }
    if int(os.environ.get("RANK", 0)) == 0:
        print("FOUND", json.dumps(found))


def measure(args, case: str, scaling: str, ranks: int) -> dict:
    command = [sys.executable]
    if ranks > 1 and scaling != "apart":
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}"]
    command += [__file__, "--work", case, scaling, "--epochs", str(args.epochs)]
    processes = [
        subprocess.Popen(
            [*command, "--device", args.device],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(ranks if scaling == "apart" else 1)
    ]
    found = [_found(process) for process in processes]
    speed = sum(x["samples_per_s"] for x in found)
    return found[0] | {"samples_per_s": speed}


def _found(process: subprocess.Popen) -> dict:
    printed, errors = process.communicate()
    lines = [x for x in printed.splitlines() if x.startswith("FOUND ")]
    if process.returncode or not lines:
        sys.exit(printed + errors)
    return json.loads(lines[0].removeprefix("FOUND "))


def main(args) -> None:
    results = Results(args.output, COLUMNS)
    print(machine())
    for case in args.cases:
        for scaling in args.scalings:
            speeds: dict[str, list[float]] = {}
            last = {}
            for i, name in rounds(args.rounds, [str(n) for n in args.ranks]):
                found = measure(args, case, scaling, int(name))
                results.add(case, scaling, int(name), i, *found.values())
                speeds.setdefault(name, []).append(found["samples_per_s"])
                last[name] = found
            print(f"\n{case}, {scaling} scaling, {args.rounds} rounds")
            print("ranks  samples/s: median, min, max      efficiency: median, ...")
            for name in map(str, args.ranks):
                of_one = ratios(speeds, name, "1") if "1" in speeds else []
                efficiency = [r / int(name) for r in of_one] or [float("nan")]
                found = last[name]
                print(
                    f"{name:>5} {spread(speeds[name], 0)} {spread(efficiency)}  "
                    f"memory {found['memory_mb']:.0f} MB, beliefs "
                    f"{found['beliefs_mb']:.2f} MB, {found['bytes_per_step']:,.0f} "
                    f"bytes/step, {found['bytes_per_epoch']:,.0f} bytes/epoch"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES))
    scalings = ["strong", "weak", "apart"]
    parser.add_argument("--scalings", choices=scalings, nargs="+", default=scalings)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    parser.add_argument("--work", nargs=2, metavar=("CASE", "SCALING"))
    arguments = parser.parse_args()
    if arguments.work is None:
        main(arguments)
    else:
        torch.set_num_threads(1)
        arguments.case, arguments.scaling = arguments.work
        work(arguments)
