"""Networks for tables and images.

:class:`skbsd.BSDClassifier` uses :class:`MLP` and :class:`SmallResNet` by default. The
others are passed as `module`.

A network can initialise weights from the data. If it has a method
``initialize_from(x)``, a fit that has built the network calls the method once before
the first step, with up to 5,000 training samples. :class:`SpeedNet` is an example.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP", "ResNet", "SmallResNet", "SpeedNet", "default_network"]


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
    """Two 3x3 convolutions with a shortcut."""

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
    halves the image), global average pooling, and a linear layer. It accepts images of
    any height and width.

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

    The networks of torchvision [1]_ with the usual changes for CIFAR-10: the first
    convolution has 3 x 3 pixels and stride 1, and there is no pooling after it.

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


class _Whitening(nn.Module):
    """A frozen 2x2 convolution to uncorrelated channels, and their negatives.

    The filters are a buffer, so no optimizer changes them. Before they are initialised
    from data, they are Haar's sums and differences of pixels.
    """

    # Fraction of the mean eigenvalue that is added to each, to avoid amplifying noise.
    EPSILON = 5e-4
    # Number of images whose patches are in memory at a time.
    CHUNK = 256

    weight: Tensor

    def __init__(self, in_channels: int):
        super().__init__()
        steps = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        haar = torch.kron(torch.eye(in_channels), torch.kron(steps, steps) / 2)
        filters = torch.cat([haar, -haar]).view(-1, in_channels, 2, 2)
        self.register_buffer("weight", filters)
        self.bias = nn.Parameter(torch.zeros(len(filters)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)

    @torch.no_grad()
    def initialize_from(self, x: Tensor) -> None:
        size = self.weight[0].numel()
        moments = x.new_zeros(size, size)
        n = 0
        for chunk in x.split(self.CHUNK):
            patches = F.unfold(chunk.contiguous(), 2).transpose(0, 1).flatten(1)
            moments += patches @ patches.T
            n += patches.shape[1]
        # On the CPU in double precision, so that all devices get the same vectors.
        values, vectors = torch.linalg.eigh(moments.cpu().double() / n)
        scale = values.mean() if values.mean() > 0 else 1.0
        # Fix the sign, which libraries do not guarantee.
        largest = vectors.abs().argmax(dim=0, keepdim=True)
        vectors = vectors * vectors.gather(0, largest).sign()
        filters = vectors / (values.clamp(min=0) + self.EPSILON * scale).sqrt()
        filters = filters.T.flip(0)  # those of the largest eigenvalues first
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {len(self.weight)}"


class _ShiftNorm(nn.BatchNorm2d):
    """Batch normalisation that learns a bias and no weight.

    The weight is a buffer of ones, as some kernels are faster with a weight.
    """

    def __init__(self, channels: int):
        super().__init__(channels, momentum=0.4)
        del self.weight
        self.register_buffer("weight", torch.ones(channels))


class _SpeedBlock(nn.Module):
    """3x3 convolutions at half the size; with three, the last two have a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, depth: int):
        super().__init__()
        sizes = [in_channels] + [out_channels] * depth
        convs = [
            nn.Conv2d(before, after, 3, padding=1, bias=False)
            for before, after in pairwise(sizes)
        ]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(_ShiftNorm(out_channels) for _ in range(depth))
        with torch.no_grad():
            for conv in convs:
                # The first outputs are the inputs; the others are random.
                nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](x), 2)))
        out = self.norms[1](self.convs[1](x))
        if len(self.convs) == 3:
            out = x + self.norms[2](self.convs[2](F.gelu(out)))
        return F.gelu(out)


class SpeedNet(nn.Module):
    """Network for small images that reaches a high accuracy in few epochs.

    The network of "airbench" [1]_, for images of about 16 to 64 pixels a side: a frozen
    2x2 convolution that whitens patches, a block of convolutions per entry of `widths`
    (each halves the image), global maximum pooling, and a linear layer without bias. It
    accepts images of any height and width, from 9 pixels on with three blocks.

    Parameters
    ----------
    in_channels : int, default=3
        Number of channels of the image.
    n_classes : int, default=10
        Number of logits.
    widths : sequence of int, default=(64, 256, 256)
        Channels of each block.
    depth : {2, 3}, default=2
        Convolutions of each block. With 3, the last two have a shortcut.

    Raises
    ------
    ValueError
        For another depth, and for images that are too small.

    Notes
    -----
    Convolutions begin as partial identities, batch normalisation learns biases only,
    and logits are divided by 9. The paper trains it with SGD with Nesterov's momentum,
    batches of 1,024, and learning rates of the normalisation's biases that are 64 times
    the others: ``("*.norms.*.bias", {"lr": ...})`` in ``optimizer__param_groups``.
    ``widths=(128, 384, 512), depth=3`` is the paper's larger network.

    References
    ----------
    .. [1] K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
       arXiv:2404.00498.

    Examples
    --------
    >>> import torch
    >>> from skbsd.networks import SpeedNet
    >>> SpeedNet()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    # Factor of the logits, which keeps the first steps small.
    SCALE = 1 / 9

    def __init__(
        self,
        in_channels: int = 3,
        n_classes: int = 10,
        widths: Sequence[int] = (64, 256, 256),
        depth: int = 2,
    ):
        super().__init__()
        if depth not in (2, 3):
            raise ValueError(f"depth must be 2 or 3, got {depth!r}.")
        self.whitening = _Whitening(in_channels)
        sizes = [len(self.whitening.weight), *widths]
        self.blocks = nn.Sequential(
            *(_SpeedBlock(before, after, depth) for before, after in pairwise(sizes))
        )
        self.head = nn.Linear(sizes[-1], n_classes, bias=False)

    def initialize_from(self, x: Tensor) -> None:
        """Compute the whitening filters from images, deterministically.

        They are the eigenvectors of the second moments of 2x2 patches (the covariance,
        for standardised images), divided by the square roots of the eigenvalues, and
        the negatives of these vectors.

        Parameters
        ----------
        x : Tensor of shape (n, in_channels, height, width)
            Training images as the network sees them, without augmentation.
        """
        self.whitening.initialize_from(x)

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
        least = 2 ** len(self.blocks) + 1
        if min(x.shape[2:]) < least:
            raise ValueError(
                f"SpeedNet with {len(self.blocks)} blocks takes images of at least "
                f"{least} pixels a side, got {tuple(x.shape[2:])}. Pass fewer widths."
            )
        x = self.blocks(F.gelu(self.whitening(x)))
        return self.SCALE * self.head(x.amax(dim=(2, 3)))


def default_network(shape: Sequence[int], n_classes: int, **kwargs) -> nn.Module:
    """Choose a network from the shape of a sample.

    Parameters
    ----------
    shape : sequence of int
        (n_features,) of a row of a table, or (channels, height, width) of an image.
    n_classes : int
        Number of logits.
    **kwargs : dict
        Further arguments of the chosen network.

    Returns
    -------
    MLP or SmallResNet
        The residual network has half the width if the longer side of the images is less
        than 16 pixels.

    Raises
    ------
    ValueError
        If samples have another number of dimensions.

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
