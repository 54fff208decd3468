"""Thumbnails of examples about processes and other libraries."""

from drawing import ARROW, BLUE, GREEN, ORANGE, blank, box


def several_processes(figure) -> None:
    """Draw parts of the samples, a process for each, and their one network."""
    ax = blank(figure)
    for i, color in enumerate((BLUE, ORANGE, GREEN)):
        y = 0.72 - 0.3 * i
        for k in range(4):
            box(ax, 0.03 + 0.045 * k, y, 0.035, 0.2, color=color)
        ax.annotate("", (0.33, y + 0.1), (0.22, y + 0.1), arrowprops=ARROW)
        box(ax, 0.33, y, 0.26, 0.2, f"process {i}", color=color, size=13)
        ax.annotate("", (0.72, 0.52), (0.6, y + 0.1), arrowprops=ARROW)
    box(ax, 0.72, 0.32, 0.26, 0.4, "one\nnetwork", color="0.3", weight="bold")


def mlflow_model(figure) -> None:
    """Draw the way of a model: fitted, logged, served."""
    ax = blank(figure)
    for x, text, color in (
        (0.02, "fit", BLUE),
        (0.37, "log", GREEN),
        (0.72, "serve", ORANGE),
    ):
        box(ax, x, 0.35, 0.26, 0.3, text, color=color, size=18, weight="bold")
    for x in (0.28, 0.63):
        ax.annotate("", (x + 0.09, 0.5), (x, 0.5), arrowprops=ARROW)
