"""Division of the samples and beliefs among processes that train together.

Each process keeps its samples and their beliefs for a whole call of `fit`. Beliefs are
gathered only at the end of training and for checkpoints.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ._batches import Share
from ._loading import Split, TrainingData, part_of
from ._ranks import OneRank
from .posterior import Posterior

# The division is the same in each call, so that a process keeps its beliefs.
_SEED = 0


@dataclass(frozen=True)
class Part:
    """The training and validation samples of one process.

    Parameters
    ----------
    data : TrainingData
        The samples of the process.
    split : Split
        Their division into training and validation rows.
    train_share, valid_share : Share
        The process's share of the batches.
    rows : ndarray of int or None
        Rows of X that the process has; None means all of them.
    """

    data: TrainingData
    split: Split
    train_share: Share
    valid_share: Share
    rows: np.ndarray | None = None


class PartedBeliefs:
    """The beliefs of all samples, divided among the processes.

    Parameters
    ----------
    part : Part
        The samples of this process.
    ranks : OneRank
    prior : callable
        Returns the prior beliefs of all samples, on the CPU.
    """

    def __init__(self, part: Part, ranks: OneRank, prior: Callable[[], Posterior]):
        self._rows = part.rows
        self._ranks = ranks
        self._prior = prior

    def own(self, whole: Posterior) -> Posterior:
        """Return the beliefs of the samples of this process."""
        if self._rows is None:
            return whole
        return whole.part(torch.from_numpy(self._rows))

    def gathered(self, posterior: Posterior, *, only_first: bool = False) -> Posterior:
        """Return the beliefs of all samples; samples not trained on keep their prior.

        Parameters
        ----------
        posterior : Posterior
            The beliefs of the samples of this process.
        only_first : bool, default=False
            Whether only the first process receives all beliefs. The others receive
            `posterior`.
        """
        if self._rows is None:
            return posterior
        # Their pickles contain NumPy arrays, so they depend on no device.
        own = self._rows, posterior
        parts: Iterable[Any] = self._ranks.each(own)
        if only_first:
            parts = self._ranks.gathered(own, only_first=True)
            if not self._ranks.is_first:
                return posterior
        whole = self._prior()
        for rows, part in parts:
            whole.put(torch.from_numpy(rows), part)
        return whole

    def save(self, posterior: Posterior) -> dict[str, Tensor]:
        """Return the state of all beliefs, in the first process."""
        return self.gathered(posterior, only_first=True).state_dict()

    def load(self, posterior: Posterior, state: dict[str, Tensor]) -> None:
        """Load the beliefs of this process's samples from the state of all samples."""
        if self._rows is not None:
            whole = self._prior()
            whole.load_state_dict(state)
            state = self.own(whole).state_dict()
        posterior.load_state_dict(state)


def agreed_split(split: Split, data: TrainingData, ranks: OneRank) -> Split:
    """Return the first process's split, as each process may have drawn its own.

    Parameters
    ----------
    split : Split
        The split of this process.
    data : TrainingData
        All samples. If the processes have different numbers of samples, each keeps its
        split, and training raises an error.
    ranks : OneRank
    """
    n = len(data.y)
    n_first, rows, valid_rows = ranks.from_first((n, split.rows, split.valid_rows))
    if n_first != n or ranks.size == 1:
        return split
    if split.valid_data is not None:
        return split._replace(rows=rows)
    datasets = dict(split.datasets)
    if valid_rows is not None:
        # Scorers that do not use batches need the indices as a list.
        whole = datasets["dataset_valid"].dataset
        datasets["dataset_valid"] = Subset(whole, valid_rows.tolist())
    return Split(rows, valid_rows, None, datasets)


def part_for(data: TrainingData, split: Split, ranks: OneRank) -> Part:
    """Return the samples of this process; all samples, if it trains alone.

    Parameters
    ----------
    data : TrainingData
        All samples.
    split : Split
        Their division into training and validation rows.
    ranks : OneRank
        The processes that take part.
    """
    n_valid = 0 if split.valid_rows is None else len(split.valid_rows)
    if ranks.size == 1:
        return Part(data, split, Share(len(split.rows)), Share(n_valid))
    rows = _dealt(data.codes, split.rows, ranks)
    weight = None if data.weight is None else float(data.weight[split.rows].mean())
    train_share = Share(len(split.rows), ranks.rank, ranks.size, weight)
    n_train, valid_rows, valid_data = len(rows), None, None
    if split.valid_rows is not None:
        source = data if split.valid_data is None else split.valid_data
        valid = _dealt(source.codes, split.valid_rows, ranks)
        if split.valid_data is None:
            rows = np.concatenate([rows, valid])
            valid_rows = np.arange(n_train, len(rows))
        else:
            valid_data = _of_rows(split.valid_data, valid)
            valid_rows = np.arange(len(valid))
    return Part(
        _of_rows(data, rows),
        Split(np.arange(n_train), valid_rows, valid_data, split.datasets),
        train_share,
        Share(n_valid, ranks.rank, ranks.size),
        rows,
    )


def _dealt(codes: np.ndarray, rows: np.ndarray, ranks: OneRank) -> np.ndarray:
    """Return this process's rows, with each class divided evenly among processes."""
    shuffled = np.random.default_rng(_SEED).permutation(rows)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    return np.sort(by_class[ranks.rank :: ranks.size])


def _of_rows(data: TrainingData, rows: np.ndarray) -> TrainingData:
    return data._replace(
        X=part_of(data.X, rows),
        y=data.y[rows],
        codes=data.codes[rows],
        weight=None if data.weight is None else data.weight[rows],
        sample_weight=None,
    )
