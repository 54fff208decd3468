"""An average of the weights over the steps of a run."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import get_ema_multi_avg_fn

AVERAGES = ("ema",)

# The average extends over about this fraction of a run's steps.
_HORIZON = 0.05
# Names of the buffers with the running statistics of normalisation layers.
_STATISTICS = ("running_mean", "running_var")


def is_statistic(name: str) -> bool:
    """Whether a buffer is a running statistic of normalisation, which may be averaged.

    Parameters
    ----------
    name : str
        As in :meth:`torch.nn.Module.named_buffers`.
    """
    return name.rpartition(".")[2] in _STATISTICS


class Averaging:
    """Base class of weight averages; this one does not average."""

    def update(self) -> None:
        """Update the average after a step; does nothing here."""

    def put(self) -> None:
        """Put the average into the network; does nothing here."""

    def take_back(self) -> None:
        """Put the weights of the last step back; does nothing here."""

    def forget(self) -> None:
        """Discard the average; does nothing here."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state; does nothing here."""


class WeightAverage(Averaging):
    r"""Exponential moving average of a network's weights.

    During training steps, the network holds the weights of the last step (`take_back`).
    Whenever it predicts, it holds the average (`put`): in validation, for callbacks at
    the end of an epoch, and after training. Both are copied into the network's own
    memory, to which optimizers and recorded graphs refer. Callbacks that change weights
    must do so at the beginning of an epoch: at its end, the network holds the average,
    and training does not continue from it.

    An update is :math:`a \leftarrow a + (\theta - a) / h` from :math:`a = 0`, with a
    constant h. A number that starts at 0 and converges to 1 gets the same update with
    :math:`\theta = 1`. `put` divides the average by this number, which corrects the
    bias towards 0. An update is a kernel or two over all tensors, without a value that
    changes from step to step. Therefore, it may be part of a recorded graph, if it was
    called once before.

    The average includes parameters and the running statistics of normalisation: the
    mean of the statistics is close to the statistics of the averaged weights, while the
    last statistics belong to other weights. Frozen parameters and other buffers stay
    unchanged.

    Parameters
    ----------
    module : nn.Module
    n_steps : int
        Number of steps of the run; h is a fraction of them.
    """

    def __init__(self, module: nn.Module, n_steps: int):
        self._module = module
        decay = 1 - 1 / max(1.0, _HORIZON * n_steps)
        # torch's AveragedModel would read its counter in each update, and thus
        # synchronise with the device.
        self._move = get_ema_multi_avg_fn(decay)
        self._sources: list[Tensor] = []  # parameters and statistics of the network
        self._one: list[Tensor] = []  # a single 1, averaged like the weights
        self._averages: list[Tensor] = []
        self._last: list[Tensor] = []  # weights that the average has replaced
        self._is_put = False

    @torch.no_grad()
    def _allocate(self) -> bool:
        """Allocate memory once no parameter is lazy; return whether it succeeded."""
        if self._averages:
            return True
        parameters = list(self._module.parameters())
        if any(map(is_lazy, parameters)):
            return False
        statistics = [
            buffer
            for name, buffer in self._module.named_buffers()
            if is_statistic(name)
        ]
        tensors = [t for t in (*parameters, *statistics) if t.is_floating_point()]
        if not tensors:
            return False
        self._sources = tensors
        self._one = [tensors[0].new_ones(())]
        self._averages = [torch.zeros_like(t) for t in (*self._data(), *self._one)]
        self._last = [torch.empty_like(t) for t in self._data()]
        return True

    def _data(self) -> list[Tensor]:
        """Return the current tensors of the weights, as callbacks may replace them."""
        return [source.detach() for source in self._sources]

    def update(self) -> None:
        """Update the average with the weights after a step."""
        if self._averages or self._allocate():
            self._move(self._averages, self._data() + self._one, None)

    @torch.no_grad()
    def put(self) -> None:
        """Put the average into the network, if one exists and is not there already."""
        # The averaged 1, which corrects the bias towards 0.
        if self._is_put or not self._averages:
            return
        share = float(self._averages[-1])
        if share == 0:
            return
        now = self._data()
        torch._foreach_copy_(self._last, now)
        for source, data, average in zip(
            self._sources, now, self._averages, strict=False
        ):
            if source.requires_grad or not isinstance(source, nn.Parameter):
                torch.div(average, share, out=data)
        self._is_put = True

    @torch.no_grad()
    def take_back(self) -> None:
        """Put the weights of the last step back, to continue training from them."""
        if self._is_put:
            self._is_put = False
            torch._foreach_copy_(self._data(), self._last)
        self._allocate()

    def forget(self) -> None:
        """Discard the average, if the network's weights are no longer of this run."""
        self._sources, self._one, self._averages, self._last = [], [], [], []
        self._is_put = False

    def state_dict(self) -> dict[str, Any]:
        """Return averages and last weights; the network holds one of them."""
        return {
            "averages": self._averages,
            "last": self._last if self._is_put else [],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state; the network must hold the same weights as when it was saved."""
        if state["averages"] and self._allocate():
            for own, saved in zip(self._averages, state["averages"], strict=True):
                own.copy_(saved)
            for own, saved in zip(self._last, state["last"], strict=False):
                own.copy_(saved)
            self._is_put = bool(state["last"])


def averaging_for(name: str | None, module: nn.Module, n_steps: int) -> Averaging:
    """Return the weight average for the estimator's parameter `averaging`.

    Parameters
    ----------
    name : {"ema"} or None
    module : nn.Module
    n_steps : int
        Number of steps of the run.
    """
    return Averaging() if name is None else WeightAverage(module, n_steps)
