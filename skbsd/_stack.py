"""Trains several networks in one loop, stacked along a leading dimension."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._accuracy import Correct
from ._batches import ResidentBatches
from ._fitting import Fitting
from ._forward import backward, fast_convolutions
from ._rules import UpdateRule
from ._run import DivergenceError, Run
from ._stackable import are_alike, kind, obstacle_in, slowness
from ._stacked_beliefs import StackedBeliefs
from ._stacked_network import StackedNetwork
from ._stacked_optimizer import stacked_groups
from .objectives import SelfDistillation
from .posterior import DirichletPosterior


class _Step(NamedTuple):
    """A training step that adjacent members with equal batch sizes take together.

    Parameters
    ----------
    members : slice
    number : int
        Number of the batch in the epoch.
    orders : list of (int, slice)
        Groups of members with equal numbers of samples, each with the position of the
        batch in the order of its samples.
    """

    members: slice
    number: int
    orders: list[tuple[int, slice]]


class Stack:
    """Runs that are trained together.

    Parameters
    ----------
    members : sequence of (Fitting, Run)
        Runs that have begun, with equal :func:`kind`, and for which
        :func:`are_alike` holds.
    """

    def __init__(self, members: Sequence[tuple[Fitting, Run]]):
        # Sorted, so that members with equal batch sizes are adjacent.
        ordered = sorted(members, key=lambda member: len(_batches(member[1]).rows))
        self.runs = [run for _, run in ordered]
        self._after_epoch = [call for f, _ in ordered for call in f.after_epoch]
        run = self.runs[0]
        named = {id(p): name for name, p in run.module.named_parameters()}
        groups = [
            [named[id(p)] for p in group["params"] if p.requires_grad]
            for group in run.optimizer.param_groups
        ]
        self._network = StackedNetwork([run.module for run in self.runs], groups)
        self._optimizer = stacked_groups(
            [run.optimizer for run in self.runs], self._network.weights
        )
        self._beliefs = StackedBeliefs([_posterior(run) for run in self.runs])
        self._share_inputs()
        self._groups = self._by_size()
        self._steps = self._plan()
        self._n_batches = max(len(run.batches) for run in self.runs)
        self._counts = any(run.objective.counts_correct for run in self.runs)
        self._augments = any(run.augmentation is not None for run in self.runs)
        # Images of type uint8 and memory-mapped tables are converted batch by batch.
        is_converted = self._x.dtype != run.dtype
        self._is_plain = not (self._augments or is_converted)
        self._device = run.net.device_
        self._diverged: set[int] = set()

    def _share_inputs(self) -> None:
        """Concatenate the distinct arrays X into one tensor, and the sample weights."""
        batches = [_batches(run) for run in self.runs]
        different = list({id(b.x): b.x for b in batches}.values())
        first, places = 0, {}
        for x in different:
            places[id(x)] = first
            first += len(x)
        device = batches[0].x.device
        self._first = torch.tensor([[places[id(b.x)]] for b in batches], device=device)
        self._x = different[0] if len(different) == 1 else torch.cat(different)
        for b in batches:  # frees the originals
            place = places[id(b.x)]
            b.x = self._x[place : place + len(b.x)]
        weights = [b.weight for b in batches if b.weight is not None]
        self._weight = torch.cat(weights) if weights else None

    def _by_size(self) -> list[slice]:
        """Return the groups of members with equal numbers of training samples."""
        sizes = [len(_batches(run).rows) for run in self.runs]
        edges = [i for i, n in enumerate(sizes) if i == 0 or n != sizes[i - 1]]
        ends = [*edges[1:], len(sizes)]
        return [slice(a, b) for a, b in zip(edges, ends, strict=True)]

    def _plan(self) -> list[_Step]:
        """Return the steps of an epoch."""
        sizes = [_batches(self.runs[group.start]).sizes for group in self._groups]
        ends = [np.cumsum(s).tolist() for s in sizes]
        steps: list[_Step] = []
        for number in range(max(map(len, sizes))):
            last = None  # batch size of the previous group
            for g, group in enumerate(self._groups):
                size = sizes[g][number] if number < len(sizes[g]) else None
                if size is None:
                    last = None
                    continue
                order = (g, slice(ends[g][number] - size, ends[g][number]))
                if size == last:
                    before = steps.pop()
                    members = slice(before.members.start, group.stop)
                    steps.append(_Step(members, number, [*before.orders, order]))
                else:
                    steps.append(_Step(group, number, [order]))
                last = size
        return steps

    def obstacle(self) -> str | None:
        """Return the reason why the networks cannot be stacked, or None."""
        n = min(4, *(len(_batches(run).rows) for run in self.runs))
        rows = torch.stack([_batches(run).rows[:n] for run in self.runs])
        x = self._prepared(slice(0, len(self.runs)), rows, augments=False)
        self.runs[0].net._set_training(True)
        return self._network.obstacle(x)

    def train(self) -> set[int]:
        """Run all epochs, and leave the runs as if each had been trained by itself.

        Returns
        -------
        set of int
            The `id` of each run that has diverged. Its network is unusable.
        """
        with ExitStack() as contexts:
            for run in self.runs:
                contexts.enter_context(run.schedule())
                contexts.enter_context(run.objective.active())
            contexts.enter_context(fast_convolutions(self._device))
            for _ in range(self.runs[0].max_epochs):
                self._run_epoch()
                if self._after_epoch:
                    self._network.leave()
                for call in self._after_epoch:
                    call()
        self._leave()
        return self._diverged

    def _leave(self) -> None:
        self._network.leave()
        self._beliefs.leave()
        for i, run in enumerate(self.runs):
            for g, group in enumerate(run.optimizer.param_groups):
                parameters = [p for p in group["params"] if p.requires_grad]
                state = self._optimizer[g].state(i, run.step)
                flat = {name: value for name, value in state.items() if name != "step"}
                parts = {
                    name: self._network.unflattened(g, value)
                    for name, value in flat.items()
                }
                for k, parameter in enumerate(parameters):
                    own = {
                        name: torch.empty_like(parameter).copy_(values[k])
                        for name, values in parts.items()
                    }
                    if "step" in state:
                        own = {"step": state["step"].clone(), **own}
                    if own:
                        run.optimizer.state[parameter] = own

    def _run_epoch(self) -> None:
        for run in self.runs:
            run.begin_epoch()
        self._network.module.train()
        self._beliefs.load_rules([_rule(run) for run in self.runs])
        self._load_rates()
        orders = self._draw()
        shape = len(self.runs), self._n_batches
        dtype = torch.promote_types(self.runs[0].dtype, torch.float32)
        losses = torch.full(shape, torch.nan, dtype=dtype, device=self._device)
        correct = torch.zeros((2, *shape), dtype=dtype, device=self._device)
        for step in self._steps:
            rows = torch.cat([orders[g][:, place] for g, place in step.orders])
            self._take(step, rows, losses, correct)
        self._end_epoch(losses, correct)

    def _load_rates(self) -> None:
        """Set the learning rates of an epoch; members may differ in number of steps."""
        n = self._n_batches
        steps = np.array([run.step for run in self.runs])[:, np.newaxis]
        rates = np.zeros((len(self._optimizer), len(self.runs), n))
        for i, run in enumerate(self.runs):
            own = len(run.batches)
            rates[:, i, :own] = run.rates(own)
        for group, of_group in zip(self._optimizer, rates, strict=True):
            group.load_rates(of_group, steps + np.arange(1, n + 1))

    def _draw(self) -> list[Tensor]:
        """Draw the order of each member's samples, as its own training would."""
        drawn = []
        for run in self.runs:
            with run.net._generators.borrowed(self._device):
                drawn.append(_batches(run).draw())
        return [torch.stack(drawn[group]) for group in self._groups]

    def _take(self, step: _Step, rows: Tensor, losses: Tensor, correct: Tensor) -> None:
        """Take a training step of some members."""
        members = step.members
        network = self._network.part(members)
        x = self._prepared(members, rows, augments=self._augments)
        logits = network.logits(x)
        weight, labels = None, None
        places = self._beliefs.places(members, rows)
        if self._weight is not None:
            weight = self._weight[places]
        if self._counts:
            labels = self._beliefs.labels(places)
        if step.number == 0 and self.runs[0].epoch == 0:
            for run, own in zip(self.runs[members], logits.detach(), strict=True):
                run.look(own)
        loss, gradient = self._beliefs.update(members, logits.detach(), rows, weight)
        backward(logits, gradient)
        for group, of_group in zip(self._optimizer, network.gradients(), strict=True):
            group.step(members, step.number, of_group)
        losses[members, step.number] = loss
        if labels is not None:
            counts = (logits.detach().argmax(dim=2) == labels).to(correct)
            total = torch.ones_like(counts)
            if weight is not None:
                counts, total = counts * weight, weight.to(correct)
            sums = torch.stack([counts.sum(dim=1), total.sum(dim=1)])
            correct[:, members, step.number] = sums

    def _prepared(self, members: slice, rows: Tensor, *, augments: bool) -> Tensor:
        """Gather the inputs of a step, and prepare them for the networks."""
        places = self._first[members] + rows
        x = self._x.index_select(0, places.flatten())
        shape = x.shape[1:]
        if self._is_plain:
            return x.view(*rows.shape, *(self.runs[0].image_shape or shape))
        x = x.view(*rows.shape, *shape)
        prepared = []
        for run, own in zip(self.runs[members], x, strict=True):
            if augments and run.augmentation is not None:
                with run.net._generators.borrowed(self._device):
                    prepared.append(run.prepare(own))
            else:
                prepared.append(run.prepare_plain(own))
        return torch.stack(prepared)

    def _end_epoch(self, losses: Tensor, correct: Tensor) -> None:
        """Read the losses and counts of the epoch, and pass them to the runs."""
        finite = self._network.are_finite()
        sums = correct.sum(dim=2).cpu().numpy()
        for i, (run, own) in enumerate(zip(self.runs, losses.tolist(), strict=True)):
            sizes = _batches(run).sizes
            own = own[: len(sizes)]
            if not (finite[i] and np.isfinite(own).all()):
                self._diverged.add(id(run))
            counted = Correct(*sums[:, i].tolist())
            run.end_pass(
                own, sizes, counted if run.objective.counts_correct else Correct()
            )
            run.end_epoch()


