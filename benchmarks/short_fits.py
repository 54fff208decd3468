"""Log loss and time of the default calibration for short trainings.

Each task is trained for 1 to 16 epochs, with the default and with `calibration=None`,
one after the other on the same data: digits as tables and as images, generated tables
and images, some with wrong labels. "default, split" and "None, split" use a fifth of
the data for validation, on which the default calibrates ("hold-out"). Rules were chosen
on the panel "tuning"; "final" has other tasks and other seeds. Rules about wrong labels
were changed after earlier runs of its tasks; "further" was run last.

The script prints ratios of the log loss with true test labels, default over None, as
means over seeds by task and epochs. Their geometric mean and maximum, and ratios of the
CPU time follow. Everything runs in this process on one thread.

    python benchmarks/short_fits.py --output benchmarks/short_fits.csv
    python benchmarks/short_fits.py --panel final --epochs 4 --tasks wine images-n700
    python benchmarks/short_fits.py --report benchmarks/short_fits.csv
"""

import argparse
import csv
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from _common import Results, machine, stop_at_interrupt
from scipy.ndimage import gaussian_filter
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
    make_classification,
    make_gaussian_quantiles,
    make_moons,
)
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from skorch.dataset import ValidSplit

from skbsd import BSDClassifier
from skbsd.label_noise import flip_labels
from skbsd.networks import SpeedNet

EPOCHS = (1, 2, 3, 5, 8, 16)
SEEDS = {"tuning": (0, 1), "final": (30, 31), "further": (50, 51)}
TEST = 2_000  # test samples of generated data
COLUMNS = ("panel", "task", "seed", "epochs", "method", "n_train", "accuracy")
COLUMNS = (*COLUMNS, "log_loss", "temperature", "noise_rate", "cpu_seconds")
_SPLIT = {"train_split": ValidSplit(5, stratified=True)}
METHODS: dict[str, dict[str, Any]] = {
    "None": {"calibration": None},
    "default": {},
    "None, split": {"calibration": None, **_SPLIT},
    "default, split": _SPLIT,
}
_SPEED = {"module__in_channels": 1, "module__widths": (16, 32, 32)}
_SPEED = {"module": SpeedNet, **_SPEED}


class Task(NamedTuple):
    """Data and a network.

    Parameters
    ----------
    source : callable
        Returns X and y for a seed.
    n_train : int
    noise : float, default=0.0
        Fraction of training labels to replace by wrong ones.
    parameters : mapping
        Arguments of the classifier.
    """

    source: Callable[[int], tuple[np.ndarray, np.ndarray]]
    n_train: int
    noise: float = 0.0
    parameters: Mapping[str, Any] = MappingProxyType({})


