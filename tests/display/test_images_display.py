import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.utils.data import Dataset, TensorDataset

from skbsd.display._images import as_images

GREY = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
SHOWN = np.moveaxis(COLOUR, 1, -1)[[4, 1, 1]] / 255


class Pictures(Dataset):
    """Items with the channels last, as of PIL."""

    def __len__(self):
        return len(COLOUR)

    def __getitem__(self, row):
        return np.moveaxis(COLOUR[row], 0, -1), 0


@pytest.mark.parametrize(
    ("X", "image_shape"),
    [
        (GREY, None),
        (GREY[:, np.newaxis], None),
        (GREY[..., np.newaxis], None),
        (torch.from_numpy(GREY), None),
        (GREY.reshape(6, 20), (1, 5, 4)),
        (GREY.reshape(6, 20), [5, 4]),
        (torch.from_numpy(GREY).reshape(6, 20), (1, 5, 4)),
        (pd.DataFrame(GREY.reshape(6, 20)), (1, 5, 4)),
        (GREY.reshape(6, 20).tolist(), (1, 5, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_grey(X, image_shape):
    images = as_images(X, [4, 1, 1], image_shape)
    assert images.shape == (3, 5, 4)
    expected = GREY[[4, 1, 1]].astype(float)
    if isinstance(X, list | pd.DataFrame) and np.asarray(X).dtype != np.uint8:
        expected = (expected - expected.min()) / np.ptp(expected)
    else:
        expected /= 255
    assert_allclose(images, expected)


@pytest.mark.parametrize(
    ("X", "image_shape"),
    [
        (COLOUR, None),
        (np.moveaxis(COLOUR, 1, -1), None),
        (torch.from_numpy(COLOUR), None),
        (COLOUR.reshape(6, -1), (3, 5, 4)),
        (COLOUR, (3, 5, 4)),
        (np.moveaxis(COLOUR, 1, -1).reshape(6, -1), (5, 4, 3)),
        (np.concatenate([COLOUR, COLOUR[:, :1]], axis=1), None),
        (TensorDataset(torch.from_numpy(COLOUR), torch.zeros(6)), None),
        (Pictures(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_colour(X, image_shape):
    assert_allclose(as_images(X, [4, 1, 1], image_shape), SHOWN)


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((6, 20)),
        pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}),
        np.zeros((6, 2, 5, 5)),
        TensorDataset(torch.zeros(6, 3), torch.zeros(6)),
    ],
    ids=["table", "frame", "two channels", "dataset"],
)
def test_none_where_they_are_no_images(X):
    assert as_images(X, [0, 1]) is None


def test_range():
    unit = GREY / 255
    assert_array_equal(as_images(unit, [2]), unit[[2]])
    assert as_images(unit.astype(np.float32), [2]).dtype == np.float64

    standardised = (COLOUR - 120.0) / 60
    images = as_images(standardised, [0, 3])
    assert (images.min(), images.max()) == (0, 1)
    low, high = standardised[[0, 3]].min(), standardised[[0, 3]].max()
    expected = (np.moveaxis(standardised[[0, 3]], 1, -1) - low) / (high - low)
    assert_allclose(images, expected)

    half = torch.from_numpy(standardised).to(torch.bfloat16)
    assert_allclose(as_images(half, [0, 3]), images, atol=2e-2)
    assert_array_equal(as_images(np.full((2, 3, 3), 7.0), [0, 1]), np.zeros((2, 3, 3)))
    assert_array_equal(as_images(GREY > 99, [0]), (GREY > 99)[[0]])


def test_input_is_left_alone():
    X = GREY.astype(float)
    as_images(X, [0, 1])[:] = -1
    assert_array_equal(X, GREY)
    unit = X / 255
    before = unit.copy()
    as_images(unit, np.arange(6))[:] = -1
    assert_array_equal(unit, before)


def test_shape_that_does_not_fit():
    with pytest.raises(ValueError, match=r"shape \(20,\).*image_shape=\(1, 5, 5\)"):
        as_images(GREY.reshape(6, 20), [0], (1, 5, 5))
    with pytest.raises(IndexError):
        as_images(torch.from_numpy(GREY), [6])
