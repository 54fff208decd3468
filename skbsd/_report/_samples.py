"""Single samples: as images, or as table rows with their most unusual features."""

import base64
import io
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skorch.utils import is_dataset, to_numpy
from torch import Tensor

from .._check_inputs import are_several
from .._items import as_dataset
from ..display._images import as_images
from ._page import element, figure, table

# Number of samples shown as images, or as rows, and of features shown for each row.
N_SHOWN, _N_ROWS, _N_FEATURES = 24, 12, 3
# Pixels of a side: images above the first are reduced, those below the second are
# enlarged with sharp edges.
_LARGEST, _SMALL = 256, 64


def samples(
    label: str,
    caption: str,
    X: Any,
    rows: NDArray,
    columns: Mapping[str, list[str]],
    image_shape: tuple[int, ...] | None,
) -> Element:
    """Show samples, each with two labels that contradict each other.

    Parameters
    ----------
    label, caption : str
    X : array-like, DataFrame, Tensor, Dataset, sparse matrix or None
    rows : ndarray of int of shape (n,)
        Rows of X.
    columns : mapping from str to list of str of length n
        The given label, its weight, the other label, and its weight.
    image_shape : tuple of int or None
        Shape of the images, if X is a table of flattened images.

    Returns
    -------
    Element
        A figure.
    """
    images = None if X is None else as_images(X, rows, image_shape)
    if images is not None:
        tiles = [
            _tile(tuple(columns), *sample)
            for sample in zip(images, rows, *columns.values(), strict=True)
        ]
        grid = element("ul", *tiles, class_="samples")
        return element("figure", element("figcaption", caption), grid)
    rows = rows[:_N_ROWS]
    header, cells = ["Row", *columns], [[str(row) for row in rows], *columns.values()]
    kinds = dict.fromkeys(header[0:5:2], "number")
    unusual = None if X is None else _unusual_features(X, rows)
    if unusual is not None:
        header.append("Most unusual features")
        kinds[header[-1]] = "long"
        cells.append(unusual)
        caption += (
            " For each, the features farthest from their means are shown, with the "
            "distance in standard deviations σ."
        )
    # The columns passed in may be longer than the rows shown.
    content = table(header, zip(*cells, strict=False), kinds)
    return figure(label, caption, content)


def _tile(names, image, row, given, given_weight, other, other_weight) -> Element:
    alt = f"Row {row}: {names[0].lower()} {given}, {names[2].lower()} {other}"
    kind = {"class_": "pixels"} if max(image.shape[:2]) < _SMALL else {}
    return element(
        "li",
        element("div", element("img", src=_png(image), alt=alt, **kind)),
        element("p", f"{names[0]} ", element("strong", given)),
        element("p", f"{names[2]} ", element("strong", other)),
        element("p", f"{other_weight}, row\N{NO-BREAK SPACE}{row}", class_="row"),
    )


def _png(image: NDArray) -> str:
    """Encode an image in [0, 1] as a data URI."""
    picture = Image.fromarray(np.round(255 * image).astype(np.uint8))
    picture.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _unusual_features(X, rows: NDArray) -> list[str] | None:
    """Name the features of samples that are farthest from their means.

    X must be a table of numbers, or a DataFrame, whose numeric columns are used. Of
    other kinds of X, there are none.
    """
    if is_dataset(as_dataset(X)) or are_several(X):
        return None
    numbers = X.select_dtypes("number") if hasattr(X, "select_dtypes") else X
    values = to_numpy(X) if isinstance(X, Tensor) else np.asarray(numbers)
    if values.ndim != 2 or values.dtype.kind not in "biuf" or not values.size:
        return None
    masked = np.ma.masked_invalid(values)
    distance = ((masked[rows] - masked.mean(axis=0)) / masked.std(axis=0)).filled(0)
    names = getattr(numbers, "columns", [f"x{i}" for i in range(values.shape[1])])
    farthest = np.argsort(-np.abs(distance), axis=1, kind="stable")[:, :_N_FEATURES]
    return [
        "; ".join(
            f"{names[j]} {_number(values[row, j], '.4g')}"
            f" ({_number(distance[i, j], '+.1f')}\N{NO-BREAK SPACE}σ)"
            for j in farthest[i]
            if distance[i, j]
        )
        for i, row in enumerate(rows)
    ]


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "\N{MINUS SIGN}")
