"""Reports a fit and its epochs to the callbacks of scikit-learn 1.9."""

import inspect
from typing import Any

from ._loading import TrainingData

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before 1.9, where no estimator has `set_callbacks`

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Replacement for the mixin."""

    def with_callbacks(method):
        """Return the method unchanged."""
        return method


__all__ = [
    "CONTEXTS",
    "CallbackSupportMixin",
    "FitTasks",
    "in_parallel",
    "with_callbacks",
]

# Attributes in which scikit-learn stores the callback contexts during a fit.
CONTEXTS = (
    "_callback_fit_ctx",
    "_parent_callback_ctx",
    "_skl_callbacks_to_teardown",
)


def in_parallel() -> bool:
    """Whether joblib runs this fit as one of several, such as in a search."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "joblib.parallel":
            return True
        frame = frame.f_back
    return False


class FitTasks:
    """Notifies scikit-learn's callbacks, if any, of the progress of a call of `fit`.

    Parameters
    ----------
    estimator : BSDClassifier
    data : TrainingData
    silent : bool, default=False
        Whether to skip all notifications, because another process sends them.
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
        """Notify of the beginning of an epoch."""
        if self._fit is not None:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._about)

    def end_epoch(self) -> bool:
        """Notify of the end of an epoch; return whether a callback requests a stop."""
        return self._end(self._epoch)

    def end(self) -> None:
        """Notify of the end of the call."""
        self._end(self._fit)

    def _end(self, task: Any) -> bool:
        if task is None:
            return False
        epochs = self._estimator.history
        return task.call_on_fit_task_end(
            # For a copy of the estimator, which is created if a callback requests it.
            reconstruction_attributes=lambda: {"n_iter_": count_epochs(epochs)},
            **self._about,
        )


def count_epochs(history: Any) -> int:
    """Return the number of finished epochs in a history."""
    return sum("train_batch_count" in epoch for epoch in history)
