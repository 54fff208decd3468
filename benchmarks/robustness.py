"""Evaluate trained networks on images that differ from the training data.

Each method of `baselines.py` trains the same network on the same images of CIFAR-10,
once for each seed, with the same arguments as in `compare.py`. The script measures

- accuracy and top-label ECE (15 bins) on the first test images, unchanged and with 15
  corruptions of five severities (D. Hendrycks, T. Dietterich, ICLR 2019,
  arXiv:1903.12261), which are defined in `_corruptions.py`;
- the flip probability: how often the predicted class changes from one frame to the
  next while an image is shifted or rotated, or from its first frame while noise is
  added. These are three of the sequences of the same authors;
- accuracy and ECE after one step of the fast gradient sign method, of 1, 2, 4 and 8
  levels of 255 (I. Goodfellow, J. Shlens, C. Szegedy, ICLR 2015, arXiv:1412.6572).
  This does not measure robustness to stronger attacks;
- the AUROC with which the largest probability and the entropy separate test images from
  scikit-learn's digits, from test images with shuffled patches, and from uniform noise.
  1 is perfect, and 0.5 is chance.

As in the authors' files, random numbers are drawn once for all methods and seeds. There
are these differences to the authors' files:

- **frost blends in photographs, which are not available here. It is replaced by a
  procedural texture of about the same brightness, contrast and colours, under the name
  frost_stand_in. The mean over all corruptions therefore cannot be compared with the
  published benchmark.**
- The images are torchvision's, or those of --npz, which were JPEG files before any
  corruption; `_corruptions.py` lists differences of the computation.
- imagecorruptions 1.1.2, from PyPI, is not used: it has the parameters for ImageNet
  only, and fog and glass_blur do not run with NumPy 2 and scikit-image 0.26.

A row is appended for each result at once. Results in the file are not measured again,
and a method with all results of a seed is not trained again, so the script can be
killed and restarted at any time. Tables use only seeds with all results that they need.

    python benchmarks/robustness.py --output robustness.csv
    python benchmarks/robustness.py --methods BSD --seeds 30 --test-images 500
    python benchmarks/robustness.py --report --tables docs/evidence
"""

import argparse
import csv
import importlib
import statistics
import sys
import time
import traceback
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _common import (
    Results,
    add_data_arguments,
    machine,
    print_failures,
    stop_at_interrupt,
)
from _corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    digits,
    noises,
    rotations,
    shuffled_patches,
    translations,
    uniform_noise,
)
from _panel import CELLS, Cell, Source, load
from scipy.special import entr
from sklearn.metrics import accuracy_score, roc_auc_score
from threadpoolctl import threadpool_limits

from skbsd.metrics import expected_calibration_error
from skbsd.networks import MLP

HERE = Path(__file__).resolve().parent
COLUMNS = ("method", "seed", "cell", "kind", "name", "severity", "metric", "value")
REFERENCE = "CE"
METHODS = (REFERENCE, "label smoothing", "BSD")
SEEDS = (30, 31, 32)  # not used by any panel
DEFAULT = "cifar10-resnet-64-n5000-25ep-clean"
# The attack needs images; an MLP takes rows.
IMAGE_CELLS = {
    cell.name: cell
    for cell in CELLS.values()
    if cell.dataset == "cifar10" and cell.parameters["module"] is not MLP
}
# Function of the frames, and whether each is compared with the first one.
SEQUENCES = {
    "translation": (translations, False),
    "rotation": (rotations, False),
    "gaussian_noise": (noises, True),
}
STRANGERS = {
    "digits": digits,
    "shuffled_patches": shuffled_patches,
    "uniform_noise": uniform_noise,
}
QUALITY = ("accuracy", "ece")
METRICS = {
    # The number of images is stored to reject a file with another number.
    "clean": (*QUALITY, "test_images"),
    "corruption": QUALITY,
    "adversarial": QUALITY,
    "sequence": ("flip_probability",),
    "ood": ("auroc_max_probability", "auroc_entropy"),
}


class Task(NamedTuple):
    """A set of test images for a trained network."""

    kind: str
    name: str
    severity: int = 0

    def rng(self) -> np.random.Generator:
        """Return the random generator of the task."""
        name = zlib.crc32(f"{self.kind} {self.name}".encode())
        return np.random.default_rng([name, self.severity])


