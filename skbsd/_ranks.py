"""The processes that train one network together, and what they tell one another.

Each process has a rank, from 0 on. Numbers and objects travel through a group of the
"gloo" backend, beside the gradients, so that they never wait for a GPU.
"""

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger("skbsd")

# What torchrun and other launchers set.
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for another one: as long as a training of which it is no
# part, or a callback of the first one. One that dies is noticed by its connection.
_PATIENCE = timedelta(days=1)
# After so many seconds it says whom it waits for.
_LONG = 30.0
# How long the others have, in seconds, to say that they are still there.
_ROLL_CALL = 5.0


class RankError(RuntimeError):
    """Another process has failed, so that this one cannot go on."""


class AgreedInterrupt(KeyboardInterrupt):
    """An interrupt (Ctrl-C) that all processes have agreed to stop for."""


class Interrupts:
    """Ctrl-C in processes that train together: they stop after the same step.

    Signals reach them at different steps, and one that stops alone leaves the others
    waiting for its gradients. So a signal is noted, and whether there was any is asked
    of all from time to time. A second one stops the process at once.

    Parameters
    ----------
    ranks : OneRank
        Where there is one process, signals are left alone.
    """

    # Steps between two questions. Each costs about as much as a small layer.
    EVERY = 32

    def __init__(self, ranks: "OneRank"):
        self._ranks = ranks
        self._is_noted = False
        self._n_steps = 0

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Note signals, in the main thread: others get none."""
        is_main = threading.current_thread() is threading.main_thread()
        if self._ranks.size == 1 or not is_main:
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def note(number: int, frame: Any) -> None:
            if self._is_noted and callable(before):
                before(number, frame)
            self._is_noted = True

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def check_now_and_then(self) -> None:
        """Do what `check` does, every few steps."""
        self._n_steps += 1
        if self._n_steps % self.EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raise in all processes where one of them was interrupted."""
        if self._ranks.size == 1:
            return
        if any(self._ranks.sums([float(self._is_noted)])):
            raise AgreedInterrupt


