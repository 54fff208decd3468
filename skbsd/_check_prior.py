"""Checks of labels and priors of beliefs."""

import math
from typing import Any

import torch
from torch import Tensor


def checked_labels(labels: Any, n_classes: int, device: Any) -> Tensor:
    """Return a copy of the labels on the device, or raise an error if invalid.

    Parameters
    ----------
    labels : Tensor or array-like of shape (n_samples,)
    n_classes : int
    device : torch.device, str or None
        None means the labels' own device.
    """
    labels = torch.as_tensor(labels)
    if labels.is_floating_point():
        raise ValueError(
            f"labels must be integers, got {labels.dtype}; encode them as indices "
            "of the classes."
        )
    labels = labels.to(device or labels.device, torch.int64, copy=True)
    if labels.ndim != 1:
        raise ValueError(
            f"labels must be one-dimensional, got shape {tuple(labels.shape)}."
        )
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, got {n_classes!r}.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
        raise ValueError(
            f"labels must lie in [0, {n_classes}), got values from "
            f"{labels.min().item()} to {labels.max().item()}; encode them as "
            "indices of the classes."
        )
    return labels


def check_prior(
    prior_strength: float, discount: float, prior_floor: float, dtype: torch.dtype
) -> None:
    """Raise ValueError if a prior is out of range, or does not fit into the store.

    Parameters
    ----------
    prior_strength, discount, prior_floor : float
    dtype : torch.dtype
        Type of the store.
    """
    largest = torch.finfo(dtype).max / 4
    if not prior_strength > 0:
        raise ValueError(
            f"prior_strength must lie in (0, inf], got {prior_strength!r}."
        )
    if prior_strength > largest and (
        dtype == torch.float16 or not math.isinf(prior_strength)
    ):
        raise ValueError(
            f"prior_strength={prior_strength!r} does not fit in a store of {dtype} "
            f"(at most {largest:g}); use infinity and float32 or float64."
        )
    if not 0 < discount <= 1:
        raise ValueError(f"discount must lie in (0, 1], got {discount!r}.")
    if not 0 < prior_floor < math.inf:
        raise ValueError(f"prior_floor must lie in (0, inf), got {prior_floor!r}.")
    if prior_floor >= prior_strength:
        raise ValueError(
            f"prior_floor={prior_floor!r} must be smaller than "
            f"prior_strength={prior_strength!r}, so that the label has the largest "
            "concentration."
        )
