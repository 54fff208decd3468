"""Compact store of beliefs compared with dense stores: time, memory, error, training.

--parts selects among

- memory: bytes of a sample's row, and of the training sets of ImageNet-1k and -21k,
  computed from stores of a thousand samples.
- time: microseconds of an update of B samples and K classes, dense in float32 and in
  float16, and compact. Each call takes the next of two batches and the next of four
  sets of logits. Every round times each store once, in changing order; ratios are
  computed within a round. "first" is the second visit of each row, when nearly all rows
  search for classes to keep; "later" is after 30 visits.
- error: deviation of the target and the loss of a compact store from those of a dense
  one in double precision, by the number of classes kept. The predictions vary about a
  mean of each row and become more confident: softmax(s (z_i + noise)), with s from 0.2
  to 1 in the first 50 visits, or three times that, z_i normal with standard deviation
  3, and 3 added for the label. L1 is the distance between targets (at most 2), averaged
  over rows; the gradient's error is relative to its norm. Loss and gradient are those
  of the last update.
- tasks: accuracy and log loss on unseen samples, and the area under the ROC curve of
  label_quality for wrong labels, for whole fits with the same seeds on digits and on a
  mixture of 200 classes in 20 superclasses, with and without 30 % wrong labels.

    python benchmarks/compact_store.py [--parts time error] [--output compact_store.csv]
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _common import Results, clocked, machine, ratios, rounds, spread
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from torch import Tensor

from skbsd import BSDClassifier
from skbsd.label_noise import flip_labels, label_quality
from skbsd.posterior import CompactPosterior, DirichletPosterior, Posterior

SIZES = [(128, 10), (512, 100), (512, 1000), (1024, 21841)]
IMAGENET = {"ImageNet-1k": (1_281_167, 1000), "ImageNet-21k": (14_197_122, 21841)}
KEPT = (8, 32, 128)
VISITS = (20, 100, 300)


def stores(labels: Tensor, n_classes: int) -> dict[str, Posterior]:
    """Return the stores to compare, by name."""
    return {
        "float32": DirichletPosterior(labels, n_classes),
        "float16": DirichletPosterior(labels, n_classes, dtype=torch.float16),
        "compact": CompactPosterior(labels, n_classes),
    }


# Memory


def measure_memory(results: Results) -> None:
    """Print the bytes per row, which do not depend on the number of rows."""
    n = 1000
    print(f"{'':12} {'K':>6} {'store':8} {'bytes a row':>11} {'GB of all':>10}")
    for name, (n_samples, K) in IMAGENET.items():
        labels = torch.zeros(n, dtype=torch.int64)
        for kind, store in stores(labels, K).items():
            size = store.nbytes / n
            total = size * n_samples / 1e9
            print(f"{name:12} {K:6} {kind:8} {size:11.0f} {total:10.2f}")
            results.add("memory", name, kind, "bytes a row", 0, f"{size:g}")


# Time


def updates(store: Posterior, B: int, logits: list[Tensor]) -> Callable[[], object]:
    """Return a function whose every call updates the next batch."""
    batches = itertools.cycle(torch.randperm(len(store)).split(B))
    predictions = itertools.cycle(logits)

    def update() -> object:
        return store.update(next(predictions), next(batches), assume_unique=True)

    return update


def measure_time(args, results: Results) -> None:
    print(f"{'B':>5} {'K':>6} {'visits':7} {'store':8} {'us, median least most':>29}")
    for B, K in SIZES:
        torch.manual_seed(0)
        logits = [2 * torch.randn(B, K) for _ in range(4)]
        labels = torch.randint(K, (2 * B,))
        times: dict[str, list[float]] = {}
        for visits in ("first", "later"):
            fresh = visits == "first"
            calls = {
                kind: updates(store, B, logits)
                for kind, store in stores(labels, K).items()
            }
            repeats = 2 if fresh else max(2, round(2**25 / (B * K)) // 2 * 2)
            for call in calls.values():
                clocked(call, 2 if fresh else 60, "cpu")
            times = {kind: [] for kind in calls}
            for i, kind in rounds(args.rounds, calls):
                if fresh:  # each time with beliefs after one visit
                    store = stores(labels, K)[kind]
                    calls[kind] = updates(store, B, logits)
                    clocked(calls[kind], 2, "cpu")
                taken = clocked(calls[kind], repeats, "cpu") / repeats * 1e6
                times[kind].append(taken)
                results.add("time", f"{B}x{K}", kind, visits, i, f"{taken:.2f}")
            for kind, values in times.items():
                beside = ""
                if kind == "compact":
                    beside = " ".join(
                        f"  / {other}{spread(ratios(times, kind, other), 2)}"
                        for other in ("float32", "float16")
                    )
                print(
                    f"{B:5} {K:6} {visits:7} {kind:8} {spread(values, 1)}{beside}",
                    flush=True,
                )


# Error


def predictions(
    labels: Tensor, n_classes: int, n_visits: int, scale: float
) -> Iterator[Tensor]:
    """Yield logits of increasing confidence."""
    generator = torch.Generator().manual_seed(0)
    n = len(labels)
    mean = 3 * torch.randn(n, n_classes, generator=generator)
    mean[torch.arange(n), labels] += 3
    for t in range(n_visits):
        noise = torch.randn(n, n_classes, generator=generator)
        yield scale * min(1.0, 0.2 + 0.8 * t / 50) * (mean + noise)


def measure_error(results: Results) -> None:
    print(
        f"{'K':>6} {'scale':>5} {'kept':>5} {'visits':>6} {'L1':>8} {'loss':>9} "
        f"{'gradient':>8} {'tail':>7}"
    )
    n, index = 64, torch.arange(64)
    for K, scale in itertools.product((100, 1000, 21841), (1.0, 3.0)):
        labels = torch.randint(K, (n,), generator=torch.Generator().manual_seed(1))
        prior = {"prior_strength": 60.0, "prior_floor": 0.1 / K}
        exact = DirichletPosterior(labels, K, dtype=torch.float64, **prior)
        compact = {
            m: CompactPosterior(labels, K, n_kept=m, **prior) for m in KEPT if m < K
        }
        steps = predictions(labels, K, max(VISITS), scale)
        for t, logits in enumerate(steps, start=1):
            expected, slope = exact.update(logits, index)
            target = exact.mean() if t in VISITS else None
            for m, store in compact.items():
                loss, gradient = store.update(logits, index)
                if target is None:
                    continue
                found = {
                    "L1": (store.mean() - target).abs().sum(dim=1).mean(),
                    "loss": loss - expected,
                    "gradient": (gradient - slope).norm() / slope.norm(),
                    "tail": store.tail_mass().mean(),
                }
                values = [float(value) for value in found.values()]
                print(
                    f"{K:6} {scale:5g} {m:5} {t:6} "
                    "{:8.5f} {:9.6f} {:8.5f} {:7.4f}".format(*values),
                    flush=True,
                )
                for name, value in zip(found, values, strict=True):
                    row = f"{K} scale {scale:g}", m, f"{name} {t}", 0, f"{value:.6g}"
                    results.add("error", *row)


# Tasks


def mixture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw 12,000 samples of 200 classes, in 20 groups of ten similar classes."""
    rng = np.random.default_rng(seed)
    superclass = 2.0 * rng.normal(size=(20, 24))
    centres = superclass.repeat(10, axis=0) + 0.8 * rng.normal(size=(200, 24))
    y = np.arange(12_000) % 200
    return (centres[y] + 0.8 * rng.normal(size=(12_000, 24))).astype(np.float32), y


