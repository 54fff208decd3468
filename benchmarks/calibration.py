"""Calibration, accuracy and noise rates of BSDClassifier's defaults on many tables.

The tasks are in `_tables.py`: scikit-learn's data sets, generated data and tables of R
packages. Their labels are correct, inherently noisy (in the test data too), or wrong in
the training data only. The seed determines the split and the wrong labels. Settings are
chosen on the panel "tuning", and results are reported on the panel "final"; the two
share no task, no R table and no seed.

The methods, whose networks are those of BSDClassifier with its other defaults:

- BSD: the default, with cross-fitted temperature, learning rate and rule; BSD none is
  a single training, `calibration=None`;
- BSD inherent: the default with `label_noise="inherent"`, on tasks with inherently
  noisy labels only, which data alone cannot always distinguish from errors;
- CE and CE + cross-fit: cross-entropy, plain and calibrated in the same way;
- CE best lr: cross-entropy with the best of three learning rates in 3-fold
  cross-validation by log loss;
- noisy and BSD noisy: `prior_strength="noisy"`, plain and calibrated, and SELC of
  `baselines.py`: on wrong labels only;
- LogisticRegression, MLPClassifier and HistGradientBoosting of scikit-learn, with
  their defaults and with the temperature of CalibratedClassifierCV (its sigmoid before
  scikit-learn 1.8): on tables without wrong labels only.

Everything runs in this process on one thread, all methods of a task one after the
other, so that `cpu_seconds` can be compared. A row is appended when a run is finished,
and runs that are in the file are not repeated. Failed runs are not recorded; their
errors are shown at the end. `rare_proba` is the mean predicted probability of the class
that is rarest in the training data, and `rare_share` its frequency among the test
labels. `noise_rate` is the estimated fraction of wrong labels, `true_noise_rate` the
fraction that was changed; `temperature`, `lr` and `prior` are those of the final
network.

    python benchmarks/calibration.py --panel tuning --output calibration.csv
    python benchmarks/calibration.py --tasks 'digits-*' --methods BSD CE --seeds 0
    python benchmarks/calibration.py --panel final --report --markdown calibration.md
"""

import argparse
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from _calibration_report import markdown, read
from _common import Results, machine, print_failures, stop_at_interrupt
from _panel import Split
from _tables import PANELS, SEEDS, Task, choose, load
from baselines import SELC
from compare import scores
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.utils.fixes import parse_version
from threadpoolctl import threadpool_limits

import skbsd
from skbsd import BSDClassifier

HERE = Path(__file__).resolve().parent
ABOUT = ("panel", "task", "seed", "method", "labels", "n_train", "n_test", "n_classes")
SCORES = ("accuracy", "balanced_accuracy", "log_loss", "ece", "smece")
SCORES = (*SCORES, "rare_proba", "rare_share", "noise_rate", "true_noise_rate")
FOUND = ("temperature", "lr", "prior")
COLUMNS = (*ABOUT, *SCORES, *FOUND, "seconds", "cpu_seconds")
RATES = (1e-3, 3e-3, 1e-2)


class Method(NamedTuple):
    """A classifier, and the tasks that it runs on.

    Parameters
    ----------
    build : callable
        Takes the arguments of a network and returns an unfitted classifier.
    where : {"everywhere", "tables", "inherent", "wrong"}, default="everywhere"
        Tasks that it runs on: "tables" means tables without wrong labels, and the last
        two mean tasks with such labels.
    """

    build: Callable[..., Any]
    where: str = "everywhere"

    def runs_on(self, task: Task) -> bool:
        """Whether the method runs on a task."""
        if self.where == "tables":
            return task.is_table and task.labels != "wrong"
        return self.where in ("everywhere", task.labels)


def best_rate(random_state: int, **arguments) -> GridSearchCV:
    """Return cross-entropy with a learning rate chosen by cross-validation.

    Parameters
    ----------
    random_state : int
        Seed of the networks and of the folds.
    **arguments
        Arguments of BSDClassifier.

    Returns
    -------
    GridSearchCV
        Unfitted.
    """
    network = CE(random_state=random_state, **arguments)
    folds = StratifiedKFold(3, shuffle=True, random_state=random_state)
    return GridSearchCV(network, {"lr": RATES}, scoring="neg_log_loss", cv=folds)