CLEAN = Task("clean", "clean")
CORRUPTED = [Task("corruption", name, s) for name in CORRUPTIONS for s in SEVERITIES]
ATTACKS = [Task("adversarial", "fgsm", step) for step in (1, 2, 4, 8)]
MOVING = [Task("sequence", name) for name in SEQUENCES]
STRANGE = [Task("ood", name) for name in STRANGERS]
TASKS = [CLEAN, *CORRUPTED, *ATTACKS, *MOVING, *STRANGE]


def flip_probability(predicted, *, from_first: bool) -> float:
    """Return how often predictions (n_frames, n) differ from those of another frame.

    This is the previous frame, or the first one if `from_first`.
    """
    predicted = np.asarray(predicted)
    before = predicted[:1] if from_first else predicted[:-1]
    return float(np.mean(predicted[1:] != before))


def separation(proba, strange) -> dict[str, float]:
    """Return how well the confidence separates test images from strange ones."""
    known = np.repeat([1, 0], [len(proba), len(strange)])
    both = np.concatenate([proba, strange]).astype(np.float64)
    return {
        "auroc_max_probability": roc_auc_score(known, both.max(axis=1)),
        "auroc_entropy": roc_auc_score(known, -entr(both).sum(axis=1)),
    }


def gradient_sign(model, images, y, *, batch_size: int = 250) -> np.ndarray:
    """Return the sign of the gradient of the cross-entropy by pixel.

    Cross-entropy is log(1 + exp(m)), where m is the log-sum-exp of the other classes'
    logits minus the logit of the label. The gradients of both have the same sign, but
    that of m does not vanish if the probability rounds to one.

    Parameters
    ----------
    model : BSDClassifier
        Fitted on uint8 images, like `images`.
    images, y : ndarray
        Images and their true labels.
    batch_size : int, default=250
        Number of images at a time.

    Returns
    -------
    ndarray
        -1, 0 or 1 for each value, as int16.
    """
    network = model.module_
    dtype = next(network.parameters()).dtype
    mean, std = (
        torch.as_tensor(x, dtype=dtype, device=model.device_).view(1, -1, 1, 1)
        for x in (model.image_mean_, model.image_std_)
    )
    codes = torch.as_tensor(np.searchsorted(model.classes_, y), device=model.device_)
    out = np.empty(images.shape, np.int16)
    was_training = network.training
    network.eval()
    try:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            x = torch.tensor(images[part], dtype=dtype, device=model.device_)
            logits = network((x.requires_grad_() - mean) / std).double()
            label = codes[part, None]
            others = logits.scatter(1, label, -torch.inf).logsumexp(dim=1)
            margin = others.sum() - logits.gather(1, label).sum()
            (gradient,) = torch.autograd.grad(margin, x)
            out[part] = gradient.sign().cpu().numpy()
    finally:
        network.train(was_training)
    return out


def attack(model, images, y, step: int) -> np.ndarray:
    """Move each value by `step` levels of 255 in the direction of a larger loss."""
    moved = images + step * gradient_sign(model, images, y)
    return np.clip(moved, 0, 255).astype(np.uint8)


def quality(model, images, y) -> dict[str, float]:
    """Return accuracy and calibration error."""
    proba = model.predict_proba(images)
    return {
        "accuracy": accuracy_score(y, model.classes_[proba.argmax(axis=1)]),
        "ece": expected_calibration_error(y, proba, labels=model.classes_),
    }


def show(task: Task, images) -> np.ndarray:
    """Return the images of a task, made from the test images."""
    if task.kind == "corruption":
        return corrupt(images, task.name, task.severity, task.rng())
    if task.kind == "ood":
        return STRANGERS[task.name](images, task.rng())
    return images


def measure(task: Task, model, shown, images, y) -> dict[str, float]:
    """Return the results of a task, by the names of `METRICS`.

    `shown` are the images that `show` returned; `y` are the test images' labels.
    """
    if task.kind == "ood":
        return separation(model.predict_proba(images), model.predict_proba(shown))
    if task.kind == "sequence":
        frames, from_first = SEQUENCES[task.name]
        predicted = [model.predict(frame) for frame in frames(images, task.rng())]
        return {"flip_probability": flip_probability(predicted, from_first=from_first)}
    if task.kind == "adversarial":
        if not hasattr(model, "module_"):  # such as with temperature scaling
            return dict.fromkeys(QUALITY, np.nan)
        shown = attack(model, images, y, task.severity)
    figures = quality(model, shown, y)
    return figures | {"test_images": len(y)} if task.kind == "clean" else figures


