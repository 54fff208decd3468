"""How training went."""

from typing import Any, Self

import numpy as np

from .._checks import fitted_classifier
from .._history import finished
from ._grid import divide
from ._style import STYLES, require_matplotlib

_COLUMNS = ("train_loss", "valid_loss", "contrastive_loss", "valid_acc")

# Name in the legend, and which of the styles.
_CURVES = {
    "train_loss": ("Training, to its targets", 0),
    "valid_loss": ("Validation, to the labels", 1),
    "contrastive_loss": ("Contrastive, before its weight", 2),
    "valid_acc": ("Validation", 1),
}
_BOTH_LOSSES = "Training, contrastive included"


class TrainingDisplay:
    """Loss and accuracy of every epoch.

    One panel shows the losses; another, below it, the accuracy on the validation data
    where there were some (`train_split`). The epoch of the least validation loss is
    marked.

    It is recommended to use :meth:`from_estimator` or :meth:`from_history` to create a
    `TrainingDisplay`. All parameters are stored as attributes.

    Parameters
    ----------
    epoch : array-like of int of shape (n_epochs,)
        Number of each epoch.
    train_loss : array-like of shape (n_epochs,)
        Mean loss of each epoch's training, as of the other curves NaN where unknown.
    valid_loss : array-like of shape (n_epochs,), default=None
        Cross-entropy on the validation data after each epoch.
    contrastive_loss : array-like of shape (n_epochs,), default=None
        The contrastive loss. Times its weight it is a part of `train_loss`.
    valid_acc : array-like of shape (n_epochs,), default=None
        Accuracy on the validation data after each epoch, in [0, 1].

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes of shape (1,) or (2,)
        Axes with the losses, and with the accuracy where it is known.
    lines_ : dict of str to matplotlib Artist
        The curves, by the names of the parameters.
    best_epoch_ : int or None
        Epoch of the least validation loss, the first of several. `None` without.
    bounding_ax_ : matplotlib Axes or None
        The axes that were given, if two panels take their place.
    figure_ : matplotlib Figure
        Figure containing the curves.

    See Also
    --------
    skorch.history.History : What was recorded.

    Notes
    -----
    The two losses are not measured against the same thing. That of training is the
    cross-entropy of the network with its soft targets, and no smaller than their own
    entropy: it does not go to zero, and may rise in late epochs as the targets take in
    what the network predicts. It is also measured in training mode, on augmented
    images, while the weights change. That of validation is measured against the labels
    after the epoch, and may well be the smaller one. What to look at: whether the
    validation loss still falls (train longer), or has its least value well before the
    end (fewer epochs, a larger `weight_decay`, `augmentation`).

    Examples
    --------
    >>> from skbsd.display import TrainingDisplay
    >>> display = TrainingDisplay(
    ...     [1, 2, 3], [1.1, 0.8, 0.7], valid_loss=[0.9, 0.6, 0.65]
    ... ).plot()
    >>> display.best_epoch_
    2
    """

    def __init__(
        self,
        epoch,
        train_loss,
        *,
        valid_loss=None,
        contrastive_loss=None,
        valid_acc=None,
    ):
        self.epoch = epoch
        self.train_loss = train_loss
        self.valid_loss = valid_loss
        self.contrastive_loss = contrastive_loss
        self.valid_acc = valid_acc

    def plot(self, ax=None, **kwargs) -> Self:
        """Plot the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot the losses on or, where the accuracy is known too, whose place
            both panels take. If `None`, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot` for all
            curves.

        Returns
        -------
        display : :class:`~skbsd.display.TrainingDisplay`
            Object that stores computed values and artists.
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        kwargs = normalize_kwargs(kwargs, Line2D)
        Line2D([], [], **kwargs)  # raises before anything is drawn

        accuracy_known = self.valid_acc is not None
        if ax is None:
            import matplotlib.pyplot as plt

            self.figure_ = plt.figure(layout="constrained")
        else:
            self.figure_ = ax.figure
        self.bounding_ax_ = ax if accuracy_known else None
        if ax is not None and not accuracy_known:
            self.axes_ = np.array([ax])
        else:
            ratios = [3, 2] if accuracy_known else [1]
            grid = divide(self.figure_, ax, len(ratios), 1, height_ratios=ratios)
            self.axes_ = grid.subplots(sharex=True, squeeze=False)[:, 0]

        losses = self.axes_[0]
        self.lines_: dict[str, Any] = {}
        for name in _COLUMNS[:3]:
            self._plot_curve(losses, name, kwargs)
        losses.set_ylabel("Loss")
        if accuracy_known:
            self._plot_curve(self.axes_[1], "valid_acc", kwargs)
            self.axes_[1].set_ylabel("Validation accuracy")
        self.best_epoch_ = self._find_best()
        if self.best_epoch_ is not None:
            style = {"color": "0.35", "linewidth": 1, "linestyle": ":", "zorder": 1}
            style["label"] = f"Least validation loss: epoch {self.best_epoch_}"
            for panel in self.axes_:
                panel.axvline(self.best_epoch_, **style)
        losses.legend(fontsize="small")
        self.axes_[-1].set_xlabel("Epoch")
        whole = MaxNLocator("auto", integer=True, min_n_ticks=1)
        self.axes_[-1].xaxis.set_major_locator(whole)
        return self

    def _plot_curve(self, ax, name, kwargs) -> None:
        """Plot one of the curves, if it is known."""
        values = getattr(self, name)
        if values is None:
            return
        label, style = _CURVES[name]
        if name == "train_loss" and self.contrastive_loss is not None:
            label = _BOTH_LOSSES
        color, marker, dash = STYLES[style]
        defaults = {
            "color": color,
            "marker": marker,
            "linestyle": dash,
            "label": label,
            "markersize": 4,
            # Of many epochs not every one has room for a marker.
            "markevery": -(-len(values) // 25),
        }
        (self.lines_[name],) = ax.plot(self.epoch, values, **(defaults | kwargs))

    def _find_best(self) -> int | None:
        """Return the epoch of the least validation loss."""
        if self.valid_loss is None or np.isnan(self.valid_loss).all():
            return None
        return int(self.epoch[np.nanargmin(self.valid_loss)])

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, **kwargs) -> Self:
        """Plot how the training of a fitted classifier went.

        Parameters
        ----------
        estimator : BSDClassifier or Pipeline
            Fitted, or a pipeline that ends in a fitted one.
        ax : matplotlib Axes, default=None
            Axes to plot on, as for :meth:`plot`. If `None`, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : :class:`~skbsd.display.TrainingDisplay`
            Object that stores computed values and artists.

        Examples
        --------
        >>> from skbsd import BSDClassifier
        >>> from skbsd.display import TrainingDisplay
        >>> from skorch.dataset import ValidSplit
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = BSDClassifier(
        ...     max_epochs=5, train_split=ValidSplit(3, stratified=True), random_state=0
        ... )
        >>> display = TrainingDisplay.from_estimator(model.fit(X, y))
        >>> list(display.lines_)
        ['train_loss', 'valid_loss', 'valid_acc']
        """
        require_matplotlib(f"{cls.__name__}.from_estimator")
        classifier = fitted_classifier(estimator, "posterior_")
        return cls.from_history(classifier.history_, ax=ax, **kwargs)

    @classmethod
    def from_history(cls, history, *, ax=None, **kwargs) -> Self:
        """Plot what skorch's history says of every epoch.

        Parameters
        ----------
        history : skorch.history.History or list of dict
            An entry per epoch, with `epoch`, `train_loss` and, where they were
            recorded, `valid_loss`, `contrastive_loss` and `valid_acc`. An epoch that
            was interrupted, and so has none of these, is left out.
        ax : matplotlib Axes, default=None
            Axes to plot on, as for :meth:`plot`. If `None`, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : :class:`~skbsd.display.TrainingDisplay`
            Object that stores computed values and artists.

        Raises
        ------
        ValueError
            If no epoch has a `train_loss`.

        Examples
        --------
        >>> from skbsd.display import TrainingDisplay
        >>> history = [{"epoch": 1, "train_loss": 1.1}, {"epoch": 2, "train_loss": 0.9}]
        >>> TrainingDisplay.from_history(history)
        <...>
        """
        require_matplotlib(f"{cls.__name__}.from_history")
        epochs = finished(history)
        if not epochs:
            names = sorted({name for epoch in history or () for name in epoch})
            raise ValueError(
                f"none of the history's {len(history or ())} epochs has a train_loss, "
                f"they hold {names}; train for an epoch, and with skorch's default "
                "callbacks (callbacks='disable' turns them off)."
            )
        columns = {
            name: np.array([epoch.get(name, np.nan) for epoch in epochs])
            for name in _COLUMNS
            if any(name in epoch for epoch in epochs)
        }
        number = np.array([epoch["epoch"] for epoch in epochs])
        return cls(number, **columns).plot(ax, **kwargs)
