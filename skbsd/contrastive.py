"""Contrastive learning in addition to self-distillation: settings and loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .augmentation import AUGMENTATIONS

__all__ = ["Contrastive", "contrastive_loss"]


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Settings of the contrastive loss of :class:`skbsd.BSDClassifier`.

    Every training batch is augmented twice: one view uses the estimator's own
    `augmentation`, the other the one given here. The mean of both predictions updates
    the posterior, whose mean is the target of both views. The contrastive loss pulls
    the two embeddings of a sample together and pushes those of different samples apart.
    It does not use labels, so wrong labels do not affect it [1]_ [2]_.

    Parameters
    ----------
    weight : float, default=0.2
        Weight of the contrastive loss in the sum, in [0, inf). With 0 there are two
        views, but no contrastive loss and no projection. In trainings of 200 epochs, 1
        is usual [2]_; in short trainings that is too much.
    temperature : float, default=0.25
        Divides the cosines between embeddings, in (0, inf).
    n_components : int, default=128
        Dimension of the projected embeddings.
    layer : str, default=None
        Name of the module, as in `named_modules`, whose input is the embedding. None is
        the :class:`torch.nn.Linear` with one output per class that runs last. The
        module must not modify its input in place.
    augmentation : {"strong", "flip-crop"} or callable, default="strong"
        Augmentation of the second view. As for the estimator, a callable receives the
        batch as it was given to `fit` and returns one of the same type and shape.
    supervised : bool, default=False
        Also pull different samples together, in proportion to the agreement of their
        posteriors [3]_.

    Raises
    ------
    ValueError
        For a value out of its range.

    Notes
    -----
    The projection is a linear layer of the embedding's width, a ReLU and a second
    linear layer. It is used for training only: it is neither part of the network nor of
    saved models. The estimator keeps it for the next call of `partial_fit`.

    References
    ----------
    .. [1] T. Chen et al., "A Simple Framework for Contrastive Learning of Visual
       Representations", ICML 2020.
    .. [2] Z. Huang, J. Zhang, H. Shan, "Twin Contrastive Learning with Noisy Labels",
       CVPR 2023, whose temperature is the default.
    .. [3] P. Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.

    Examples
    --------
    >>> from skbsd.contrastive import Contrastive
    >>> Contrastive(weight=0.5)
    Contrastive(weight=0.5, temperature=0.25, n_components=128, layer=None, ...)
    """

    weight: float = 0.2
    temperature: float = 0.25
    n_components: int = 128
    layer: str | None = None
    augmentation: str | Callable[[Tensor], Tensor] = "strong"
    supervised: bool = False

    def __post_init__(self):
        given: dict[str, Any] = vars(self)
        weight, temperature = given["weight"], given["temperature"]
        if not (isinstance(weight, Real) and 0 <= float(weight) < math.inf):
            raise ValueError(f"weight must lie in [0, inf), got {weight!r}.")
        if not (isinstance(temperature, Real) and 0 < float(temperature) < math.inf):
            raise ValueError(f"temperature must lie in (0, inf), got {temperature!r}.")
        if not (isinstance(given["n_components"], Integral) and self.n_components > 0):
            raise ValueError(
                "n_components must be a whole number of at least 1, got "
                f"{self.n_components!r}."
            )
        is_name = isinstance(self.augmentation, str) and (
            self.augmentation in AUGMENTATIONS
        )
        if not (is_name or callable(self.augmentation)):
            raise ValueError(
                f"augmentation must be one of {sorted(AUGMENTATIONS)} or a callable, "
                f"got {self.augmentation!r}."
            )


def contrastive_loss(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    agreement: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Contrast the embeddings of two views of a batch.

    Parameters
    ----------
    first, second : Tensor of shape (n, d)
        Row i of both belongs to the same sample. They are normalised to unit length.
    temperature : float
        Divides the cosines between embeddings: T, in (0, inf).
    agreement : Tensor of shape (n, n), default=None
        Non-negative similarity of the classes of two samples. None is the identity.
    weight : Tensor of shape (n,), default=None
        Weights of the samples as anchors.

    Returns
    -------
    Tensor of shape ()
        The mean over the 2n embeddings, each loss times its sample's weight.

    Notes
    -----
    Let z be the 2n embeddings of both views, normalised to unit length,
    :math:`s_{ij} = z_i \cdot z_j / T`, and :math:`a_{ij}` the agreement of the samples
    of the views i and j. The loss is

    .. math:: -\frac{1}{2n} \sum_i \frac{\sum_{j \ne i} a_{ij} \log p_{ij}}
              {\sum_{j \ne i} a_{ij}}, \qquad
              p_{ij} = \frac{e^{s_{ij}}}{\sum_{k \ne i} e^{s_{ik}}}.

    With the identity this is NT-Xent, equation 1 of SimCLR [1]_; with 1 for samples of
    the same class, the supervised contrastive loss, equation 2 of [2]_.

    References
    ----------
    .. [1] T. Chen et al., "A Simple Framework for Contrastive Learning of Visual
       Representations", ICML 2020.
    .. [2] P. Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> from skbsd.contrastive import contrastive_loss
    >>> views = torch.eye(2)
    >>> contrastive_loss(views, views, temperature=1.0)
    tensor(0.5514)
    """
    n = len(first)
    wide = torch.promote_types(first.dtype, torch.float32)
    embeddings = F.normalize(torch.cat([first, second]).to(wide), dim=1)
    similarity = embeddings @ embeddings.T / temperature
    itself = torch.eye(2 * n, dtype=torch.bool, device=first.device)
    log_proba = similarity.masked_fill(itself, -torch.inf).log_softmax(dim=1)
    if agreement is None:
        # The other view of each embedding.
        partner = torch.arange(2 * n, device=first.device).roll(n)
        losses = -log_proba.gather(1, partner.unsqueeze(1)).squeeze(1)
    else:
        positive = agreement.to(wide).repeat(2, 2).masked_fill(itself, 0)
        positive = positive / positive.sum(dim=1, keepdim=True)
        # Replace -inf on the diagonal, whose weight is zero.
        losses = -(positive * log_proba.masked_fill(itself, 0)).sum(dim=1)
    if weight is None:
        return losses.mean()
    return (losses * weight.repeat(2)).mean()
