"""Reliability before and after calibration."""

from copy import copy
from typing import Any, Self

from sklearn.pipeline import Pipeline
from torch import Tensor

from .._checks import fitted_classifier
from ._curve import curve_of_classes, curve_of_predictions
from ._reliability import ReliabilityDisplay
from ._style import require_matplotlib

_BEFORE, _AFTER = "Before calibration", "After calibration"


class CalibrationEffectDisplay:
    """Reliability diagram of one classifier before and after its calibration.

    Both curves are drawn on the same axes, each with its expected calibration error
    (ECE) in the legend. Calibration helps if it moves the curve towards the diagonal.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions` to
    create a `CalibrationEffectDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    before, after : ReliabilityDisplay
        The diagrams of the uncalibrated and of the calibrated probabilities.

    Attributes
    ----------
    before_, after_ : ReliabilityDisplay
        The two diagrams with their artists.
    ax_ : matplotlib Axes
        Axes with both curves.
    figure_ : matplotlib Figure
        Figure containing the curves.

    See Also
    --------
    ReliabilityDisplay : The diagram of one classifier, or of several.
    skbsd.calibration.Calibration : What `fit` estimates for a BSDClassifier.

    Notes
    -----
    Use samples that neither training nor calibration has seen. Temperature scaling
    changes no predicted class; a bias, or a transition matrix for wrong labels, may.

    Examples
    --------
    >>> from skbsd.display import CalibrationEffectDisplay, ReliabilityDisplay
    >>> before = ReliabilityDisplay([0.9], [0.7], [100], [[0.85, 0.95]], 0.2)
    >>> after = ReliabilityDisplay([0.72], [0.7], [100], [[0.7, 0.8]], 0.02)
    >>> CalibrationEffectDisplay(before, after).plot()
    <...>
    """

    def __init__(self, before, after):
        self.before = before
        self.after = after

    def plot(self, ax=None, *, ref_line=True, histogram=True, **kwargs) -> Self:
        """Plot both curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If `None`, a new figure and axes is created.
        ref_line : bool, default=True
            Whether to plot the diagonal, and the gaps between it and the curves.
        histogram : bool, default=True
            Whether to plot the share of the samples in each bin below the curves.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot` for both
            curves.

        Returns
        -------
        display : :class:`~skbsd.display.CalibrationEffectDisplay`
            Object that stores computed values and artists.
        """
        drawn = []
        for display, name in ((self.before, _BEFORE), (self.after, _AFTER)):
            # The display that was passed keeps its own artists.
            own = copy(display).plot(
                ax,
                name=name if display.name is None else display.name,
                ref_line=ref_line,
                histogram=histogram,
                **kwargs,
            )
            ax = own.ax_
            drawn.append(own)
        self.before_, self.after_ = drawn
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        n_bins=15,
        strategy="uniform",
        pos_label=None,
        sample_weight=None,
        n_bootstraps=0,
        confidence_level=0.95,
        random_state=None,
        ax=None,
        ref_line=True,
        histogram=True,
        **kwargs,
    ) -> Self:
        """Plot the effect of the calibration that a BSDClassifier was fitted with.

        Parameters
        ----------
        estimator : BSDClassifier or Pipeline
            Fitted with calibration, or a pipeline that ends in such a classifier. The
            probabilities before calibration are the softmax of the network's logits.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples that were not in the training data, in any form that the estimator
            takes.
        y : array-like of shape (n_samples,)
            True class labels.
        n_bins : int, default=15
            Number of bins.
        strategy : {"uniform", "quantile"}, default="uniform"
            Bins of equal width, or of equal weight.
        pos_label : int, float, bool or str, default=None
            If given, for binary problems only, plot the predicted probability of this
            class. If `None`, plot that of the predicted class.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        n_bootstraps : int, default=0
            Number of bootstrap resamples for bands and intervals. 0 draws none.
        confidence_level : float, default=0.95
            Confidence level of bands and intervals, in (0, 1).
        random_state : int, RandomState instance or None, default=None
            Fixes the resamples. With an int both curves use the same ones.
        ax : matplotlib Axes, default=None
            Axes to plot on. If `None`, a new figure is created.
        ref_line : bool, default=True
            Whether to plot the diagonal, and the gaps between it and the curves.
        histogram : bool, default=True
            Whether to plot the share of the samples in each bin below the curves.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : :class:`~skbsd.display.CalibrationEffectDisplay`
            Object that stores computed values and artists.

        Raises
        ------
        NotFittedError
            If the estimator was not fitted.
        ValueError
            If it is not a BSDClassifier, or was fitted without calibration.

        Examples
        --------
        >>> from sklearn.datasets import load_wine
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from skbsd import BSDClassifier
        >>> from skbsd.display import CalibrationEffectDisplay
        >>> X, y = load_wine(return_X_y=True)
        >>> model = make_pipeline(StandardScaler(), BSDClassifier(random_state=0))
        >>> model = model.fit(X[::2], y[::2])
        >>> display = CalibrationEffectDisplay.from_estimator(model, X[1::2], y[1::2])
        >>> display.before.ece > display.after.ece
        True
        """
        require_matplotlib(f"{cls.__name__}.from_estimator")
        classifier = fitted_classifier(estimator, "module_")
        if getattr(classifier, "calibration_", None) is None:
            raise ValueError(
                "the classifier is not calibrated, so there is nothing to show. A fit "
                "calibrates unless calibration=None, max_epochs=0, or it has fewer "
                f"than 20 samples; this one has calibration={classifier.calibration!r} "
                f"and max_epochs={classifier.max_epochs}."
            )
        options: dict[str, Any] = {
            "n_bins": n_bins,
            "strategy": strategy,
            "pos_label": pos_label,
            "sample_weight": sample_weight,
            "n_bootstraps": n_bootstraps,
            "confidence_level": confidence_level,
            "random_state": random_state,
        }
        transformed = X
        if isinstance(estimator, Pipeline) and len(estimator.steps) > 1:
            transformed = estimator[:-1].transform(X)
        logits = classifier._predictions(transformed, Tensor.clone)
        curves = [
            curve_of_classes(
                f"{cls.__name__}.from_estimator",
                classifier.classes_,
                y,
                output.softmax(dim=1).numpy(),
                **options,
            )
            for output in (logits, classifier.calibration_(logits))
        ]
        display = cls(*(ReliabilityDisplay(**curve) for curve in curves))
        return display.plot(ax, ref_line=ref_line, histogram=histogram, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true,
        y_proba_before,
        y_proba_after,
        *,
        n_bins=15,
        strategy="uniform",
        labels=None,
        pos_label=None,
        sample_weight=None,
        n_bootstraps=0,
        confidence_level=0.95,
        random_state=None,
        ax=None,
        ref_line=True,
        histogram=True,
        **kwargs,
    ) -> Self:
        """Plot the effect of any calibration method, given its probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True class labels.
        y_proba_before, y_proba_after : array-like of shape (n_samples,) or \
                (n_samples, n_classes)
            Probabilities before and after calibration; of the positive class if
            one-dimensional.
        n_bins : int, default=15
            Number of bins.
        strategy : {"uniform", "quantile"}, default="uniform"
            Bins of equal width, or of equal weight.
        labels : array-like of shape (n_classes,), default=None
            Class label of each column. See
            :func:`~skbsd.metrics.expected_calibration_error` for the default.
        pos_label : int, float, bool or str, default=None
            As in :meth:`from_estimator`. With two columns it must be the label of the
            second.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        n_bootstraps : int, default=0
            Number of bootstrap resamples for bands and intervals. 0 draws none.
        confidence_level : float, default=0.95
            Confidence level of bands and intervals, in (0, 1).
        random_state : int, RandomState instance or None, default=None
            Fixes the resamples. With an int both curves use the same ones.
        ax : matplotlib Axes, default=None
            Axes to plot on. If `None`, a new figure is created.
        ref_line : bool, default=True
            Whether to plot the diagonal, and the gaps between it and the curves.
        histogram : bool, default=True
            Whether to plot the share of the samples in each bin below the curves.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : :class:`~skbsd.display.CalibrationEffectDisplay`
            Object that stores computed values and artists.

        Examples
        --------
        >>> from skbsd.display import CalibrationEffectDisplay
        >>> display = CalibrationEffectDisplay.from_predictions(
        ...     [0, 1, 1, 0], [0.1, 0.9, 1.0, 0.9], [0.3, 0.7, 0.8, 0.7]
        ... )
        >>> round(display.before.ece, 2), round(display.after.ece, 2)
        (0.18, 0.07)
        """
        require_matplotlib(f"{cls.__name__}.from_predictions")
        curves = [
            curve_of_predictions(
                f"{cls.__name__}.from_predictions",
                y_true,
                y_proba,
                n_bins=n_bins,
                strategy=strategy,
                labels=labels,
                pos_label=pos_label,
                sample_weight=sample_weight,
                n_bootstraps=n_bootstraps,
                confidence_level=confidence_level,
                random_state=random_state,
            )
            for y_proba in (y_proba_before, y_proba_after)
        ]
        display = cls(*(ReliabilityDisplay(**curve) for curve in curves))
        return display.plot(ax, ref_line=ref_line, histogram=histogram, **kwargs)
