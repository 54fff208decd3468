"""A simulated GPU, which records operations and detects synchronisations.

Its tensors are on torch's meta device: they have shapes, but no values. They report to
be on CUDA, so that training follows the same path as on a GPU, and every operation on
them is recorded. Outside of `guarded`, reading them returns ones.

Shapes and operations are those of a GPU with two exceptions: casts of autocast are
missing, and kernels are not chosen by the capability of a GPU.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.optim import optimizer as optimizers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skbsd import _compact_kernels, _graph, _kernels

_CUDA = torch.device("cuda", 0)
_META = torch.device("meta")

# Functions that copy data of Python or NumPy.
_MAKERS = (
    torch.tensor,
    torch.as_tensor,
    torch.asarray,
    torch.from_numpy,
    Tensor.new_tensor,  # whose data is the second argument
)
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPYING = {"_to_copy", "copy", "copy_"}
# Operations that do nothing on the device, in addition to those that return views.
_IDLE = {
    "_record_function_enter_new",
    "_record_function_exit",
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}


class HostError(AssertionError):
    """The host computed or waited while the device has to work alone."""


class Device:
    """A simulated GPU, with the list of operations launched on it.

    Attributes
    ----------
    launched : list of str
        Launches in order: names of operations, and "graph" for the replay of a captured
        graph.
    recorded : list of list of str
        The operations of each captured graph.
    is_recording : bool
        Whether a graph is being captured; the host must not compute meanwhile.
    """

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.recorded: list[list[str]] = []
        self.is_recording = False
        self._is_guarded = False

    @property
    def is_guarded(self) -> bool:
        """Whether waiting for the device, or copying to it, is an error now."""
        return self._is_guarded or self.is_recording

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Raise an error on waiting for the device or copying to it."""
        self._is_guarded = True
        try:
            yield
        finally:
            self._is_guarded = False

    def note(self, name: str) -> None:
        """Record the name of an operation that is launched or captured."""
        (self.recorded[-1] if self.is_recording else self.launched).append(name)

    def begin_recording(self) -> None:
        """Begin to capture a graph."""
        self.recorded.append([])
        self.is_recording = True

    def end_recording(self) -> None:
        """End the capture."""
        self.is_recording = False

    def synchronize(self, *_: Any) -> None:
        """Wait for the device."""
        if self.is_guarded:
            raise HostError("the host waits for the device")

    def check(self, name: str, tags: Any, given: list[Tensor], target: Any) -> None:
        """Raise an error if an operation waits for the device or copies to it."""
        there = [t for t in given if t.is_meta]
        here = [t for t in given if not t.is_meta]
        if there and _is_read(name, tags, given):
            raise HostError(f"{name} reads values from the device")
        if name == "_to_copy" and target and given[0].is_meta != (target == _META):
            raise HostError(f"{name} copies between host and device")
        # A scalar on the host is passed to the device with the launch.
        if there and any(t.ndim or name in _COPYING for t in here):
            raise HostError(f"{name} has tensors on host and device")


def _is_read(name: str, tags: Any, given: list[Tensor]) -> bool:
    if name in _INDEXING:  # a mask is searched for true values
        return any(t.dtype in (torch.bool, torch.uint8) for t in given[1:])
    return torch.Tag.data_dependent_output in tags or (
        torch.Tag.dynamic_output_shape in tags
    )


class _Operations(TorchDispatchMode):
    """Reports all operations to a device, and computes results that need values."""

    def __init__(self, device: Device):
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # for the real devices of tensors
            return self._run(func, args, kwargs)

    def _run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        name = func._schema.name.partition("::")[2]
        given = _tensors((args, kwargs))
        target = kwargs.get("device")
        if self._device.is_guarded:
            self._device.check(name, func.tags, given, target)
        out = _without_values(func, name, given, args, kwargs)
        there = {t.is_meta for t in (*given, *_tensors(out))}
        if self._device.is_recording and False in there:
            raise HostError(f"{name} works on the host, which a replay cannot repeat")
        if True in there and name not in _IDLE and not _is_view(func):
            self._device.note(name)
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_view(func: Any) -> bool:
    aliases = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _without_values(func, name: str, given: list[Tensor], args, kwargs) -> Any:
    """Call an operation, or return a stand-in for a result that depends on values."""
    if not any(t.is_meta for t in given):
        return func(*args, **kwargs)
    if name == "_local_scalar_dense":
        return 1
    if name == "equal":
        return True
    if name == "allclose":
        return False
    if name.startswith("_fused_"):  # works in place, and not on every device
        return None
    target = kwargs.get("device")
    if name == "_to_copy" and target is not None and target != _META:
        return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
    return func(*args, **kwargs)


