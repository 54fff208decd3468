"""How good the predicted probabilities of the test samples are."""

import base64
import io
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from .._bootstrap import bootstrap
from ..display import ReliabilityDisplay
from ..display._curve import curve_of_predictions
from ._classes import LARGEST_TABLE, balanced_accuracy
from ._confusion import confusion_map, confusion_table, frequent_confusions
from ._page import element, figure, percent, percents, section
from ._samples import N_SHOWN, samples

# More classes than these make a table that needs the whole width of the page, and a map
# that cannot be read.
_LARGEST_HALF, _LARGEST_MAP = 5, 100


def _three_digits(value: float) -> str:
    return f"{value:.3f}"


def _worst_brier(proba: NDArray) -> int:
    return 2 if proba.shape[1] > 2 else 1


def reliability(codes, proba, *, n_bootstraps: int, random_state) -> dict:
    """Compute the reliability curve, its calibration error and both intervals."""
    return curve_of_predictions(
        "report",
        codes,
        proba,
        n_bins=15,
        strategy="uniform",
        labels=np.arange(proba.shape[1]),
        pos_label=None,
        sample_weight=None,
        n_bootstraps=n_bootstraps,
        confidence_level=0.95,
        random_state=random_state,
    )


def measure(
    codes: NDArray, proba: NDArray, curve: dict, n_bootstraps: int, random_state
) -> NDArray:
    """Compute the measures of quality and their intervals.

    Parameters
    ----------
    codes : ndarray of int of shape (n_samples,)
        Columns of the true classes.
    proba : ndarray of shape (n_samples, n_classes)
    curve : dict
        What :func:`reliability` returns.
    n_bootstraps : int
    random_state : int, RandomState instance or None

    Returns
    -------
    ndarray of shape (3, 5)
        Value, lower and upper limit of accuracy, balanced accuracy, log loss, Brier
        score and expected calibration error.
    """
    hit = proba.argmax(axis=1) == codes
    of_true = np.take_along_axis(proba, codes[:, np.newaxis], axis=1)[:, 0]
    # As scikit-learn's log_loss and brier_score_loss have it.
    log_loss = -np.log(np.maximum(of_true, np.finfo(proba.dtype).eps), dtype=float)
    brier = (proba.astype(float) ** 2).sum(axis=1) - 2.0 * of_true + 1
    worst_brier = _worst_brier(proba)
    means = np.column_stack([hit, log_loss, brier * worst_brier / 2])

    def measures(weight):
        accuracy, *losses = np.average(means, axis=0, weights=weight)
        return np.array([accuracy, balanced_accuracy(codes, hit, weight), *losses])

    weight = np.ones(len(codes))
    limits = bootstrap(
        measures, weight, n_resamples=n_bootstraps, random_state=random_state
    )
    limits = np.clip(limits, 0, [1, 1, np.inf, worst_brier])
    value = np.append(measures(weight), curve["ece"])
    low, high = np.column_stack([limits, curve["ece_interval"]])
    return np.array([value, np.minimum(low, value), np.maximum(high, value)])


def quality(codes, proba, curve, *, n_bootstraps: int, random_state) -> Element:
    """Show the measures with their intervals."""
    explained = (
        (
            "Accuracy",
            percent,
            "Share of the samples whose most probable class is the true one.",
        ),
        (
            "Balanced accuracy",
            percent,
            "Recall, averaged over the classes: rare classes matter as much as "
            "frequent ones.",
        ),
        (
            "Log loss",
            _three_digits,
            "Negative log likelihood: the mean of −log of the true class's "
            "probability; 0 is the best.",
        ),
        (
            "Brier score",
            _three_digits,
            "Mean squared error of the probabilities; 0 is the best, "
            f"{_worst_brier(proba)} the worst.",
        ),
        (
            "Expected calibration error",
            percent,
            "Mean gap between confidence and accuracy, in 15 bins of equal width; 0 "
            "is the best.",
        ),
    )
    measures = measure(codes, proba, curve, n_bootstraps, random_state)
    cards = [
        element(
            "div",
            element("dt", name),
            element("dd", form(value), class_="value"),
            element("dd", f"{form(low)} to {form(high)}", class_="range"),
            element("dd", meaning),
        )
        for (name, form, meaning), (value, low, high) in zip(
            explained, measures.T, strict=True
        )
    ]
    note = (
        "The range below each figure is its 95 % bootstrap interval "
        f"({n_bootstraps:,} resamples of the test set). It covers the choice of the "
        "test samples, not the randomness of training. If the calibration error is "
        "small, its interval is too narrow at the lower end."
    )
    return section(
        "Quality",
        element("dl", *cards, class_="cards"),
        element("p", note, class_="note"),
        class_="wide",
    )


