"""From rows of X to images that can be shown."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import _safe_indexing
from skorch.utils import is_dataset

from .._check_inputs import CHANNELS, are_several
from .._items import as_dataset, inputs_of
from .._structure import leaves


def as_images(X, rows, image_shape=None) -> NDArray[np.floating] | None:
    """Return some samples as images that can be shown, if images are what they are.

    Parameters
    ----------
    X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
        Images of shape (n_samples, height, width) or (n_samples, channels, height,
        width), also with the channels last; a table of flattened images; a Dataset of
        pairs (image, label). Of several inputs, the first that is of images.
    rows : array-like of int of shape (n_rows,)
        Which samples.
    image_shape : tuple of (channels, height, width) or (height, width), default=None
        Shape of the images that the rows of a table are.

    Returns
    -------
    ndarray of shape (n_rows, height, width) or (n_rows, height, width, 3), or None
        Grey or colour, in [0, 1]. None for a table without `image_shape`, and for
        images of other than 1, 3 or 4 channels. A fourth is left out.

    Raises
    ------
    ValueError
        If `image_shape` does not agree with X.

    Notes
    -----
    uint8 is divided by 255, and floats within [0, 1] are taken as they are. Of other
    numbers, such as of standardised images, the least among the rows becomes 0 and the
    largest 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skbsd.display._images import as_images
    >>> X, _ = load_digits(return_X_y=True)
    >>> as_images(X, [0, 1]) is None
    True
    >>> images = as_images(X, [0, 1], image_shape=(1, 8, 8))
    >>> images.shape, images.max()
    ((2, 8, 8), np.float64(1.0))
    """
    samples = _take(as_dataset(X), np.asarray(rows, dtype=int))
    if image_shape is not None and samples.ndim in (2, 4):
        shape = (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)
        if math.prod(samples.shape[1:]) != math.prod(shape):
            raise ValueError(
                f"X has samples of shape {samples.shape[1:]}, which image_shape="
                f"{tuple(image_shape)} does not fit; expected (channels, height, "
                "width) of one of them."
            )
        samples = samples.reshape(len(samples), *shape)
    if samples.ndim == 4:
        if samples.shape[1] not in CHANNELS:
            samples = np.moveaxis(samples, -1, 1)
        if samples.shape[1] not in CHANNELS:
            return None
        grey = samples.shape[1] == 1
        samples = samples[:, 0] if grey else np.moveaxis(samples[:, :3], 1, -1)
    elif samples.ndim != 3:
        return None
    return _to_unit_range(samples)


def _take(X, rows: NDArray) -> NDArray:
    """Return some rows as an array; of several inputs, those of the first images."""
    if is_dataset(X):
        items = [inputs_of(X[int(row)]) for row in rows]
        return np.stack([_as_array(_first_image(item, n_dims=3)) for item in items])
    if are_several(X):
        X = _first_image(X, n_dims=4)
    if isinstance(X, torch.Tensor):
        return _as_array(X[torch.as_tensor(rows, device=X.device)])
    taken = _safe_indexing(X, rows)
    return taken.toarray() if sparse.issparse(taken) else np.asarray(taken)


def _first_image(x, n_dims: int):
    """Return the first of several inputs that is of images, or the first of all."""
    several = leaves(x)
    shown = (leaf for leaf in several if len(getattr(leaf, "shape", ())) == n_dims)
    return next(shown, several[0])


def _as_array(values) -> NDArray:
    """Return a Tensor, or a picture of PIL, as an array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _to_unit_range(images: NDArray) -> NDArray[np.floating]:
    if images.dtype == np.uint8:
        return images / 255
    images = images.astype(np.float64)
    low, high = images.min(initial=np.inf), images.max(initial=-np.inf)
    if low >= 0 and high <= 1:
        return images
    return (images - low) / ((high - low) or 1)
