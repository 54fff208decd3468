"""Tables, summary and picture of a comparison, from its CSV.

A cell is a setting of `_panel.py`: data, network, number of epochs and label noise. Its
value is the mean over seeds. Differences and ratios of two methods are computed seed by
seed first, over the seeds that both have.
"""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from _common import read_rows
from _panel import CELLS

REFERENCE = "CE"
OVERFIT = 0.10  # accuracy on training data minus that on test data
MEMORISED = 0.30  # fraction of the wrong labels that the reference has memorised
# Colours of Okabe and Ito. The markers differ as well, so that the picture can be read
# in grey. A method has the same colour and marker in all pictures.
STYLES = {
    "CE": ("#000000", "o"),
    "BSD": ("#D55E00", "s"),
    "BSD noisy": ("#E69F00", "D"),
    "label smoothing": ("#0072B2", "^"),
    "temperature": ("#56B4E9", "v"),
    "mixup": ("#56B4E9", "P"),
    "temporal ensembling": ("#CC79A7", "<"),
    "ELR": ("#009E73", "X"),
    "SELC": ("#E69F00", ">"),
    "PS-KD": ("#CC79A7", "*"),
    "CS-KD": ("#009E73", "p"),
    "DLB": ("#000000", "d"),
    "BSD temperature": ("#0072B2", "8"),
    "BSD, c = 100": ("#D55E00", "H"),
}
_TEXT = {"panel", "cell", "method", "dataset", "network", "noise_kind"}
_WHOLE = {"n", "epochs", "seed"}


class Line(NamedTuple):
    """A line of the summary."""

    subject: str
    value: float | None  # None if there are no results
    form: str
    cells: int
    where: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"| {self.subject} | no results yet | 0 | |"
        value = format(self.value, self.form)
        return f"| {self.subject} | {value} | {self.cells} | {self.where} |"


POINTS, RATIO, SHARE = "+.2f", ".3f", ".2f"


def read(file: Path | None) -> list[dict]:
    """Return the rows of the results, with numbers converted."""
    return read_rows(file, text=_TEXT, whole=_WHOLE)


class Comparison:
    """Results by cell, method and seed.

    Parameters
    ----------
    rows : iterable of dict
        As `read` returns them.
    """

    def __init__(self, rows: Iterable[dict]):
        self.runs: dict[str, dict[str, dict[int, dict]]] = {}
        for row in rows:
            by_method = self.runs.setdefault(row["cell"], {})
            by_method.setdefault(row["method"], {})[row["seed"]] = row
        # In the order of the panel, which that of the runs may not follow.
        order = {name: i for i, name in enumerate(CELLS)}
        names = sorted(self.runs, key=lambda name: order.get(name, len(order)))
        self.cells = names

    def methods(self, cell: str) -> list[str]:
        """Return the methods of a cell, in the order of the styles."""
        order = {name: i for i, name in enumerate(STYLES)}
        return sorted(self.runs[cell], key=lambda name: order.get(name, len(order)))

    def values(self, cell: str, method: str, name: str) -> list[float]:
        """Return the values of a metric, one per seed."""
        runs = self.runs[cell].get(method, {})
        return [runs[seed][name] for seed in sorted(runs)]

    def pairs(self, cell: str, method: str, other: str, name: str) -> list[tuple]:
        """Return a metric's values of both methods for each seed that both have."""
        one, two = (self.runs[cell].get(x, {}) for x in (method, other))
        return [(one[s][name], two[s][name]) for s in sorted(one.keys() & two.keys())]

    def differences(self, cell: str, method: str, other: str, name: str) -> list[float]:
        """Return method minus other, seed by seed."""
        return [a - b for a, b in self.pairs(cell, method, other, name)]

    def shared(self, method: str, *, noisy: bool) -> list[str]:
        """Return the cells with common seeds of method and reference.

        They are those with wrong labels if `noisy`, else those with correct labels.
        """
        return [
            cell
            for cell in self.cells
            if self.pairs(cell, method, REFERENCE, "noise")
            and (self.values(cell, method, "noise")[0] > 0) == noisy
        ]

    def overfits(self, cell: str) -> bool:
        """Whether the reference overfits: training accuracy far above test accuracy."""
        train = self.values(cell, REFERENCE, "train_accuracy")
        test = self.values(cell, REFERENCE, "accuracy")
        return statistics.fmean(train) - statistics.fmean(test) > OVERFIT

    def memorises(self, cell: str) -> bool:
        """Whether the reference memorises: it predicts many of the wrong labels."""
        return statistics.fmean(self.values(cell, REFERENCE, "memorised")) > MEMORISED


