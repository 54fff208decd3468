"""Thumbnails of examples about inputs and networks."""

import pandas as pd
from drawing import (
    ARROW,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    blank,
    box,
    run_example,
    show_digit,
)
from matplotlib.patches import Rectangle
from sklearn.datasets import load_diabetes, load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier


def table_pipeline(figure) -> None:
    """Draw a table of several kinds of columns, and the probabilities of a patient."""
    X, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    classes = ["slow", "medium", "fast"]
    y = pd.qcut(progression, 3, labels=classes).astype(str)
    model = make_pipeline(StandardScaler(), BSDClassifier(random_state=0)).fit(X, y)
    patients = X.iloc[[0, 2, 4]]
    proba = dict(zip(model.classes_, model.predict_proba(X.iloc[:1])[0], strict=True))
    ax = blank(figure)
    rows = [
        [
            f"{patient.age:.0f}",
            {1: "female", 2: "male"}[patient.sex],
            f"{patient.s1:.0f}",
        ]
        for patient in patients.itertuples()
    ]
    rows[1][2] = "?"
    for i, row in enumerate([["age", "sex", "s1"], *rows]):
        for x, text in zip((0.08, 0.25, 0.43), row, strict=True):
            weight = "bold" if i == 0 else "normal"
            ax.text(x, 0.8 - 0.18 * i, text, ha="center", weight=weight)
    ax.axhline(0.755, 0.02, 0.49, color="0.3", linewidth=2)
    ax.annotate("", (0.62, 0.5), (0.51, 0.5), arrowprops=ARROW)
    bars = figure.add_axes((0.68, 0.24, 0.3, 0.6))
    bars.bar(classes, [proba[name] for name in classes], color=[BLUE, GRAY, ORANGE])
    bars.set(yticks=[], xticks=range(3), xticklabels=["slow", "", "fast"])


def own_module(figure) -> None:
    """Draw an image, the network that reads it and its answer."""
    X, y = load_digits(return_X_y=True)
    ax = blank(figure)
    show_digit(figure.add_axes((0.02, 0.27, 0.3, 0.46)), X[7])
    box(ax, 0.42, 0.3, 0.34, 0.4, "your\nModule", weight="bold", size=18)
    ax.annotate("", (0.41, 0.5), (0.31, 0.5), arrowprops=ARROW)
    ax.annotate("", (0.89, 0.5), (0.77, 0.5), arrowprops=ARROW)
    ax.text(0.94, 0.5, y[7], ha="center", va="center", size=34, weight="bold")


def text(figure) -> None:
    """Draw some phrases and the libraries that the transformer assigns them to."""
    example = run_example("text")
    phrases = ["number of trees", "applies dropout", "zeros of a filter"]
    model = example["model"]
    proba = model.predict_proba(example["encode"](phrases))
    ax = blank(figure)
    for i, (phrase, best) in enumerate(zip(phrases, proba.argmax(axis=1), strict=True)):
        y, library = 0.8 - 0.3 * i, model.classes_[best]
        ax.text(0.03, y, phrase, va="center", style="italic")
        ax.annotate("", (0.6, y), (0.49, y), arrowprops=ARROW)
        color = (BLUE, ORANGE, GREEN)[i]
        box(ax, 0.61, y - 0.11, 0.37, 0.22, library, color=color, weight="bold")


def image_folders(figure) -> None:
    """Draw folders of images with their names."""
    digits = load_digits()
    ax = blank(figure)
    for k, (name, color) in enumerate(
        zip(("zero", "one", "two"), (BLUE, ORANGE, GREEN), strict=True)
    ):
        y = 0.7 - 0.31 * k
        ax.add_patch(
            Rectangle((0.045, y + 0.21), 0.12, 0.04, facecolor=color, alpha=0.9)
        )
        box(ax, 0.03, y, 0.31, 0.21, name, color=color, size=18, weight="bold")
        for i, image in enumerate(digits.images[digits.target == k][:3]):
            show_digit(figure.add_axes((0.39 + 0.2 * i, y - 0.01, 0.2, 0.25)), image)


def pretrained_backbone(figure) -> None:
    """Draw the accuracy of a network from scratch and of a pretrained one."""
    scores = run_example("pretrained_backbone")["scores"]
    ax = figure.subplots()
    bars = ax.bar(list(scores), list(scores.values()), color=[GRAY, GREEN], width=0.6)
    ax.bar_label(bars, fmt="{:.0%}", padding=3, weight="bold", size=18)
    ax.set(yticks=[], ylim=(0, 1.15), title="30 labelled images")
    ax.tick_params("x", length=0, labelsize=15)
    ax.spines["left"].set_visible(False)


def table_and_image(figure) -> None:
    """Draw half an image and four measurements, and the class of both together."""
    example = run_example("table_and_image")
    row = 4
    X, y = example["X_test"], example["y_test"]
    predicted = example["search"].predict({name: X[name][[row]] for name in X})
    if predicted[0] != y[row]:
        raise RuntimeError(f"image {row} is recognised no longer; draw another one")
    ax = blank(figure)
    half = figure.add_axes((0.04, 0.58, 0.44, 0.36))
    half.imshow(X["image"][row][0, :4], cmap="gray_r", aspect="auto")
    half.set(xticks=[], yticks=[])
    half.spines[:].set_visible(True)
    bars = figure.add_axes((0.04, 0.06, 0.44, 0.36))
    bars.bar(range(4), X["table"][row] + 3, color=BLUE)
    bars.set(xticks=[], yticks=[])
    ax.text(0.26, 0.5, "+", ha="center", va="center", size=24, weight="bold")
    ax.annotate("", (0.68, 0.5), (0.54, 0.5), arrowprops=ARROW)
    kwargs = {"ha": "center", "va": "center", "weight": "bold"}
    ax.text(0.84, 0.5, predicted[0], size=60, color=GREEN, **kwargs)
