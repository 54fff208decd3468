"""Compare ways to train a network on a fixed panel of data, networks and label noise.

The cells (settings) of a panel are in `_panel.py`, the methods in `baselines.py`.
Within a cell all methods get the same arguments: network, epochs, batches of 128,
optimizer and learning rate of BSDClassifier, schedule, augmentation, and the seed,
which also draws the training samples and the wrong labels. Panels, each with three
seeds that no other panel has:

- tuning: for the choice of settings;
- final: other sizes, widths and seeds, for the reported results;
- large: ResNet-18 and ResNet-50 on all of CIFAR-10, for a GPU (SGD with Nesterov
  momentum 0.9, learning rate 0.1, weight decay 5e-4).

Every run has its own process, so that its peak memory can be measured. Processes are
forked from a server that has only imported the packages: a run does not wait for
imports, and starts without threads and without a CUDA context. The peak is that of the
resident set on the CPU, including packages and data, and on CUDA that of torch's
allocations. A short fit of BSDClassifier runs first, whatever the method, so that
`seconds` does not include one-time costs of the process; `cpu_seconds` is the CPU time
of the fit, for machines that other processes use too.

A row is appended when a run is finished, and runs that are in the file are not
repeated, so the script can be killed and restarted at any time. Failed runs are not
recorded; their errors are shown at the end. The order is by seed, then by cell, then by
method: methods to be compared run close together, and a panel that was stopped has
complete cells.

CE, label smoothing, temperature, BSD and BSD noisy run on all cells. The other methods
run if they are named, or with --all; on the four cells that are marked for them with
the first seed, or with --full on all cells. Metrics are computed with true labels, and
are fractions, not percentages. train_accuracy is computed with the given labels, on at
most 2,000 samples; memorised is the fraction of the wrong labels among these that the
network predicts. Tables are scored on out-of-fold predictions.

    python benchmarks/compare.py --panel tuning --output compare.csv
    python benchmarks/compare.py --cells 'digits-*' --methods CE BSD --seeds 0
    python benchmarks/compare.py --panel final --report --tables docs/evidence
"""

import argparse
import importlib
import multiprocessing as mp
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import sklearn
import torch
from _common import (
    Results,
    add_data_arguments,
    machine,
    print_failures,
    stop_at_interrupt,
)
from _panel import PANELS, SEEDS, Cell, Source, Split, choose, load
from _report import read, report
from sklearn.metrics import accuracy_score, log_loss
from threadpoolctl import threadpool_limits

import skbsd
from skbsd import BSDClassifier
from skbsd.metrics import (
    brier_decomposition,
    expected_calibration_error,
    smooth_calibration_error,
)

HERE = Path(__file__).resolve().parent
# Methods whose times are compared follow one another.
EVERYWHERE = ("CE", "BSD", "BSD noisy", "label smoothing", "temperature")
MOST_TRAINING_SAMPLES = 2_000  # for the scores on training data
ABOUT = ("panel", "cell", "method", "dataset", "network", "n", "epochs")
ABOUT = (*ABOUT, "noise", "noise_kind", "seed")
SCORES = ("accuracy", "ece", "ece_quantile", "classwise_ece", "smece", "nll", "brier")
SCORES = (*SCORES, "brier_miscalibration", "train_accuracy", "memorised")
COSTS = ("seconds", "cpu_seconds", "predict_seconds", "peak_memory_mb")


@dataclass(frozen=True)
class Run:
    """One training, or one for each fold of a table."""

    cell: Cell
    method: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Cell, method and seed, which identify the run."""
        return self.cell.name, self.method, self.seed

    def row(self, figures: dict) -> list:
        """Return the row of the results."""
        c = self.cell
        about = (c.panel, c.name, self.method, c.dataset, c.network, c.n, c.epochs)
        values = (f"{figures[name]:.6g}" for name in (*SCORES, *COSTS))
        return [*about, c.noise, c.noise_kind, self.seed, *values]


def plan(cells, methods, seeds, *, full: bool = False) -> list[Run]:
    """List the runs in order; the module's docstring says which methods run where."""
    return [
        Run(cell, method, seed)
        for seed in seeds
        for cell in cells
        for method in methods
        if full or method in EVERYWHERE or (cell.rivals and seed == seeds[0])
    ]


