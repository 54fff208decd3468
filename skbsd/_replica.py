"""Data-parallel training of a network with torch's DistributedDataParallel.

The wrapper exists during a call of `fit`. The estimator keeps the bare network.
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
    """The replica of a process that trains alone, without a wrapper.

    Attributes
    ----------
    network : nn.Module or None
        Wrapper to call in place of the module in training steps.
    share : float
        Fraction of the step's samples that this process has.
    """

    network: Any = None
    share = 1.0

    def synchronise(self) -> None:
        """Make the buffers equal in all processes."""

    def renew(self, let_go: Callable[[], None]) -> bool:
        """Rebuild the wrapper if other parameters are trainable than before.

        Parameters
        ----------
        let_go : callable
            Called before that, to drop references to the old wrapper.

        Returns
        -------
        bool
            Whether `network` was replaced.
        """
        return False


class Replica(Alone):
    """A copy of the network in each process, with summed gradients.

    Each process's gradient is weighted by its share of the samples, so that the sum is
    the gradient of the mean loss over the whole batch.

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
                probe()  # initialises lazy layers
        self._device = device
        self._probe = probe
        self._trained = self._now_trained()
        self._build()

    def _now_trained(self) -> list[bool]:
        """Return which parameters are trainable now, as callbacks may change that."""
        return [p.requires_grad for p in self._module.parameters()]

    def _build(self) -> None:
        """Wrap the network. Parameters that are frozen now take no part in it."""
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
        """Rebuild the wrapper if other parameters are trainable than before."""
        now = self._now_trained()
        if now == self._trained:
            return False
        self._trained = now
        let_go()
        self.network = None
        gc.collect()  # removes the gradient hooks with the last reference
        self._build()
        return True

    def release(self) -> None:
        """Release DistributedDataParallel, whose hook refers to this object.

        It refers to a process group, whose threads must end before the process does.
        """
        self.network = self.group = None

    def synchronise(self) -> None:
        """Replace running means and variances by their means over the processes.

        Other buffers are copied from the first process.
        """
        means: list[Tensor] = []
        others: list[Tensor] = []
        for name, buffer in self._module.named_buffers():
            is_mean = is_statistic(name) and buffer.is_floating_point()
            (means if is_mean else others).append(buffer)
        self._ranks.average(means)
        self._ranks.equalise(others)


def _own_buffers() -> dict[str, Any]:
    """Return the option that stops the wrapper from synchronising buffers."""
    options = inspect.signature(DistributedDataParallel).parameters
    renamed = "forward_sync_buffers" in options  # in PyTorch 2.13
    return {"forward_sync_buffers" if renamed else "broadcast_buffers": False}


def _sum_hook() -> Callable[..., Any]:
    """Return the communication hook that sums gradients weighted by their shares."""

    # PyTorch inspects the annotations. Not every build of it has these types, so the
    # function is defined here.
    def add_up(
        replica: Replica, bucket: dist.GradBucket
    ) -> torch.futures.Future[Tensor]:
        gradient = bucket.buffer().mul_(replica.share)
        work = dist.all_reduce(gradient, group=replica.group, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    return add_up


def _has_unused(module: nn.Module, probe: Callable[[], Tensor]) -> bool:
    """Whether a step leaves parameters without a gradient, such as an unused head."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.enable_grad():
        total = probe().sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return any(gradient is None for gradient in gradients)


@contextmanager
def synchronised_norms(module: nn.Module, ranks: OneRank) -> Iterator[None]:
    """Compute batch-normalisation statistics over all processes within the context.

    Parameters
    ----------
    module : nn.Module
        Its batch-normalisation layers are replaced by :class:`torch.nn.SyncBatchNorm`
        with the same parameters and buffers, and restored at the end.
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
