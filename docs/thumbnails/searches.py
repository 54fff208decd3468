"""Thumbnails of examples about searches."""

import math

import numpy as np
from drawing import BLUE, GRAY, ORANGE, digits
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.dataset import ValidSplit

from skbsd import BSDClassifier
from skbsd.metrics import get_scorer
from skbsd.model_selection import StackedGridSearchCV


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
