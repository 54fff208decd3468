"""Reliability diagrams."""

from collections import Counter
from collections.abc import Mapping
from typing import Self

import numpy as np

from ._curve import curve_of_estimator, curve_of_predictions
from ._histogram import (
    HEIGHT_WITH_HISTOGRAM,
    add_histogram,
    find_histogram,
    format_percent,
)
from ._style import next_style, require_matplotlib

_REF_LABEL = "Perfectly calibrated"

# Width of the bar if all confidences are the same.
_LONE_WIDTH = 0.05


def _name_estimators(estimators) -> list[tuple]:
    """Return pairs of name and estimator; those of one class are numbered."""
    if isinstance(estimators, Mapping):
        return list(estimators.items())
    names = [type(estimator).__name__ for estimator in estimators]
    n_of_name, seen = Counter(names), Counter[str]()
    for i, name in enumerate(names):
        if n_of_name[name] > 1:
            seen[name] += 1
            names[i] = f"{name}-{seen[name]}"
    return list(zip(names, estimators, strict=True))


class ReliabilityDisplay:
    """Reliability diagram of a classifier, with its confidence histogram.

    The predictions are grouped into bins of similar confidence. For each bin that
    holds a sample the diagram shows the accuracy against the mean confidence. A
    calibrated classifier lies on the diagonal; below it, the classifier is
    over-confident, above it under-confident [1]_ [2]_. The strip below the diagram
    shows the share of the samples in each bin.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions` to
    create a `ReliabilityDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    confidence : ndarray of shape (n_nonempty_bins,)
        Mean confidence of the samples in each bin.
    accuracy : ndarray of shape (n_nonempty_bins,)
        Accuracy of the predictions in each bin. With `pos_label`, the fraction of
        samples of the positive class.
    count : ndarray of shape (n_nonempty_bins,)
        Number, or total weight, of the samples in each bin.
    edges : ndarray of shape (n_nonempty_bins, 2)
        Lower and upper limit of each bin.
    ece : float
        Expected calibration error, as a fraction. Shown in the legend in percent.
    name : str, default=None
        Name of the curve. If `None`, the legend shows the calibration error alone.
    pos_label : int, float, bool or str, default=None
        The positive class, if the curve is that of one class of a binary problem.
        If `None`, it is that of the predicted class. The axis labels say which.
    accuracy_interval : ndarray of shape (2, n_nonempty_bins), default=None
        Lower and upper limits of `accuracy`, drawn as a band.
    ece_interval : ndarray of shape (2,), default=None
        Lower and upper limit of `ece`, shown in the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the reliability curve.
    figure_ : matplotlib Figure
        Figure containing the curve.
    line_ : matplotlib Artist
        Reliability curve.
    band_ : matplotlib Artist or None
        Band between the limits of the accuracy. `None` without them.
    gaps_ : matplotlib Artist or None
        Lines from the diagonal to the curve, one per bin. `None` without diagonal.
    histogram_ax_, bars_ : matplotlib Axes and BarContainer, or None
        Axes and bars of the confidence histogram. `None` if it is not drawn.

    See Also
    --------
    skbsd.metrics.calibration_curve : Compute the points of the curve.
    skbsd.metrics.expected_calibration_error : Compute the calibration error.
    sklearn.calibration.CalibrationDisplay : The same for the positive class of two.

    Notes
    -----
    The expected calibration error is the mean length of the vertical gaps between
    the curve and the diagonal, each weighted by the height of its bar in the
    histogram. A long gap above a low bar rests on few samples.

    A confidence of exactly 1 falls in a bin of its own, without width. It is a
    point of the curve, but its samples are drawn in the bar that ends at 1.

    Bootstrap intervals are basic ones [3]_, cut to [0, 1]: samples are drawn anew, and
    the bins stay. A calibration error is larger in a resample than in the sample, as
    that is larger than the classifier's; its interval takes this bias out, and so may
    lie below the value itself. It covers less than it says where the error is small.
    Where all the samples of a bin are right, or all wrong, the band has no height: they
    tell nothing of what else might have been drawn.

    References
    ----------
    .. [1] A. Niculescu-Mizil and R. Caruana, "Predicting good probabilities with
       supervised learning", ICML 2005.
    .. [2] C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern
       neural networks", ICML 2017. :arxiv:`1706.04599`
    .. [3] A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application",
       Cambridge University Press, 1997, equation 2.10.

    Examples
    --------
    >>> from skbsd.display import ReliabilityDisplay
    >>> from skbsd.metrics import calibration_curve, expected_calibration_error
    >>> y_true = ["a", "c", "c"]
    >>> y_proba = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]
    >>> bins = {"n_bins": 5, "labels": ["a", "b", "c"]}
    >>> curve = calibration_curve(y_true, y_proba, **bins)
    >>> ece = expected_calibration_error(y_true, y_proba, **bins)
    >>> display = ReliabilityDisplay(
    ...     curve.confidence, curve.accuracy, curve.count, curve.edges, ece
    ... )
    >>> display.plot()
    <...>
    """

    def __init__(
        self,
        confidence,
        accuracy,
        count,
        edges,
        ece,
        *,
        name=None,
        pos_label=None,
        accuracy_interval=None,
        ece_interval=None,
    ):
        self.confidence = confidence
        self.accuracy = accuracy
        self.count = count
        self.edges = edges
        self.ece = ece
        self.name = name
        self.pos_label = pos_label
        self.accuracy_interval = accuracy_interval
        self.ece_interval = ece_interval

    def plot(
        self, ax=None, *, name=None, ref_line=True, histogram=True, **kwargs
    ) -> Self:
        """Plot the reliability diagram.

        Several displays can be drawn on the same axes: each takes a colour, marker
        and dash of its own, and their histograms are overlaid.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If `None`, a new figure and axes is created.
            The histogram takes its place from the lower part of these axes.
        name : str, default=None
            Name of the curve in the legend. If `None`, the `name` of the display.
        ref_line : bool, default=True
            Whether to plot the diagonal, which represents a perfectly calibrated
            classifier, once on the same axes, and the gaps of the curve to it.
        histogram : bool, default=True
            Whether to plot the share of the samples in each bin below the curve.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot` for the
            curve. Band, gaps and histogram take the colour of the curve.

        Returns
        -------
        display : :class:`~skbsd.display.ReliabilityDisplay`
            Object that stores computed values and artists.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D

        line_kwargs = normalize_kwargs(kwargs, Line2D)
        Line2D([], [], **line_kwargs)  # raises before anything is drawn

        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        self.ax_, self.figure_ = ax, ax.figure

        defaults = {
            **next_style(ax),
            "label": self._label(self.name if name is None else name),
            "markersize": 5,
            "linewidth": 1.5,
            # Markers that overlap near a confidence of 1 stay apart.
            "markeredgecolor": ax.get_facecolor(),
            "markeredgewidth": 0.6,
            "zorder": 3,
        }
        line_kwargs = {**defaults, **line_kwargs}
        (self.line_,) = ax.plot(self.confidence, self.accuracy, **line_kwargs)
        self.band_ = None if self.accuracy_interval is None else self._plot_band()
        self.gaps_ = self._plot_reference() if ref_line else None
        self.histogram_ax_ = self.bars_ = None
        if histogram:
            self.histogram_ax_ = find_histogram(ax) or add_histogram(ax)
            self.bars_ = self._plot_histogram(self.histogram_ax_)
        self._label_axes()
        self._plot_legend()
        return self

    def _label(self, name):
        """Return the text of the curve in the legend."""
        ece = f"ECE {100 * self.ece:.1f} %"
        if self.ece_interval is None:
            return ece if name is None else f"{name} ({ece})"
        low, high = 100 * np.asarray(self.ece_interval)
        ece = f"{ece} ({low:.1f}–{high:.1f})"
        return ece if name is None else f"{name}: {ece}"

    def _plot_band(self):
        """Plot the limits of the accuracy."""
        from matplotlib.colors import to_rgba

        color = self.line_.get_color()
        # With an outline: the band of a single bin has no width.
        style = {"facecolor": to_rgba(color, 0.15), "edgecolor": to_rgba(color, 0.4)}
        low, high = self.accuracy_interval
        return self.ax_.fill_between(
            self.confidence, low, high, linewidth=0.8, zorder=1.5, **style
        )

    def _plot_reference(self):
        """Plot the diagonal, unless there is one, and the gaps of the curve to it."""
        ax, confidence = self.ax_, self.confidence
        if _REF_LABEL not in ax.get_legend_handles_labels()[1]:
            style = {"color": "0.35", "linewidth": 1, "linestyle": ":", "zorder": 1}
            ax.plot([0, 1], [0, 1], label=_REF_LABEL, **style)
        style = {"color": self.line_.get_color(), "alpha": 0.45, "linewidth": 2}
        return ax.vlines(confidence, confidence, self.accuracy, zorder=2, **style)

    def _plot_histogram(self, ax):
        """Plot the share of the samples in each bin."""
        from matplotlib.colors import to_rgba
        from matplotlib.ticker import MaxNLocator

        ax.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(format_percent)
        left, width, share = self._bars()
        color, dash = self.line_.get_color(), self.line_.get_linestyle()
        # Only the faces are translucent: overlaid histograms keep their outlines.
        style = {"facecolor": to_rgba(color, 0.3), "edgecolor": color, "linewidth": 1}
        return ax.bar(left, share, width, align="edge", linestyle=dash, **style)

    def _bars(self):
        """Return left limit, width and height of the bars of the histogram."""
        left, right = np.array(self.edges, dtype=float).T
        share = np.asarray(self.count, dtype=float) / np.sum(self.count)
        if left[-1] == right[-1]:
            # Samples of exactly this confidence. A bar of no width cannot be seen:
            # they join the bar that ends here or, without one, get a bar as wide.
            if len(left) > 1 and right[-2] == left[-1]:
                left, right = left[:-1], right[:-1]
                share = np.append(share[:-2], share[-2:].sum())
            else:
                left[-1] -= right[0] - left[0] if len(left) > 1 else _LONE_WIDTH
        return left, right - left, share

    def _label_axes(self):
        """Set limits, ticks and labels of both axes."""
        if self.pos_label is None:
            xlabel, ylabel = "Confidence of the predicted class", "Accuracy"
        else:
            xlabel = f"Predicted probability of class {self.pos_label}"
            ylabel = f"Fraction of class {self.pos_label}"
        # The margin leaves room for the markers at 0 and 1.
        limits, ticks = (-0.02, 1.02), np.linspace(0, 1, 6)
        self.ax_.set(xlim=limits, xticks=ticks, aspect="equal")
        self.ax_.set(ylim=limits, yticks=ticks)
        # The class's name is the user's: a dollar sign is one.
        self.ax_.set_ylabel(ylabel, parse_math=False)
        # Another display may have drawn a histogram here.
        (find_histogram(self.ax_) or self.ax_).set_xlabel(xlabel, parse_math=False)

    def _plot_legend(self):
        """Plot the legend, the reference line after all the models."""
        handles, labels = self.ax_.get_legend_handles_labels()
        area, parts = self.ax_.bbox, HEIGHT_WITH_HISTOGRAM if self.histogram_ax_ else 1
        width = min(area.width, area.height / parts) / self.ax_.figure.dpi
        order = sorted(range(len(labels)), key=lambda i: labels[i] == _REF_LABEL)
        handles, labels = zip(*[(handles[i], labels[i]) for i in order], strict=True)
        # In narrow axes a larger legend would hide the curve.
        fontsize = "x-small" if width < 2.5 else "small"
        space = {"handlelength": 1.8, "handletextpad": 0.6, "borderaxespad": 0.4}
        self.ax_.legend(handles, labels, fontsize=fontsize, **space)

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
        name=None,
        ax=None,
        ref_line=True,
        histogram=True,
        **kwargs,
    ) -> Self:
        """Plot the reliability diagram of a fitted classifier on some data.

        Parameters
        ----------
        estimator : estimator instance
            Fitted classifier with a :term:`predict_proba` method, or a pipeline
            that ends in one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input values, in whatever form the estimator takes.
        y : array-like of shape (n_samples,)
            True class labels.
        n_bins : int, default=15
            Number of bins.
        strategy : {"uniform", "quantile"}, default="uniform"
            Bins of equal width, or of equal weight.
        pos_label : int, float, bool or str, default=None
            If given, for binary problems only, plot the predicted probability of
            this class against its frequency. If `None`, plot the probability of the
            predicted class, which of two is at least 0.5, against the accuracy.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        n_bootstraps : int, default=0
            Number of bootstrap resamples of (X, y) that a band around the curve and
            an interval of the calibration error are computed from; a thousand are
            plenty. 0 draws none.
        confidence_level : float, default=0.95
            Of the band, bin by bin, and of the interval; in (0, 1).
        random_state : int, RandomState instance or None, default=None
            Fixes the resamples.
        name : str, default=None
            Name in the legend. If `None`, the class name of the estimator.
        ax : matplotlib Axes, default=None
            Axes to plot on, as for :meth:`plot`. If `None`, a new figure is created.
        ref_line : bool, default=True
            Whether to plot the diagonal, and the gaps of the curve to it.
        histogram : bool, default=True
            Whether to plot the share of the samples in each bin below the curve.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot` for the curve.

        Returns
        -------
        display : :class:`~skbsd.display.ReliabilityDisplay`
            Object that stores computed values and artists.

        See Also
        --------
        from_estimators : The same of several classifiers.
        from_predictions : The same of predicted probabilities.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.naive_bayes import GaussianNB
        >>> from skbsd.display import ReliabilityDisplay
        >>> X, y = load_digits(return_X_y=True)
        >>> model = GaussianNB().fit(X[::2], y[::2])
        >>> ReliabilityDisplay.from_estimator(model, X[1::2], y[1::2])
        <...>
        """
        require_matplotlib(f"{cls.__name__}.from_estimator")
        shown = curve_of_estimator(
            f"{cls.__name__}.from_estimator",
            estimator,
            X,
            y,
            n_bins=n_bins,
            strategy=strategy,
            pos_label=pos_label,
            sample_weight=sample_weight,
            n_bootstraps=n_bootstraps,
            confidence_level=confidence_level,
            random_state=random_state,
        )
        name = type(estimator).__name__ if name is None else name
        display = cls(**shown, name=name)
        return display.plot(ax=ax, ref_line=ref_line, histogram=histogram, **kwargs)

    @classmethod
    def from_estimators(
        cls,
        estimators,
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
    ) -> list[Self]:
        """Plot the reliability diagrams of several fitted classifiers in one.

        Parameters
        ----------
        estimators : dict of str to estimator, or list of estimators
            Fitted classifiers, with their names in the legend. Those of a list go by
            their class names, numbered where several are of one class.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input values, in whatever form all of them take.
        y : array-like of shape (n_samples,)
            True class labels.
        n_bins : int, default=15
            Number of bins.
        strategy : {"uniform", "quantile"}, default="uniform"
            Bins of equal width, or of equal weight.
        pos_label : int, float, bool or str, default=None
            The positive class, for binary problems. If `None`, the predicted class.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        n_bootstraps : int, default=0
            Number of bootstrap resamples for the band and the interval of the
            calibration error. 0 draws none.
        confidence_level : float, default=0.95
            Of the band, bin by bin, and of the interval; in (0, 1).
        random_state : int, RandomState instance or None, default=None
            Fixes the resamples. With an int all estimators are resampled alike.
        ax : matplotlib Axes, default=None
            Axes to plot on, as for :meth:`plot`. If `None`, a new figure is created.
        ref_line : bool, default=True
            Whether to plot the diagonal, and the gaps of the curve to it.
        histogram : bool, default=True
            Whether to plot the share of the samples in each bin below the curve.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot` for each of
            the curves.

        Returns
        -------
        displays : list of :class:`~skbsd.display.ReliabilityDisplay`
            One for each estimator, on the same axes.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.naive_bayes import GaussianNB
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> from skbsd.display import ReliabilityDisplay
        >>> X, y = load_digits(return_X_y=True)
        >>> bayes = GaussianNB().fit(X[::2], y[::2])
        >>> neighbours = KNeighborsClassifier().fit(X[::2], y[::2])
        >>> displays = ReliabilityDisplay.from_estimators(
        ...     {"naive Bayes": bayes, "neighbours": neighbours},
        ...     X[1::2],
        ...     y[1::2],
        ...     n_bootstraps=100,
        ...     random_state=0,
        ... )
        >>> [display.name for display in displays]
        ['naive Bayes', 'neighbours']
        """
        require_matplotlib(f"{cls.__name__}.from_estimators")
        if not estimators:
            raise ValueError(
                f"estimators={estimators!r} is empty; pass a dict of names and fitted "
                "classifiers, or a list of classifiers."
            )
        # All are computed before anything is drawn.
        displays = [
            cls(
                **curve_of_estimator(
                    f"{cls.__name__}.from_estimators",
                    estimator,
                    X,
                    y,
                    n_bins=n_bins,
                    strategy=strategy,
                    pos_label=pos_label,
                    sample_weight=sample_weight,
                    n_bootstraps=n_bootstraps,
                    confidence_level=confidence_level,
                    random_state=random_state,
                ),
                name=name,
            )
            for name, estimator in _name_estimators(estimators)
        ]
        for display in displays:
            display.plot(ax=ax, ref_line=ref_line, histogram=histogram, **kwargs)
            ax = display.ax_
        return displays

    @classmethod
    def from_predictions(
        cls,
        y_true,
        y_proba,
        *,
        n_bins=15,
        strategy="uniform",
        labels=None,
        pos_label=None,
        sample_weight=None,
        n_bootstraps=0,
        confidence_level=0.95,
        random_state=None,
        name=None,
        ax=None,
        ref_line=True,
        histogram=True,
        **kwargs,
    ) -> Self:
        """Plot the reliability diagram of predicted probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True class labels.
        y_proba : array-like of shape (n_samples,) or (n_samples, n_classes)
            Predicted probabilities; of the positive class if one-dimensional.
        n_bins : int, default=15
            Number of bins.
        strategy : {"uniform", "quantile"}, default="uniform"
            Bins of equal width, or of equal weight.
        labels : array-like of shape (n_classes,), default=None
            Class label of each column. See
            :func:`~skbsd.metrics.expected_calibration_error` for the default.
        pos_label : int, float, bool or str, default=None
            As in :meth:`from_estimator`. With two columns it must be the label of
            the second.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        n_bootstraps : int, default=0
            Number of bootstrap resamples for the band and the interval of the
            calibration error. 0 draws none.
        confidence_level : float, default=0.95
            Of the band, bin by bin, and of the interval; in (0, 1).
        random_state : int, RandomState instance or None, default=None
            Fixes the resamples.
        name : str, default=None
            Name of the curve in the legend. If `None`, "Classifier".
        ax : matplotlib Axes, default=None
            Axes to plot on, as for :meth:`plot`. If `None`, a new figure is created.
        ref_line : bool, default=True
            Whether to plot the diagonal, and the gaps of the curve to it.
        histogram : bool, default=True
            Whether to plot the share of the samples in each bin below the curve.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot` for the curve.

        Returns
        -------
        display : :class:`~skbsd.display.ReliabilityDisplay`
            Object that stores computed values and artists.

        See Also
        --------
        from_estimator : The same of a fitted classifier.

        Examples
        --------
        >>> from skbsd.display import ReliabilityDisplay
        >>> y_proba = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]
        >>> ReliabilityDisplay.from_predictions(
        ...     ["a", "c", "c"], y_proba, labels=["a", "b", "c"], n_bins=5
        ... )
        <...>
        """
        require_matplotlib(f"{cls.__name__}.from_predictions")
        shown = curve_of_predictions(
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
        display = cls(**shown, name="Classifier" if name is None else name)
        return display.plot(ax=ax, ref_line=ref_line, histogram=histogram, **kwargs)
