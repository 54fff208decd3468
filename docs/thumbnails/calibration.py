"""Thumbnails of examples about probabilities."""

import math

import numpy as np
from drawing import (
    ARROW,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    blank,
    digits,
    run_example,
    show_digit,
)
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier
from skbsd.label_noise import flip_labels
from skbsd.metrics import calibration_curve


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


def calibration_before_after(figure) -> None:
    """Draw the curves of one network before and after its calibration."""
    effect = run_example("calibration_before_after")["effect"]
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], ":", color="0.35", linewidth=2)
    for name, curve, color in (
        ("before", effect.before, GRAY),
        ("after", effect.after, GREEN),
    ):
        enough = np.asarray(curve.count) >= 10
        confidence, accuracy = np.asarray([curve.confidence, curve.accuracy])[:, enough]
        ax.plot(confidence, accuracy, color=color, label=name)
    ax.legend(frameon=False, loc="lower right", borderaxespad=0)
    ax.set(xlabel="confidence", ylabel="accuracy", xticks=[0, 1], yticks=[0, 1])


def rare_class(figure) -> None:
    """Draw the test samples by probability, and the threshold that costs imply."""
    example = run_example("rare_class")
    rare, proba = example["is_rare"], example["proba"]["default"]
    height = np.random.default_rng(0).random(len(proba))
    ax = figure.subplots()
    for of_class, color, size in ((~rare, GRAY, 18), (rare, ORANGE, 70)):
        ax.scatter(proba[of_class], height[of_class], size, color, linewidth=0)
    threshold = 1 / (1 + example["COST"])
    ax.axvline(threshold, color=BLUE)
    ax.text(threshold * 1.4, 1.08, "inspect →", color=BLUE, weight="bold")
    ax.set(xscale="log", xlabel="probability of the rare class", yticks=[])
    ax.set(xticks=[0.001, 0.01, 0.1, 1], xticklabels=["0.001", "0.01", "0.1", "1"])
    ax.set(xlim=(3e-4, 1.3), ylim=(-0.05, 1.25))
    ax.minorticks_off()
    ax.spines["left"].set_visible(False)
