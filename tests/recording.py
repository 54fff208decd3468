"""A stand-in for CUDA graphs on the CPU: operations are recorded, and done again.

As with a graph, what is done again is each operation with the same tensors, in the same
memory: code in Python is not run again, and numbers of Python are as they were.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Keeps every operation that it sees, with its arguments and its results."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


class Recording:
    """What :class:`skbsd._graph.Graph` is, on the CPU."""

    made: list["Recording"] = []  # noqa: RUF012

    def __init__(self, function, device):
        self._function = function
        self._operations = []
        self._is_fresh = False
        self.n_calls = self.n_replays = 0
        Recording.made.append(self)

    @property
    def is_recorded(self):
        return bool(self._operations)

    def call(self):
        self.n_calls += 1
        self._function()

    def record(self):
        with Recorder() as recorder:
            self._function()
        self._operations = recorder.operations
        # A graph does nothing as it is recorded. Here it has.
        self._is_fresh = True

    def drop(self):
        self._operations = []

    @torch.no_grad()
    def replay(self):
        self.n_replays += 1
        if self._is_fresh:
            self._is_fresh = False
            return
        for func, args, kwargs, before in self._operations:
            after = func(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                # A view, or a result in place, is right already.
                if isinstance(old, Tensor) and not _same_memory(old, new):
                    old.copy_(new)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
