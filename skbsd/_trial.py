"""Whether a network has to be given integers, found out by trying it."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def needs_integers(build: Callable[[], Any], x: Tensor) -> bool:
    """Whether a network takes integers, such as indices of words, and no floats.

    A network that takes floats gets floats, whatever X holds, so that a table of
    integers trains as one of floats. What the trial draws or changes is gone after it.

    Parameters
    ----------
    build : callable
        Returns the network, or a copy of it, on the CPU.
    x : Tensor of int of shape (n, ...)
        A few samples.
    """
    with warnings.catch_warnings(), torch.random.fork_rng([]), torch.no_grad():
        warnings.simplefilter("ignore")
        # What cannot be built, or fails both ways, says so itself when it is trained.
        try:
            module = build()
        except Exception:
            return False
        if isinstance(module, nn.Module):
            module.eval()
        if _runs(module, x.float()):
            return False
        return _runs(module, x) or has_embedding(module)


def has_embedding(module: Any) -> bool:
    """Whether there is an embedding layer in a network.

    Parameters
    ----------
    module : object
    """
    return isinstance(module, nn.Module) and any(
        isinstance(layer, _EMBEDDINGS) for layer in module.modules()
    )


def _runs(module: Any, x: Tensor) -> bool:
    try:
        module(x.clone())
    except Exception:
        return False
    return True
