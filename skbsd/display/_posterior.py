"""What a network came to believe of some of its training samples."""

from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from .._checks import check_training_X, fitted_classifier
from ..label_noise import label_quality
from ._grid import divide
from ._images import as_images
from ._style import STYLES, require_matplotlib

_GRID = {
    "n_cols": [Interval(Integral, 1, None, closed="left")],
    "max_classes": [Interval(Integral, 2, None, closed="left")],
}

# Inches: the width of a panel without and of its image, the height of a bar and of what
# is around the bars, and of the legend.
_BARS_WIDTH, _IMAGE_WIDTH = 2.0, 0.9
_BAR_HEIGHT, _AROUND_HEIGHT, _LEGEND_HEIGHT = 0.14, 0.6, 0.4

# Another colour and a hatch: the given label stands out in grey too.
_BAR: dict[str, Any] = {"facecolor": STYLES[0][0]}
_GIVEN_BAR: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": STYLES[1][0],
    "linewidth": 0.8,
    "hatch": "//////",
}
_REST_BAR: dict[str, Any] = {"facecolor": "0.75"}


class _Panel(NamedTuple):
    """What is shown of a sample, the bars from top to bottom."""

    title: str
    names: list[str]
    widths: NDArray
    styles: list[dict]
    image: NDArray | None


