"""Checks of the parameters and data that `fit` and `predict` accept."""

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils._param_validation import (
    Interval,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_is_fitted,
)

from ._averaging import AVERAGES
from ._check_callbacks import check_monitors as check_monitors
from ._check_datasets import as_numpy
from ._check_datasets import check_dataset as check_dataset
from ._check_datasets import dataset_labels as dataset_labels
from ._check_datasets import true_labels as true_labels
from ._check_inputs import check_X as check_X
from ._compact import n_kept_of
from ._rules import resolve_prior_strength
from ._views import VIEWS
from ._workers import own_gpu
from .contrastive import Contrastive


def check_parameters(params: dict, caller: str, *, augmentations, schedules) -> None:
    """Raise for the first invalid parameter of the estimator itself.

    The function is long because its table has an entry per parameter.
    """
    constraints = {
        "prior_strength": [
            Interval(Real, 0, math.inf, closed="right"),
            StrOptions({"auto", "noisy"}),
        ],
        "discount": [Interval(Real, 0, 1, closed="right"), StrOptions({"auto"})],
        "evidence": [StrOptions({"auto", "plain", "weighted"})],
        "calibration": [StrOptions({"auto", "cross-fit", "hold-out"}), None],
        "label_noise": [StrOptions({"auto", "errors", "inherent"})],
        "prior_floor": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"auto"}),
        ],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [
            Interval(Integral, 1, None, closed="left"),
            Options(Integral, {-1}),
        ],
        "lr": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "optimizer": [callable],
        "lr_schedule": [StrOptions(set(schedules))],
        "schedule_epochs": [Interval(Integral, 1, None, closed="left"), None],
        "averaging": [StrOptions(set(AVERAGES)), None],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "augmentation": [StrOptions(set(augmentations)), callable, None],
        "contrastive": [
            Interval(Real, 0, None, closed="neither"),
            Contrastive,
            None,
        ],
        "image_shape": [tuple, list, None],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "prediction_views": [StrOptions(set(VIEWS)), None],
        "posterior_dtype": [str],
        "posterior_folder": [str, os.PathLike, None],
        "channels_last": ["boolean", StrOptions({"auto"})],
        "compile": ["boolean"],
        "cuda_graph": ["boolean", StrOptions({"auto"})],
        "device": [str, torch.device],
        "devices": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"all"}),
            None,
        ],
        "sync_batch_norm": ["boolean"],
        "gather_posterior": ["boolean"],
        "train_split": [callable, None],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "callbacks": [list, None, StrOptions({"disable"})],
        "checkpoint": [str, os.PathLike, None],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }
    validate_parameter_constraints(
        constraints, {name: params[name] for name in constraints}, caller_name=caller
    )
    if isinstance(params["augmentation"], type):
        name = params["augmentation"].__name__
        raise ValueError(
            f"augmentation must be an instance, got the class {name}; pass {name}()."
        )
    if isinstance(params["contrastive"], bool):
        raise ValueError(
            f"contrastive must be None, a weight or a Contrastive, got "
            f"{params['contrastive']!r}."
        )
    module = params["module"]
    if not (module is None or callable(module)):
        raise ValueError(
            f"module must be a torch.nn.Module (a class or an instance) or None, got "
            f"{module!r}."
        )
    for name in ("devices", "schedule_epochs"):
        if isinstance(params[name], bool):
            raise ValueError(f"{name} must be a number or None, got {params[name]!r}.")
    device, devices = params["device"], params["devices"]
    if (
        devices not in (None, 1)
        and torch.device("cpu" if device == "auto" else device).index is not None
    ):
        raise ValueError(
            f"device={str(device)!r} names one device, but devices={devices!r} asks "
            "for several; pass device='cuda', or omit devices."
        )
    store = params["posterior_dtype"]
    if store not in ("float32", "float16") and n_kept_of(store) is None:
        raise ValueError(
            "posterior_dtype must be 'float32', 'float16', 'compact', or 'compact-m', "
            "where m, at least 2, is the number of classes that the belief of a sample "
            f"keeps, such as 'compact-64'; got {store!r}."
        )
    if params["posterior_folder"] == "":
        raise ValueError(
            "posterior_folder must name a folder, got ''; pass '.' for the current one."
        )
    max_epochs, length = params["max_epochs"], params["schedule_epochs"]
    if length is not None and length < max_epochs:
        raise ValueError(
            f"schedule_epochs={length} is less than max_epochs={max_epochs}; the "
            "schedule must span the whole training. Pass at least max_epochs, or None."
        )
    half = torch.finfo(torch.float16)
    strength = resolve_prior_strength(params["prior_strength"], length or max_epochs)
    followed = (
        "" if strength == params["prior_strength"] else " for this number of epochs"
    )
    floor = params["prior_floor"]
    if params["posterior_dtype"] == "float16" and not (
        strength <= 1024 and (floor == "auto" or floor >= half.smallest_normal)
    ):
        raise ValueError(
            "posterior_dtype='float16' has too few digits for this prior: "
            f"prior_strength may be at most 1024, got {strength!r}{followed}, "
            f"and prior_floor at least {half.smallest_normal:.1g}, got "
            f"{floor!r}. Use 'float32'."
        )
    if params["checkpoint"] == "":
        raise ValueError(
            "checkpoint must name a folder, got ''; pass '.' for the current one."
        )
    shape = params["image_shape"]
    if shape is not None and not (
        len(shape) == 3 and all(isinstance(s, Integral) and int(s) > 0 for s in shape)
    ):
        raise ValueError(
            "image_shape must be (channels, height, width), three positive integers, "
            f"got {shape!r}."
        )


