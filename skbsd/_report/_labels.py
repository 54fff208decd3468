"""Training labels that are probably wrong."""

from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ..classifier import BSDClassifier
from ..label_noise import find_label_issues
from ._page import element, percent, percents, section
from ._samples import N_SHOWN, samples

# A task is hard where more than this fraction of the labels is contradicted by
# predictions of unseen samples, beyond those that are estimated to be wrong.
# benchmarks/hard_samples.py: of the labels listed, 82 to 100 % are wrong below it (93 %
# on average), and 51 to 95 % above (81 %).
_HARD = 0.1


def label_issues(model):
    """Return what `find_label_issues` does, or None of a model without evidence."""
    if not isinstance(model, BSDClassifier):
        return None
    try:
        return find_label_issues(model)
    except ValueError:  # trained with cross-entropy, or loaded without its posterior
        return None


def suspicious_labels(
    model: Any, issues, X, image_shape, test_error: float
) -> Element | None:
    """Show the training samples whose labels are the most suspicious.

    Parameters
    ----------
    model : estimator
    issues : DataFrame, Bunch or None
        Of :func:`label_issues`.
    X : array-like or None
        Training samples.
    image_shape : tuple of int or None
    test_error : float
        Fraction of the test samples that are predicted incorrectly.

    Returns
    -------
    Element or None
    """
    if issues is None:
        return None
    title, n = "Most suspicious training labels", len(model.posterior_)
    rows = np.asarray(issues["row"])[:N_SHOWN]
    warning = _of_hard_task(model, test_error, is_any_listed=len(rows) > 0)
    notes = [] if warning is None else [element("p", warning, class_="note")]
    if not len(rows):
        text = f"None: no label of the {n:,} training samples is suspicious."
        return section(title, element("p", text), *notes, class_="wide")
    caption = (
        f"{len(issues['row']):,} of {n:,} training labels are suspicious: the "
        "network's predictions during training favour another class. The most "
        "suspicious ones come first; find_label_issues lists all of them."
    )
    columns = {
        "Given": [str(label) for label in issues["given_label"][:N_SHOWN]],
        "Evidence for given": percents(issues["given_mass"][:N_SHOWN]),
        "Suggested": [str(label) for label in issues["suggested_label"][:N_SHOWN]],
        "Evidence for suggested": percents(issues["suggested_mass"][:N_SHOWN]),
    }
    return section(
        title,
        *notes,
        samples(title, caption, X, rows, columns, image_shape),
        class_="wide",
    )


def _of_hard_task(model, test_error: float, *, is_any_listed: bool) -> str | None:
    """Return a warning that suspicious labels may be those of hard samples."""
    contradicted = _contradicted(model)
    is_estimated = contradicted is not None
    noise_rate = model.noise_rate_ if is_estimated else 0.0
    error = contradicted if contradicted is not None else test_error
    if error - noise_rate <= _HARD:
        return None
    if not is_estimated:
        measured = (
            f"the classifier predicts {percent(error)} of the test samples "
            "incorrectly, and without calibration the fraction of wrong labels is not "
            "estimated"
        )
    elif noise_rate:
        measured = (
            f"out-of-fold predictions contradict {percent(error)} of the labels, but "
            f"only {percent(noise_rate)} are estimated to be wrong"
        )
    else:
        measured = (
            f"out-of-fold predictions contradict {percent(error)} of the labels, but "
            "there is no evidence that labels are wrong"
        )
    if not is_any_listed:
        return (
            f"This task is hard: {measured}. On such a task, wrong labels cannot be "
            "told from the correct labels of hard samples, and may go unnoticed."
        )
    return (
        f"This task is hard: {measured}. So some of these labels may be the correct "
        "labels of hard samples rather than wrong labels. Check them before you change "
        "or remove any."
    )


def _contradicted(model) -> float | None:
    """Return how many labels are not the class that an out-of-fold prediction favours.

    None of a model without such predictions.
    """
    proba = getattr(model, "out_of_fold_proba_", None)
    if proba is None or getattr(model, "calibration_", None) is None:
        return None
    known = np.isfinite(proba[:, 0])
    codes = model.posterior_.labels.cpu().numpy()
    return float(np.mean(proba[known].argmax(axis=1) != codes[known]))
