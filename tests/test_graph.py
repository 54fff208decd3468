"""Calls of torch while a graph is captured, tested without CUDA.

tests/test_gpu.py records on a device.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from skbsd import _graph, _memory
from skbsd._graph import Graph, same_generator

DEVICE = torch.device("cuda", 0)


class State:
    def __init__(self, n=0):
        self.n = n

    def clone_state(self):
        return State(self.n)


class Generator:
    """Has a state as an object, and as numbers."""

    def __init__(self):
        self.state = State()

    def graphsafe_get_state(self):
        return self.state

    def graphsafe_set_state(self, state):
        self.state = state

    def get_state(self):
        return self.state.n

    def set_state(self, n):
        self.state.n = n


class Recorded:
    """A graph that refuses to end after an error, as the device does."""

    def __init__(self):
        self.calls = []

    def capture_begin(self, pool, capture_error_mode):
        self.calls.append(("begin", capture_error_mode))

    def capture_end(self):
        self.calls.append("end")
        if self.fails:
            raise RuntimeError("operation failed due to a previous error")

    def replay(self):
        self.calls.append("replay")


@pytest.fixture
def cuda(monkeypatch):
    """Replace torch.cuda; return an object that records its calls."""
    generator = Generator()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    made, left, emptied = [], [], []

    class Made(Recorded):
        fails = False

        def __init__(self):
            super().__init__()
            made.append(self)

    for name, value in {
        "CUDAGraph": Made,
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "default_generators": [generator],
        "empty_cache": lambda: emptied.append(True),
        "graph_pool_handle": lambda: (0, 7),
        "mem_get_info": lambda device: (10, 100),
        "memory_allocated": lambda device: 20,
        "memory_reserved": lambda device: 40,
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C, name, lambda *args, name=name: left.append(name), raising=False
        )
    _graph._stream.cache_clear()
    yield SimpleNamespace(
        Graph=Made, generator=generator, made=made, left=left, emptied=emptied
    )
    _graph._stream.cache_clear()


def test_records_and_replays(cuda):
    calls = []
    graph = Graph(lambda: calls.append("body"), DEVICE)
    assert not graph.is_recorded
    graph.call()
    graph.record()
    assert calls == ["body"] * 2
    assert graph.is_recorded
    graph.replay()
    (recorded,) = cuda.made
    assert recorded.calls == [("begin", "thread_local"), "end", "replay"]
    graph.drop()
    assert not graph.is_recorded


def test_draws_from_a_state_of_its_own(cuda):
    before = cuda.generator.state
    with same_generator(DEVICE):
        graph = Graph(lambda: None, DEVICE)
        graph.record()
        assert cuda.generator.state is not before
        cuda.generator.state.n = 5  # what replays have drawn
    assert cuda.generator.state is before
    assert before.n == 5


def test_a_recording_that_fails(cuda):
    cuda.Graph.fails = True
    before = cuda.generator.state
    graph = Graph(torch.zeros(2).reshape, DEVICE)  # without a shape
    with pytest.raises(RuntimeError, match="previous error") as caught:
        graph.record()
    assert isinstance(caught.value.__context__, TypeError)
    assert cuda.generator.state is before
    assert not graph.is_recorded
    # As in versions of torch that do not end a failed capture.
    assert cuda.left == ["_cuda_endAllocateToPool", "_cuda_releasePool"]


def test_later_versions_of_torch_close_a_recording_themselves(cuda, monkeypatch):
    monkeypatch.setattr(cuda.Graph, "capture_end_pre", None, raising=False)
    cuda.Graph.fails = True
    with pytest.raises(RuntimeError):
        Graph(lambda: None, DEVICE).record()
    assert cuda.left == []


@pytest.mark.parametrize(("reserved", "given_back"), [(44, False), (46, True)])
def test_gives_memory_back_where_much_is_in_reserve(
    cuda, monkeypatch, reserved, given_back
):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    _memory.release_reserve(DEVICE)
    assert bool(cuda.emptied) == given_back
