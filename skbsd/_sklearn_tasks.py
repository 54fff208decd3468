"""A fit and its epochs as tasks of scikit-learn's callbacks, of its version 1.9."""

import inspect
from typing import Any

from ._loading import TrainingData

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before 1.9, where no estimator has `set_callbacks`

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for the mixin."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


__all__ = [
    "CONTEXTS",
    "CallbackSupportMixin",
    "FitTasks",
    "in_parallel",
    "with_callbacks",
]

# Where scikit-learn keeps on an estimator what is known while it is fitted.
CONTEXTS = (
    "_callback_fit_ctx",
    "_parent_callback_ctx",
    "_skl_callbacks_to_teardown",
)


def in_parallel() -> bool:
    """Whether this is one of several fits that joblib runs, such as a search's."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "joblib.parallel":
            return True
        frame = frame.f_back
    return False


class FitTasks:
    """What scikit-learn's callbacks hear of a call of `fit`, where there are any.

    Parameters
    ----------
    estimator : BSDClassifier
    data : TrainingData
    silent : bool, default=False
        Tell them nothing: another process does.
    """

    def __init__(self, estimator: Any, data: TrainingData, *, silent: bool = False):
        self._estimator = estimator
        self._fit: Any = None
        self._epoch: Any = None
        if silent or not (
            hasattr(estimator, "_skl_callbacks")
            or hasattr(estimator, "_parent_callback_ctx")
        ):
            return
        weight = data.sample_weight
        self._about = {
            "estimator": estimator,
            "X": data.given,
            "y": lambda: data.classes[data.codes],
            "metadata": None if weight is None else {"sample_weight": weight},
        }
        self._fit = estimator._init_callback_context(max_subtasks=estimator.max_epochs)
        self._fit.call_on_fit_task_begin(**self._about)

    def begin_epoch(self) -> None:
        """Say that an epoch begins."""
        if self._fit is not None:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._about)

    def end_epoch(self) -> bool:
        """Say that an epoch has ended; return whether a callback wants to stop."""
        return self._end(self._epoch)

    def end(self) -> None:
        """Say that the call has ended."""
        self._end(self._fit)

    def _end(self, task: Any) -> bool:
        if task is None:
            return False
        epochs = self._estimator.history
        return task.call_on_fit_task_end(
            # A copy of the estimator, made where a callback asks for it.
            reconstruction_attributes=lambda: {"n_iter_": count_epochs(epochs)},
            **self._about,
        )


def count_epochs(history: Any) -> int:
    """Return how many epochs of a history were finished."""
    return sum("train_batch_count" in epoch for epoch in history)
