"""A call of `fit`, from checked data to the fitted attributes of the estimator."""

import copy
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from skorch.utils import is_dataset

from . import _checks
from ._batches import Batches
from ._checkpoint import CheckpointFile
from ._fingerprint import fingerprint
from ._forward import Forward, wants_channels_last
from ._generators import Generators
from ._initialisation import initialize_from_data
from ._loading import (
    Loader,
    Split,
    TrainingData,
    first_not_finite,
    make_batches,
    on_device,
)
from ._optimizer import match_strides
from ._parts import PartedBeliefs, part_for
from ._preparation import Preparation, choose_dtype, sample_shape
from ._ranks import current, n_taking_part
from ._replica import Alone
from ._rules import (
    Choice,
    resolve_prior_floor,
    resolve_prior_strength,
    schedule_length,
)
from ._run import DivergenceError, Run, Settings, Trainee
from ._run_checkpoint import (
    RunCheckpoint,
    start_of,
    what_counts,
)
from ._run_state import check_components, check_loading
from ._sklearn_tasks import FitTasks, count_epochs, in_parallel
from ._snapshot import Snapshot
from ._structure import is_nested
from ._together import AGREED, callbacks_here, check_same, replicated, train_together
from ._workers import threads, threads_given
from .calibration import Calibration
from .objectives import Objective
from .posterior import Posterior, make_posterior

_CPU = torch.device("cpu")


