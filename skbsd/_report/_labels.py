"""Training labels that are probably wrong."""

from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ..classifier import BSDClassifier
from ..label_noise import find_label_issues
from ._page import element, percents, section
from ._samples import N_SHOWN, samples


def label_issues(model):
    """Return what `find_label_issues` does, or None of a model without evidence."""
    if not isinstance(model, BSDClassifier):
        return None
    try:
        return find_label_issues(model)
    except ValueError:  # trained with cross-entropy, or loaded without its posterior
        return None


def suspicious_labels(model: Any, issues, X, image_shape) -> Element | None:
    """Show the training samples whose labels are the most suspicious."""
    if issues is None:
        return None
    title, n = "Most suspicious training labels", len(model.posterior_)
    rows = np.asarray(issues["row"])[:N_SHOWN]
    if not len(rows):
        text = f"None: no label of the {n:,} training samples is suspicious."
        return section(title, element("p", text), class_="wide")
    caption = (
        f"{len(issues['row']):,} of {n:,} training labels are suspicious: what the "
        "network predicted while it learnt speaks for another class. The worst come "
        "first; find_label_issues lists all."
    )
    columns = {
        "Given": [str(label) for label in issues["given_label"][:N_SHOWN]],
        "Evidence for given": percents(issues["given_mass"][:N_SHOWN]),
        "Suggested": [str(label) for label in issues["suggested_label"][:N_SHOWN]],
        "Evidence for suggested": percents(issues["suggested_mass"][:N_SHOWN]),
    }
    return section(
        title,
        samples(title, caption, X, rows, columns, image_shape),
        class_="wide",
    )
