"""Counts correct predictions without synchronising per batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from ._batches import Batch


class Correct(NamedTuple):
    """The number of correct predictions, and of all predictions.

    Parameters
    ----------
    correct, total : float
        Numbers of samples, or sums of their weights.
    """

    correct: float = 0.0
    total: float = 0.0


class CorrectCounter:
    """Counts samples whose label is predicted, with their weights if they have any.

    Several batches are collected and counted together. For small networks, the overhead
    of counting each batch would matter compared with a training step.

    Parameters
    ----------
    buffer : int, default=2**18
        Number of logits to collect. With 0, each batch is counted immediately, for
        networks that write their next output into the same memory.
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
        """Add counts from elsewhere.

        Parameters
        ----------
        correct : Tensor of shape ()
        total : int or Tensor of shape ()
        """
        self._correct.append(correct)
        self._total.append(total)

    def sums(self) -> tuple[Tensor, ...]:
        """Return the sums so far, on the device.

        Returns
        -------
        tuple of Tensor of shape ()
            The fields of :class:`Correct`; empty if nothing was counted.
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
    """Count samples whose label is predicted, without synchronising with the device.

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