def digits(seed: int, *, pixels: int = 0):
    """Return digits as rows, or as images of `pixels` by `pixels`."""
    X, y = load_digits(return_X_y=True)
    if pixels:
        X = (X / 16).reshape(-1, 1, 8, 8)
        X = np.kron(X, np.ones((1, 1, pixels // 8, pixels // 8)))
    return X.astype(np.float32), y


def diabetes(seed: int):
    """Return the progression of diabetes in thirds."""
    X, y = load_diabetes(return_X_y=True)
    return X, np.digitize(y, np.quantile(y, [1 / 3, 2 / 3]))


def made(seed: int, *, n: int, **kwargs):
    """Return a generated table with 20 columns."""
    kwargs = {"n_informative": 8, "n_redundant": 2, **kwargs}
    return make_classification(n + TEST, 20, random_state=100 + seed, **kwargs)


def quantiles(seed: int, *, n: int):
    """Return shells around a centre in ten dimensions."""
    return make_gaussian_quantiles(
        n_samples=n + TEST, n_features=10, n_classes=3, random_state=seed
    )


def moons(seed: int, *, n: int):
    """Return two moons that overlap."""
    return make_moons(n + TEST, noise=0.3, random_state=seed)


def made_images(seed: int, *, n: int, n_classes: int, pixels: int = 8):
    """Return images: a smooth pattern per class, shifted, scaled and with noise."""
    rng = np.random.default_rng(seed)
    models = gaussian_filter(
        rng.normal(size=(n_classes, pixels, pixels)), (0, pixels / 8, pixels / 8)
    )
    models /= models.std(axis=(1, 2), keepdims=True)
    y = rng.integers(n_classes, size=n + TEST)
    shifts = rng.integers(-1, 2, size=(len(y), 2))
    X = np.stack(
        [np.roll(models[k], s, (0, 1)) for k, s in zip(y, shifts, strict=True)]
    )
    X = X * rng.uniform(0.5, 1.5, size=(len(y), 1, 1)) + rng.normal(size=X.shape)
    return X[:, None].astype(np.float32), y


def _sklearn(load: Callable[..., Any], seed: int):
    return load(return_X_y=True)


_EASY = {"n_classes": 5, "class_sep": 2.0, "n_clusters_per_class": 1}
_HARD = {"n_classes": 4, "class_sep": 0.7}
_CHANCE = {"n_classes": 3, "flip_y": 0.3}
_WIDE = {"n_informative": 15, "n_classes": 6, "class_sep": 1.2}
_images = partial(digits, pixels=8)
PANELS = {
    "tuning": {
        "digits-n250": Task(digits, 250),
        "digits-n500": Task(digits, 500),
        "digits-n1200": Task(digits, 1200),
        "digits-n1200-wrong30": Task(digits, 1200, 0.3),
        "images-n200": Task(_images, 200),
        "images-n450": Task(_images, 450),
        "images-n1200": Task(_images, 1200),
        "images-n1200-wrong30": Task(_images, 1200, 0.3),
        "speednet-n600": Task(partial(digits, pixels=16), 600, 0.0, _SPEED),
        "easy-n600": Task(partial(made, n=600, **_EASY), 600),
        "easy-n3000": Task(partial(made, n=3000, **_EASY), 3000),
        "hard-n200": Task(partial(made, n=200, **_HARD), 200),
        "hard-n700": Task(partial(made, n=700, **_HARD), 700),
        "binary-n1000": Task(partial(made, n=1000, flip_y=0.05), 1000),
        "chance-n800": Task(partial(made, n=800, **_CHANCE), 800),
        "moons-n600": Task(partial(moons, n=600), 600),
    },
    "final": {
        "iris-n90": Task(partial(_sklearn, load_iris), 90),
        "wine-n110": Task(partial(_sklearn, load_wine), 110),
        "cancer-n400": Task(partial(_sklearn, load_breast_cancer), 400),
        "diabetes-n300": Task(diabetes, 300),
        "digits-n900": Task(digits, 900),
        "digits-n900-wrong20": Task(digits, 900, 0.2),
        "images-n700": Task(_images, 700),
        "shells-n1500": Task(partial(quantiles, n=1500), 1500),
        "wide-n2000": Task(partial(made, n=2000, **_WIDE), 2000),
        "wide-n6000": Task(partial(made, n=6000, **_WIDE), 6000),
        "rare-n1500": Task(partial(made, n=1500, weights=[0.95]), 1500),
        "pictures10-n600": Task(partial(made_images, n=600, n_classes=10), 600),
        "pictures20-n1000": Task(partial(made_images, n=1000, n_classes=20), 1000),
        "pictures10-n1000-wrong30": Task(
            partial(made_images, n=1000, n_classes=10), 1000, 0.3
        ),
        "pictures10-speednet-n800": Task(
            partial(made_images, n=800, n_classes=10, pixels=16), 800, 0.0, _SPEED
        ),
    },
    "further": {
        "pictures8-n700-wrong40": Task(
            partial(made_images, n=700, n_classes=8), 700, 0.4
        ),
        "images-n250": Task(_images, 250),
        "images-n500": Task(_images, 500),
        "hard-n900": Task(partial(made, n=900, **_HARD), 900),
        "digits-n600-wrong10": Task(digits, 600, 0.1),
        "wide-n800-wrong30": Task(partial(made, n=800, **_WIDE), 800, 0.3),
    },
}


def split(task: Task, seed: int):
    """Return training and test data; columns of tables are standardised."""
    X, y = task.source(seed)
    X, X_test, y, y_test = train_test_split(
        X, y, train_size=task.n_train, stratify=y, random_state=seed
    )
    if X.ndim == 2:
        scaler = StandardScaler().fit(X)
        X, X_test = (scaler.transform(part).astype(np.float32) for part in (X, X_test))
    if task.noise:
        y, _ = flip_labels(y, task.noise, random_state=seed)
    return X, y, X_test, y_test


def rows(panel: str, name: str, seed: int, epochs: int, methods: Iterable[str]):
    """Yield the results of the methods on one split."""
    task = PANELS[panel][name]
    X, y, X_test, y_test = split(task, seed)
    for method in methods:
        settings = {**task.parameters, **METHODS[method], "max_epochs": epochs}
        began = time.process_time()
        model = BSDClassifier(random_state=seed, **settings).fit(X, y)
        seconds = time.process_time() - began
        yield {
            "panel": panel,
            "task": name,
            "seed": seed,
            "epochs": epochs,
            "method": method,
            "n_train": task.n_train,
            "accuracy": round(model.score(X_test, y_test), 4),
            "log_loss": round(log_loss(y_test, model.predict_proba(X_test)), 5),
            "temperature": round(model.temperature_, 4),
            "noise_rate": round(model.noise_rate_, 4),
            "cpu_seconds": round(seconds, 4),
        }


def report(results: list[dict], panel: str, suffix: str = "") -> str:
    """Return a table of ratios, default over None, in Markdown.

    Parameters
    ----------
    results : list of dict
        Rows of the CSV.
    panel : str
    suffix : str, default=""
        Suffix of the methods' names.
    """
    sums: dict[tuple, float] = defaultdict(float)
    for row in results:
        if row["panel"] == panel:
            key = row["task"], int(row["epochs"]), row["method"]
            sums[*key, "loss"] += float(row["log_loss"])
            sums[*key, "time"] += float(row["cpu_seconds"])
    tasks = list(dict.fromkeys(task for task, *_ in sums))
    epochs = sorted({key[1] for key in sums})
    ratio = {
        (task, n, what): sums[task, n, f"default{suffix}", what]
        / sums[task, n, f"None{suffix}", what]
        for task in tasks
        for n in epochs
        for what in ("loss", "time")
        if sums[task, n, f"None{suffix}", what]
    }

    def line(name: str, values: Iterable[float]) -> str:
        return f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |"

    def over_tasks(reduce: Callable, what: str) -> list[float]:
        return [reduce([ratio[task, n, what] for task in tasks]) for n in epochs]

    def mean(values: list[float]) -> float:
        return float(np.exp(np.log(values).mean()))

    losses = [value for (*_, what), value in ratio.items() if what == "loss"]
    return "\n".join(
        [
            f"{panel}{suffix}: ratio of log losses, geometric mean {mean(losses):.3f}, "
            f"largest {max(losses):.2f}",
            "",
            f"| epochs | {' | '.join(map(str, epochs))} |",
            f"|---|{'---|' * len(epochs)}",
            *(line(task, (ratio[task, n, "loss"] for n in epochs)) for task in tasks),
            line("geometric mean", over_tasks(mean, "loss")),
            line("largest", over_tasks(max, "loss")),
            line("time, geometric mean", over_tasks(mean, "time")),
            line("time, largest", over_tasks(max, "time")),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panel", nargs="+", choices=PANELS, default=list(PANELS))
    parser.add_argument("--tasks", nargs="+", help="beginnings of names")
    parser.add_argument("--epochs", type=int, nargs="+", default=list(EPOCHS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, help="CSV; rows are appended")
    parser.add_argument("--report", type=Path, help="show the tables of this CSV only")
    args = parser.parse_args()
    if args.report is not None:
        with args.report.open(newline="") as file:
            results = list(csv.DictReader(file))
    else:
        results = measure(args)
    for panel in dict.fromkeys(row["panel"] for row in results):
        found = {row["method"] for row in results}
        for suffix in ("", ", split"):
            if {f"default{suffix}", f"None{suffix}"} <= found:
                print(f"\n{report(results, panel, suffix)}")


def measure(args: argparse.Namespace) -> list[dict]:
    """Do the requested runs, and return the rows."""
    stop_at_interrupt()
    torch.set_num_threads(1)
    print(machine())
    file = Results(args.output, COLUMNS)
    results = []
    BSDClassifier(max_epochs=1).fit(*load_iris(return_X_y=True))  # one-time costs
    for panel in args.panel:
        for name in PANELS[panel]:
            if args.tasks and not name.startswith(tuple(args.tasks)):
                continue
            print(name, file=sys.stderr)
            for epochs in args.epochs:
                for seed in SEEDS[panel]:
                    for row in rows(panel, name, seed, epochs, args.methods):
                        results.append(row)
                        file.add(*row.values())
    return results


if __name__ == "__main__":
    main()
