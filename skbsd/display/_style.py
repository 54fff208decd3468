"""What the displays share: how lines look, and where matplotlib comes from."""

# Colours of Okabe and Ito, ordered so that neighbours differ in lightness too.
# Marker and dash differ as well: the curves stay apart in grey.
STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#56B4E9", "v", "-"),
    ("#E69F00", "P", "--"),
)


def require_matplotlib(caller: str) -> None:
    """Raise an ImportError that names the extra if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{caller} requires matplotlib. Install it: `pip install "skbsd[plot]"`.'
        ) from error


def next_style(ax) -> dict:
    """Return the first line style of which `ax` holds neither colour nor marker."""
    from matplotlib.colors import to_hex

    taken = {to_hex(line.get_color()).upper() for line in ax.lines}
    taken |= {line.get_marker() for line in ax.lines}
    free = [style for style in STYLES if taken.isdisjoint(style[:2])]
    keys = ("color", "marker", "linestyle")
    return dict(zip(keys, (free or STYLES)[0], strict=True))
