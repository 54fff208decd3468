"""The epoch and the step: skorch's loop, given batches that know their samples."""

import math
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback, LRScheduler
from skorch.dataset import unpack_data
from skorch.utils import TeeGenerator, is_dataset, to_tensor
from torch import Tensor
from torch.nn.parameter import is_lazy

from . import _callbacks, _checks
from ._batches import Batch, ResidentBatches, channel_statistics
from ._fit_tasks import FitTasks, with_callbacks
from ._hits import HitCounter
from ._inputs import TrainingData
from ._rules import (
    UpdateRule,
    is_weighted,
    resolve_discount,
    resolve_prior_floor,
    resolve_prior_strength,
)
from ._schedules import SCHEDULES, constant
from ._two_views import TwoViews
from .posterior import DirichletPosterior, soft_cross_entropy


class DivergenceError(ValueError):
    """The loss became NaN or infinite."""


class TrainingLoop(FitTasks, TwoViews):
    """What happens between two epochs, for :class:`skbsd.BSDClassifier`.

    Overrides the steps of skorch's loop that have to know a sample's row, and those
    that cost time in every batch: losses stay on the device until the epoch ends,
    unless a callback asks for them before.
    """

    _counts_agreement = False
    _train_hits: tuple[float, float]
    _valid_hits: tuple[float, float]
    _first_logits: Any = None  # a Tensor within the first epoch

    def fit_loop(self, *args, **kwargs):
        """Raise, as training goes through :meth:`fit` and :meth:`partial_fit`.

        Parameters
        ----------
        *args : tuple
            Unused.
        **kwargs : dict
            Unused.

        Raises
        ------
        AttributeError
            Always.
        """
        raise AttributeError(
            f"{type(self).__name__} trains through fit and partial_fit, which tie "
            "samples to their posteriors; fit_loop is not available."
        )

    @with_callbacks
    def _train(
        self, data: TrainingData, caller: str, split_params, *, fresh: bool, keep: bool
    ):
        """Train; `fresh` for data not seen before, `keep` for a network that stays."""
        device = self.device_ if keep else _checks.check_device(self.device)
        dtype = self._float_dtype if keep else self._choose_dtype(data, device)
        rows, valid, datasets = self._split(data, caller, split_params)
        resident = self._resident(data, device, dtype)
        self._begin_fit_task(data)
        before, n_epochs = dict(self.__dict__), len(self.history_ or ())
        had_model = hasattr(self, "module_")
        self._step = self._epochs_run = 0
        try:
            with self._own_generators(device, fresh=fresh):
                if fresh:
                    self._start(resident, rows, dtype, keep=keep)
                self._continue_posterior(data)
                self._run(resident, rows, valid, datasets)
                self._end_task(self._fit_task)
        except BaseException as error:
            # Such as a network that does not fit the data. As if never called, unless
            # something was learnt; or where there was no model, the weights of before
            # it diverged.
            nothing_learnt = not (self._epochs_run if not keep else self._step)
            if nothing_learnt and (had_model or not isinstance(error, DivergenceError)):
                self.__dict__.clear()
                self.__dict__.update(before)
                del (self.history_ or [])[n_epochs:]
            raise
        finally:
            self._forget_fit_task()
        return self

    def _start(self, data: TrainingData, rows, dtype, *, keep: bool) -> None:
        """Take note of the data, and build everything anew unless told to keep it."""
        for attribute in (
            "n_features_in_",
            "feature_names_in_",
            "image_mean_",
            "image_std_",
            "posterior_",
            "_scaling",
        ):
            self.__dict__.pop(attribute, None)
        self._float_dtype = dtype
        self.classes_inferred_ = data.classes
        self._input_shape = self._sample_shape(data.X)
        self._input_is_uint8 = False
        if not is_dataset(data.X):
            self._note_features(data.given, data.X, reset=True)
            self._input_is_uint8 = data.X.dtype == torch.uint8
        if self._input_is_uint8:
            self.image_mean_, self.image_std_ = channel_statistics(
                data.X, rows, data.weight
            )
        if not keep:
            self.compile_time_ = 0.0
            self.initialize()
        self._choose_memory_format()

    def _choose_dtype(self, data: TrainingData, device: torch.device) -> torch.dtype:
        """Double precision where it costs little and makes `fit` exact."""
        n = len(data.y) if data.weight is None else np.count_nonzero(data.weight)
        exact = (
            self.module is None
            and self.precision == "auto"
            and len(self._sample_shape(data.X)) == 1
            and (self.batch_size == -1 or n <= self.batch_size)
            and device.type == "cpu"
        )
        return torch.float64 if exact else torch.float32

    def _run(self, data: TrainingData, rows, valid, datasets: dict) -> None:
        """Make the batches and run the epochs between skorch's notifications."""
        batches = self._make_batches(data, rows, training=True)
        resident = isinstance(batches, ResidentBatches)
        self.data_loading_ = "resident" if resident else "loader"
        valid_batches = None
        if isinstance(valid, TrainingData):
            valid_rows = np.arange(len(valid.y))
            valid_batches = self._make_batches(valid, valid_rows, training=False)
        elif valid is not None:
            valid_batches = self._make_batches(data, valid, training=False)
        X = datasets.pop("X")
        self.notify("on_train_begin", X=X, y=data.y)
        try:
            self._run_epochs(self.max_epochs, batches, valid_batches, datasets)
        except KeyboardInterrupt:
            # Ctrl-C, or a callback such as EarlyStopping.
            pass
        except DivergenceError:
            self.notify("on_train_end", X=X, y=data.y)
            raise
        finally:
            self.n_iter_ = self._count_epochs()
        self.notify("on_train_end", X=X, y=data.y)

    def _continue_posterior(self, data: TrainingData) -> None:
        """Keep the posterior where the samples are the last call's."""
        half = self.posterior_dtype == "float16"
        dtype = torch.float16 if half else self._float_dtype
        n_classes = len(self.classes_)
        prior = (self.prior_strength, self.discount, self.prior_floor)
        fingerprint = (prior, *_checks.fingerprint(data.X, data.codes))
        if hasattr(self, "posterior_") and fingerprint == self._fingerprint:
            return
        self._fingerprint = fingerprint
        self.posterior_ = DirichletPosterior(
            torch.from_numpy(data.codes),
            n_classes,
            prior_strength=resolve_prior_strength(self.prior_strength, self.max_epochs),
            discount=resolve_discount(self.discount),
            prior_floor=resolve_prior_floor(
                self.prior_floor, n_classes, torch.finfo(dtype).smallest_normal
            ),
            dtype=dtype,
            device=self.device_,
        )

    @property
    def prior_strength_(self) -> float:
        """Prior concentration c of the labels, as used."""
        return self.posterior_.prior_strength

    @property
    def discount_(self) -> float:
        """Discount gamma, as used."""
        return self.posterior_.discount

    @property
    def prior_floor_(self) -> float:
        """Prior concentration eps of each class that is not the label's, as used."""
        return self.posterior_.prior_floor

    def _run_epochs(self, epochs: int, batches, valid_batches, datasets: dict) -> None:
        """Run the epochs, and stop with an error where the loss is no number."""
        self._schedule = SCHEDULES[self.lr_schedule]
        callbacks = self._callback_list()
        if any(isinstance(c, LRScheduler) for c in callbacks):
            self._schedule = constant
        self._n_steps = epochs * len(batches)
        self._base_lrs = [group["lr"] for group in self.optimizer_.param_groups]
        self._gradients_heard = _callbacks.hear_gradients(self, callbacks)
        # torch's own optimizers need no closure, LBFGS excepted; others may.
        self._takes_closure = isinstance(self.optimizer_, torch.optim.LBFGS) or not (
            type(self.optimizer_).__module__.startswith("torch.optim.")
        )
        # An infinite prior takes in nothing.
        self._counts_agreement = math.isfinite(self.prior_strength_) and is_weighted(
            self.evidence, self.prior_strength
        )
        prior_strength = self.prior_strength  # as it is now, whatever callbacks do
        discount = self.posterior_.discount
        self._rule = UpdateRule(discount=discount)
        self._step_checked = False
        self._first_logits = None
        weights: list = []
        try:
            with self._contrasting():
                for _ in range(epochs):
                    task = self._begin_epoch_task()
                    weights = self._copy_weights(weights)
                    self._train_hits = (0.0, 0.0)
                    if self._counts_agreement:
                        agreement = self.posterior_.agreement
                        self._rule = agreement.rule(prior_strength, discount)
                    self.notify("on_epoch_begin", **datasets)
                    self.run_single_epoch(batches, True, "train", self.train_step)
                    self._end_training_pass(weights)
                    self.run_single_epoch(
                        valid_batches, False, "valid", self.validation_step
                    )
                    if self._close_epoch(task, datasets):
                        break
        finally:
            self._first_logits = None
            self._scale_learning_rate(1.0)

    def _close_epoch(self, task, datasets: dict) -> bool:
        """Tell callbacks of an epoch's end; return whether one wants to stop."""
        stops = False
        try:
            self.notify("on_epoch_end", **datasets)
        except KeyboardInterrupt:  # such as EarlyStopping
            stops = True
        self._epochs_run += 1
        return self._end_task(task) or stops

    def _end_training_pass(self, weights: list[tuple[Tensor, Tensor]]) -> None:
        """Look at what an epoch's training has brought, and take note of it."""
        self._check_finite(weights)
        self._record_contrast()
        right, total = self._train_hits
        if total > 0:
            self.posterior_.agreement.add(min(1.0, right / total))
        if self._first_logits is not None:
            self._check_values(self._first_logits)
            self._first_logits = None

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Run one pass over the batches and record their losses.

        Parameters
        ----------
        iterator : iterable of Batch, or None
            None skips the pass.
        training : bool
            Whether the network is in training mode.
        prefix : str
            "train" or "valid", for the history.
        step_fn : callable
            Called with each batch; returns its loss and prediction.
        **fit_params : dict
            Passed to `step_fn`.
        """
        if iterator is None:
            return
        if self.module_.training != training:
            self._set_training(training)
        callbacks = self._callback_list()
        listened = _callbacks.listens(self, callbacks, training=training)
        awaited = listened and _callbacks.waits(self, callbacks)
        counting = (
            self._counts_agreement if training else _callbacks.counts_hits(callbacks)
        )
        records = self.history[-1]["batches"]
        first = len(records)
        losses: list[Tensor] = []
        # A compiled network may write its next output in the same place.
        hits = HitCounter(waiting=0) if self.compile else HitCounter()
        sizes: list[int] = []
        try:
            for batch in iterator:
                if listened:
                    pair = self._labelled(batch)
                    self.notify("on_batch_begin", batch=pair, training=training)
                step = step_fn(batch, **fit_params)
                losses.append(step["loss"])
                sizes.append(batch.rows.shape[0])
                if counting:
                    hits.add(batch, step["y_pred"])
                if listened:
                    step["y_pred"] = step["y_pred"].detach()
                    if awaited:
                        self.history.record_batch(f"{prefix}_loss", step["loss"].item())
                    self.history.record_batch(f"{prefix}_batch_size", sizes[-1])
                    self.notify("on_batch_end", batch=pair, training=training, **step)
        finally:
            # Once per epoch: to read a number means to wait for the device. Also when
            # interrupted, so that the history tells what was done.
            values = torch.stack(losses).tolist() if losses else []
            if not listened:
                records.extend({} for _ in losses)
            for record, value, size in zip(
                records[first:], values, sizes, strict=False
            ):
                record |= {f"{prefix}_loss": value, f"{prefix}_batch_size": size}
        if training:
            self._train_hits = hits.result()
        else:
            self._valid_hits = hits.result()
        self.history.record(f"{prefix}_batch_count", len(losses))

    def train_step(self, batch: Batch, **fit_params) -> dict:
        """Take one optimization step.

        An optimizer that evaluates the loss several times, such as LBFGS, updates the
        posterior with the first evaluation only; the others keep that target.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.
        **fit_params : dict
            Unused, as in skorch's other steps.

        Returns
        -------
        dict of str to Tensor
            The "loss" and "y_pred", the logits, of the first evaluation, on the device.
        """
        # The middle of the step: the first and the last count too.
        self._scale_learning_rate(self._schedule((self._step + 0.5) / self._n_steps))
        if self._takes_closure and self._contrast is None:
            step: dict = {}
            self.optimizer_.step(partial(self._evaluate, batch, step))
        else:
            step = self._first_evaluation(batch)
            self.optimizer_.step()
        self._step += 1
        return step

    def _first_evaluation(self, batch: Batch) -> dict:
        """Compute gradients, and show them to whoever looks at them."""
        self._forget_gradients()
        if self.compile:
            with self._compile_timer(batch.x):
                step = self.train_step_single(batch)
        else:
            step = self.train_step_single(batch)
        if self._gradients_heard:
            self._notify_of_gradients(batch)
        return step

    def _evaluate(self, batch: Batch, first: dict) -> Tensor:
        """Compute loss and gradients, for optimizers that ask for them repeatedly."""
        if not first:
            first.update(self._first_evaluation(batch))
            return first["loss"]
        self._forget_gradients()
        target = self._target(batch)
        logits = self._logits(batch.x, self.augmentation)
        loss = soft_cross_entropy(logits, target.to(logits), batch.weight)
        loss.backward()
        if self._gradients_heard:
            self._notify_of_gradients(batch)
        return loss

    def _notify_of_gradients(self, batch: Batch) -> None:
        self.notify(
            "on_grad_computed",
            named_parameters=TeeGenerator(self.get_all_learnable_params()),
            batch=(batch.x, batch.y),
            training=True,
        )

    def train_step_single(self, batch: Batch, **fit_params) -> dict:
        """Update the posterior with the network's predictions; compute gradients.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.
        **fit_params : dict
            Unused.

        Returns
        -------
        dict of str to Tensor
            The "loss" and "y_pred", the logits, on the device.
        """
        if self._contrast is not None:
            return self._two_view_step(batch, self._contrast)
        logits = self._logits(batch.x, self.augmentation)
        self._check_first(logits)
        loss, gradient = self.posterior_.update(
            logits, batch.rows, batch.weight, self._rule, assume_unique=batch.unique
        )
        torch.autograd.backward(logits, gradient)
        return {"loss": loss, "y_pred": logits}

    def _check_first(self, logits) -> None:
        """Look at the first output of a call, and keep it for a closer look."""
        if not self._step_checked:
            self._check_output(logits)
            # A copy: a compiled network may write its next output in the same place.
            self._first_logits = logits.detach().clone()
            self._step_checked = True

    def validation_step(self, batch: Batch, **fit_params) -> dict:
        """Compute cross-entropy with the labels.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.
        **fit_params : dict
            Unused.

        Returns
        -------
        dict of str to Tensor
            The "loss" and "y_pred", the logits, on the device.
        """
        with torch.no_grad():
            logits = self._logits(batch.x)
            return {"loss": self.get_loss(logits, batch.y), "y_pred": logits}

    def evaluation_step(self, batch, training=False) -> Tensor:
        """Compute the logits of a pair (x, y), as skorch's loaders give it.

        Parameters
        ----------
        batch : tuple of (x, y)
            Inputs, and labels that are not looked at.
        training : bool, default=False
            Run the network in training mode, with gradients.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits, on the device.

        Raises
        ------
        NotInitializedError
            If there is no network yet.
        """
        self.check_is_fitted()
        x, _ = unpack_data(batch)
        with torch.set_grad_enabled(training):
            self._set_training(training)
            return self._logits(to_tensor(x, self.device_))

    def get_loss(self, y_pred, y_true, X=None, training=False) -> Tensor:
        """Compute the cross-entropy of logits with class indices.

        This is the loss of validation; that of training is the posterior's.

        Parameters
        ----------
        y_pred : Tensor of shape (n, n_classes)
            Logits.
        y_true : array-like of shape (n,)
            Class indices.
        X : array-like, default=None
            Unused, as in skorch.
        training : bool, default=False
            Unused, as in skorch.

        Returns
        -------
        Tensor of shape ()
            The mean over the samples.
        """
        logits = y_pred.to(torch.promote_types(y_pred.dtype, torch.float32))
        return self.criterion_(logits, to_tensor(y_true, self.device_))

    def _forget_gradients(self) -> None:
        """Do what `zero_grad` does, which spends its time on hooks for tracing."""
        if type(self.optimizer_).zero_grad is not torch.optim.Optimizer.zero_grad:
            return self.optimizer_.zero_grad()
        for group in self.optimizer_.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _scale_learning_rate(self, factor: float) -> None:
        if self._schedule is constant:
            return  # a callback may have set it
        for group, lr in zip(self.optimizer_.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * factor

    def _copy_weights(self, last: list) -> list[tuple[Tensor, Tensor]]:
        """Return parameters and buffers, each with a copy of what it holds.

        `last` is what it returned the last time, whose copies are used again.
        """
        if self._epochs_run > 1:  # nothing is lazy after the first
            for now, before in last:
                before.copy_(now.detach())
            return last
        tensors = chain(self.module_.parameters(), self.module_.buffers())
        return [(t, t.detach().clone()) for t in tensors if not is_lazy(t)]

    def _check_finite(self, weights: list[tuple[Tensor, Tensor]]) -> None:
        """Raise, with the weights from before the epoch, if training diverged."""
        losses = [batch["train_loss"] for batch in self.history[-1]["batches"]]
        # A sum passes on what is not finite, and is fast.
        sums = [
            p.detach().sum().float()
            for p in self.module_.parameters()
            if not is_lazy(p)
        ]
        if sums:
            losses += torch.stack(sums).tolist()
        if all(map(math.isfinite, losses)):
            return
        with torch.no_grad():
            for now, before in weights:
                now.copy_(before)
        self.optimizer_.state.clear()
        self._contrasted = None  # its projection may have diverged too
        del self.history[-1]["train_batch_count"]  # the epoch does not count
        epoch = self.history[-1, "epoch"]
        raise DivergenceError(
            f"the training loss became NaN or infinite in epoch {epoch} at a learning "
            f"rate of lr={self.lr:g}. The weights are those from before this epoch. "
            "Lower lr, scale the features (StandardScaler), or look for extreme values "
            "in X."
        )

    def _callback_list(self) -> list[Callback]:
        return [callback for _, callback in self.callbacks_]

    def _labelled(self, batch: Batch) -> tuple:
        """Return (x, y) with the labels that `predict` would return."""
        codes = batch.y.cpu().numpy()
        return batch.x, self.classes_[codes]
