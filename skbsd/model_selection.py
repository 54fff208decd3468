"""A search whose networks are trained together.

:class:`StackedGridSearchCV` is scikit-learn's `GridSearchCV` for many small networks:
those of all candidates and folds take their steps at once, stacked along a leading
dimension.
"""

import copy
import warnings
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, check_cv
from sklearn.utils import indexable
from sklearn.utils._param_validation import Interval, StrOptions

from ._search_fits import SearchFits

__all__ = ["StackedGridSearchCV"]

# Where the caller of `fit` is, as seen from where fits are trained.
_USER = 8


class _Splits:
    """A splitter that was asked already."""

    def __init__(self, splits: list[tuple[Any, Any]]):
        self._splits = splits

    def split(self, *args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        """Return the splits."""
        return self._splits


class _Call:
    """What is known while a search is fitted, and its estimator's clones.

    scikit-learn clones the estimator of a search for each of its fits. In a call, these
    clones are those of :class:`SearchFits`, whose `fit` takes a trained network over.
    """

    def __init__(self, estimator: Any, X: Any, y: Any):
        self.estimator = estimator
        self.X, self.y = indexable(X, y)
        self.routed: Any = None
        self.fits: SearchFits | None = None
        self._evaluates = False
        self.template = self._hooked()

    def _hooked(self) -> Any:
        own = clone(self.estimator)
        vars(own)["__sklearn_clone__"] = self._clone
        return own

    def _clone(self) -> Any:
        if self.fits is None:
            return self._hooked()  # before the evaluation
        return self.fits.next_clone() if self._evaluates else clone(self.estimator)

    def evaluate(self, evaluate_candidates: Any, candidates: Any, **kwargs: Any) -> Any:
        """Have scikit-learn evaluate candidates, with clones that are trained."""
        self._evaluates = True
        try:
            return evaluate_candidates(candidates, **kwargs)
        finally:
            self._evaluates = False

    def end(self) -> None:
        """Leave no trace on what scikit-learn may have kept."""
        vars(self.template).pop("__sklearn_clone__", None)


class StackedGridSearchCV(GridSearchCV):
    """Search over a grid of parameters, with the networks of many fits trained at once.

    A small network leaves a GPU idle, and on a CPU the time between two operations is
    longer than the operations. Here the networks of all candidates and folds take each
    step together, as one network with a leading dimension [1]_; each has its own
    weights, samples, beliefs, learning rate, `prior_strength`, `discount`,
    `weight_decay` and `random_state`. Scores, ranks, errors and the estimator that is
    fitted again are those of :class:`sklearn.model_selection.GridSearchCV`, within
    rounding.

    Parameters
    ----------
    estimator : BSDClassifier or Pipeline
        A :class:`skbsd.BSDClassifier`, or a Pipeline that ends in one: its other steps
        are fitted by fold, as always. Other estimators are fitted one by one.
    param_grid : dict or list of dict
        Values to try, by the name of a parameter.
    scoring : str, callable, list, tuple or dict, default=None
        As in scikit-learn, of one metric or several.
    n_jobs : int, default=None
        Processes for scores, and for fits that are not stacked. Stacks are trained in
        this process.
    refit : bool, str or callable, default=True
        Fit the best candidate again, on all data; a name chooses among several metrics,
        and a callable gets `cv_results_` and returns the index of the best candidate.
    cv : int, splitter or iterable, default=None
        As in scikit-learn. Its splits are asked for once.
    verbose : int, default=0
        As in scikit-learn. The times it tells are those of taking over and scoring.
    pre_dispatch : int or str, default="2*n_jobs"
        As in scikit-learn.
    error_score : "raise" or float, default=nan
        Score of a fit that fails. A network whose loss becomes NaN is trained once more
        by itself, to fail as always.
    return_train_score : bool, default=False
        Score the training data too.
    stack : "auto" or bool, default="auto"
        Which fits are stacked: those that are faster so, as far as it was measured
        ("auto"), all that can be (True), or none (False). See Notes.
    max_stack : int, default=64
        Networks in a stack at most; more are trained in several stacks. Memory grows
        with their number.

    Attributes
    ----------
    n_stacked_ : int
        How many fits were trained in stacks, of `len(cv_results_["params"])` times
        `n_splits_`.
    cv_results_ : dict of str to ndarray
        As in scikit-learn. `mean_fit_time` holds each fit's share of its stack's time.
    best_estimator_ : estimator
        Fitted on all data, by its own `fit`. Unless `refit` is False.
    best_score_, best_params_, best_index_ : float, dict, int
        Of the best candidate.
    scorer_ : callable or dict
        What scores.
    n_splits_ : int
        Number of folds.
    refit_time_ : float
        Seconds of the last fit.
    multimetric_ : bool
        Whether there are several metrics.

    Raises
    ------
    ValueError
        For a parameter out of its range, when `fit` is called.

    Warns
    -----
    RuntimeWarning
        Once in a call of `fit`, where fits were not stacked: how many, and why.

    See Also
    --------
    skbsd.BSDClassifier : What it searches the parameters of.
    sklearn.model_selection.GridSearchCV : Fits one after the other.

    Notes
    -----
    Fits are in one stack where network, optimizer, `max_epochs` and `batch_size` are
    the same; others are in stacks of their own. Folds may differ in size. The optimizer
    is torch's SGD, Adam or AdamW, the data are arrays, and nothing looks into the
    training: there are no callbacks, `train_split`, `checkpoint`, `contrastive`,
    `averaging`, `posterior_folder`, `compile` or `verbose`. The network does the same
    whatever values it sees, in float32 or float64 and without dropout. Batch
    normalisation keeps the statistics of each network. Calibration is part of a fit,
    and its networks are stacked too.

    On a CPU, "auto" stacks networks without convolutions of up to 32,768 weights (times
    the batch size, 2^22), where there are eight fits or more: others are faster one by
    one there.

    References
    ----------
    .. [1] "Model ensembling", PyTorch's tutorial of `torch.func`,
       https://docs.pytorch.org/tutorials/intermediate/ensembling.html.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skbsd import BSDClassifier
    >>> from skbsd.model_selection import StackedGridSearchCV
    >>> X, y = load_wine(return_X_y=True)
    >>> model = make_pipeline(
    ...     StandardScaler(),
    ...     BSDClassifier(calibration=None, max_epochs=20, random_state=0),
    ... )
    >>> grid = {"bsdclassifier__prior_strength": [20, 60, 200],
    ...         "bsdclassifier__lr": [0.003, 0.01]}
    >>> search = StackedGridSearchCV(model, grid).fit(X, y)
    >>> search.n_stacked_
    30
    >>> bool(search.best_score_ > 0.95)
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012 (scikit-learn's, never changed)
        **GridSearchCV._parameter_constraints,
        "stack": [StrOptions({"auto"}), "boolean"],
        "max_stack": [Interval(Integral, 2, None, closed="left")],
    }

    # Of the call of `fit` that runs, on the copy that it is made on.
    _call: _Call | None = None

    def __init__(
        self,
        estimator,
        param_grid,
        *,
        scoring=None,
        n_jobs=None,
        refit=True,
        cv=None,
        verbose=0,
        pre_dispatch="2*n_jobs",
        error_score=np.nan,
        return_train_score=False,
        stack="auto",
        max_stack=64,
    ):
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.stack = stack
        self.max_stack = max_stack

    def fit(self, X, y=None, **params):
        """Train and score all candidates, and fit the best one again.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            A table or images.
        y : array-like of shape (n_samples,), default=None
            Labels.
        **params : dict
            Passed to the estimator's `fit`, the scorers and the splitter, as in
            scikit-learn: `sample_weight`, `groups` and other metadata.

        Returns
        -------
        self
            The fitted search.

        Raises
        ------
        ValueError
            For what scikit-learn raises it for.
        """
        self._validate_params()
        call = _Call(self.estimator, X, y)
        # On a copy, whose estimator has clones of another kind.
        search = copy.copy(self)
        search._call = call
        search.estimator = call.template
        search.cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        try:
            GridSearchCV.fit(search, X, y, **params)
        finally:
            call.end()
        own = {"_call", *self.get_params(deep=False)}
        found = {name: value for name, value in vars(search).items() if name not in own}
        self.__dict__.update(found)
        return self

    def _get_routed_params_for_fit(self, params):
        routed = super()._get_routed_params_for_fit(params)
        if self._call is not None:
            self._call.routed = routed
        return routed

    def _run_search(self, evaluate_candidates, *, callback_ctx=None):
        call = self._call
        assert call is not None

        def evaluate(candidates: Iterable[dict], **kwargs: Any) -> Any:
            candidates = list(candidates)
            groups = call.routed.splitter.split
            splits = list(self.cv.split(call.X, call.y, **groups))
            call.fits = SearchFits(
                call.estimator,
                call.X,
                call.y,
                candidates,
                splits,
                call.routed.estimator.fit,
            )
            self._train(call.fits)
            return call.evaluate(
                evaluate_candidates, candidates, cv=_Splits(splits), **kwargs
            )

        # scikit-learn 1.9 and newer have contexts of callbacks.
        context = {} if callback_ctx is None else {"callback_ctx": callback_ctx}
        super()._run_search(evaluate, **context)

    def _train(self, fits: SearchFits) -> None:
        """Train what can be stacked, and say why the rest is not."""
        if self.stack is not False:
            fits.train(max_members=self.max_stack, asked_for=self.stack is True)
        self.n_stacked_ = fits.n_trained
        obstacles = fits.obstacles() if self.stack is not False else {}
        if obstacles:
            reasons = "; ".join(f"{why} ({n})" for why, n in obstacles.items())
            warnings.warn(
                f"{sum(obstacles.values())} of {len(fits)} fits are trained one by "
                f"one, as by GridSearchCV: {reasons}.",
                RuntimeWarning,
                stacklevel=_USER,
            )

    def _format_results(self, candidate_params, n_splits, out, more_results=None):
        # The time of a fit that was taken over is its share of the stack's.
        if self._call is not None and self._call.fits is not None:
            seconds = self._call.fits.seconds()
            out = [
                {**result, "fit_time": result["fit_time"] + own}
                for result, own in zip(out, seconds, strict=True)
            ]
        return super()._format_results(candidate_params, n_splits, out, more_results)

    def __getstate__(self):
        # scikit-learn sends the search to the processes that score.
        state = dict(super().__getstate__())
        call = state.pop("_call", None)
        if call is not None:
            state["estimator"] = call.estimator
        return state
