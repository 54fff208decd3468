"""Count correct predictions without synchronising per batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from ._batches import Batch


class Correct(NamedTuple):
    """How many predictions were correct.

    Parameters
    ----------
    correct, total : float
        Numbers of samples, or sums of their weights.
    """

    correct: float = 0.0
    total: float = 0.0


class CorrectCounter:
    """Counts samples whose label is predicted, by weight where they have one.

    Batches are collected until there are many values: next to a small network's step,
    a few calls for each batch cost more than what they compute.

    Parameters
    ----------
    buffer : int, default=2**18
        Number of logits that are collected. With 0, batches are counted as they come,
        for networks that write their next output in the same place.
    """

    def __init__(self, buffer: int = 2**18):
        self._limit = buffer
        self._collected: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._n_values = 0
        self._correct: list[Tensor] = []  # on the device
        self._total: list[int | Tensor] = []

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        batch : Batch
        logits : Tensor of shape (n, n_classes)
        """
        self._collected.append((logits.detach(), batch.y, batch.weight))
        self._n_values += logits.shape[0] * logits.shape[1]
        if self._n_values >= self._limit:
            self._count()

    def result(self) -> Correct:
        """Return the counts, which waits for the device.

        Returns
        -------
        Correct
        """
        self._count()
        if not self._correct:
            return Correct()
        return Correct(torch.stack(self._correct).sum().item(), float(sum(self._total)))

    def _count(self) -> None:
        if not self._collected:
            return
        logits, labels, weights = zip(*self._collected, strict=True)
        correct = torch.cat(logits).argmax(dim=1) == torch.cat(labels)
        if weights[0] is None:
            self._correct.append(correct.sum())
            self._total.append(correct.shape[0])
        else:
            weight = torch.cat(weights)
            self._correct.append((correct * weight).sum())
            self._total.append(weight.sum())
        self._collected = []
        self._n_values = 0
