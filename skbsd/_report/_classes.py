"""How well each class is recognised."""

from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ._page import element, figure, name_kind, percent, scrolling, section, table

# With more classes than these, the table shows those of lowest recall first, and folds
# the others away.
LARGEST_TABLE, _N_LOWEST = 15, 12
_UNDEFINED = "–"
_HEADER = ("Class", "Samples", "Recall", "Precision", "F1 score")


def confusion_counts(codes: NDArray, predicted: NDArray, n_classes: int) -> NDArray:
    """Count the samples by true and by predicted class.

    Parameters
    ----------
    codes, predicted : ndarray of int of shape (n_samples,)
    n_classes : int

    Returns
    -------
    ndarray of int of shape (n_classes, n_classes)
        Rows are true classes.
    """
    cells = codes * n_classes + predicted
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def balanced_accuracy(codes: NDArray, hit: NDArray, weight: NDArray) -> float:
    """Average the recall over the classes that have samples.

    Parameters
    ----------
    codes : ndarray of int of shape (n_samples,)
        True classes.
    hit : ndarray of shape (n_samples,)
        Whether the prediction is right.
    weight : ndarray of shape (n_samples,)

    Returns
    -------
    float
        As :func:`sklearn.metrics.balanced_accuracy_score`.
    """
    total, right = np.bincount(codes, weight), np.bincount(codes, weight * hit)
    return float((right[total > 0] / total[total > 0]).mean())


def class_scores(counts: NDArray) -> NDArray[np.float64]:
    """Compute recall, precision and F1 score of each class.

    Parameters
    ----------
    counts : ndarray of shape (n_classes, n_classes)
        Samples by true class (row) and predicted class.

    Returns
    -------
    ndarray of shape (3, n_classes)
        NaN for the recall of a class without samples, for the precision of one that is
        never predicted, and for the F1 score of one that is neither.
    """
    right, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    scores = np.full((3, len(counts)), np.nan)
    totals = (true, predicted, (true + predicted) / 2)
    for score, total in zip(scores, totals, strict=True):
        np.divide(right, total, out=score, where=total > 0)
    return scores


def classes(counts: NDArray, names: list[str]) -> Element:
    """Show how well each class is recognised.

    Parameters
    ----------
    counts : ndarray of shape (n_classes, n_classes)
        Samples by true class (row) and predicted class.
    names : list of str of length n_classes

    Returns
    -------
    Element
    """
    scores, support = class_scores(counts), counts.sum(axis=1)
    caption = (
        "Recall is the share of a class's samples that are predicted as this class, "
        "precision the share of the predictions of a class that are right, and the F1 "
        "score their harmonic mean. A class of few samples has uncertain scores."
    )
    order = np.arange(len(names))
    if len(names) > LARGEST_TABLE:
        # NaN comes last.
        order = np.lexsort((-support, scores[0]))
        caption += f" These are the {_N_LOWEST} classes of lowest recall."
    if not support.all():
        caption += f" A dash ({_UNDEFINED}) marks a score that is not defined."

    def rows(part):
        return [(names[k], f"{support[k]:,}", *map(_share, scores[:, k])) for k in part]

    kinds = {**dict.fromkeys(_HEADER, "number"), "Class": name_kind(names)}
    title = "Classes"
    if len(names) <= LARGEST_TABLE:
        content = figure(title, caption, table(_HEADER, rows(order), kinds))
        return section(title, content)
    lowest, others = order[:_N_LOWEST], order[_N_LOWEST:]
    summary = element("summary", f"The other {len(others):,} classes")
    folded = scrolling("Other classes", table(_HEADER, rows(others), kinds))
    return section(
        title,
        figure(title, caption, table(_HEADER, rows(lowest), kinds)),
        element("details", summary, folded),
    )


def _share(value: float) -> str:
    return _UNDEFINED if np.isnan(value) else percent(value)