class OneRank:
    """A process that trains alone: whatever is asked of all is asked of it.

    Attributes
    ----------
    rank : int
        Its number.
    size : int
        How many processes there are.
    is_first : bool
        Whether it prints, writes files and calls callbacks.
    takes_part : bool
        Whether it trains.
    """

    rank = 0
    size = 1
    is_first = True
    takes_part = True
    group: Any = None

    def among(self, size: int) -> "OneRank":
        """Return the first processes, of which it is the only one."""
        return self

    def meet(self) -> None:
        """Wait until all processes have begun the same call."""

    def sums(self, values: list[float]) -> list[float]:
        """Add up numbers over all processes."""
        return values

    def from_first(self, value: Any) -> Any:
        """Return what the first process has."""
        return value

    def first_does(self, function: Callable[[], Any]) -> Any:
        """Call a function in the first process; return or raise its outcome in all."""
        return function()

    def gathered(self, value: Any, *, only_first: bool = False) -> list[Any]:
        """Return what each process has, by rank.

        Parameters
        ----------
        value : object
        only_first : bool, default=False
            Give the others their own alone, where the values are large.
        """
        return [value]

    def each(self, value: Any) -> Iterator[Any]:
        """Yield what each process has, by rank, one after the other.

        Of large values, one at a time is held.
        """
        yield value

    def equalise(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors into those of the others."""

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes."""

    def add_gradients(self, parameters: Iterable[Tensor], share: float) -> None:
        """Replace gradients by their sum over all processes, each times its share."""

    @contextmanager
    def working(self, agreed: tuple[type[BaseException], ...]) -> Iterator[None]:
        """Surround what all processes do at the same time.

        Parameters
        ----------
        agreed : tuple of exception types
            What is raised in all of them, if in one.
        """
        yield


class Ranks(OneRank):
    """Several processes.

    Parameters
    ----------
    size : int
        How many of the world's processes these are: the first ones.
    """

    def __init__(self, size: int):
        self.world: Any = dist.group.WORLD
        self.size = size
        self.rank = dist.get_rank()
        self.is_first = self.rank == 0
        self.takes_part = self.rank < size
        members = list(range(size))
        is_all = size == dist.get_world_size()
        # All processes make all groups, in the same order, whoever is in them.
        self.group = self.world if is_all else dist.new_group(members)
        self._control: Any = dist.new_group(members, backend="gloo", timeout=_PATIENCE)
        self._store: Any = dist.PrefixStore("skbsd", _store())
        self._parts: dict[int, Ranks] = {}
        self._n_works = 0
        self._n_meetings = 0

    def close(self) -> None:
        """Let go of the groups, whose threads must end before the process does."""
        for part in self._parts.values():
            part.close()
        self.world = self.group = self._control = self._store = None

    def meet(self) -> None:
        """Wait until all processes have begun the same call; say if it takes long."""
        self._n_meetings += 1
        self._store.set(f"meeting {self._n_meetings}/{self.rank}", "")
        timer = threading.Timer(_LONG, self._say_who_is_missing, [self._n_meetings])
        timer.daemon = True
        timer.start()
        try:
            dist.barrier(group=self._control)
        finally:
            timer.cancel()

    def _say_who_is_missing(self, meeting: int) -> None:
        missing = [
            str(rank)
            for rank in range(self.size)
            if not self._store.check([f"meeting {meeting}/{rank}"])
        ]
        logger.warning(
            "process %d of %d (by rank) waits for process %s to call fit. All of them "
            "have to; with devices=1, each trains an estimator of its own.",
            self.rank,
            self.size,
            ", ".join(missing) or "another",
        )

    def among(self, size: int) -> OneRank:
        """Return the first processes."""
        if size == self.size:
            return self
        if size not in self._parts:
            self._parts[size] = Ranks(size)
        return self._parts[size]

    def sums(self, values: list[float]) -> list[float]:
        """Add up numbers over all processes."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._control)
        return tensor.tolist()

    def from_first(self, value: Any) -> Any:
        """Return what the first process has."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def first_does(self, function: Callable[[], Any]) -> Any:
        """Call a function in the first process; return or raise its outcome in all."""
        value = error = None
        if self.is_first:
            try:
                value = function()
            except Exception as raised:
                error = raised
        value, error = self.from_first((value, error))
        if error is not None:
            raise error
        return value

    def gathered(self, value: Any, *, only_first: bool = False) -> list[Any]:
        """Return what each process has, by rank."""
        values = [None] * self.size
        if not only_first:
            dist.all_gather_object(values, value, group=self._control)
            return values
        into = values if self.is_first else None
        dist.gather_object(value, into, dst=0, group=self._control)
        return values if self.is_first else [value]

    def each(self, value: Any) -> Iterator[Any]:
        """Yield what each process has, by rank, one after the other."""
        for rank in range(self.size):
            values = [value if rank == self.rank else None]
            dist.broadcast_object_list(values, src=rank, group=self._control)
            yield values[0]

    @torch.no_grad()
    def equalise(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors into those of the others."""
        for tensor in tensors:
            with _dense(tensor) as dense:
                dist.broadcast(dense, src=0, group=self.group)

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        for tensor in tensors:
            with _dense(tensor) as dense:
                dist.all_reduce(dense, group=self.group)
                dense /= self.size

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[Tensor], share: float) -> None:
        """Replace gradients by their sum over all processes, each times its share."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            with _dense(parameter.grad) as dense:
                dist.all_reduce(dense.mul_(share), group=self.group)

    @contextmanager
    def working(self, agreed: tuple[type[BaseException], ...]) -> Iterator[None]:
        """Surround what all processes do at the same time.

        Where one of them fails alone, the others are told which one it was and why.
        """
        self._n_works += 1
        try:
            yield
        except agreed:
            raise
        except BaseException as error:
            if isinstance(error, RankError):
                raise
            if _is_of_connection(error):
                raise RankError(self._who_failed()) from error
            self._tell(error)
            raise

    def _key(self, what: str, rank: int) -> str:
        return f"{self.size}/{self._n_works}/{what}/{rank}"

    def _tell(self, error: BaseException) -> None:
        """Tell the others of an error, and wake those that wait for this process.

        Where all have the same one, such as that of a parameter, nobody waits.
        """
        text = f"{type(error).__name__}: {error}"
        self._store.set(self._key("failed", self.rank), text)
        if len(self._within("failed", _ROLL_CALL / 2)) < self.size:
            _leave()

    def _who_failed(self) -> str:
        """Return which process has failed, as those that are left can tell."""
        try:
            self._store.set(self._key("here", self.rank), "")
            here = self._within("here", _ROLL_CALL, and_also="failed")
            failed = {
                rank: self._store.get(self._key("failed", rank)).decode()
                for rank in self._within("failed", 0.0)
            }
        except (dist.DistError, RuntimeError):  # the first process kept the store
            here, failed = list(range(1, self.size)), {}
        _leave()
        for rank, text in failed.items():
            return f"process {rank} of {self.size} (by rank) failed with {text}"
        missing = sorted(set(range(self.size)) - set(here))
        names = f"process {', '.join(map(str, missing))}" if missing else "a process"
        return (
            f"{names} of {self.size} (by rank) died or lost its connection while the "
            "network was trained. Look at its output; with `checkpoint` set, the same "
            "call goes on after the last whole epoch."
        )

    def _within(self, what: str, seconds: float, and_also: str = "") -> list[int]:
        """Return the processes that have said something, once all have."""
        end = time.monotonic() + seconds
        while True:
            said = [
                rank
                for rank in range(self.size)
                if self._store.check([self._key(what, rank)])
                or (and_also and self._store.check([self._key(and_also, rank)]))
            ]
            if len(said) == self.size or time.monotonic() >= end:
                return said
            time.sleep(0.05)


_known: Ranks | None = None
# Whether this process has left the others in the middle of a call.
_has_left = False


def current(devices: Any = None) -> OneRank:
    """Return the processes that train together, this one among them.

    They are those of torch's default process group. Where there is none, but a launcher
    such as torchrun has started several processes, it is made.

    Parameters
    ----------
    devices : int, "all" or None, default=None
        The estimator's; with 1 it trains alone, whatever other processes do.
    """
    global _known
    if devices == 1 or not dist.is_available():
        return OneRank()
    if not dist.is_initialized():
        if _has_left:
            raise RankError(
                "the processes that trained together have parted, as one of them "
                "failed in an earlier call; start the script anew."
            )
        if not _is_launched():
            return OneRank()
        _start()
    if dist.get_world_size() == 1:
        return OneRank()
    if _known is None or _known.world is not dist.group.WORLD:
        _known = Ranks(dist.get_world_size())
    return _known


def _is_launched() -> bool:
    """Whether a launcher has started this process among others.

    Processes that this one starts, such as a search's, inherit its environment. They
    train alone.
    """
    return (
        all(name in os.environ for name in _LAUNCHED)
        and int(os.environ["WORLD_SIZE"]) > 1
        and multiprocessing.current_process().name == "MainProcess"
    )


def _start() -> None:
    """Make the process group that a launcher's environment describes."""
    backend, n_gpus = "gloo", torch.cuda.device_count()
    if n_gpus:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= n_gpus:
            raise ValueError(
                f"LOCAL_RANK={local}, but this machine shows {n_gpus} GPUs; start one "
                "process per GPU (torchrun --nproc-per-node), or hide the GPUs with "
                "CUDA_VISIBLE_DEVICES= to train on the CPU."
            )
        # The launcher gives each process a GPU of its own: its number is this one.
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    atexit.register(_stop)


def _leave() -> None:
    """Leave the others, so that nobody waits for this process, for good.

    Their addresses in the store are those of the connections that have ended: a group
    that was made anew would wait for them.
    """
    global _has_left
    _has_left = True
    _stop()


def _stop() -> None:
    """Let go of the process group."""
    global _known
    known, _known = _known, None
    if dist.is_initialized():
        dist.destroy_process_group()
    if known is not None:
        known.close()
    gc.collect()  # what an interrupted call has left may hold groups too


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


@contextmanager
def _dense(tensor: Tensor) -> Iterator[Tensor]:
    """Give a tensor in one piece, as exchanges need it; copy it back if it is another.

    Weights in the format "channels last" are not.
    """
    tensor = tensor.detach()
    dense = tensor.contiguous()
    yield dense
    if dense is not tensor:
        tensor.copy_(dense)


def _is_of_connection(error: BaseException) -> bool:
    """Whether an exchange with other processes is what failed."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


def n_taking_part(size: int, n_samples: int, batch_size: int) -> int:
    """Return how many processes train: at least two samples of a batch are for each.

    Batch normalisation needs two.

    Parameters
    ----------
    size : int
        How many there are.
    n_samples, batch_size : int
        Of all processes together; a `batch_size` of -1 is all samples.
    """
    batch = n_samples if batch_size == -1 else min(batch_size, n_samples)
    return max(1, min(size, batch // 2))