def of_sklearn(kind: Callable[..., Any], random_state: int, **arguments):
    """Build a classifier of scikit-learn; only the seed is used of the arguments."""
    return kind(random_state=random_state)


def with_temperature(kind: Callable[..., Any], random_state: int, **arguments):
    """Build a classifier of scikit-learn that is calibrated by cross-validation."""
    has_temperature = parse_version(sklearn.__version__) >= parse_version("1.8")
    method = "temperature" if has_temperature else "sigmoid"
    return CalibratedClassifierCV(kind(random_state=random_state), method=method)


CE = partial(BSDClassifier, prior_strength=math.inf, calibration=None)
_SKLEARN = {
    "LogisticRegression": partial(LogisticRegression, max_iter=1_000),
    "MLPClassifier": partial(MLPClassifier, max_iter=500),
    "HistGradientBoosting": HistGradientBoostingClassifier,
}
METHODS: dict[str, Method] = {
    "BSD": Method(BSDClassifier),
    "BSD none": Method(partial(BSDClassifier, calibration=None)),
    "BSD inherent": Method(partial(BSDClassifier, label_noise="inherent"), "inherent"),
    "CE": Method(CE),
    "CE + cross-fit": Method(partial(BSDClassifier, prior_strength=math.inf)),
    "CE best lr": Method(best_rate),
    "noisy": Method(
        partial(BSDClassifier, prior_strength="noisy", calibration=None),
        "wrong",
    ),
    "BSD noisy": Method(partial(BSDClassifier, prior_strength="noisy"), "wrong"),
    "SELC": Method(partial(SELC, calibration=None), "wrong"),
}
for _name, _kind in _SKLEARN.items():
    METHODS[_name] = Method(partial(of_sklearn, _kind), "tables")
    _calibrated = partial(with_temperature, _kind)
    METHODS[f"{_name} + temperature"] = Method(_calibrated, "tables")


class Run(NamedTuple):
    """One training."""

    task: Task
    seed: int
    method: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Panel, task, seed and method, which identify the run."""
        return self.task.panel, self.task.name, self.seed, self.method


def plan(tasks: Iterable[Task], methods: Iterable[str], seeds) -> list[Run]:
    """List the runs: seeds before tasks, tasks before methods.

    Parameters
    ----------
    tasks : iterable of Task
    methods : iterable of str
        Each is skipped on tasks that it does not run on.
    seeds : iterable of int

    Returns
    -------
    list of Run
    """
    tasks, methods = [*tasks], [*methods]
    return [
        Run(task, seed, method)
        for seed in seeds
        for task in tasks
        for method in methods
        if METHODS[method].runs_on(task)
    ]


@cache
def warm_up(image_shape) -> None:
    """Train a network once, so that one-time costs of the process are not measured."""
    rng = np.random.default_rng(0)
    X, y = rng.random((64, 64), dtype=np.float32), np.arange(64) % 2
    shape = {"image_shape": image_shape, "device": "cpu"}
    BSDClassifier(max_epochs=1, random_state=0, **shape).fit(X, y).predict_proba(X)


def measure(run: Run, split: Split) -> dict:
    """Train and test a method on a task.

    Parameters
    ----------
    run : Run
    split : Split
        Data of the task and the seed.

    Returns
    -------
    dict
        A value for each of COLUMNS.
    """
    task = run.task
    warm_up(task.parameters.get("image_shape"))
    arguments = {"device": "cpu", "random_state": run.seed, **task.parameters}
    model = METHODS[run.method].build(**arguments)
    start, start_used = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(split.X, split.given)
    taken, used = time.perf_counter() - start, time.process_time() - start_used
    proba = model.predict_proba(split.X_test)
    about = (*run.key, task.labels, len(split.X), len(split.X_test), proba.shape[1])
    return {
        **dict(zip(ABOUT, about, strict=True)),
        **tested(split, proba, model.classes_),
        **found(model),
        "true_noise_rate": np.mean(split.given != split.true),
        "seconds": taken,
        "cpu_seconds": used,
    }


def tested(split: Split, proba: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the metrics of predicted probabilities.

    Parameters
    ----------
    split : Split
    proba : ndarray of shape (n_test, n_classes)
    labels : ndarray of shape (n_classes,)
        The classes.

    Returns
    -------
    dict
    """
    y = split.y_test
    values = scores(y, proba, labels)
    counts = [np.sum(split.true == label) for label in labels]
    rare = int(np.argmin(counts))
    predicted = labels[proba.argmax(axis=1)]
    return {
        "accuracy": values["accuracy"],
        "balanced_accuracy": balanced_accuracy_score(y, predicted),
        "log_loss": values["nll"],
        "ece": values["ece"],
        "smece": values["smece"],
        "rare_proba": proba[:, rare].mean(dtype=float),
        "rare_share": np.mean(y == labels[rare]),
    }