class PosteriorDisplay:
    """What a network came to believe of some training samples, class by class.

    For each sample a panel shows how its posterior mean, the target that the network
    was trained towards in the end, is divided among the classes. The bar of the given
    label is hatched, and its name is bold. Where another class has the most, the
    network's predictions spoke against the label while it learnt: it may be wrong. The
    title names both.

    It is recommended to use :meth:`from_estimator` to create a `PosteriorDisplay`. All
    parameters are stored as attributes.

    Parameters
    ----------
    mass : array-like of shape (n_samples, n_classes)
        Posterior mean of each sample; rows sum to one.
    given : array-like of shape (n_samples,)
        The labels that were given, among the classes.
    classes : array-like of shape (n_classes,)
        Labels of the columns of `mass`.
    rows : array-like of int of shape (n_samples,), default=None
        Rows of the samples in the training data, for the titles.
    images : ndarray of shape (n_samples, height, width) or \
            (n_samples, height, width, 3), default=None
        The samples as images in [0, 1], grey or in colour.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes of shape (n_samples,)
        Axes with the bars of each sample.
    bars_ : list of BarContainer
        The bars of each sample, from top to bottom.
    image_axes_ : ndarray of matplotlib Axes of shape (n_samples,), or None
        Axes with the images. `None` without images.
    legend_ax_ : matplotlib Axes
        Axes with the legend, below the panels.
    bounding_ax_ : matplotlib Axes or None
        The axes that were given, whose place the panels take.
    figure_ : matplotlib Figure
        Figure containing the panels.

    See Also
    --------
    skbsd.label_noise.find_label_issues : The samples worth a look, worst first.
    skbsd.posterior.DirichletPosterior.mean : The posterior means.

    Notes
    -----
    The mass of the given label is in part the prior's, which is the label's own: it
    does not say what the network predicts. :func:`skbsd.label_noise.label_quality`
    leaves the prior out.

    Examples
    --------
    >>> from skbsd.display import PosteriorDisplay
    >>> mass = [[0.7, 0.2, 0.1], [0.3, 0.1, 0.6]]
    >>> display = PosteriorDisplay(mass, ["cat", "cat"], ["cat", "dog", "fox"]).plot()
    >>> print(display.axes_[1].get_title("right"))
    Given cat
    most mass: fox (60 %)
    """

    def __init__(self, mass, given, classes, *, rows=None, images=None):
        self.mass = mass
        self.given = given
        self.classes = classes
        self.rows = rows
        self.images = images

    def plot(self, ax=None, *, n_cols=3, max_classes=10) -> Self:
        """Plot a panel for each sample.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes whose place the panels take, such as those of a grid or a subfigure;
            give a title to the figure and not to them. If `None`, a new figure is
            created, large enough for all panels.
        n_cols : int, default=3
            Largest number of panels side by side.
        max_classes : int, default=10
            Largest number of classes with a bar, at least 2. Of more classes those with
            the most mass have one, and the given label; the others share one, "other".

        Returns
        -------
        display : :class:`~skbsd.display.PosteriorDisplay`
            Object that stores computed values and artists.
        """
        caller = f"{type(self).__name__}.plot"
        require_matplotlib(caller)
        parameters = {"n_cols": n_cols, "max_classes": max_classes}
        validate_parameter_constraints(_GRID, parameters, caller)
        # All of them before anything is drawn.
        panels = [self._panel(i, max_classes) for i in range(len(self.mass))]
        if not panels:
            raise ValueError("mass has no rows: expected at least one sample to show.")

        n_cols = min(n_cols, len(panels))
        n_rows = -(-len(panels) // n_cols)
        height = _AROUND_HEIGHT + _BAR_HEIGHT * len(panels[0].names)
        widths = [_BARS_WIDTH] if self.images is None else [_IMAGE_WIDTH, _BARS_WIDTH]
        if ax is None:
            import matplotlib.pyplot as plt

            # A lone panel has room for the legend, and for its title.
            width = max(n_cols * sum(widths), 3)
            size = width, n_rows * height + _LEGEND_HEIGHT
            self.figure_ = plt.figure(figsize=size, layout="constrained")
        else:
            self.figure_ = ax.figure
        self.bounding_ax_ = ax
        # One grid of all axes, so that they are aligned.
        step = len(widths)
        grid = divide(
            self.figure_,
            ax,
            n_rows + 1,
            n_cols * step,
            height_ratios=[height] * n_rows + [_LEGEND_HEIGHT],
            width_ratios=widths * n_cols,
        )
        axes, image_axes, self.bars_ = [], [], []
        for i, panel in enumerate(panels):
            row, column = i // n_cols, i % n_cols * step
            if panel.image is not None:
                image_axes.append(self.figure_.add_subplot(grid[row, column]))
                _show_image(image_axes[-1], panel.image)
            cell = grid[row, column + step - 1]
            axes.append(self.figure_.add_subplot(cell))
            self.bars_.append(_plot_panel(axes[-1], panel))
            if i + n_cols >= len(panels):  # there is none below
                axes[-1].set_xlabel("Posterior mass", fontsize="small")
        self.axes_ = np.array(axes)
        self.image_axes_ = None if self.images is None else np.array(image_axes)
        self.legend_ax_ = self.figure_.add_subplot(grid[-1, :])
        _plot_legend(self.legend_ax_)
        return self

    def _panel(self, i, max_classes) -> _Panel:
        """Lay out the bars of sample i."""
        mass, classes = np.asarray(self.mass[i]), np.asarray(self.classes)
        found = np.flatnonzero(classes == self.given[i])
        if len(found) != 1:
            raise ValueError(
                f"given[{i}]={self.given[i]!r} is not one of the classes "
                f"{classes.tolist()}; pass the labels of the columns of mass as "
                "classes."
            )
        given = found[0]
        shown = np.argsort(-mass, kind="stable")[:max_classes]
        if given not in shown:
            shown[-1] = given
        shown.sort()
        names, widths = classes[shown].astype(str).tolist(), mass[shown]
        styles = [_GIVEN_BAR if k == given else _BAR for k in shown]
        if len(shown) < len(mass):
            names.append("other")
            widths = np.append(widths, np.delete(mass, shown).sum())
            styles.append(_REST_BAR)
        most = mass.argmax()
        start = "Given" if self.rows is None else f"Row {self.rows[i]}: given"
        return _Panel(
            f"{start} {classes[given]}\n"
            f"most mass: {classes[most]} ({100 * mass[most]:.0f} %)",
            names,
            widths,
            styles,
            None if self.images is None else self.images[i],
        )

    @classmethod
    def from_estimator(
        cls,
        estimator,
        rows=None,
        X=None,
        *,
        image_shape=None,
        ax=None,
        n_cols=3,
        max_classes=10,
    ) -> Self:
        """Plot what a fitted classifier believes of some of its training samples.

        Parameters
        ----------
        estimator : BSDClassifier or Pipeline
            Fitted, or a pipeline that ends in a fitted one.
        rows : int or array-like of int of shape (n_samples,), default=None
            Rows of the X given to `fit`, by position, such as those that
            :func:`skbsd.label_noise.find_label_issues` lists. If `None`, two lines of
            panels: the samples with the lowest
            :func:`skbsd.label_noise.label_quality`, worst first, whose labels the
            network's predictions contradict most, and those without evidence last. With
            an infinite prior strength, which has no label quality, the first samples.
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, \
                Dataset, default=None
            That X, for images of the samples: of shape (n_train, height, width) or
            (n_train, channels, height, width), or flattened in the rows of a table. A
            table that is none of images is passed over. Of several inputs, the first
            that is of images is shown.
        image_shape : tuple of (channels, height, width) or (height, width), \
                default=None
            Shape of flattened images. If `None`, the `image_shape` of the classifier.
        ax : matplotlib Axes, default=None
            Axes to plot on, as for :meth:`plot`. If `None`, a new figure is created.
        n_cols : int, default=3
            Largest number of panels side by side.
        max_classes : int, default=10
            Largest number of classes with a bar, at least 2.

        Returns
        -------
        display : :class:`~skbsd.display.PosteriorDisplay`
            Object that stores computed values and artists.

        Raises
        ------
        ValueError
            For rows that are not there, or an X of another length than that given to
            `fit`.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skbsd import BSDClassifier
        >>> from skbsd.display import PosteriorDisplay
        >>> X, y = load_digits(return_X_y=True)
        >>> X, y = X[:100] / 16, y[:100]
        >>> model = BSDClassifier(max_epochs=5, random_state=0).fit(X, y)
        >>> display = PosteriorDisplay.from_estimator(
        ...     model, [0, 10, 20], X, image_shape=(8, 8)
        ... )
        >>> display.mass.shape
        (3, 10)
        """
        require_matplotlib(f"{cls.__name__}.from_estimator")
        classifier = fitted_classifier(estimator, "posterior_")
        posterior = classifier.posterior_
        if rows is None:
            parameters = {"n_cols": n_cols, "max_classes": max_classes}
            validate_parameter_constraints(_GRID, parameters, cls.__name__)
            rows = _worst_rows(classifier, 2 * n_cols)
        rows = _check_rows(rows, len(posterior))
        images = None
        if X is not None:
            check_training_X(X, classifier, "X")
            if image_shape is None:
                image_shape = classifier.image_shape
            images = as_images(X, rows, image_shape)
        index = torch.as_tensor(rows, device=posterior.device)
        display = cls(
            posterior.mean(index).cpu().numpy(),
            classifier.classes_[posterior.labels[index].cpu().numpy()],
            classifier.classes_,
            rows=rows,
            images=images,
        )
        return display.plot(ax=ax, n_cols=n_cols, max_classes=max_classes)


def _worst_rows(classifier, n: int) -> NDArray[np.integer]:
    """Return the rows of at most n samples whose labels are the most doubtful."""
    if np.isinf(classifier.posterior_.prior_strength):
        return np.arange(min(n, len(classifier.posterior_)))
    return np.argsort(label_quality(classifier), kind="stable")[:n]  # NaN is last


def _check_rows(rows, n_samples: int) -> NDArray[np.integer]:
    """Return some rows of the training data as an array."""
    rows = np.atleast_1d(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise ValueError(
            f"rows={rows!r} are no row numbers: expected one integer or several, such "
            "as np.flatnonzero(mask) for a mask."
        )
    if rows.min() < 0 or rows.max() >= n_samples:
        raise ValueError(
            f"rows must lie in [0, {n_samples}), the samples given to fit; got values "
            f"from {rows.min()} to {rows.max()}."
        )
    return rows.astype(np.int64)


def _show_image(ax, image) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()


def _plot_panel(ax, panel: _Panel):
    """Plot the bars of a sample, and return them."""
    places = np.arange(len(panel.names))
    bars = ax.barh(places, panel.widths, height=0.8)
    # Names are the user's: a dollar sign is one.
    ax.set_yticks(places, panel.names, parse_math=False)
    for bar, name, style in zip(bars, ax.get_yticklabels(), panel.styles, strict=True):
        bar.set(**style)
        if style is _GIVEN_BAR:  # whose bar may be too short to be seen
            name.set_fontweight("bold")
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set(xlim=(0, 1), ylim=(len(places) - 0.4, -0.6))
    # A long title goes over the image, and not into the next panel.
    ax.set_title(panel.title, fontsize="small", loc="right", parse_math=False)
    ax.tick_params(labelsize="x-small", length=2)
    ax.spines[["top", "right"]].set_visible(False)
    return bars


def _plot_legend(ax) -> None:
    """Say which bar is the given label's."""
    from matplotlib.patches import Patch

    ax.set_axis_off()
    handles = [Patch(**_GIVEN_BAR), Patch(**_BAR)]
    labels = ["Given label", "Another class"]
    style = {"loc": "center", "ncols": 2, "frameon": False, "fontsize": "small"}
    ax.legend(handles, labels, **style)
