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
    device = images.device
    shift = torch.randint(2 * padding + 1, (2, n, 1), device=device)
    mirror = torch.rand(n, 1, device=device) < 0.5
    row = shift[0] + torch.arange(height, device=device)
    column = torch.arange(width, device=device)
    column = shift[1] + torch.where(mirror, width - 1 - column, column)
    # Of each pixel, the one that takes its place: all in one gather.
    pixel = row.unsqueeze(2) * (width + 2 * padding) + column.unsqueeze(1)
    padded = F.pad(images, (padding,) * 4).flatten(2)
    pixel = pixel.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    return padded.gather(2, pixel).view(images.shape)