def _named(cells: list[str], difference: Callable[[str], float]) -> dict[str, float]:
    return {cell: difference(cell) for cell in cells}


def _mean_line(subject: str, by_cell: dict[str, float], form: str) -> Line:
    value = statistics.fmean(by_cell.values()) if by_cell else None
    return Line(subject, value, form, len(by_cell))


def _worst_line(subject: str, by_cell: dict[str, float], worst: Callable) -> Line:
    if not by_cell:
        return Line(subject, None, POINTS, 0)
    cell = worst(by_cell, key=by_cell.get)
    return Line(subject, by_cell[cell], POINTS, len(by_cell), cell)


def _ratio_lines(data: Comparison, subject: str, cells, method: str, name: str):
    """Yield the mean of the ratios of all cells, and the ratio of the means."""
    pairs = [
        [statistics.fmean(side) for side in zip(*found, strict=True)]
        for cell in cells
        if (found := data.pairs(cell, method, REFERENCE, name))
    ]
    subject = f"{subject}: {name.upper()} ratio"
    both = of_means = None
    if pairs:
        both = statistics.fmean(a / b for a, b in pairs)
        of_means = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    yield Line(f"{subject}, mean of ratios", both, RATIO, len(pairs))
    yield Line(f"{subject}, ratio of means", of_means, RATIO, len(pairs))


def summary(data: Comparison, method: str) -> list[Line]:
    """Compare a method with the reference over all cells; differences in points."""

    def points(name: str) -> Callable[[str], float]:
        return lambda cell: (
            100 * statistics.fmean(data.differences(cell, method, REFERENCE, name))
        )

    clean, noisy = (data.shared(method, noisy=x) for x in (False, True))
    overfit = [cell for cell in clean if data.overfits(cell)]
    memorised = [cell for cell in noisy if data.memorises(cell)]
    accuracy = _named(clean, points("accuracy"))
    lines = [
        _worst_line("correct labels: accuracy difference, worst", accuracy, min),
        _mean_line("correct labels: accuracy difference, mean", accuracy, POINTS),
    ]
    where = f"correct labels, {REFERENCE} overfits"
    lines += _ratio_lines(data, where, overfit, method, "nll")
    lines += _ratio_lines(data, where, overfit, method, "ece")
    lines += _ratio_lines(data, "correct labels", clean, method, "ece")
    ece = _named(clean, points("ece"))
    lines.append(_worst_line("correct labels: ECE difference, worst", ece, max))
    gain = _named(memorised, points("accuracy"))
    where = f"wrong labels, {REFERENCE} memorises: accuracy difference, mean"
    lines.append(_mean_line(where, gain, POINTS))
    accuracy = _named(noisy, points("accuracy"))
    lines.append(_worst_line("wrong labels: accuracy difference, worst", accuracy, min))
    lines += _ratio_lines(data, "wrong labels", noisy, method, "nll")
    for name in (method, REFERENCE):
        ece = _named(
            noisy, lambda c, x=name: 100 * statistics.fmean(data.values(c, x, "ece"))
        )
        lines.append(_mean_line(f"wrong labels: ECE % of {name}, mean", ece, SHARE))
    for name, kind in (("seconds", "fit seconds"), ("cpu_seconds", "fit CPU seconds")):
        times = [
            a / b
            for cell in data.cells
            for a, b in data.pairs(cell, method, REFERENCE, name)
        ]
        median = statistics.median(times) if times else None
        subject = f"{kind} ratio, median of runs"
        lines.append(Line(subject, median, RATIO, len(times)))
    return lines


def best_rivals(data: Comparison, method: str):
    """Yield cell, best rival and accuracy difference to it, best rival and NLL ratio.

    A rival is a method other than BSD. The best one in accuracy is the one with the
    smallest difference over the seeds that it shares with the method; likewise in NLL.
    """
    for cell in data.cells:
        rivals = [
            rival
            for rival in data.methods(cell)
            if not rival.startswith("BSD") and data.pairs(cell, method, rival, "nll")
        ]
        if not rivals:
            continue
        differences, ratios = {}, {}
        for rival in rivals:
            found = data.differences(cell, method, rival, "accuracy")
            differences[rival] = 100 * statistics.fmean(found)
            mine, theirs = zip(*data.pairs(cell, method, rival, "nll"), strict=True)
            ratios[rival] = sum(mine) / sum(theirs)
        first = min(differences, key=differences.get)
        second = max(ratios, key=ratios.get)
        yield cell, first, differences[first], second, ratios[second]


