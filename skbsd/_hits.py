"""Counting the predictions that are right, without a word from the device."""

import torch
from torch import Tensor

from ._batches import Batch


class HitCounter:
    """Counts samples whose label is predicted, by weight where they have one.

    Batches wait until there are many values: next to a small network's step, a few
    calls for each batch cost more than what they compute.

    Parameters
    ----------
    waiting : int, default=2**18
        Values of logits that may wait. With 0, batches are counted as they come, for
        networks that write their next output in the same place.
    """

    def __init__(self, waiting: int = 2**18):
        self._limit = waiting
        self._waiting: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._n_values = 0
        self._right: list[Tensor] = []  # on the device
        self._total: list[int | Tensor] = []

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Take note of a batch.

        Parameters
        ----------
        batch : Batch
        logits : Tensor of shape (n, n_classes)
        """
        self._waiting.append((logits.detach(), batch.y, batch.weight))
        self._n_values += logits.shape[0] * logits.shape[1]
        if self._n_values >= self._limit:
            self._count()

    def result(self) -> tuple[float, float]:
        """Return the number of hits and of samples, or the sums of their weights.

        Returns
        -------
        right, total : float
        """
        self._count()
        if not self._right:
            return 0.0, 0.0
        return torch.stack(self._right).sum().item(), float(sum(self._total))

    def _count(self) -> None:
        if not self._waiting:
            return
        logits, labels, weights = zip(*self._waiting, strict=True)
        hits = torch.cat(logits).argmax(dim=1) == torch.cat(labels)
        if weights[0] is None:
            self._right.append(hits.sum())
            self._total.append(hits.shape[0])
        else:
            weight = torch.cat(weights)
            self._right.append((hits * weight).sum())
            self._total.append(weight.sum())
        self._waiting = []
        self._n_values = 0
