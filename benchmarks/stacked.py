"""Seconds of a search whose networks are trained in stacks, compared with one by one.

scikit-learn's `GridSearchCV(n_jobs=1)` and `StackedGridSearchCV(stack=True)` search the
same grid on scikit-learn's digits, without the final fit on all data: candidates of
`prior_strength` and `lr` on five folds. The cases differ in network and batches:

- table: the default network (two layers of 128) on rows of 64 pixels, 30 fits
- narrow, middle, wide: one layer of 32, two of 64, two of 256
- batches of 32: the default network, with four times as many steps
- calibrated: the default fit, whose calibration trains two further networks
- pipeline: a StandardScaler and the classifier
- batches of 512: the default network, with fewer and longer steps
- two, five, ten fits: as table, with fewer candidates and folds
- images: a small residual network on images of 8 x 8 pixels, 15 fits

Every round runs each search once, in changing order; ratios are computed within a
round. On the CPU the clock is the CPU time of the process, so that other processes have
little influence; with one thread, it equals the elapsed time on an idle machine.
`difference` is the largest difference between log losses of the same fold: networks
that are trained long in float32 diverge by rounding.

    python benchmarks/stacked.py [--threads 1] [--output stacked.csv] [--cases GLOB ...]
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _common import (
    NO_CUDA,
    Results,
    machine,
    matching,
    ratios,
    rounds,
    spread,
    stop_at_interrupt,
    synchronize,
)
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier
from skbsd.model_selection import StackedGridSearchCV

STRENGTHS, RATES = ("auto", 20.0, 100.0), (3e-3, 1e-2)
COLUMNS = ("case", "device", "method", "round", "fits", "seconds", "difference")
METHODS = ("one by one", "stacked")


class Case(NamedTuple):
    """A search.

    Parameters
    ----------
    name : str
    parameters : dict
        Arguments of the classifier.
    n_folds : int
    strengths, rates : tuple
        Candidates for `prior_strength` and `lr`.
    images, scaled : bool
        Whether rows are images, and whether a StandardScaler comes first.
    """

    name: str
    parameters: dict[str, Any]
    n_folds: int = 5
    strengths: tuple = STRENGTHS
    rates: tuple = RATES
    images: bool = False
    scaled: bool = False

    @property
    def n_fits(self) -> int:
        """Number of networks that are scored."""
        return self.n_folds * len(self.strengths) * len(self.rates)


ONE = {"strengths": STRENGTHS[:1], "rates": RATES[1:]}
CASES = [
    Case("table", {}),
    Case("narrow", {"module__hidden": (32,)}),
    Case("middle", {"module__hidden": (64, 64)}),
    Case("wide", {"module__hidden": (256, 256)}),
    Case("batches of 32", {"batch_size": 32}),
    Case("batches of 512", {"batch_size": 512}),
    Case("calibrated", {"calibration": "auto"}),
    Case("pipeline", {}, scaled=True),
    Case("two fits", {}, n_folds=2, **ONE),
    Case("five fits", {}, n_folds=5, **ONE),
    Case("ten fits", {}, n_folds=5, strengths=STRENGTHS[:1]),
    Case("images", {"module__widths": (8, 16)}, rates=RATES[1:], images=True),
]


def search(case: Case, method: str, device: str, n_epochs: int):
    """Return the search of a case, not yet fitted."""
    parameters = {"calibration": None, "max_epochs": n_epochs, "random_state": 0}
    model: Any = BSDClassifier(device=device, **(parameters | case.parameters))
    prefix = ""
    if case.scaled:
        model, prefix = make_pipeline(StandardScaler(), model), "bsdclassifier__"
    grid = {
        f"{prefix}prior_strength": list(case.strengths),
        f"{prefix}lr": list(case.rates),
    }
    options = {"cv": case.n_folds, "scoring": "neg_log_loss", "refit": False}
    if method == "stacked":
        return StackedGridSearchCV(model, grid, stack=True, max_stack=256, **options)
    return GridSearchCV(model, grid, **options)


def scores(fitted: Any, n_folds: int) -> np.ndarray:
    """Return the score of each fit."""
    results = fitted.cv_results_
    return np.array([results[f"split{i}_test_score"] for i in range(n_folds)])


def measure(case: Case, device: str, args, results: Results) -> None:
    """Time a case in all rounds, and print a line."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    if case.images:
        X = X.reshape(-1, 1, 8, 8)
    found: dict[str, np.ndarray] = {}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for method in METHODS:  # warm-up
        fitted = search(case, method, device, 1).fit(X, y)
    assert fitted.n_stacked_ == case.n_fits
    for i, method in rounds(args.rounds, METHODS):
        synchronize(device)
        clock = time.process_time if device == "cpu" else time.perf_counter
        began = clock()
        fitted = search(case, method, device, args.epochs).fit(X, y)
        synchronize(device)
        times[method].append(clock() - began)
        found[method] = scores(fitted, case.n_folds)
        difference = np.ptp(np.stack(list(found.values())), axis=0).max()
        seconds = f"{times[method][-1]:.3f}"
        results.add(
            case.name, device, method, i, case.n_fits, seconds, f"{difference:.1e}"
        )
    print(
        f"{device:5} {case.name:14} {case.n_fits:5} {spread(times['one by one'], 2)} "
        f"{spread(times['stacked'], 2)} {spread(ratios(times, *METHODS[::-1]), 2)} "
        f"{difference:10.1e}",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    stop_at_interrupt()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(machine())
    print("seconds of a search, and their ratio: median, min, max\n")
    print(
        f"{'':20} {'fits':>5} {'one by one':>29} {'stacked':>29} {'ratio':>29} "
        f"{'difference':>10}"
    )
    results = Results(args.output, COLUMNS)
    for device in args.devices:
        if device == "cuda" and not torch.cuda.is_available():
            print(f"{device:5} {NO_CUDA}")
            continue
        for case in matching(CASES, args.cases, "case"):
            measure(case, device, args, results)


if __name__ == "__main__":
    main()