_RIGHT_OVERFIT = f"correct labels, {REFERENCE} overfits"
_WRONG_MEMORISED = f"wrong labels, {REFERENCE} memorises"
# Lines of the summary and their shorter names in the table of all methods.
_SHORT = {
    "correct labels: accuracy difference, worst": "correct labels: worst accuracy",
    "correct labels: accuracy difference, mean": "correct labels: accuracy",
    f"{_RIGHT_OVERFIT}: NLL ratio, mean of ratios": "overfit: NLL",
    f"{_RIGHT_OVERFIT}: ECE ratio, mean of ratios": "overfit: ECE",
    "correct labels: ECE ratio, ratio of means": "correct labels: ECE",
    f"{_WRONG_MEMORISED}: accuracy difference, mean": "memorised: accuracy",
    "wrong labels: accuracy difference, worst": "wrong labels: worst accuracy",
    "wrong labels: NLL ratio, mean of ratios": "wrong labels: NLL",
    "ECE %": "wrong labels: ECE %",
    "fit CPU seconds ratio, median of runs": "CPU time",
}


def overview(data: Comparison) -> Iterable[str]:
    """Yield the lines of a table with one row per method."""
    rows = {}
    for method in sorted({method for runs in data.runs.values() for method in runs}):
        lines = {line.subject: line for line in summary(data, method)}
        lines["ECE %"] = lines[f"wrong labels: ECE % of {method}, mean"]
        values = [lines[subject] for subject in _SHORT]
        counts = [len(runs[method]) for runs in data.runs.values() if method in runs]
        rows[method] = (len(counts), counts, values)
    yield f"| method | settings | seeds | {' | '.join(_SHORT.values())} |"
    yield "|---" * (len(_SHORT) + 3) + "|"
    for method, (cells, counts, values) in rows.items():
        shown = ["" if v.value is None else format(v.value, v.form) for v in values]
        seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
        yield f"| {method} | {cells} | {seeds} | {' | '.join(shown)} |"


def _spread(values: list[float], digits: int, sign: str = "") -> str:
    """Format mean and standard deviation over seeds."""
    if not values:
        return ""
    text = f"{statistics.fmean(values):{sign}.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if values[1:] else text


