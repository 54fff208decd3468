"""What PyTorch's optimizers need beside their own code."""

import torch
from torch.optim import Optimizer


def match_strides(optimizer: Optimizer) -> None:
    """Store an optimizer's state in the order in which its parameters are stored.

    On the CPU the fused optimizers walk parameter and state in memory side by side, and
    compute wrongly where one is stored pixel by pixel and the other channel by channel:
    a state that was loaded from a file may be.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (
                isinstance(value, torch.Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(
                    value
                )