def found(model: Any) -> dict[str, Any]:
    """Return the chosen and estimated values of a fit; nan if it has none."""
    network = getattr(model, "best_estimator_", model)
    values = {"noise_rate": math.nan, "temperature": math.nan, "lr": math.nan}
    if not isinstance(network, BSDClassifier):
        return {**values, "prior": ""}
    if network.calibration is not None:
        values["noise_rate"] = network.noise_rate_
    values |= {"temperature": network.temperature_, "lr": network.lr_}
    choice = getattr(network, "choice_", None) or network
    return {**values, "prior": str(choice.prior_strength)}


def _text(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def execute(runs: list[Run], results: Results) -> dict:
    """Do the runs that are not in the results yet.

    Parameters
    ----------
    runs : list of Run
    results : Results
        A file with the columns COLUMNS.

    Returns
    -------
    dict
        Tracebacks of the runs that failed.
    """
    done = {
        (row["panel"], row["task"], row["seed"], row["method"])
        for row in read(results.file)
    }
    todo = [run for run in runs if run.key not in done]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them done before", flush=True)
    errors, last, split = {}, None, None
    for i, run in enumerate(todo, 1):
        start = f"{i:{len(str(len(todo)))}}/{len(todo)} {run.task.name} {run.seed}"
        try:
            if last != (run.task.name, run.seed):
                split, last = load(run.task, run.seed), (run.task.name, run.seed)
            row = measure(run, split)
        except Exception:
            errors[run.key] = traceback.format_exc()
            print(f"{start} {run.method!r} FAILED", flush=True)
            continue
        results.add(*(_text(row[name]) for name in COLUMNS))
        print(
            f"{start} {run.method!r}: accuracy {row['accuracy']:.2%}, "
            f"ECE {row['ece']:.2%}, log loss {row['log_loss']:.4f}, "
            f"{row['seconds']:.1f} s",
            flush=True,
        )
    print_failures(errors)
    return errors


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--panel", choices=PANELS, default="tuning")
    parser.add_argument("--tasks", nargs="+", default=["*"], help="names or globs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the panel's own")
    parser.add_argument("--output", type=Path, default=HERE / "calibration.csv")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--markdown", type=Path, help="file for the report")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or SEEDS[args.panel]
    try:
        args.chosen = choose(args.panel, args.tasks)
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv=None) -> int:
    args = parse_arguments(argv)
    errors = {}
    if not args.report:
        stop_at_interrupt()
        torch.set_num_threads(1)
        print(machine())
        print(f"skbsd {skbsd.__version__}, scikit-learn {sklearn.__version__}")
        runs = plan(args.chosen, args.methods or METHODS, args.seeds)
        with threadpool_limits(1):
            errors = execute(runs, Results(args.output, COLUMNS))
    names = {task.name for task in args.chosen}
    rows = [
        row
        for row in read(args.output)
        if row["panel"] == args.panel
        and row["task"] in names
        and row["seed"] in args.seeds
        and row["method"] in (args.methods or METHODS)
    ]
    text = markdown(rows, args.panel)
    print(f"\n{text}")
    if args.markdown is not None:
        args.markdown.write_text(text, encoding="utf-8")
        print(f"written: {args.markdown}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
