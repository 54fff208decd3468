"""A histogram below a diagram, within the area of the diagram's axes."""

# The histogram, and its distance to the diagram, relative to the diagram's side.
HISTOGRAM_LABEL = "skbsd-confidence-histogram"
_HEIGHT, _GAP = 0.2, 0.04
HEIGHT_WITH_HISTOGRAM = 1 + _GAP + _HEIGHT


def find_histogram(ax):
    """Return the axes of the histogram below `ax`, if it has one."""
    for child in ax.child_axes:
        if child.get_label() == HISTOGRAM_LABEL:
            return child
    return None


def add_histogram(ax):
    """Give the lower part of the area of `ax` to a histogram, return its axes."""
    # An inset is drawn, cleared and laid out with its axes: every layout engine
    # leaves room for its labels, which it does not for axes of axes_grid1. Below,
    # not above: a title the user gives to `ax` stays on top of everything.
    bounds = (0, -_GAP - _HEIGHT, 1, _HEIGHT)
    histogram_ax = ax.inset_axes(bounds, sharex=ax, label=HISTOGRAM_LABEL)
    histogram_ax.set_ylabel("Samples")
    histogram_ax.margins(y=0.15)
    ax.set_axes_locator(_AboveHistogram(ax))
    ax.tick_params(labelbottom=False)
    ax.set_xlabel("")
    return histogram_ax


class _AboveHistogram:
    """Locator of axes that leaves the histogram below them within their area."""

    def __init__(self, ax):
        self.ax = ax
        self.outer = ax.get_axes_locator()

    def get_subplotspec(self):
        """Return the cell of the axes: tight_layout asks the locator for it."""
        return (self.outer or self.ax).get_subplotspec()

    def __call__(self, ax, renderer):
        """Return the place of `ax`."""
        outer = self.outer
        area = outer(ax, renderer) if outer else ax.get_position(original=True)
        if find_histogram(ax) is None:  # the axes were cleared
            return area
        figure, total = ax.figure.bbox, HEIGHT_WITH_HISTOGRAM
        side = min(area.width * figure.width, area.height * figure.height / total)
        width, height = side / figure.width, side / figure.height
        x0 = area.x0 + (area.width - width) / 2
        y1 = area.y1 - (area.height - height * total) / 2
        return type(area).from_extents(x0, y1 - height, x0 + width, y1)


def format_percent(share, position):
    """Format a tick of the histogram."""
    return f"{100 * share:.3g} %"