def _posterior(run: Run) -> DirichletPosterior:
    assert isinstance(run.posterior, DirichletPosterior)  # checked by `obstacle_in`
    return run.posterior


def _rule(run: Run) -> UpdateRule | None:
    assert isinstance(run.objective, SelfDistillation)  # checked by `obstacle_in`
    return run.objective._rule


def _batches(run: Run) -> ResidentBatches:
    assert isinstance(run.batches, ResidentBatches)  # checked by `obstacle_in`
    return run.batches


@dataclass
class Attempt:
    """A training that may become part of a stack, and its outcome.

    Parameters
    ----------
    fitting : Fitting
    obstacle : str or None
        The reason why it was not stacked. In this case, it has not been trained.
    error : Exception or None
        The error with which it failed.
    seconds : float
        Its share of the training time.
    run : Run or None
        The run, if it has begun.
    """

    fitting: Fitting
    obstacle: str | None = None
    error: Exception | None = None
    seconds: float = 0.0
    run: Run | None = None

    def begin(self) -> None:
        """Run everything that precedes the first epoch."""
        began = time.perf_counter()
        try:
            self.run = self.fitting.begin()
        except Exception as error:
            self.error = error
            return
        self.obstacle = obstacle_in(self.run)
        self.seconds += time.perf_counter() - began

    @property
    def is_ready(self) -> bool:
        """Whether the run has begun, and no obstacle to a stack has been found."""
        return self.run is not None and self.obstacle is None


