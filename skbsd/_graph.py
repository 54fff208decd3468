"""A function as a CUDA graph: what it launches is recorded, and launched at once."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

from ._memory import release_reserve


def records_graphs(device: torch.device) -> bool:
    """Whether a device can record what is launched on it."""
    return device.type == "cuda"


class Graph:
    """A function without arguments, and its recording.

    Parameters
    ----------
    function : callable
        Does the same operations, in the same memory, each time it is called.
    device : torch.device
        With its index.
    """

    def __init__(self, function: Callable[[], None], device: torch.device):
        self._function = function
        self._device = device
        self._recorded: torch.cuda.CUDAGraph | None = None
        # Autograd remembers the stream that a parameter was used on, so that calls
        # before a recording have to be on its stream too.
        self._stream = _stream(device)

    @property
    def is_recorded(self) -> bool:
        """Whether there is a recording to replay."""
        return self._recorded is not None

    def call(self) -> None:
        """Call the function, one operation at a time."""
        with self._on_stream():
            self._function()

    def record(self) -> None:
        """Record what the function does, without doing it.

        The random numbers of a recording come from a generator state that is tied to
        it; it gets one of its own, as the state is of no more use where this fails.
        """
        release_reserve(self._device)
        generator = torch.cuda.default_generators[self._device.index]
        before = generator.graphsafe_get_state()
        generator.graphsafe_set_state(before.clone_state())
        recorded, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with self._on_stream(), _no_garbage_collection():
                # The device is left to other threads.
                recorded.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    self._function()
                finally:
                    recorded.capture_end()
        except BaseException:
            generator.graphsafe_set_state(before)
            _leave_pool(self._device, pool)
            raise
        self._recorded = recorded

    def replay(self) -> None:
        """Do what was recorded."""
        assert self._recorded is not None
        self._recorded.replay()

    def drop(self) -> None:
        """Forget the recording. No tensor in its memory may be in use by then."""
        self._recorded = None
        release_reserve(self._device)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def _leave_pool(device: torch.device, pool: tuple[int, int]) -> None:
    """Have the allocator forget a recording that failed.

    Later versions of torch do so themselves. In earlier ones a recording that the
    device has refused stays open, and memory can no longer be given back.
    """
    if hasattr(torch.cuda.CUDAGraph, "capture_end_pre"):
        return
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        # They raise where the recording was closed before it failed.
        with suppress(RuntimeError):
            getattr(torch._C, name)(device.index, pool)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all recordings: cuBLAS keeps memory for each that it meets.

    Fits take turns, as torch's generators belong to the process.
    """
    return torch.cuda.Stream(device)


@contextmanager
def same_generator(device: torch.device) -> Iterator[None]:
    """Leave the generator as it is, but for the numbers that recordings have drawn.

    Parameters
    ----------
    device : torch.device
        With its index.
    """
    generator = torch.cuda.default_generators[device.index]
    before = generator.graphsafe_get_state()
    try:
        yield
    finally:
        drawn = generator.get_state()
        generator.graphsafe_set_state(before)
        generator.set_state(drawn)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Free no tensors of others, which is not allowed while a graph is recorded."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
