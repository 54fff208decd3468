"""A copy of a network's weights from before an epoch, to restore them."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class WeightsBackup:
    """A network's parameters and buffers from before an epoch.

    Parameters
    ----------
    module : nn.Module
    """

    def __init__(self, module: nn.Module):
        self._module = module
        # Grouped by type, as a single launch copies all tensors of a type.
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []
        self._saves = 0

    @torch.no_grad()
    def save(self) -> None:
        """Copy the weights, into the same memory as the last time."""
        self._saves += 1
        if self._saves > 2:  # nothing is lazy after the first epoch
            for now, before in self._pairs:
                torch._foreach_copy_(before, _data(now))
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in (*self._module.parameters(), *self._module.buffers()):
            if not is_lazy(tensor):
                by_type.setdefault(tensor.dtype, []).append(tensor)
        self._pairs = [
            (now, [t.detach().clone() for t in now]) for now in by_type.values()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the weights of the last copy."""
        for now, before in self._pairs:
            torch._foreach_copy_(_data(now), before)

    @torch.no_grad()
    def sums(self) -> list[Tensor]:
        """Return sums of the parameters, which are finite only if all values are."""
        parameters = [p.detach() for p in self._module.parameters() if not is_lazy(p)]
        if not (parameters and parameters[0].is_cuda):
            return [p.sum().float() for p in parameters]
        floats = [p for p in parameters if p.is_floating_point()]
        # Sums of absolute values, in a launch or two; float16 would overflow.
        return list(torch._foreach_norm(floats, 1, dtype=torch.float32))


def _data(tensors: list[Tensor]) -> list[Tensor]:
    """Return the current tensors, as callbacks may replace their data."""
    return [tensor.detach() for tensor in tensors]
