"""A call of `fit`: its epochs and steps, and all state that lasts as long."""

import dis
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from skorch.callbacks import Callback, LRScheduler
from torch import Tensor, nn

from ._accuracy import Correct, CorrectCounter
from ._averaging import averaging_for
from ._backup import WeightsBackup
from ._batches import Batch, Batches, EpochInPlace, ResidentBatches
from ._capturable import is_ours, obstacle
from ._capture import CapturedSteps
from ._check_callbacks import acts_on_steps
from ._default_callbacks import is_default
from ._epoch import EpochRecord, Pass, check_step
from ._forward import Forward, OutputCheck, fast_convolutions, infer_prepared
from ._generators import Generators
from ._graph import records_graphs
from ._learning_rate import LearningRate
from ._listeners import Listeners, sees_gradients
from ._optimizer import forget_gradients, needs_closure, step_function
from ._preparation import Preparation, augment
from ._ranks import Interrupts, OneRank
from ._replica import Alone
from ._sklearn_tasks import FitTasks, count_epochs
from .objectives import Objective
from .posterior import Posterior


class DivergenceError(ValueError):
    """The loss became NaN or infinite."""


class Trainee(Protocol):
    """The interface of the estimator that a run uses: skorch's hooks and state."""

    module_: nn.Module
    optimizer_: torch.optim.Optimizer
    device_: torch.device
    classes_: Any
    _generators: Generators
    callbacks_: list[tuple[str, Callback]]
    history: Any

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Call a hook of the net and of its callbacks."""

    def get_all_learnable_params(self) -> Any:
        """Return the names and values of all learnable parameters."""

    def infer(self, x: Any) -> Tensor:
        """Run the network on a prepared batch."""

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take an optimization step."""

    def train_step_single(self, batch: Batch) -> dict[str, Tensor]:
        """Compute loss and gradients."""

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss of a validation batch."""

    def _set_training(self, training: bool) -> None:
        """Set the mode of all modules."""


@dataclass(frozen=True)
class Settings:
    """The estimator's parameters at the beginning of the call.

    Parameters
    ----------
    max_epochs : int
    lr : float
    lr_schedule : {"one-cycle", "cosine", "constant"}
    schedule_epochs : int
        Number of epochs that the schedule spans, at least `max_epochs`.
    augmentation : str, callable or None
    image_shape : tuple of int or None
    cuda_graph : bool or "auto"
    averaging : {"ema"} or None
    """

    max_epochs: int
    lr: float
    lr_schedule: str
    schedule_epochs: int
    augmentation: Any
    image_shape: Any
    cuda_graph: bool | str
    averaging: str | None = None


class Run:
    """One call of `fit` or `partial_fit`, from the first epoch to the last.

    It owns the progress of the call and does not outlive it. The results of training
    belong to the estimator: network, optimizer, posterior and history.

    Parameters
    ----------
    net : Trainee
        The estimator.
    objective : Objective
        The objective that the steps minimise.
    forward : Forward
        Runs the network.
    preparation : Preparation
        The fitted facts of the inputs.
    posterior : DirichletPosterior or CompactPosterior
    batches : ResidentBatches or LoaderBatches
        Training batches.
    valid_batches : ResidentBatches, LoaderBatches or None
        Validation batches.
    datasets : dict
        Training and validation data as callbacks receive them.
    tasks : FitTasks
        Notifies scikit-learn's callbacks.
    settings : Settings
    ranks : OneRank
        The processes that train together.
    replica : Alone
        The network's replica in this process.
    row_numbers : Tensor of int, optional
        Rows of X that the batches' rows stand for, if they differ.

    Attributes
    ----------
    epoch : int
        Number of finished epochs.
    step : int
        Number of finished steps.
    has_stopped : bool
        Whether a callback has stopped training.
    record : EpochRecord
        Counts of the current epoch.
    has_graph : bool
        Whether steps were replayed from a CUDA graph; set at the end.
    averaging : Averaging
        The average of the weights, if enabled.
    """

    def __init__(
        self,
        net: Trainee,
        objective: Objective,
        *,
        forward: Forward,
        preparation: Preparation,
        posterior: Posterior,
        batches: Batches,
        valid_batches: Batches | None,
        datasets: dict[str, Any],
        tasks: FitTasks,
        settings: Settings,
        ranks: OneRank,
        replica: Alone,
        row_numbers: Tensor | None = None,
    ):
        callbacks = [callback for _, callback in net.callbacks_]
        self.ranks = ranks
        self._replica = replica
        self._row_numbers = row_numbers
        self._interrupts = Interrupts(ranks)
        self._has_callbacks = ranks.from_first(not all(map(is_default, callbacks)))
        # Callbacks run in the first process only, and may change gradients in a step.
        self._follows_gradients = ranks.size > 1 and ranks.from_first(
            any(sees_gradients(c) and not acts_on_steps(c) for c in callbacks)
        )
        self.net = net
        self.objective = objective
        self.forward = forward
        self.preparation = preparation
        self.posterior = posterior
        self.batches = batches
        self.valid_batches = valid_batches
        self.max_epochs = settings.max_epochs
        self.augmentation = settings.augmentation
        self.n_classes = len(net.classes_)
        self.dtype = preparation.float_dtype
        self.module = net.module_
        self.optimizer = net.optimizer_
        self.is_compiled = forward.is_compiled
        self.epoch = 0
        self.step = 0
        self.has_stopped = False
        self.record = EpochRecord()
        self._settings = settings
        self._datasets = datasets
        self._tasks = tasks
        self._name = type(net).__name__
        self._network = type(net.module_).__name__
        self._output = OutputCheck(self._network, self.n_classes)
        self._listeners = Listeners(net, callbacks)
        self._needs_closure = needs_closure(net.optimizer_)
        self._take_step: Callable[[], Any] = net.optimizer_.step
        replaced = ranks.from_first(any(isinstance(c, LRScheduler) for c in callbacks))
        self._learning_rate = LearningRate(
            net.optimizer_,
            "constant" if replaced else settings.lr_schedule,
            settings.schedule_epochs * len(batches),
            net.device_,
        )
        self.averaging = averaging_for(
            settings.averaging, net.module_, settings.schedule_epochs * len(batches)
        )
        self._weights = WeightsBackup(net.module_)
        self._augments_ahead = self._prepare_augmentation()
        self._captured: CapturedSteps | None = None
        self.has_graph = False
        self._step_is_checked = False

    # Epochs

    def begin(self) -> None:
        """Prepare for the first epoch, or for the state of a checkpoint."""
        self.objective.begin(self)

    def train(self, after_epoch: Iterable[Callable[[], None]] = ()) -> None:
        """Run the epochs.

        Parameters
        ----------
        after_epoch : iterable of callable, default=()
            Called in this order after each epoch.

        Raises
        ------
        DivergenceError
            If the loss becomes NaN or infinite; the weights are then those from before
            the epoch.
        KeyboardInterrupt
            If the user interrupts. skorch's callbacks raise it too, to stop training;
            at the end of an epoch, it is therefore not treated as an interruption.
        """
        with ExitStack() as contexts:
            contexts.enter_context(self._learning_rate.applied())
            if isinstance(self.batches, ResidentBatches):  # at most two batch shapes
                contexts.enter_context(fast_convolutions(self.net.device_))
            self._captured = self._captured_steps()
            if self._captured is not None:
                contexts.enter_context(self._captured.active())
            contexts.enter_context(self.objective.active())
            contexts.enter_context(self._interrupts.noticed())
            contexts.callback(self._finish)
            while self.epoch < self.max_epochs and not self.has_stopped:
                self.has_stopped = self._run_epoch()
                for call in after_epoch:
                    call()
                if not self.has_stopped:
                    # Also after the last epoch, as further fits may follow (folds).
                    self._interrupts.check()

    def _finish(self) -> None:
        """Install the averaged weights, and release large resources."""
        self.averaging.put()
        self.averaging.forget()
        self.has_graph = self._captured is not None and self._captured.has_graph
        self._captured = None

    def release(self) -> None:
        """Remove references back to the run, so that its memory is freed at once.

        Python's cyclic garbage collector counts objects and not bytes, so it might run
        only after hundreds of fits.
        """
        vars(self.objective).pop("run", None)
        if isinstance(self.batches, ResidentBatches):
            self.batches.transform = None
        self.forward.release()

    def _run_epoch(self) -> bool:
        """Run an epoch; return whether a callback requests to stop."""
        self._tasks.begin_epoch()
        self._weights.save()
        self.averaging.take_back()
        self.begin_epoch()
        self.follow_first()
        if self._replica.renew(self.forward.release):
            self.forward.train(self._replica.network)
        self._training_pass()
        self.averaging.put()
        self._replica.synchronise()
        self._validation_pass()
        stops = self.end_epoch()
        stops = self._tasks.end_epoch() or stops
        return any(self.ranks.sums([float(stops)]))

    def begin_epoch(self) -> None:
        """Notify callbacks of a new epoch, before its first batch."""
        self.record = EpochRecord()
        self.objective.begin_epoch()
        self.net.notify("on_epoch_begin", **self._datasets)

    def end_epoch(self) -> bool:
        """Notify callbacks of the end of an epoch; return whether one stops."""
        stops = False
        try:
            self.net.notify("on_epoch_end", **self._datasets)
        except KeyboardInterrupt as error:
            # skorch's callbacks stop in this way, for example EarlyStopping.
            if not _raised_by_statement(error):
                raise
            stops = True
        self.epoch += 1
        return stops

    def follow_first(self) -> None:
        """Take over changes that callbacks made in the first process.

        They may change options of the optimizer (such as learning rates), weights, and
        which weights are trained.
        """
        if self.ranks.size == 1:
            return
        groups = self.optimizer.param_groups
        options = [{k: v for k, v in g.items() if k != "params"} for g in groups]
        parameters = list(self.module.parameters())
        trained = [p.requires_grad for p in parameters]
        firsts, trained = self.ranks.from_first((options, trained))
        for parameter, is_trained in zip(parameters, trained, strict=True):
            parameter.requires_grad_(is_trained)
        for group, option in zip(groups, firsts, strict=True):
            group.update(option)
        if self._has_callbacks:
            self.ranks.equalise([*parameters, *self.module.buffers()])

    def _captured_steps(self) -> CapturedSteps | None:
        """Return an object that captures steps, if they can and should be captured."""
        wanted = self._settings.cuda_graph
        if wanted is False or not records_graphs(self.net.device_):
            return None
        batches = self.batches
        asked_for = wanted is True
        reason = obstacle(self, self.net, self._listeners, asked_for=asked_for)
        if reason is None and isinstance(batches, ResidentBatches):
            return CapturedSteps(
                self,
                EpochInPlace(batches),
                self._learning_rate,
                counts_correct=self.objective.counts_correct,
                asked_for=asked_for,
            )
        if asked_for:
            warnings.warn(
                f"cuda_graph=True has no effect: {reason}.",
                RuntimeWarning,
                stacklevel=2,
            )
        return None

    def _training_pass(self) -> None:
        counter = self._counter() if self.objective.counts_correct else None
        self._take_step = step_function(self.optimizer)
        captured = self._captured
        if captured is not None and not captured.is_possible():
            captured = None
        step = self.net.train_step
        training = Pass(self.batches, step, True, counter, captured, self.ranks)
        self._set_training(True)
        self.record.train, sums = training.run(
            self._listeners, self.net.history, self._weights.sums
        )
        self._check_finite(sums)
        self.objective.end_epoch(self.record.train)
        self._output.look_closer()

    def _validation_pass(self) -> None:
        if self.valid_batches is None:
            return
        counter = self._counter() if self._listeners.to_accuracy else None
        step, ranks = self.net.validation_step, self.ranks
        validation = Pass(self.valid_batches, step, False, counter, ranks=ranks)
        self._set_training(False)
        self.record.valid, _ = validation.run(self._listeners, self.net.history)

    def _set_training(self, training: bool) -> None:
        if self.module.training != training:  # setting it visits all modules
            self.net._set_training(training)

    def _counter(self) -> CorrectCounter:
        return CorrectCounter(0) if self.forward.reuses_output else CorrectCounter()

    def _check_finite(self, sums: list[float]) -> None:
        """Raise, with the weights from before the epoch, if training diverged."""
        epoch = self.net.history[-1]
        losses = [batch["train_loss"] for batch in epoch["batches"]]
        if all(map(math.isfinite, losses + sums)):
            return
        self._weights.restore()
        self.averaging.forget()
        self.optimizer.state.clear()
        del epoch["train_batch_count"]  # mark the epoch as unfinished
        raise DivergenceError(
            f"the training loss became NaN or infinite in epoch {epoch['epoch']} at a "
            f"learning rate of lr={self._settings.lr:g}. The weights are those from "
            "before this epoch. Lower lr, scale the features (StandardScaler), or look "
            "for extreme values in X."
        )

    # Stacked training

    @property
    def image_shape(self) -> Any:
        """The shape of flattened images, or None."""
        return self._settings.image_shape

    def schedule(self) -> AbstractContextManager[None]:
        """Return a context in which the learning rate follows the schedule."""
        return self._learning_rate.applied()

    def rates(self, n_steps: int) -> np.ndarray:
        """Return the rates of the next steps, (n_groups, n_steps)."""
        return self._learning_rate.applied_rates(range(self.step, self.step + n_steps))

    def look(self, logits: Tensor) -> None:
        """Check the logits of a step; those of the first step are checked at once."""
        self._output.look(logits)

    def end_pass(self, losses: list[float], sizes: list[int], correct: Correct) -> None:
        """Record a training pass that was made by a stack.

        Parameters
        ----------
        losses : list of float
            Loss of each batch.
        sizes : list of int
            Number of samples of each batch.
        correct : Correct
        """
        epoch = self.net.history[-1]
        epoch["batches"].extend(
            {"train_loss": loss, "train_batch_size": size}
            for loss, size in zip(losses, sizes, strict=True)
        )
        self.net.history.record("train_batch_count", len(losses))
        self.step += len(losses)
        self.record.train = correct
        self.objective.end_epoch(correct)
        self._output.look_closer()

    # Steps

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one optimization step; return loss and predictions, on the device.

        With an optimizer that evaluates the loss several times, such as LBFGS, only the
        first evaluation updates the posterior; the others use the same target.
        """
        self._learning_rate.set(self.step)
        if self.ranks.size > 1 and self.batches.totals is not None:
            total = self.batches.totals[self.step % len(self.batches)]
            self._replica.share = batch.rows.shape[0] / total
        if self._needs_closure:
            result = self._step_with_closure(batch)
        else:
            result = self.evaluate_and_step(batch)
        self.step += 1
        if self.ranks.size > 1:
            self._interrupts.check_now_and_then()
        return result

    def evaluate_and_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute gradients and apply them at the current learning rate."""
        result = self._evaluate(batch)
        self._take_step()
        self.averaging.update()
        return result

    def _evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Compute gradients, and pass them to callbacks."""
        forget_gradients(self.optimizer)
        if self.is_compiled:
            with self.forward.timed(batch.x):
                result = self.net.train_step_single(batch)
        else:
            result = self.net.train_step_single(batch)
        if not self._step_is_checked:
            check_step(result, type(self.objective).__name__)
            self._step_is_checked = True
        self._show_gradients(batch)
        return result

    def _show_gradients(self, batch: Batch) -> None:
        """Pass gradients to callbacks, which may change them."""
        self._listeners.gradients(batch)
        if self._follows_gradients:
            gradients = (p.grad for p in self.module.parameters())
            self.ranks.equalise(g for g in gradients if g is not None)

    def _step_with_closure(self, batch: Batch) -> dict[str, Tensor]:
        first: dict[str, Tensor] = {}

        def closure() -> Tensor:
            if not first:
                first.update(self._evaluate(batch))
                return self._of_all(first["loss"])
            forget_gradients(self.optimizer)
            loss = self.objective.evaluate_again(batch)
            self._show_gradients(batch)
            return self._of_all(loss)

        self.optimizer.step(closure)  # type: ignore[arg-type]
        self.averaging.update()
        return first

    def _of_all(self, loss: Tensor) -> Tensor:
        """Return the loss of the whole batch, from that of this process's part."""
        if self.ranks.size == 1:
            return loss
        (total,) = self.ranks.sums([loss.item() * self._replica.share])
        return loss.new_tensor(total)

    # The interface of objectives

    def equalise(self, module: nn.Module) -> None:
        """Copy a module's parameters from the first process to all others."""
        self.ranks.equalise(module.parameters())

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of an objective's own parameters over the processes."""
        self.ranks.add_gradients(parameters, self._replica.share)

    def logits(self, x: Any) -> Tensor:
        """Augment and prepare a batch, and run the network."""
        return self.infer(self.prepare(x))

    def view(self, x: Any, augmentation: Any) -> Tensor:
        """Compute `logits` with a different augmentation."""
        return self.infer(self._prepared(x, augmentation))

    def prepare(self, x: Any) -> Any:
        """Augment a batch and convert it to the network's input."""
        return self._prepared(x, None if self._augments_ahead else self.augmentation)

    def prepare_plain(self, x: Any) -> Any:
        """Convert a batch to the network's input, without augmentation."""
        return self._prepared(x, None)

    def _prepare_augmentation(self) -> bool:
        """Augment images when they are gathered, if no other view is needed.

        On a GPU, augmenting all images of an epoch at once needs fewer kernel launches.
        """
        augmentation, batches = self.augmentation, self.batches
        by_row = getattr(augmentation, "by_row", False)
        if (
            augmentation is None
            or not isinstance(batches, ResidentBatches)
            or not isinstance(batches.x, Tensor)
            or not vars(type(self.objective)).get("augments_once", False)
        ):
            return False
        on_gpu = batches.x.is_cuda and batches.is_copied and is_ours(augmentation)
        if not (on_gpu or by_row):
            return False

        def transform(x: Tensor, rows: Tensor) -> Tensor:
            if self._row_numbers is not None:
                rows = self._row_numbers.index_select(0, rows)
            if self._settings.image_shape is not None:
                x = x.reshape(len(x), *self._settings.image_shape)
            return augment(x, augmentation, (rows, self._n_epochs) if by_row else ())

        batches.transform = transform
        return True

    @property
    def _n_epochs(self) -> int:
        """Number of finished epochs, including those of earlier calls."""
        return count_epochs(self.net.history)

    def _prepared(self, x: Any, augmentation: Any) -> Any:
        return self.preparation(
            x,
            caller=self._name,
            augmentation=augmentation,
            image_shape=self._settings.image_shape,
        )

    def infer(self, x: Any) -> Tensor:
        """Run the network on a prepared batch."""
        logits = infer_prepared(
            self.net.infer, x, self.preparation.shape, self._network
        )
        self._output.look(logits)
        return logits

    def autocast(self) -> Any:
        """Return the context of the estimator's precision."""
        return self.forward.autocast()

    def write(self, name: str, value: float) -> None:
        """Write a value into the history of the epoch."""
        self.net.history.record(name, value)


def _raised_by_statement(error: BaseException) -> bool:
    """Whether a `raise` statement raised the exception, rather than a signal (Ctrl-C).

    A signal can interrupt any instruction.
    """
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return False
    instruction = innermost.tb_frame.f_code.co_code[innermost.tb_lasti]
    return instruction == dis.opmap["RAISE_VARARGS"]
