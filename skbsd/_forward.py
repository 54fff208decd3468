"""Running the network: precision, memory format, compilation."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parameter import is_lazy

from ._preparation import Preparation
from ._structure import leaves


class Forward:
    """Runs the network on a prepared batch, and returns logits.

    Parameters
    ----------
    module : nn.Module
    device : torch.device
    precision : {"auto", "float32", "bfloat16"}
    compile_options : dict, optional
        Compile the network for training, with these arguments of
        :func:`torch.compile`. Prediction runs it without compilation: its last batch
        has any size, and each size would be compiled separately.
    trained : nn.Module, optional
        Called in place of the module while gradients are computed, such as a wrapper
        that adds the gradients of other processes.

    Attributes
    ----------
    compile_time : float
        Total seconds of the first training step with each shape.
    reuses_output : bool
        Whether a compiled network writes its next output into the same memory.
    dtype : torch.dtype
        Type of the logits, as far as the precision determines it.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        precision: str,
        compile_options: dict | None = None,
        trained: nn.Module | None = None,
    ):
        self.module = module
        self.compile_time = 0.0
        self._timed: set = set()
        self._device_type = device.type
        self._bfloat16 = precision == "bfloat16" or (
            precision == "auto" and _has_bfloat16(device) and _gains(module)
        )
        self.dtype = torch.bfloat16 if self._bfloat16 else torch.float32
        self.reuses_output = _is_graph(compile_options or {})
        # Not stored in the module, so that its state and its pickle do not change.
        self._compiled: Any = None
        self._compile_options = compile_options
        self.train(trained)

    def train(self, trained: nn.Module | None) -> None:
        """Set the module to call while gradients are computed.

        Parameters
        ----------
        trained : nn.Module or None
            None stands for the module itself.
        """
        self._trained = self.module if trained is None else trained
        if self._compile_options is not None:
            # One graph per shape: full batches and the last batch have two at most.
            self._compiled = torch.compile(
                self._trained, **({"dynamic": False} | self._compile_options)
            )

    def release(self) -> None:
        """Drop the wrapper and the compiled network."""
        self._trained = self.module
        self._compiled = None

    @property
    def is_compiled(self) -> bool:
        """Whether training runs the network compiled."""
        return self._compiled is not None

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        """Run the network; a mapping is passed as keyword arguments.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The network's output; its first entry if it is a tuple, or its attribute
            `logits` if it has one.
        """
        if self._compiled is not None and self.module.training:
            # By default, hooks are inspected at compilation only. A graph that was
            # compiled without the embedding hook must not be reused with it.
            with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
                return self._run(self._compiled, x, kwargs)
        if self.module.training and torch.is_grad_enabled():
            return self._run(self._trained, x, kwargs)
        return self._run(self.module, x, kwargs)

    def _run(self, network: Any, x: Any, kwargs: dict) -> Any:
        inputs: tuple = (x,)
        if not isinstance(x, Tensor) and isinstance(x, Mapping):
            inputs, kwargs = (), {**x, **kwargs}
        if self._bfloat16:
            with self.autocast():
                out = network(*inputs, **kwargs)
        else:
            out = network(*inputs, **kwargs)
        return logits_in(out)

    def autocast(self) -> Any:
        """Return the autocast context of the precision."""
        if not self._bfloat16:
            return nullcontext()
        return torch.autocast(self._device_type, dtype=torch.bfloat16)

    @contextmanager
    def timed(self, x: Any) -> Iterator[None]:
        """Add the duration of the first step with each shape to `compile_time`."""
        shape = getattr(x, "shape", None)
        start = time.perf_counter()
        yield
        if shape not in self._timed:
            self.compile_time += time.perf_counter() - start
            self._timed.add(shape)


def logits_in(out: Any) -> Any:
    """Return the logits in a network's output.

    Parameters
    ----------
    out : Tensor, tuple that starts with it, or object with `logits`
    """
    if isinstance(out, Tensor):
        return out
    out = getattr(out, "logits", out)
    return out[0] if isinstance(out, tuple | list) else out


