"""The epoch and the step: skorch's loop, given batches that know their samples."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain

import torch
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
)
from skorch.dataset import unpack_data
from skorch.utils import TeeGenerator, to_tensor
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ._batches import Batch
from ._net import Net
from .posterior import DirichletPosterior, soft_cross_entropy


def _one_cycle(progress: float) -> float:
    warm_up = 0.25
    if progress < warm_up:
        return progress / warm_up
    return _cosine((progress - warm_up) / (1 - warm_up))


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _constant(progress: float) -> float:
    return 1.0


_BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_grad_computed")

# From the share of training that lies behind, in (0, 1), to a factor of `lr`.
SCHEDULES = {"one-cycle": _one_cycle, "cosine": _cosine, "constant": _constant}


def _overrides(listener, base: type, hooks: tuple[str, ...]) -> bool:
    return any(getattr(type(listener), h) is not getattr(base, h) for h in hooks)


class DivergenceError(ValueError):
    """The loss became NaN or infinite."""


class TrainingLoop(Net):
    """What happens between two epochs, for :class:`skbsd.BSDClassifier`.

    Overrides the steps of skorch's loop that have to know a sample's row, and those
    that cost time in every batch: losses stay on the device until the epoch ends,
    unless a callback asks for them before.
    """

    posterior_: DirichletPosterior
    _compiled: tuple | None = None

    def fit_loop(self, *args, **kwargs):
        """Not available: use :meth:`fit` or :meth:`partial_fit`."""
        raise AttributeError(
            f"{type(self).__name__} trains through fit and partial_fit, which tie "
            "samples to their posteriors; fit_loop is not available."
        )

    def _run_epochs(self, epochs: int, batches, valid_batches, datasets: dict) -> None:
        """Run the epochs, and stop with an error where the loss is no number."""
        self._schedule = SCHEDULES[self.lr_schedule]
        if any(isinstance(c, LRScheduler) for c in self._callback_list()):
            self._schedule = _constant
        self._step, self._n_steps = 0, epochs * len(batches)
        self._epochs_run = 0
        self._base_lrs = [group["lr"] for group in self.optimizer_.param_groups]
        self._output_checked = False
        try:
            for _ in range(epochs):
                weights = self._copy_weights()
                self.notify("on_epoch_begin", **datasets)
                self.run_single_epoch(batches, True, "train", self.train_step)
                self._check_finite(weights)
                self.run_single_epoch(
                    valid_batches, False, "valid", self.validation_step
                )
                self.notify("on_epoch_end", **datasets)
                self._epochs_run += 1
        finally:
            self._scale_learning_rate(1.0)

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
        self._set_training(training)
        listened = self._listened(training)
        awaited = listened and self._awaited()
        first = len(self.history[-1]["batches"])
        losses: list[Tensor] = []
        try:
            for batch in iterator:
                pair = self._labelled(batch) if listened else (batch.x, batch.y)
                self.notify("on_batch_begin", batch=pair, training=training)
                step = step_fn(batch, **fit_params)
                losses.append(step["loss"])
                if awaited:
                    self.history.record_batch(f"{prefix}_loss", step["loss"].item())
                self.history.record_batch(f"{prefix}_batch_size", len(batch.rows))
                self.notify("on_batch_end", batch=pair, training=training, **step)
        finally:
            # Also when interrupted, so that the history tells what was done.
            values = torch.stack(losses).tolist() if losses else []
            records = self.history[-1]["batches"][first:]
            for record, value in zip(records, values, strict=False):
                record[f"{prefix}_loss"] = value
        self.history.record(f"{prefix}_batch_count", len(losses))

    def train_step(self, batch: Batch, **fit_params) -> dict:
        """Take one optimization step.

        An optimizer that evaluates the loss several times, such as LBFGS, updates the
        posterior with the first evaluation only; the others keep that target.

        Parameters
        ----------
        batch : Batch
        **fit_params : dict
            Unused, as in skorch's other steps.

        Returns
        -------
        dict
            "loss" and "y_pred" of the first evaluation, on the device.
        """
        # The middle of the step: the first and the last count too.
        self._scale_learning_rate(self._schedule((self._step + 0.5) / self._n_steps))
        first: dict = {}

        def closure():
            self.optimizer_.zero_grad()
            if first:
                target = self.posterior_.mean(batch.rows)
                logits = self._logits(batch, training=True)
                loss = soft_cross_entropy(logits, target.to(logits), batch.weight)
                loss.backward()
            else:
                step = self.train_step_single(batch)
                loss = step["loss"]
                first.update(step)
            self.notify(
                "on_grad_computed",
                named_parameters=TeeGenerator(self.get_all_learnable_params()),
                batch=(batch.x, batch.y),
                training=True,
            )
            return loss

        self.optimizer_.step(closure)
        self._step += 1
        return first

    def train_step_single(self, batch: Batch, **fit_params) -> dict:
        """Update the posterior with the network's predictions; compute gradients.

        Parameters
        ----------
        batch : Batch
        **fit_params : dict
            Unused.

        Returns
        -------
        dict
            "loss" and "y_pred", detached.
        """
        logits = self._logits(batch, training=True)
        if not self._output_checked:
            self._check_output(logits)
            self._output_checked = True
        loss = self.posterior_.step(
            logits, batch.rows, batch.weight, assume_unique=batch.unique
        )
        loss.backward()
        return {"loss": loss.detach(), "y_pred": logits.detach()}

    def validation_step(self, batch: Batch, **fit_params) -> dict:
        """Compute cross-entropy with the labels.

        Parameters
        ----------
        batch : Batch
        **fit_params : dict
            Unused.

        Returns
        -------
        dict
            "loss" and "y_pred".
        """
        with torch.no_grad():
            logits = self._logits(batch, training=False)
            return {"loss": self.get_loss(logits, batch.y), "y_pred": logits}

    def evaluation_step(self, batch, training=False) -> Tensor:
        """Compute the logits of a pair (x, y), as skorch's loaders give it.

        Parameters
        ----------
        batch : tuple of (x, y)
        training : bool, default=False
            Run the network in training mode, with gradients.

        Returns
        -------
        Tensor of shape (n, n_classes)
        """
        self.check_is_fitted()
        x, _ = unpack_data(batch)
        with torch.set_grad_enabled(training):
            self._set_training(training)
            x = self._prepare(to_tensor(x, self.device_), training=False)
            return self.infer(x)

    def get_loss(self, y_pred, y_true, X=None, training=False) -> Tensor:
        """Compute the cross-entropy of logits with class indices.

        This is the loss of validation; that of training is the posterior's.

        Parameters
        ----------
        y_pred : Tensor of shape (n, n_classes)
            Logits.
        y_true : array-like of shape (n,)
            Class indices.
        X, training
            Unused, as in skorch.

        Returns
        -------
        Tensor of shape ()
        """
        logits = y_pred.to(torch.promote_types(y_pred.dtype, torch.float32))
        return self.criterion_(logits, to_tensor(y_true, self.device_))

    def infer(self, x, **fit_params) -> Tensor:
        """Run the network on a prepared batch.

        Parameters
        ----------
        x : Tensor, or dict of Tensor
            A dict is passed as keyword arguments.
        **fit_params : dict
            Further keyword arguments of the network.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Logits: the network's output, its first entry where it is a tuple, or its
            `logits` where it has such an attribute.
        """
        with self._autocast():
            if isinstance(x, Mapping):
                out = self._network(**x, **fit_params)
            else:
                out = self._network(x, **fit_params)
        if isinstance(out, Tensor):
            return out
        out = getattr(out, "logits", out)
        return out[0] if isinstance(out, tuple | list) else out

    def _logits(self, batch: Batch, *, training: bool) -> Tensor:
        return self._infer_any_size(self._prepare(batch.x, training=training))

    def _infer_any_size(self, x) -> Tensor:
        """Run the network on samples of a size that it may not be able to take."""
        raise NotImplementedError

    def _prepare(self, x, *, training: bool):
        """Return what the network is given for a batch as it was stored."""
        raise NotImplementedError

    def _check_output(self, logits: Tensor) -> None:
        """Raise or warn where a network's first output shows it to be unsuitable."""
        raise NotImplementedError

    @property
    def _network(self):
        """The module, or its compiled form.

        Kept beside `module_`, whose state and pickle stay those of the module.
        """
        if not self.compile:
            return self.module_
        if self._compiled is None or self._compiled[0] is not self.module_:
            compiled = torch.compile(self.module_, **self.get_params_for("compile"))
            self._compiled = (self.module_, compiled)
        return self._compiled[1]

    def _autocast(self):
        bfloat16 = self.precision == "bfloat16" or (
            self.precision == "auto"
            and self.device_.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        if not bfloat16:
            return nullcontext()
        return torch.autocast(self.device_.type, dtype=torch.bfloat16)

    def _scale_learning_rate(self, factor: float) -> None:
        if self._schedule is _constant:
            return  # a callback may have set it
        for group, lr in zip(self.optimizer_.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * factor

    def _copy_weights(self) -> list[tuple[Tensor, Tensor]]:
        """Return parameters and buffers, each with a copy of what it holds."""
        tensors = chain(self.module_.parameters(), self.module_.buffers())
        return [(t, t.detach().clone()) for t in tensors if not is_lazy(t)]

    def _check_finite(self, weights: list[tuple[Tensor, Tensor]]) -> None:
        """Raise, with the weights from before the epoch, if training diverged."""
        losses = self.history[-1, "batches", :, "train_loss"]
        finite = [t.detach().isfinite().all() for t in self.module_.parameters()]
        if all(map(math.isfinite, losses)) and torch.stack(finite).all():
            return
        with torch.no_grad():
            for now, before in weights:
                now.copy_(before)
        self.optimizer_.state.clear()
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

    def _listened(self, training: bool) -> bool:
        """Whether anything looks at single batches."""
        return _overrides(self, NeuralNet, _BATCH_HOOKS) or any(
            callback.on_train == training
            if isinstance(callback, EpochScoring)
            else _overrides(callback, Callback, _BATCH_HOOKS)
            for callback in self._callback_list()
        )

    def _awaited(self) -> bool:
        """Whether anything may read a batch's loss before the epoch ends."""

        def waits(callback) -> bool:
            if isinstance(callback, EpochScoring | GradientNormClipping):
                return False
            if type(callback) is LRScheduler:
                by_batch = callback.step_every == "batch"
                return by_batch and callback.policy_ is ReduceLROnPlateau
            return _overrides(callback, Callback, _BATCH_HOOKS)

        return _overrides(self, NeuralNet, _BATCH_HOOKS) or any(
            map(waits, self._callback_list())
        )

    def _labelled(self, batch: Batch) -> tuple:
        """Return (x, y) with the labels that `predict` would return."""
        codes = batch.y.cpu().numpy()
        return batch.x, self.classes_[codes]
