"""The learning-rate schedules of a call of `fit`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ._optimizer import rates_from_memory


def one_cycle(progress: float) -> float:
    warm_up = 0.25
    if progress < warm_up:
        return progress / warm_up
    return cosine((progress - warm_up) / (1 - warm_up))


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    return 1.0


# Functions from the finished fraction of training, in (0, 1), to a factor of `lr`.
SCHEDULES = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}


_CPU = torch.device("cpu")


class LearningRate:
    """The schedule of one call of `fit`, applied to an optimizer.

    While the schedule is applied, each parameter group stores its peak learning rate as
    `initial_lr`, as with PyTorch's own schedulers. An optimizer whose state was saved
    during a schedule therefore starts the next schedule from the original rate, and not
    from the rate at that moment.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    schedule : {"one-cycle", "cosine", "constant"}
        "constant" does not change the rates, so callbacks can set them.
    n_steps : int
        Length of the schedule.
    device : torch.device
        On GPUs, rates are rounded to float32, the type in which CUDA graphs read them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: str,
        n_steps: int,
        device: torch.device = _CPU,
    ):
        # Not its groups, as loading a state replaces them.
        self._optimizer = optimizer
        self._is_rounded = device.type == "cuda"
        self._factor = SCHEDULES[schedule]
        self._n_steps = n_steps
        self._factors: np.ndarray | None = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Store the peak rates, and restore them afterwards."""
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
        factor = self._factor_of(step)
        for group in self._optimizer.param_groups:
            rate = group["initial_lr"] * factor
            group["lr"] = float(np.float32(rate)) if self._is_rounded else rate

    def rates(self, steps: range) -> np.ndarray:
        """Return the rates of some steps, as stored on GPUs.

        Parameters
        ----------
        steps : range

        Returns
        -------
        ndarray of shape (n_groups, n_steps)
            In float32.
        """
        return self._rates(steps).astype(np.float32)

    def applied_rates(self, steps: range) -> np.ndarray:
        """Return the rates that `set` would set for some steps.

        Parameters
        ----------
        steps : range

        Returns
        -------
        ndarray of shape (n_groups, n_steps)
            In float64.
        """
        return (
            self.rates(steps).astype(float) if self._is_rounded else self._rates(steps)
        )

    def _rates(self, steps: range) -> np.ndarray:
        if self._factors is None:
            of_all = map(self._factor_of, range(self._n_steps))
            self._factors = np.fromiter(of_all, np.float64, self._n_steps)
        key = "lr" if self._factor is constant else "initial_lr"
        highest = np.array([group[key] for group in self._optimizer.param_groups])
        factors = self._factors[steps.start : steps.stop]
        return np.outer(highest, factors)

    def _factor_of(self, step: int) -> float:
        # Evaluated in the middle of a step, so that no step has a rate of zero.
        return self._factor((step + 0.5) / self._n_steps)


class RatesInMemory:
    """The rates of the next steps in device memory, where a CUDA graph reads them.

    Parameters
    ----------
    schedule : LearningRate
    n_steps : int
        Number of steps.
    device : torch.device
    """

    def __init__(self, schedule: LearningRate, n_steps: int, device: torch.device):
        self._schedule = schedule
        self._rates = torch.from_numpy(schedule.rates(range(n_steps))).to(device)
        self._current = torch.empty_like(self._rates[:, :1])

    def load(self, step: int) -> None:
        """Copy the rates of the steps beginning with `step` to the device."""
        rates = self._schedule.rates(range(step, step + self._rates.shape[1]))
        if len(rates) != len(self._rates):  # a callback has added parameters
            self._rates = self._rates.new_empty(rates.shape)
            self._current = torch.empty_like(self._rates[:, :1])
        self._rates.copy_(torch.from_numpy(rates), non_blocking=True)

    @contextmanager
    def applied(self, optimizer: Optimizer, number: Tensor) -> Iterator[None]:
        """Make an optimizer read the rates of a step from device memory.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
        number : Tensor of int of shape (1,)
            Index of the step, relative to the first step of `load`.
        """
        torch.index_select(self._rates, 1, number, out=self._current)
        with rates_from_memory(optimizer, [*self._current.flatten()]):
            yield
