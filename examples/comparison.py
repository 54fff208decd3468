"""What the examples share: the same network, trained with cross-entropy and by BSD."""

import csv
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, log_loss

from skbsd.display import ReliabilityDisplay
from skbsd.metrics import expected_calibration_error


class Comparison:
    """Collects the figures of several runs and says them in a line each.

    Parameters
    ----------
    output : Path
        Folder for the table and the picture.
    """

    def __init__(self, output: Path):
        self.output = output
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
        print(f"seed {seed}  {self._line(name, [row])}", flush=True)

    def summary(self) -> None:
        """Print the mean and standard deviation of each kind of training."""
        for name in self.predictions:
            rows = [row for row in self.rows if row["training"] == name]
            print(f"mean    {self._line(name, rows)}")

    def write(self, stem: str, title: str) -> None:
        """Write the table as CSV and the reliability diagram as PNG."""
        import matplotlib.pyplot as plt

        self.output.mkdir(parents=True, exist_ok=True)
        table = self.output / f"{stem}.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        figure, ax = plt.subplots(figsize=(5, 6), layout="constrained")
        for name, runs in self.predictions.items():
            y_true, y_proba = (np.concatenate(part) for part in zip(*runs, strict=True))
            ReliabilityDisplay.from_predictions(y_true, y_proba, name=name, ax=ax)
        ax.set_title(title)
        picture = self.output / f"{stem}.png"
        figure.savefig(picture, dpi=120)
        plt.close(figure)
        print(f"\nwrote {table} and {picture}")

    @staticmethod
    def _line(name: str, rows: list[dict]) -> str:
        def show(key: str, scale: float, digits: int) -> str:
            values = scale * np.array([row[key] for row in rows])
            text = f"{values.mean():.{digits}f}"
            if len(values) > 1:
                text += f" ± {values.std(ddof=1):.{digits}f}"
            return text

        return (
            f"{f'[{name}]':6} Acc {show('accuracy', 100, 1)} %; "
            f"ECE {show('ece', 100, 1)} %; NLL {show('nll', 1, 3)}"
        )
