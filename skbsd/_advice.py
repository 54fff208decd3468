"""Warnings about fits that succeed, but probably not as intended."""

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from ._large import standard_deviations

_LARGEST_SPREAD = 1e3
_CONSTANT = 1e-12  # the spread of a constant column after a StandardScaler
_NOT_TRAINED = 1e30  # training raises an error for such columns
_LEAST_LABEL = 0.1
_ENOUGH = 500  # minimum number of predictions to judge by
# Temperatures of successful trainings lie well within this range.
_LOWEST_TEMPERATURE = 0.02
_HIGHEST_TEMPERATURE = 50.0


def of_settings(net: Any, X: Any, stacklevel: int) -> None:
    """Warn before training of unscaled columns, and of a very weak prior.

    Parameters
    ----------
    net : BSDClassifier
    X : ndarray, Tensor or Dataset
        Checked.
    stacklevel : int
        Of the caller of `fit`, relative to this function.
    """
    if net.image_shape is None and isinstance(X, np.ndarray) and X.ndim == 2:
        _of_columns(X, stacklevel + 1)
    label = _label_share(net)
    if label < _LEAST_LABEL:
        warnings.warn(
            f"with prior_strength={net.prior_strength:g} and "
            f"discount={net.discount!r}, only {label:.1%} of a target comes from the "
            f"label after {net.max_epochs} epochs: the network learns from its own "
            "predictions and stays underconfident. Use 'auto' for both, or larger "
            "values.",
            UserWarning,
            stacklevel=stacklevel,
        )


def say_errors_of_labels(net: Any) -> None:
    """Print how contradicted labels are interpreted, if `verbose` is set.

    Parameters
    ----------
    net : BSDClassifier
        Fitted.
    """
    found = net._calibration()
    if net.verbose and found.noise_rate > 0 and not found.applies_transition:
        print(
            f"Labels: {found.noise_rate:.0%} are assumed to be wrong, and predictions "
            "are of the true labels; label_noise='inherent' predicts labels as given."
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
    """Return the label's share of the targets at the end, if c is a number."""
    c, n_epochs = net.prior_strength, net.max_epochs
    if isinstance(c, str) or np.isinf(c) or net.evidence == "weighted":
        return 1.0
    gamma = 1.0 if isinstance(net.discount, str) else net.discount
    left = c * gamma**n_epochs
    evidence = n_epochs if gamma == 1 else (1 - gamma**n_epochs) / (1 - gamma)
    return left / (left + evidence)


def of_result(net: Any, outcome: Any, stacklevel: int) -> None:
    """Warn after training of a network that has learnt nothing, or has got worse.

    Parameters
    ----------
    net : BSDClassifier
        Fitted.
    outcome : Outcome or None
        The result of the held-out predictions of this call.
    stacklevel : int
        Of the caller of `fit`, relative to this function.
    """
    if outcome is not None and outcome.calibration.n_samples >= _ENOUGH:
        reached = outcome.calibration.log_loss_after
        chance = outcome.calibration.log_loss_of_frequencies
        if reached > 0.99 * chance:
            warnings.warn(
                "held-out predictions are no better than the frequencies of the "
                f"classes: their log loss is {reached:.3f}, that of the frequencies is "
                f"{chance:.3f}. Check the features, their scale, and the labels.",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )
    if outcome is not None:
        _of_temperature(net.temperature_, net.max_epochs, stacklevel + 1)
    reached = [e["valid_acc"] for e in net.history_ or () if "valid_acc" in e]
    if reached and reached[-1] < max(reached) / 2:
        warnings.warn(
            f"the validation accuracy fell from {max(reached):.3f} to "
            f"{reached[-1]:.3f} during training. Lower lr or max_epochs.",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )


def _of_temperature(temperature: float, n_epochs: int, stacklevel: int) -> None:
    """Warn of an extreme temperature, which indicates that training failed."""
    if temperature < _LOWEST_TEMPERATURE:
        what = "differ so little from class to class"
        way_out = (
            f"it is underfitted after {n_epochs} epochs. Raise max_epochs or lr, or "
            "lower batch_size for more steps"
        )
    elif temperature > _HIGHEST_TEMPERATURE:
        what = "differ so much from class to class"
        way_out = (
            "it is extremely overconfident. Lower lr or max_epochs, raise "
            "weight_decay, and check the scale of the features"
        )
    else:
        return
    warnings.warn(
        f"the network's logits {what} that the calibration divides them by "
        f"{temperature:.3g}: {way_out}.",
        ConvergenceWarning,
        stacklevel=stacklevel,
    )
