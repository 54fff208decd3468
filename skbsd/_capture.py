"""The full batches of an epoch, each of them one launch of a CUDA graph.

A step of a small network is dozens of launches, each of which takes the host longer
than the device. A CUDA graph is launched at once. It does what the recorded step did,
in the same memory: so the order of the samples, the learning rates and the number of
the batch are tensors that are written to, as are the losses.
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

# Steps that are taken one operation at a time before one is recorded: in the first,
# kernels are compiled and chosen, and an optimizer begins to remember.
_WARM_UP = 3
# Options and attributes that a recording has taken the values of.
_PLAIN = (bool, int, float, str, tuple, type(None))


class Stepping(Protocol):
    """What takes the steps: a run."""

    module: nn.Module
    optimizer: Optimizer
    step: int

    def evaluate_and_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take a step; return its loss, its logits, and perhaps further numbers."""


class CapturedSteps:
    """Training steps of one call of `fit`, for data on the device.

    Parameters
    ----------
    run : Stepping
        It is told of each step, in its `step`.
    epoch : EpochInPlace
        The data.
    learning_rate : LearningRate
    counts_correct : bool
        Whether correct predictions are counted.
    asked_for : bool
        Whether the user vouches for networks that are not of this library.

    Attributes
    ----------
    failed : bool
        Whether a step could not be recorded.
    has_graph : bool
        Whether one was.
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
        # What steps return, by name, in the order of the batches.
        self._values: dict[str, Tensor] = {}
        self._correct, self._total = torch.zeros(2, dtype=torch.float64, device=device)
        self._graph: Graph | None = None
        self._taken_for_granted: Any = None
        self._n_calls = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Surround the epochs; recordings are dropped at the end."""
        with same_generator(self._epoch.device):
            try:
                yield
            finally:
                self._drop()

    def is_possible(self) -> bool:
        """Tell whether the next pass can be recorded, after what callbacks did."""
        run = self._run
        is_known = self._asked_for or is_static(run.module)
        return is_known and not self.failed and not is_hooked(run.optimizer)

    def run(self) -> Iterator[int]:
        """Take the steps of the whole batches; yield the size of each when it is done.

        Afterwards the optimizer's rates are those of the last step.
        """
        run = self._run
        self._epoch.draw()
        for value in (self._number, self._correct, self._total):
            value.zero_()
        self._rates.load(run.step)
        granted = _taken_for_granted(run.module, run.optimizer)
        if granted != self._taken_for_granted:
            # Such as layers that a callback has frozen since.
            self._taken_for_granted = granted
            self._drop()
        for _ in range(self._epoch.n):
            self._take()
            run.step += 1
            yield self._epoch.size
        self._learning_rate.set(run.step - 1)

    def rest(self) -> Iterator[Batch]:
        """Yield the batches that are left, of other sizes."""
        return self._epoch.rest()

    def values(self, n: int) -> dict[str, Tensor]:
        """Return what the first n steps of the epoch have returned, by name."""
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
        # What the first steps have built is taken for granted too.
        self._taken_for_granted = _taken_for_granted(
            self._run.module, self._run.optimizer
        )

    def _record(self, graph: Graph) -> bool:
        """Record a step, and tell whether that was possible; it is tried once."""
        if self.failed:
            return False
        try:
            graph.record()
        except Exception as error:  # of any kind, as networks are
            self.failed = True
            cause = error.__context__ or error  # that of the end hides what came first
            warnings.warn(
                f"the training step cannot be recorded as a CUDA graph ({cause!r}); "
                "its operations are launched one by one, which takes longer where "
                "batches are small. cuda_graph=False does so without this warning.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self.has_graph = True
        return True

    def _body(self) -> None:
        """Take the step that `_number` says."""
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
    """Return what a recorded step does not look at again: numbers and addresses."""
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
