"""Warnings about fits that work, but not as the user will have meant them to."""

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from ._large import standard_deviations

_LARGEST_SPREAD = 1e3
_CONSTANT = 1e-12  # what a StandardScaler leaves of columns without spread
_NOT_TRAINED = 1e30  # which is an error
_LEAST_LABEL = 0.1
_ENOUGH = 500  # predictions to judge by
# Temperatures of trainings that did what they should lie well within.
_LOWEST_TEMPERATURE = 0.02
_HIGHEST_TEMPERATURE = 50.0


def of_settings(net: Any, X: Any, stacklevel: int) -> None:
    """Warn before training: of columns to be scaled, and of labels that count little.

    Parameters
    ----------
    net : BSDClassifier
    X : ndarray, Tensor or Dataset
        Checked.
    stacklevel : int
        Of the caller of `fit`, as seen from here.
    """
    if net.image_shape is None and isinstance(X, np.ndarray) and X.ndim == 2:
        _of_columns(X, stacklevel + 1)
    label = _label_share(net)
    if label < _LEAST_LABEL:
        warnings.warn(
            f"prior_strength={net.prior_strength:g} with discount={net.discount!r} "
            f"leaves the label {label:.1%} of its target after {net.max_epochs} "
            "epochs: the network learns from its own predictions, and stays unsure. "
            "Use 'auto' for both, or larger ones.",
            UserWarning,
            stacklevel=stacklevel,
        )


def say_errors_of_labels(net: Any) -> None:
    """Print that contradicting labels are taken for errors, where `verbose` is set.

    Parameters
    ----------
    net : BSDClassifier
        Fitted.
    """
    found = net._calibration()
    if net.verbose and found.noise_rate > 0 and not found.applies_transition:
        print(
            f"Labels: {found.noise_rate:.0%} are taken for errors, and predictions are "
            "of true labels; label_noise='inherent' predicts labels as they are given."
        )


def _of_columns(X: np.ndarray, stacklevel: int) -> None:
    spread = standard_deviations(X)
    varies = np.flatnonzero(spread > _CONSTANT)
    if not len(varies):
        return
    small, large = (varies[f(spread[varies])] for f in (np.argmin, np.argmax))
    if spread[large] <= _LARGEST_SPREAD * min(1.0, spread[small]):
        return
    if spread[large] > _NOT_TRAINED:
        return
    warnings.warn(
        f"column {large} of X has a standard deviation of {spread[large]:.3g}, and "
        f"column {small} one of {spread[small]:.3g}: a network learns little from "
        "columns of such different scales. Put a StandardScaler before it.",
        UserWarning,
        stacklevel=stacklevel,
    )


def _label_share(net: Any) -> float:
    """Return how much of the last targets is the label itself, if it is a number."""
    c, n_epochs = net.prior_strength, net.max_epochs
    if isinstance(c, str) or np.isinf(c) or net.evidence == "weighted":
        return 1.0
    gamma = 1.0 if isinstance(net.discount, str) else net.discount
    left = c * gamma**n_epochs
    evidence = n_epochs if gamma == 1 else (1 - gamma**n_epochs) / (1 - gamma)
    return left / (left + evidence)


def of_result(net: Any, outcome: Any, stacklevel: int) -> None:
    """Warn after training: of a network that has learnt nothing, or lost it again.

    Parameters
    ----------
    net : BSDClassifier
        Fitted.
    outcome : Outcome or None
        What predictions of unseen samples have told in this call.
    stacklevel : int
        Of the caller of `fit`, as seen from here.
    """
    if outcome is not None and outcome.calibration.n_samples >= _ENOUGH:
        reached = outcome.calibration.log_loss_after
        chance = outcome.calibration.log_loss_of_frequencies
        if reached > 0.99 * chance:
            warnings.warn(
                "predictions of samples that the network has not seen are no better "
                "than the frequencies of the classes: their log loss is "
                f"{reached:.3f}, and that of the frequencies {chance:.3f}. Look at the "
                "features, their scale, and the labels.",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )
    if outcome is not None:
        _of_temperature(net.temperature_, net.max_epochs, stacklevel + 1)
    reached = [e["valid_acc"] for e in net.history_ or () if "valid_acc" in e]
    if reached and reached[-1] < max(reached) / 2:
        warnings.warn(
            f"the validation accuracy fell from {max(reached):.3f} to "
            f"{reached[-1]:.3f} in the course of training. Lower lr or max_epochs.",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )


def _of_temperature(temperature: float, n_epochs: int, stacklevel: int) -> None:
    """Warn where calibration has to make up for a training that went wrong."""
    if temperature < _LOWEST_TEMPERATURE:
        what = "differ so little from class to class"
        way_out = (
            f"it has hardly learnt in {n_epochs} epochs. Raise max_epochs or lr, or "
            "lower batch_size for more steps"
        )
    elif temperature > _HIGHEST_TEMPERATURE:
        what = "differ so much from class to class"
        way_out = (
            "it is far surer than it is right. Lower lr or max_epochs, raise "
            "weight_decay, and look at the scale of the features"
        )
    else:
        return
    warnings.warn(
        f"the network's logits {what} that the calibration divides them by "
        f"{temperature:.3g}: {way_out}.",
        ConvergenceWarning,
        stacklevel=stacklevel,
    )
