"""The epochs of a fit as tasks of scikit-learn's callbacks, of its version 1.9."""

import inspect
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before 1.9, where no estimator has `set_callbacks`

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for the mixin."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


__all__ = ["FitTasks", "in_parallel", "with_callbacks"]


def in_parallel() -> bool:
    """Whether this is one of several fits that joblib runs, such as a search's."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "joblib.parallel":
            return True
        frame = frame.f_back
    return False


class FitTasks(CallbackSupportMixin):
    """What scikit-learn's callbacks hear of, for :class:`skbsd.BSDClassifier`."""

    max_epochs: int
    history: Any
    _fit_task: Any = None  # while training
    _task_data: dict

    def _begin_fit_task(self, data) -> None:
        """Say that training begins, to callbacks where there are any."""
        if not (
            hasattr(self, "_skl_callbacks") or hasattr(self, "_parent_callback_ctx")
        ):
            return
        weight = data.sample_weight
        self._task_data = {
            "estimator": self,
            "X": data.given,
            "y": lambda: data.classes[data.codes],
            "metadata": None if weight is None else {"sample_weight": weight},
        }
        self._fit_task = self._init_callback_context(max_subtasks=self.max_epochs)
        try:
            self._fit_task.call_on_fit_task_begin(**self._task_data)
        except BaseException:
            self._forget_fit_task()
            raise

    def _forget_fit_task(self) -> None:
        """Leave nothing of the tasks, nor of the data."""
        for name in ("_fit_task", "_task_data"):
            self.__dict__.pop(name, None)

    def _begin_epoch_task(self) -> Any:
        """Say that an epoch begins, and return what ends it."""
        if self._fit_task is None:
            return None
        task = self._fit_task.subcontext(task_name="epoch")
        return task.call_on_fit_task_begin(**self._task_data)

    def _end_task(self, task: Any) -> bool:
        """Say that a task has ended; return whether a callback wants to stop."""
        if task is None:
            return False
        return task.call_on_fit_task_end(
            # A copy of the estimator, made where a callback asks for it.
            reconstruction_attributes=lambda: {"n_iter_": self._count_epochs()},
            **self._task_data,
        )

    def _count_epochs(self) -> int:
        """Return how many epochs have been trained."""
        return sum("train_batch_count" in epoch for epoch in self.history)