def infer_prepared(
    infer: Callable[[Any], Any],
    x: Any,
    fitted_shape: tuple[int, ...] | None,
    network: str,
) -> Any:
    """Run a network, and explain errors that shapes or indices of samples cause.

    Parameters
    ----------
    infer : callable
        Runs the network on a prepared batch.
    x : Tensor or any batch of a DataLoader
    fitted_shape : tuple of int or None
        Shape of a training sample.
    network : str
        Name of the network, for the message.
    """
    try:
        return infer(x)
    except RuntimeError as error:
        fitted = fitted_shape or ()
        if not isinstance(x, Tensor) or tuple(x.shape[1:]) == fitted:
            raise
        raise ValueError(
            f"the module {network} cannot take samples of shape {tuple(x.shape[1:])}; "
            f"it was fitted on {fitted}. Resize them."
        ) from error
    except TypeError as error:
        if not (isinstance(x, Mapping) and "forward()" in str(error)):
            raise
        raise TypeError(
            f"X has the entries {sorted(x)}, which must be the arguments of the "
            f"forward method of {network}: {error}."
        ) from error
    except IndexError as error:
        found = [part for part in leaves(x) if _are_integers(part) and part.numel()]
        if not found:
            raise
        least = min(part.min().item() for part in found)
        most = max(part.max().item() for part in found)
        raise ValueError(
            f"the module {network} was given integers from {least} to {most}, and has "
            f"no entry for some of them ({error}). An embedding of n rows takes the "
            "integers from 0 to n - 1: encode others so, or give it more rows."
        ) from error


def _are_integers(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.int32, torch.int64)


def backward(logits: Tensor, gradient: Tensor) -> None:
    """Backpropagate a gradient; a faster ``torch.autograd.backward(logits, gradient)``.

    That function first checks the shapes in Python, which takes as long as a small
    layer: 25 of 700 microseconds per step of the default network for tables.
    """
    Variable._execution_engine.run_backward(
        (logits,),
        (gradient,),
        False,  # keep_graph
        False,  # create_graph
        (),  # inputs: all leaves
        allow_unreachable=True,
        accumulate_grad=True,
    )


class OutputCheck:
    """Checks the first output of a network in a call of `fit`.

    Parameters
    ----------
    network : str
        Name of the network, for messages.
    n_classes : int
    """

    def __init__(self, network: str, n_classes: int):
        self._network = network
        self._n_classes = n_classes
        self._first: Tensor | None = None
        self._done = False

    def look(self, logits: Any) -> None:
        """Check the type and shape of the first output, and store a copy of it."""
        if self._done:
            return
        check_output(logits, self._network, self._n_classes)
        # A copy, as a compiled network may write its next output into the same memory.
        self._first = logits.detach().clone()
        self._done = True

    def look_closer(self) -> None:
        """Warn if the stored output looks like probabilities.

        Called at the end of an epoch, as reading values synchronises with a GPU.
        """
        if self._first is not None:
            warn_of_probabilities(self._first, self._network)
            self._first = None


def check_output(logits: Any, network: str, n_classes: int) -> None:
    """Raise an error if the output is not a Tensor with one logit per class."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the module {network} returned {type(logits).__name__}; expected a Tensor "
            "of logits, a tuple that starts with it, or an object with `logits`."
        )
    if logits.ndim != 2 or logits.shape[1] != n_classes:
        raise ValueError(
            f"the module {network} returned shape {tuple(logits.shape)}, but y has "
            f"{n_classes} classes: expected (n_samples, {n_classes}), a logit per "
            "class. Set the width of its last layer."
        )


def warn_of_probabilities(logits: Tensor, network: str) -> None:
    """Warn if a network's output looks like probabilities, or their logarithms."""
    values = logits.float()
    if _are_probabilities(values):
        warnings.warn(
            f"the module {network} seems to return probabilities; expected logits. "
            "Remove its last softmax; otherwise training is slow and the predicted "
            "probabilities are wrong.",
            UserWarning,
            stacklevel=2,
        )
    elif (values <= 0).all() and _are_probabilities(values.exp()):
        warnings.warn(
            f"the module {network} seems to return logarithms of probabilities; "
            "expected logits. Remove its last log_softmax: the predicted "
            "probabilities are right, but decision_function does not return logits, "
            "and training computes the softmax twice.",
            UserWarning,
            stacklevel=2,
        )


