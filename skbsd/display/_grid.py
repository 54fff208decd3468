"""Several axes in the place of one."""


def divide(figure, ax, n_rows: int, n_cols: int, **kwargs):
    """Return a grid of a figure, or in the place of some axes, which it empties.

    Parameters
    ----------
    figure : matplotlib Figure or SubFigure
    ax : matplotlib Axes or None
        Of this figure.
    n_rows, n_cols : int
    **kwargs : dict
        Passed to the grid, such as `height_ratios`.

    Returns
    -------
    matplotlib GridSpec or GridSpecFromSubplotSpec
    """
    if ax is None:
        return figure.add_gridspec(n_rows, n_cols, **kwargs)
    ax.set_axis_off()
    cell = ax.get_subplotspec()
    if cell is not None:
        return cell.subgridspec(n_rows, n_cols, **kwargs)
    box = ax.get_position()  # axes that were put somewhere by hand
    sides = {"left": box.x0, "right": box.x1, "bottom": box.y0, "top": box.y1}
    return figure.add_gridspec(n_rows, n_cols, **sides, **kwargs)
