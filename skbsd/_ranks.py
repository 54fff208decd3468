"""The processes that train one network together, and their communication.

Each process has a rank, starting at 0. Numbers and objects are exchanged in a process
group of the "gloo" backend, separately from the gradients. Therefore, they never wait
for a GPU.
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

# Environment variables that torchrun and other launchers set.
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Timeout for other processes. It must exceed a training that this process takes no part
# in, or a callback of the first process. The connection reveals a process that dies.
_PATIENCE = timedelta(days=1)
# Number of seconds after which a process reports which processes it waits for.
_LONG = 30.0
# Number of seconds that the other processes have to report that they are alive.
_ROLL_CALL = 5.0


class RankError(RuntimeError):
    """Another process has failed, so that this one cannot continue."""


class AgreedInterrupt(KeyboardInterrupt):
    """An interrupt (Ctrl-C) at which all processes have agreed to stop."""


class Interrupts:
    """Handles Ctrl-C so that processes that train together stop after the same step.

    Signals reach the processes at different steps. A process that stops alone leaves
    the others waiting for its gradients. Therefore, a process only records the signal,
    and all processes regularly exchange whether one of them has received any. A second
    signal stops the process immediately.

    Parameters
    ----------
    ranks : OneRank
        With a single process, the signal handlers are not changed.
    """

    # Steps between two exchanges. Each costs about as much as a small layer.
    EVERY = 32

    def __init__(self, ranks: "OneRank"):
        self._ranks = ranks
        self._is_noted = False
        self._n_steps = 0

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Record signals, in the main thread only, as other threads receive none."""
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
        """Call `check` every few steps."""
        self._n_steps += 1
        if self._n_steps % self.EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raise AgreedInterrupt in all processes if one of them was interrupted."""
        if self._ranks.size == 1:
            return
        if any(self._ranks.sums([float(self._is_noted)])):
            raise AgreedInterrupt


class OneRank:
    """A process that trains alone, with the interface of several processes.

    Attributes
    ----------
    rank : int
        Rank of this process.
    size : int
        Number of processes.
    is_first : bool
        Whether this process prints, writes files and calls callbacks.
    takes_part : bool
        Whether this process trains.
    """

    rank = 0
    size = 1
    is_first = True
    takes_part = True
    group: Any = None

    def among(self, size: int) -> "OneRank":
        """Return the first `size` processes; here, the only one."""
        return self

    def meet(self) -> None:
        """Wait until all processes have begun the same call."""

    def sums(self, values: list[float]) -> list[float]:
        """Add up numbers over all processes."""
        return values

    def from_first(self, value: Any) -> Any:
        """Return the value that the first process passes."""
        return value

    def first_does(self, function: Callable[[], Any]) -> Any:
        """Call a function in the first process; return or raise its outcome in all."""
        return function()

    def gathered(self, value: Any, *, only_first: bool = False) -> list[Any]:
        """Return the values of all processes, in the order of their ranks.

        Parameters
        ----------
        value : object
            The value of this process.
        only_first : bool, default=False
            Whether only the first process receives all values, which saves memory if
            they are large. The others receive their own value.
        """
        return [value]

    def each(self, value: Any) -> Iterator[Any]:
        """Yield the value of each process, in the order of the ranks.

        Only one value at a time is in memory.
        """
        yield value

    def equalise(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors into those of the others."""

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes."""

    def add_gradients(self, parameters: Iterable[Tensor], share: float) -> None:
        """Replace gradients by their sum over processes, each weighted by its share."""

    @contextmanager
    def working(self, agreed: tuple[type[BaseException], ...]) -> Iterator[None]:
        """Enclose code that all processes run at the same time.

        Parameters
        ----------
        agreed : tuple of exception types
            Exceptions that all processes raise if one of them does.
        """
        yield


class Ranks(OneRank):
    """Several processes.

    Parameters
    ----------
    size : int
        Number of processes. They are the first ones of the default process group.
    """

    def __init__(self, size: int):
        self.world: Any = dist.group.WORLD
        self.size = size
        self.rank = dist.get_rank()
        self.is_first = self.rank == 0
        self.takes_part = self.rank < size
        members = list(range(size))
        is_all = size == dist.get_world_size()
        # All processes must create all groups in the same order, members or not.
        self.group = self.world if is_all else dist.new_group(members)
        self._control: Any = dist.new_group(members, backend="gloo", timeout=_PATIENCE)
        self._store: Any = dist.PrefixStore("skbsd", _store())
        self._parts: dict[int, Ranks] = {}
        self._n_works = 0
        self._n_meetings = 0

    def close(self) -> None:
        """Release the groups, as their threads must end before the process does."""
        for part in self._parts.values():
            part.close()
        self.world = self.group = self._control = self._store = None

    def meet(self) -> None:
        """Wait until all processes have begun the same call; log if it takes long."""
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
            "must call it; with devices=1, each trains a separate estimator.",
            self.rank,
            self.size,
            ", ".join(missing) or "another",
        )

    def among(self, size: int) -> OneRank:
        """Return the first `size` processes."""
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
        """Return the value that the first process passes."""
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
        """Return the values of all processes, in the order of their ranks."""
        values = [None] * self.size
        if not only_first:
            dist.all_gather_object(values, value, group=self._control)
            return values
        into = values if self.is_first else None
        dist.gather_object(value, into, dst=0, group=self._control)
        return values if self.is_first else [value]

    def each(self, value: Any) -> Iterator[Any]:
        """Yield the value of each process, in the order of the ranks."""
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
        """Replace gradients by their sum over processes, each weighted by its share."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            with _dense(parameter.grad) as dense:
                dist.all_reduce(dense.mul_(share), group=self.group)

    @contextmanager
    def working(self, agreed: tuple[type[BaseException], ...]) -> Iterator[None]:
        """Enclose code that all processes run at the same time.

        If a single process fails, the others raise an error with its rank and reason.
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
        """Report an error to the others, and wake those that wait for this process.

        If all processes raise the error, such as for an invalid parameter, none waits.
        """
        text = f"{type(error).__name__}: {error}"
        self._store.set(self._key("failed", self.rank), text)
        if len(self._within("failed", _ROLL_CALL / 2)) < self.size:
            _leave()

    def _who_failed(self) -> str:
        """Return a message that names the failed process, as far as it is known."""
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
            "network was trained. See its output for the reason. With `checkpoint` "
            "set, the same call resumes after the last complete epoch."
        )

    def _within(self, what: str, seconds: float, and_also: str = "") -> list[int]:
        """Return the ranks that have set a key; stop early once all have."""
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
# Whether this process has left the group during a call.
_has_left = False


def current(devices: Any = None) -> OneRank:
    """Return the processes that train together, including this one.

    They are the members of torch's default process group. If it does not exist, but a
    launcher such as torchrun has started several processes, the group is created.

    Parameters
    ----------
    devices : int, "all" or None, default=None
        Parameter of the estimator. With 1, this process trains alone.
    """
    global _known
    if devices == 1 or not dist.is_available():
        return OneRank()
    if not dist.is_initialized():
        if _has_left:
            raise RankError(
                "the processes that trained together have left their group, as one of "
                "them failed in an earlier call; restart the script."
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
    """Whether a launcher has started this process together with others.

    Child processes, such as the workers of a search, inherit the environment of this
    one, but they train alone.
    """
    return (
        all(name in os.environ for name in _LAUNCHED)
        and int(os.environ["WORLD_SIZE"]) > 1
        and multiprocessing.current_process().name == "MainProcess"
    )


def _start() -> None:
    """Create the process group that a launcher's environment describes."""
    backend, n_gpus = "gloo", torch.cuda.device_count()
    if n_gpus:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= n_gpus:
            raise ValueError(
                f"LOCAL_RANK={local}, but torch sees {n_gpus} GPUs; start one "
                "process per GPU (torchrun --nproc-per-node), or hide the GPUs with "
                "CUDA_VISIBLE_DEVICES= to train on the CPU."
            )
        # Launchers assign GPUs to processes by their local rank.
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    atexit.register(_stop)


