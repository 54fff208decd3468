"""An estimator's random states, which torch's generators use during a call of `fit`."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from sklearn.utils import check_random_state
from torch import Tensor

# torch's generators belong to the process, so fits in several threads cannot overlap.
_LOCK = threading.RLock()


def _renew_lock() -> None:
    """Create a new lock in a forked process, where the old one may stay locked."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Generators:
    """The states of an estimator's generators between two calls.

    Parameters
    ----------
    states : dict of str to Tensor
        Generator states by device type. A missing one is seeded from the CPU's
        generator.
    """

    def __init__(self, states: dict[str, Tensor]):
        self.states = states

    @classmethod
    def seeded(cls, device: torch.device, random_state) -> "Generators":
        """Return generators that start from a seed.

        Parameters
        ----------
        device : torch.device
        random_state : int, RandomState instance or None
        """
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        with _LOCK:
            before = _current(device)
            try:
                _seed(device, seed)
                return cls(_current(device))
            finally:
                _set(device, before)

    @contextmanager
    def borrowed(self, device: torch.device) -> Iterator[None]:
        """Set torch's generators to these states; restore the old states afterwards."""
        with _LOCK:
            before = _current(device)
            try:
                _set(device, self.states)
                yield
            finally:
                self.states = _current(device)
                _set(device, before)

    def part_ways(self, device: torch.device, rank: int, size: int) -> None:
        """Make this process draw other numbers than the others, during a call.

        Parameters
        ----------
        device : torch.device
        rank, size : int
            Rank of this process, and number of processes. The first process keeps its
            random sequence, from which the seeds of the others are drawn.
        """
        seeds = torch.randint(2**31, (size,)).tolist()
        if rank:
            _seed(device, seeds[rank])

    def save(self, device: torch.device) -> dict[str, Tensor]:
        """Return the current states, during a call."""
        return _current(device)

    def load(self, device: torch.device, states: dict[str, Tensor]) -> None:
        """Set the current states, during a call."""
        _set(device, states)

    def copy(self) -> "Generators":
        """Return an independent copy."""
        return Generators(dict(self.states))

    def __getstate__(self):
        return {name: state.numpy() for name, state in self.states.items()}

    def __setstate__(self, state):
        self.states = {name: torch.tensor(values) for name, values in state.items()}


def _current(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that training draws from, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states[device.type] = module.get_rng_state(*_index(device))
    return states


def _set(device: torch.device, states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cpu":
        return
    if device.type in states:
        module = torch.get_device_module(device)
        module.set_rng_state(states[device.type], *_index(device))
    else:
        # The model was fitted on another device; derive a seed from the CPU's state.
        _seed(device, int(torch.randint(2**31, ())))


def _seed(device: torch.device, seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _index(device: torch.device) -> tuple:
    # CUDA is the only device type with generators and possibly several devices.
    return (device,) if device.type == "cuda" else ()