def calibration(codes, proba, curve: dict, name: str) -> Element:
    """Show the reliability diagram."""
    import matplotlib.style
    from matplotlib.figure import Figure

    # Black on white, whatever the style of the session.
    with matplotlib.style.context("default"):
        picture = Figure(figsize=(4.8, 5.6), layout="constrained")
        # Without an interval of the calibration error: it stands above, extended.
        display = ReliabilityDisplay(**curve).plot(picture.add_subplot(), label=name)
        file = io.BytesIO()
        picture.savefig(file, format="svg", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode("ascii")
    confidence = proba.max(axis=1).mean()
    accuracy = np.mean(proba.argmax(axis=1) == codes)
    side = "over" if confidence > accuracy else "under"
    caption = (
        "Each point is the accuracy of predictions of similar confidence. A calibrated "
        "classifier lies on the diagonal; below it, the classifier is overconfident, "
        "above it, underconfident. The strip shows how many samples each point rests "
        f"on. The mean confidence is {percent(confidence)}, and the accuracy is "
        f"{percent(accuracy)}."
    )
    image = element(
        "img",
        class_="picture",
        src=f"data:image/svg+xml;base64,{data}",
        alt=(
            f"Reliability diagram: expected calibration error {percent(display.ece)}, "
            f"on average {side}confident by {percent(abs(confidence - accuracy))}."
        ),
    )
    return section(
        "Calibration",
        element("figure", element("figcaption", caption), image),
    )


def confusions(counts: NDArray, names: list[str]) -> list[Element]:
    """Show which classes are confused with which."""
    n_classes = len(names)
    caption = (
        "Test samples by true class (rows) and predicted class (columns). The stronger "
        "the colour, the larger the share of the row. Correct predictions are on the "
        "diagonal."
    )
    title = "Confusion matrix"
    if n_classes <= LARGEST_TABLE:
        content = figure(title, caption, confusion_table(counts, names))
        wide = {"class_": "wide"} if n_classes > _LARGEST_HALF else {}
        return [section(title, content, **wide)]
    sections = []
    if counts.sum() > counts.trace():
        listed = "Most frequent confusions"
        text = "The share is of all samples of the true class."
        content = figure(listed, text, frequent_confusions(counts, names))
        sections.append(section(listed, content))
    if n_classes <= _LARGEST_MAP:
        content = figure(title, caption, confusion_map(counts, names))
        sections.append(section(title, content, class_="wide"))
    return sections


def mistakes(X, codes, proba, names: list[str], image_shape) -> Element:
    """Show the mistakes that the classifier was most confident of."""
    predicted = proba.argmax(axis=1)
    wrong = np.flatnonzero(predicted != codes)
    title = "Most confident mistakes"
    if not len(wrong):
        text = f"None: all {len(codes):,} test samples are predicted correctly."
        return section(title, element("p", text), class_="wide")
    surest = np.argsort(-proba[wrong, predicted[wrong]], kind="stable")
    rows = wrong[surest[:N_SHOWN]]
    caption = (
        f"{len(wrong):,} of {len(codes):,} test samples are predicted incorrectly. "
        "Those predicted with the highest confidence come first. Check whether the "
        "sample, its label or the classifier is at fault."
    )
    return section(
        title,
        samples(
            title,
            caption,
            X,
            rows,
            {
                "Given": [names[k] for k in codes[rows]],
                "Probability of given": percents(proba[rows, codes[rows]]),
                "Predicted": [names[k] for k in predicted[rows]],
                "Probability of predicted": percents(proba[rows, predicted[rows]]),
            },
            image_shape,
        ),
        class_="wide",
    )
