"""Compare several trainings: scores, tables and pictures. Used by other examples."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss

from skbsd.display import ReliabilityDisplay
from skbsd.metrics import calibration_curve, expected_calibration_error


class Comparison:
    """Collect the scores of several runs and print a line for each.

    Scores of several seeds are means ± standard deviations. The calibration error also
    has the 95 % interval of its mean, by Student's t.
    """

    def __init__(self):
        self.rows: list[dict] = []
        self.predictions: dict[str, list] = {}

    def add(self, name: str, seed: int, y_true, y_proba, classes) -> None:
        """Score the predictions of a run and print the line."""
        row = {
            "training": name,
            "seed": seed,
            "accuracy": accuracy_score(y_true, classes[y_proba.argmax(axis=1)]),
            "ece": expected_calibration_error(y_true, y_proba, labels=classes),
            "nll": log_loss(y_true, y_proba, labels=classes),
        }
        self.rows.append(row)
        self.predictions.setdefault(name, []).append((y_true, y_proba))
        print(f"seed {seed}  {_line(name, [row])}", flush=True)

    def summary(self) -> None:
        """Print the mean and standard deviation of each kind of training."""
        for name in self.predictions:
            print(f"mean    {_line(name, self.rows_of(name))}")

    def rows_of(self, name: str) -> list[dict]:
        """Return the scores of one kind of training, a row per seed."""
        return [row for row in self.rows if row["training"] == name]

    def plot(self, ax) -> None:
        """Draw the reliability of each kind of training, all seeds together.

        Bins of fewer than 20 predictions are left out.
        """
        ax.plot([0, 1], [0, 1], ":", color="0.35", linewidth=1, zorder=1)
        for name, runs in self.predictions.items():
            y_true, y_proba = (np.concatenate(part) for part in zip(*runs, strict=True))
            curve = calibration_curve(y_true, y_proba, n_bins=10)
            enough = curve.count >= 20
            display = ReliabilityDisplay(
                curve.confidence[enough],
                curve.accuracy[enough],
                curve.count[enough],
                curve.edges[enough],
                ece=np.mean([row["ece"] for row in self.rows_of(name)]),
            )
            label = f"{name}: ECE {_show(self.rows_of(name), 'ece', 100, 1)} %"
            display.plot(ax, ref_line=False, label=label)
        ax.legend(loc="upper left", fontsize="small")  # where few curves are


def write(stem: Path, comparisons: Mapping[str, Comparison]) -> None:
    """Write tables as CSV and reliability diagrams as PNG, a panel per comparison."""
    import matplotlib.pyplot as plt

    stem.parent.mkdir(parents=True, exist_ok=True)
    table, picture = stem.with_suffix(".csv"), stem.with_suffix(".png")
    rows = [
        {"data": title, **row}
        for title, comparison in comparisons.items()
        for row in comparison.rows
    ]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    n = len(comparisons)
    figure, axes = plt.subplots(
        1, n, figsize=(4.8 * n, 5.8), squeeze=False, layout="constrained"
    )
    for ax, (title, comparison) in zip(axes[0], comparisons.items(), strict=True):
        comparison.plot(ax)
        ax.set_title(title)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    print(f"\nwrote {table} and {picture}")


def _line(name: str, rows: list[dict]) -> str:
    ece = f"{_show(rows, 'ece', 100, 1)} %"
    if len(rows) > 1:
        values = 100 * np.array([row["ece"] for row in rows])
        half = stats.t.ppf(0.975, len(rows) - 1) * stats.sem(values)
        ece += f" ({values.mean() - half:.1f} to {values.mean() + half:.1f})"
    return (
        f"{f'[{name}]':18} Acc {_show(rows, 'accuracy', 100, 1)} %; ECE {ece}; "
        f"NLL {_show(rows, 'nll', 1, 3)}"
    )


def _show(rows: list[dict], key: str, scale: float, digits: int) -> str:
    """Format a score: a value, or mean ± standard deviation of several."""
    values = scale * np.array([row[key] for row in rows])
    text = f"{values.mean():.{digits}f}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1):.{digits}f}"
    return text