def cell_table(data: Comparison, cell: str) -> list[str]:
    """Return the lines of a cell's table."""
    title = CELLS[cell].title if cell in CELLS else cell
    lines = [f"### {title}", ""]
    notes = []
    for name, text in (("train_accuracy", "training accuracy"), ("memorised", "")):
        values = data.values(cell, REFERENCE, name)
        if values and values[0] == values[0]:  # memorised is nan without noise
            share = f"{100 * statistics.fmean(values):.1f} %"
            notes.append(
                f"{text} {share}" if text else f"{share} of wrong labels memorised"
            )
    if notes:
        lines += [f"`{cell}`; {REFERENCE}: {', '.join(notes)}.", ""]
    lines += [
        "| method | seeds | accuracy % | difference | ECE % | difference "
        "| NLL | difference | seconds | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in data.methods(cell):
        row = [method, str(len(data.values(cell, method, "seed")))]
        for name, scale, digits in (
            ("accuracy", 100, 2),
            ("ece", 100, 2),
            ("nll", 1, 4),
        ):
            values = [scale * x for x in data.values(cell, method, name)]
            row.append(_spread(values, digits))
            differences = data.differences(cell, method, REFERENCE, name)
            own = method == REFERENCE
            scaled = [] if own else [scale * x for x in differences]
            row.append(_spread(scaled, digits, "+"))
        times = data.pairs(cell, method, REFERENCE, "seconds")
        row.append(f"{statistics.fmean(data.values(cell, method, 'seconds')):.1f}")
        row.append(f"{statistics.median(a / b for a, b in times):.2f}" if times else "")
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def markdown(data: Comparison, panel: str) -> str:
    """Return the whole report."""
    lines = [f"# Comparison: panel {panel}", ""]
    lines += [
        "Mean ± standard deviation over seeds. Differences and ratios are relative to "
        f"{REFERENCE}, and are computed seed by seed. Differences of percentages are "
        "in percentage points. A setting is a combination of data, network, number of "
        "epochs and label noise.",
        "",
    ]
    found = {method for cell in data.cells for method in data.methods(cell)}
    for method in ("BSD", "BSD noisy"):
        if method not in found:
            continue
        lines += [f"## {method} against {REFERENCE}", ""]
        lines += ["| | value | count | setting |", "|---|---|---|---|"]
        lines += [*map(str, summary(data, method)), ""]
        lines += [f"## {method} against the best other method", ""]
        lines += [
            "| setting | best in accuracy | difference | best in NLL | ratio |",
            "|---|---|---|---|---|",
        ]
        found_rivals = [*best_rivals(data, method)]
        lines += [
            f"| {cell} | {first} | {gap:+.2f} | {second} | {ratio:.3f} |"
            for cell, first, gap, second, ratio in found_rivals
        ]
        if found_rivals:
            _, _, gaps, _, ratios = zip(*found_rivals, strict=True)
            mean, ratio = statistics.fmean(gaps), statistics.fmean(ratios)
            lines.append(f"| mean | | {mean:+.2f} | | {ratio:.3f} |")
        lines.append("")
    lines += [
        f"## All methods against {REFERENCE}",
        "",
        "Accuracy: differences in percentage points; NLL, ECE and CPU time: ratios; "
        "ECE %: the value itself. They are over the settings that the method ran on.",
        "",
        *overview(data),
        "",
    ]
    lines += ["## Settings", ""]
    for cell in data.cells:
        lines += cell_table(data, cell)
    return "\n".join(lines)


def picture(data: Comparison, file: Path) -> None:
    """Draw accuracy over ECE, with one small plot for each cell.

    This is one long function, as most of it are settings of matplotlib, in order.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(data.cells))
    n_rows = -(-len(data.cells) // columns)
    width, height = 3.1 * columns + 0.3, 2.7 * n_rows + 0.9
    figure = Figure(figsize=(max(width, 5), height), layout="constrained")
    axes = figure.subplots(n_rows, columns, squeeze=False).ravel()
    handles = {}
    for ax, cell in zip(axes, data.cells, strict=False):
        for method in data.methods(cell):
            x, y = (
                [100 * v for v in data.values(cell, method, name)]
                for name in ("ece", "accuracy")
            )
            color, marker = STYLES.get(method, ("#999999", "h"))
            handles[method] = ax.errorbar(
                statistics.fmean(x),
                statistics.fmean(y),
                xerr=statistics.stdev(x) if x[1:] else None,
                yerr=statistics.stdev(y) if y[1:] else None,
                color=color,
                marker=marker,
                markersize=11 if marker == "*" else 7,
                markeredgecolor="white",
                markeredgewidth=0.5,
                elinewidth=1,
                linestyle="none",
            )
        title = CELLS[cell].title if cell in CELLS else cell
        what, _, how = title.partition(", n = ")
        ax.set_title(f"{what}\nn = {how}" if how else what, fontsize=8.5)
        ax.tick_params(labelsize=8)
        ax.margins(0.15)
        ax.grid(color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.locator_params(nbins=5)
    for ax in axes[len(data.cells) :]:
        ax.remove()
    figure.supxlabel("top-label ECE %, 15 bins (lower is better)", fontsize=10)
    figure.supylabel("test accuracy %", fontsize=10)
    known = [method for method in STYLES if method in handles]
    shown = [*known, *(method for method in handles if method not in STYLES)]
    figure.legend(
        [handles[method] for method in shown],
        shown,
        loc="outside upper center",
        ncols=min(len(shown), max(2, 3 * columns // 2)),
        frameon=False,
        fontsize=9,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def report(
    rows: list[dict],
    panel: str,
    *,
    tables: Path | None = None,
    image: Path | None = None,
) -> None:
    """Print the tables and the summary, and write them and the picture."""
    if not rows:
        print("no results yet")
        return
    data = Comparison(rows)
    text = markdown(data, panel)
    print(f"\n{text}")
    if tables is not None:
        tables.mkdir(parents=True, exist_ok=True)
        file = tables / f"compare_{panel}.md"
        file.write_text(text, encoding="utf-8")
        print(f"written: {file}")
    if image is not None:
        picture(data, image)
        print(f"written: {image}")
