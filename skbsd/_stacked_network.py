"""Networks of one architecture, stacked along a leading dimension."""

from collections.abc import Iterable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ._forward import logits_in

# Tolerance for the difference between logits of a stack and of a single network.
_TOLERANCE = 1e-4


class StackedNetwork:
    """Several networks that :func:`torch.func.vmap` runs together.

    For each parameter group of the optimizer, the trainable weights form a matrix with
    one row per network.

    Parameters
    ----------
    modules : sequence of nn.Module
        Networks of one architecture. Only the first one's code is run. `leave` copies
        the weights back to them.
    groups : sequence of list of str
        Names of the trainable parameters, by parameter group.

    Attributes
    ----------
    weights : list of Tensor of shape (n_members, n_weights)
        The weights of each group.
    """

    def __init__(self, modules: Sequence[nn.Module], groups: Sequence[Sequence[str]]):
        self.module = modules[0]
        self._modules = modules
        self._groups = groups
        tensors = [_tensors(module) for module in modules]
        trained = {name for names in groups for name in names}
        self._shapes = {name: tensors[0][name].shape for name in trained}
        self.weights = [
            torch.stack([_flat(own[name] for name in names) for own in tensors])
            for names in groups
        ]
        self._rest = {
            name: torch.stack([own[name] for own in tensors])
            for name in tensors[0]
            if name not in trained
        }
        self._parts: dict[tuple[int, int], StackedPart] = {}

    def part(self, members: slice) -> "StackedPart":
        """Return adjacent members as views of the stack's memory."""
        key = members.start, members.stop
        if key not in self._parts:
            leaves = {
                name: view[members].detach().requires_grad_()
                for name, view in self._views(self.weights).items()
            }
            rest = {name: values[members] for name, values in self._rest.items()}
            names = [list(group) for group in self._groups]
            self._parts[key] = StackedPart(self.module, leaves, rest, names)
        return self._parts[key]

    def _views(self, flat: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return views of matrices like `weights` as parameters, by name."""
        views = {}
        for names, matrix in zip(self._groups, flat, strict=True):
            sizes = [prod(self._shapes[name]) for name in names]
            for name, columns in zip(names, matrix.split(sizes, dim=1), strict=True):
                views[name] = columns.view(len(matrix), *self._shapes[name])
        return views

    def unflattened(self, group: int, flat: Tensor) -> list[Tensor]:
        """Return the parameters of a group as views of one of its rows, in order."""
        names = self._groups[group]
        sizes = [prod(self._shapes[name]) for name in names]
        parts = flat.split(sizes)
        return [
            part.view(self._shapes[name])
            for part, name in zip(parts, names, strict=True)
        ]

    @torch.no_grad()
    def leave(self) -> None:
        """Copy weights and statistics back to the networks."""
        stacked = {**self._views(self.weights), **self._rest}
        for i, module in enumerate(self._modules):
            for name, own in _tensors(module).items():
                own.copy_(stacked[name][i])

    @torch.no_grad()
    def are_finite(self) -> list[bool]:
        """Return whether the weights of each member are finite."""
        sums = torch.stack([matrix.sum(dim=1) for matrix in self.weights]).sum(dim=0)
        return sums.isfinite().tolist()

    def obstacle(self, x: Tensor) -> str | None:
        """Run the stack on a few samples; return the reason if it fails, or None.

        Weights, statistics and torch's generators stay unchanged.

        Parameters
        ----------
        x : Tensor of shape (n_members, n, ...)
            Prepared inputs.
        """
        trial = StackedNetwork.part(self, slice(0, len(x)))
        trial = StackedPart(
            self.module,
            trial.leaves,
            {name: values.clone() for name, values in trial.rest.items()},
            trial.groups,
        )
        first = {
            name: values[0].clone()
            for name, values in {**trial.leaves, **trial.rest}.items()
        }
        devices = [x.device.index] if x.is_cuda else []
        # Networks that fail here, such as with control flow that depends on values, are
        # trained one by one, which raises the error if the network itself is faulty.
        try:
            with torch.random.fork_rng(devices):
                alone = functional_call(self.module, first, (x[0].clone(),))
                expected, logits = logits_in(alone), trial.logits(x.clone())
                logits.sum().backward()
                trial.gradients()
        except Exception as error:
            reason = str(error).partition("\n")[0]
            return f"vmap cannot run the network ({reason})"
        expected, found = expected.detach(), logits[0].detach()
        if not expected.isfinite().all():
            return "the network returns logits that are not finite"
        tolerance = _TOLERANCE * (1 + float(expected.abs().max()))
        if not torch.allclose(found, expected, rtol=0, atol=tolerance):
            return "the network returns other logits under vmap"
        return None


class StackedPart:
    """Members of a stack that take a step together.

    Parameters
    ----------
    module : nn.Module
        Its code is run.
    leaves : dict of str to Tensor of shape (n_members, ...)
        Trainable parameters.
    rest : dict of str to Tensor of shape (n_members, ...)
        Other parameters, and buffers, which the network may change in place.
    groups : sequence of list of str
        Names of the leaves, by parameter group.
    """

    def __init__(
        self,
        module: nn.Module,
        leaves: dict[str, Tensor],
        rest: dict[str, Tensor],
        groups: Sequence[Sequence[str]],
    ):
        self.leaves, self.rest, self.groups = leaves, rest, groups
        self._run = vmap(partial(_logits, module), randomness="error")

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of each member's own batch, and clear the gradients.

        Parameters
        ----------
        x : Tensor of shape (n_members, n, ...)

        Returns
        -------
        Tensor of shape (n_members, n, n_classes)
        """
        for leaf in self.leaves.values():
            leaf.grad = None
        return self._run(self.leaves, self.rest, x)

    def gradients(self) -> list[Tensor]:
        """Return the gradients of each group as a matrix like its weights."""
        found = []
        for names in self.groups:
            grads = [self._gradient(name) for name in names]
            found.append(torch.cat([grad.flatten(1) for grad in grads], dim=1))
        return found

    def _gradient(self, name: str) -> Tensor:
        gradient = self.leaves[name].grad
        if gradient is None:
            # torch's optimizers skip parameters without a gradient.
            raise ValueError(f"the logits do not depend on {name}")
        return gradient


def _logits(module: nn.Module, leaves: Any, rest: Any, x: Tensor) -> Tensor:
    return logits_in(functional_call(module, (leaves, rest), (x,)))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the detached parameters and buffers by name."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}
