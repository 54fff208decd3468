"""Check that what the built site links to is there.

Every relative `href`, `src` and `srcset` in the HTML must name a file of the site, and
every `#fragment` an `id` or `name` in the page that it points into. Nothing is fetched:
links to other sites are left alone, but a page must not load a script, style sheet or
image from one. Prints what is missing and exits with 1, or says how many links are
right.

    python docs/check_links.py docs/_build/html
"""

import argparse
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

# The relations of a `link` that a browser fetches of itself.
_FETCHED = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}


class Link(NamedTuple):
    """A link, and where it stands."""

    line: int
    target: str
    loads: bool


class Page(HTMLParser):
    """Links and anchors of a page.

    Parameters
    ----------
    file : Path

    Attributes
    ----------
    links : list of Link
    anchors : set of str
    """

    def __init__(self, file: Path):
        super().__init__()
        self.links: list[Link] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        """Take note of a tag's links and anchors."""
        line = self.getpos()[0]
        relations = set((dict(attrs).get("rel") or "").split())
        for name, value in attrs:
            if not value:
                continue
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)
            elif name == "href":
                loads = tag == "link" and bool(relations & _FETCHED)
                self.links.append(Link(line, value, loads))
            elif name in ("src", "poster") or (tag, name) == ("object", "data"):
                self.links.append(Link(line, value, True))
            elif name == "srcset" and not value.startswith("data:"):
                parts = (part.split()[0] for part in value.split(",") if part.split())
                self.links += [Link(line, part, True) for part in parts]


@cache
def read(file: Path) -> Page:
    """Return a page, parsed once.

    Parameters
    ----------
    file : Path

    Returns
    -------
    Page
    """
    return Page(file)


def problem(link: Link, file: Path, root: Path) -> str | None:
    """Say what is wrong with a link.

    Parameters
    ----------
    link : Link
    file : Path
        The page that it stands in.
    root : Path
        Folder of the site.

    Returns
    -------
    str or None
        None where it is right.
    """
    parts = urlsplit(link.target)
    if parts.netloc:
        return "is loaded from another site" if link.loads else None
    if parts.scheme:  # mailto:, data:
        return None
    target = file
    if parts.path:
        base = root if parts.path.startswith("/") else file.parent
        target = (base / unquote(parts.path).lstrip("/")).resolve()
        if target.is_dir():
            target /= "index.html"
        if not target.is_relative_to(root):
            return "leaves the site"
        if not target.is_file():
            return "names a file that is not there"
    fragment = unquote(parts.fragment)
    # "#" and "#top" are the top of any page.
    if fragment in ("", "top") or target.suffix != ".html":
        return None
    if fragment not in read(target).anchors:
        return "names an anchor that is not there"
    return None


def main() -> int:
    """Check the site, print what is wrong, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="folder of the built HTML")
    root = parser.parse_args().site.resolve()
    # Of what lies in _static, only the theme's templates end so.
    files = sorted(set(root.rglob("*.html")) - set((root / "_static").rglob("*")))
    if not files:
        print(f"{root} holds no HTML; build the site first: make docs")
        return 1
    links = [(file, link) for file in files for link in read(file).links]
    wrong = [
        f"{file.relative_to(root)}:{link.line}: {link.target} {what}"
        for file, link in links
        if (what := problem(link, file, root))
    ]
    print(*wrong, f"{len(links):,} links, {len(wrong)} of them wrong", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
