"""Shared by the displays: the styles of lines, and the check for matplotlib."""

# Colours of Okabe and Ito, ordered so that neighbours differ in lightness too.
# Marker and dash differ as well, so that the curves can be told apart in grey.
STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#56B4E9", "v", "-"),
    ("#E69F00", "P", "--"),
)


def require_matplotlib(caller: str) -> None:
    """Raise an ImportError that says how to install matplotlib if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{caller} requires matplotlib, which is not installed. Install it with "
            "`pip install matplotlib`, or together with this package: run "
            '`pip install ".[plot]"` in the folder that holds its pyproject.toml.'
        ) from error


def next_style(ax) -> dict:
    """Return the first style whose colour and marker no line of `ax` has."""
    from matplotlib.colors import to_hex

    taken = {to_hex(line.get_color()).upper() for line in ax.lines}
    taken |= {line.get_marker() for line in ax.lines}
    free = [style for style in STYLES if taken.isdisjoint(style[:2])]
    keys = ("color", "marker", "linestyle")
    return dict(zip(keys, (free or STYLES)[0], strict=True))
