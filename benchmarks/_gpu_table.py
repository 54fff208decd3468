"""Results of `gpu.py`: one JSON line per result, written at once, and tables."""

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _common import repair

# Names of the files for the two tables and for the JSON lines.
CSV, MARKDOWN, LINES = "gpu.csv", "gpu.md", "gpu.jsonl"
COLUMNS = ("stage", "case", "quantity", "unit", "median", "min", "max", "n")
COLUMNS = (*COLUMNS, "target", "met")
# Case of results about card and software, which are shown above the table.
HEAD = "card"


@dataclass(frozen=True)
class Figure:
    """All measurements of one quantity.

    Parameters
    ----------
    stage, case, quantity, unit : str
        The first three together are the key.
    values : list of float, or of one str
    target : float, optional
        Upper limit for the median.
    at_least : bool
        Whether `target` is a lower limit instead.
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
        """The key; a later figure with the same key replaces an earlier one."""
        return self.stage, self.case, self.quantity

    @property
    def is_text(self) -> bool:
        """Whether the value is text."""
        return any(isinstance(value, str) for value in self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without a target."""
        if self.target is None or self.is_text:
            return None
        median = statistics.median(self.values)
        # Comparisons with NaN are false.
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
    """Format a number with four significant digits."""
    if math.isfinite(value) and (value == round(value) or abs(value) >= 1e4):
        return f"{value:.0f}"
    return f"{value:.4g}"


class Figures:
    """Figures and finished stages, stored in a folder.

    Parameters
    ----------
    folder : Path
        Created if missing.
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
        """Store and print a figure."""
        if isinstance(values, (str, int, float)):
            values = [values]
        values = [v if isinstance(v, str) else float(v) for v in values]
        figure = Figure(stage, case, quantity, unit, values, target, at_least)
        self._write(asdict(figure))
        print("  ".join(entry for entry in figure.row() if entry), flush=True)
        return figure

    def finish(self, stage: str, status: str, seconds: float) -> None:
        """Store the status and the duration of a stage."""
        self._write({"stage": stage, "status": status, "seconds": round(seconds, 1)})

    def read(self) -> tuple[list[Figure], dict[str, tuple[str, float]]]:
        """Return the latest figure per key, and status and seconds of each stage."""
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
        """Write all figures so far as CSV and as Markdown."""
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
    """Return the description of the GPU, the stages, and the targets as Markdown."""
    about = [
        f"{f.quantity} {' '.join(f.row()[4:5])}" for f in figures if f.case == HEAD
    ]
    lines = [
        "# Results on a GPU",
        "",
        "; ".join(about) + ".",
        "",
        "| stage | status | seconds |",
    ]
    lines.append("|---|---|---|")
    lines += [f"| {name} | {how} | {t:.0f} |" for name, (how, t) in stages.items()]
    aims = [figure for figure in figures if figure.met is not None]
    aims.sort(key=lambda figure: figure.met)  # missed targets come first
    lines += ["", "## Targets", "", *_table(aims, COLUMNS)]
    return "\n".join(lines) + "\n"


def markdown(figures: list[Figure], stages: dict[str, tuple[str, float]]) -> str:
    """Return the summary, and all figures by stage, as Markdown."""
    lines = [summary(figures, stages)]
    for stage in dict.fromkeys(figure.stage for figure in figures):
        chosen = [figure for figure in figures if figure.stage == stage]
        lines += [f"## {stage}", "", *_table(chosen, COLUMNS[1:]), ""]
    return "\n".join(lines)


def _table(figures: list[Figure], columns: Sequence[str]) -> list[str]:
    """Return the lines of a table with the last columns of each row."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for figure in figures:
        cells = (entry.replace("|", "\\|") for entry in figure.row()[-len(columns) :])
        lines.append(f"| {' | '.join(cells)} |")
    return lines
