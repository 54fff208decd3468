"""Predictions of samples that a network has not seen, and what follows from them.

Before the final network, others are trained on parts of the data and predict the rest.
From these predictions come learning rate, rule and calibration.
"""

import copy
import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_consistent_length, check_random_state
from skorch.callbacks import (
    EarlyStopping,
    GradientNormClipping,
    InputShapeSetter,
    LRScheduler,
    ParamMapper,
)
from skorch.utils import is_dataset
from torch import Tensor
from torch.utils.data import Subset

from ._checkpoint import CheckpointFile
from ._fitting import Fitting
from ._folds import deal, row_keys
from ._learning_rate import SCHEDULES
from ._loading import Split, TrainingData
from ._rules import Choice, rule_is_open
from ._run_checkpoint import parameters_that_count
from .calibration import (
    Calibration,
    LabelErrors,
    fit_label_errors,
    fit_temperature,
    log_losses,
)

# From so many samples on, two folds trained for half of the epochs tell as much as
# more and longer ones.
_ENOUGH = 450
_FEW_FOLDS = 4
# Above this, a part of the data is held out instead, and nothing trained twice.
LARGE = 20_000
HELD_OUT = 2_000
_SHORT = 0.5  # of the epochs
_LEAST = 20  # samples
_LOOKS = 8  # at the held-out loss of a training
_WITHIN = 0.5  # standard errors
# Share of wrong labels from which on they are forgotten.
_MUCH_NOISE = 0.12

# Callbacks of skorch's that change how a network is trained, and not only watch.
_ACTING = (
    EarlyStopping,
    GradientNormClipping,
    InputShapeSetter,
    LRScheduler,
    ParamMapper,
)


class Outcome(NamedTuple):
    """What predictions of unseen samples have told.

    Parameters
    ----------
    choice : Choice
        What the final network is trained with.
    calibration : Calibration
    proba : ndarray of shape (n_samples, n_classes) or None
        Calibrated predictions of each sample by a network that has not seen it, of its
        true label; NaN in the rows of samples that none has predicted.
    drift : ndarray of shape (n_classes,) or None
        Ratio of the mean predictions of unseen and of learnt samples.
    """

    choice: Choice
    calibration: Calibration
    proba: np.ndarray | None
    drift: np.ndarray | None = None


class _Look(NamedTuple):
    """Held-out logits in the middle of a training."""

    epoch: int
    logits: Tensor


def method_for(net: Any, data: TrainingData, *, keep: bool) -> str | None:
    """Return where predictions of unseen samples are to come from.

    Parameters
    ----------
    net : BSDClassifier
    data : TrainingData
    keep : bool
        Whether the network goes on from another call: its calibration stays as it is.
    """
    if net.calibration is None or keep:
        return None
    if data.size(data.weighted(np.arange(len(data.y)))) < _LEAST:
        return None
    if net.calibration != "auto":
        return net.calibration
    has_validation = net.train_split is not None
    return "hold-out" if has_validation or data.n_used > LARGE else "cross-fit"


def cross_fit(
    net: Any, data: TrainingData, split: Split, groups: np.ndarray | None
) -> Outcome:
    """Cross-fit, or return what a checkpoint holds of it.

    Parameters
    ----------
    net : BSDClassifier
    data : TrainingData
    split : Split
    groups : array-like of shape (n_samples,) or None
    """
    if groups is not None:
        check_consistent_length(data.y, groups)
        groups = np.asarray(groups)
    file = None
    if net.checkpoint is not None:
        identity = {
            "parameters": ("calibration", parameters_that_count(net)),
            "data": (data.identity, split.identity, groups),
            "start": None,
        }
        file = CheckpointFile(net.checkpoint, identity)
        saved = file.read()
        if saved is not None:
            choice, calibration = saved["choice"], saved["calibration"]
            proba = saved["proba"]
            made = Calibration(**calibration)
            return Outcome(Choice(**choice), made, proba, saved["drift"])
    outcome = CrossFit(net, data, split.rows, groups).run()
    if file is not None:
        state = {
            "choice": vars(outcome.choice),
            "calibration": vars(outcome.calibration),
            "proba": outcome.proba,
            "drift": outcome.drift,
        }
        file.write(state, 0)
    return outcome


