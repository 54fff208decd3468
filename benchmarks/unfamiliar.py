"""How well scores of a network's outputs tell samples of a kind that it has not seen.

About 40 % of the classes are left out of training. The test samples of the classes that
were learnt are the familiar ones; the unfamiliar ones are

- "classes": test samples of the classes that were left out. They are near;
- "shuffled": familiar samples whose columns are permuted one by one, or images cut in
  4 x 4 patches that are laid in another order;
- "noise": values drawn uniformly from the range of the training data;
- "digits" and "corrupted", for CIFAR-10 only: scikit-learn's digits, and familiar
  images under Gaussian noise, defocus blur and fog of severity 5 (`_corruptions.py`).

Each score is larger for what is more familiar, and is measured by the AUROC of telling
familiar test samples from unfamiliar ones; 0.5 is chance. z are the logits, and T and b
the temperature and the bias that `fit` has found:

- "probability", "entropy": the largest probability, and the negative entropy, of
  softmax(z); "calibrated probability", of softmax(z / T + b);
- "logit": max z;
- "energy": log sum exp z (W. Liu et al., "Energy-based Out-of-distribution Detection",
  NeurIPS 2020, arXiv:2010.03759); "calibrated energy", of z / T + b.

The score of `BSDClassifier.score_samples` was chosen by the tuning panel; what is said
of it is from the final panel, which has other seeds, other tables and other networks.
Rows are appended as they come, and what the file holds is not measured again.

    python benchmarks/unfamiliar.py tuning --npz FOLDER --output unfamiliar.csv
    python benchmarks/unfamiliar.py final --tasks "cifar10-*" --npz FOLDER
    python benchmarks/unfamiliar.py final --report
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import _tables
import numpy as np
import torch
from _common import (
    Results,
    add_data_arguments,
    load_cifar10,
    machine,
    matching,
    read_rows,
    stop_at_interrupt,
)
from _corruptions import corrupt, digits, shuffled_patches, uniform_noise
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from skbsd import BSDClassifier
from skbsd.calibration import Calibration
from skbsd.label_noise import flip_labels
from skbsd.networks import SmallResNet

HERE = Path(__file__).resolve().parent
COLUMNS = ("task", "method", "seed", "unfamiliar", "score", "auroc")
METHODS = {"CE": {"prior_strength": math.inf}, "BSD": {}}
SEEDS = {"tuning": (60, 61, 62), "final": (70, 71, 72)}  # no other panel has them
HELD_OUT = 0.4  # share of the classes that are not learnt
CIFAR10_TEST = 2_000
CORRUPTED = ("gaussian_noise", "defocus_blur", "fog")


class Blocks(nn.Sequential):
    """`SpaceToDepth` of the panel, for the six classes of CIFAR-10 that are learnt."""

    def __init__(self, widths):
        super().__init__(nn.PixelUnshuffle(2), SmallResNet(12, 6, tuple(widths)))


class Data(NamedTuple):
    """Training data, familiar test samples, and unfamiliar ones by their kind."""

    X: np.ndarray
    y: np.ndarray
    familiar: np.ndarray
    unfamiliar: dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """Samples to learn, and others to be told from them.

    Parameters
    ----------
    name : str
        Says all that distinguishes the task, without spaces.
    load : callable
        Returns the data for a seed and the command's arguments.
    parameters : dict
        Arguments of the classifier.
    """

    name: str
    load: Callable[[int, argparse.Namespace], Data]
    parameters: dict = field(default_factory=dict, hash=False)


def left_out(classes: np.ndarray, seed: int) -> np.ndarray:
    """Draw the classes that are not learnt; two at least are."""
    n = max(1, min(round(HELD_OUT * len(classes)), len(classes) - 2))
    return np.random.default_rng(seed).choice(classes, n, replace=False)


def rows_data(table: _tables.Task, seed: int, args: argparse.Namespace) -> Data:
    """Leave classes out of a table of `_tables.py`.

    Half of the remaining samples are learnt, or what the table's task learns, if that
    is fewer.
    """
    X, y = table.source(seed)
    unknown = np.isin(y, left_out(np.unique(y), seed))
    n = min(table.n_train, (~unknown).sum() // 2)
    X_train, X_test, y_train, _ = train_test_split(
        X[~unknown], y[~unknown], train_size=n, stratify=y[~unknown], random_state=seed
    )
    strange = X[unknown]
    if table.scaled:
        scaler = StandardScaler().fit(X_train)
        X_train, X_test, strange = map(scaler.transform, (X_train, X_test, strange))
    if table.noise:
        share = int(table.noise.split()[1]) / 100
        y_train = flip_labels(y_train, share, random_state=seed)[0]
    rng = np.random.default_rng(seed)
    noise = rng.uniform(X_train.min(axis=0), X_train.max(axis=0), X_test.shape)
    unfamiliar = {
        "classes": strange,
        "shuffled": rng.permuted(X_test, axis=0),
        "noise": noise,
    }
    return Data(
        X_train.astype(np.float32),
        y_train,
        X_test.astype(np.float32),
        {kind: shown.astype(np.float32) for kind, shown in unfamiliar.items()},
    )


@lru_cache(maxsize=1)
def _cifar10(data: Path, npz: Path | None):
    args = argparse.Namespace(data=data, npz=npz)
    return (*load_cifar10(args, 10_000), *load_cifar10(args, CIFAR10_TEST, train=False))


def cifar10_data(n: int, seed: int, args: argparse.Namespace) -> Data:
    """Leave four classes of CIFAR-10 out, and draw n images of the others."""
    X, y, X_test, y_test = _cifar10(args.data, args.npz)
    held = left_out(np.arange(10), seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(~np.isin(y, held)))[:n]
    unknown = np.isin(y_test, held)
    familiar = X_test[~unknown]
    blurred = np.array_split(familiar, len(CORRUPTED))
    parts = zip(blurred, CORRUPTED, strict=True)
    unfamiliar = {
        "classes": X_test[unknown],
        "shuffled": shuffled_patches(familiar, rng),
        "noise": uniform_noise(familiar, rng),
        "digits": digits(familiar, rng),
        "corrupted": np.concatenate([corrupt(x, name, 5, rng) for x, name in parts]),
    }
    return Data(X[rows], y[rows], familiar, unfamiliar)


def _table(panel: str, name: str) -> Task:
    (table,) = matching(_tables.PANELS[panel], [name], "table")

    def load(seed, args):
        return rows_data(table, seed, args)

    return Task(table.name, load, table.parameters)


def _images(name: str, n: int, *widths: int, **parameters) -> Task:
    network = {"module": Blocks, "module__widths": widths}

    def load(seed, args):
        return cifar10_data(n, seed, args)

    # Cheaper than cross-fitting: a single network is trained.
    about = {"calibration": "hold-out", "augmentation": "flip-crop"}
    parameters = {**about, **network, **parameters}
    return Task(f"cifar10-{name}-n{n}", load, parameters)


_TABLES = {
    "tuning": (
        "digits-n500",
        "digits-n1000-sym30",
        "iris-n75",
        "made5-n700",
        "made50-n3000",
        "chile-n1200",
    ),
    "final": (
        "digits-n700",
        "digits-images-n450",
        "digits-n800-sym40",
        "wine-n70",
        "made6-n1200",
        "easy4-n600",
        "yogurt-n1200",
    ),
}
_CIFAR10 = {
    "tuning": _images("resnet-64", 1_500, 16, 32, 64, max_epochs=20),
    "final": _images("resnet-48", 2_000, 16, 24, 48, max_epochs=20),
}
PANELS = {
    panel: (*(_table(panel, name) for name in names), _CIFAR10[panel])
    for panel, names in _TABLES.items()
}


def scores(logits: Tensor, calibration: Calibration) -> dict[str, Tensor]:
    """Return each score of the samples, by its name.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        As the network returns them.
    calibration : Calibration
        Of these logits.
    """
    z = logits.double()
    scaled = calibration.scaled(z)
    log_proba = z.log_softmax(dim=1)
    return {
        "probability": log_proba.amax(dim=1),
        "calibrated probability": scaled.log_softmax(dim=1).amax(dim=1),
        "entropy": (log_proba.exp() * log_proba).sum(dim=1),
        "logit": z.amax(dim=1),
        "energy": z.logsumexp(dim=1),
        "calibrated energy": scaled.logsumexp(dim=1),
    }


def aurocs(known: dict[str, Tensor], strange: dict[str, Tensor]) -> dict[str, float]:
    """Return how well each score tells the known samples from the strange ones."""
    return {
        name: float(
            roc_auc_score(
                np.repeat([1, 0], [len(values), len(strange[name])]),
                torch.cat([values, strange[name]]).numpy(),
            )
        )
        for name, values in known.items()
    }


def measure(task: Task, method: str, seed: int, args) -> list[tuple]:
    """Train once, and return rows of the results."""
    data = task.load(seed, args)
    parameters = {"device": "cpu", **task.parameters, **METHODS[method]}
    model = BSDClassifier(**parameters, random_state=seed).fit(data.X, data.y)

    def of(X):
        return scores(model.forward(X), model.calibration_)

    known = of(data.familiar)
    return [
        (task.name, method, seed, kind, name, f"{value:.6g}")
        for kind, shown in data.unfamiliar.items()
        for name, value in aurocs(known, of(shown)).items()
    ]


def run(args) -> None:
    """Measure what the file lacks."""
    results = Results(args.output, COLUMNS)
    rows = read_rows(args.output, text=COLUMNS[:2] + COLUMNS[3:5], whole=("seed",))
    done = {(row["task"], row["method"], row["seed"]) for row in rows}
    for task in matching(PANELS[args.panel], args.tasks, "task"):
        for seed in SEEDS[args.panel]:
            for method in METHODS:
                if (task.name, method, seed) in done:
                    continue
                start = time.perf_counter()
                for row in measure(task, method, seed, args):
                    results.add(*row)
                seconds = time.perf_counter() - start
                print(f"{task.name}, {method}, {seed}: {seconds:.0f} s", flush=True)


def spread(values: list[float]) -> str:
    """Format shares as per cent: the mean, and the deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.1f}" if values[1:] else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def report(panel: str, file: Path) -> str:
    """Return tables of a panel: per kind of the unfamiliar, and per task.

    A figure per seed is the mean over tasks; the deviation is that of these.
    """
    names = {task.name for task in PANELS[panel]}
    rows = read_rows(file, text=COLUMNS[:2] + COLUMNS[3:5], whole=("seed",))
    rows = [r for r in rows if r["task"] in names and r["seed"] in SEEDS[panel]]
    shown = [*dict.fromkeys(row["score"] for row in rows)]
    lines = [f"# AUROC in % of familiar against unfamiliar samples, {panel} panel", ""]
    keys = [(r["task"], r["unfamiliar"]) for r in rows]
    kinds = [*dict.fromkeys(kind for _, kind in keys)]
    groups = {f"all tasks, {kind}": {k for k in keys if k[1] == kind} for kind in kinds}
    groups["all"] = set(keys)
    groups |= {f"{task}, {kind}": {(task, kind)} for task, kind in dict.fromkeys(keys)}
    for method in METHODS:
        head = [method, *shown]
        lines += [f"| {' | '.join(head)} |", "|---" + "|---:" * len(shown) + "|"]
        for title, group in groups.items():
            cells = []
            for name in shown:
                of_seed: dict[int, list[float]] = {}
                for r in rows:
                    about = (r["method"], r["score"]) == (method, name)
                    if about and (r["task"], r["unfamiliar"]) in group:
                        of_seed.setdefault(r["seed"], []).append(100 * r["auroc"])
                means = [statistics.fmean(values) for values in of_seed.values()]
                cells.append(spread(means) if means else "")
            lines.append(f"| {' | '.join([title, *cells])} |")
        lines.append("")
    return "\n".join(lines)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("panel", choices=PANELS)
    parser.add_argument("--tasks", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--output", type=Path, default=HERE / "unfamiliar.csv")
    parser.add_argument("--report", action="store_true", help="run nothing")
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    if not args.report:
        stop_at_interrupt()
        torch.set_num_threads(1)
        print(machine())
        with threadpool_limits(1):
            run(args)
    print(report(args.panel, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
