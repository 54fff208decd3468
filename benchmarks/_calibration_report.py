"""Tables and summary of `calibration.py`, from its CSV.

The value of a task is the mean over seeds. Differences and ratios are computed from
these means, over the seeds that both methods have.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from _common import ratios, read_rows, spread
from _report import Line

OURS, NONE = "BSD", "BSD none"
TOLD = "BSD inherent"  # label_noise="inherent": labels are inherently noisy
RIVALS = ("CE", "CE + cross-fit")
NETWORKS = ("MLPClassifier", "CE best lr")
TABLE_RIVALS = ("LogisticRegression", "HistGradientBoosting")
NOISE_SETTINGS = ("noisy", "BSD noisy")
RARE = 0.25  # a class is rare if its share is below this fraction of 1 / n_classes
NEAR = 0.05  # largest error of an estimated noise rate that counts as right
# Values of the column "labels", in words.
LABELS = {"clean": "correct", "inherent": "inherently noisy", "wrong": "wrong"}
_TEXT = {"panel", "task", "method", "labels", "prior"}
_WHOLE = {"seed", "n_train", "n_test", "n_classes"}
SHARE = ".2f"
POINTS, RATIO = "+.2f", ".3f"


def read(file: Path | None) -> list[dict]:
    """Return the rows of the results, with numbers converted."""
    return read_rows(file, text=_TEXT, whole=_WHOLE)


class Figures:
    """Results by task, method and seed.

    Parameters
    ----------
    rows : iterable of dict
        As `read` returns them.
    """

    def __init__(self, rows: Iterable[dict]):
        self.runs: dict[str, dict[str, dict[int, dict]]] = {}
        self.methods: list[str] = []
        for row in rows:
            if row["method"] not in self.methods:
                self.methods.append(row["method"])
            by_method = self.runs.setdefault(row["task"], {})
            by_method.setdefault(row["method"], {})[row["seed"]] = row

    def tasks(self, *methods: str, labels: str | None = None) -> list[str]:
        """Return the tasks that all of the methods have a common seed of.

        Parameters
        ----------
        *methods : str
        labels : {"clean", "inherent", "wrong"}, default=None
            Kind of the tasks' labels, None for any.
        """
        return [
            task
            for task, by_method in self.runs.items()
            if self._seeds(task, *methods)
            and labels in (None, _any_row(by_method)["labels"])
        ]

    def _seeds(self, task: str, *methods: str) -> list[int]:
        runs = [set(self.runs[task].get(method, ())) for method in methods]
        return sorted(set.intersection(*runs)) if runs else []

    def mean(self, task: str, method: str, name: str, *others: str) -> float:
        """Return a method's mean over the seeds that the others have too."""
        runs = self.runs[task][method]
        seeds = self._seeds(task, method, *others)
        return statistics.fmean(runs[seed][name] for seed in seeds)

    def differences(
        self, method: str, other: str, name: str, *, labels: str
    ) -> dict[str, float]:
        """Return method minus other in points, by task."""
        return {
            task: 100 * self.mean(task, method, name, other)
            - 100 * self.mean(task, other, name, method)
            for task in self.tasks(method, other, labels=labels)
        }

    def log_loss_ratios(self, *others: str, labels: str = "clean") -> dict[str, float]:
        """Return the ratio of the log loss to that of the best other, by task."""
        return {
            task: self.mean(task, OURS, "log_loss", *others)
            / min(self.mean(task, other, "log_loss", OURS, *others) for other in others)
            for task in self.tasks(OURS, *others, labels=labels)
        }

    def rows(self, method: str) -> Iterator[dict]:
        """Yield a method's rows."""
        for by_method in self.runs.values():
            yield from by_method.get(method, {}).values()


def _any_row(by_method: dict) -> dict:
    return next(iter(next(iter(by_method.values())).values()))


def _mean(subject: str, by_task: dict[str, float], form: str) -> Line:
    value = statistics.fmean(by_task.values()) if by_task else None
    return Line(subject, value, form, len(by_task))


def _geometric(subject: str, by_task: dict[str, float]) -> Line:
    value = statistics.geometric_mean(by_task.values()) if by_task else None
    return Line(subject, value, RATIO, len(by_task))


def _worst(subject: str, by_task: dict[str, float], form: str, worst: Callable) -> Line:
    if not by_task:
        return Line(subject, None, form, 0)
    task = worst(by_task, key=by_task.__getitem__)
    return Line(subject, by_task[task], form, len(by_task), task)


