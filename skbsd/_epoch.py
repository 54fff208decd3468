"""One pass over the batches, and the record of an epoch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._accuracy import Correct, CorrectCounter
from ._batches import Batch, Batches
from ._capture import CapturedSteps
from ._listeners import Listeners
from ._ranks import AgreedInterrupt, OneRank

# Keys that the history of an epoch contains already.
_RESERVED = {"batches", "dur", "epoch"}


@dataclass
class EpochRecord:
    """Counts of an epoch that are not in its history.

    Parameters
    ----------
    train, valid : Correct
        Number of correct predictions of each pass, if they were counted.
    """

    train: Correct = field(default_factory=Correct)
    valid: Correct = field(default_factory=Correct)


class StepValues:
    """The results of the steps of a pass, on the device until the pass ends."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._values: dict[str, list[Tensor]] = {"loss": []}

    def add(self, result: dict[str, Tensor], size: int) -> None:
        """Add the result of a step.

        Parameters
        ----------
        result : dict of str to Tensor
            The "loss", optional further values, and "y_pred", which is not stored.
        size : int
            Number of samples.
        """
        self.sizes.append(size)
        self._values["loss"].append(result["loss"])
        if len(result) > 2:
            for name, value in result.items():
                if name not in ("loss", "y_pred"):
                    self._values.setdefault(name, []).append(value)

    def extend(self, values: dict[str, Tensor]) -> None:
        """Add the values of several steps, without their sizes."""
        for name, several in values.items():
            self._values.setdefault(name, []).append(several)

    def losses(self) -> list[Tensor]:
        """Return the losses of the steps."""
        return self._values["loss"]

    def means(self) -> dict[str, Tensor]:
        """Return the means of the further values."""
        return {
            name: _flat(values).mean()
            for name, values in self._values.items()
            if name != "loss"
        }


class PassSums(NamedTuple):
    """The values of a pass, read from the device.

    Parameters
    ----------
    losses : list of float
        Mean loss of each batch.
    sizes : list of int
        Number of samples of each batch.
    correct : list of float
        The fields of :class:`Correct`; empty if nothing was counted.
    means : list of float
        Means of the further values of the steps.
    further : list of float
        Values that the caller asked for.
    """

    losses: list[float]
    sizes: list[int]
    correct: list[float]
    means: list[float]
    further: list[float]

    def together(self, ranks: OneRank, n: int) -> "PassSums":
        """Return the values over all processes.

        Parameters
        ----------
        ranks : OneRank
        n : int
            Number of batches.
        """
        rest = [0.0] * (n - len(self.losses))
        sums = [x * size for x, size in zip(self.losses, self.sizes, strict=True)]
        correct = self.correct or [0.0, 0.0]
        parts = sums + rest, self.sizes + rest, correct, self.means, self.further
        added = iter(ranks.sums([x for part in parts for x in part]))
        of_losses, sizes, correct, means, further = (
            list(islice(added, len(part))) for part in parts
        )
        return PassSums(
            [x / size for x, size in zip(of_losses, sizes, strict=True)],
            [int(size) for size in sizes],
            correct,
            [x / ranks.size for x in means],
            further,
        )


