"""SGD, Adam and AdamW for stacked networks, with a rate and decay for each network.

torch's optimizers use one learning rate for all parameters of a group. These perform
the same arithmetic on a matrix with a row per network, so that the learning rates are
a column.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

# Options that may differ between networks; `initial_lr` is a schedule's peak rate.
VARYING = ("lr", "initial_lr", "weight_decay")


class StackedGroup:
    """A group of parameters of several optimizers.

    Parameters
    ----------
    groups : sequence of dict
        Entry of `param_groups` of each network's optimizer. They may differ in learning
        rate and weight decay only.
    weights : Tensor of shape (n_members, n_weights)
        Changed in place.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], weights: Tensor):
        self._options = groups[0]
        self._weights = weights
        decay = np.array([float(group["weight_decay"]) for group in groups])
        self._decay = decay[:, np.newaxis]
        self._decays = bool(decay.any())
        self._columns: dict[str, Tensor] = {}
        self._state: dict[str, Tensor] = {}

    def load_rates(self, rates: np.ndarray, steps: np.ndarray) -> None:
        """Set the learning rates of the next steps.

        Parameters
        ----------
        rates : ndarray of shape (n_members, n_steps)
        steps : ndarray of int of shape (n_members, n_steps)
            Number of steps that each member has taken, including this one.
        """
        self._columns = {
            name: torch.as_tensor(
                np.array(np.broadcast_to(values, rates.shape).T, order="C"),
                dtype=self._weights.dtype,
                device=self._weights.device,
            ).unsqueeze(-1)
            for name, values in self._numbers(rates, steps).items()
        }

    def _numbers(self, rates: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Return the factors of each step and member, by name."""
        raise NotImplementedError

    def _column(self, name: str, step: int, members: slice) -> Tensor:
        return self._columns[name][step, members]

    @torch.no_grad()
    def step(self, members: slice, step: int, gradient: Tensor) -> None:
        """Update the weights of some members.

        Parameters
        ----------
        members : slice
        step : int
            Number of the step, counted from the first one whose rates were loaded.
        gradient : Tensor of shape (m, n_weights)
            May be overwritten.
        """
        if self._options["maximize"]:
            gradient = gradient.neg_()
        self._apply(members, step, gradient)

    def _apply(self, members: slice, step: int, gradient: Tensor) -> None:
        raise NotImplementedError

    def state(self, member: int, n_steps: int) -> dict[str, Tensor]:
        """Return a member's optimizer state by torch's names, as flat tensors."""
        return {name: values[member] for name, values in self._state.items()}


class _StackedSGD(StackedGroup):
    def __init__(self, groups: Sequence[dict[str, Any]], weights: Tensor):
        super().__init__(groups, weights)
        if self._options["momentum"] != 0:
            self._state = {"momentum_buffer": torch.zeros_like(weights)}

    def _numbers(self, rates, steps):
        # The first gradient enters the momentum buffer without dampening.
        share = np.where(steps == 1, 1.0, 1.0 - self._options["dampening"])
        return {"rate": rates, "decay": self._decay, "share": share}

    def _apply(self, members, step, gradient):
        weights, momentum = self._weights[members], self._options["momentum"]
        if self._decays:
            decay = self._column("decay", step, members)
            gradient = gradient.addcmul_(weights, decay)
        if momentum != 0:
            buffer = self._state["momentum_buffer"][members]
            share = self._column("share", step, members)
            buffer.mul_(momentum).addcmul_(gradient, share)
            if self._options["nesterov"]:
                gradient = gradient.add_(buffer, alpha=momentum)
            else:
                gradient = buffer
        rate = self._column("rate", step, members)
        weights.addcmul_(gradient, rate, value=-1)


class _StackedAdam(StackedGroup):
    def __init__(self, groups: Sequence[dict[str, Any]], weights: Tensor):
        super().__init__(groups, weights)
        names = ["exp_avg", "exp_avg_sq"]
        if self._options["amsgrad"]:
            names.append("max_exp_avg_sq")
        self._state = {name: torch.zeros_like(weights) for name in names}
        self._buffer = torch.empty_like(weights)

    @property
    def _is_decoupled(self) -> bool:
        """Whether the weight decay is decoupled from the gradient, as in AdamW."""
        return bool(self._options["decoupled_weight_decay"])

    def _numbers(self, rates, steps):
        beta1, beta2 = self._options["betas"]
        decoupled = 1 - rates * self._decay
        return {
            "decay": decoupled if self._is_decoupled else self._decay,
            "size": rates / (1 - beta1**steps),
            "root": np.sqrt(1 - beta2**steps),
        }

    def _apply(self, members, step, gradient):
        weights = self._weights[members]
        beta1, beta2 = self._options["betas"]
        if self._decays:
            decay = self._column("decay", step, members)
            if self._is_decoupled:
                weights.mul_(decay)
            else:
                gradient = gradient.addcmul_(weights, decay)
        mean = self._state["exp_avg"][members]
        square = self._state["exp_avg_sq"][members]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if self._options["amsgrad"]:
            largest = self._state["max_exp_avg_sq"][members]
            square = torch.maximum(largest, square, out=largest)
        change = torch.sqrt(square, out=self._buffer[members])
        change.div_(self._column("root", step, members)).add_(self._options["eps"])
        torch.div(mean, change, out=change)
        weights.addcmul_(change, self._column("size", step, members), value=-1)

    def state(self, member, n_steps):
        options = self._options
        on_device = options["fused"] or options["capturable"]
        device = self._weights.device if on_device else torch.device("cpu")
        step = torch.tensor(float(n_steps), dtype=torch.float32, device=device)
        return {"step": step, **super().state(member, n_steps)}


_STACKED: dict[type[Optimizer], type[StackedGroup]] = {
    SGD: _StackedSGD,
    Adam: _StackedAdam,
    AdamW: _StackedAdam,
}


def can_stack(optimizer: Optimizer) -> bool:
    """Whether a stacked version of an optimizer exists for its options."""
    return type(optimizer) in _STACKED and not any(
        group["differentiable"] or isinstance(value, Tensor)
        for group in optimizer.param_groups
        for value in (group["lr"], group["weight_decay"], *group.get("betas", ()))
    )


def same_options(one: Optimizer, other: Optimizer) -> bool:
    """Whether two optimizers differ at most in options that may vary."""

    def options(optimizer: Optimizer) -> list[dict[str, Any]]:
        left_out = {*VARYING, "params"}
        return [
            {name: value for name, value in group.items() if name not in left_out}
            for group in optimizer.param_groups
        ]

    return type(one) is type(other) and options(one) == options(other)


def stacked_groups(
    optimizers: Sequence[Optimizer], weights: Sequence[Tensor]
) -> list[StackedGroup]:
    """Return the stacked versions of several optimizers' parameter groups.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        With the same options, and without state.
    weights : sequence of Tensor of shape (n_members, n_weights)
        The weights of each group.
    """
    kind = _STACKED[type(optimizers[0])]
    of_each = zip(*(optimizer.param_groups for optimizer in optimizers), strict=True)
    return [kind(groups, flat) for groups, flat in zip(of_each, weights, strict=True)]