def length_of(X: Any) -> int | None:
    """Return the number of samples of unchecked X, or None if it is unknown.

    Parameters
    ----------
    X : object
    """
    if isinstance(X, Mapping) and len(X) and not sparse.issparse(X):
        return length_of(next(iter(X.values())))
    try:
        return _num_samples(X)
    except TypeError:  # a later check raises an error that names X
        return None


def check_epochs(epochs: Any) -> None:
    """Raise if the `epochs` of a call are neither a whole number nor None.

    Parameters
    ----------
    epochs : int or None
    """
    is_number = isinstance(epochs, Integral) and not isinstance(epochs, bool)
    if epochs is not None and not (is_number and epochs >= 0):
        raise ValueError(
            f"epochs must be a whole number of epochs, 0 or more, got {epochs!r}; "
            "omit it to train for max_epochs."
        )


def check_device(device: str | torch.device) -> torch.device:
    """Return the torch device; "auto" is the first available of cuda, mps and cpu.

    "cuda" is resolved to the index of the current GPU, as the current GPU may change.
    In the workers of a search, "auto" selects a separate GPU for each.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", own_gpu())
        mps = torch.backends.mps.is_available()
        return torch.device("mps" if mps else "cpu")
    try:
        found = torch.device(device)
        if found == torch.device("cuda"):
            found = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={device!r} is unknown or not available here ({error}). Use "
            "'auto', 'cpu', or another device that torch can allocate on."
        ) from error
    return found


def check_y(y, estimator_name: str) -> np.ndarray:
    """Return labels as a one-dimensional array without missing values."""
    if y is None:
        raise ValueError(
            f"{estimator_name} requires y to be passed, but the target y is None."
        )
    if isinstance(y, torch.Tensor):
        y = as_numpy(y)
    shape = np.asarray(y).shape
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"y should be a 1d array of class labels, got an array of shape {shape} "
            "instead. Multi-label targets are not supported; turn one-hot rows into "
            "labels with y.argmax(axis=1)."
        )
    y = column_or_1d(y, warn=True)
    if y.dtype.kind == "O":
        missing = [i for i, label in enumerate(y) if _is_missing(label)]
        if missing:
            raise ValueError(
                f"Input y contains NaN or None, first in row {missing[0]}; remove such "
                "samples or give them a label."
            )
    assert_all_finite(y, estimator_name=estimator_name, input_name="y")
    check_classification_targets(y)
    return y


def _is_missing(label) -> bool:
    is_nan = isinstance(label, float) and math.isnan(label)
    return is_nan or label is None or type(label).__name__ in ("NAType", "NaTType")


def find_classes(y: np.ndarray) -> np.ndarray:
    """Return the sorted distinct labels; raise if there are fewer than two."""
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(
            f"y contains a single class ({classes.tolist()[0]!r}, n_samples={len(y)}); "
            "a classifier needs at least two classes."
        )
    return classes


def encode(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the index in `classes` of every label."""
    unseen = np.setdiff1d(y, classes)
    if len(unseen):
        raise ValueError(
            f"y contains labels that are not among the known classes: "
            f"{unseen.tolist()}; the classes are {classes.tolist()}. Pass all classes "
            "in the first call, partial_fit(X, y, classes=...), or call fit to start "
            "afresh."
        )
    return np.searchsorted(classes, y)


