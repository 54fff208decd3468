"""What the thumbnails have in common: colours, data and shapes."""

import runpy
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skbsd.label_noise import flip_labels

EXAMPLES = Path(__file__).parents[2] / "examples"
# Okabe and Ito, as in the pictures.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "0.6"
STYLE = {
    "font.size": 15,
    "lines.linewidth": 4,
    "axes.linewidth": 1.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
}
ARROW = {"arrowstyle": "-|>", "linewidth": 4, "color": "0.3", "mutation_scale": 25}


def digits(train_size: float, wrong: float):
    """Return images and labels to train on, some of them wrong, and to test on."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X / 16, y, train_size=train_size, random_state=0, stratify=y
    )
    given, _ = flip_labels(y_train, wrong, random_state=0)
    return X_train, X_test, given, y_test


def show_digit(ax, pixels, title: str = "", **kwargs) -> None:
    """Show an image of 8 x 8 pixels."""
    ax.imshow(pixels.reshape(8, 8), cmap="gray_r")
    ax.set_title(title, **kwargs)
    ax.axis("off")


def box(ax, x, y, width, height, text="", color=BLUE, **kwargs) -> None:
    """Draw a rounded box with a text in the middle."""
    pad = "round,pad=0,rounding_size=0.02"
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=pad, facecolor=color, alpha=0.9)
    )
    place = (x + width / 2, y + height / 2)
    ax.text(*place, text, ha="center", va="center", color="white", **kwargs)


def blank(figure):
    """Return axes of [0, 1] x [0, 1] that show nothing by themselves."""
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return ax


def run_example(name: str) -> dict:
    """Run an example without showing its pictures, and return its variables."""
    before = set(plt.get_fignums())
    with plt.rc_context(), patch("matplotlib.pyplot.show"):
        plt.rcdefaults()
        variables = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    for number in set(plt.get_fignums()) - before:
        plt.close(number)
    return variables
