"""A function as a CUDA graph, which replays its kernels with one launch."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

from ._memory import release_reserve


def records_graphs(device: torch.device) -> bool:
    """Whether a device supports CUDA graphs."""
    return device.type == "cuda"


class Graph:
    """A function without arguments, and its recording.

    Parameters
    ----------
    function : callable
        Performs the same operations in the same memory at each call.
    device : torch.device
        With its index.
    """

    def __init__(self, function: Callable[[], None], device: torch.device):
        self._function = function
        self._device = device
        self._recorded: torch.cuda.CUDAGraph | None = None
        # Autograd remembers the stream on which a parameter was used. Therefore, calls
        # before a recording must use the same stream.
        self._stream = _stream(device)

    @property
    def is_recorded(self) -> bool:
        """Whether a recording exists that can be replayed."""
        return self._recorded is not None

    def call(self) -> None:
        """Call the function, one operation at a time."""
        with self._on_stream():
            self._function()

    def record(self) -> None:
        """Record the operations of the function, without executing them.

        A recording draws random numbers from a generator state that is bound to it. It
        gets a copy of the state, because a failed recording makes the state unusable.
        """
        release_reserve(self._device)
        generator = torch.cuda.default_generators[self._device.index]
        before = generator.graphsafe_get_state()
        generator.graphsafe_set_state(before.clone_state())
        recorded, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with self._on_stream(), _no_garbage_collection():
                # Other threads may continue to use the device.
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
        """Replay the recorded operations."""
        assert self._recorded is not None
        self._recorded.replay()

    def drop(self) -> None:
        """Delete the recording. None of the tensors in its memory may be in use."""
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
    """Make the allocator close the memory pool of a failed recording.

    Later versions of torch do so themselves. In earlier versions, the pool of a
    recording that the device has refused stays open, and no memory can be released.
    """
    if hasattr(torch.cuda.CUDAGraph, "capture_end_pre"):
        return
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        # They raise an error if the pool was closed before the failure.
        with suppress(RuntimeError):
            getattr(torch._C, name)(device.index, pool)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all recordings, as cuBLAS keeps a workspace per stream.

    Fits cannot overlap, as torch's generators belong to the process.
    """
    return torch.cuda.Stream(device)


@contextmanager
def same_generator(device: torch.device) -> Iterator[None]:
    """Restore the default generator's state object, advanced by what recordings drew.

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
    """Disable garbage collection, as freeing tensors is not allowed in a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
