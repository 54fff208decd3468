"""Augmentation of batches of images on the device, with a draw per sample."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["flip_crop"]


def flip_crop(images: Tensor, padding: int | None = None) -> Tensor:
    """Mirror each image with probability 1/2 and shift it by a few pixels.

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)
        Of any type; uint8 stays uint8.
    padding : int, optional
        Largest shift in each direction, in pixels; what a shift uncovers is filled
        with zeros. By default an eighth of the shorter side (4 for 32 pixels).

    Returns
    -------
    Tensor of shape (n, channels, height, width)
        New images; every sample has its own draw from torch's generator of the
        device.

    Examples
    --------
    >>> import torch
    >>> from skbsd.augmentation import flip_crop
    >>> flip_crop(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2, 3, 32, 32])
    """
    n, _, height, width = images.shape
    if padding is None:
        padding = max(1, min(height, width) // 8)
    padded = F.pad(images, (padding,) * 4)
    # A view of every window, of which one per image is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    shift = torch.randint(2 * padding + 1, (2, n), device=images.device)
    rows = torch.arange(n, device=images.device)
    shifted = windows[rows, :, shift[0], shift[1]]
    mirror = torch.rand(n, 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirror, shifted.flip(-1), shifted)
