"""Fractions of wrong labels with confidence intervals."""

from numbers import Integral
from typing import Self

import numpy as np
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)

from ..label_noise import estimate_noise_rates
from ._style import STYLES, require_matplotlib

_PLOT = {
    "by": [StrOptions({"class", "pair"})],
    "max_rows": [Interval(Integral, 1, None, closed="left")],
}
# Inches: of a row, of what is above and below the rows, of the figure without names,
# and of a letter.
_ROW_HEIGHT, _AROUND_HEIGHT, _WIDTH, _LETTER_WIDTH = 0.26, 1.2, 5.5, 0.07
# Letters of a class's name.
_LONGEST = {"class": 28, "pair": 18}
_ALL = "All labels"
# Labels of both axes.
_LABELS = {
    "class": ("Wrong labels, %", "Given label"),
    "pair": ("Share of the samples with the given label, %", "True and given label"),
}


class NoiseRateDisplay:
    """Estimated fractions of wrong labels, with confidence intervals.

    By class, the topmost row shows the fraction of all labels that are wrong, and a
    band repeats its confidence interval behind the other rows. These show the fraction
    of the labels of each class that are wrong, in descending order. By pair, the rows
    show the most frequent errors from class to class.

    It is recommended to use :meth:`from_estimator` to create a `NoiseRateDisplay`. All
    parameters are stored as attributes.

    Parameters
    ----------
    noise_rates : NoiseRates
        Result of :func:`skbsd.label_noise.estimate_noise_rates`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the rates.
    figure_ : matplotlib Figure
        Figure containing the rates.
    rows_ : ErrorbarContainer
        The rates of the classes or pairs with their intervals.
    overall_ : ErrorbarContainer or None
        The rate of all labels with its interval. `None` by pair.
    band_ : matplotlib Artist or None
        The band of the interval of all labels. `None` by pair.

    See Also
    --------
    skbsd.label_noise.estimate_noise_rates : Computes rates and intervals, and explains
        what the intervals cover.
    skbsd.label_noise.find_label_issues : The samples whose labels are probably wrong.

    Notes
    -----
    Classes with few labels have wide intervals. Of many intervals of 95 %, one in
    twenty is expected to miss the true rate.

    Examples
    --------
    >>> import numpy as np
    >>> from skbsd.display import NoiseRateDisplay
    >>> from skbsd.label_noise import NoiseRates
    >>> rates = NoiseRates(
    ...     classes=np.array(["cat", "dog"]),
    ...     n_samples=100,
    ...     n_labels=np.array([40, 60]),
    ...     rate=0.13,
    ...     interval=np.array([0.08, 0.19]),
    ...     by_class=np.array([0.1, 0.15]),
    ...     by_class_interval=np.array([[0.05, 0.1], [0.17, 0.21]]),
    ...     pairs=np.array([[0, 1], [1, 0]]),
    ...     by_pair=np.array([0.15, 0.1]),
    ...     by_pair_interval=np.array([[0.1, 0.05], [0.21, 0.17]]),
    ...     confidence_level=0.95,
    ... )
    >>> display = NoiseRateDisplay(rates).plot(by="pair")
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['cat labelled dog', 'dog labelled cat']
    """

    def __init__(self, noise_rates):
        self.noise_rates = noise_rates

    def plot(self, ax=None, *, by="class", max_rows=20, **kwargs) -> Self:
        """Plot the rates.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If `None`, a new figure and axes is created, whose
            height suits the number of rows.
        by : {"class", "pair"}, default="class"
            Whether the rows are given labels, with the fraction of them that are wrong,
            or pairs of true class and given label, with the fraction of the samples
            with this label that are of the other class.
        max_rows : int, default=20
            Number of classes or pairs to show, at most: those of the highest rates.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.errorbar`.

        Returns
        -------
        display : :class:`~skbsd.display.NoiseRateDisplay`
            Object that stores computed values and artists.
        """
        caller = f"{type(self).__name__}.plot"
        require_matplotlib(caller)
        validate_parameter_constraints(_PLOT, {"by": by, "max_rows": max_rows}, caller)
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D

        kwargs = normalize_kwargs(kwargs, Line2D)
        names, rates, limits, n_all = self._rows(by, max_rows)
        n_above = int(by == "class")  # the row of all labels
        if ax is None:
            import matplotlib.pyplot as plt

            height = _AROUND_HEIGHT + _ROW_HEIGHT * (n_above + len(names))
            letters = max(map(len, names), default=0)
            size = (_WIDTH + _LETTER_WIDTH * letters, height)
            _, ax = plt.subplots(figsize=size, layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure

        self.overall_ = self.band_ = None
        if n_above:
            found = self.noise_rates
            interval = found.interval[:, np.newaxis]
            self.overall_ = self._plot_rates([0], [found.rate], interval, 1, kwargs)
            band = {"color": STYLES[1][0], "alpha": 0.12, "linewidth": 0, "zorder": 0}
            self.band_ = ax.axvspan(*(100 * found.interval), **band)
        places = n_above + np.arange(len(names))
        self.rows_ = self._plot_rates(places, rates, limits, 0, kwargs)
        self._label_axes(by, [_ALL][:n_above] + names, len(names), n_all)
        return self

    def _rows(self, by: str, max_rows: int):
        """Return names, rates and limits of the rows, and how many there might be."""
        found, longest = self.noise_rates, _LONGEST[by]
        classes = [_shorten(str(label), longest) for label in found.classes.tolist()]
        if by == "class":
            names = classes
            rates, limits = found.by_class, found.by_class_interval
        else:
            names = [f"{classes[i]} labelled {classes[j]}" for i, j in found.pairs]
            rates, limits = found.by_pair, found.by_pair_interval
        known = np.flatnonzero(np.isfinite(rates))
        order = known[np.argsort(-rates[known], kind="stable")]
        shown = order[:max_rows]
        return [names[k] for k in shown], rates[shown], limits[:, shown], len(order)

    def _plot_rates(self, places, rates, limits, style: int, kwargs):
        """Plot some rates with their intervals, in percent."""
        rates = 100 * np.asarray(rates)
        low, high = 100 * limits
        color, marker, _ = STYLES[style]
        defaults = {
            "color": color,
            "marker": marker,
            "linestyle": "none",
            "markersize": 5,
            "elinewidth": 1.2,
            "capsize": 2.5,
        }
        # A basic bootstrap interval need not contain the estimate.
        errors = np.maximum([rates - low, high - rates], 0)
        return self.ax_.errorbar(rates, places, xerr=errors, **(defaults | kwargs))

    def _label_axes(self, by: str, rows: list[str], n_shown: int, n_all: int) -> None:
        """Set ticks, limits and labels of both axes."""
        ax = self.ax_
        ax.set_yticks(range(len(rows)), rows)
        for text in ax.get_yticklabels():
            text.set_parse_math(False)  # a dollar sign in a name is one
        ax.set_ylim(len(rows) - 0.4, -0.6)
        # At least 1 % wide: without wrong labels, all rates are close to zero.
        ax.set_xlim(0, max(ax.get_xlim()[1], 1.0))
        quantity, what = _LABELS[by]
        level = f"{100 * self.noise_rates.confidence_level:g} % confidence interval"
        ax.set_xlabel(f"{quantity}\n({level})")
        if n_shown < n_all:
            what += f"\n(the {n_shown} highest rates of {n_all:,})"
        ax.set_ylabel(what)
        ax.grid(axis="x", alpha=0.3)
        ax.set_axisbelow(True)

    @classmethod
    def from_estimator(
        cls,
        estimator,
        *,
        by="class",
        max_rows=20,
        n_bootstraps=200,
        confidence_level=0.95,
        random_state=None,
        ax=None,
        **kwargs,
    ) -> Self:
        """Estimate and plot the rates of wrong labels of a fitted classifier.

        Parameters
        ----------
        estimator : BSDClassifier or Pipeline
            Fitted with calibration, or a pipeline that ends in such a classifier.
        by : {"class", "pair"}, default="class"
            Whether the rows are given labels, or pairs of true class and given label.
        max_rows : int, default=20
            Number of classes or pairs to show, at most.
        n_bootstraps : int, default=200
            Number of resamples of the out-of-fold predictions, for the intervals.
        confidence_level : float, default=0.95
            Confidence level of each interval, in (0, 1).
        random_state : int, RandomState instance or None, default=None
            Fixes the resamples.
        ax : matplotlib Axes, default=None
            Axes to plot on, as for :meth:`plot`. If `None`, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.errorbar`.

        Returns
        -------
        display : :class:`~skbsd.display.NoiseRateDisplay`
            Object that stores computed values and artists.

        Raises
        ------
        NotFittedError
            If the estimator was not fitted.
        ValueError
            If it is not a BSDClassifier, or has no out-of-fold predictions.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skbsd import BSDClassifier
        >>> from skbsd.display import NoiseRateDisplay
        >>> from skbsd.label_noise import flip_labels
        >>> X, y = load_digits(return_X_y=True)
        >>> labels, _ = flip_labels(y, 0.2, random_state=0)
        >>> model = BSDClassifier(max_epochs=20, random_state=0).fit(X / 16, labels)
        >>> display = NoiseRateDisplay.from_estimator(model, n_bootstraps=50)
        >>> print(f"{display.noise_rates.rate:.1f}")
        0.2
        """
        require_matplotlib(f"{cls.__name__}.from_estimator")
        validate_parameter_constraints(
            _PLOT, {"by": by, "max_rows": max_rows}, f"{cls.__name__}.from_estimator"
        )
        rates = estimate_noise_rates(
            estimator,
            n_pairs=max_rows,
            n_bootstraps=n_bootstraps,
            confidence_level=confidence_level,
            random_state=random_state,
        )
        return cls(rates).plot(ax, by=by, max_rows=max_rows, **kwargs)


def _shorten(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