def _log_loss_lines(data: Figures, *others: str, labels="clean") -> Iterator[Line]:
    found = data.log_loss_ratios(*others, labels=labels)
    name = f"log loss, ratio to {' or '.join(others)}"
    yield _geometric(f"{name}, geometric mean", found)
    yield _worst(f"{name}, worst", found, RATIO, max)


def _accuracy_lines(data: Figures, other: str, *, labels: str) -> Iterator[Line]:
    found = data.differences(OURS, other, "accuracy", labels=labels)
    yield _mean(f"accuracy, points above {other}, mean", found, POINTS)
    yield _worst(f"accuracy, points above {other}, worst", found, POINTS, min)


def _ece_line(data: Figures, method: str, *, labels: str) -> Line:
    tasks = data.tasks(OURS, method, labels=labels)
    found = {task: 100 * data.mean(task, method, "ece") for task in tasks}
    return _mean(f"ECE % of {method}, mean", found, SHARE)


def right_lines(data: Figures, labels: str) -> Iterator[Line]:
    """Yield the summary of tasks whose training and test labels are of one kind.

    Parameters
    ----------
    data : Figures
    labels : {"clean", "inherent"}

    Yields
    ------
    Line
    """
    told = (TOLD,) if labels == "inherent" else ()
    for method in (OURS, *told, NONE, *RIVALS):
        yield _ece_line(data, method, labels=labels)
    mine = {t: 100 * data.mean(t, OURS, "ece") for t in data.tasks(OURS, labels=labels)}
    yield _worst(f"ECE % of {OURS}, worst", mine, SHARE, max)
    for other in RIVALS:
        above = data.differences(OURS, other, "ece", labels=labels)
        yield _worst(f"ECE, points above {other}, worst", above, POINTS, max)
    for other in (*RIVALS, NONE, *told):
        yield from _log_loss_lines(data, other, labels=labels)
    for other in (*RIVALS, NONE, "CE best lr"):
        yield from _accuracy_lines(data, other, labels=labels)


def table_lines(data: Figures) -> Iterator[Line]:
    """Yield the summary of tables, compared with scikit-learn's classifiers."""
    yield from _log_loss_lines(data, *NETWORKS)
    for other in TABLE_RIVALS:
        yield from _log_loss_lines(data, other)
    for other in ("MLPClassifier", *TABLE_RIVALS):
        yield from _log_loss_lines(data, f"{other} + temperature")


def _above_best(data: Figures, name: str, others: tuple[str, ...]) -> dict[str, float]:
    """Return the difference to the best of others on wrong labels, by task."""
    by_task = {}
    for task in data.tasks(OURS, *others, labels="wrong"):
        best = max(data.mean(task, other, name, OURS, *others) for other in others)
        by_task[task] = 100 * (data.mean(task, OURS, name, *others) - best)
    return by_task


def wrong_lines(data: Figures) -> Iterator[Line]:
    """Yield the summary of the tasks with wrong labels."""
    for method in (OURS, NONE, *RIVALS, *NOISE_SETTINGS, "SELC"):
        yield _ece_line(data, method, labels="wrong")
    best = _above_best(data, "accuracy", NOISE_SETTINGS)
    name = f"accuracy, points above the better of {' and '.join(NOISE_SETTINGS)}"
    yield _mean(f"{name}, mean", best, POINTS)
    yield _worst(f"{name}, worst", best, POINTS, min)
    for other in ("SELC", *RIVALS):
        yield from _accuracy_lines(data, other, labels="wrong")


def rare_table(data: Figures) -> list[str]:
    """Return predicted probability over base rate of rare classes, by task."""
    methods = (OURS, *RIVALS)
    lines = [f"| task | share % | {' | '.join(methods)} |", "|---" * 5 + "|"]
    for task in data.tasks(OURS, labels="clean"):
        row = _any_row(data.runs[task])
        share = data.mean(task, OURS, "rare_share")
        if not 0 < share < RARE / row["n_classes"]:
            continue
        values = [
            f"{data.mean(task, m, 'rare_proba') / data.mean(task, m, 'rare_share'):.2f}"
            if m in data.runs[task]
            else ""
            for m in methods
        ]
        lines.append(f"| {task} | {100 * share:.2f} | {' | '.join(values)} |")
    return lines