class _Names(TorchFunctionMode):
    """Makes tensors on the meta device report to be on a GPU."""

    def __init__(self, device: Device):
        super().__init__()
        self._device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.is_cuda.__get__:
            return args[0].is_meta
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if self._device.is_guarded and _indexes_by_list(func, args):
            raise HostError("an index copies from the host to the device")
        args = tuple(map(_real, args))
        kwargs = {name: _real(value) for name, value in (kwargs or {}).items()}
        out = func(*args, **kwargs)
        if func == Tensor.device.__get__:
            return _CUDA if out == _META else out
        if (
            self._device.is_guarded
            and func in _MAKERS
            and out.is_meta
            and not isinstance(args[func is Tensor.new_tensor], Tensor)
        ):
            raise HostError(f"{func.__name__} copies from the host to the device")
        return out


def _indexes_by_list(func: Any, args: tuple) -> bool:
    if func not in (Tensor.__getitem__, Tensor.__setitem__) or not args[0].is_meta:
        return False
    parts = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(part, list | np.ndarray) for part in parts)


def _real(value: Any) -> Any:
    if isinstance(value, torch.device | str) and str(value).partition(":")[0] == "cuda":
        return _META
    return value


class _Generator:
    """Replaces a CUDA generator, and draws nothing."""

    def get_state(self):
        return torch.zeros(1, dtype=torch.uint8)

    def graphsafe_get_state(self):
        return self

    clone_state = graphsafe_get_state

    def set_state(self, state) -> None:
        pass

    graphsafe_set_state = set_state


class _Stream:
    """Replaces a device's stream, and the function that returns it."""

    def __init__(self, device: Device):
        self._device = device

    def __call__(self, *_: Any) -> "_Stream":
        return self

    def is_capturing(self) -> bool:
        return self._device.is_recording

    def wait_stream(self, other: "_Stream") -> None:
        pass

    def synchronize(self) -> None:
        self._device.synchronize()


def _graph_class(device: Device) -> type:
    class Graph:
        """Replaces torch.cuda.CUDAGraph."""

        def capture_begin(self, pool: Any, **options: Any) -> None:
            device.begin_recording()

        def capture_end(self) -> None:
            device.end_recording()

        def replay(self) -> None:
            device.note("graph")

    return Graph


def _stand_ins(device: Device) -> dict[str, Any]:
    """Return the replacements of attributes of `torch.cuda`, by name."""
    generator, stream = _Generator(), _Stream(device)
    return {
        "CUDAGraph": _graph_class(device),
        "Stream": stream,
        "current_device": lambda: 0,
        "current_stream": stream,
        "default_generators": (generator,),
        "device": nullcontext,
        "empty_cache": lambda: None,
        "get_rng_state": lambda *_: generator.get_state(),
        "graph_pool_handle": lambda: (0, 0),
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: device.is_recording,
        "manual_seed": lambda _: None,
        "mem_get_info": lambda *_: (2**36, 2**36),
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "set_rng_state": lambda *_: None,
        "stream": nullcontext,
        "synchronize": device.synchronize,
    }


def _compact_launch(logits: Tensor, *arguments) -> tuple[Tensor, ...]:
    """Return empty results of the compact store's kernel."""
    n, n_classes = logits.shape
    columns = logits.new_empty(n, dtype=torch.float32)
    groups = -(-n_classes // _compact_kernels.GROUP)
    return (
        columns,
        torch.empty_like(logits),
        columns.new_empty(n, groups),
        columns.new_empty(n, 3),
    )


@contextmanager
def pretended() -> Iterator[Device]:
    """Simulate a GPU within the context, in this thread.

    Yields
    ------
    Device
        The simulated GPU.
    """
    device = Device()
    fusing = optimizers._get_fused_kernels_supported_devices()
    with ExitStack() as stack:
        for patch in (
            mock.patch.multiple(torch.cuda, **_stand_ins(device)),
            mock.patch.object(torch.accelerator, "current_stream", _Stream(device)),
            mock.patch.object(_graph, "_stream", _Stream(device)),
            # On the meta device, the operator runs the kernel's fake implementation.
            mock.patch.object(_kernels, "launch", _kernels.operator),
            mock.patch.object(_compact_kernels, "_launch", _compact_launch),
            mock.patch.object(
                optimizers,
                "_get_fused_kernels_supported_devices",
                return_value=[*fusing, "meta"],
            ),
            _Operations(device),
            _Names(device),
        ):
            stack.enter_context(patch)
        yield device
