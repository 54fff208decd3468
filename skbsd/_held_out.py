"""Calibration from held-out predictions."""

import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._brief import (
    LogTemperature,
    first_choice,
    for_final_network,
    is_brief,
    label_errors,
    least_separation,
)
from ._folds import deal, row_keys
from ._loading import Split, TrainingData
from ._preparation import is_image
from ._rules import Choice
from .calibration import Calibration, LabelErrors, log_losses

_HELD_OUT = 2_000  # maximum number of held-out samples
_LEAST_PARTS = 5
# Minimum separation of the true classes for contradicting labels to be errors.
_SEPARABLE = 0.77
# A class is rare if it has at most this share of the mean number of samples.
_RARE = 0.5
_PRIOR_SAMPLES = 10.0  # pseudo-samples per class that are predicted at its base rate
_ROUNDS = 10


class Outcome(NamedTuple):
    """What was chosen and estimated from held-out predictions.

    Parameters
    ----------
    choice : Choice
        The settings of the final network's training.
    calibration : Calibration
    proba : ndarray of shape (n_samples, n_classes) or None
        Calibrated predictions of each sample's true label by a network that was not
        trained on the sample; NaN in the rows of samples without a prediction.
    drift : ndarray of shape (n_classes,) or None
        Ratio of the mean predictions of held-out and of training samples, if a class is
        rare.
    learnt : LogTemperature or None
        Best temperature for the training samples of the fold networks, if training is
        brief.
    """

    choice: Choice
    calibration: Calibration
    proba: np.ndarray | None
    drift: np.ndarray | None = None
    learnt: LogTemperature | None = None


def calibrate(
    found: LabelErrors,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    label_noise: str,
    *,
    shows_images: bool,
) -> Calibration:
    """Build a calibration from estimated parameters.

    Parameters
    ----------
    found : LabelErrors
        Estimated from the same predictions.
    logits : Tensor of shape (n, n_classes)
    labels : Tensor of shape (n,)
    weight : Tensor of shape (n,)
        Its sum is the number of samples.
    label_noise : {"auto", "errors", "inherent"}
    shows_images : bool
    """
    is_error = label_noise == "errors"
    if label_noise == "auto":
        is_error = shows_images or found.separation > _SEPARABLE
    size = float(weight.sum())
    given = Calibration(found.temperature, found.bias, found.transition, True)
    share = torch.zeros(logits.shape[1]).to(weight).index_add(0, labels, weight) / size
    before, after = (
        float(log_losses(z, labels) @ weight / size) for z in (logits, given(logits))
    )
    return replace(
        given,
        applies_transition=not is_error,
        noise_rate=found.rate,
        noise_rate_interval=_interval(found.rate, size),
        n_samples=len(labels),
        log_loss_before=before,
        log_loss_after=after,
        log_loss_of_frequencies=float(torch.special.entr(share).sum()),
    )