def train_stacked(
    attempts: Sequence[Attempt], *, max_members: int, asked_for: bool
) -> None:
    """Train in stacks those attempts that can be stacked.

    Parameters
    ----------
    attempts : sequence of Attempt
        Their outcomes are stored in them.
    max_members : int
        Largest number of members in a stack.
    asked_for : bool
        Whether to stack even if that is not expected to be faster.
    """
    shared: dict[Any, Tensor] = {}
    for attempt in attempts:
        attempt.begin()
        if attempt.is_ready:
            _share_data(attempt, shared)
    for group in _groups([a for a in attempts if a.is_ready]):
        n_stacks = -(-len(group) // max_members)
        for i in range(n_stacks):
            _train(group[i::n_stacks], asked_for=asked_for)


def _share_data(attempt: Attempt, shared: dict[Any, Tensor]) -> None:
    """Let trainings on equal data share one copy of it."""
    batches = _batches(_run(attempt))
    _, *of_data = attempt.fitting.net._fingerprint
    key = *of_data, batches.x.dtype, tuple(batches.x.shape)
    batches.x = shared.setdefault(key, batches.x)


def _groups(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """Group attempts that can be stacked with each other."""
    found: dict[tuple, list[list[Attempt]]] = {}
    for attempt in attempts:
        groups = found.setdefault(kind(_run(attempt)), [])
        for group in groups:
            if are_alike(_run(group[0]), _run(attempt)):
                group.append(attempt)
                break
        else:
            groups.append([attempt])
    return [group for groups in found.values() for group in groups]


def _run(attempt: Attempt) -> Run:
    assert attempt.run is not None
    return attempt.run


def _train_together(attempts: Sequence[Attempt]) -> str | None:
    """Train a stack; return the reason why that was not possible, or None."""
    try:
        stack = Stack([(a.fitting, _run(a)) for a in attempts])
        obstacle = stack.obstacle()
        if obstacle is not None:
            return obstacle
        diverged = stack.train()
    except Exception as error:
        # For example, out of memory. Trained one by one, each fit raises its own error.
        reason = str(error).partition("\n")[0]
        return f"{type(error).__name__} in a stack of {len(attempts)} fits: {reason}"
    for attempt in attempts:
        run = _run(attempt)
        if id(run) in diverged:
            attempt.error = DivergenceError("the loss became NaN or infinite")
        else:
            attempt.fitting.finish(run)
    return None


def _train(attempts: Sequence[Attempt], *, asked_for: bool) -> None:
    """Train a stack, unless there is an obstacle."""
    began = time.perf_counter()
    obstacle = None
    if len(attempts) == 1:
        obstacle = "no other fit has the same network and number of steps"
    elif not asked_for:
        obstacle = slowness(_run(attempts[0]), len(attempts))
    if obstacle is None:
        obstacle = _train_together(attempts)
    if obstacle is not None:
        for attempt in attempts:
            attempt.obstacle = obstacle
        return
    share = (time.perf_counter() - began) / len(attempts)
    for attempt in attempts:
        attempt.seconds += share
