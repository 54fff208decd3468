"""skorch's default callbacks without their overhead per batch and per silent epoch."""

import inspect
from typing import Any

import numpy as np
from skorch.callbacks import EpochScoring, EpochTimer, PassthroughScoring, PrintLog
from skorch.utils import to_numpy

# The default sink of skorch's callback. It is not `print` itself, as Ray replaces that.
_PRINT = inspect.signature(PrintLog).parameters["sink"].default


def is_default(callback: Any) -> bool:
    """Whether a callback is one of those that every estimator has."""
    kinds = EpochTimer, EpochLoss, ValidationAccuracy, EpochLog
    return type(callback) in kinds


class EpochLoss(PassthroughScoring):
    """Mean of the batches' losses, without skorch's search through the history."""

    def on_epoch_end(self, net, **kwargs):
        """Record the mean, and whether it is the best so far."""
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

    skorch's version stores all predictions of the epoch to score them with
    scikit-learn. With another `scoring` or `target_extractor`, this class does so too.
    """

    @property
    def counted(self) -> bool:
        """Whether the counts of the run suffice to compute the score."""
        return (
            self.scoring == "accuracy"
            and not self.on_train
            and self.target_extractor is to_numpy
        )

    def on_batch_end(self, net, batch, y_pred, training, **kwargs):
        """Store a batch's predictions, unless the counts suffice."""
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
    """Prints a line per epoch, which is formatted only if it is shown.

    It also prints the location of the data before training, and the compilation time
    after it.
    """

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Print the location of the data."""
        resident = net.data_loading_ == "resident"
        way = f"on {net.device_}" if resident else f"loaded to {net.device_} by batch"
        self._sink(f"Training data: {way}", net.verbose)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Print the compilation time."""
        if net.compile:
            self._sink(f"Compilation: {net.compile_time_:.1f} s", net.verbose)

    def on_epoch_end(self, net, **kwargs):
        """Print the line of the epoch."""
        if net.verbose or self.sink is not _PRINT:
            super().on_epoch_end(net, **kwargs)

    def _sink(self, text, verbose):
        # Under Ray, skorch's version would mistake the default for a custom sink.
        if verbose or self.sink is not _PRINT:
            self.sink(text)