class Estimator(Trainee, Protocol):
    """Parameters and methods of the estimator that `fit` uses, and what it sets."""

    module: Any
    prior_strength: Any
    discount: Any
    prior_floor: Any
    max_epochs: int
    batch_size: int
    lr: Any
    lr_schedule: str
    schedule_epochs: int | None
    augmentation: Any
    image_shape: Any
    averaging: str | None
    precision: str
    posterior_dtype: str
    posterior_folder: Any
    channels_last: Any
    compile: bool
    cuda_graph: Any
    device: Any
    random_state: Any
    checkpoint: Any
    callbacks: Any
    devices: Any
    gather_posterior: bool
    sync_batch_norm: bool
    verbose: int

    history_: Any
    calibration_: Calibration
    choice_: Choice
    classes_inferred_: Any
    compile_time_: float
    cuda_graph_: bool
    data_loading_: str
    image_mean_: Any
    image_std_: Any
    initialized_: bool
    n_iter_: int
    posterior_: Posterior
    posterior_rows_: Any
    _fingerprint: tuple
    _generators: Generators
    _preparation: Preparation
    _projection: Any
    _run: Run | None

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Return the parameters that have a prefix."""

    def initialize(self) -> Any:
        """Build network, optimizer, callbacks and history."""

    def make_objective(self) -> Objective:
        """Return the objective that the steps minimise."""

    def _has_classes(self) -> bool: ...
    def _initialize_module(self) -> Any: ...
    def _initialize_optimizer(self) -> Any: ...
    def _probe(self, X: Any) -> torch.Tensor: ...
    def _resolved_lr(self) -> float: ...
    def _loader(self, side: str) -> Loader: ...
    def _note_features(self, given: Any, X: Any, *, reset: bool) -> None: ...


class Fitting:
    """A call of `fit` or `partial_fit`.

    Parameters
    ----------
    net : Estimator
        The estimator to fit.
    data : TrainingData
        Checked data.
    split : Split
        The rows for training and validation.
    keep : bool
        Whether the call continues with the existing network.
    choice : Choice, default=None
        Learning rate and rule, if the parameters are "auto". A network that is kept
        continues with its own choice.
    calibration : Calibration, default=None
        The calibration that is known before training. Copies of the estimator that are
        made during training use it.
    after_epoch : iterable of callable, default=()
        Functions that are called after each epoch.
    """

    def __init__(
        self,
        net: Estimator,
        data: TrainingData,
        split: Split,
        *,
        keep: bool,
        choice: Choice | None = None,
        calibration: Calibration | None = None,
        after_epoch: Iterable[Callable[[], None]] = (),
    ):
        self.net = net
        self.data = data
        self.split = split
        self.keep = keep
        before = getattr(net, "choice_", None) if keep else None
        if before is not None:
            choice = before.kept(net)
        self.choice = Choice.plain(net) if choice is None else choice
        self._calibration = calibration
        self.after_epoch = list(after_epoch)
        # A network with loaded weights may not have seen data yet.
        self.fresh = not (keep and net._has_classes())
        self.world = current(net.devices)
        self.device = net.device_ if keep else _checks.check_device(net.device)
        self._had_model = hasattr(net, "module_")
        self._dtype = net._preparation.dtype if keep else self._choose_dtype()
        batch_size, _ = net._loader("iterator_train").resolved()
        self.ranks = self.world.among(
            n_taking_part(self.world.size, len(split.rows), batch_size)
        )
        self.part = part_for(data, split, self.ranks)

    def _choose_dtype(self) -> str:
        net = self.net
        return choose_dtype(
            sample_shape(self.data.X, net.image_shape),
            self.data.n_used,
            net.batch_size,
            self.device,
            chosen=net.module is None and net.precision == "auto",
        )

    def train(self) -> int | None:
        """Train; return the number of an epoch that was interrupted, or None."""
        world = self.world
        if world.size == 1:
            return self._train()
        with world.working(AGREED):
            check_same(self.net, self.data, self.split, self.device, world)
            self.choice = world.from_first(self.choice)
            return train_together(self.net, self._train, self.ranks, world)

    def _train(self) -> int | None:
        net, ranks = self.net, self.ranks
        data = self._on_device()
        checkpoint = self._checkpoint()
        before = Snapshot(net, keep=self.keep)
        after_epoch = [before.release, *self.after_epoch]
        if checkpoint is not None:
            after_epoch.append(checkpoint.write)
        run = None
        try:
            tasks = FitTasks(net, self.data, silent=not self.ranks.is_first)
            net._generators = self._new_generators()
            with net._generators.borrowed(self.device), threads(threads_given()):
                whole = self._whole(data)
                self._set_up(data, whole)
                batches = self._batches(data)
                is_done = checkpoint is not None and checkpoint.is_done
                with callbacks_here(net, self.data, self.split, ranks):
                    if not is_done:
                        self._announce(whole)
                    if ranks.size > 1:
                        net._generators.part_ways(self.device, ranks.rank, ranks.size)
                    with replicated(
                        net, self.data, self.split, self.device, ranks
                    ) as replica:
                        run = net._run = self._new_run(*batches, tasks, replica)
                        net._projection = None  # the run holds it until it is finished
                        self._begin(run, checkpoint)
                        interrupted = None
                        if not is_done:
                            interrupted = self._run_epochs(run, whole, after_epoch)
                            if checkpoint is not None and interrupted is None:
                                checkpoint.write(is_done=True)
                self._leave(run)
                tasks.end()
            net._generators = self.ranks.from_first(net._generators)
        except BaseException as error:
            if self._learnt_nothing(run, error):
                before.restore()
            elif run is not None and isinstance(error, AGREED):
                self._put_together(run)
                net._generators = self.ranks.from_first(net._generators)
            raise
        finally:
            if run is not None:
                run.release()
            vars(net).pop("_run", None)
            if hasattr(net, "module_"):
                net._set_training(False)
        return interrupted

    def begin(self) -> Run:
        """Prepare a run up to its first epoch, for networks that are trained together.

        The caller trains the run with the generators of its estimator, and calls
        `finish` afterwards. After a failure, the estimator is left incomplete. This
        supports a single process only.
        """
        net, data = self.net, self._on_device()
        net._generators = self._new_generators()
        with net._generators.borrowed(self.device):
            self._set_up(data, data)
            batches = self._batches(data)
            self._announce(data)
            tasks = FitTasks(net, self.data, silent=False)
            run = net._run = self._new_run(*batches, tasks, Alone())
            net._projection = None
            run.begin()
        return run

    def finish(self, run: Run) -> None:
        """Complete a run that `begin` returned and the caller has trained."""
        self.net.notify("on_train_end", X=self.data.X, y=self.data.y)
        self._leave(run)
        run.release()
        vars(self.net).pop("_run")
        self.net._set_training(False)

    def _set_up(self, data: TrainingData, whole: TrainingData) -> None:
        """Build network, optimizer and beliefs."""
        net = self.net
        net.choice_ = self.choice
        if self.fresh:
            self._begin_afresh(whole)
        net.posterior_ = self._posterior(data)
        if self.part.rows is not None:
            # Set until the beliefs of all processes are gathered, even if the call
            # fails.
            net.posterior_rows_ = self.part.rows

    def _learnt_nothing(self, run: Run | None, error: BaseException) -> bool:
        """Whether a failed call should leave the estimator in its previous state.

        This is the case if no epoch was finished. If the loss became NaN, the weights
        from before that epoch are kept, unless that would replace an earlier model by
        an untrained one.
        """
        if run is None:
            return True
        if isinstance(error, DivergenceError):
            return run.epoch == 0 and not self.keep and self._had_model
        if self.keep and not isinstance(error, KeyboardInterrupt):
            return run.step == 0
        return run.epoch == 0

    def _on_device(self) -> TrainingData:
        sides = ("iterator_train", "iterator_valid")
        return on_device(
            self.part.data,
            self.device,
            getattr(torch, self._dtype),
            by_loader=any(self.net._loader(side).is_set for side in sides),
        )

    def _whole(self, data: TrainingData) -> TrainingData:
        """Return the data of all processes; on the device only for a single process."""
        if self.ranks.size == 1:
            return data
        return on_device(self.data, _CPU, None, by_loader=True)

    def _new_generators(self) -> Generators:
        """Return generators from the seed, or continued ones that repeat no order."""
        generators = (
            Generators.seeded(self.device, self.net.random_state)
            if self.fresh
            else self.net._generators.copy()
        )
        return self.ranks.from_first(generators)

    def _begin_afresh(self, data: TrainingData) -> None:
        """Reset classes and features; build all components, unless they are kept."""
        net = self.net
        for attribute in (
            "n_features_in_",
            "feature_names_in_",
            "image_mean_",
            "image_std_",
            "posterior_",
            "calibration_",
            "out_of_fold_proba_",
            "posterior_rows_",
        ):
            vars(net).pop(attribute, None)
        net.classes_inferred_ = data.classes
        if not is_dataset(data.X) and not is_nested(data.X):
            net._note_features(data.given, data.X, reset=True)
        net._preparation = Preparation.of(
            data, self.split.rows, net.image_shape, self._dtype, self.device
        )
        if net._preparation.is_uint8:
            net.image_mean_ = net._preparation.mean
            net.image_std_ = net._preparation.std
        if not self.keep:
            net.compile_time_ = 0.0
            if self._calibration is not None:
                net.calibration_ = self._calibration
            net.initialize()
        self._choose_memory_format()
        if not self.keep:
            self._initialize_from(data)

    def _choose_memory_format(self) -> None:
        net = self.net
        last = wants_channels_last(
            net.channels_last,
            net.module_,
            net.optimizer_,
            net._preparation,
            self.device,
            trusted=net.module is None,
        )
        net._preparation = net._preparation.changed(channels_last=last)
        if last:
            net.module_.to(memory_format=torch.channels_last)

    def _initialize_from(self, data: TrainingData) -> None:
        initialize_from_data(self.net, data, self.split.rows, self.device)

    def _same_on_device(self, data: TrainingData) -> Any:
        """Return the original X, or a copy with the same numbers on a GPU."""
        X, given = data.X, self.data.X
        copied = isinstance(X, torch.Tensor) and X.is_cuda and not is_nested(given)
        same_type = copied and str(X.dtype).removeprefix("torch.") == str(given.dtype)
        return X if same_type else given

    def _posterior(self, data: TrainingData) -> Posterior:
        """Return the posterior of the last call for the same samples, or a new one."""
        net, codes = self.net, torch.from_numpy(self.data.codes)
        choice = self.choice
        prior = partial(_new_posterior, net, choice, codes, _CPU)
        self._beliefs = PartedBeliefs(self.part, self.ranks, prior)
        numbers = (choice.prior_strength, choice.discount, net.prior_floor)
        identity = (numbers, *fingerprint(self._same_on_device(data), self.data.codes))
        if hasattr(net, "posterior_") and identity == net._fingerprint:
            if hasattr(net, "posterior_rows_"):
                return self._kept_part()
            labels = net.posterior_.labels
            if not torch.equal(labels, codes.to(labels)):
                raise ValueError(
                    "the labels of the samples in posterior_ differ from y; load the "
                    "posterior that was saved for this X and y, in this order, or call "
                    "fit to start afresh."
                )
            before = partial(_on_cpu, net.posterior_)
            self._beliefs = PartedBeliefs(self.part, self.ranks, before)
            return self._beliefs.own(net.posterior_)
        net._fingerprint = identity
        for attribute in ("out_of_fold_proba_", "posterior_rows_"):  # of other samples
            vars(net).pop(attribute, None)
        own = torch.from_numpy(self.part.data.codes)
        return _new_posterior(net, choice, own, self.device)

    def _kept_part(self) -> Posterior:
        """Return the beliefs that this process has kept for its samples, or raise."""
        net = self.net
        own = self.part.rows
        if own is None or not np.array_equal(net.posterior_rows_, own):
            raise ValueError(
                f"posterior_ contains the beliefs of only {len(net.posterior_)} of "
                f"{len(self.data.y)} samples, the part of one process with "
                "gather_posterior=False. Continue with the same number of processes, "
                "sample_weight and train_split, or call fit to start afresh."
            )
        return net.posterior_

    def _batches(self, data: TrainingData) -> tuple[Batches, Batches | None]:
        """Return the batches of training, and those of validation or None."""
        net, part = self.net, self.part
        split = part.split
        where = self.device, net._preparation.float_dtype
        loader = net._loader("iterator_train")
        train = make_batches(data, split.rows, loader, *where, part.train_share)
        net.data_loading_ = "resident" if train.is_resident else "loader"
        if split.valid_rows is None:
            return train, None
        other = split.valid_data
        return train, make_batches(
            data if other is None else other,
            split.valid_rows,
            net._loader("iterator_valid"),
            *where,
            part.valid_share,
        )

    def _announce(self, data: TrainingData) -> None:
        """Call `on_train_begin`; rebuild the network if callbacks changed `module`."""
        net = self.net
        before = net.module, net.get_params_for("module")
        net.notify("on_train_begin", X=data.X, y=data.y)
        if before != (net.module, net.get_params_for("module")):
            # Callbacks may set it from the data, such as skorch's InputShapeSetter.
            net._initialize_module()
            net._initialize_optimizer()
            net.initialized_ = True
            self._choose_memory_format()
            self._initialize_from(data)
        match_strides(net.optimizer_)

    def _new_run(
        self,
        batches: Batches,
        valid_batches: Batches | None,
        tasks: FitTasks,
        replica: Alone,
    ) -> Run:
        net = self.net
        objective = net.make_objective()
        if not isinstance(objective, Objective):
            raise TypeError(
                f"make_objective returned {objective!r}; expected an instance of "
                "skbsd.objectives.Objective."
            )
        if batches.weight is not None and not objective.accepts_weight:
            raise ValueError(
                f"{type(objective).__name__} takes no sample or class weights."
            )
        options = net.get_params_for("compile") if net.compile else None
        return Run(
            net,
            objective,
            forward=Forward(
                net.module_, self.device, net.precision, options, replica.network
            ),
            preparation=net._preparation,
            posterior=net.posterior_,
            batches=batches,
            valid_batches=valid_batches,
            datasets=self.split.datasets,
            tasks=tasks,
            settings=Settings(
                net.max_epochs,
                net._resolved_lr(),
                net.lr_schedule,
                schedule_length(net),
                net.augmentation,
                net.image_shape,
                net.cuda_graph,
                net.averaging,
            ),
            ranks=self.ranks,
            replica=replica,
            row_numbers=(
                None
                if self.part.rows is None
                else torch.from_numpy(self.part.rows).to(self.device)
            ),
        )

    def _begin(self, run: Run, checkpoint: RunCheckpoint | None) -> None:
        """Begin a run, or resume it from a checkpoint."""
        if checkpoint is None:
            run.begin()
            return
        check_components(self.net)
        checkpoint.attach(run, self.net._generators, self._beliefs)
        run.begin()
        checkpoint.resume(self.net.verbose)

    def _run_epochs(
        self, run: Run, data: TrainingData, after_epoch: list[Callable[[], None]]
    ) -> int | None:
        """Run the epochs; return the number of an interrupted one, or None."""
        net = self.net
        interrupted = None
        try:
            run.train(after_epoch)
        except KeyboardInterrupt:
            # In a search, returning would start the next candidate. Without a finished
            # epoch, no model exists.
            if run.epoch == 0 or in_parallel():
                raise
            interrupted = min(run.epoch + 1, run.max_epochs)
        except DivergenceError as error:
            net.notify("on_train_end", X=data.X, y=data.y)
            self._explain(error)
            raise
        finally:
            net.n_iter_ = count_epochs(net.history)
        net.notify("on_train_end", X=data.X, y=data.y)
        return interrupted

    def _explain(self, error: DivergenceError) -> None:
        """Raise an error that names items of a Dataset that are not finite, if any."""
        part, net = self.part, self.net
        if not is_dataset(part.data.X):
            return  # arrays were checked
        loader = net._loader("iterator_valid")
        dtype = net._preparation.float_dtype
        with net._generators.copy().borrowed(self.device):
            rows = first_not_finite(part.data.X, part.split.rows, loader, dtype)
        if len(rows):
            rows = rows if part.rows is None else part.rows[rows]
            raise DivergenceError(
                f"items {rows.tolist()} of the Dataset contain NaN or infinity, and "
                "others may too; this made the training loss NaN or infinite. Remove "
                "such samples, or correct them when they are loaded."
            ) from error

    def _leave(self, run: Run) -> None:
        """Set the fitted attributes that remain on the estimator after a run."""
        net = self.net
        net.n_iter_ = count_epochs(net.history)
        net.compile_time_ += run.forward.compile_time
        net.cuda_graph_ = run.has_graph
        net._projection = getattr(run.objective, "projection", None)
        self._put_together(run)

    def _put_together(self, run: Run) -> None:
        """Make the estimators of all processes equal."""
        net = self.net
        if self.ranks.size == 1:
            return
        # Only the first process calls callbacks, which may have changed the state.
        run.follow_first()
        net.history_ = self.ranks.from_first(net.history_)
        if net.gather_posterior:
            net.posterior_ = self._beliefs.gathered(run.posterior).to(self.device)
            vars(net).pop("posterior_rows_", None)

    def _checkpoint(self) -> RunCheckpoint | None:
        """Return the checkpoint of this call, or None if `checkpoint` is not set."""
        net = self.net
        if net.checkpoint is None or net.max_epochs == 0:
            return None
        check_loading(net.get_params_for("iterator_train"))
        parameters, n_epochs = what_counts(net, self.choice)
        identity = {
            "parameters": (parameters, self._dtype),
            "data": (self.data.identity, self.split.identity),
            "start": start_of(net) if self.keep else None,
        }
        file = self.ranks.first_does(
            lambda: CheckpointFile(net.checkpoint, identity, n_epochs)
        )
        return RunCheckpoint(file, self.ranks)


def _new_posterior(
    net: Estimator, choice: Choice, codes: torch.Tensor, device: torch.device
) -> Posterior:
    """Return the beliefs of samples before training."""
    half = net.posterior_dtype == "float16"
    dtype = torch.float16 if half else net._preparation.float_dtype
    n_classes = len(net.classes_)
    return make_posterior(
        codes,
        n_classes,
        posterior_dtype=net.posterior_dtype,
        float_dtype=net._preparation.float_dtype,
        prior_strength=resolve_prior_strength(
            choice.prior_strength, schedule_length(net)
        ),
        discount=choice.discount,
        prior_floor=resolve_prior_floor(
            net.prior_floor, n_classes, torch.finfo(dtype).smallest_normal
        ),
        device=device,
        folder=net.posterior_folder,
    )


def _on_cpu(posterior: Posterior) -> Posterior:
    return copy.deepcopy(posterior).to("cpu")


Result = TypeVar("Result")
# A generator of several trainings. It yields each `Fitting` to be trained. Then the
# result of `Fitting.train` is sent to it, or the exception is thrown into it.
Trainings = Generator[Fitting, int | None, Result]


def one_by_one(trainings: Trainings[Result]) -> Result:
    """Train each `Fitting` that a generator yields; return the generator's result.

    Parameters
    ----------
    trainings : generator of Fitting
    """
    try:
        fitting = next(trainings)
        while True:
            try:
                interrupted = fitting.train()
            except BaseException as error:
                fitting = trainings.throw(error)
            else:
                fitting = trainings.send(interrupted)
    except StopIteration as end:
        return end.value
