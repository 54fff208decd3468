"""Whether a network requires integers, determined by running it."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def needs_integers(build: Callable[[], Any], x: Tensor) -> bool:
    """Whether a network accepts integers, such as indices of words, but not floats.

    A network that accepts floats receives floats for integer X too, so that a table of
    integers trains like a table of floats. The trial uses a separate network, and
    restores the random number generator.

    Parameters
    ----------
    build : callable
        Returns the network, or a copy of it, on the CPU.
    x : Tensor of int of shape (n, ...)
        A few samples.
    """
    with warnings.catch_warnings(), torch.random.fork_rng([]), torch.no_grad():
        warnings.simplefilter("ignore")
        # A network that cannot be built, or fails with both types, raises when trained.
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
    """Whether a network has an embedding layer.

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
