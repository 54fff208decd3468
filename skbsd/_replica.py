"""A network of which several processes train copies: torch's DistributedDataParallel.

It lives as long as a call of `fit`. The estimator keeps the network itself.
"""

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from ._averaging import is_statistic
from ._ranks import OneRank


class Alone:
    """How a network is trained by one process: as it is.

    Attributes
    ----------
    network : nn.Module or None
        What is called in place of the module while it is trained.
    share : float
        Part of the step's samples that are this process's.
    """

    network: Any = None
    share = 1.0

    def synchronise(self) -> None:
        """Have all processes hold the same buffers."""

    def renew(self, let_go: Callable[[], None]) -> bool:
        """Get ready for other parameters to be trained, where they have changed.

        Parameters
        ----------
        let_go : callable
            Called before, to forget what was trained until then.

        Returns
        -------
        bool
            Whether `network` is another one now.
        """
        return False


class Replica(Alone):
    """A copy of the network in each process, with the sum of their gradients.

    Each process's gradient counts by its share of the samples, so that the sum is the
    gradient of the mean over the whole batch.

    Parameters
    ----------
    module : nn.Module
    ranks : OneRank
    device : torch.device
    probe : callable
        Runs the network on samples, in evaluation mode; returns its logits.
    """

    def __init__(
        self,
        module: nn.Module,
        ranks: OneRank,
        device: torch.device,
        probe: Callable[[], Tensor],
    ):
        self._module = module
        self._ranks = ranks
        self.group = ranks.group
        if any(map(is_lazy, module.parameters())):
            with torch.no_grad():
                probe()  # gives lazy layers their shape
        self._device = device
        self._probe = probe
        self._trained = self._now_trained()
        self._build()

    def _now_trained(self) -> list[bool]:
        """Return which parameters are trained, as callbacks may change that."""
        return [p.requires_grad for p in self._module.parameters()]

    def _build(self) -> None:
        """Wrap the network; the gradients of what is frozen now are not waited for."""
        if not any(self._trained):
            return
        device = self._device
        self.network = DistributedDataParallel(
            self._module,
            device_ids=None if device.index is None else [device.index],
            process_group=self.group,
            gradient_as_bucket_view=True,
            find_unused_parameters=_has_unused(self._module, self._probe),
            **_own_buffers(),
        )
        self.network.register_comm_hook(self, _sum_hook())

    def renew(self, let_go: Callable[[], None]) -> bool:
        """Get ready for other parameters to be trained, where they have changed."""
        now = self._now_trained()
        if now == self._trained:
            return False
        self._trained = now
        let_go()
        self.network = None
        gc.collect()  # the hooks on gradients go with the last reference
        self._build()
        return True

    def release(self) -> None:
        """Let go of DistributedDataParallel, whose hook knows this object.

        It holds a process group, whose threads must have ended when the process does.
        """
        self.network = self.group = None

    def synchronise(self) -> None:
        """Replace running means and variances by their means over the processes.

        Other buffers become those of the first one.
        """
        means: list[Tensor] = []
        others: list[Tensor] = []
        for name, buffer in self._module.named_buffers():
            is_mean = is_statistic(name) and buffer.is_floating_point()
            (means if is_mean else others).append(buffer)
        self._ranks.average(means)
        self._ranks.equalise(others)


def _own_buffers() -> dict[str, Any]:
    """Return the option by which each process keeps its buffers between epochs."""
    options = inspect.signature(DistributedDataParallel).parameters
    renamed = "forward_sync_buffers" in options  # in PyTorch 2.13
    return {"forward_sync_buffers" if renamed else "broadcast_buffers": False}


def _sum_hook() -> Callable[..., Any]:
    """Return the communication hook that adds up gradients by their shares."""

    # The annotations are looked at; they are not in every build of PyTorch.
    def add_up(
        replica: Replica, bucket: dist.GradBucket
    ) -> torch.futures.Future[Tensor]:
        gradient = bucket.buffer().mul_(replica.share)
        work = dist.all_reduce(gradient, group=replica.group, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    return add_up


def _has_unused(module: nn.Module, probe: Callable[[], Tensor]) -> bool:
    """Whether a step leaves parameters without a gradient, such as a head not used."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.enable_grad():
        total = probe().sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return any(gradient is None for gradient in gradients)


@contextmanager
def synchronised_norms(module: nn.Module, ranks: OneRank) -> Iterator[None]:
    """Have batch normalisation take its statistics over all processes, meanwhile.

    Parameters
    ----------
    module : nn.Module
        Its layers are exchanged for :class:`torch.nn.SyncBatchNorm`, with the same
        parameters and buffers, and put back.
    ranks : OneRank
    """
    exchanged = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    try:
        for parent, name, child in exchanged:
            convert = nn.SyncBatchNorm.convert_sync_batchnorm
            setattr(parent, name, convert(child, ranks.group))
        yield
    finally:
        for parent, name, child in exchanged:
            child.train(parent.training)
            setattr(parent, name, child)
