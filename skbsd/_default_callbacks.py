"""skorch's default callbacks without what they cost in every batch or silent epoch."""

import inspect
from typing import Any

import numpy as np
from skorch.callbacks import EpochScoring, EpochTimer, PassthroughScoring, PrintLog
from skorch.utils import to_numpy

# The sink that is not set: Ray puts another function in the place of `print`.
_PRINT = inspect.signature(PrintLog).parameters["sink"].default


def is_default(callback: Any) -> bool:
    """Whether a callback is one that every estimator has."""
    kinds = EpochTimer, EpochLoss, ValidationAccuracy, EpochLog
    return type(callback) in kinds


class EpochLoss(PassthroughScoring):
    """Average of the batches' losses, without skorch's search through the history."""

    def on_epoch_end(self, net, **kwargs):
        """Record the average, and whether it is the best so far."""
        prefix = "train" if self.on_train else "valid"
        epoch = net.history[-1]
        if f"{prefix}_batch_count" not in epoch:
            return
        batches = [batch for batch in epoch["batches"] if self.name in batch]
        sizes = [batch[f"{prefix}_batch_size"] for batch in batches]
        average = np.dot([batch[self.name] for batch in batches], sizes) / sum(sizes)
        best = self._is_best_score(average)
        if best:
            self.best_score_ = average
        epoch |= {self.name: average, f"{self.name}_best": bool(best)}


class ValidationAccuracy(EpochScoring):
    """Accuracy on the validation set, which the run counts on the device.

    skorch's keeps every prediction of the epoch for scikit-learn to score. With
    another `scoring` or extraction of the targets, this does the same.
    """

    @property
    def counted(self) -> bool:
        """Whether the run's count is all it needs."""
        return (
            self.scoring == "accuracy"
            and not self.on_train
            and self.target_extractor is to_numpy
        )

    def on_batch_end(self, net, batch, y_pred, training, **kwargs):
        """Keep a batch's predictions, unless counting is enough."""
        if not self.counted:
            super().on_batch_end(net, batch, y_pred, training, **kwargs)

    def on_epoch_end(self, net, dataset_train, dataset_valid, **kwargs):
        """Record the accuracy."""
        if not self.counted:
            super().on_epoch_end(net, dataset_train, dataset_valid, **kwargs)
        elif dataset_valid is not None:
            correct, total = net._run.record.valid
            self._record_score(net.history, correct / total)


class EpochLog(PrintLog):
    """A line per epoch, which is not laid out where nobody will see it.

    And one before and after, of what is not an epoch's: where the data are, and the
    time of compilation.
    """

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Print where the data are."""
        resident = net.data_loading_ == "resident"
        way = f"on {net.device_}" if resident else f"loaded to {net.device_} by batch"
        self._sink(f"Training data: {way}", net.verbose)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Print how long compilation took."""
        if net.compile:
            self._sink(f"Compilation: {net.compile_time_:.1f} s", net.verbose)

    def on_epoch_end(self, net, **kwargs):
        """Print the line."""
        if net.verbose or self.sink is not _PRINT:
            super().on_epoch_end(net, **kwargs)

    def _sink(self, text, verbose):
        # skorch's would take its own default for a sink of the user's under Ray.
        if verbose or self.sink is not _PRINT:
            self.sink(text)
