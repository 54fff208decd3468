"""Draw the gallery's thumbnails, one for each example, into docs/_static/thumbnails.

A picture of an example has too many small words to be a thumbnail. These draw real
results on the same data with few words, and are legible at 400 x 280 pixels. An example
names its own by ``# sphinx_gallery_thumbnail_path``. They are kept in the repository,
so building the site does not draw them. Drawing all takes about two minutes on one
core.

    python docs/thumbnails.py                     # all of them
    python docs/thumbnails.py reliability         # one of them
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import FancyBboxPatch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from skbsd import BSDClassifier
from skbsd.label_noise import find_label_issues, flip_labels
from skbsd.metrics import calibration_curve, get_scorer
from skbsd.model_selection import StackedGridSearchCV

FOLDER = Path(__file__).parent / "_static" / "thumbnails"
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


def reliability(figure) -> None:
    """Draw the curves of cross-entropy, below the diagonal, and of BSD."""
    X, X_test, given, y_test = digits(0.25, 0.3)
    ce = BSDClassifier(prior_strength=math.inf, calibration=None, random_state=0)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], ":", color="0.35", linewidth=2)
    for name, model, color in (
        ("BSD", BSDClassifier(random_state=0), GREEN),
        ("cross-entropy", ce, BLUE),
    ):
        network = make_pipeline(StandardScaler(), model).fit(X, given)
        proba = network.predict_proba(X_test)
        curve = calibration_curve(y_test, proba, n_bins=8)
        enough = curve.count >= 20
        confidence, accuracy = curve.confidence[enough], curve.accuracy[enough]
        ax.plot(confidence, accuracy, color=color, label=name)
    ax.legend(frameon=False, loc="upper left", borderaxespad=0)
    ax.set(xlabel="confidence", ylabel="accuracy", xticks=[0, 1], yticks=[0, 1])


class Masses(Callback):
    """Notes the targets after every epoch."""

    def on_train_begin(self, net, **kwargs):
        """Begin with the labels."""
        self.pages_ = [net.posterior_.mean().cpu().numpy()]

    def on_epoch_end(self, net, **kwargs):
        """Add those of an epoch."""
        self.pages_.append(net.posterior_.mean().cpu().numpy())


def what_it_believes(figure) -> None:
    """Draw how the target of an image with a wrong label moves."""
    X, y = load_digits(return_X_y=True)
    given, wrong = flip_labels(y, 0.1, random_state=0)
    model = BSDClassifier(
        image_shape=(1, 8, 8),
        prior_strength="noisy",
        callbacks=[("masses", Masses())],
        random_state=0,
    ).fit(X, given)
    image = np.flatnonzero(wrong)[0]
    masses = np.stack(dict(model.callbacks_)["masses"].pages_)[:, image]
    other = masses[-1].argmax()
    picture, ax = figure.subplots(1, 2, width_ratios=[1, 1.3])
    show_digit(picture, X[image], f"labelled {given[image]}", color=BLUE)
    ax.plot(masses[:, given[image]], color=BLUE)
    ax.plot(masses[:, other], color=ORANGE)
    ax.set_title(f"becomes {other}", color=ORANGE)
    ax.set(xlabel="epoch", xticks=[], yticks=[0, 1], ylim=(0, 1.05))


def find_wrong_labels(figure) -> None:
    """Show six suspicious images, with the given and the suggested label."""
    X, _, given, _ = digits(0.75, 0.1)
    issues = find_label_issues(BSDClassifier(random_state=0).fit(X, given))
    columns = (issues[name] for name in ("row", "given_label", "suggested_label"))
    for ax, (row, label, suggested) in zip(
        figure.subplots(2, 3).flat, zip(*columns, strict=True), strict=False
    ):
        show_digit(ax, X[row], f"{label} → {suggested}", color=ORANGE, weight="bold")


def calibration_methods(figure) -> None:
    """Draw the log losses of some ways to calibrate, means over five splits."""
    X, y = load_digits(return_X_y=True)

    def fit(X, y, seed, prior_strength=math.inf, calibration="auto"):
        return BSDClassifier(
            prior_strength=prior_strength,
            calibration=calibration,
            max_epochs=60,
            random_state=seed,
        ).fit(X, y)

    def held_out(X, y, seed):
        X, X_held, y, y_held = train_test_split(
            X, y, test_size=0.2, random_state=seed, stratify=y
        )
        network = FrozenEstimator(fit(X, y, seed, calibration=None))
        return CalibratedClassifierCV(network, method="temperature").fit(X_held, y_held)

    methods = {
        "none": lambda *data: fit(*data, calibration=None),
        "temperature": held_out,
        "cross-fitted": fit,
        "BSD": lambda *data: fit(*data, prior_strength="auto"),
    }
    losses = {name: [] for name in methods}
    for seed in range(5):
        X_train, X_test, y_train, y_test = train_test_split(
            X / 16, y, train_size=450, random_state=seed, stratify=y
        )
        given, _ = flip_labels(y_train, 0.1, random_state=seed)
        for name, method in methods.items():
            proba = method(X_train, given, seed).predict_proba(X_test).astype(float)
            proba /= proba.sum(axis=1, keepdims=True)
            losses[name].append(log_loss(y_test, proba))
    ax = figure.subplots()
    means = [np.mean(values) for values in losses.values()]
    ax.barh(list(losses), means, color=[GRAY, GRAY, GRAY, GREEN])
    ax.invert_yaxis()
    ax.set(xticks=[0], xlabel="log loss")
    ax.tick_params("y", length=0)


def search_prior_strength(figure) -> None:
    """Draw accuracy over calibration error for some prior strengths."""
    X, _, given, _ = digits(0.5, 0.2)
    strengths = [10, 30, 100, math.inf]
    results = (
        GridSearchCV(
            BSDClassifier(max_epochs=60, calibration=None, random_state=0),
            {"prior_strength": strengths},
            scoring={
                "accuracy": "accuracy",
                "ece": get_scorer("neg_expected_calibration_error"),
            },
            refit=False,
            cv=3,
        )
        .fit(X, given)
        .cv_results_
    )
    x, y = -results["mean_test_ece"], results["mean_test_accuracy"]
    ax = figure.subplots()
    ax.plot(x, y, "o-", color=BLUE, markersize=12)
    for name, place in zip(strengths, zip(x, y, strict=True), strict=True):
        text = "∞" if name == math.inf else name
        ax.annotate(text, place, (9, 7), textcoords="offset points", weight="bold")
    ax.margins(0.2)
    ax.set(xlabel="calibration error", ylabel="accuracy", xticks=[], yticks=[])


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


def stacked_search(figure) -> None:
    """Draw the log losses of sixty networks that are trained in one loop."""
    X, y = load_breast_cancer(return_X_y=True)
    network = BSDClassifier(
        module__hidden=(32,),
        calibration=None,
        max_epochs=20,
        batch_size=64,
        random_state=0,
    )
    grid = {
        "bsdclassifier__prior_strength": [20, 60, math.inf],
        "bsdclassifier__lr": [3e-3, 1e-2],
        "bsdclassifier__weight_decay": [1e-2, 1e-1],
    }
    results = (
        StackedGridSearchCV(
            make_pipeline(StandardScaler(), network),
            grid,
            scoring="neg_log_loss",
            cv=5,
            refit=False,
        )
        .fit(X, y)
        .cv_results_
    )
    losses = -np.stack([results[f"split{fold}_test_score"] for fold in range(5)])
    ax = figure.subplots()
    ax.pcolormesh(losses, cmap="viridis_r", edgecolors="white", linewidth=3)
    ax.set(xlabel="12 candidates", ylabel="5 folds", xticks=[], yticks=[], aspect=1)
    ax.set_title("60 networks, one loop", weight="bold")
    ax.spines[:].set_visible(False)


def prediction_sets(figure) -> None:
    """Show an unclear digit and the classes that hold 90 % of its probability."""
    X, X_test, given, _ = digits(0.25, 0.0)
    proba = BSDClassifier(random_state=0).fit(X, given).predict_proba(X_test)
    image = proba.max(axis=1).argmin()
    order = np.argsort(-proba[image])
    n = 1 + int(np.searchsorted(proba[image][order].cumsum(), 0.9))
    ax = blank(figure)
    show_digit(figure.add_axes((0.02, 0.2, 0.4, 0.6)), X_test[image])
    ax.annotate("", (0.56, 0.5), (0.44, 0.5), arrowprops=ARROW)
    text = "{" + ", ".join(map(str, sorted(order[:n]))) + "}"
    size = 34 if n < 3 else 24
    place = (0.79, 0.5)
    ax.text(*place, text, ha="center", va="center", size=size, color=GREEN)


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


def optuna_pruning(figure) -> None:
    """Draw validation losses of trials; those above the median stop halfway."""
    X, _, given, _ = digits(0.5, 0.0)
    losses = []
    for lr in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2):
        model = BSDClassifier(
            lr=lr,
            calibration=None,
            max_epochs=20,
            train_split=ValidSplit(0.3, stratified=True, random_state=0),
            random_state=0,
        ).fit(X, given)
        losses.append(model.history[:, "valid_loss"])
    losses = np.asarray(losses)
    pruned = losses[:, 9] > np.median(losses[:, 9])
    ax = figure.subplots()
    for loss, stops in zip(losses, pruned, strict=True):
        if stops:
            ax.plot(loss[:10], color=GRAY)
            ax.plot(9, loss[9], "X", color=ORANGE, markersize=14)
        else:
            ax.plot(loss, color=BLUE)
    ax.set(xlabel="epoch", ylabel="validation loss", xticks=[], yticks=[])


DRAWN = {
    draw.__name__: draw
    for draw in (
        reliability,
        what_it_believes,
        find_wrong_labels,
        calibration_methods,
        search_prior_strength,
        table_pipeline,
        own_module,
        several_processes,
        stacked_search,
        prediction_sets,
        mlflow_model,
        optuna_pruning,
    )
}


def main() -> None:
    """Draw those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="default: all")
    names = parser.parse_args().names or list(DRAWN)
    if unknown := set(names) - set(DRAWN):
        parser.error(f"no such thumbnail: {unknown}; there are {', '.join(DRAWN)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name in names:
            figure = plt.figure(figsize=(4, 2.8), layout="constrained")
            DRAWN[name](figure)
            figure.savefig(FOLDER / f"{name}.png", dpi=200)
            plt.close(figure)
            print(f"drew {name}", flush=True)


if __name__ == "__main__":
    main()
