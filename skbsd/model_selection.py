"""A grid search whose networks are trained together.

:class:`StackedGridSearchCV` is scikit-learn's `GridSearchCV` for many small networks.
The networks of all candidates and folds are stacked along a leading dimension and
trained with the same operations.
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

# Stack level of the caller of `fit`, relative to where fits are trained.
_USER = 8


class _Splits:
    """A splitter with precomputed splits."""

    def __init__(self, splits: list[tuple[Any, Any]]):
        self._splits = splits

    def split(self, *args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        """Return the splits."""
        return self._splits


class _Call:
    """The state of one call of a search's `fit`, which also makes its clones.

    scikit-learn clones the estimator of a search for each of its fits. During the call,
    :class:`SearchFits` supplies these clones. Their `fit` adopts a network that is
    already trained.
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
        """Let scikit-learn evaluate candidates with clones that are trained."""
        self._evaluates = True
        try:
            return evaluate_candidates(candidates, **kwargs)
        finally:
            self._evaluates = False

    def end(self) -> None:
        """Remove the hook from an estimator that scikit-learn may have kept."""
        vars(self.template).pop("__sklearn_clone__", None)


class StackedGridSearchCV(GridSearchCV):
    """Grid search that trains the networks of many fits at once.

    A small network does not occupy a GPU, and on a CPU the overhead of its operations
    exceeds their run time. This search therefore trains the networks of all candidates
    and folds together, as one network with a leading dimension [1]_. Each network has
    its own weights, samples, beliefs, learning rate, `prior_strength`, `discount`,
    `weight_decay` and `random_state`. Scores, ranks, errors and the refitted estimator
    are those of :class:`sklearn.model_selection.GridSearchCV`, up to rounding.

    Parameters
    ----------
    estimator : BSDClassifier or Pipeline
        A :class:`skbsd.BSDClassifier`, or a Pipeline that ends in one. The other steps
        of a Pipeline are fitted per fold, as usual. Other estimators are fitted one by
        one.
    param_grid : dict or list of dict
        Maps names of parameters to the values to try.
    scoring : str, callable, list, tuple or dict, default=None
        One metric or several, as in scikit-learn.
    n_jobs : int, default=None
        Number of processes for scoring, and for fits that are not stacked. Stacks are
        trained in the current process.
    refit : bool, str or callable, default=True
        Fit the best candidate on all data. A name chooses among several metrics. A
        callable receives `cv_results_` and returns the index of the best candidate.
    cv : int, splitter or iterable, default=None
        As in scikit-learn. The splits are computed once.
    verbose : int, default=0
        As in scikit-learn. Its times cover adopting a trained network and scoring.
    pre_dispatch : int or str, default="2*n_jobs"
        As in scikit-learn.
    error_score : "raise" or float, default=nan
        Score of a fit that fails. A network whose loss becomes NaN is trained again
        individually, so that it fails with the usual error.
    return_train_score : bool, default=False
        Score the training data too.
    stack : "auto" or bool, default="auto"
        Which fits are stacked: those that measurements showed to be faster ("auto"),
        all that can be stacked (True), or none (False). See Notes.
    max_stack : int, default=64
        Maximum number of networks in a stack; further networks form further stacks.
        Memory grows with this number.

    Attributes
    ----------
    n_stacked_ : int
        Number of fits that were trained in stacks, out of
        `len(cv_results_["params"]) * n_splits_`.
    cv_results_ : dict of str to ndarray
        As in scikit-learn. `mean_fit_time` holds each fit's share of its stack's time.
    best_estimator_ : estimator
        Fitted on all data by its own `fit`. Not set if `refit` is False.
    best_score_, best_params_, best_index_ : float, dict, int
        Score, parameters and index of the best candidate.
    scorer_ : callable or dict
        The scorer or scorers.
    n_splits_ : int
        Number of folds.
    refit_time_ : float
        Duration of the fit on all data, in seconds.
    multimetric_ : bool
        Whether there are several metrics.

    Raises
    ------
    ValueError
        For a parameter out of its range, when `fit` is called.

    Warns
    -----
    RuntimeWarning
        Once per call of `fit`, if fits were not stacked, with their number and the
        reason.

    See Also
    --------
    skbsd.BSDClassifier : The estimator of the search.
    sklearn.model_selection.GridSearchCV : Runs one fit after the other.

    Notes
    -----
    Fits share a stack if network, optimizer, `max_epochs` and `batch_size` are equal;
    other fits form further stacks. Folds may differ in size. Stacking has these
    requirements: the optimizer is torch's SGD, Adam or AdamW; the data are arrays;
    there are no callbacks, `train_split`, `checkpoint`, `contrastive`, `averaging`,
    `posterior_folder`, `compile` or `verbose`; and the network has no control flow that
    depends on values, no dropout, and float32 or float64 parameters. Batch
    normalisation has separate statistics for each network. The fold networks of the
    calibration are stacked too.

    On a CPU, "auto" stacks at least eight fits of networks without convolutions, if a
    network has up to 32,768 weights and weights times batch size are at most 2^22.
    Other networks are faster one by one there.

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

    # The running call of `fit`; it is set only on the copy that runs it.
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
        """Train and score all candidates, and refit the best one.

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
            As in scikit-learn.
        """
        self._validate_params()
        call = _Call(self.estimator, X, y)
        # Run on a copy, whose estimator is cloned differently.
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
        """Train the fits that can be stacked, and warn about the others."""
        if self.stack is not False:
            fits.train(max_members=self.max_stack, asked_for=self.stack is True)
        self.n_stacked_ = fits.n_trained
        obstacles = fits.obstacles() if self.stack is not False else {}
        if obstacles:
            reasons = "; ".join(f"{why} ({n})" for why, n in obstacles.items())
            warnings.warn(
                f"{sum(obstacles.values())} of {len(fits)} fits are trained one by "
                f"one, as in GridSearchCV: {reasons}.",
                RuntimeWarning,
                stacklevel=_USER,
            )

    def _format_results(self, candidate_params, n_splits, out, more_results=None):
        # A fit from a stack has a share of the stack's training time.
        if self._call is not None and self._call.fits is not None:
            seconds = self._call.fits.seconds()
            out = [
                {**result, "fit_time": result["fit_time"] + own}
                for result, own in zip(out, seconds, strict=True)
            ]
        return super()._format_results(candidate_params, n_splits, out, more_results)

    def __getstate__(self):
        # scikit-learn sends the search to the scoring processes.
        state = dict(super().__getstate__())
        call = state.pop("_call", None)
        if call is not None:
            state["estimator"] = call.estimator
        return state