@dataclass(frozen=True)
class Pass:
    """One pass over the batches, for training or validation.

    Losses stay on the device until the pass ends, unless a callback needs them
    earlier.

    Parameters
    ----------
    batches : ResidentBatches or LoaderBatches
    step : callable
        Called with each batch; returns its loss and prediction.
    training : bool
        True for training, False for validation.
    counter : CorrectCounter or None
        Counts correct predictions.
    captured : CapturedSteps, optional
        Takes the steps of full batches.
    ranks : OneRank
        The processes among which the batches are divided.
    """

    batches: Batches
    step: Callable[[Any], dict[str, Tensor]]
    training: bool
    counter: CorrectCounter | None
    captured: CapturedSteps | None = None
    ranks: OneRank = field(default_factory=OneRank)

    @property
    def prefix(self) -> str:
        """Prefix of its keys in the history."""
        return "train" if self.training else "valid"

    def run(
        self,
        listeners: Listeners,
        history: Any,
        look: Callable[[], list[Tensor]] = list,
    ) -> tuple[Correct, list[float]]:
        """Process all batches, and record their losses.

        Parameters
        ----------
        listeners : Listeners
        history : skorch.history.History
            Its last row is the current epoch.
        look : callable, optional
            Returns further tensors to read when the pass ends.

        Returns
        -------
        correct : Correct
        further : list of float
            The values of the tensors from `look`.
        """
        records = history[-1]["batches"]
        first = len(records)
        values = StepValues()
        watched = listeners.to_batches(training=self.training)
        go = self._watched if watched else self._unwatched
        if self.captured is not None:
            go = self._replayed
        further: list[Tensor] = []
        failed = True
        try:
            go(values, listeners, history)
            further = look()
            failed = False
        except AgreedInterrupt:
            failed = False
            raise
        finally:
            # Once per epoch, as reading a value synchronises with the device. Also
            # after an interruption, so that the history is complete.
            counted = () if self.counter is None else self.counter.sums()
            means = values.means()
            losses, correct, others, further_values = read(
                values.losses(), counted, means.values(), further
            )
            sums = PassSums(losses, values.sizes, correct, others, further_values)
            if not failed and self.ranks.size > 1:
                sums = sums.together(self.ranks, self._n_batches(len(losses)))
            losses, sizes, correct, others, further_values = sums
            records.extend({} for _ in range(len(losses) - len(records) + first))
            for record, value, size in zip(
                records[first:], losses, sizes, strict=False
            ):
                record[f"{self.prefix}_loss"] = value
                record[f"{self.prefix}_batch_size"] = size
        history.record(f"{self.prefix}_batch_count", len(losses))
        for name, value in zip(means, others, strict=True):
            history.record(name, value)
        return Correct(*correct), further_values

    def _n_batches(self, n_done: int) -> int:
        """Return the number of batches that were processed by any process."""
        totals = self.batches.totals
        # With few validation samples, some processes have none. A training pass may
        # have been interrupted, but it has batches in all processes.
        return n_done if self.training or totals is None else len(totals)

    def _unwatched(self, values: StepValues, listeners, history) -> None:
        for batch in self.batches:
            self._take(batch, values)

    def _take(self, batch: Batch, values: StepValues) -> dict[str, Tensor]:
        done = self.step(batch)
        values.add(done, batch.rows.shape[0])
        if self.counter is not None:
            self.counter.add(batch, done["y_pred"])
        return done

    def _replayed(self, values: StepValues, listeners, history) -> None:
        captured = self.captured
        assert captured is not None
        try:
            values.sizes.extend(captured.run())
        finally:
            n = len(values.sizes)
            values.extend(captured.values(n))
            if self.counter is not None:
                captured.count(self.counter, n)
        for batch in captured.rest():
            self._take(batch, values)

    def _watched(self, values: StepValues, listeners, history) -> None:
        for batch in self.batches:
            pair = listeners.begin_batch(batch, training=self.training)
            done = self._take(batch, values)
            done["y_pred"] = done["y_pred"].detach()
            if listeners.to_losses:
                history.record_batch(f"{self.prefix}_loss", done["loss"].item())
            history.record_batch(f"{self.prefix}_batch_size", values.sizes[-1])
            listeners.end_batch(pair, done, training=self.training)


def check_step(result: Any, objective: str) -> None:
    """Raise an error if a step's result does not conform to :meth:`Objective.step`.

    Parameters
    ----------
    result : object
    objective : str
        Name of the objective, for the message.
    """
    if not (isinstance(result, dict) and {"loss", "y_pred"} <= result.keys()):
        raise TypeError(
            f"{objective}.step returned {type(result).__name__}; expected a dict with "
            "the entries 'loss' and 'y_pred'."
        )
    for name, value in result.items():
        if name in _RESERVED or name.startswith(("train_", "valid_", "event_")):
            raise ValueError(
                f"{objective}.step returned an entry {name!r}, which is a key of the "
                "history already; choose another name."
            )
        is_number = isinstance(value, Tensor) and value.ndim == 0
        if name != "y_pred" and not (is_number and value.is_floating_point()):
            raise TypeError(
                f"{objective}.step returned {value!r} as {name!r}; expected a floating "
                "Tensor of shape ()."
            )


def read(*groups: Iterable[Tensor]) -> list[list[float]]:
    """Return the values of groups of tensors, with one synchronisation of a GPU.

    Parameters
    ----------
    *groups : iterable of Tensor
        All on the same device.
    """
    flat = [_flat(group) for group in groups]
    if not any(group.is_cuda and len(group) for group in flat):
        return [group.tolist() for group in flat]
    values = iter(torch.cat([group.double() for group in flat if len(group)]).tolist())
    return [list(islice(values, len(group))) for group in flat]


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(flat) if flat else torch.empty(0)
