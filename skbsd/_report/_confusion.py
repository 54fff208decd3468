"""The confusion matrix: as a table, as a map, and its most frequent confusions."""

from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ._page import element, name_kind, percent, table

# Number of the most frequent confusions that are listed.
_N_LISTED = 12
# Side of a cell of the map, width of a letter, least margin; in units of the drawing.
_CELL, _LETTER, _MARGIN = 12, 4.8, 60
# Letters of a class's name on the map.
_LONGEST = 14


def _shares(counts: NDArray) -> NDArray:
    """Divide each row by its sum; rows without samples stay zero."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _kind(i: int, j: int) -> str:
    return "right" if i == j else "wrong"


def confusion_table(counts: NDArray, names: list[str]) -> Element:
    """Make a table of numbers on coloured ground.

    Parameters
    ----------
    counts : ndarray of shape (n_classes, n_classes)
        Samples by true class (row) and predicted class.
    names : list of str of length n_classes

    Returns
    -------
    Element
    """
    # Half the colour at most: numbers stay legible. The root shows small shares too.
    strength = 0.5 * np.sqrt(_shares(counts))

    def cell(i, j):
        if not counts[i, j]:
            return element("td", "0", class_="zero")
        style = f"--share: {strength[i, j]:.2f}"
        return element("td", f"{counts[i, j]:,}", class_=_kind(i, j), style=style)

    columns = range(len(names))
    corner = element("td", "predicted →\ntrue ↓", class_="axis")
    head = [element("th", name, scope="col") for name in names]
    kind = name_kind(names)
    style = {"class_": kind} if kind else {}
    body = [
        element(
            "tr",
            element("th", name, scope="row", **style),
            *(cell(i, j) for j in columns),
        )
        for i, name in enumerate(names)
    ]
    return element(
        "table",
        element("thead", element("tr", corner, *head)),
        element("tbody", *body),
        class_="confusion",
    )


def confusion_map(counts: NDArray, names: list[str]) -> Element:
    """Draw the matrix as a map, whose cells show their numbers in a tooltip.

    Parameters
    ----------
    counts, names
        As in :func:`confusion_table`.

    Returns
    -------
    Element
    """
    shares = _shares(counts)
    side = _CELL * len(names)
    short = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}…" for n in names]
    margin = max(_LETTER * max(map(len, short)) + 8, _MARGIN)
    size = margin + side + 4

    def text(content, x, y, anchor, turn=0, **attributes):
        turned = {"transform": f"rotate({turn} {x:g} {y:g})"} if turn else {}
        place = {"x": f"{x:g}", "y": f"{y:g}", "text_anchor": anchor}
        return element("text", content, **place, **turned, **attributes)

    def cell(i, j):
        title = f"true {names[i]}, predicted {names[j]}: {counts[i, j]:,}"
        return element(
            "rect",
            element("title", title),
            x=f"{margin + _CELL * j:g}",
            y=f"{margin + _CELL * i:g}",
            width=str(_CELL),
            height=str(_CELL),
            opacity=f"{np.sqrt(shares[i, j]):.2f}",
            class_=_kind(i, j),
        )

    middles = margin + _CELL * (np.arange(len(names)) + 0.5) + 2.5
    ground = {"width": str(side), "height": str(side), "class_": "ground"}
    n_right, n = counts.trace(), counts.sum()
    return element(
        "svg",
        text("predicted →", margin - 6, margin - 16, "end", class_="axis"),
        text("true ↓", margin - 6, margin - 6, "end", class_="axis"),
        *(text(n, margin - 4, m, "end") for n, m in zip(short, middles, strict=True)),
        *(
            text(n, m, margin - 4, "start", -90)
            for n, m in zip(short, middles, strict=True)
        ),
        element("rect", x=f"{margin:g}", y=f"{margin:g}", **ground),
        *(cell(i, j) for i, j in np.argwhere(counts)),
        viewBox=f"0 0 {size:g} {size:g}",
        role="img",
        aria_label=(
            f"Confusion matrix of {len(names)} classes: {n_right:,} of {n:,} samples "
            "lie on the diagonal."
        ),
        class_="map",
        # Letters of 6.4 to 11.2 pixels.
        style=f"min-width: {0.8 * size:.0f}px; max-width: {1.4 * size:.0f}px",
    )


def frequent_confusions(counts: NDArray, names: list[str]) -> Element:
    """List the largest cells off the diagonal.

    Parameters
    ----------
    counts, names
        As in :func:`confusion_table`.

    Returns
    -------
    Element
    """
    shares, off = _shares(counts), counts * (1 - np.eye(len(names), dtype=int))
    largest = np.argsort(-off, axis=None, kind="stable")[:_N_LISTED]
    rows = [
        (names[i], names[j], f"{off[i, j]:,}", percent(shares[i, j]))
        for i, j in zip(*np.unravel_index(largest, off.shape), strict=True)
        if off[i, j]
    ]
    header = ("True", "Predicted", "Samples", "Share")
    kinds = [name_kind(name for row in rows for name in row[:2])] * 2 + ["number"] * 2
    return table(header, rows, dict(zip(header, kinds, strict=True)))
