"""Calibration of trainings too brief for a part of them to tell much.

After few epochs the scale of the logits differs from network to network. So the folds
tell how predictions of unseen samples differ from those of learnt ones, and the final
network's predictions of what it has learnt do the rest.
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

# A training of so few epochs is brief.
_FEW_EPOCHS = 10
# So is a longer one if half of its epochs, on half of the data, are only so few steps.
_FEW_STEPS = 40
# Small tables have folds of all epochs otherwise, which are long enough from here on.
# Below, wrong labels are believed in on more evidence, however many steps there are.
_FEW_WHOLE_EPOCHS = 20
# From so many samples on, two folds trained for half of the epochs tell as much as
# more and longer ones, if training is not brief.
_ENOUGH = 450
# A network that has hardly learnt contradicts labels for want of training. Errors are
# believed where they are so large a share of the contradicted labels, where the true
# classes are told apart so well (1 is certainty), and where so many of all labels are
# wrong: to take the few contradictions of nature for errors costs more than it gains.
_MOSTLY = 0.5
_SEPARABLE = 0.8
_SEPARABLE_WHEN_SETTLED = 0.5
_SETTLED = 30  # steps, after which the statistics of batch normalisation are right
_LEAST_ERRORS = 0.05
# Prior standard deviation of log T, of the final network beside those of the folds.
_SD_CHANGE = 0.15
_LOG_T = (-6.0, 4.0)
_STEP = 0.01  # of numerical derivatives


class LogTemperature(NamedTuple):
    """An estimate of log T.

    Parameters
    ----------
    value : float
    variance : float
        Of the estimate, also where the model is wrong.
    loss : float
        Mean log loss at the estimate.
    """

    value: float
    variance: float
    loss: float


def is_small_table(size: float, *, shows_images: bool) -> bool:
    """Whether more and longer folds are worth their time.

    Parameters
    ----------
    size : float
        Samples that are trained on.
    shows_images : bool
        Networks for images are slow, even on few of them.
    """
    return size < _ENOUGH and not shows_images


def is_brief(
    net: Any, size: float, *, shows_images: bool, n_epochs: int | None = None
) -> bool:
    """Whether a training is too brief for the folds of longer ones.

    Parameters
    ----------
    net : BSDClassifier
    size : float
        Samples that are trained on.
    shows_images : bool
    n_epochs : int, default=None
        Of the training; None is the net's `max_epochs`.
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
    """Return what a training begins with, whatever is chosen afterwards.

    One that is the beginning of a longer one, by `schedule_epochs`, begins as that does
    and may be brief all the same.

    Parameters
    ----------
    net : BSDClassifier
    size : float
        Samples that are trained on.
    shows_images : bool
    """
    whole = schedule_length(net)
    if is_brief(net, size, shows_images=shows_images, n_epochs=whole):
        return Choice.plain(net)
    return Choice.default(net)


def least_separation(net: Any, size: float, *, brief: bool) -> float | None:
    """Return how well classes must be told apart for labels to be called wrong.

    Parameters
    ----------
    net : BSDClassifier
    size : float
        Samples that are trained on.
    brief : bool
        Whether training is brief.

    Returns
    -------
    float or None
        None where it takes no more than :func:`fit_label_errors` asks for.
    """
    if not brief and net.max_epochs >= _FEW_WHOLE_EPOCHS:
        return None
    batch_size, _ = net._loader("iterator_train").resolved()
    per_epoch = 1 if batch_size == -1 else math.ceil(size / batch_size)
    unsettled = net.max_epochs * per_epoch < _SETTLED
    return _SEPARABLE if unsettled else _SEPARABLE_WHEN_SETTLED


def batch_size_of_fold(batch_size: int, n: int, n_fold: int) -> int:
    """Return the batch size with which a part of the data takes as many steps as all.

    Parameters
    ----------
    batch_size : int
        For all of them; -1 is all of them.
    n, n_fold : int
        Samples, and those of the part.
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
    """Estimate calibration and label noise of predictions of unseen samples.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    labels : Tensor of shape (n,)
    weight : Tensor of shape (n,)
    shows_images : bool
        Whether errors are what to think of first.
    separable : float or None
        How well the classes must be told apart, if it takes more evidence than usual.
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
    r"""Estimate log T beside the bias and the errors of a calibration.

    Its variance is :math:`\sum_i w_i s_i^2 / H^2` for scores :math:`s_i` and curvature
    H of the log likelihood. Unlike 1 / H it is large where a few labels that contradict
    sure predictions decide, as on data that were learnt nearly without an error.

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
    # A weight counts as so many samples.
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
    """Return the calibration for the scale that the final network's logits have.

    log T changes by as much as the best one of learnt samples does from the folds to
    the final network, the less so the less certain that is. A bias stays if the final
    network's predictions are better with it.

    Parameters
    ----------
    calibration : Calibration
        From the folds' predictions of unseen samples.
    learnt_by_folds : LogTemperature
        Of their predictions of the others.
    logits : Tensor of shape (n, n_classes)
        The final network's, of what it has learnt.
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