class Figures:
    """The results of a cell.

    Parameters
    ----------
    file : Path
        File of the results, which may be missing.
    cell : str
        Name of the cell; rows of other cells are ignored.
    """

    def __init__(self, file: Path, cell: str):
        self.values: dict[tuple[str, int], dict[tuple[Task, str], float]] = {}
        if not file.exists():
            return
        whole, _, _ = file.read_text().rpartition("\n")  # without an incomplete line
        for row in csv.DictReader(whole.splitlines()):
            if row["cell"] == cell:
                task = Task(row["kind"], row["name"], int(row["severity"]))
                run = self.values.setdefault((row["method"], int(row["seed"])), {})
                run[task, row["metric"]] = float(row["value"])

    def missing(self, method: str, seed: int) -> list[Task]:
        """Return the tasks that lack a result."""
        run = self.values.get((method, seed), {})
        return [
            task
            for task in TASKS
            if any((task, metric) not in run for metric in METRICS[task.kind])
        ]

    def test_images(self) -> set[int]:
        """Return the numbers of test images with which results were measured."""
        key = CLEAN, "test_images"
        return {int(run[key]) for run in self.values.values() if key in run}

    def methods(self) -> list[str]:
        """Return the methods, the default ones first."""
        found = [method for method, _ in self.values]
        usual = [name for name in METHODS if name in found]
        return [*dict.fromkeys([*usual, *found])]

    def means(self, method: str, tasks: Iterable[Task], metric: str) -> dict:
        """Return the mean over tasks for each seed with results of all tasks."""
        keys = [(task, metric) for task in tasks]
        return {
            seed: statistics.fmean(run[key] for key in keys)
            for (name, seed), run in sorted(self.values.items())
            if name == method and all(key in run for key in keys)
        }


class Run:
    """Trains and measures the methods of a cell, seed by seed.

    Parameters
    ----------
    cell : Cell
    builders : dict of str to callable
        Functions of the classifier's arguments that build a model, by method.
    source : Source
    file : Path
        File of the results, existing or new.
    """

    def __init__(self, cell: Cell, builders: dict, source: Source, file: Path):
        self.cell = cell
        self.builders = builders
        self.source = source
        self.results = Results(file, COLUMNS)
        self.known = Figures(file, cell.name)
        self.errors: dict[tuple[str, int], str] = {}

    def __call__(self, seed: int) -> None:
        """Measure the missing results of a seed.

        All methods are trained first, so that each set of images is made only once and
        need not be stored.
        """
        todo = {name: set(self.known.missing(name, seed)) for name in self.builders}
        todo = {name: tasks for name, tasks in todo.items() if tasks}
        print(f"seed {seed}: {len(todo)} of {len(self.builders)} methods", flush=True)
        if not todo:
            return
        (split,) = load(self.cell, seed, self.source)
        models = {}
        for name in todo:
            start = time.perf_counter()
            try:
                build = self.builders[name]
                model = build(**self.cell.arguments(seed)).fit(split.X, split.given)
            except Exception:
                self.errors[name, seed] = traceback.format_exc()
                print(f"  {name!r} FAILED", flush=True)
                continue
            models[name] = model
            print(f"  {name!r}: {time.perf_counter() - start:.0f} s", flush=True)
        start = time.perf_counter()
        for task in TASKS:
            chosen = [name for name in models if task in todo[name]]
            if not chosen:
                continue
            shown = show(task, split.X_test)
            for name in chosen:
                data = (shown, split.X_test, split.y_test)
                self._record(name, seed, task, measure(task, models[name], *data))
        print(f"  measured: {time.perf_counter() - start:.0f} s", flush=True)

    def _record(self, method: str, seed: int, task: Task, figures: dict) -> None:
        known = self.known.values.setdefault((method, seed), {})
        for metric in METRICS[task.kind]:
            if (task, metric) not in known:
                value = f"{figures[metric]:.6g}"
                self.results.add(method, seed, self.cell.name, *task, metric, value)
                known[task, metric] = float(value)


def spread(values: Iterable[float], sign: str = "") -> str:
    """Format fractions in per cent, as mean and standard deviation over seeds."""
    values = [100 * x for x in values if x == x]
    if not values:
        return ""
    text = f"{statistics.fmean(values):{sign}.2f}"
    return f"{text} ± {statistics.stdev(values):.2f}" if values[1:] else text