def noise_rate_table(data: Figures) -> list[str]:
    """Return errors of the estimated noise rate by kind of labels."""
    lines = [
        f"| labels | runs | errors above {NEAR:.0%} | mean error | worst | task |",
        "|---" * 6 + "|",
    ]
    for labels in ("clean", "inherent", "wrong"):
        rows = [
            row
            for row in data.rows(OURS)
            if row["labels"] == labels and not math.isnan(row["noise_rate"])
        ]
        if not rows:
            continue
        errors = [row["noise_rate"] - row["true_noise_rate"] for row in rows]
        sizes = [abs(error) for error in errors]
        worst = max(range(len(rows)), key=sizes.__getitem__)
        lines.append(
            f"| {LABELS[labels]} | {len(rows)} | {sum(size > NEAR for size in sizes)} "
            f"| {statistics.fmean(sizes):.3f} | {errors[worst]:+.3f} "
            f"| {rows[worst]['task']} |"
        )
    return lines


def time_line(data: Figures) -> str:
    """Return the time of a fit relative to that of a plain training."""
    times: dict[str, list[float]] = {OURS: [], NONE: []}
    for task in data.tasks(OURS, NONE):
        ours, none = (data.runs[task][name] for name in (OURS, NONE))
        for seed in ours.keys() & none.keys():
            times[OURS].append(ours[seed]["cpu_seconds"])
            times[NONE].append(none[seed]["cpu_seconds"])
    found = ratios(times, OURS, NONE)
    if not found:
        return "no seed with runs of both yet"
    median, low, high = spread(found, 2).split()
    return (
        f"CPU seconds of {OURS} over those of {NONE}: median of {len(found)} runs "
        f"{median}, range {low} to {high}."
    )


def task_table(data: Figures, name: str, form: str, scale: int, *, labels: str):
    """Return a table of a metric by task and method.

    Parameters
    ----------
    data : Figures
    name : str
        Column of the results.
    form : str
        Format of a number.
    scale : int
        Factor of all values.
    labels : {"clean", "inherent", "wrong"}
        Kind of the tasks' labels.

    Returns
    -------
    list of str
    """
    tasks = [task for m in data.methods for task in data.tasks(m, labels=labels)]
    tasks = [*dict.fromkeys(tasks)]
    methods = [m for m in data.methods if any(m in data.runs[task] for task in tasks)]
    lines = [f"| task | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for task in tasks:
        values = [
            format(scale * data.mean(task, method, name), form)
            if method in data.runs[task]
            else ""
            for method in methods
        ]
        lines.append(f"| {task} | {' | '.join(values)} |")
    return lines


def _summary(lines: Iterable[Line]) -> list[str]:
    return ["| | value | tasks | task |", "|---" * 4 + "|", *map(str, lines), ""]


def markdown(rows: list[dict], panel: str) -> str:
    """Return the whole report.

    Parameters
    ----------
    rows : list of dict
        As `read` returns them.
    panel : str
        Name of the panel.

    Returns
    -------
    str
    """
    if not rows:
        return "no results yet"
    data = Figures(rows)
    lines = [f"# Calibration: panel {panel}", ""]
    lines += [f"{OURS} is the default. Values of a task are means over seeds.", ""]
    lines += ["## Correct labels", "", *_summary(right_lines(data, "clean"))]
    inherent = right_lines(data, "inherent")
    lines += ["## Inherently noisy labels", "", *_summary(inherent)]
    lines += ["## Tables with correct labels, compared with scikit-learn", ""]
    lines += _summary(table_lines(data))
    lines += ["## Rare classes: mean predicted probability over base rate", ""]
    lines += [*rare_table(data), ""]
    lines += ["## Wrong labels", "", *_summary(wrong_lines(data))]
    lines += [f"## Noise rate estimated by {OURS}", "", *noise_rate_table(data), ""]
    lines += ["## Time", "", time_line(data), ""]
    metrics = {
        "Accuracy %": ("accuracy", ".2f", 100),
        "ECE %": ("ece", ".2f", 100),
        "Log loss": ("log_loss", ".4f", 1),
    }
    for labels in ("clean", "inherent", "wrong"):
        for title, (name, form, scale) in metrics.items():
            table = task_table(data, name, form, scale, labels=labels)
            if table[2:]:
                lines += [f"## {title}, {LABELS[labels]} labels", "", *table, ""]
    return "\n".join(lines)
