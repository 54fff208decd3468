"""An HTML page of elements with escaped text, and writing it to a file."""

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

# The page may fetch nothing, whatever a label or a parameter contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# Names of more letters get columns of a least width.
_SHORT_NAME = 16


def element(tag: str, *children: Element | str, **attributes: str) -> Element:
    """Make an element.

    Parameters
    ----------
    tag : str
    *children : Element or str
        The contents. Text is escaped when the page is written.
    **attributes : str
        ``class_="x"`` is the attribute `class`, ``aria_label`` is `aria-label`.

    Returns
    -------
    Element
    """
    node = Element(
        tag, {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items()}
    )
    for child in children:
        if isinstance(child, Element):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + child
        else:
            node.text = (node.text or "") + child
    return node


def percent(share: float) -> str:
    """Format a fraction."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def percents(shares: Iterable[float]) -> list[str]:
    """Format fractions."""
    return list(map(percent, shares))


def section(title: str, *children: Element, **attributes: str) -> Element:
    """Make a section with a heading."""
    return element("section", element("h2", title), *children, **attributes)


def name_kind(names: Iterable[str]) -> str:
    """Return the kind of a column of names: long ones are not squeezed."""
    longest = max((len(name) for name in names), default=0)
    return "name" if longest > _SHORT_NAME else ""


def figure(label: str, caption: str, content: Element) -> Element:
    """Put a caption above a table or drawing, which scrolls if it is too wide."""
    caption_above = element("figcaption", caption)
    return element("figure", caption_above, scrolling(label, content))


def scrolling(label: str, content: Element) -> Element:
    """Let content that is wider than the screen scroll, also with the keyboard."""
    return element(
        "div", content, class_="scroll", tabindex="0", role="region", aria_label=label
    )


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    kinds: Mapping[str, str],
) -> Element:
    """Make a table of text, some columns of which are of a kind.

    Kinds are "number", "name" for long names and "long" for sentences.
    """
    style = [{"class_": kinds[name]} if kinds.get(name) else {} for name in header]

    def line(tag, cells, **attributes):
        return element(
            "tr",
            *(
                element(tag, cell, **attributes, **s)
                for cell, s in zip(cells, style, strict=True)
            ),
        )

    body = element("tbody", *(line("td", cells) for cells in rows))
    return element("table", element("thead", line("th", header, scope="col")), body)


def facts(pairs: Iterable[tuple[str, str]], *, code: bool = False) -> Element:
    """Make a table of names and values, in a monospaced font for code."""
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in pairs
    ]
    return element(
        "table", element("tbody", *rows), class_="facts code" if code else "facts"
    )


def page(title: str, *children: Element) -> str:
    """Return a document that needs no other file."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    document = element("html", head, element("body", *children), lang="en")
    text = tostring(document, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
