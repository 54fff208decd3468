"""Calibration of trainings with few epochs or steps.

After few epochs the scale of the logits differs from network to network. The folds
therefore show how predictions of held-out samples differ from those of training
samples, and the final network's predictions of its training samples supply the scale.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from scipy.optimize import minimize_scalar
from torch import Tensor

from ._label_model import SD_LOG_TEMPERATURE
from ._rules import Choice, schedule_length
from .calibration import (
    Calibration,
    LabelErrors,
    fit_calibration,
    fit_label_errors,
    log_losses,
)

# A training with fewer epochs is brief.
_FEW_EPOCHS = 10
# A longer training is brief too if half of its epochs on half of the data take fewer
# steps than this.
_FEW_STEPS = 40
# The folds of small tables are trained for all epochs, which suffices from this number
# of epochs on. Below it, label errors need more evidence, whatever the number of steps.
_FEW_WHOLE_EPOCHS = 20
# From this number of samples on, two folds trained for half of the epochs are as
# informative as more and longer ones, unless training is brief.
_ENOUGH = 450
# An undertrained network contradicts many labels that are correct. Label errors are
# accepted only if they make up this fraction of the contradicted labels, if the true
# classes are separated this well (1 is certainty), and if this fraction of all labels
# is wrong. Mistaking prediction errors for label errors costs more than it gains.
_MOSTLY = 0.5
_SEPARABLE = 0.8
_SEPARABLE_WHEN_SETTLED = 0.5
_SETTLED = 30  # steps until the running statistics of batch normalisation are accurate
_LEAST_ERRORS = 0.05
# Prior standard deviation of the difference in log T of the final and a fold network.
_SD_CHANGE = 0.15
_LOG_T = (-6.0, 4.0)
_STEP = 0.01  # of numerical derivatives


class LogTemperature(NamedTuple):
    """An estimate of log T.

    Parameters
    ----------
    value : float
    variance : float
        Of the estimate, robust to misspecification (sandwich estimator).
    loss : float
        Mean log loss at the estimate.
    """

    value: float
    variance: float
    loss: float


def is_small_table(size: float, *, shows_images: bool) -> bool:
    """Whether to train more fold networks, for all epochs.

    Parameters
    ----------
    size : float
        Number of training samples.
    shows_images : bool
        Whether the samples are images, for which networks are slow to train.
    """
    return size < _ENOUGH and not shows_images


def is_brief(
    net: Any, size: float, *, shows_images: bool, n_epochs: int | None = None
) -> bool:
    """Whether a training has too few epochs or steps for shortened folds.

    Parameters
    ----------
    net : BSDClassifier
    size : float
        Number of training samples.
    shows_images : bool
    n_epochs : int, default=None
        Epochs of the training; None is the net's `max_epochs`.
    """
    n_epochs = net.max_epochs if n_epochs is None else n_epochs
    if n_epochs < _FEW_EPOCHS:
        return True
    is_small = is_small_table(size, shows_images=shows_images)
    if is_small and n_epochs >= _FEW_WHOLE_EPOCHS:
        return False
    batch_size, _ = net._loader("iterator_train").resolved()
    per_epoch = 1 if batch_size == -1 else math.ceil(size / 2 / batch_size)
    return math.ceil(n_epochs / 2) * per_epoch < _FEW_STEPS


def first_choice(net: Any, size: float, *, shows_images: bool) -> Choice:
    """Return the settings that a training tries first.

    A call that is the first part of a longer one, by `schedule_epochs`, uses the
    settings of the longer one, even if the call itself is brief.

    Parameters
    ----------
    net : BSDClassifier
    size : float
        Number of training samples.
    shows_images : bool
    """
    whole = schedule_length(net)
    if is_brief(net, size, shows_images=shows_images, n_epochs=whole):
        return Choice.plain(net)
    return Choice.default(net)


def least_separation(net: Any, size: float, *, brief: bool) -> float | None:
    """Return the minimum separation of the classes for labels to be called wrong.

    Parameters
    ----------
    net : BSDClassifier
    size : float
        Number of training samples.
    brief : bool
        Whether training is brief.

    Returns
    -------
    float or None
        None if the criteria of :func:`fit_label_errors` suffice.
    """
    if not brief and net.max_epochs >= _FEW_WHOLE_EPOCHS:
        return None
    batch_size, _ = net._loader("iterator_train").resolved()
    per_epoch = 1 if batch_size == -1 else math.ceil(size / batch_size)
    unsettled = net.max_epochs * per_epoch < _SETTLED
    return _SEPARABLE if unsettled else _SEPARABLE_WHEN_SETTLED


def batch_size_of_fold(batch_size: int, n: int, n_fold: int) -> int:
    """Return the batch size for a fold that takes as many steps as all of the data.

    Parameters
    ----------
    batch_size : int
        For all of the data; -1 is one batch.
    n, n_fold : int
        Number of samples in total, and in the fold's training part.
    """
    if batch_size == -1 or batch_size >= n:
        return batch_size  # one batch stays one
    # Batch normalisation needs two samples.
    return min(batch_size, max(2, math.ceil(batch_size * n_fold / n)))


def label_errors(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    shows_images: bool,
    separable: float | None,
) -> LabelErrors:
    """Estimate calibration and label noise from held-out predictions.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    labels : Tensor of shape (n,)
    weight : Tensor of shape (n,)
    shows_images : bool
        Whether errors are the likely explanation of contradicted labels.
    separable : float or None
        Minimum separation of the classes, if more evidence than usual is required.
    """
    suspected = shows_images and separable is None
    found = fit_label_errors(logits, labels, weight, suspected=suspected)
    if separable is None or found.transition is None:
        return found
    contradicted = weight @ (logits.argmax(dim=1) != labels).to(weight)
    least = max(_LEAST_ERRORS, _MOSTLY * float(contradicted / weight.sum()))
    if found.rate >= least and found.separation >= separable:
        return found
    temperature, bias = fit_calibration(logits, labels, weight)
    return LabelErrors(temperature, bias, None, 0.0, found.separation)


def estimate_log_temperature(
    calibration: Calibration, logits: Tensor, labels: Tensor, weight: Tensor
) -> LogTemperature:
    r"""Estimate log T, with the bias and the label errors of a calibration fixed.

    The variance is :math:`\sum_i w_i s_i^2 / H^2` for scores :math:`s_i` and curvature
    H of the log likelihood. Unlike 1 / H, it is large if the estimate depends on a few
    labels that contradict confident predictions, as for data that the network fits
    almost without an error.

    Parameters
    ----------
    calibration : Calibration
    logits : Tensor of shape (n, n_classes)
    labels : Tensor of shape (n,)
    weight : Tensor of shape (n,)
    """
    precision = 1 / SD_LOG_TEMPERATURE**2

    def losses(log_t: float) -> Tensor:
        made = replace(
            calibration, temperature=math.exp(log_t), applies_transition=True
        )
        return log_losses(made(logits), labels)

    def penalised(log_t: float) -> float:
        return float(losses(log_t) @ weight) + precision * log_t**2 / 2

    found = minimize_scalar(
        penalised, bounds=_LOG_T, method="bounded", options={"xatol": 1e-7}
    )
    value = float(found.x)
    below, at, above = (losses(value + step) for step in (-_STEP, 0.0, _STEP))
    scores = (above - below) / (2 * _STEP)
    curvature = float((above - 2 * at + below) @ weight) / _STEP**2 + precision
    # A weight of w stands for w samples.
    variance = float(weight @ scores.square()) + precision
    variance /= max(curvature, precision) ** 2
    return LogTemperature(value, variance, float(at @ weight / weight.sum()))


def for_final_network(
    calibration: Calibration,
    learnt_by_folds: LogTemperature,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
) -> Calibration:
    """Return the calibration for the scale of the final network's logits.

    The best log T for training samples differs between the fold networks and the final
    network. The calibration's log T is shifted by this difference, shrunk towards zero
    according to its uncertainty. The bias is kept if it improves the final network's
    predictions.

    Parameters
    ----------
    calibration : Calibration
        From the fold networks' held-out predictions.
    learnt_by_folds : LogTemperature
        Best for the fold networks' predictions of their training samples.
    logits : Tensor of shape (n, n_classes)
        The final network's logits of its training samples.
    labels : Tensor of shape (n,)
    weight : Tensor of shape (n,)
    """
    own = estimate_log_temperature(calibration, logits, labels, weight)
    trust = 1 / (1 + (own.variance + learnt_by_folds.variance) / _SD_CHANGE**2)
    change = trust * (own.value - learnt_by_folds.value)
    if calibration.bias is not None:
        unbiased = replace(calibration, bias=None)
        if estimate_log_temperature(unbiased, logits, labels, weight).loss < own.loss:
            calibration = unbiased
    return replace(calibration, temperature=calibration.temperature * math.exp(change))
