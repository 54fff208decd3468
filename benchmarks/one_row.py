"""Microseconds of `predict_proba` for few rows of a table.

One after the other in interleaved rounds, for 1 to 1,000 rows of float64 in 20 columns:
`BSDClassifier` as it is by default; the same network bare, called on a float32 tensor
under `no_grad`; `MLPClassifier` of the same layers; skorch's classifier around the
network, on float32 rows. A measurement is the mean of as many calls as take 2 ms.
`--clock cpu` counts the seconds of the processor, for a machine that others share.

    python benchmarks/one_row.py --clock cpu --threads 1 --output benchmarks/one_row.csv
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _common import Results, machine, ratios, rounds
from sklearn.datasets import make_classification
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier

from skbsd import BSDClassifier
from skbsd.networks import MLP

SIZES = (1, 10, 100, 1000)
HIDDEN = (128, 128)
COLUMNS = ("rows", "method", "round", "clock", "microseconds")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_SECONDS = 0.002


def predictors() -> tuple[np.ndarray, dict[str, Callable[[np.ndarray], object]]]:
    """Return a table, and what predicts rows of it, by name."""
    X, y = make_classification(2000, 20, n_informative=10, n_classes=3, random_state=0)
    narrow = X.astype(np.float32)
    model = BSDClassifier(max_epochs=3, random_state=0).fit(X, y)
    other = MLPClassifier(HIDDEN, max_iter=3, random_state=0)
    net = NeuralNetClassifier(
        MLP,
        module__in_features=20,
        module__n_classes=3,
        criterion=torch.nn.CrossEntropyLoss,
        max_epochs=3,
        verbose=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that three epochs are few
        other.fit(X, y)
    net.fit(narrow, y)
    tensor = torch.tensor(narrow)

    def bare(x: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return model.module_(tensor[: len(x)])

    return X, {
        "skbsd": model.predict_proba,
        "bare": bare,
        "MLPClassifier": other.predict_proba,
        "skorch": lambda x: net.predict_proba(narrow[: len(x)]),
    }


def measure(
    call: Callable[[np.ndarray], object], x: np.ndarray, clock: Callable[[], float]
) -> float:
    """Return the microseconds of a call; one before it warms up."""

    def seconds(repeats: int) -> float:
        begin = clock()
        for _ in range(repeats):
            call(x)
        return clock() - begin

    repeats = max(1, round(_SECONDS / max(seconds(1), 1e-6)))
    return 1e6 * seconds(repeats) / repeats


def quartiles(values: list[float], digits: int) -> str:
    """Format the median, and the quartiles about it."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:8.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(machine())
    results = Results(args.output, COLUMNS)
    X, calls = predictors()
    others = [name for name in calls if name != "skbsd"]
    print("microseconds, median (quartiles); ratios of skbsd's within rounds")
    for size in SIZES:
        x = X[:size]
        times: dict[str, list[float]] = {name: [] for name in calls}
        for i, name in rounds(args.rounds, calls):
            times[name].append(measure(calls[name], x, CLOCKS[args.clock]))
            results.add(size, name, i, args.clock, f"{times[name][-1]:.1f}")
        for name, values in times.items():
            print(f"{size:5} {name:14} {quartiles(values, 1)}")
        for name in others:
            print(f"{size:5} / {name:12} {quartiles(ratios(times, 'skbsd', name), 2)}")


if __name__ == "__main__":
    main()
