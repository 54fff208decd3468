"""What a hyper-parameter does to accuracy and to calibration."""

import math
from numbers import Real
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ._cv_results import check_cv_results, column, n_splits
from ._style import next_style, require_matplotlib

_NOT_SET = "not set"  # of a list of grids, those of which lack the parameter


class CalibrationTradeoffDisplay:
    """Accuracy against calibration error of the candidates of a search.

    A point for each candidate, with one standard error over the splits to each side,
    and the value of the parameter that was searched beside it. The line goes through
    the numbers among the values, in increasing order. Up is more accurate, left is
    better calibrated: a candidate is worth having if none lies above it and to its
    left.

    It is recommended to use :meth:`from_cv_results` to create a
    `CalibrationTradeoffDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    calibration_error, accuracy : ndarray of shape (n_candidates,)
        Means over the splits.
    values : list of length n_candidates
        Value of the parameter.
    calibration_error_sem, accuracy_sem : ndarray of shape (n_candidates,), default=None
        Standard errors of the means.
    best_index : int, default=None
        The candidate to be highlighted.
    param_name, calibration_name, accuracy_name, best_name : str, default=None
        Names of the parameter, of the two scores and of the one that chose the best,
        for labels and legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the points.
    figure_ : matplotlib Figure
        Figure containing the points.
    line_ : matplotlib Artist
        The line through the candidates whose values are numbers.
    points_ : ErrorbarContainer
        The points of all candidates with their standard errors.
    texts_ : list of matplotlib Artist
        The values beside the points.
    best_ : matplotlib Artist or None
        The ring around the best candidate. `None` if it is not highlighted.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : Searches, with several scores at once.
    skbsd.metrics.get_scorer : Scorers of calibration.

    Notes
    -----
    Splits share training data, so their scores depend on each other, and a standard
    error over splits understates how much the mean would vary with other data. But all
    candidates see the same splits: differences between them are surer than the bars
    suggest.

    Examples
    --------
    >>> from skbsd.display import CalibrationTradeoffDisplay
    >>> CalibrationTradeoffDisplay(
    ...     [0.06, 0.03, 0.02], [0.95, 0.94, 0.90], [10, 100, float("inf")]
    ... ).plot()
    <...>
    """

    def __init__(
        self,
        calibration_error,
        accuracy,
        values,
        *,
        calibration_error_sem=None,
        accuracy_sem=None,
        best_index=None,
        param_name=None,
        calibration_name=None,
        accuracy_name=None,
        best_name=None,
    ):
        self.calibration_error = calibration_error
        self.accuracy = accuracy
        self.values = values
        self.calibration_error_sem = calibration_error_sem
        self.accuracy_sem = accuracy_sem
        self.best_index = best_index
        self.param_name = param_name
        self.calibration_name = calibration_name
        self.accuracy_name = accuracy_name
        self.best_name = best_name

    def plot(self, ax=None, *, name=None, **kwargs) -> Self:
        """Plot the candidates.

        Several displays can be drawn on the same axes: each takes a colour, marker and
        dash of its own.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If `None`, a new figure and axes is created.
        name : str, default=None
            Name in the legend. If `None`, the name of the parameter, without a step's.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot` for points
            and line.

        Returns
        -------
        display : :class:`~skbsd.display.CalibrationTradeoffDisplay`
            Object that stores computed values and artists.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.colors import to_rgba
        from matplotlib.lines import Line2D

        kwargs = normalize_kwargs(kwargs, Line2D)
        Line2D([], [], **kwargs)  # raises before anything is drawn

        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        self.ax_, self.figure_ = ax, ax.figure

        x, y = np.asarray(self.calibration_error), np.asarray(self.accuracy)
        if name is None and self.param_name is not None:
            name = self.param_name.rpartition("__")[2]
        style = {**next_style(ax), "markersize": 6, "linewidth": 1.2, **kwargs}
        numbers = _numbers_in_order(self.values)
        (self.line_,) = ax.plot(x[numbers], y[numbers], **style | {"marker": "None"})
        self.points_ = ax.errorbar(
            x,
            y,
            xerr=self.calibration_error_sem,
            yerr=self.accuracy_sem,
            **style | {"linestyle": "none", "label": name},
            ecolor=to_rgba(self.line_.get_color(), 0.5),
            elinewidth=0.8,
            capsize=2,
        )
        self.texts_ = self._write_values(ax, x, y)
        self.best_ = self._ring_best(ax, x, y)
        # Other errors may be shown too: the log loss is none of calibration.
        error = self.calibration_name
        of_calibration = error is None or "ece" in error or "calib" in error
        quantity = "Calibration error" if of_calibration else "Error"
        ax.set_xlabel(_axis_label(quantity, error))
        ax.set_ylabel(_axis_label("Accuracy", self.accuracy_name))
        handles, labels = ax.get_legend_handles_labels()
        if labels:  # the candidates, then which of them is the best
            rings = [isinstance(handle, Line2D) for handle in handles]
            order = np.argsort(rings, kind="stable")
            handles, labels = [handles[i] for i in order], [labels[i] for i in order]
            ax.legend(handles, labels, fontsize="small")
        return self

    def _write_values(self, ax, x, y) -> list:
        """Write each candidate's value beside its point."""
        from matplotlib.patheffects import withStroke

        return [
            ax.annotate(
                _format(value),
                point,
                (6, 6),
                textcoords="offset points",
                fontsize="large" if _format(value) == "∞" else "small",
                path_effects=[withStroke(linewidth=2, foreground=ax.get_facecolor())],
            )
            for value, *point in zip(self.values, x, y, strict=True)
        ]

    def _ring_best(self, ax, x, y):
        """Draw a ring around the best candidate, where it is known which it is."""
        if self.best_index is None:
            return None
        best = "Best" if self.best_name is None else f"Best by {self.best_name}"
        if best in ax.get_legend_handles_labels()[1]:  # of another display
            best = f"_{best}"  # which the legend leaves out
        (ring,) = ax.plot(
            x[self.best_index],
            y[self.best_index],
            label=best,
            linestyle="none",
            marker="o",
            markersize=14,
            markerfacecolor="none",
            markeredgecolor="0.2",
        )
        return ring

    @classmethod
    def from_cv_results(
        cls,
        cv_results,
        *,
        param=None,
        accuracy="accuracy",
        calibration="ece",
        refit=None,
        name=None,
        ax=None,
        **kwargs,
    ) -> Self:
        """Plot the candidates of a search that was scored by several metrics.

        Parameters
        ----------
        cv_results : dict or DataFrame
            `cv_results_` of a :class:`~sklearn.model_selection.GridSearchCV` or another
            search.
        param : str, default=None
            Name of the parameter that the points are labelled with, as in the search.
            If `None`, the only one that varies.
        accuracy : str, default="accuracy"
            Name of the metric of accuracy among the search's `scoring`.
        calibration : str, default="ece"
            Name of that of calibration. Negated errors, as scorers give them, are
            shown as errors.
        refit : str, default=None
            Name of a metric. If given, the candidate that it ranks first is
            highlighted.
        name : str, default=None
            Name in the legend, as for :meth:`plot`.
        ax : matplotlib Axes, default=None
            Axes to plot on, as for :meth:`plot`. If `None`, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : :class:`~skbsd.display.CalibrationTradeoffDisplay`
            Object that stores computed values and artists.

        Raises
        ------
        ValueError
            If several parameters vary and `param` names none of them; for a metric or
            parameter that is not there; if no candidate was scored.

        Notes
        -----
        Candidates without scores, whose fit failed, are left out.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.model_selection import GridSearchCV
        >>> from sklearn.naive_bayes import GaussianNB
        >>> from skbsd.display import CalibrationTradeoffDisplay
        >>> from skbsd.metrics import get_scorer
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> search = GridSearchCV(
        ...     GaussianNB(),
        ...     {"var_smoothing": [1e-9, 1e-6, 1e-3]},
        ...     scoring={
        ...         "nll": "neg_log_loss",
        ...         "ece": get_scorer("neg_expected_calibration_error"),
        ...         "accuracy": "accuracy",
        ...     },
        ...     refit="nll",
        ... ).fit(X, y)
        >>> display = CalibrationTradeoffDisplay.from_cv_results(
        ...     search.cv_results_, refit="nll"
        ... )
        >>> display.values
        [1e-09, 1e-06, 0.001]
        """
        require_matplotlib(f"{cls.__name__}.from_cv_results")
        check_cv_results(cv_results)
        param = _choose_param(cv_results, param)
        errors, accuracies = (
            _scores(cv_results, metric) for metric in (calibration, accuracy)
        )
        ranks = None if refit is None else column(cv_results, "rank_test_", refit)
        scored = np.isfinite(errors[0]) & np.isfinite(accuracies[0])
        if not scored.any():
            raise ValueError(
                f"none of the {len(scored)} candidates has scores of both "
                f"{calibration!r} and {accuracy!r}: all fits failed."
            )
        (error, error_sem), (mean, mean_sem) = (
            [None if part is None else part[scored] for part in score]
            for score in ((_as_errors(errors[0], calibration), errors[1]), accuracies)
        )
        given: np.ma.MaskedArray = np.ma.asarray(
            cv_results[f"param_{param}"], dtype=object
        )
        values = given.filled(_NOT_SET)
        display = cls(
            error,
            mean,
            values[scored].tolist(),
            calibration_error_sem=error_sem,
            accuracy_sem=mean_sem,
            best_index=None if ranks is None else int(np.argmin(ranks[scored])),
            param_name=param,
            calibration_name=calibration,
            accuracy_name=accuracy,
            best_name=refit,
        )
        return display.plot(ax=ax, name=name, **kwargs)


