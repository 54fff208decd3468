"""Test-time augmentation: predictions averaged over several views of an image."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Pairs of a shift down and right, in pixels, and the weight of that view.
VIEWS: dict[str, tuple[tuple[int, float], ...]] = {
    "flip": ((0, 1.0),),
    "flip-shift": ((0, 0.5), (-1, 0.25), (1, 0.25)),
}


def check_shows_images(shape: tuple[int, ...], views: str) -> None:
    """Raise an error if samples are not images that have these views.

    Parameters
    ----------
    shape : tuple of int
        Shape of a sample.
    views : {"flip", "flip-shift"}
    """
    if views not in VIEWS:
        raise ValueError(
            f"prediction_views must be one of {sorted(VIEWS)} or None, got {views!r}."
        )
    if len(shape) != 3:
        raise ValueError(
            f"prediction_views={views!r} needs images, and X has samples of shape "
            f"{tuple(shape)}; pass 4-D X or image_shape, or prediction_views=None."
        )
    if views == "flip-shift" and min(shape[1:]) < 2:
        raise ValueError(
            f"prediction_views={views!r} reflects the pixels next to the border, and X "
            f"has images of shape {tuple(shape)}; expected at least 2 pixels a side."
        )


def mean_logits(infer: Callable[[Tensor], Tensor], x: Any, views: str) -> Tensor:
    """Return the weighted mean of a network's logits over views of each image.

    Each shift is applied to the image and to its mirror image. The two therefore have
    the same set of views, and equal predictions.

    Parameters
    ----------
    infer : callable
        Maps a prepared batch to logits.
    x : Tensor of shape (n, channels, height, width)
        A prepared batch. Anything else raises ValueError.
    views : {"flip", "flip-shift"}
    """
    check_shows_images(tuple(getattr(x, "shape", ()))[1:], views)
    total: Any = 0.0
    for shift, weight in VIEWS[views]:
        # Not in the low precision of autocast, which is too coarse for a mean.
        one, other = (
            logits.to(torch.promote_types(logits.dtype, torch.float32))
            for logits in (infer(_moved(x, shift)), infer(_moved(x.flip(-1), shift)))
        )
        total = total + weight / 2 * (one + other)
    return total


def _moved(x: Tensor, shift: int) -> Tensor:
    """Return images shifted along the diagonal, with reflected borders."""
    if shift == 0:
        return x
    height, width = x.shape[2:]
    size = abs(shift)
    padded = F.pad(x, (size,) * 4, mode="reflect")
    start = size - shift
    moved = padded[:, :, start : start + height, start : start + width]
    return torch.empty_like(x).copy_(moved)  # in the memory format of x
