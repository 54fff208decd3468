"""The parts of a call of `fit` that are specific to several processes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from skorch.callbacks import EpochScoring, PrintLog
from skorch.utils import is_dataset

from . import _fitted_state
from ._check_callbacks import acts_on_steps
from ._default_callbacks import is_default
from ._fingerprint import fingerprint
from ._loading import Split, TrainingData, part_of
from ._ranks import AgreedInterrupt, OneRank
from ._replica import Alone, Replica, synchronised_norms
from ._run import DivergenceError
from ._run_checkpoint import parameters_that_count

# Exceptions that all processes raise if one of them does.
AGREED = (DivergenceError, AgreedInterrupt)


def check_same(
    net: Any, data: TrainingData, split: Split, device: torch.device, world: OneRank
) -> None:
    """Raise an error if processes received different data or cannot train together.

    Parameters
    ----------
    net : BSDClassifier
    data : TrainingData
    split : Split
    device : torch.device
    world : OneRank
        All processes.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device={str(device)!r} supports a single process only; use 'cpu' or "
            "'cuda' to train in several processes."
        )
    if net.sync_batch_norm and device.type != "cuda":
        raise ValueError(
            "sync_batch_norm=True needs GPUs, as torch.nn.SyncBatchNorm does, and the "
            f"device is {str(device)!r}; pass sync_batch_norm=False."
        )
    weight = data.weight
    identity = {
        "data": (
            fingerprint(data.X, data.codes),
            fingerprint(split.rows, data.codes[split.rows]),
            None if weight is None else fingerprint(weight, data.codes),
        ),
        # All processes use the seed of the first one.
        **{
            f"values of {name}": value
            for name, value in parameters_that_count(net).items()
            if isinstance(value, str | int | float | None) and name != "random_state"
        },
    }
    of_all = world.gathered(identity)
    for rank, other in enumerate(of_all):
        for name, value in of_all[0].items():
            if other.get(name) != value:
                raise ValueError(
                    f"process {rank} of {len(of_all)} (by rank) was given other {name} "
                    "than process 0. Pass the same X, y and parameters in all of them, "
                    "as fit divides the samples among the processes; or devices=1, to "
                    "train a separate estimator in each."
                )


def train_together(
    net: Any, train: Callable[[], int | None], ranks: OneRank, world: OneRank
) -> int | None:
    """Train in some processes, and send the fitted state to the others.

    Parameters
    ----------
    net : BSDClassifier
    train : callable
        Trains the network; returns the number of an interrupted epoch, or None.
    ranks : OneRank
        The processes that train.
    world : OneRank
        All processes.
    """
    outcome: Any = None
    if ranks.takes_part:
        try:
            outcome = train()
        except AGREED as error:
            outcome = error
    if ranks.size < world.size:
        fitted = None
        if world.is_first and hasattr(net, "module_"):
            fitted = _fitted_state.pack(net)
        outcome, fitted = world.from_first((outcome, fitted))
        if fitted is not None and not ranks.takes_part:
            _fitted_state.unpack(net, fitted)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@contextmanager
def callbacks_here(
    net: Any, data: TrainingData, split: Split, ranks: OneRank
) -> Iterator[None]:
    """Restrict callbacks to the first process, except those that act on steps.

    Parameters
    ----------
    net : BSDClassifier
    data : TrainingData
        The data of all processes.
    split : Split
    ranks : OneRank
    """
    if ranks.size == 1:
        yield
        return
    if ranks.is_first:
        known = is_dataset(data.X) or split.valid_data is not None
        with nullcontext() if known else _scores_of_all(net):
            yield
        return
    callbacks = net.callbacks_
    net.callbacks_ = [
        (name, callback)
        for name, callback in callbacks
        if acts_on_steps(callback)
        or (is_default(callback) and not isinstance(callback, PrintLog))
    ]
    try:
        yield
    finally:
        net.callbacks_ = callbacks


@contextmanager
def _scores_of_all(net: Any) -> Iterator[None]:
    """Make scorers predict all validation data instead of using cached predictions.

    The predictions that skorch caches cover only the first process's samples. (For a
    Dataset, skorch needs the cache, as it takes the labels from it too.)
    """
    changed = [
        callback
        for _, callback in getattr(net, "callbacks_", ())
        if isinstance(callback, EpochScoring)
        and callback.use_caching
        and not callback.on_train
    ]
    for callback in changed:
        callback.use_caching = False
    try:
        yield
    finally:
        for callback in changed:
            callback.use_caching = True


@contextmanager
def replicated(
    net: Any, data: TrainingData, split: Split, device: torch.device, ranks: OneRank
) -> Iterator[Alone]:
    """Yield the replica of the network that this process trains.

    Parameters
    ----------
    net : BSDClassifier
        With an initialised network.
    data : TrainingData
        The data of all processes.
    split : Split
    device : torch.device
    ranks : OneRank
    """
    if ranks.size == 1:
        yield Alone()
        return
    with ExitStack() as contexts:
        if net.sync_batch_norm:
            contexts.enter_context(synchronised_norms(net.module_, ranks))
        X = part_of(data.X, split.rows[:2])
        replica = Replica(net.module_, ranks, device, lambda: net._probe(X))
        contexts.callback(replica.release)
        yield replica