def _leave() -> None:
    """Leave the process group for good, so that no process waits for this one.

    The store still contains the addresses of the closed connections. A new group would
    wait for them.
    """
    global _has_left
    _has_left = True
    _stop()


def _stop() -> None:
    """Destroy the process group."""
    global _known
    known, _known = _known, None
    if dist.is_initialized():
        dist.destroy_process_group()
    if known is not None:
        known.close()
    gc.collect()  # objects of an interrupted call may refer to groups too


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


@contextmanager
def _dense(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a contiguous version of a tensor, and copy a changed copy back.

    Collective operations need contiguous tensors. Weights in the "channels last" format
    are not contiguous.
    """
    tensor = tensor.detach()
    dense = tensor.contiguous()
    yield dense
    if dense is not tensor:
        tensor.copy_(dense)


def _is_of_connection(error: BaseException) -> bool:
    """Whether an error comes from the communication with other processes."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


def n_taking_part(size: int, n_samples: int, batch_size: int) -> int:
    """Return the number of processes that can train, with two samples per batch each.

    Batch normalisation needs at least two samples.

    Parameters
    ----------
    size : int
        Number of available processes.
    n_samples, batch_size : int
        Totals over all processes; a `batch_size` of -1 means all samples.
    """
    batch = n_samples if batch_size == -1 else min(batch_size, n_samples)
    return max(1, min(size, batch // 2))
