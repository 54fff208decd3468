"""Figures of `gpu.py`: one JSON line each as they come, and a table of all of them."""

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _common import repair

# Tables are written to these files of the folder, and figures to the last.
CSV, MARKDOWN, LINES = "gpu.csv", "gpu.md", "gpu.jsonl"
COLUMNS = ("stage", "case", "quantity", "unit", "median", "min", "max", "n")
COLUMNS = (*COLUMNS, "target", "met")
# Of the card and the software, in the line above the table.
HEAD = "card"


@dataclass(frozen=True)
class Figure:
    """What was measured, as often as it was.

    Parameters
    ----------
    stage, case, quantity, unit : str
        The first three tell figures from each other.
    values : list of float, or of one str
    target : float, optional
        What the median should be at most.
    at_least : bool
        Whether it should be that at least.
    """

    stage: str
    case: str
    quantity: str
    unit: str
    values: list[Any]
    target: float | None = None
    at_least: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others; the last one counts."""
        return self.stage, self.case, self.quantity

    @property
    def is_text(self) -> bool:
        """Whether it is not a number."""
        return any(isinstance(value, str) for value in self.values)

    @property
    def met(self) -> bool | None:
        """Whether it is as good as its target, where there is one."""
        if self.target is None or self.is_text:
            return None
        median = statistics.median(self.values)
        # Not a number is neither.
        return median >= self.target if self.at_least else median <= self.target

    def row(self) -> list[str]:
        """Return the entries of COLUMNS."""
        head = [self.stage, self.case, self.quantity, self.unit]
        if self.is_text:
            return [*head, " ".join(map(str, self.values)), "", "", "", "", ""]
        of_all = statistics.median(self.values), min(self.values), max(self.values)
        target, met = "", ""
        if self.target is not None:
            target = f"{'>=' if self.at_least else '<='} {shown(self.target)}"
            met = "yes" if self.met else "no"
        return [*head, *map(shown, of_all), str(len(self.values)), target, met]


def shown(value: float) -> str:
    """Format a number with four digits."""
    if math.isfinite(value) and (value == round(value) or abs(value) >= 1e4):
        return f"{value:.0f}"
    return f"{value:.4g}"


class Figures:
    """Figures and finished stages in a folder.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / LINES
        repair(self.file)

    def add(
        self,
        stage: str,
        case: str,
        quantity: str,
        unit: str,
        values: Sequence[Any] | float | str,
        target: float | None = None,
        *,
        at_least: bool = False,
    ) -> Figure:
        """Write a figure, and print it."""
        if isinstance(values, (str, int, float)):
            values = [values]
        values = [v if isinstance(v, str) else float(v) for v in values]
        figure = Figure(stage, case, quantity, unit, values, target, at_least)
        self._write(asdict(figure))
        print("  ".join(entry for entry in figure.row() if entry), flush=True)
        return figure

    def finish(self, stage: str, status: str, seconds: float) -> None:
        """Write how a stage ended."""
        self._write({"stage": stage, "status": status, "seconds": round(seconds, 1)})

    def read(self) -> tuple[list[Figure], dict[str, tuple[str, float]]]:
        """Return the last of each figure, and status and seconds of each stage."""
        figures: dict[tuple, Figure] = {}
        stages: dict[str, tuple[str, float]] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                entry = json.loads(line)
                if "status" in entry:
                    stages[entry["stage"]] = entry["status"], entry["seconds"]
                else:
                    figure = Figure(**entry)
                    figures.pop(figure.key, None)
                    figures[figure.key] = figure
        return [*figures.values()], stages

    def write_tables(self) -> None:
        """Write what there is so far as CSV and as Markdown."""
        figures, stages = self.read()
        with (self.folder / CSV).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(figure.row() for figure in figures)
        (self.folder / MARKDOWN).write_text(markdown(figures, stages))

    def _write(self, entry: dict) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def summary(figures: list[Figure], stages: dict[str, tuple[str, float]]) -> str:
    """Lay out card, what became of the stages, and what was wanted."""
    about = [
        f"{f.quantity} {' '.join(f.row()[4:5])}" for f in figures if f.case == HEAD
    ]
    lines = [
        "# On a GPU",
        "",
        "; ".join(about) + ".",
        "",
        "| stage | ended | seconds |",
    ]
    lines.append("|---|---|---|")
    lines += [f"| {name} | {how} | {t:.0f} |" for name, (how, t) in stages.items()]
    aims = [figure for figure in figures if figure.met is not None]
    aims.sort(key=lambda figure: figure.met)  # what was missed comes first
    lines += ["", "## What was wanted", "", *_table(aims, COLUMNS)]
    return "\n".join(lines) + "\n"


def markdown(figures: list[Figure], stages: dict[str, tuple[str, float]]) -> str:
    """Lay out the summary, and all figures by stage."""
    lines = [summary(figures, stages)]
    for stage in dict.fromkeys(figure.stage for figure in figures):
        chosen = [figure for figure in figures if figure.stage == stage]
        lines += [f"## {stage}", "", *_table(chosen, COLUMNS[1:]), ""]
    return "\n".join(lines)


def _table(figures: list[Figure], columns: Sequence[str]) -> list[str]:
    """Return the lines of a table with the last columns of a row."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for figure in figures:
        cells = (entry.replace("|", "\\|") for entry in figure.row()[-len(columns) :])
        lines.append(f"| {' | '.join(cells)} |")
    return lines
