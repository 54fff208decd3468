"""Networks that :class:`skbsd.BSDClassifier` uses when it is given none."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["MLP", "ResNet", "SmallResNet", "default_network"]


class MLP(nn.Module):
    """Multi-layer perceptron for tables.

    Parameters
    ----------
    in_features : int
        Number of columns.
    n_classes : int
        Number of logits.
    hidden : sequence of int, default=(128, 128)
        Width of each hidden layer.

    Examples
    --------
    >>> import torch
    >>> from skbsd.networks import MLP
    >>> MLP(4, 3)(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, in_features: int, n_classes: int, hidden: Sequence[int] = (128, 128)
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU()]
            in_features = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_features, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits.

        Parameters
        ----------
        x : Tensor of shape (n, in_features)
            Rows of a table.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits.
        """
        return self.layers(x)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride=stride, padding=1, bias=False
        )
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Small residual network for images of about 8 to 64 pixels a side.

    A 3x3 convolution, one residual block per entry of `widths` (each but the first
    halves the image), average pooling over what is left, and a linear layer. Any
    height and width will do.

    Parameters
    ----------
    in_channels : int
        Number of channels of the image.
    n_classes : int
        Number of logits.
    widths : sequence of int, default=(32, 64, 128)
        Channels of each block.

    Notes
    -----
    The blocks are those of ResNet [1]_; its networks for ImageNet shrink an image of
    this size to a single pixel before the first block.

    References
    ----------
    .. [1] K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    Examples
    --------
    >>> import torch
    >>> from skbsd.networks import SmallResNet
    >>> SmallResNet(3, 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, in_channels: int, n_classes: int, widths: Sequence[int] = (32, 64, 128)
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        sizes = [widths[0], *widths]
        self.blocks = nn.Sequential(
            *(
                _ResidualBlock(before, after, stride=1 if i == 0 else 2)
                for i, (before, after) in enumerate(pairwise(sizes))
            )
        )
        self.head = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits.

        Parameters
        ----------
        x : Tensor of shape (n, in_channels, height, width)
            Images of any height and width.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits.
        """
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class ResNet(nn.Module):
    """ResNet-18 to ResNet-152 for images of about 32 to 64 pixels a side.

    torchvision's [1]_, with a first convolution of 3 x 3 pixels that does not shrink
    the image, and without the pooling after it: as usual for CIFAR-10.

    Parameters
    ----------
    in_channels : int, default=3
        Number of channels of the image.
    n_classes : int, default=10
        Number of logits.
    depth : {18, 34, 50, 101, 152}, default=18
        Number of layers.

    Raises
    ------
    ValueError
        For another depth.

    References
    ----------
    .. [1] K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    Examples
    --------
    >>> import torch
    >>> from skbsd.networks import ResNet
    >>> ResNet(depth=18)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 3, n_classes: int = 10, depth: int = 18):
        from torchvision import models  # takes a second to import

        super().__init__()
        depths = (18, 34, 50, 101, 152)
        if depth not in depths:
            raise ValueError(f"depth must be one of {depths}, got {depth!r}.")
        self.body = getattr(models, f"resnet{depth}")(num_classes=n_classes)
        self.body.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.body.maxpool = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits.

        Parameters
        ----------
        x : Tensor of shape (n, in_channels, height, width)
            Images of any height and width.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits.
        """
        return self.body(x)


def default_network(shape: Sequence[int], n_classes: int, **kwargs) -> nn.Module:
    """Choose a network from the shape of a sample.

    Parameters
    ----------
    shape : sequence of int
        (n_features,) of a row of a table, or (channels, height, width) of an image.
    n_classes : int
        Number of logits.
    **kwargs : dict
        Further arguments of the network chosen.

    Returns
    -------
    MLP or SmallResNet
        Images whose longer side is less than 16 pixels get a residual network of half
        the width: they hold less to see.

    Raises
    ------
    ValueError
        For samples of other dimensions.

    Examples
    --------
    >>> from skbsd.networks import default_network
    >>> default_network((4,), n_classes=3)
    MLP(...)
    """
    if len(shape) == 1:
        return MLP(shape[0], n_classes, **kwargs)
    if len(shape) == 3:
        if max(shape[1:]) < 16:
            kwargs.setdefault("widths", (16, 32, 64))
        return SmallResNet(shape[0], n_classes, **kwargs)
    raise ValueError(
        f"there is no default network for samples of shape {tuple(shape)}: expected "
        "(n_features,) or (channels, height, width). Pass module, a network that "
        "takes them."
    )
