"""Wrong labels: accuracy of networks trained on them, and detection of wrong labels.

There are two parts, on the panels "noise" (10,000 images of CIFAR-10, a small residual
network, for the CPU) and "noise-large" (all images, ResNet-18, for a GPU) of
`_panel.py`:

- training: each method of METHODS trains the same network for the same number of
  epochs, as in `compare.py`. It is tested with true labels after the last epoch, not
  the best. The contrastive loss also uses a second, strongly augmented view of each
  image. "BSD two views" uses both views without that loss, and "BSD noisy, strong" the
  strong augmentation only. Wrong labels are drawn by `_panel.corrupt`: symmetric ones
  are never the true class, asymmetric ones affect five of ten classes. All methods run
  with the first seed, those of HEADLINE with all seeds;
- detection: how well wrong labels are separated from the others by `skbsd.label_noise`
  after one fit, and by cleanlab's `find_label_issues` and `get_label_quality_scores`
  from predictions by five-fold cross-validation with the same network, trained with
  cross-entropy. Reported are the AUROC of the score; the precision among the k lowest
  scores, where k is the number of wrong labels; the number of labels that each method
  lists, their precision and recall; and the total time from the data to the list, as
  CPU time, because other processes may use the machine.

Rows are appended at once, and runs that are in the files are not repeated.

    python benchmarks/label_noise.py --parts training detection
    python benchmarks/label_noise.py --cells '*sym40' --methods CE 'BSD noisy'
    python benchmarks/label_noise.py --report --tables docs/evidence
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Results, add_data_arguments, machine, stop_at_interrupt
from _panel import SEEDS, Cell, Source, Split, choose, load
from _report import Comparison, read
from baselines import METHODS as RIVALS
from compare import ABOUT, COSTS, SCORES, Runner, execute, plan
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from skbsd import BSDClassifier
from skbsd.contrastive import Contrastive
from skbsd.label_noise import find_label_issues, label_quality

HERE = Path(__file__).resolve().parent
NOISY = partial(BSDClassifier, prior_strength="noisy")
METHODS: dict[str, Callable[..., Any]] = {
    **{name: RIVALS[name] for name in ("CE", "label smoothing", "ELR", "SELC", "BSD")},
    "BSD noisy": NOISY,
    "BSD noisy, strong": lambda **kwargs: NOISY(**{**kwargs, "augmentation": "strong"}),
    "BSD two views": partial(NOISY, contrastive=Contrastive(weight=0.0)),
    "BSD contrastive": partial(NOISY, contrastive=Contrastive()),
}
HEADLINE = ("CE", "BSD", "BSD noisy", "BSD contrastive")
FOUND = ("auroc", "precision_at_k", "listed", "precision", "recall")
FOUND = ("cell", "method", "seed", *FOUND, "seconds", "cpu_seconds")


def by_cross_validation(arguments: dict, split: Split):
    """Score and list labels by cleanlab."""
    from cleanlab.filter import find_label_issues as find
    from cleanlab.rank import get_label_quality_scores

    proba = cross_val_predict(
        BSDClassifier(**arguments, prior_strength=math.inf),
        split.X,
        split.given,
        cv=StratifiedKFold(5, shuffle=True, random_state=arguments["random_state"]),
        method="predict_proba",
    ).astype(float)
    quality = get_label_quality_scores(split.given, proba)
    return quality, find(split.given, proba)


def by_posterior(
    arguments: dict,
    split: Split,
    divisor: int = 1,
    threshold: str = "confident",
    **parameters,
):
    """Score and list labels by the predictions of one network during training."""
    arguments = {**arguments, **parameters}
    arguments["max_epochs"] //= divisor
    model = BSDClassifier(**arguments).fit(split.X, split.given)
    listed = np.zeros(len(split.given), dtype=bool)
    listed[find_label_issues(model, threshold=threshold)["row"]] = True
    return label_quality(model), listed


DETECTORS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "cleanlab": by_cross_validation,
    "BSD noisy": partial(by_posterior, prior_strength="noisy"),
    "BSD noisy, mixture": partial(
        by_posterior, threshold="mixture", prior_strength="noisy"
    ),
    "BSD noisy, half the epochs": partial(
        by_posterior, divisor=2, prior_strength="noisy"
    ),
    "BSD noisy, half, mixture": partial(
        by_posterior, divisor=2, threshold="mixture", prior_strength="noisy"
    ),
    "BSD": by_posterior,
}


def detect(name: str, cell: Cell, seed: int, split: Split) -> list:
    """Return the scores of a detector."""
    wrong = split.given != split.true
    start, used = time.perf_counter(), time.process_time()
    quality, listed = DETECTORS[name](cell.arguments(seed), split)
    taken, used = time.perf_counter() - start, time.process_time() - used
    lowest = np.argsort(quality, kind="stable")[: wrong.sum()]
    hits = (wrong & listed).sum()
    return [
        roc_auc_score(wrong, -quality),
        wrong[lowest].mean(),
        int(listed.sum()),
        hits / max(1, listed.sum()),
        hits / wrong.sum(),
        taken,
        used,
    ]


def run_detection(cells, seeds, source: Source, results: Results) -> None:
    """Run what is not in the results yet; methods to compare follow each other."""
    done = {(r["cell"], r["method"], r["seed"]) for r in read(results.file)}
    for seed in seeds:
        for cell in cells:
            for name in DETECTORS:
                if (cell.name, name, seed) in done:
                    continue
                (split,) = load(cell, seed, source)
                figures = detect(name, cell, seed, split)
                results.add(cell.name, name, seed, *(f"{x:.6g}" for x in figures))
                print(
                    f"{cell.name} {name!r} {seed}: AUROC {figures[0]:.4f}, precision "
                    f"{figures[1]:.3f}, {figures[-2]:.1f} s",
                    flush=True,
                )


def mean_and_spread(values: list[float], digits: int) -> str:
    """Format a mean, with the standard deviation if there are several seeds."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return text