class HoldOut:
    """A calibration from samples that the final network is not trained on.

    Parameters
    ----------
    net : BSDClassifier
    data : TrainingData
    split : Split
        Its validation data serve, where there are any.

    Attributes
    ----------
    split : Split
        Without the samples held out.
    choice : Choice
        What the network is trained with.
    """

    def __init__(self, net: Any, data: TrainingData, split: Split):
        self.net = net
        self.choice = Choice.default(net)
        if split.valid_rows is not None:
            self._rows = split.valid_rows
            self._data = data if split.valid_data is None else split.valid_data
            self._of_training = split.valid_data is None
        else:
            rows, self._data, self._of_training = split.rows, data, True
            n_parts = max(5, math.ceil(len(rows) / HELD_OUT))
            keys = row_keys(data.X, len(data.y))[rows]
            part = deal(keys, data.codes[rows], n_parts)
            self._rows = rows[part == 0]
            split = split._replace(rows=rows[part != 0])
        self.split = split

    def outcome(self) -> Outcome:
        """Calibrate, once the network is trained."""
        began = time.perf_counter()
        net, data, rows = self.net, self._data, self._rows
        size = data.size(rows)
        logits = net._all_logits(_part(data.X, rows)).double()
        labels, weight = (
            torch.from_numpy(data.codes[rows]),
            data.relative_weight(rows, size),
        )
        calibration = calibrate(
            fit_label_errors(logits, labels, weight),
            logits,
            labels,
            weight,
            net.label_noise,
            is_image=data.is_image(net.image_shape),
        )
        seconds = time.perf_counter() - began
        made = replace(calibration, method="hold-out", seconds=seconds)
        proba = np.full((len(data.y), logits.shape[1]), np.nan, np.float32)
        proba[rows] = made.scaled(logits).softmax(dim=1)
        own = self._of_training
        return Outcome(self.choice, made, proba if own else None)


