"""The best score of a search against the time spent."""

from typing import Self

import numpy as np
from numpy.typing import NDArray

from ._cv_results import check_cv_results, column, metrics, n_splits
from ._style import next_style, require_matplotlib


class SearchTimeDisplay:
    """Best score so far against the time spent, of the candidates of a search.

    A point for each candidate shows its score, at the time when its last fold was
    done. The steps connect the best scores so far: where they stay level for long, the
    rest of the search gained nothing. A successive-halving search begins anew with each
    of its iterations, which train on more of the resource: their scores cannot be
    compared, so each iteration has steps of its own.

    It is recommended to use :meth:`from_estimator` or :meth:`from_cv_results` to create
    a `SearchTimeDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    seconds : ndarray of shape (n_candidates,)
        Time spent when each candidate was done, not decreasing.
    score : ndarray of shape (n_candidates,)
        Mean score of each candidate over the splits; NaN where the fits failed. The
        higher, the better.
    iteration : ndarray of int of shape (n_candidates,), default=None
        Iteration of a successive-halving search that each candidate belongs to. If
        `None`, there is one.
    n_resources : ndarray of int of shape (n_candidates,), default=None
        Amount of the resource of each candidate, shown at the start of its iteration.
    score_name : str, default=None
        Name of the score, for the axis label.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the scores.
    figure_ : matplotlib Figure
        Figure containing the scores.
    points_ : matplotlib Artist
        The candidates.
    lines_ : list of matplotlib Artist
        The steps of the best score so far, one line for each iteration.
    texts_ : list of matplotlib Artist
        The amount of the resource of each iteration, if there are several.

    See Also
    --------
    CalibrationTradeoffDisplay : Two scores of the candidates against each other.
    skbsd.model_selection.StackedGridSearchCV : Trains many candidates together.

    Notes
    -----
    The time is the sum over candidates and splits of the time to fit and to score, as
    `cv_results_` has it, in the order of the candidates there. With one process
    (``n_jobs=None``) this is the duration of the search, except for the last fit
    (`refit`) and the search's own work. With several processes it is the processor time
    that they spent together, and the search took a part of it.
    :class:`~skbsd.model_selection.StackedGridSearchCV` gives each fit its share of the
    time of its stack.

    Examples
    --------
    >>> from skbsd.display import SearchTimeDisplay
    >>> display = SearchTimeDisplay([2, 4, 7], [0.8, 0.7, 0.9]).plot()
    >>> display.lines_[0].get_ydata()
    array([0.8, 0.8, 0.9])
    """

    def __init__(
        self, seconds, score, *, iteration=None, n_resources=None, score_name=None
    ):
        self.seconds = seconds
        self.score = score
        self.iteration = iteration
        self.n_resources = n_resources
        self.score_name = score_name

    def plot(self, ax=None, *, name=None, **kwargs) -> Self:
        """Plot the candidates and the best score so far.

        Several displays can be drawn on the same axes, to compare searches: each takes
        a colour, marker and dash of its own.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If `None`, a new figure and axes is created.
        name : str, default=None
            Name of the search in the legend. If `None`, the first search on the axes
            has no name.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot` for the steps.

        Returns
        -------
        display : :class:`~skbsd.display.SearchTimeDisplay`
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

        seconds, score = np.asarray(self.seconds), np.asarray(self.score, dtype=float)
        iteration = np.zeros(len(score), dtype=int)
        if self.iteration is not None:
            iteration = np.asarray(self.iteration)
        style = {**next_style(ax), "linewidth": 1.5, **kwargs}
        faint = to_rgba(style["color"], 0.45)
        (self.points_,) = ax.plot(
            seconds,
            score,
            **style
            | {"linestyle": "none", "markersize": 4, "label": "_candidates"}
            | {"markerfacecolor": faint, "markeredgecolor": "none"},
        )
        best = "Best so far" if name is None else f"{name}: best so far"
        self.lines_ = []
        for i in np.unique(iteration):
            rows = np.flatnonzero((iteration == i) & np.isfinite(score))
            (line,) = ax.plot(
                seconds[rows],
                np.maximum.accumulate(score[rows]),
                drawstyle="steps-post",
                **{"label": best, **style, "marker": "None"},
            )
            self.lines_.append(line)
            best = "_nolegend_"
        self.texts_ = self._mark_iterations(seconds, iteration)
        ax.set_xlabel("Time spent on fits and scores, s")
        suffix = "" if self.score_name in (None, "score") else f" ({self.score_name})"
        ax.set_ylabel(f"Mean test score{suffix}", parse_math=False)
        ax.legend(fontsize="small", loc="lower right")
        return self

    def _mark_iterations(self, seconds: NDArray, iteration: NDArray) -> list:
        """Write the amount of the resource where each iteration begins."""
        first = np.unique(iteration, return_index=True)[1]
        if len(first) < 2 or self.n_resources is None:
            return []
        color = self.lines_[0].get_color()
        texts = []
        for row in first:
            start = seconds[row - 1] if row else 0.0
            what = "n_resources " if row == 0 else ""
            self.ax_.axvline(start, color=color, alpha=0.4, linewidth=0.8, zorder=0)
            texts.append(
                self.ax_.annotate(
                    f"{what}{self.n_resources[row]:,}",
                    (start, 1),
                    xycoords=("data", "axes fraction"),
                    va="bottom",
                    ha="left",
                    fontsize="x-small",
                    color=color,
                )
            )
        return texts

    @classmethod
    def from_estimator(
        cls, search, *, metric=None, name=None, ax=None, **kwargs
    ) -> Self:
        """Plot how a fitted search went.

        Parameters
        ----------
        search : GridSearchCV, RandomizedSearchCV, HalvingGridSearchCV or similar
            Fitted, with `cv_results_`.
        metric : str, default=None
            Name of the score. If `None`, the only one, or the one that `refit` names.
        name : str, default=None
            Name in the legend. If `None`, the class name of the search.
        ax : matplotlib Axes, default=None
            Axes to plot on. If `None`, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : :class:`~skbsd.display.SearchTimeDisplay`
            Object that stores computed values and artists.

        Raises
        ------
        TypeError
            If `search` has no `cv_results_`: it is not a search, or not fitted.
        ValueError
            As in :meth:`from_cv_results`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.model_selection import GridSearchCV
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> from skbsd.display import SearchTimeDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> grid = {"n_neighbors": [1, 3, 10, 30]}
        >>> search = GridSearchCV(KNeighborsClassifier(), grid).fit(X, y)
        >>> display = SearchTimeDisplay.from_estimator(search)
        >>> bool(display.lines_[0].get_ydata()[-1] == search.best_score_)
        True
        """
        require_matplotlib(f"{cls.__name__}.from_estimator")
        if not hasattr(search, "cv_results_"):
            raise TypeError(
                f"{type(search).__name__} has no cv_results_; pass a fitted search, "
                "such as GridSearchCV."
            )
        refit = getattr(search, "refit", None)
        if metric is None and isinstance(refit, str):
            # With one metric, scikit-learn takes any string for True.
            metric = refit if refit in metrics(search.cv_results_) else None
        name = type(search).__name__ if name is None else name
        return cls.from_cv_results(
            search.cv_results_, metric=metric, name=name, ax=ax, **kwargs
        )

    @classmethod
    def from_cv_results(
        cls, cv_results, *, metric=None, name=None, ax=None, **kwargs
    ) -> Self:
        """Plot how a search went, by its results.

        Parameters
        ----------
        cv_results : dict or DataFrame
            `cv_results_` of a :class:`~sklearn.model_selection.GridSearchCV` or another
            search.
        metric : str, default=None
            Name of the score. If `None`, the only one.
        name : str, default=None
            Name in the legend, as for :meth:`plot`.
        ax : matplotlib Axes, default=None
            Axes to plot on. If `None`, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : :class:`~skbsd.display.SearchTimeDisplay`
            Object that stores computed values and artists.

        Raises
        ------
        ValueError
            If there are several metrics and `metric` names none of them, or if all fits
            failed.

        Notes
        -----
        Candidates without a score, whose fits failed, have no point; their time counts.

        Examples
        --------
        >>> from skbsd.display import SearchTimeDisplay
        >>> SearchTimeDisplay.from_cv_results({
        ...     "mean_fit_time": [0.5, 0.7],
        ...     "mean_score_time": [0.1, 0.1],
        ...     "mean_test_score": [0.7, 0.8],
        ...     "split0_test_score": [0.6, 0.9],
        ...     "split1_test_score": [0.8, 0.7],
        ... }).seconds
        array([1.2, 2.8])
        """
        require_matplotlib(f"{cls.__name__}.from_cv_results")
        check_cv_results(cv_results)
        if metric is None:
            names = metrics(cv_results)
            if len(names) != 1:
                raise ValueError(
                    f"the search was scored by {len(names)} metrics, {names}; pass one "
                    "of them as metric."
                )
            metric = names[0]
        score = column(cv_results, "mean_test_", metric)
        if not np.isfinite(score).any():
            raise ValueError(
                f"none of the {len(score)} candidates has a score of {metric!r}: all "
                "fits failed."
            )
        times = [np.asarray(cv_results[f"mean_{s}_time"]) for s in ("fit", "score")]
        seconds = np.cumsum(np.sum(times, axis=0) * n_splits(cv_results, metric))
        halving = {
            key: np.asarray(cv_results[column_name])
            for key, column_name in (("iteration", "iter"), ("n_resources",) * 2)
            if column_name in cv_results
        }
        display = cls(seconds, score, score_name=metric, **halving)
        return display.plot(ax, name=name, **kwargs)
