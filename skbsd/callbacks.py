"""skorch callbacks for the training of a :class:`skbsd.BSDClassifier`."""

import sys
import warnings
from typing import Any

from skorch.callbacks import Callback

from ._history import figures

__all__ = ["ProgressBar"]


class ProgressBar(Callback):
    """Show the number of finished epochs, the remaining time and the last losses.

    In terminals and notebooks it is a progress bar of tqdm. Otherwise, for example in
    the log of a job, it prints a line to standard error for every tenth of the epochs.

    See Also
    --------
    skbsd.BSDClassifier : Prints a line per epoch with ``verbose=1``.
    skorch.callbacks.ProgressBar : Shows every batch, which slows training down.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skbsd import BSDClassifier
    >>> from skbsd.callbacks import ProgressBar
    >>> model = BSDClassifier(callbacks=[ProgressBar()], random_state=0)
    >>> model.fit(*load_iris(return_X_y=True)).n_iter_
    40
    """

    # skorch treats attributes without a trailing underscore as parameters.
    bar_: Any = None  # while training

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Start a progress bar, if one can be drawn.

        Parameters
        ----------
        net : BSDClassifier
            The estimator that is being trained.
        X : object, default=None
            Unused, as in skorch.
        y : object, default=None
            Unused, as in skorch.
        **kwargs : dict
            Unused, as in skorch.
        """
        self.on_train_end(net)  # close a bar that remains after an error
        self.first_ = len(net.history)
        in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
        # Programs without a console have no standard error.
        if in_notebook or (sys.stderr is not None and sys.stderr.isatty()):
            with warnings.catch_warnings():  # for notebooks without ipywidgets
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm
            self.bar_ = tqdm(total=net.max_epochs, unit="epoch")

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Advance the bar by an epoch.

        Parameters
        ----------
        net : BSDClassifier
            The estimator that is being trained.
        dataset_train : object, default=None
            Unused, as in skorch.
        dataset_valid : object, default=None
            Unused, as in skorch.
        **kwargs : dict
            Unused, as in skorch.
        """
        epoch = net.history[-1]
        shown = {key: f"{value:.3g}" for key, value in figures(epoch).items()}
        done, total = len(net.history) - self.first_, net.max_epochs
        if self.bar_ is not None:
            self.bar_.set_postfix(shown, refresh=False)
            # Includes the epochs of a checkpoint.
            self.bar_.update(done - self.bar_.n)
            return
        if done * 10 // total > (done - 1) * 10 // total:
            texts = (f"{name} {value}" for name, value in shown.items())
            line = ", ".join((f"epoch {done} of {total}", *texts))
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Close the bar.

        Parameters
        ----------
        net : BSDClassifier
            The estimator that was trained.
        X : object, default=None
            Unused, as in skorch.
        y : object, default=None
            Unused, as in skorch.
        **kwargs : dict
            Unused, as in skorch.
        """
        if self.bar_ is not None:
            self.bar_.close()
            self.bar_ = None

    def __getstate__(self):
        # A bar holds a stream and a lock, which cannot be copied.
        return {**self.__dict__, "bar_": None}