def _choose_param(cv_results, param: str | None) -> str:
    """Return the name of the parameter to show."""
    names = [key.removeprefix("param_") for key in cv_results if key[:6] == "param_"]
    if param is not None:
        if param not in names:
            raise ValueError(
                f"param={param!r} was not searched; expected one of {names}."
            )
        return param
    varying = [
        name for name in names if len(set(map(repr, cv_results[f"param_{name}"]))) > 1
    ]
    if len(varying) != 1:
        raise ValueError(
            f"{len(varying)} parameters vary, of {names}; pass one of them as param."
        )
    return varying[0]


def _scores(cv_results, metric: str) -> tuple[NDArray, NDArray | None]:
    """Return means of a metric over the splits, and their standard errors."""
    mean = column(cv_results, "mean_test_", metric)
    n = n_splits(cv_results, metric)
    if n < 2:
        return mean, None
    # That of cv_results is the standard deviation of the splits that there are.
    std = column(cv_results, "std_test_", metric)
    return mean, std / math.sqrt(n - 1)


def _as_errors(mean: NDArray, metric: str) -> NDArray:
    """Return errors where the scores were negated."""
    finite = mean[np.isfinite(mean)]
    if finite.min() < 0 < finite.max():
        raise ValueError(
            f"the means of {metric!r} lie between {finite.min():g} and "
            f"{finite.max():g}: neither errors nor negated errors. Name a metric of "
            "calibration as calibration."
        )
    return np.abs(mean)


def _numbers_in_order(values) -> list[int]:
    """Return the places of the numbers among some values, in increasing order.

    None where a number occurs twice: something else varied, and the order says nothing.
    """
    numbers = [i for i, value in enumerate(values) if _is_number(value)]
    if len({values[i] for i in numbers}) < len(numbers):
        return []
    return sorted(numbers, key=lambda i: values[i])


def _is_number(value) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


def _format(value) -> str:
    """Write a value of the parameter."""
    if not _is_number(value):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:g}"


def _axis_label(quantity: str, name: str | None) -> str:
    """Return the quantity and, unless that says the same, the metric's name."""
    return quantity if name in (None, quantity.lower()) else f"{quantity} ({name})"
