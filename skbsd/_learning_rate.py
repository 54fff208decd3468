"""How the learning rate moves over a call of `fit`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import Optimizer


def one_cycle(progress: float) -> float:
    warm_up = 0.25
    if progress < warm_up:
        return progress / warm_up
    return cosine((progress - warm_up) / (1 - warm_up))


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    return 1.0


# From the share of training that lies behind, in (0, 1), to a factor of `lr`.
SCHEDULES = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}


class LearningRate:
    """The schedule of one call of `fit`, applied to an optimizer.

    While it is applied, each parameter group keeps its highest rate as `initial_lr`,
    as with PyTorch's own schedulers. An optimizer whose state was saved in the middle
    of a schedule therefore begins the next one at the rate that it was built with, and
    not at the one that the schedule had come to.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    schedule : {"one-cycle", "cosine", "constant"}
        "constant" leaves the rates alone: a callback may set them.
    n_steps : int
        Length of the schedule.
    """

    def __init__(self, optimizer: Optimizer, schedule: str, n_steps: int):
        # Not its groups: loading a state replaces them.
        self._optimizer = optimizer
        self._factor = SCHEDULES[schedule]
        self._n_steps = n_steps

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Note the highest rates; put them back afterwards."""
        if self._factor is constant:
            yield
            return
        for group in self._optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        try:
            yield
        finally:
            for group in self._optimizer.param_groups:
                group["lr"] = group.pop("initial_lr")

    def set(self, step: int) -> None:
        """Set the rates of a step, counted from 0."""
        if self._factor is constant:
            return
        # The middle of the step: the first and the last count too.
        factor = self._factor((step + 0.5) / self._n_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
