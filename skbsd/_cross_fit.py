"""Cross-fitting: out-of-fold predictions, and the choices that are based on them.

Before the final network, fold networks are trained on parts of the data and predict the
rest. Their predictions determine the learning rate, the update rule and the
calibration.
"""

import math
import time
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_consistent_length
from torch import Tensor

from ._brief import (
    LogTemperature,
    batch_size_of_fold,
    estimate_log_temperature,
    first_choice,
    is_brief,
    is_small_table,
    label_errors,
    least_separation,
)
from ._checkpoint import CheckpointFile
from ._fitting import Fitting, Trainings
from ._fold_nets import fold_net, seeds
from ._folds import are_alike, deal, row_keys
from ._held_out import Outcome, calibrate, excess, has_rare_class
from ._learning_rate import SCHEDULES
from ._loading import Split, TrainingData
from ._preparation import is_image
from ._ranks import current
from ._rules import Choice, rate_is_open, rule_is_open, schedule_length
from ._run import DivergenceError
from ._run_checkpoint import parameters_that_count
from .calibration import Calibration, LabelErrors, fit_temperature, log_losses

_SHORT = 0.5  # of the epochs
_FEW_FOLDS = 4
# Above this, a part of the data is held out, and only the final network is trained.
_LARGE = 20_000
_LEAST = 20  # minimum number of samples for a calibration
_LOOKS = 8  # evaluations of the held-out loss during a training
_WITHIN = 0.5  # standard errors
# Fraction of wrong labels above which labels are forgotten during training.
_MUCH_NOISE = 0.12
_LEAST_RATE = 0.01  # relative to the learning rate that is tried first
_NEARLY_ALL = 0.9
_CERTAIN = 6.0


def method_for(net: Any, data: TrainingData, *, keep: bool) -> str | None:
    """Return how held-out predictions are obtained, or None if they are not.

    Parameters
    ----------
    net : BSDClassifier
    data : TrainingData
    keep : bool
        Whether the call continues from a previous one, whose calibration is kept.
    """
    if net.calibration is None or keep or net.max_epochs == 0:
        return None
    size = data.size(data.weighted(np.arange(len(data.y))))
    if size < _LEAST:
        return None
    own_order = {"sampler", "batch_sampler"} & net.get_params_for(
        "iterator_train"
    ).keys()
    if own_order and net.calibration != "auto":
        raise ValueError(
            f"calibration={net.calibration!r} trains on parts of the data, which "
            f"iterator_train__{min(own_order)} does not know; pass calibration=None."
        )
    if own_order:
        return None
    if net.calibration != "auto":
        return net.calibration
    has_validation = net.train_split is not None
    return "hold-out" if has_validation or data.n_used > _LARGE else "cross-fit"


def cross_fit(
    net: Any, data: TrainingData, split: Split, groups: np.ndarray | None
) -> Trainings[Outcome | None]:
    """Cross-fit, or return the result that a checkpoint holds.

    Yields the trainings of the fold networks.

    Parameters
    ----------
    net : BSDClassifier
    data : TrainingData
    split : Split
    groups : ndarray of shape (n_samples,) or None

    Returns
    -------
    Outcome or None
        None if all rows belong to one group, or if a fold network diverged.
    """
    file, ranks = None, current(net.devices)
    if net.checkpoint is not None:
        identity = {
            "parameters": ("calibration", parameters_that_count(net)),
            "data": (data.identity, split.identity, groups),
            "start": None,
        }
        file = ranks.first_does(lambda: CheckpointFile(net.checkpoint, identity))
        saved = ranks.first_does(file.read)
        if saved is not None:
            made = Calibration(**saved["calibration"])
            learnt = saved["learnt"]
            return Outcome(
                Choice(**saved["choice"]),
                made,
                saved["proba"],
                saved["drift"],
                None if learnt is None else LogTemperature(**learnt),
            )
    folds = CrossFit(net, data, split.rows, groups)
    if folds.n_folds < 2:
        return None
    try:
        outcome = yield from folds.run()
    except DivergenceError as error:
        warnings.warn(
            "the probabilities are not calibrated, as a network that was trained on a "
            f"part of the data diverged: {error}",
            ConvergenceWarning,
            stacklevel=7,
        )
        return None
    if file is not None:
        state = {
            "choice": vars(outcome.choice),
            "calibration": vars(outcome.calibration),
            "proba": outcome.proba,
            "drift": outcome.drift,
            "learnt": None if outcome.learnt is None else outcome.learnt._asdict(),
        }
        ranks.first_does(lambda: file.write(state, 0))
    return outcome


