"""Validation of the metrics' labels and probabilities, and events made from them."""

from collections.abc import Iterator
from numbers import Real

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    column_or_1d,
)
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import _check_sample_weight

# Constraints of the parameters that the metrics share.
COMMON = {
    "y_true": ["array-like"],
    "y_proba": ["array-like"],
    "labels": ["array-like", None],
    "pos_label": [Real, str, "boolean", None],
    "sample_weight": ["array-like", None],
}
MULTICLASS = {"multiclass": [StrOptions({"top-label", "classwise"})]}


def _check_proba(y_proba):
    """Return probabilities in single or double precision, one column per class.

    One-dimensional input becomes the columns (negative, positive).
    """
    raw = np.asarray(y_proba)
    if raw.ndim not in (1, 2) or (raw.ndim == 2 and raw.shape[1] == 1):
        raise ValueError(
            f"y_proba has shape {raw.shape}, expected (n_samples,) with the "
            "probabilities of the positive class, or (n_samples, n_classes) with two "
            "columns or more. Reshape it, e.g. with y_proba.ravel() for one column."
        )
    proba = check_array(
        raw, ensure_2d=False, dtype=(np.float64, np.float32), input_name="y_proba"
    )
    for extreme in (proba.min(), proba.max()):
        if not 0 <= extreme <= 1:
            raise ValueError(
                f"y_proba contains {extreme}, expected probabilities in [0, 1]. Pass "
                "the output of predict_proba; apply a softmax to logits first."
            )
    if proba.ndim == 1:
        return np.column_stack([1 - proba, proba])
    # Single precision even for float64: lists and casts of float32 networks' outputs
    # are still probabilities.
    slack = np.finfo(np.float16 if raw.dtype == np.float16 else np.float32).eps ** 0.5
    total = proba.sum(axis=1, dtype=np.float64)
    worst = np.argmax(np.abs(total - 1))
    if abs(total[worst] - 1) > slack:
        raise ValueError(
            f"Row {worst} of y_proba sums to {total[worst]:.6g}, expected 1 within "
            f"{slack:.1g}. Normalise the rows, y_proba / y_proba.sum(axis=1)."
        )
    return proba


def _show(labels):
    """Return labels as text for a message, at most ten of them."""
    return f"{labels[:10]!r}"[:-1] + (", ...]" if len(labels) > 10 else "]")


def _column_labels(values, labels, n_classes, pos_label, one_dim):
    """Return the label of each column, given the sorted labels of ``y_true``."""
    if labels is not None:
        known = column_or_1d(labels).tolist()
        if len(set(known)) != len(known) or len(known) != n_classes:
            raise ValueError(
                f"labels={_show(known)} has {len(set(known))} distinct of {len(known)} "
                f"labels, expected {n_classes} distinct ones: one for each class of "
                "y_proba, in the order of its columns."
            )
    elif len(values) == n_classes:
        known = list(values)
    elif one_dim and pos_label is not None and len(values) == 1:
        # The label of the absent class does not matter.
        known = [v for v in values if v != pos_label] or [None]
        known.append(pos_label)
    elif n_classes == 2 and values == [-1]:
        known = [-1, 1]
    elif all(isinstance(v, Real) and v in range(n_classes) for v in values):
        known = list(range(n_classes))
    else:
        raise ValueError(
            f"y_true has {len(values)} distinct labels, {_show(values)}, but y_proba "
            f"has {n_classes} classes. Pass labels, the class of each column of "
            "y_proba."
        )
    if pos_label is not None:
        if n_classes > 2:
            raise ValueError(
                f"pos_label={pos_label!r} was passed with {n_classes} classes; it is "
                "for two classes only. Omit it, or pass one column of y_proba."
            )
        if pos_label not in known:
            raise ValueError(
                f"pos_label={pos_label!r} is not a label: expected one of {known}."
            )
        if one_dim and known[0] == pos_label:
            known.reverse()
        elif known[1] != pos_label:
            raise ValueError(
                f"pos_label={pos_label!r} is the label of the first of two columns "
                f"(labels {known}), expected the second. Pass y_proba[:, 0], or "
                "labels in the order of the columns."
            )
    return known


def validate(y_true, y_proba, labels, pos_label, sample_weight):
    """Return column indices of the true classes, probabilities and weights.

    Samples of weight zero are removed, so that they do not affect bins or quantiles.
    """
    proba = _check_proba(y_proba)
    y = np.asarray(y_true)
    if y.ndim != 1 and (y.ndim != 2 or y.shape[1] != 1):
        raise ValueError(
            f"y_true has shape {y.shape}, expected one class label for each sample, "
            "(n_samples,). Multilabel targets are not supported: score each label "
            "separately."
        )
    y = column_or_1d(y)
    check_consistent_length(y, proba, sample_weight)
    assert_all_finite(y, input_name="y_true")
    try:
        unique, inverse = np.unique(y, return_inverse=True)
    except TypeError as error:
        raise TypeError(
            f"y_true mixes labels of several types, such as {y[:5].tolist()}; expected "
            "all numbers or all strings. Convert it first."
        ) from error
    if y.dtype.kind == "f" and np.any(unique % 1):
        raise ValueError(
            f"y_true contains {unique[unique % 1 != 0][0]}, expected class labels, not "
            "continuous targets. Encode them as integers or strings."
        )
    values = unique.tolist()
    one_dim = np.ndim(y_proba) == 1
    known = _column_labels(values, labels, proba.shape[1], pos_label, one_dim)
    column = {label: k for k, label in enumerate(known)}
    unknown = [value for value in values if value not in column]
    if unknown:
        raise ValueError(
            f"y_true contains {_show(unknown)}, expected labels among {_show(known)}. "
            "Pass every class in labels, in the order of the columns of y_proba."
        )
    codes = np.array([column[value] for value in values])[inverse]
    weight = _check_sample_weight(
        sample_weight, proba, dtype=np.float64, ensure_non_negative=True
    )
    used = weight > 0
    if not used.any():  # scikit-learn 1.7 lets these through
        raise ValueError(
            "sample_weight is zero for all samples; expected a positive weight."
        )
    return codes[used], proba[used], weight[used]


def binary_events(codes, proba, multiclass) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield the probabilities and the occurrences of each event to be calibrated."""
    if multiclass == "top-label":
        yield proba.max(axis=1), (proba.argmax(axis=1) == codes).astype(float)
    else:
        for k in range(proba.shape[1]):
            yield proba[:, k], (codes == k).astype(float)


def group_sums(index, weight, length=0) -> NDArray[np.float64]:
    """Return the sum of the samples' weights in each group."""
    return np.bincount(index, weights=weight, minlength=length).astype(np.float64)