def _are_probabilities(values: Tensor) -> bool:
    sums = values.sum(dim=1)
    in_range = ((values >= 0) & (values <= 1)).all()
    return bool(in_range) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def wants_channels_last(
    setting: Any,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    preparation: Preparation,
    device: torch.device,
    *,
    trusted: bool,
) -> bool:
    """Whether to use the channels-last memory format, which speeds up convolutions.

    Parameters
    ----------
    setting : bool or "auto"
        "auto" uses it if network and optimizer support it. Some do not: `view` needs
        the contiguous format, and so do optimizers that flatten gradients.
    module : nn.Module
    optimizer : torch.optim.Optimizer
    preparation : Preparation
        Preparation of the images.
    device : torch.device
    trusted : bool
        Whether the network is known to support it, so that no trial is needed.
    """
    if len(preparation.shape or ()) != 3:
        return False
    if setting != "auto":
        return bool(setting)
    if (
        device.type not in ("cpu", "cuda")
        or isinstance(optimizer, torch.optim.LBFGS)
        or not any(isinstance(m, nn.Conv2d) for m in module.modules())
        or any(map(is_lazy, module.parameters()))
        or (device.type == "cpu" and any(map(_corrupts_memory, module.modules())))
    ):
        return False
    return trusted or _takes_channels_last(module, preparation, device)


def _corrupts_memory(module: nn.Module) -> bool:
    """Whether a channels-last convolution may write beyond its memory on a CPU.

    With AVX2, the gradients of oneDNN's pointwise convolutions do so in torch 2.14 if
    the number of channels is not a multiple of eight, the width of a vector.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and bool(module.in_channels % 8 or module.out_channels % 8)
    )


def _takes_channels_last(
    module: nn.Module, preparation: Preparation, device: torch.device
) -> bool:
    """Try it on a copy, and restore the random generators, so nothing changes."""
    shape = preparation.shape or ()
    x = torch.zeros(4, *shape, dtype=preparation.float_dtype, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    devices = [x.device.index] if x.is_cuda else []
    # After any failure, such as of the copy itself, images keep the default format.
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            trial: Any = copy.deepcopy(module).train()
            trial.to(memory_format=torch.channels_last)(x)
    except Exception:
        return False
    return True


# Linear layers with fewer inputs or outputs are bound by kernel launches, and casts add
# more of these.
_WIDE = 512


def _gains(module: nn.Module) -> bool:
    """Whether a network is faster in bfloat16: convolutional and wide networks are."""
    return any(
        min(p.shape[:2]) >= _WIDE or p.ndim > 2
        for p in module.parameters()
        if not is_lazy(p) and p.ndim > 1
    )


def _is_graph(compile_options: dict) -> bool:
    """Whether torch.compile creates CUDA graphs itself."""
    options = compile_options.get("options") or {}
    modes = ("reduce-overhead", "max-autotune")
    return compile_options.get("mode") in modes or options.get(
        "triton.cudagraphs", False
    )


@contextmanager
def fast_convolutions(device: torch.device) -> Iterator[None]:
    """Let cuDNN benchmark its algorithms for each shape, and choose the fastest.

    If algorithms have to be deterministic, nothing changes.

    Parameters
    ----------
    device : torch.device
    """
    deterministic = (
        torch.are_deterministic_algorithms_enabled()
        or torch.backends.cudnn.deterministic
    )
    if device.type != "cuda" or deterministic:
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@cache
def _has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16; cached, as the query is slow."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(
        including_emulation=False
    )
