"""The fits of a search, which are trained in stacks before scikit-learn runs them."""

import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params
from skorch.utils import is_dataset

from . import _advice
from ._fitting import Fitting, Trainings
from ._stack import Attempt, train_stacked
from ._stackable import obstacle_of
from ._workers import one_thread_after_fork, threads, threads_given
from .classifier import BSDClassifier


class SearchFit:
    """The fit of a candidate on a fold.

    Parameters
    ----------
    estimator : estimator
        Estimator with the candidate's parameters. It can be stacked only if it is a
        :class:`BSDClassifier` or a Pipeline that ends in one.
    X, y : array-like
        The fold's training data.
    names : iterable of str
        Names of the parameters that the candidate sets.

    Attributes
    ----------
    obstacle : str or None
        The reason why it cannot be stacked.
    is_trained : bool
        Whether it was trained in a stack.
    has_failed : bool
        Whether an error was raised.
    seconds : float
        Training time.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, names: Iterable[str]):
        self.estimator = estimator
        self.X, self.y = X, y
        self.obstacle: str | None = None
        self.is_trained = self.has_failed = False
        self.seconds = 0.0
        self._names = tuple(names)
        self._warned: list[tuple[Any, type[Warning], str, int]] = []
        self._trainings: Trainings | None = None
        self._has_begun = False  # whether the first training was accepted
        self._net = final_classifier(estimator)
        self.fitting: Fitting | None = None

    def begin(self, fit_params: Mapping[str, Any]) -> None:
        """Fit the steps before the classifier, and prepare its first training.

        Parameters
        ----------
        fit_params : mapping
            Fit parameters of this fold.
        """
        net = self._net
        if net is None:
            name = type(self.estimator).__name__
            self.obstacle = (
                f"{name} is neither a BSDClassifier nor a Pipeline that ends in one"
            )
            return
        if is_dataset(self.X):
            self.obstacle = "X is a Dataset"
            return
        self.obstacle = obstacle_of(net)
        if self.obstacle is not None:
            return
        with self._going_on():
            if net is self.estimator:
                self._trainings = _trainings(net, self.X, self.y, **fit_params)
            else:
                self._fit_pipeline(net, fit_params)
            assert self._trainings is not None
            self.fitting = next(self._trainings)

    def _fit_pipeline(self, net: BSDClassifier, fit_params: Mapping[str, Any]) -> None:
        """Fit a pipeline whose last step only prepares its trainings."""

        def take_note(X: Any, y: Any = None, **params: Any) -> BSDClassifier:
            self._trainings = _trainings(net, X, y, **params)
            return net

        net.__dict__["fit"] = take_note
        try:
            self.estimator.fit(self.X, self.y, **fit_params)
        finally:
            del net.__dict__["fit"]

    def go_on(self, attempt: Attempt) -> None:
        """Proceed to the next training, or finish the fit.

        Parameters
        ----------
        attempt : Attempt
            Outcome of the previous training.
        """
        assert self._trainings is not None
        began = time.perf_counter()
        if attempt.obstacle is not None and not self._has_begun:
            self.obstacle, self.fitting = attempt.obstacle, None
            self._trainings.close()
            return
        self._has_begun = True
        with self._going_on():
            try:
                if attempt.obstacle is not None:
                    # For example, only few fits need a further calibration network.
                    self._train_alone(attempt.fitting)
                if attempt.error is None:
                    self.fitting = self._trainings.send(None)
                else:
                    self.fitting = self._trainings.throw(attempt.error)
            except StopIteration as end:
                outcome, _ = end.value
                _advice.of_result(self._net, outcome, stacklevel=2)
                self.is_trained = True
                self._trainings = self.fitting = None
        self.seconds += attempt.seconds + time.perf_counter() - began

    @staticmethod
    def _train_alone(fitting: Fitting) -> None:
        """Train without a stack; an interrupt ends the search."""
        if fitting.train() is not None:
            raise KeyboardInterrupt

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Record warnings for later, and suppress errors.

        scikit-learn repeats a fit that fails here, so that its error and warnings occur
        where scikit-learn handles them.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except Exception:
                self.has_failed = True
                self.fitting = self._trainings = None
        self._warned += [(w.message, w.category, w.filename, w.lineno) for w in caught]

    def hand_over(self, other: Any) -> None:
        """Copy the fitted state to another estimator, and issue the warnings."""
        vars(other).update(vars(self.estimator))
        for message, category, filename, line in self._warned:
            warnings.warn_explicit(message, category, filename, line)

    def is_of(self, other: Any, X: Any, y: Any) -> bool:
        """Whether another estimator has the same parameters and training data."""
        own, others = self.estimator.get_params(), other.get_params()
        return (
            all(_told(own[name]) == _told(others[name]) for name in self._names)
            and _are_same(X, self.X)
            and _are_same(y, self.y)
        )


def final_classifier(estimator: Any) -> BSDClassifier | None:
    """Return a classifier, or the classifier that ends a Pipeline; None for others.

    Parameters
    ----------
    estimator : estimator
    """
    while type(estimator) is Pipeline and estimator.steps:
        estimator = estimator.steps[-1][1]
    return estimator if isinstance(estimator, BSDClassifier) else None


def _trainings(
    net: BSDClassifier, X: Any, y: Any = None, sample_weight: Any = None, **split: Any
) -> Trainings:
    """Run the checks and advice of `fit`, and return its trainings."""
    data = net._check_training_data(X, y, sample_weight, None, keep=False)
    _advice.of_settings(net, data.X, stacklevel=2)
    return net._trainings(data, "fit", split, keep=False)


class SearchFits:
    """All fits of a search.

    Parameters
    ----------
    estimator : estimator
    X, y : array-like
    candidates : sequence of dict
        Parameters of each candidate.
    splits : sequence of (ndarray, ndarray)
        Training and test rows of each fold.
    fit_params : dict
    """

    def __init__(
        self,
        estimator: Any,
        X: Any,
        y: Any,
        candidates: Sequence[Mapping[str, Any]],
        splits: Sequence[tuple[Any, Any]],
        fit_params: Mapping[str, Any],
    ):
        parts = [_safe_split(estimator, X, y, train) for train, _ in splits]
        of_parts = [
            _check_method_params(X, params=fit_params, indices=train)
            for train, _ in splits
        ]
        self._fits = []
        self._params = []
        for candidate in candidates:
            for (X_train, y_train), params in zip(parts, of_parts, strict=True):
                own = clone(estimator).set_params(**clone(candidate, safe=False))
                self._fits.append(SearchFit(own, X_train, y_train, candidate))
                self._params.append(params)
        self._n_handed_out = 0
        self._estimator = estimator

    def train(self, *, max_members: int, asked_for: bool) -> None:
        """Train in stacks those fits that can be stacked.

        Parameters
        ----------
        max_members : int
            Largest number of members in a stack.
        asked_for : bool
            Whether to stack even if that is not expected to be faster.
        """
        with one_thread_after_fork(), threads(threads_given()):
            self._train(max_members, asked_for)

    def _train(self, max_members: int, asked_for: bool) -> None:
        for fit, params in zip(self._fits, self._params, strict=True):
            fit.begin(params)
        while waiting := [fit for fit in self._fits if fit.fitting is not None]:
            attempts = [Attempt(fit.fitting) for fit in waiting if fit.fitting]
            train_stacked(attempts, max_members=max_members, asked_for=asked_for)
            for fit, attempt in zip(waiting, attempts, strict=True):
                fit.go_on(attempt)

    def __len__(self) -> int:
        return len(self._fits)

    @property
    def n_trained(self) -> int:
        """Number of fits that were trained in stacks."""
        return sum(fit.is_trained for fit in self._fits)

    def obstacles(self) -> Counter[str]:
        """Return the reasons why fits were not stacked, with the number of fits."""
        fits = [fit for fit in self._fits if not (fit.is_trained or fit.has_failed)]
        return Counter(str(fit.obstacle) for fit in fits)

    def seconds(self) -> list[float]:
        """Return each fit's training time in a stack; 0 if it was not stacked."""
        return [fit.seconds if fit.is_trained else 0.0 for fit in self._fits]

    def next_clone(self) -> Any:
        """Return a clone of the estimator whose `fit` adopts the next stacked fit.

        scikit-learn clones the estimator once per fit: first for all folds of the first
        candidate, then for those of the second, and so on.
        """
        own = clone(self._estimator)
        if self._n_handed_out < len(self._fits):
            fit = self._fits[self._n_handed_out]
            if fit.is_trained:
                vars(own)["fit"] = partial(_take_over, own, fit)
            self._n_handed_out += 1
        return own


def _take_over(estimator: Any, fit: SearchFit, X: Any, y: Any = None, **params: Any):
    """Replace the `fit` of an estimator that was already trained in a stack."""
    del vars(estimator)["fit"]
    if not fit.is_of(estimator, X, y):
        # This version of scikit-learn evaluates candidates in another order.
        return estimator.fit(X, y, **params)
    fit.hand_over(estimator)
    return estimator


def _told(value: Any) -> str:
    """Return a text that identifies a parameter's value, without memory addresses."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _are_same(one: Any, other: Any) -> bool:
    """Whether two parts of the data contain the same values."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if hasattr(one, "equals"):  # a DataFrame or Series
        return bool(one.equals(other))
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))
