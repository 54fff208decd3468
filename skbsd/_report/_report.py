"""Check the arguments of `report` and assemble its sections."""

import math
from copy import deepcopy
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params

from .. import _checks
from .._proba import validate
from ..display._style import require_matplotlib
from ._about import settings, training, versions
from ._classes import classes, confusion_counts
from ._labels import label_issues, suspicious_labels
from ._page import element, page, write_whole
from ._quality import calibration, confusions, mistakes, quality, reliability


@validate_params(
    {
        "path": [str, PathLike],
        "title": [str, None],
        "n_bootstraps": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def report(
    estimator,
    X_test,
    y_test,
    path="report.html",
    *,
    X_train=None,
    title=None,
    n_bootstraps=200,
    random_state=0,
) -> Path:
    """Write a report on a fitted classifier: one HTML file that needs no network.

    It contains the quality of the predicted probabilities, with intervals; the
    reliability diagram; recall, precision and number of samples of each class; the
    confusion matrix; the most confident mistakes; the most suspicious training labels;
    settings, training and versions. Sections that do not apply to the estimator are
    left out.

    Parameters
    ----------
    estimator : estimator instance
        Fitted classifier with a :term:`predict_proba` method, a pipeline that ends in
        one, or a search that has found one.
    X_test : array-like, DataFrame, Tensor, Dataset or sparse matrix
        Test samples, in any form that the estimator takes. Images are shown: samples of
        an array of three or four dimensions, or flat rows if the estimator has an
        `image_shape`.
    y_test : array-like of shape (n_samples,)
        True labels of the test samples.
    path : str or path-like, default="report.html"
        File to write. An existing file is replaced once the new one is complete.
    X_train : array-like, DataFrame, Tensor or Dataset, default=None
        The X that was given to `fit`, to show the samples of suspicious labels. It is
        ignored unless the estimator is a :class:`~skbsd.BSDClassifier`, or a pipeline
        or search that ends in one.
    title : str, default=None
        Heading of the report. If None, it names the class of the classifier.
    n_bootstraps : int, default=200
        Number of bootstrap resamples of the test set, for intervals.
    random_state : int, RandomState instance or None, default=0
        Fixes the resamples.

    Returns
    -------
    pathlib.Path
        Path of the file.

    Raises
    ------
    ValueError
        If the estimator is not a classifier, the numbers of samples differ, or `y_test`
        contains labels that the estimator does not know. It is raised before anything
        is computed.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    FileNotFoundError, IsADirectoryError
        If the folder of `path` does not exist, or `path` is a folder.
    ImportError
        If matplotlib is not installed.

    See Also
    --------
    skbsd.display.ReliabilityDisplay : The diagram alone.
    skbsd.label_noise.find_label_issues : All suspicious labels.

    Notes
    -----
    Intervals are basic bootstrap intervals of 95 % over the samples of the test set.
    They do not show how the figures vary with training. They are cut to the range of
    the measure, and extended to the figure if they do not reach it. That happens with
    small calibration errors, which are biased upwards: their intervals contain the
    classifier's own error less often than 95 %, for a perfectly calibrated classifier
    in half to two thirds of test sets. An interval of zero width, as for an accuracy of
    one, means that all resamples agree, not that the figure is certain. The balanced
    accuracy is :func:`sklearn.metrics.balanced_accuracy_score`; the log loss and the
    Brier score are :func:`sklearn.metrics.log_loss` and
    :func:`sklearn.metrics.brier_score_loss`.

    With more than 15 classes, the table of classes shows the 12 of lowest recall and
    folds the others away.

    The report says that the task is hard if predictions of unseen samples contradict
    more than 10 % of the labels beyond those that are estimated to be wrong. The labels
    that it lists may then be correct labels of hard samples: on the tasks of
    ``benchmarks/hard_samples.py``, 82 to 100 % of the labels listed were wrong below
    this limit (93 % on average), and 51 to 95 % above it (81 %). The predictions are
    `out_of_fold_proba_`, or those of the test samples for an estimator without
    calibration.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skbsd import report
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000).fit(X[::2], y[::2])
    >>> with TemporaryDirectory() as folder:
    ...     file = report(model, X[1::2], y[1::2], Path(folder) / "iris.html")
    ...     "<h1>Report on LogisticRegression</h1>" in file.read_text(encoding="utf-8")
    True
    """
    require_matplotlib("report")
    path = _check_path(path)
    known = _check_estimator(estimator)
    y = _check_test_data(X_test, y_test, known)
    steps = _unfold(estimator)
    model = steps[-1][1]
    issues = label_issues(model)
    if issues is not None and X_train is not None:
        _checks.check_training_X(X_train, model, "X_train")

    proba = estimator.predict_proba(X_test)
    codes, proba, _ = validate(y, proba, known, None, None)
    image_shape = _image_shape(estimator, model)
    labels = [str(label) for label in known.tolist()]
    rng = check_random_state(random_state)
    # From a copy of the generator, so that all figures use the same resamples.
    curve = reliability(
        codes, proba, n_bootstraps=n_bootstraps, random_state=deepcopy(rng)
    )
    counts = confusion_counts(codes, proba.argmax(axis=1), len(labels))
    test_error = 1 - float(counts.trace() / counts.sum())
    name = " → ".join(type(step).__name__ for _, step in steps)
    sections = [
        quality(codes, proba, curve, n_bootstraps=n_bootstraps, random_state=rng),
        calibration(codes, proba, curve, type(model).__name__),
        classes(counts, labels),
        *confusions(counts, labels),
        mistakes(X_test, codes, proba, labels, image_shape),
        suspicious_labels(model, issues, X_train, image_shape, test_error),
        settings(steps),
        training(model),
    ]
    title = f"Report on {type(model).__name__}" if title is None else title
    n_samples = "1 sample" if len(y) == 1 else f"{len(y):,} samples"
    lead = f"{name}, tested on {n_samples} of {len(labels):,} classes."
    header = element("header", element("h1", title), element("p", lead))
    main = element("main", *(s for s in sections if s is not None))
    write_whole(path, page(title, header, main, versions()))
    return path


def _check_path(path) -> Path:
    """Return the path as a Path; raise if it cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"path='{path}' is a folder; expected a file name, such as "
            f"'{path / 'report.html'}'."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"the folder '{path.parent}' of path='{path}' does not exist; create it "
            "first, or choose another path."
        )
    return path


def _check_estimator(estimator):
    """Return the classes of a fitted classifier."""
    _checks.check_predicts_proba(estimator, "the report")
    if np.ndim(estimator.classes_[0]):
        raise ValueError(
            f"{type(estimator).__name__} predicts {len(estimator.classes_)} targets; "
            "expected a classifier of one target. Write a report for each target."
        )
    return np.asarray(estimator.classes_)


def _check_test_data(X, y, classes):
    """Return the labels of the test samples."""
    y = _checks.check_y(y, "report")
    n_samples = _checks.length_of(X)
    if n_samples != len(y):
        raise ValueError(
            f"X_test has {n_samples} samples, but y_test {len(y)} labels; "
            "expected one label for each sample."
        )
    unknown = sorted(set(y.tolist()) - set(classes.tolist()), key=str)
    if unknown:
        raise ValueError(
            f"y_test contains labels that the estimator does not know, {unknown[:10]}; "
            f"expected some of its classes, {classes[:10].tolist()}"
            f"{' and more' if len(classes) > 10 else ''}. Leave those samples out, or "
            "encode y_test as the training labels were encoded."
        )
    return y


def _unfold(estimator, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the steps of pipelines and best estimators of searches, with prefixes."""
    if hasattr(estimator, "best_estimator_"):
        return _unfold(estimator.best_estimator_, prefix)
    if not isinstance(estimator, Pipeline):
        return [(prefix, estimator)]
    return [
        found
        for name, step in estimator.steps
        if step is not None and step != "passthrough"
        for found in _unfold(step, f"{prefix}{name}__")
    ]


def _image_shape(estimator, model):
    """Return the shape of the images in the rows of X, or None if there are none."""
    shape = getattr(model, "image_shape", None)
    if shape is None:
        return None
    # A Dataset leaves no n_features_in_. If a step of the pipeline makes the images,
    # the rows of X have another size.
    n_features = getattr(estimator, "n_features_in_", math.prod(shape))
    return shape if n_features == math.prod(shape) else None