def scores(y, proba, labels) -> dict[str, float]:
    """Return the metrics of predicted probabilities."""
    # In float32, log_loss would clip probabilities further from 0 and 1.
    proba = proba.astype(np.float64)
    proba /= proba.sum(axis=1, keepdims=True)
    ece = {"uniform": {}, "quantile": {"strategy": "quantile"}}
    ece["classwise"] = {"multiclass": "classwise"}
    uniform, quantile, classwise = (
        expected_calibration_error(y, proba, labels=labels, **kwargs)
        for kwargs in ece.values()
    )
    brier = brier_decomposition(y, proba, labels=labels)
    return {
        "accuracy": accuracy_score(y, labels[proba.argmax(axis=1)]),
        "ece": uniform,
        "ece_quantile": quantile,
        "classwise_ece": classwise,
        "smece": smooth_calibration_error(y, proba, labels=labels),
        "nll": log_loss(y, proba, labels=labels),
        "brier": brier.score,
        "brier_miscalibration": brier.miscalibration,
    }


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(build, cell: Cell, seed: int, splits: list[Split]) -> dict[str, float]:
    """Train and test a method on a cell, in this process."""
    arguments = cell.arguments(seed)
    X, y = splits[0].X[:256], splits[0].true[:256]
    warm = BSDClassifier(**{**arguments, "max_epochs": 1}).fit(X, y)
    warm.predict_proba(X)
    device = warm.device_
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    proba, hits, wrong = [], [], []
    taken = used = predicting = 0.0
    for split in splits:
        model = build(**arguments)
        start, start_used = time.perf_counter(), time.process_time()
        model.fit(split.X, split.given)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken += time.perf_counter() - start
        used += time.process_time() - start_used
        start = time.perf_counter()
        proba.append(model.predict_proba(split.X_test))
        predicting += time.perf_counter() - start

        # The folds divide the samples for training scores among them.
        some = slice(MOST_TRAINING_SAMPLES // len(splits))
        predicted = model.predict_proba(split.X[some]).argmax(axis=1)
        hits.append(model.classes_[predicted] == split.given[some])
        wrong.append(split.given[some] != split.true[some])
    hit, flipped = np.concatenate(hits), np.concatenate(wrong)
    y_test = np.concatenate([split.y_test for split in splits])
    return {
        **scores(y_test, np.concatenate(proba), model.classes_),
        "train_accuracy": hit.mean(),
        "memorised": hit[flipped].mean() if flipped.any() else np.nan,
        "seconds": taken,
        "cpu_seconds": used,
        "predict_seconds": predicting,
        "peak_memory_mb": peak_memory(device),
    }


def child(connection, registry: str, run: Run, splits, threads: int) -> None:
    """Do a run in this new process, and send its figures or its traceback."""
    # An interrupt would end a fit that then counts as complete; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        build = importlib.import_module(registry).METHODS[run.method]
        with threadpool_limits(threads):
            connection.send((measure(build, run.cell, run.seed, splits), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))


def _end_with_parent() -> None:
    wait([mp.parent_process().sentinel])
    os._exit(1)


class Runner:
    """Does each run in a new process.

    Parameters
    ----------
    registry : str
        Name of the module with the methods, which each process imports.
    source : Source
        Location of CIFAR-10.
    threads : int
        Threads per process.
    """

    def __init__(self, registry: str, source: Source, threads: int):
        self.registry = registry
        self.source = source
        self.threads = threads
        forks = "forkserver" in mp.get_all_start_methods()
        self.context = mp.get_context("forkserver" if forks else "spawn")
        if forks:
            packages = ["skbsd", "skbsd.metrics", "torchvision", "threadpoolctl"]
            self.context.set_forkserver_preload(packages)

    def __call__(self, run: Run) -> tuple[dict | None, str | None]:
        """Return the figures and None, or None and an error message."""
        try:
            splits = load(run.cell, run.seed, self.source)
            here, there = self.context.Pipe(duplex=False)
            arguments = (there, self.registry, run, splits, self.threads)
            process = self.context.Process(target=child, args=arguments, daemon=True)
            process.start()
        except Exception:
            return None, traceback.format_exc()
        there.close()
        try:
            return here.recv()
        except EOFError:
            process.join()
            return None, f"the process ended with exit code {process.exitcode}"
        finally:
            process.join()
            here.close()

    def stop(self) -> None:
        """End the running processes."""
        for process in mp.active_children():
            process.terminate()


class Progress:
    """Prints a line for each run, with an estimate of the remaining time.

    Each remaining run is expected to last as long as finished runs of its cell, or of
    all cells if there are none.
    """

    def __init__(self, runs: list[Run], jobs: int, rows: list[dict]):
        self.left = Counter(run.cell.name for run in runs)
        self.total = len(runs)
        self.jobs = jobs
        self.times: dict[str, list[float]] = {}
        for row in rows:
            self.times.setdefault(row["cell"], []).append(row["seconds"])

    def seconds_left(self) -> float:
        """Estimate the time until all runs are done."""
        means = {cell: float(np.mean(times)) for cell, times in self.times.items()}
        usual = float(np.mean([*means.values()])) if means else 0.0
        expected = (n * means.get(cell, usual) for cell, n in self.left.items())
        return sum(expected) / self.jobs

    def show(self, run: Run, figures: dict | None) -> None:
        """Print the main figures of a run."""
        self.left[run.cell.name] -= 1
        width = len(str(self.total))
        done = self.total - self.left.total()
        start = f"{done:{width}}/{self.total} {run.cell.name} {run.method!r} {run.seed}"
        if figures is None:
            print(f"{start} FAILED", flush=True)
            return
        self.times.setdefault(run.cell.name, []).append(figures["seconds"])
        print(
            f"{start}: accuracy {figures['accuracy']:.2%}, ECE {figures['ece']:.2%}, "
            f"NLL {figures['nll']:.4f}, {figures['seconds']:.1f} s; "
            f"{self.seconds_left() / 60:.0f} min left",
            flush=True,
        )


def execute(runs: list[Run], runner: Runner, results: Results, jobs: int) -> dict:
    """Do the runs that are not in the results yet; return the errors of failed runs."""
    rows = read(results.file)
    done = {(row["cell"], row["method"], row["seed"]) for row in rows}
    todo = [run for run in runs if run.key not in done]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them done before", flush=True)
    progress = Progress(todo, jobs, rows)
    errors = {}
    executor = ThreadPoolExecutor(jobs)  # each waits for the process of a run
    try:
        futures = {executor.submit(runner, run): run for run in todo}
        for future in as_completed(futures):
            run = futures[future]
            figures, error = future.result()
            if figures is None:
                errors[run.key] = error
            else:
                results.add(*run.row(figures))
            progress.show(run, figures)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        runner.stop()
    print_failures(errors)
    return errors


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cpus = os.cpu_count() or 1
    parser.add_argument("--panel", choices=PANELS, default="tuning")
    parser.add_argument("--cells", nargs="+", default=["*"], help="names or globs")
    parser.add_argument("--methods", nargs="+", help="default: those for all cells")
    parser.add_argument("--all", action="store_true", help="all methods")
    parser.add_argument("--full", action="store_true", help="all methods on all cells")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the panel's own")
    parser.add_argument("--jobs", type=int, default=cpus, help="runs at a time")
    parser.add_argument("--output", type=Path, default=HERE / "compare.csv")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--tables", type=Path, help="folder for the tables as markdown")
    parser.add_argument(
        "--image",
        type=Path,
        help="picture; default with --report: docs/images/compare_<panel>.png",
    )
    parser.add_argument(
        "--registry", default="baselines", help="module with the methods"
    )
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    args.seeds = args.seeds or SEEDS[args.panel]
    try:
        args.chosen = choose(args.panel, args.cells)
    except ValueError as error:
        parser.error(str(error))
    if args.report and args.image is None:
        args.image = HERE.parent / f"docs/images/compare_{args.panel}.png"
    return args


def choose_methods(args) -> list[str]:
    """Return the names of the methods to run."""
    known = importlib.import_module(args.registry).METHODS
    usual = [name for name in EVERYWHERE if name in known]
    if args.all:
        return [*usual, *(name for name in known if name not in usual)]
    unknown = set(args.methods or ()) - set(known)
    if unknown:
        sys.exit(f"no such method: {sorted(unknown)}; there are {sorted(known)}")
    if not args.methods and len(usual) < len(EVERYWHERE):
        print(f"not available: {', '.join(set(EVERYWHERE) - set(usual))}")
    return args.methods or usual


def main(argv=None) -> int:
    args = parse_arguments(argv)
    errors = {}
    if not args.report:
        stop_at_interrupt()
        threads = max(1, (os.cpu_count() or 1) // args.jobs)
        print(f"{machine()}; {args.jobs} jobs of {threads} threads")
        print(f"skbsd {skbsd.__version__}, scikit-learn {sklearn.__version__}")
        results = Results(args.output, (*ABOUT, *SCORES, *COSTS))
        runs = plan(args.chosen, choose_methods(args), args.seeds, full=args.full)
        source = Source(args.data, args.npz)
        errors = execute(
            runs, Runner(args.registry, source, threads), results, args.jobs
        )
    names = {cell.name for cell in args.chosen}
    rows = [
        row
        for row in read(args.output)
        if row["cell"] in names and row["seed"] in args.seeds
    ]
    report(rows, args.panel, tables=args.tables, image=args.image)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
