"""The fits of a search: begun as scikit-learn would, trained together, handed over."""

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
    """A fit of a candidate on a fold.

    Parameters
    ----------
    estimator : estimator
        With the candidate's parameters. It is a :class:`BSDClassifier`, or a Pipeline
        that ends in one, where it can be stacked.
    X, y : array-like
        The fold's training data.
    names : iterable of str
        What the candidate sets.

    Attributes
    ----------
    obstacle : str or None
        Why it cannot be stacked.
    is_trained : bool
    has_failed : bool
        Whether an error was raised.
    seconds : float
        That its training has taken.
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
        self._has_begun = False  # beyond the first training
        self._net = final_classifier(estimator)
        self.fitting: Fitting | None = None

    def begin(self, fit_params: Mapping[str, Any]) -> None:
        """Fit what comes before the classifier, and go on to its first training.

        Parameters
        ----------
        fit_params : mapping
            Of this fold.
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
        """Fit a pipeline whose last step only takes note of what it is given."""

        def take_note(X: Any, y: Any = None, **params: Any) -> BSDClassifier:
            self._trainings = _trainings(net, X, y, **params)
            return net

        net.__dict__["fit"] = take_note
        try:
            self.estimator.fit(self.X, self.y, **fit_params)
        finally:
            del net.__dict__["fit"]

    def go_on(self, attempt: Attempt) -> None:
        """Go on to the next training, or to the end.

        Parameters
        ----------
        attempt : Attempt
            What came of the last one.
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
                    # As of few fits whose calibration takes a further network.
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
        """Train as in any other fit; an interrupt ends a search."""
        if fitting.train() is not None:
            raise KeyboardInterrupt

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Keep warnings for later, and give way to errors.

        What fails here is fitted once more, as any other fit, which warns and fails
        where scikit-learn looks.
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
        """Make another estimator what was trained here, and warn as its fit would."""
        vars(other).update(vars(self.estimator))
        for message, category, filename, line in self._warned:
            warnings.warn_explicit(message, category, filename, line)

    def is_of(self, other: Any, X: Any, y: Any) -> bool:
        """Whether another estimator has the same parameters, and gets the same data."""
        own, others = self.estimator.get_params(), other.get_params()
        return (
            all(_told(own[name]) == _told(others[name]) for name in self._names)
            and _are_same(X, self.X)
            and _are_same(y, self.y)
        )


def final_classifier(estimator: Any) -> BSDClassifier | None:
    """Return the classifier itself, or the last step of a Pipeline; None for others.

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
    """Do what `fit` does before it trains, and return its trainings."""
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
        Parameters.
    splits : sequence of (ndarray, ndarray)
        Training and test rows.
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
        """Train together what can be.

        Parameters
        ----------
        max_members : int
        asked_for : bool
            Also where it is not faster.
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
        """How many were trained in stacks."""
        return sum(fit.is_trained for fit in self._fits)

    def obstacles(self) -> Counter[str]:
        """Return why others were not, and how many for that reason."""
        fits = [fit for fit in self._fits if not (fit.is_trained or fit.has_failed)]
        return Counter(str(fit.obstacle) for fit in fits)

    def seconds(self) -> list[float]:
        """Return the time of each fit's training in a stack."""
        return [fit.seconds if fit.is_trained else 0.0 for fit in self._fits]

    def next_clone(self) -> Any:
        """Return a clone of the estimator, whose `fit` takes over the next fit.

        scikit-learn clones the estimator for one fit after the other: all folds of the
        first candidate, those of the second, and so on.
        """
        own = clone(self._estimator)
        if self._n_handed_out < len(self._fits):
            fit = self._fits[self._n_handed_out]
            if fit.is_trained:
                vars(own)["fit"] = partial(_take_over, own, fit)
            self._n_handed_out += 1
        return own


def _take_over(estimator: Any, fit: SearchFit, X: Any, y: Any = None, **params: Any):
    """Stand in for the `fit` of an estimator whose training has taken place."""
    del vars(estimator)["fit"]
    if not fit.is_of(estimator, X, y):
        # Of a scikit-learn that evaluates candidates in another order.
        return estimator.fit(X, y, **params)
    fit.hand_over(estimator)
    return estimator


def _told(value: Any) -> str:
    """Return what tells a parameter from others: its text, without an address."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _are_same(one: Any, other: Any) -> bool:
    """Whether two parts of the data hold the same values."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if hasattr(one, "equals"):  # a DataFrame or Series
        return bool(one.equals(other))
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))
