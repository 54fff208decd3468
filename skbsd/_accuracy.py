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

    def include(self, correct: Tensor, total: int | Tensor) -> None:
        """Add what was counted elsewhere.

        Parameters
        ----------
        correct : Tensor of shape ()
        total : int or Tensor of shape ()
        """
        self._correct.append(correct)
        self._total.append(total)

    def sums(self) -> tuple[Tensor, ...]:
        """Return how many were correct and of how many, on the device.

        Returns
        -------
        tuple of Tensor of shape ()
            As the fields of :class:`Correct`, or none where nothing was counted.
        """
        self._count()
        if not self._correct:
            return ()
        correct = torch.stack(self._correct).sum()
        total = sum(self._total)
        if not isinstance(total, Tensor):
            total = torch.full_like(correct, total)
        return correct, total

    def _count(self) -> None:
        if not self._collected:
            return
        logits, labels, weights = zip(*self._collected, strict=True)
        weight = None if weights[0] is None else torch.cat(weights)
        self.include(*count(torch.cat(logits), torch.cat(labels), weight))
        self._collected = []
        self._n_values = 0


def count(
    logits: Tensor, labels: Tensor, weight: Tensor | None
) -> tuple[Tensor, int | Tensor]:
    """Count samples whose label is predicted, without waiting for the device.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    labels : Tensor of shape (n,)
    weight : Tensor of shape (n,) or None

    Returns
    -------
    correct, total : Tensor of shape (), or int
        Numbers of samples, or sums of their weights.
    """
    correct = logits.argmax(dim=1) == labels
    if weight is None:
        return correct.sum(), correct.shape[0]
    return (correct * weight).sum(), weight.sum()
