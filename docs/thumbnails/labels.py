"""Thumbnails of examples about targets and wrong labels."""

import numpy as np
from drawing import BLUE, ORANGE, digits, show_digit
from sklearn.datasets import load_digits
from skorch.callbacks import Callback

from skbsd import BSDClassifier
from skbsd.label_noise import find_label_issues, flip_labels


class Masses(Callback):
    """Notes the targets after every epoch."""

    def on_train_begin(self, net, **kwargs):
        """Begin with the labels."""
        self.pages_ = [net.posterior_.mean().cpu().numpy()]

    def on_epoch_end(self, net, **kwargs):
        """Add those of an epoch."""
        self.pages_.append(net.posterior_.mean().cpu().numpy())


def what_it_believes(figure) -> None:
    """Draw how the target of an image with a wrong label moves."""
    X, y = load_digits(return_X_y=True)
    given, wrong = flip_labels(y, 0.1, random_state=0)
    model = BSDClassifier(
        image_shape=(1, 8, 8),
        prior_strength="noisy",
        callbacks=[("masses", Masses())],
        random_state=0,
    ).fit(X, given)
    image = np.flatnonzero(wrong)[0]
    masses = np.stack(dict(model.callbacks_)["masses"].pages_)[:, image]
    other = masses[-1].argmax()
    picture, ax = figure.subplots(1, 2, width_ratios=[1, 1.3])
    show_digit(picture, X[image], f"labelled {given[image]}", color=BLUE)
    ax.plot(masses[:, given[image]], color=BLUE)
    ax.plot(masses[:, other], color=ORANGE)
    ax.set_title(f"becomes {other}", color=ORANGE)
    ax.set(xlabel="epoch", xticks=[], yticks=[0, 1], ylim=(0, 1.05))


def find_wrong_labels(figure) -> None:
    """Show six suspicious images, with the given and the suggested label."""
    X, _, given, _ = digits(0.75, 0.1)
    issues = find_label_issues(BSDClassifier(random_state=0).fit(X, given))
    columns = (issues[name] for name in ("row", "given_label", "suggested_label"))
    for ax, (row, label, suggested) in zip(
        figure.subplots(2, 3).flat, zip(*columns, strict=True), strict=False
    ):
        show_digit(ax, X[row], f"{label} → {suggested}", color=ORANGE, weight="bold")
