"""The check of the site's links finds wrong links, and accepts right ones."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "check_links.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="docs are not here")

RIGHT = """<html><head><link rel="stylesheet" href="style.css"></head>
<body id="top-of-it">
<a href="sub/page.html#part">a</a> <a href="sub/">b</a> <a href="#top-of-it">c</a>
<a href="#">d</a> <a href="https://example.org/x#y">e</a> <a href="mailto:a@b.org">f</a>
<img src="a%20b.png" srcset="a%20b.png 1x, a%20b.png 2x" alt="">
<img src="data:image/png;base64,AA==" srcset="data:image/png;base64,AA== 1x" alt="">
</body></html>"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(RIGHT)
    (tmp_path / "style.css").write_text("")
    (tmp_path / "a b.png").write_bytes(b"")
    (tmp_path / "sub" / "page.html").write_text('<p id="part"></p><a name="old"></a>')
    (tmp_path / "sub" / "index.html").write_text('<a href="../index.html">up</a>')
    return tmp_path


def check(site):
    command = [sys.executable, SCRIPT, site]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_all_right(site):
    assert check(site) == (0, ["12 links, 0 of them wrong"])


@pytest.mark.parametrize(
    ("tag", "what"),
    [
        ('<a href="none.html">', "none.html names a file that does not exist"),
        ('<a href="sub/page.html#no">', "page.html#no names an anchor that does not"),
        ('<a href="../../etc/passwd">', "leaves the site"),
        ('<img src="none.png">', "none.png names a file that does not exist"),
        ('<img srcset="../a%20b.png 1x, no.png 2x">', "no.png names a file that"),
        ('<script src="https://a.org/x.js">', "x.js is loaded from another site"),
        ('<img src="//a.org/x.png">', "x.png is loaded from another site"),
        ('<link rel="preload stylesheet" href="https://a.org/x">', "loaded from"),
        ('<link rel="icon" href="https://a.org/x">', "loaded from another site"),
        ('<video src="https://a.org/x">', "loaded from another site"),
        ('<object data="https://a.org/x">', "loaded from another site"),
    ],
)
def test_wrong(site, tag, what):
    page = site / "sub" / "page.html"
    page.write_text(f"{page.read_text()}\n{tag}")
    if tag.startswith('<a href="sub'):  # from the front page
        front = site / "index.html"
        page.write_text('<p id="part"></p>')
        front.write_text(f"{front.read_text()}\n{tag}")
    status, lines = check(site)
    assert status == 1
    assert len(lines) == 2
    assert what in lines[0]
    assert lines[1].endswith("1 of them wrong")


def test_nothing_built(tmp_path):
    status, (line,) = check(tmp_path)
    assert status == 1
    assert "build the site first: make docs" in line