class CrossFit:
    """Cross-fitting for one call of `fit`.

    Parameters
    ----------
    net : BSDClassifier
        What is fitted. It is cloned, and left as it is.
    data : TrainingData
        Checked.
    rows : ndarray of int
        Which of them are trained on.
    groups : ndarray or None
        Rows with the same group stay in one fold.
    """

    def __init__(
        self, net: Any, data: TrainingData, rows: np.ndarray, groups: np.ndarray | None
    ):
        self.net = net
        self.data = data
        self.rows = rows
        codes = data.codes[rows]
        self.codes = torch.from_numpy(codes)
        self.size = data.size(rows)
        self.weight = data.relative_weight(rows, self.size)
        if groups is None:
            keys = row_keys(data.X, len(data.y))[rows]
        else:
            keys = np.unique(groups, return_inverse=True)[1][rows]
        # Folds of rows that are the same but for their labels are not alike.
        pairs = np.unique(np.stack([keys, codes.astype(keys.dtype)]), axis=1)
        self.are_alike = len(np.unique(keys)) > _DISTINCT * pairs.shape[1]
        # Networks for images are slow, even on few of them.
        few = self.size < _ENOUGH and not data.is_image(net.image_shape)
        self.fold = deal(keys, codes, _FEW_FOLDS if few else 2)
        self.n_folds = int(self.fold.max()) + 1
        self.few = few
        share = 1.0 if few else _SHORT
        self.n_epochs = math.ceil(share * net.max_epochs)
        self.n_trained = 0
        self._seeds = _seeds(net.random_state, 3 * self.n_folds)
        self._estimates: dict[int, LabelErrors] = {}

    def run(self) -> Outcome:
        """Train on the folds, choose, and calibrate."""
        began = time.perf_counter()
        net, choice = self.net, Choice.default(self.net)
        every = list(range(self.n_folds))
        opens_lr, opens_rule = net.lr == "auto", rule_is_open(net)
        # Where folds cost, the second one is for another rule or another rate.
        thrifty = not self.few and (opens_lr or opens_rule)
        first, other = (every[:1], every[1:]) if thrifty else (every, every)
        seen = self._predictions(first, choice, look=opens_lr)
        final, others, is_whole = seen.last, [], not thrifty
        # More labels cannot be wrong than are predicted otherwise.
        if opens_rule and self._error_rate(final) > _MUCH_NOISE:
            robust = self._predictions(other, Choice.noisy(net)).last
            others, is_whole = [robust], True
            if self._errors(robust).rate > _MUCH_NOISE:
                choice, opens_lr = Choice.noisy(net), False
                final, others = robust, [final]
        amount = self._amount(seen) if opens_lr else 1.0
        if amount < 1:
            others.append(final)
            choice = replace(choice, lr=choice.lr * amount)
            final = self._predictions(other, choice).last
        elif not is_whole:
            final = _joined(final, self._predictions(other, choice).last)
        return self._outcome(choice, final, others, time.perf_counter() - began)

    # Training

    def _train(
        self, fold: int, choice: Choice, *, look: bool
    ) -> tuple[list[_Look], Tensor]:
        """Train without a fold; return its logits, and those of the other samples.

        The first are from several moments of the training, the last ones from its end.

        The final network takes more steps. What it learns at a low rate, this one
        learns at a higher one, so that the sum of the rates over the steps is the same,
        as far as that is not above the rate that is tried first.
        """
        held = self.rows[self.fold == fold]
        rows = self.rows[self.fold != fold]
        share = float(self.weight[self.fold != fold].sum()) / self.size
        share *= self.n_epochs / self.net.max_epochs
        lr = min(choice.lr / share, Choice.default(self.net).lr)
        net = _fold_net(
            self.net, replace(self._shortened(choice), lr=lr), self.n_epochs
        )
        net.random_state = self._seeds[self.n_trained % len(self._seeds)]
        self.n_trained += 1
        every = max(1, self.n_epochs // _LOOKS)
        X = _part(self.data.X, held)
        looks: list[_Look] = []

        def after_epoch() -> None:
            epoch = net._run.epoch
            if look and epoch % every == 0 and epoch < self.n_epochs:
                looks.append(_Look(epoch, net._all_logits(X)))

        datasets = {"dataset_train": net.get_dataset(self.data.X, self.data.y)}
        split = Split(rows, None, None, {**datasets, "dataset_valid": None})
        fitting = Fitting(net, self.data, split, keep=False, after_epoch=[after_epoch])
        if fitting.train() is not None:
            raise KeyboardInterrupt
        looks.append(_Look(self.n_epochs, net._all_logits(X)))
        return looks, net._all_logits(_part(self.data.X, rows)).double()

    # Choosing

    def _shortened(self, choice: Choice) -> Choice:
        """Return the rule that ends a short training with the targets of a whole one.

        The label's share of a target is c / (c + T), and the discount's T-th power.
        """
        share = self.n_epochs / self.net.max_epochs
        strength = choice.prior_strength
        if not isinstance(strength, str) and self.net.prior_strength == "auto":
            strength = strength * share
        discount = choice.discount ** (1 / share)
        return replace(choice, prior_strength=strength, discount=discount)

    def _predictions(
        self, folds: list[int], choice: Choice, *, look: bool = False
    ) -> "_Seen":
        """Train without each of some folds, and put the predictions together."""
        trained = [self._train(fold, choice, look=look) for fold in folds]
        looks = [held_out for held_out, _ in trained]
        where = [np.flatnonzero(self.fold == fold) for fold in folds]
        logits = [
            torch.cat([look.logits for look in at]).double()
            for at in zip(*looks, strict=True)
        ]
        epochs = [look.epoch for look in looks[0]]
        learnt = torch.cat([logits for _, logits in trained])
        whence = np.concatenate([np.flatnonzero(self.fold != fold) for fold in folds])
        held_out = np.concatenate(where)
        return _Seen(epochs, torch.stack(logits), held_out, learnt, whence)

    def _error_rate(self, predicted: "_Predicted") -> float:
        labels, weight = self.codes[predicted.where], self.weight[predicted.where]
        wrong = predicted.logits.argmax(dim=1) != labels
        return float((weight * wrong).sum() / weight.sum())

    def _errors(self, predicted: "_Predicted") -> LabelErrors:
        """Return what predictions say of their labels; it is asked for twice."""
        key = id(predicted)
        if key not in self._estimates:
            labels, weight = self.codes[predicted.where], self.weight[predicted.where]
            self._estimates[key] = fit_label_errors(predicted.logits, labels, weight)
        return self._estimates[key]

    def _amount(self, seen: "_Seen") -> float:
        """Return by how much less the final network is to learn, in (0, 1].

        The latest epoch whose held-out loss is as good as the best one, within half a
        standard error, says how much training the data bear: the sum of the learning
        rates up to it.
        """
        epochs, where = seen.epochs, seen.where
        labels, weight = self.codes[where], self.weight[where]
        temperature = fit_temperature(seen.logits, labels, weight)
        losses = log_losses(seen.logits / temperature[:, None, None], labels)
        best = int((losses @ weight).argmin())
        excess = losses - losses[best]
        mean = excess @ weight / weight.sum()
        spread = ((excess - mean[:, None]).square() @ weight / weight.sum()).sqrt()
        within = mean <= _WITHIN * spread / math.sqrt(float(weight.sum()))
        latest = int(torch.nonzero(within).max())
        if latest == len(epochs) - 1:
            return 1.0
        factor = SCHEDULES[self.net.lr_schedule]
        grid = (np.arange(1000) + 0.5) / 1000
        factors = np.array([factor(progress) for progress in grid])
        part = factors[grid < epochs[latest] / self.n_epochs].sum() / factors.sum()
        share = (1 - 1 / self.n_folds) * self.n_epochs / self.net.max_epochs
        # How much the data bear is known up to what a fold has learnt, a part of what
        # the final network will: near the end of that, the one goes over to the other.
        known = min(1.0, _CERTAIN * (1 - part))
        amount = float(part * share**known)
        return 1.0 if amount > _NEARLY_ALL else max(_LEAST_RATE, amount)

    # Calibration

    def _outcome(
        self,
        choice: Choice,
        final: "_Predicted",
        others: list["_Predicted"],
        seconds: float,
    ) -> Outcome:
        labels, weight = self.codes[final.where], self.weight[final.where]
        calibration = calibrate(
            self._errors(final),
            final.logits,
            labels,
            weight,
            self.net.label_noise,
            is_image=self.data.is_image(self.net.image_shape),
        )
        described = replace(
            calibration,
            method="cross-fit",
            n_folds=self.n_trained,
            n_epochs=self.n_epochs,
            seconds=seconds,
        )
        proba = np.full((len(self.data.y), final.logits.shape[1]), np.nan, np.float32)
        for other in others:  # of samples that the last networks have learnt from
            found = self._errors(other)
            scaled = Calibration(found.temperature, found.bias)(other.logits)
            proba[self.rows[other.where]] = scaled.softmax(dim=1)
        scaled = described.scaled(final.logits)
        proba[self.rows[final.where]] = scaled.softmax(dim=1)
        unseen = self._excess(described, final.logits, final.where)
        drift = unseen / self._excess(described, final.learnt, final.whence)
        if not self.are_alike:
            drift = np.ones_like(drift)
        return Outcome(choice, described, proba, drift)

    def _excess(
        self, calibration: Calibration, logits: Tensor, where: np.ndarray
    ) -> np.ndarray:
        """Return the mean prediction of each class, over its share of the labels."""
        weight = self.weight[where]
        counts = np.bincount(self.codes[where], weight, minlength=logits.shape[1])
        share = (counts + 1e-9) / counts.sum()
        return _mean(calibration, logits, weight) / share


def _mean(calibration: Calibration, logits: Tensor, weight: Tensor) -> np.ndarray:
    """Return the mean predicted probability of each class."""
    proba = calibration.scaled(logits).softmax(dim=1)
    return (weight @ proba / weight.sum()).numpy()


def with_base_rates(
    net: Any, outcome: Outcome, data: TrainingData, rows: np.ndarray
) -> Calibration:
    """Return the calibration with a bias that restores the base rates of rare classes.

    The final network's mean prediction of unseen samples is that of the samples that it
    has learnt, times what the folds say is between the two. Where it is not the share
    of the labels, the bias makes up for the difference, the less so the rarer a class.

    Parameters
    ----------
    net : BSDClassifier
        With the final network.
    outcome : Outcome
    data : TrainingData
    rows : ndarray of int
        That the final network was trained on.
    """
    calibration = outcome.calibration
    if outcome.drift is None or calibration.transition is not None:
        return calibration
    size = data.size(rows)
    weight = data.relative_weight(rows, size)
    counts = np.bincount(data.codes[rows], weight.numpy(), minlength=len(outcome.drift))
    if counts.min() * len(counts) > _UNBALANCED * size:
        return calibration
    learnt = net._all_logits(_part(data.X, rows)).double()
    expected = _mean(calibration, learnt, weight)
    wanted = np.maximum(counts, 1e-9) / size / outcome.drift
    trust = counts / (counts + _PSEUDO_COUNT)
    wanted = expected * (wanted / expected) ** trust
    bias = np.zeros(len(counts)) if calibration.bias is None else calibration.bias
    for _ in range(_ROUNDS):
        calibration = replace(calibration, bias=bias)
        bias = bias + np.log(wanted / _mean(calibration, learnt, weight))
    return calibration


_PSEUDO_COUNT = 10.0
_UNBALANCED = 0.5  # of the mean number of samples per class
_ROUNDS = 10
_LEAST_RATE = 0.01
_CERTAIN = 6.0
_NEARLY_ALL = 0.9
_DISTINCT = 0.95  # rows among pairs of row and label


class _Predicted(NamedTuple):
    """Logits of samples that the network had not seen."""

    logits: Tensor
    where: np.ndarray  # among the rows that are trained on
    learnt: Tensor  # logits of the samples that they were trained on
    whence: np.ndarray  # these are, among the rows that are trained on


class _Seen(NamedTuple):
    """Held-out logits of several epochs."""

    epochs: list[int]
    logits: Tensor  # (n_epochs, n, n_classes)
    where: np.ndarray
    learnt: Tensor  # logits of the samples that were trained on, at the end
    whence: np.ndarray  # these are, among the rows that are trained on

    @property
    def last(self) -> _Predicted:
        return _Predicted(self.logits[-1], self.where, self.learnt, self.whence)


def _joined(a: _Predicted, b: _Predicted) -> _Predicted:
    return _Predicted(
        torch.cat([a.logits, b.logits]),
        np.concatenate([a.where, b.where]),
        torch.cat([a.learnt, b.learnt]),
        np.concatenate([a.whence, b.whence]),
    )


def calibrate(
    found: LabelErrors,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    label_noise: str,
    *,
    is_image: bool,
) -> Calibration:
    """Estimate a calibration from predictions of unseen samples.

    Parameters
    ----------
    found : LabelErrors
    logits : Tensor of shape (n, n_classes)
    labels : Tensor of shape (n,)
    weight : Tensor of shape (n,)
        Whose sum is the number of samples.
    label_noise : {"auto", "errors", "inherent", "ignore"}
    is_image : bool
    """
    logits = logits.double()
    is_error = label_noise == "errors"
    if label_noise == "auto":
        is_error = is_image or found.separation > _SEPARABLE
    made = Calibration(
        found.temperature,
        found.bias,
        found.transition,
        applies_transition=not is_error,
        noise_rate=found.rate,
        noise_rate_interval=_interval(found.rate, float(weight.sum())),
        n_samples=len(labels),
    )
    before, after = (
        float(log_losses(z, labels) @ weight / weight.sum())
        for z in (logits, replace(made, applies_transition=True)(logits))
    )
    return replace(made, log_loss_before=before, log_loss_after=after)


_SEPARABLE = 0.77


def _interval(rate: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z = 1.96
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _fold_net(net: Any, choice: Choice, n_epochs: int) -> Any:
    """Return an estimator for a fold: the same, trained silently and once."""
    copied = clone(net)
    vars(copied).pop("_skl_callbacks", None)
    copied.set_params(
        lr=choice.lr,
        prior_strength=choice.prior_strength,
        discount=choice.discount,
        evidence=choice.evidence,
        max_epochs=n_epochs,
        calibration=None,
        checkpoint=None,
        train_split=None,
        warm_start=False,
        verbose=0,
        callbacks=_acting(net.callbacks),
    )
    return copied


def _acting(callbacks: Any) -> Any:
    """Return copies of the callbacks that change how a network is trained."""
    if not isinstance(callbacks, list):
        return callbacks
    chosen = []
    for entry in callbacks:
        callback = entry[1] if isinstance(entry, tuple | list) else entry
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, _ACTING):
            chosen.append(copy.deepcopy(entry))
    return chosen


def _part(X: Any, rows: np.ndarray) -> Any:
    if is_dataset(X):
        return Subset(X, rows.tolist())
    return X[torch.from_numpy(rows).to(X.device)] if isinstance(X, Tensor) else X[rows]


def _seeds(random_state: Any, n: int) -> list[int | None]:
    """Return seeds for the folds, without a draw from the user's own generator."""
    if random_state is None:
        return [None] * n
    rng = copy.deepcopy(check_random_state(random_state))
    rng.randint(2**31 - 1)  # the final network's
    return rng.randint(2**31 - 1, size=n).tolist()