def table(title: str, lines, figures: Figures) -> list[str]:
    """Return a table of the methods, and of their differences to the reference.

    Each item of `lines` consists of a name, the tasks to average over, and the metric.
    """
    methods = figures.methods()
    others = [x for x in methods if REFERENCE in methods and x != REFERENCE]
    head = ["%", *methods, *(f"{other} − {REFERENCE}" for other in others)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for label, tasks, metric in lines:
        means = {name: figures.means(name, tasks, metric) for name in methods}
        rows.append([label, *(spread(means[name].values()) for name in methods)])
        for other in others:
            both = sorted(means[other].keys() & means[REFERENCE].keys())
            differences = (means[other][s] - means[REFERENCE][s] for s in both)
            rows[-1].append(spread(differences, "+"))
    return [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]


def markdown(figures: Figures, cell: Cell) -> str:
    """Return all tables."""

    def qualities(label, tasks):
        return [
            (f"{label}: accuracy", tasks, "accuracy"),
            (f"{label}: ECE", tasks, "ece"),
        ]

    seeds = sorted({seed for _, seed in figures.values})
    images = ", ".join(f"{n:,}" for n in sorted(figures.test_images()))
    lines = [f"# Robustness: {cell.title}", ""]
    lines += [
        f"Seeds {', '.join(map(str, seeds))}; the first {images} test images. Mean ± "
        "standard deviation over seeds, in %; differences are in percentage points, "
        "and computed seed by seed. frost_stand_in replaces frost.",
        "",
    ]
    corrupted = qualities("unchanged", [CLEAN])
    corrupted += qualities("all corruptions", CORRUPTED)
    for severity in SEVERITIES:
        some = [task for task in CORRUPTED if task.severity == severity]
        corrupted += qualities(f"severity {severity}", some)
    lines += table("Unchanged images and corruptions", corrupted, figures)
    for metric, title in (("accuracy", "Accuracy"), ("ece", "ECE")):
        by_name = [
            (name, [task for task in CORRUPTED if task.name == name], metric)
            for name in CORRUPTIONS
        ]
        lines += table(f"{title} by corruption", by_name, figures)
    flips = [(task.name, [task], "flip_probability") for task in MOVING]
    flips.append(("mean", MOVING, "flip_probability"))
    lines += table("Flip probability", flips, figures)
    attacked = []
    for task in ATTACKS:
        attacked += qualities(f"{task.severity}/255", [task])
    lines += table("One step of the fast gradient sign method", attacked, figures)
    aurocs = [
        (f"{task.name}, {name}", [task], f"auroc_{name.replace(' ', '_')}")
        for task in STRANGE
        for name in ("max probability", "entropy")
    ]
    lines += table("AUROC of test images against other images", aurocs, figures)
    return "\n".join(lines)


def report(figures: Figures, cell: Cell, folder: Path | None) -> None:
    """Print the tables, and write them to a folder, if given."""
    if not figures.values:
        print("no results yet")
        return
    text = markdown(figures, cell)
    print(f"\n{text}")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "robustness.md").write_text(text, encoding="utf-8")


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", choices=IMAGE_CELLS, default=DEFAULT)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument(
        "--test-images", type=int, default=2_000, help="at most 10,000; default: 2,000"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "robustness.csv")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--tables", type=Path, help="folder for robustness.md")
    parser.add_argument(
        "--registry", default="baselines", help="module with the methods"
    )
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    if not 1 <= args.test_images <= 10_000:
        parser.error("--test-images must be 1 to 10,000")
    return args


def choose(args) -> dict:
    """Return the functions that build the methods."""
    known = importlib.import_module(args.registry).METHODS
    unknown = set(args.methods) - set(known)
    if unknown:
        sys.exit(f"no such method: {sorted(unknown)}; there are {sorted(known)}")
    return {name: known[name] for name in args.methods}


def main(argv=None) -> int:
    args = parse_arguments(argv)
    cell = replace(IMAGE_CELLS[args.cell], n_test=args.test_images)
    errors = {}
    if not args.report:
        stop_at_interrupt()
        torch.set_num_threads(args.threads)
        print(machine())
        run = Run(cell, choose(args), Source(args.data, args.npz), args.output)
        others = run.known.test_images() - {args.test_images}
        if others:
            sys.exit(
                f"{args.output} has results with {sorted(others)} test images, and "
                f"--test-images is {args.test_images}; choose another --output."
            )
        with threadpool_limits(args.threads):
            for seed in args.seeds:
                run(seed)
        errors = run.errors
        print_failures(errors)
    report(Figures(args.output, cell.name), cell, args.tables)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