def digits(_: int) -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


TASKS = {
    "digits": (digits, 0.0, ("float32", "float16", "compact-4")),
    "digits, 30 % wrong": (digits, 0.3, ("float32", "float16", "compact-4")),
    "200 classes": (mixture, 0.0, ("float32", "float16", "compact-8", "compact")),
    "200 classes, 30 % wrong": (
        mixture,
        0.3,
        ("float32", "float16", "compact-8", "compact"),
    ),
}


def measure_tasks(args, results: Results) -> None:
    print(f"{'':24} {'store':9} {'accuracy':>29} {'log loss':>29} {'noise AUC':>29}")
    for task, (load, rate, kinds) in TASKS.items():
        found: dict[str, dict[str, list[float]]] = {}
        for seed in range(args.seeds):
            X, y = load(seed)
            parts = train_test_split(X, y, test_size=0.4, random_state=seed, stratify=y)
            X_train, X_test, y_train, y_test = parts
            labels, wrong = flip_labels(y_train, rate, random_state=seed)
            for kind in kinds:
                model = BSDClassifier(
                    posterior_dtype=kind, max_epochs=args.epochs, random_state=seed
                ).fit(X_train, labels)
                proba = model.predict_proba(X_test)
                scores = {
                    "accuracy": accuracy_score(y_test, proba.argmax(axis=1)),
                    "log loss": log_loss(y_test, proba),
                }
                if rate:
                    quality = label_quality(model)
                    scores["noise AUC"] = roc_auc_score(wrong, -quality)
                for name, score in scores.items():
                    found.setdefault(kind, {}).setdefault(name, []).append(score)
                    results.add("tasks", task, kind, name, seed, f"{score:.6f}")
        for kind, scores_of in found.items():
            shown = [spread(values, 4) for values in scores_of.values()]
            print(f"{task:24} {kind:9} {' '.join(shown)}")
            if kind == "float32":
                continue
            differences = {
                name: [
                    a - b for a, b in zip(values, found["float32"][name], strict=True)
                ]
                for name, values in scores_of.items()
            }
            means = "; ".join(
                f"{name} {statistics.mean(d):+.4f} +- "
                f"{statistics.stdev(d) / len(d) ** 0.5 if len(d) > 1 else 0:.4f}"
                for name, d in differences.items()
            )
            print(f"{'':24}   less float32: {means}", flush=True)


PARTS = ("memory", "time", "error", "tasks")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine())
    columns = ("part", "case", "store", "figure", "round", "value")
    results = Results(args.output, columns)
    for part in args.parts:
        print(f"\n{part}")
        if part == "memory":
            measure_memory(results)
        elif part == "time":
            measure_time(args, results)
        elif part == "error":
            measure_error(results)
        else:
            measure_tasks(args, results)


if __name__ == "__main__":
    main()
