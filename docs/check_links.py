"""Check the links within the built site.

Every relative `href`, `src` and `srcset` in the HTML must name a file of the site, and
every `#fragment` an `id` or `name` in the target page. Nothing is fetched: links to
other sites are not checked, but a page must not load a script, style sheet or image
from another site. The script prints wrong links and the number of all links, and exits
with status 1 if any link is wrong.

    python docs/check_links.py docs/_build/html
"""

import argparse
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

# Relations of a `link` element that a browser fetches automatically.
_FETCHED = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}


class Link(NamedTuple):
    """A link, its line, and whether the browser loads its target."""

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
        """Record the links and anchors of a tag."""
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
    """Return a description of what is wrong with a link.

    Parameters
    ----------
    link : Link
    file : Path
        The page that contains it.
    root : Path
        Folder of the site.

    Returns
    -------
    str or None
        None if the link is right.
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
            return "names a file that does not exist"
    fragment = unquote(parts.fragment)
    # "#" and "#top" are the top of any page.
    if fragment in ("", "top") or target.suffix != ".html":
        return None
    if fragment not in read(target).anchors:
        return "names an anchor that does not exist"
    return None


def main() -> int:
    """Check the site, print wrong links, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="folder of the built HTML")
    root = parser.parse_args().site.resolve()
    # HTML files in _static are templates of the theme, not pages.
    files = sorted(set(root.rglob("*.html")) - set((root / "_static").rglob("*")))
    if not files:
        print(f"{root} contains no HTML; build the site first: make docs")
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
