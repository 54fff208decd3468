"""Training steps of an epoch's full batches as replays of a CUDA graph.

A step of a small network consists of dozens of kernel launches, and each takes longer
on the host than the kernel takes on the device. A CUDA graph replaces them by one
launch. It repeats the recorded operations in the same memory. Therefore, the order of
the samples, the learning rates, the number of the batch and the losses are tensors that
are written in place.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ._accuracy import CorrectCounter, count
from ._architecture import HOOKS
from ._batches import Batch, EpochInPlace
from ._capturable import is_static
from ._graph import Graph, same_generator
from ._learning_rate import LearningRate, RatesInMemory
from ._optimizer import forget_gradients, is_hooked

# Number of ordinary steps before one is recorded. In these, kernels are compiled and
# selected, and the optimizer creates its state.
_WARM_UP = 3
# Types of options and attributes whose values become constants of a recording.
_PLAIN = (bool, int, float, str, tuple, type(None))


class Stepping(Protocol):
    """The interface of a run that takes steps."""

    module: nn.Module
    optimizer: Optimizer
    step: int

    def evaluate_and_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take a step; return its loss, its logits, and any further values."""


class CapturedSteps:
    """Training steps of one call of `fit`, for data on the device.

    Parameters
    ----------
    run : Stepping
        The run; its `step` is incremented with each step.
    epoch : EpochInPlace
        The data.
    learning_rate : LearningRate
    counts_correct : bool
        Whether correct predictions are counted.
    asked_for : bool
        Whether the user requested recordings for networks from outside this library.

    Attributes
    ----------
    failed : bool
        Whether recording a step has failed.
    has_graph : bool
        Whether a step was recorded.
    """

    def __init__(
        self,
        run: Stepping,
        epoch: EpochInPlace,
        learning_rate: LearningRate,
        *,
        counts_correct: bool,
        asked_for: bool,
    ):
        self.failed = self.has_graph = False
        self._run = run
        self._epoch = epoch
        self._learning_rate = learning_rate
        self._counts_correct = counts_correct
        self._asked_for = asked_for
        device = epoch.device
        self._places = torch.arange(epoch.size, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)
        self._rates = RatesInMemory(learning_rate, epoch.n, device)
        # Values that steps return, by name, in the order of the batches.
        self._values: dict[str, Tensor] = {}
        self._correct, self._total = torch.zeros(2, dtype=torch.float64, device=device)
        self._graph: Graph | None = None
        self._taken_for_granted: Any = None
        self._n_calls = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enclose the epochs in a context; recordings are dropped at its end."""
        with same_generator(self._epoch.device):
            try:
                yield
            finally:
                self._drop()

    def is_possible(self) -> bool:
        """Return whether the next pass can be recorded, after changes by callbacks."""
        run = self._run
        is_known = self._asked_for or is_static(run.module)
        return is_known and not self.failed and not is_hooked(run.optimizer)

    def run(self) -> Iterator[int]:
        """Take the steps of the full batches; yield the size of each finished one.

        At the end, the optimizer's learning rates are those of the last step.
        """
        run = self._run
        self._epoch.draw()
        for value in (self._number, self._correct, self._total):
            value.zero_()
        self._rates.load(run.step)
        granted = _taken_for_granted(run.module, run.optimizer)
        if granted != self._taken_for_granted:
            # For example, a callback may have frozen layers.
            self._taken_for_granted = granted
            self._drop()
        for _ in range(self._epoch.n):
            self._take()
            run.step += 1
            yield self._epoch.size
        self._learning_rate.set(run.step - 1)

    def rest(self) -> Iterator[Batch]:
        """Yield the remaining batches, which have other sizes."""
        return self._epoch.rest()

    def values(self, n: int) -> dict[str, Tensor]:
        """Return the values of the first n steps of the epoch, by name."""
        return {name: values[:n] for name, values in self._values.items()}

    def count(self, counter: CorrectCounter, n: int) -> None:
        """Include the first n steps of the epoch."""
        if self._epoch.is_weighted:
            counter.include(self._correct.float(), self._total.float())
        else:
            counter.include(self._correct.long(), n * self._epoch.size)

    def _drop(self) -> None:
        if self._graph is not None:
            forget_gradients(self._run.optimizer)  # they lie in the graph's memory
            self._graph.drop()
            self._graph = None

    def _take(self) -> None:
        if self._graph is None:
            self._graph, self._n_calls = Graph(self._body, self._epoch.device), 0
        graph = self._graph
        if graph.is_recorded or (self._n_calls >= _WARM_UP and self._record(graph)):
            graph.replay()
            return
        graph.call()
        self._n_calls += 1
        # The first steps may have created optimizer state or lazy parameters.
        self._taken_for_granted = _taken_for_granted(
            self._run.module, self._run.optimizer
        )

    def _record(self, graph: Graph) -> bool:
        """Try once to record a step, and return whether it succeeded."""
        if self.failed:
            return False
        try:
            graph.record()
        except Exception as error:  # a network may raise anything
            self.failed = True
            cause = error.__context__ or error  # ending the capture hides the cause
            warnings.warn(
                f"the training step cannot be recorded as a CUDA graph ({cause!r}); "
                "its operations are launched one by one, which is slower for small "
                "batches. cuda_graph=False does so without this warning.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self.has_graph = True
        return True

    def _body(self) -> None:
        """Take the step whose index is in `_number`."""
        number = self._number
        places = torch.add(self._places, number, alpha=self._epoch.size)
        batch = self._epoch.at(places)
        with self._rates.applied(self._run.optimizer, number):
            result = self._run.evaluate_and_step(batch)
        if self._counts_correct:
            correct, total = count(result["y_pred"].detach(), batch.y, batch.weight)
            self._correct.add_(correct)
            if isinstance(total, Tensor):
                self._total.add_(total)
        for name, value in result.items():
            if name == "y_pred":
                continue
            if name not in self._values:
                self._values[name] = value.new_zeros(self._epoch.n)
            self._values[name].index_copy_(0, number, value.detach().reshape(1))
        number.add_(1)


def _taken_for_granted(module: nn.Module, optimizer: Optimizer) -> tuple:
    """Return the numbers and addresses that are constants of a recorded step."""
    tensors = [*module.parameters(), *module.buffers()]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    groups = [
        {k: v for k, v in group.items() if isinstance(v, _PLAIN) and "lr" not in k}
        for group in optimizer.param_groups
    ]
    return (
        id(optimizer),
        [None if is_lazy(t) else (t.data_ptr(), t.requires_grad) for t in tensors],
        [len(group["params"]) for group in optimizer.param_groups],
        groups,
        [
            (type(m), {k: v for k, v in vars(m).items() if isinstance(v, _PLAIN)})
            for m in module.modules()
        ],
        [[*getattr(m, name)] for m in module.modules() for name in HOOKS],
    )