def _interval(rate: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion."""
    z = 1.96
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    low, high = centre - half, centre + half
    return (0.0 if rate == 0 else max(0.0, low)), min(1.0, high)


class HoldOut:
    """Calibration from samples that the final network is not trained on.

    Parameters
    ----------
    net : BSDClassifier
    data : TrainingData
    split : Split
        Its validation data are used, if there are any.
    groups : ndarray or None
        Rows of the same group are held out together.

    Attributes
    ----------
    split : Split
        The split without the held-out samples.
    choice : Choice
        The settings of the network's training.
    """

    def __init__(
        self, net: Any, data: TrainingData, split: Split, groups: np.ndarray | None
    ):
        self.net = net
        size, self._is_image = data.size(split.rows), is_image(data.X, net.image_shape)
        brief = is_brief(net, size, shows_images=self._is_image)
        self._separable = least_separation(net, size, brief=brief)
        self.choice = first_choice(net, size, shows_images=self._is_image)
        self._data, self._rows = data, split.valid_rows
        if split.valid_data is not None:
            self._data = split.valid_data
        elif split.valid_rows is None:
            held_out = _held_out(data, split.rows, groups)
            self._rows = split.rows[held_out]
            split = split._replace(rows=split.rows[~held_out])
        self.split = split

    def outcome(self) -> Outcome | None:
        """Calibrate after training; None if all rows belong to one group."""
        began = time.perf_counter()
        net, data, rows = self.net, self._data, self._rows
        assert rows is not None
        if not len(rows):
            return None
        logits = net._logits_of(data.X, rows).double()
        labels = torch.from_numpy(data.codes[rows])
        weight = data.relative_weight(rows, data.size(rows))
        calibration = calibrate(
            label_errors(
                logits,
                labels,
                weight,
                shows_images=self._is_image,
                separable=self._separable,
            ),
            logits,
            labels,
            weight,
            net.label_noise,
            shows_images=self._is_image,
        )
        seconds = time.perf_counter() - began
        calibration = replace(calibration, method="hold-out", seconds=seconds)
        if self.split.valid_data is not None or not net.posterior_._is_dense:
            # Validation data are not rows of X, or a dense array would be too large.
            return Outcome(self.choice, calibration, None)
        proba = np.full((len(data.y), logits.shape[1]), np.nan, np.float32)
        proba[rows] = calibration.scaled(logits).softmax(dim=1)
        return Outcome(self.choice, calibration, proba)


def _held_out(
    data: TrainingData, rows: np.ndarray, groups: np.ndarray | None
) -> np.ndarray:
    """Return a mask of the rows to hold out; each class keeps training samples."""
    n_parts = max(_LEAST_PARTS, math.ceil(len(rows) / _HELD_OUT))
    codes = data.codes[rows]
    held_out = deal(row_keys(data, rows, groups), codes, n_parts) == 0
    left = np.bincount(codes[~held_out], minlength=len(data.classes))
    return held_out & (left[codes] > 0)


def with_own_scale(
    net: Any, outcome: Outcome, data: TrainingData, rows: np.ndarray
) -> Outcome:
    """Adapt the outcome to the scale of the final network's logits.

    Parameters
    ----------
    net : BSDClassifier
        With the final network.
    outcome : Outcome
    data : TrainingData
    rows : ndarray of int
        The training rows of the final network.
    """
    if outcome.learnt is None:
        return outcome
    calibration = for_final_network(
        outcome.calibration,
        outcome.learnt,
        net._logits_of(data.X, rows).double(),
        torch.from_numpy(data.codes[rows]),
        data.relative_weight(rows, data.size(rows)),
    )
    return outcome._replace(calibration=calibration)


def has_rare_class(data: TrainingData, rows: np.ndarray) -> bool:
    """Whether some class has few rows compared with the other classes.

    Parameters
    ----------
    data : TrainingData
    rows : ndarray of int
    """
    weight = data.relative_weight(rows, data.size(rows))
    counts = _class_counts(data, rows, weight)
    return bool(counts.min() * len(counts) <= _RARE * data.size(rows))


def _class_counts(data: TrainingData, rows: np.ndarray, weight: Tensor) -> np.ndarray:
    return np.bincount(data.codes[rows], weight, minlength=len(data.classes))


def with_base_rates(
    net: Any, outcome: Outcome, data: TrainingData, rows: np.ndarray
) -> Calibration:
    """Return the calibration with a bias that restores the base rates of rare classes.

    The final network's mean prediction of new samples is estimated as that of its
    training samples, times the ratio of the two in the folds. If it differs from the
    frequency of the class among the labels, the bias corrects the difference. The
    correction is weaker for rarer classes, whose frequency is less certain.

    Parameters
    ----------
    net : BSDClassifier
        With the final network.
    outcome : Outcome
    data : TrainingData
    rows : ndarray of int
        The training rows of the final network.
    """
    calibration = outcome.calibration
    if outcome.drift is None or calibration.transition is not None:
        return calibration
    weight = data.relative_weight(rows, data.size(rows))
    counts = _class_counts(data, rows, weight)
    learnt = net._logits_of(data.X, rows).double()
    expected = mean_proba(calibration, learnt, weight)
    wanted = np.maximum(counts, 1e-9) / data.size(rows) / outcome.drift
    trust = counts / (counts + _PRIOR_SAMPLES)
    wanted = expected * (wanted / expected) ** trust
    bias = np.zeros(len(counts)) if calibration.bias is None else calibration.bias
    for _ in range(_ROUNDS):
        calibration = replace(calibration, bias=bias)
        bias = bias + np.log(wanted / mean_proba(calibration, learnt, weight))
    return calibration


def mean_proba(calibration: Calibration, logits: Tensor, weight: Tensor) -> np.ndarray:
    """Return the mean predicted probability of each class.

    Parameters
    ----------
    calibration : Calibration
    logits : Tensor of shape (n, n_classes)
    weight : Tensor of shape (n,)
    """
    proba = calibration.scaled(logits).softmax(dim=1)
    return (weight @ proba / weight.sum()).numpy()


def excess(
    calibration: Calibration, logits: Tensor, labels: Tensor, weight: Tensor
) -> np.ndarray:
    """Return the mean prediction of each class, divided by its share of the labels.

    Each class gets a few pseudo-samples that are predicted at its base rate.

    Parameters
    ----------
    calibration : Calibration
    logits : Tensor of shape (n, n_classes)
    labels : Tensor of shape (n,)
    weight : Tensor of shape (n,)
    """
    counts = np.bincount(labels, weight, minlength=logits.shape[1])
    predicted = mean_proba(calibration, logits, weight) * counts.sum()
    return (predicted + _PRIOR_SAMPLES) / (counts + _PRIOR_SAMPLES)
