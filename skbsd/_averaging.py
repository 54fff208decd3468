"""An average of the weights over the steps of a run."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import get_ema_multi_avg_fn

AVERAGES = ("ema",)

# The average is over about this share of a run's steps.
_HORIZON = 0.05
# Names of the buffers in which normalisation keeps what it has seen.
_STATISTICS = ("running_mean", "running_var")


def is_statistic(name: str) -> bool:
    """Whether a buffer is what normalisation has seen, which may be averaged.

    Parameters
    ----------
    name : str
        As in :meth:`torch.nn.Module.named_buffers`.
    """
    return name.rpartition(".")[2] in _STATISTICS


class Averaging:
    """What a run does to average weights; this one does nothing."""

    def update(self) -> None:
        """Do nothing after a step."""

    def put(self) -> None:
        """Leave the weights of the last step in the network."""

    def take_back(self) -> None:
        """Leave them there too."""

    def forget(self) -> None:
        """Have nothing to forget."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


class WeightAverage(Averaging):
    r"""Exponential moving average of a network's weights, and when it is in use.

    The network holds the weights of the last step while it is trained (`take_back`),
    and the average whenever it predicts (`put`): in validation, for callbacks at the
    end of an epoch, and at the end. Both are copied within the network's own memory,
    which optimizers and recorded graphs know. A callback that changes weights does so
    as an epoch begins: at its end the average is there, which is not trained on.

    An update is :math:`a \leftarrow a + (\theta - a) / h` from :math:`a = 0`, with a
    constant h. The same update is done to a number that starts at 0 and moves towards
    1, by which the average is divided when it is put: after few steps,
    :math:`\theta` so counts evenly, and the first weights leave no trace. An update
    is a kernel or two over all tensors, without a number that changes from step to
    step: it may be part of a recorded graph, if it was called once before.

    Averaged are parameters, and the running statistics of normalisation: the mean of
    the statistics is close to the statistics of the mean, while the last ones belong
    to other weights. What is frozen, and other buffers, stay as they are.

    Parameters
    ----------
    module : nn.Module
    n_steps : int
        Of the run; h is a part of them.
    """

    def __init__(self, module: nn.Module, n_steps: int):
        self._module = module
        decay = 1 - 1 / max(1.0, _HORIZON * n_steps)
        # torch's AveragedModel would look at its counter in each update, and so wait
        # for the device.
        self._move = get_ema_multi_avg_fn(decay)
        self._sources: list[Tensor] = []  # of the network
        self._one: list[Tensor] = []  # a single 1, averaged as they are
        self._averages: list[Tensor] = []
        self._last: list[Tensor] = []  # what the average has taken the place of
        self._is_put = False

    @torch.no_grad()
    def _allocate(self) -> bool:
        """Take memory, once nothing is lazy; return whether there is any."""
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
        """Return where the weights are stored now: callbacks may move them."""
        return [source.detach() for source in self._sources]

    def update(self) -> None:
        """Take in the weights as a step has left them."""
        if self._averages or self._allocate():
            self._move(self._averages, self._data() + self._one, None)

    @torch.no_grad()
    def put(self) -> None:
        """Put the average into the network, unless there is none or it is there."""
        # The share of its weights that an average has seen, as the 1 tells.
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
        """Put the weights of the last step back, to be trained on."""
        if self._is_put:
            self._is_put = False
            torch._foreach_copy_(self._data(), self._last)
        self._allocate()

    def forget(self) -> None:
        """Begin anew, where the weights in the network are no longer of this run."""
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
        """Go on from a state, with a network that holds what it held then."""
        if state["averages"] and self._allocate():
            for own, saved in zip(self._averages, state["averages"], strict=True):
                own.copy_(saved)
            for own, saved in zip(self._last, state["last"], strict=False):
                own.copy_(saved)
            self._is_put = bool(state["last"])


def averaging_for(name: str | None, module: nn.Module, n_steps: int) -> Averaging:
    """Return what the parameter `averaging` names.

    Parameters
    ----------
    name : {"ema"} or None
    module : nn.Module
    n_steps : int
        Of the run.
    """
    return Averaging() if name is None else WeightAverage(module, n_steps)
