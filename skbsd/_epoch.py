"""One pass over the batches, and what an epoch has come to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._accuracy import Correct, CorrectCounter
from ._batches import Batches
from ._listeners import Listeners


@dataclass
class EpochRecord:
    """What an epoch has come to, beside its history.

    Parameters
    ----------
    train, valid : Correct
        How many predictions of each pass were correct, where they were counted.
    """

    train: Correct = field(default_factory=Correct)
    valid: Correct = field(default_factory=Correct)


@dataclass(frozen=True)
class Pass:
    """One pass over the batches, for training or validation.

    Losses stay on the device until the pass ends, unless a callback asks for them
    before.

    Parameters
    ----------
    batches : ResidentBatches or LoaderBatches
    step : callable
        Called with each batch; returns its loss and prediction.
    training : bool
        Of training, else of validation.
    counter : CorrectCounter or None
        What counts correct predictions.
    """

    batches: Batches
    step: Callable[[Any], dict[str, Tensor]]
    training: bool
    counter: CorrectCounter | None

    @property
    def prefix(self) -> str:
        """What its figures in the history begin with."""
        return "train" if self.training else "valid"

    def run(self, listeners: Listeners, history: Any) -> Correct:
        """Go through the batches, and record their losses.

        Parameters
        ----------
        listeners : Listeners
        history : skorch.history.History
            Whose last row is the epoch's.
        """
        records = history[-1]["batches"]
        first = len(records)
        losses: list[Tensor] = []
        sizes: list[int] = []
        watched = listeners.to_batches(training=self.training)
        go = self._watched if watched else self._unwatched
        try:
            go(losses, sizes, listeners, history)
        finally:
            # Once per epoch: to read a number means to wait for the device. Also when
            # interrupted, so that the history tells what was done.
            values = torch.stack(losses).tolist() if losses else []
            if not watched:
                records.extend({} for _ in losses)
            for record, value, size in zip(
                records[first:], values, sizes, strict=False
            ):
                record[f"{self.prefix}_loss"] = value
                record[f"{self.prefix}_batch_size"] = size
        correct = Correct() if self.counter is None else self.counter.result()
        history.record(f"{self.prefix}_batch_count", len(losses))
        return correct

    def _unwatched(self, losses, sizes, listeners, history) -> None:
        step, counter = self.step, self.counter
        for batch in self.batches:
            done = step(batch)
            losses.append(done["loss"])
            sizes.append(batch.rows.shape[0])
            if counter is not None:
                counter.add(batch, done["y_pred"])

    def _watched(self, losses, sizes, listeners, history) -> None:
        for batch in self.batches:
            pair = listeners.begin_batch(batch, training=self.training)
            done = self.step(batch)
            losses.append(done["loss"])
            sizes.append(batch.rows.shape[0])
            if self.counter is not None:
                self.counter.add(batch, done["y_pred"])
            done["y_pred"] = done["y_pred"].detach()
            if listeners.to_losses:
                history.record_batch(f"{self.prefix}_loss", done["loss"].item())
            history.record_batch(f"{self.prefix}_batch_size", sizes[-1])
            listeners.end_batch(pair, done, training=self.training)
