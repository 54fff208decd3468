"""Scores of BSDClassifier with its defaults, compared with cross-entropy.

The data are scikit-learn's bundled ones: digits as images with a 25 % test split, and
tables after a StandardScaler in 5-fold cross-validation. The scores are accuracy,
top-label ECE and log loss, as mean and standard deviation over seeds. The script takes
about four minutes on two cores, prints a table and writes it as CSV.

    python benchmarks/defaults.py [--seeds 5] [--output defaults.csv]
"""

import argparse
import csv
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier
from skbsd.metrics import expected_calibration_error

TABLES = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer}
TRAININGS = {"CE": {"prior_strength": math.inf}, "BSD": {}}


def figures(model, X, y, train, test) -> tuple[float, float, float]:
    proba = model.fit(X[train], y[train]).predict_proba(X[test])
    return (
        100 * accuracy_score(y[test], proba.argmax(axis=1)),
        100 * expected_calibration_error(y[test], proba, labels=np.unique(y)),
        log_loss(y[test], proba, labels=np.unique(y)),
    )


def runs(seed: int):
    """Yield the name, model and splits of every data set, for each training."""
    for training, parameters in TRAININGS.items():
        X, y = load_digits(return_X_y=True)
        split = train_test_split(np.arange(len(y)), test_size=0.25, random_state=seed)
        images = BSDClassifier(image_shape=(1, 8, 8), random_state=seed, **parameters)
        yield "digits", training, images, X, y, [split]
        for name, load in TABLES.items():
            X, y = load(return_X_y=True)
            model = BSDClassifier(random_state=seed, **parameters)
            folds = StratifiedKFold(5).split(X, y)
            yield name, training, make_pipeline(StandardScaler(), model), X, y, folds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        for data, training, model, X, y, splits in runs(seed):
            start = time.perf_counter()
            values = np.mean([figures(model, X, y, *split) for split in splits], axis=0)
            seconds = time.perf_counter() - start
            rows.append((data, training, seed, *map(float, values), seconds))
        print(f"seed {seed} done", flush=True)

    print(f"\ntorch {torch.__version__}, {platform.processor() or platform.machine()}")
    print(f"{args.seeds} seeds: mean ± standard deviation\n")
    print(f"{'data':14} {'training':8}   accuracy %      ECE %           NLL")
    for data in ("digits", *TABLES):
        for training in TRAININGS:
            chosen = [row[3:6] for row in rows if row[:2] == (data, training)]
            mean, spread = np.mean(chosen, axis=0), np.std(chosen, axis=0, ddof=1)
            print(
                f"{data:14} {training:8} {mean[0]:7.2f} ± {spread[0]:.2f} "
                f"{mean[1]:8.2f} ± {spread[1]:.2f} {mean[2]:8.3f} ± {spread[2]:.3f}"
            )
    if args.output:
        with args.output.open("w", newline="") as file:
            writer = csv.writer(file)
            names = ("data", "training", "seed", "accuracy", "ece", "nll", "seconds")
            writer.writerow(names)
            writer.writerows(rows)


if __name__ == "__main__":
    main()