def training_table(rows: list[dict], cells: list[Cell]) -> str:
    """Return a table of accuracy and ECE by method and noise."""
    comparison = Comparison(rows)
    cells = [cell for cell in cells if cell.name in comparison.runs]
    lines = [f"| accuracy %; ECE % | {' | '.join(c.title for c in cells)} |"]
    lines.append("|---" * (len(cells) + 1) + "|")
    for method in METHODS:
        entries = []
        for cell in cells:
            pair = [
                [100 * value for value in comparison.values(cell.name, method, name)]
                for name in ("accuracy", "ece")
            ]
            shown = "; ".join(mean_and_spread(values, 1) for values in pair if values)
            entries.append(shown)
        if any(entries):
            lines.append(f"| {method} | {' | '.join(entries)} |")
    learnt = [comparison.values(cell.name, "CE", "memorised") for cell in cells]
    shares = ("" if not m or math.isnan(m[0]) else f"{100 * m[0]:.0f}" for m in learnt)
    lines.append(f"| wrong labels that CE memorised, % | {' | '.join(shares)} |")
    return "\n".join(lines)


def detection_table(rows: list[dict], cells: list[Cell]) -> str:
    """Return a table of the detectors' scores, with times relative to cleanlab."""
    lines = [
        "| data | method | AUROC | precision at k | listed | precision | recall "
        "| CPU seconds | relative to cleanlab |",
        "|---" * 9 + "|",
    ]
    shown = [name for name in FOUND[3:] if name != "seconds"]
    for cell in cells:
        found = {
            (row["method"], row["seed"]): row
            for row in rows
            if row["cell"] == cell.name
        }
        for method in DETECTORS:
            seeds = sorted(seed for name, seed in found if name == method)
            if not seeds:
                continue
            entries = [
                mean_and_spread([found[method, s][name] for s in seeds], digits)
                for name, digits in zip(shown, (3, 3, 0, 3, 3, 0), strict=True)
            ]
            ratios = [
                found[method, s]["cpu_seconds"] / found["cleanlab", s]["cpu_seconds"]
                for s in seeds
                if ("cleanlab", s) in found
            ]
            entries.append(mean_and_spread(ratios, 2) if ratios else "")
            lines.append(f"| {cell.title} | {method} | {' | '.join(entries)} |")
    return "\n".join(lines)


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("training", "detection")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--panel", choices=("noise", "noise-large"), default="noise")
    parser.add_argument("--cells", nargs="+", default=["*"], help="names or globs")
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the panel's own")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="in training")
    parser.add_argument("--threads", type=int, help="of a job; default: CPUs by jobs")
    parser.add_argument("--output", type=Path, default=HERE / "label_noise.csv")
    parser.add_argument(
        "--detection", type=Path, default=HERE / "label_noise_detection.csv"
    )
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--tables", type=Path, help="folder for the tables as markdown")
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    args.seeds = args.seeds or SEEDS[args.panel]
    args.threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    try:
        args.chosen = choose(args.panel, args.cells)
    except ValueError as error:
        parser.error(str(error))
    return args


def run_training(args, source: Source) -> dict:
    """Run what is not in the results yet; return the errors."""
    chosen = args.methods or METHODS
    several = [name for name in HEADLINE if name in chosen]
    runs = plan(args.chosen, chosen, args.seeds[:1], full=True)
    runs += plan(args.chosen, several, args.seeds[1:], full=True)
    results = Results(args.output, (*ABOUT, *SCORES, *COSTS))
    runner = Runner("label_noise", source, args.threads)
    return execute(runs, runner, results, args.jobs)


def main(argv=None) -> int:
    args = parse_arguments(argv)
    noisy = [cell for cell in args.chosen if cell.noise]
    source = Source(args.data, args.npz)
    errors = {}
    if not args.report:
        stop_at_interrupt()
        print(f"{machine()}; {args.jobs} jobs of {args.threads} threads")
        if "training" in args.parts:
            errors = run_training(args, source)
        if "detection" in args.parts:
            torch.set_num_threads(args.threads)
            run_detection(noisy, args.seeds, source, Results(args.detection, FOUND))
    names = {cell.name for cell in args.chosen}
    trained, found = (
        [row for row in read(file) if row["cell"] in names]
        for file in (args.output, args.detection)
    )
    tables = {
        "Training": training_table(trained, args.chosen),
        "Detection": detection_table(found, noisy),
    }
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in tables.items())
    print(text)
    if args.tables is not None:
        args.tables.mkdir(parents=True, exist_ok=True)
        title = f"# Wrong labels: panel {args.panel}"
        file = args.tables / f"label_{args.panel.replace('-', '_')}.md"
        file.write_text(f"{title}\n\n{text}\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
