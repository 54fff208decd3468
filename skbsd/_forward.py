"""Running the network: precision, memory format, compilation."""

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._inputs import InputHandling


class ForwardPass(InputHandling):
    """From a prepared batch to logits, for :class:`skbsd.BSDClassifier`."""

    compile_time_ = 0.0  # also of one that was never fitted
    _channels_last = False
    _compiled: tuple[nn.Module, Any] | None = None
    _compiled_for: frozenset = frozenset()

    def infer(self, x, **fit_params) -> Tensor:
        """Run the network on a prepared batch.

        Parameters
        ----------
        x : Tensor, or dict of Tensor
            A dict is passed as keyword arguments.
        **fit_params : dict
            Further keyword arguments of the network.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Logits: the network's output, its first entry where it is a tuple, or its
            `logits` where it has such an attribute.
        """
        network = self._compiled_network() if self.compile else self.module_
        with self._autocast(), self._guarding_hooks():
            if isinstance(x, Tensor) or not isinstance(x, Mapping):
                out = network(x, **fit_params)
            else:
                out = network(**x, **fit_params)
        if isinstance(out, Tensor):
            return out
        out = getattr(out, "logits", out)
        return out[0] if isinstance(out, tuple | list) else out

    def _logits(self, x, augmentation=None) -> Tensor:
        """Run the network on a batch as it was given to `fit`."""
        x = self._prepare(x, augmentation)
        if self._channels_last and isinstance(x, Tensor) and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        try:
            return self.infer(x)
        except RuntimeError as error:
            fitted = getattr(self, "_input_shape", ())
            if not isinstance(x, Tensor) or tuple(x.shape[1:]) == fitted:
                raise
            raise ValueError(
                f"the module {type(self.module_).__name__} cannot take samples of "
                f"shape {tuple(x.shape[1:])}; it was fitted on {fitted}. Resize them."
            ) from error

    def _compiled_network(self) -> Any:
        """Return the network's compiled form, which is kept beside it.

        So the state and the pickle of `module_` stay those of the module. Prediction
        runs it as it is: its last batch is of any size, and each size would be
        compiled anew.
        """
        if not self.module_.training:
            return self.module_
        if self._compiled is None or self._compiled[0] is not self.module_:
            # A graph for each shape: there are two, that of the last batch being one.
            kwargs = {"dynamic": False} | self.get_params_for("compile")
            self._compiled = (self.module_, torch.compile(self.module_, **kwargs))
            self._compiled_for = frozenset()
        return self._compiled[1]

    def _guarding_hooks(self):
        """Have a graph that was made without a hook not run where there is one.

        By default, hooks are looked at when a network is compiled, and never again.
        """
        if not (self.compile and self.module_.training):
            return nullcontext()
        return torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)

    @contextmanager
    def _compile_timer(self, x) -> Iterator[None]:
        """Add the time of the first step with each shape to `compile_time_`."""
        shape = getattr(x, "shape", None)
        start = time.perf_counter()
        yield
        if shape not in self._compiled_for:
            self.compile_time_ += time.perf_counter() - start
            self._compiled_for |= {shape}

    def _autocast(self):
        bfloat16 = self.precision == "bfloat16" or (
            self.precision == "auto" and _has_bfloat16(self.device_)
        )
        if not bfloat16:
            return nullcontext()
        return torch.autocast(self.device_.type, dtype=torch.bfloat16)

    def _choose_memory_format(self) -> None:
        """Store images channel by channel, or pixel by pixel where that is faster."""
        self._channels_last = len(self._input_shape) == 3 and (
            self.channels_last is True
            or (self.channels_last == "auto" and self._can_be_channels_last())
        )
        if self._channels_last:
            self.module_.to(memory_format=torch.channels_last)

    def _can_be_channels_last(self) -> bool:
        """Whether the network convolves, and takes images stored pixel by pixel.

        Some do not: `view` needs the other format.
        """
        if (
            self.device_.type not in ("cpu", "cuda")
            or isinstance(self.optimizer_, torch.optim.LBFGS)  # flattens gradients
            or not any(isinstance(m, nn.Conv2d) for m in self.module_.modules())
            or any(map(is_lazy, self.module_.parameters()))
        ):
            return False
        if self.module is None:
            return True
        x = torch.zeros(
            4, *self._input_shape, dtype=self._float_dtype, device=self.device_
        ).contiguous(memory_format=torch.channels_last)
        devices = [x.device.index] if x.is_cuda else []
        # On a copy, with generators put back: no trace is left. Whatever fails, such as
        # the copying itself, trains as images are by default.
        try:
            with torch.no_grad(), torch.random.fork_rng(devices):
                trial = copy.deepcopy(self.module_).train()
                trial.to(memory_format=torch.channels_last)(x)
        except Exception:
            return False
        return True


@cache
def _has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16; asking it takes a while."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(
        including_emulation=False
    )