def checked_groups(data: TrainingData, groups: Any) -> np.ndarray | None:
    """Return groups as an array, one per sample.

    Parameters
    ----------
    data : TrainingData
    groups : array-like of shape (n_samples,) or None
    """
    if groups is None:
        return None
    check_consistent_length(data.y, groups)
    return np.asarray(groups)


class _Look(NamedTuple):
    """Held-out logits after some epoch of a training."""

    epoch: int
    logits: Tensor


class _Trained(NamedTuple):
    """The predictions of a trained fold network."""

    looks: list[_Look]
    unseen: Tensor  # logits of the held-out samples
    learnt: Tensor  # logits of its training samples, if they are needed


class _Predicted(NamedTuple):
    """Logits of several fold networks, and the rows that they predict."""

    unseen: Tensor
    unseen_rows: np.ndarray
    learnt: Tensor
    learnt_rows: np.ndarray
    epochs: list[int]  # at which the network was evaluated, including the last
    curve: Tensor  # (n_epochs, n, n_classes), of the held-out samples

    def joined(self, other: "_Predicted") -> "_Predicted":
        """Concatenate two; the curve is that of the first."""
        return self._replace(
            unseen=torch.cat([self.unseen, other.unseen]),
            unseen_rows=np.concatenate([self.unseen_rows, other.unseen_rows]),
            learnt=torch.cat([self.learnt, other.learnt]),
            learnt_rows=np.concatenate([self.learnt_rows, other.learnt_rows]),
        )


