"""A substitute for CUDA graphs on the CPU, which records and repeats operations.

As with a graph, a replay repeats each operation with the same tensors, in the same
memory. Python code is not run again, and Python numbers keep their recorded values.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Records every operation with its arguments and results."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


class Recording:
    """Replaces :class:`skbsd._graph.Graph` on the CPU."""

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
        # Unlike the capture of a graph, the recording has executed the operations.
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
                # Views and in-place results are up to date already.
                if isinstance(old, Tensor) and not _same_memory(old, new):
                    old.copy_(new)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
