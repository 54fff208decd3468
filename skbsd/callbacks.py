"""Callbacks for the training of a :class:`skbsd.BSDClassifier`, as skorch has them."""

import sys
import warnings
from typing import Any

from skorch.callbacks import Callback

from ._history import figures

__all__ = ["ProgressBar"]


class ProgressBar(Callback):
    """Show how many epochs are done, how long the rest takes, and the last losses.

    A bar of tqdm in terminals and notebooks. Where standard error is neither, such as
    the log of a job, it is a line for about each tenth of the epochs.

    See Also
    --------
    skbsd.BSDClassifier : Prints a line per epoch with ``verbose=1``.
    skorch.callbacks.ProgressBar : Shows every batch, for which training has to wait.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skbsd import BSDClassifier
    >>> from skbsd.callbacks import ProgressBar
    >>> model = BSDClassifier(callbacks=[ProgressBar()], random_state=0)
    >>> model.fit(*load_iris(return_X_y=True)).n_iter_
    40
    """

    # skorch takes what does not end in an underscore for a parameter.
    bar_: Any = None  # while training

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Start a bar, where one can be drawn.

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
        self.on_train_end(net)  # one that an error has left
        self.first_ = len(net.history)
        in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
        # There is no standard error in programs without a console.
        if in_notebook or (sys.stderr is not None and sys.stderr.isatty()):
            with warnings.catch_warnings():  # of notebooks without ipywidgets
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm
            self.bar_ = tqdm(total=net.max_epochs, unit="epoch")

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Move on by an epoch.

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
            # Those from a checkpoint count too.
            self.bar_.update(done - self.bar_.n)
            return
        if done * 10 // total > (done - 1) * 10 // total:
            texts = (f"{name} {value}" for name, value in shown.items())
            line = ", ".join((f"epoch {done} of {total}", *texts))
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Leave the bar as it is.

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
        # A bar holds a stream and a lock, of which there is no copy.
        return {**self.__dict__, "bar_": None}