class CrossFit:
    """Cross-fitting for one call of `fit`.

    Parameters
    ----------
    net : BSDClassifier
        The estimator that is fitted. It is not changed.
    data : TrainingData
        Checked.
    rows : ndarray of int
        The training rows.
    groups : ndarray or None
        Rows of the same group stay in one fold.
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
        keys = row_keys(data, rows, groups)
        self.are_alike = are_alike(keys, codes)
        self.has_rare_class = has_rare_class(data, rows)
        self.is_image = is_image(data.X, net.image_shape)
        self.is_brief = is_brief(net, self.size, shows_images=self.is_image)
        is_small = is_small_table(self.size, shows_images=self.is_image)
        self.is_small = is_small and not self.is_brief
        self.fold = deal(keys, codes, _FEW_FOLDS if self.is_small else 2)
        self.n_folds = int(self.fold.max()) + 1
        share = 1.0 if self.is_small or self.is_brief else _SHORT
        self.n_epochs = math.ceil(share * net.max_epochs)
        self.schedule_epochs = math.ceil(share * schedule_length(net))
        self.n_trained = 0
        self._seeds = seeds(net.random_state, 3 * self.n_folds)
        self._known: list[tuple[_Predicted, LabelErrors]] = []

    def run(self) -> Trainings[Outcome]:
        """Train fold networks, choose rate and rule, and calibrate."""
        began, net = time.perf_counter(), self.net
        choice = first_choice(net, self.size, shows_images=self.is_image)
        if self.is_brief:
            final = yield from self._predictions(list(range(self.n_folds)), choice)
            return self._outcome(choice, final, [], time.perf_counter() - began)
        opens_rate, opens_rule = rate_is_open(net), rule_is_open(net)
        folds = list(range(self.n_folds))
        # If folds are expensive, the second one serves to try another rule or rate.
        saves = not self.is_small and (opens_rate or opens_rule)
        first, second = (folds[:1], folds[1:]) if saves else (folds, folds)
        plain = yield from self._predictions(first, choice, look=opens_rate)
        final, rest, is_whole = plain, [], not saves
        # The fraction of wrong labels cannot exceed that of disagreeing predictions.
        if opens_rule and self._error_rate(plain) > _MUCH_NOISE:
            robust = yield from self._predictions(second, Choice.noisy(net))
            rest, is_whole = [robust], True
            if self._errors(robust).rate > _MUCH_NOISE:
                final, rest = robust, [plain]
                choice, opens_rate = Choice.noisy(net), False
        amount = self._amount(plain) if opens_rate else 1.0
        if amount < 1:
            rest.append(plain)
            choice = replace(choice, lr=choice.lr * amount)
            final = yield from self._predictions(second, choice)
        elif not is_whole:
            further = yield from self._predictions(second, choice)
            final = plain.joined(further)
        return self._outcome(choice, final, rest, time.perf_counter() - began)

    # Training

    def _predictions(
        self, folds: list[int], choice: Choice, *, look: bool = False
    ) -> Trainings[_Predicted]:
        """Train one network without each of these folds; collect the predictions."""
        trained = []
        for fold in folds:
            trained.append((yield from self._train(fold, choice, look=look)))
        unseen = torch.cat([part.unseen for part in trained])
        # A callback may have stopped one of the trainings early.
        looks = list(zip(*(part.looks for part in trained), strict=False))
        curve = [torch.cat([look.logits for look in at]).double() for at in looks]
        return _Predicted(
            unseen,
            np.concatenate([np.flatnonzero(self.fold == fold) for fold in folds]),
            torch.cat([part.learnt for part in trained]),
            np.concatenate([np.flatnonzero(self.fold != fold) for fold in folds]),
            [at[0].epoch for at in looks] + [self.n_epochs],
            torch.stack([*curve, unseen]),
        )

    def _train(self, fold: int, choice: Choice, *, look: bool) -> Trainings[_Trained]:
        """Train a network without one fold.

        The final network takes more steps than a fold network. The learning rate is
        raised so that the sum of the rates over the steps is the same, up to the rate
        that is tried first. If training is brief, the fold network instead takes as
        many steps as the final one, with smaller batches.
        """
        held_out = self.rows[self.fold == fold]
        rows = self.rows[self.fold != fold]
        batch_size = None
        if self.is_brief:
            lr = choice.lr
            batch_size, _ = self.net._loader("iterator_train").resolved()
            batch_size = batch_size_of_fold(batch_size, len(self.rows), len(rows))
        else:
            share = float(self.weight[self.fold != fold].sum()) / self.size
            share *= self.n_epochs / self.net.max_epochs
            lr = min(choice.lr / share, Choice.default(self.net).lr)
        seed = self._seeds[self.n_trained % len(self._seeds)]
        self.n_trained += 1
        short = replace(self._shortened(choice), lr=lr)
        net = fold_net(
            self.net, short, self.n_epochs, self.schedule_epochs, seed, batch_size
        )
        every = math.ceil(self.n_epochs / _LOOKS)
        ranks = current(self.net.devices)
        X = self.data.X
        looks: list[_Look] = []

        def after_epoch() -> None:
            epoch = net._run.epoch
            is_due = epoch % every == 0 and epoch < self.n_epochs
            if look and is_due and ranks.is_first:
                looks.append(_Look(epoch, net._logits_of(X, held_out)))

        datasets = {"dataset_train": net.get_dataset(self.data.X, self.data.y)}
        split = Split(rows, None, None, {**datasets, "dataset_valid": None})
        fitting = Fitting(net, self.data, split, keep=False, after_epoch=[after_epoch])
        if (yield fitting) is not None:
            raise KeyboardInterrupt

        def predict() -> _Trained:
            unseen = net._logits_of(X, held_out).double()
            learnt = unseen.new_empty(0, unseen.shape[1])
            if self.has_rare_class or self.is_brief:
                learnt = net._logits_of(X, rows).double()
            return _Trained(looks, unseen, learnt)

        # All processes base their decisions on these numbers.
        return ranks.first_does(predict)

    def _shortened(self, choice: Choice) -> Choice:
        """Return the rule with which a shorter training ends with the same targets.

        The label's share of a target is c / (c + T), and the discount to the power T.
        """
        share = self.n_epochs / self.net.max_epochs
        strength = choice.prior_strength
        if not isinstance(strength, str):
            strength = strength * share
        discount = choice.discount ** (1 / share)
        return replace(choice, prior_strength=strength, discount=discount)

    # Choosing

    def _labels(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.codes[rows], self.weight[rows]

    def _error_rate(self, predicted: _Predicted) -> float:
        labels, weight = self._labels(predicted.unseen_rows)
        wrong = predicted.unseen.argmax(dim=1) != labels
        return float((weight * wrong).sum() / weight.sum())

    def _errors(self, predicted: _Predicted) -> LabelErrors:
        """Estimate label errors; results are cached, as they are used twice."""
        for known, errors in self._known:
            if known is predicted:
                return errors
        labels, weight = self._labels(predicted.unseen_rows)
        errors = label_errors(
            predicted.unseen,
            labels,
            weight,
            shows_images=self.is_image,
            separable=least_separation(self.net, self.size, brief=self.is_brief),
        )
        self._known.append((predicted, errors))
        return errors

    def _amount(self, predicted: _Predicted) -> float:
        """Return the factor in (0, 1] by which the learning rate is reduced.

        Take the latest epoch whose held-out loss is within half a standard error of the
        best one. The sum of the learning rates up to that epoch is the amount of
        training after which the network begins to overfit.
        """
        epochs, (labels, weight) = predicted.epochs, self._labels(predicted.unseen_rows)
        temperature = fit_temperature(predicted.curve, labels, weight)
        losses = log_losses(predicted.curve / temperature[:, None, None], labels)
        best = int((losses @ weight).argmin())
        excesses = losses - losses[best]
        mean = excesses @ weight / weight.sum()
        variance = (excesses - mean[:, None]).square() @ weight / weight.sum()
        within = mean <= _WITHIN * (variance / weight.sum()).sqrt()
        latest = int(torch.nonzero(within).max())
        if latest == len(epochs) - 1:
            return 1.0
        factor = SCHEDULES[self.net.lr_schedule]
        progress = (np.arange(1000) + 0.5) / 1000
        reached = self.n_epochs / self.schedule_epochs
        rates = np.array([factor(at) for at in reached * progress])
        part = rates[progress < epochs[latest] / self.n_epochs].sum() / rates.sum()
        share = (1 - 1 / self.n_folds) * self.n_epochs / self.net.max_epochs
        # A fold network learns only a part of what the final network learns. Close to
        # the end of its training it cannot show where the final network overfits, so
        # the estimate is blended with that for the whole training.
        known = min(1.0, _CERTAIN * (1 - part))
        amount = float(part * share**known)
        return 1.0 if amount > _NEARLY_ALL else max(_LEAST_RATE, amount)

    # Calibration

    def _outcome(
        self,
        choice: Choice,
        final: _Predicted,
        rest: list[_Predicted],
        seconds: float,
    ) -> Outcome:
        labels, weight = self._labels(final.unseen_rows)
        calibration = calibrate(
            self._errors(final),
            final.unseen,
            labels,
            weight,
            self.net.label_noise,
            shows_images=self.is_image,
        )
        calibration = replace(
            calibration,
            method="cross-fit",
            n_folds=self.n_trained,
            n_epochs=self.n_epochs,
            seconds=seconds,
        )
        return Outcome(
            choice,
            calibration,
            self._proba(final, rest, calibration),
            self._drift(final, calibration),
            self._learnt(final, calibration),
        )

    def _proba(
        self, final: _Predicted, rest: list[_Predicted], calibration: Calibration
    ) -> np.ndarray:
        """Return a prediction of each sample, by the final rule where available."""
        proba = np.full((len(self.data.y), final.unseen.shape[1]), np.nan, np.float32)
        for predicted in rest:
            found = self._errors(predicted)
            scaled = Calibration(found.temperature, found.bias)(predicted.unseen)
            proba[self.rows[predicted.unseen_rows]] = scaled.softmax(dim=1)
        scaled = calibration.scaled(final.unseen)
        proba[self.rows[final.unseen_rows]] = scaled.softmax(dim=1)
        return proba

    def _learnt(
        self, final: _Predicted, calibration: Calibration
    ) -> LogTemperature | None:
        """Return the best temperature for training samples, if training is brief."""
        if not self.is_brief:
            return None
        labels, weight = self._labels(final.learnt_rows)
        return estimate_log_temperature(calibration, final.learnt, labels, weight)

    def _drift(self, final: _Predicted, calibration: Calibration) -> np.ndarray | None:
        """Return the ratio of the mean predictions of held-out and training samples."""
        if not self.has_rare_class:
            return None
        if not self.are_alike:
            return np.ones(final.unseen.shape[1])
        unseen = excess(calibration, final.unseen, *self._labels(final.unseen_rows))
        learnt = excess(calibration, final.learnt, *self._labels(final.learnt_rows))
        return unseen / learnt