def check_weight(
    sample_weight, class_weight, X, y, classes, *, several_classes: bool
) -> np.ndarray | None:
    """Combine sample and class weights into one weight of at most 1, or None.

    If `several_classes`, more than one class must have positive weights.
    """
    if sample_weight is None and class_weight is None:
        return None
    weight = np.ones(len(y))
    if sample_weight is not None:
        if isinstance(sample_weight, torch.Tensor):
            sample_weight = as_numpy(sample_weight)
        # Raises an error of its own for a wrong shape, NaN or a negative value.
        weight = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True, copy=True
        )
    if class_weight is not None:
        if isinstance(class_weight, dict):
            # Computed over all classes, as a later part of a stream may lack some.
            of_class = compute_class_weight(class_weight, classes=classes, y=classes)
            of_class = of_class[np.searchsorted(classes, y)]
        else:
            of_class = compute_sample_weight(class_weight, y)
        if not (np.isfinite(of_class) & (of_class >= 0)).all():
            raise ValueError(
                f"class_weight={class_weight!r} contains negative values, NaN or "
                "infinity; weights must be finite and non-negative."
            )
        weight *= of_class / (of_class.max() or 1.0)
    positive = weight > 0
    if not positive.any():
        raise ValueError(
            "Sample weights must contain at least one non-zero number, but all "
            f"{len(weight)} are zero."
        )
    if several_classes and len(np.unique(y[positive])) < 2:
        raise ValueError(
            "only one class is left after removing samples of weight zero: "
            f"{y[positive][0]!r}; a classifier needs at least two classes."
        )
    return weight / weight.max()


def check_order(options: dict) -> None:
    """Raise if ``iterator_valid__shuffle`` would shuffle predictions.

    Parameters
    ----------
    options : dict
        The options of `iterator_valid`.
    """
    shuffle = options.get("shuffle")
    if shuffle:
        raise ValueError(
            f"iterator_valid__shuffle={shuffle!r} would shuffle predictions, so that "
            "their rows would not match the rows of X; omit it or set it to False. "
            "Training data are shuffled by default; iterator_train__shuffle controls "
            "this."
        )


def fitted_classifier(estimator: Any, attribute: str) -> Any:
    """Return a fitted BSDClassifier, or the one that a pipeline ends in.

    Parameters
    ----------
    estimator : BSDClassifier or Pipeline
    attribute : str
        Fitted attribute that it must have.

    Raises
    ------
    ValueError
        For another estimator.
    NotFittedError
        If the estimator has not been fitted.
    """
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    if not hasattr(last, "prior_strength"):
        where = " as last step" if last is not estimator else ""
        raise ValueError(
            f"expected a fitted BSDClassifier or a Pipeline that ends in one, got "
            f"{type(last).__name__}{where}; pass a search's best_estimator_."
        )
    check_is_fitted(last)
    if not hasattr(last, attribute):
        raise NotFittedError(
            f"this {type(last).__name__} has no {attribute}, as the file that it was "
            "loaded from does not contain it. Save it with save(path, posterior=True), "
            "or fit it."
        )
    if attribute == "posterior_" and hasattr(last, "posterior_rows_"):
        raise ValueError(
            f"this {type(last).__name__} has the beliefs of only "
            f"{len(last.posterior_)} samples, the part of one process "
            "(gather_posterior=False); fit it with gather_posterior=True."
        )
    return last


def check_predicts_proba(estimator: Any, purpose: str) -> None:
    """Raise if an estimator is not a fitted classifier that predicts probabilities.

    Parameters
    ----------
    estimator : estimator instance
    purpose : str
        Name of the function that requires one, for the message.
    """
    name = type(estimator).__name__
    if not is_classifier(estimator):
        raise ValueError(f"Expected 'estimator' to be a classifier, got {name}.")
    check_is_fitted(estimator)
    if not hasattr(estimator, "predict_proba"):
        raise AttributeError(
            f"{name} has no predict_proba, which {purpose} requires. Wrap it in a "
            "CalibratedClassifierCV, or choose a classifier that has predict_proba."
        )


def check_training_X(X: Any, classifier: Any, name: str) -> None:
    """Raise if X cannot be the training data of a fitted BSDClassifier.

    Parameters
    ----------
    X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
    classifier : BSDClassifier
    name : str
        Name of X in messages.
    """
    n_given, n_samples = length_of(X), len(classifier.posterior_)
    if n_given != n_samples:
        raise ValueError(
            f"{name} has {n_given} samples, but {type(classifier).__name__} was fitted "
            f"on {n_samples}; pass the X that was given to fit, in its order."
        )
