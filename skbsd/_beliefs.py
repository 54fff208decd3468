"""The base class of the stores of beliefs, which does not depend on their layout."""

import copy
import math
from dataclasses import astuple, replace
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import _kernels
from ._check_prior import checked_labels
from ._disk import allocate
from ._formulas import posterior_mean, smooth
from ._rows import check_rows
from ._rules import Agreement, UpdateRule

Self = TypeVar("Self", bound="Beliefs")


class _KnownGradient(torch.autograd.Function):
    """Insert a loss with a precomputed gradient into the autograd graph."""

    @staticmethod
    def forward(ctx, logits, loss, gradient):
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        # Nearly always one, and on the CPU the check costs nothing.
        if not (grad_output.is_cpu and grad_output.item() == 1):
            gradient = gradient * grad_output.to(gradient.dtype)
        return gradient, None, None


# Cached, as a rule validates itself whenever one is made.
@lru_cache(maxsize=16)
def _paper_rule(discount: float) -> UpdateRule:
    return UpdateRule(discount=discount)


@lru_cache(maxsize=16)
def _undiscounted(rule: UpdateRule | None) -> UpdateRule:
    return UpdateRule() if rule is None else replace(rule, discount=1.0)


class Beliefs:
    """The belief (Dirichlet posterior) of each training sample.

    A subclass holds the rows in the tensors named by `_ROWS`, and selects the module
    that performs updates; `_KERNELS` is the one for GPUs.

    Parameters
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample, in [0, n_classes).
    n_classes : int
        Number of classes K, at least 2.
    prior_strength, discount, prior_floor : float
        c, gamma and eps.
    device : torch.device or str or None
        Device of the rows.
    folder : path-like or None
        Folder of the file that holds the rows, if they are not in memory.
    """

    # Names of the tensors that hold the rows: as attributes they have a leading
    # underscore, as entries of the state they have none.
    _ROWS: tuple[str, ...] = ()
    _KERNELS: ModuleType

    # The rule that was applied last, and its values on the device.
    _loaded: UpdateRule | None = None
    _numbers: Tensor | None = None
    _folder: Any = None

    def __init__(
        self,
        labels: Tensor,
        n_classes: int,
        *,
        prior_strength: float,
        discount: float,
        prior_floor: float,
        device: torch.device | str | None,
        folder: Any,
    ):
        labels = checked_labels(labels, n_classes, "cpu" if folder else device)
        self.prior_strength = float(prior_strength)
        self.discount = float(discount)
        self.prior_floor = float(prior_floor)
        self.labels = labels
        self.visits = torch.zeros(len(labels), dtype=torch.int32, device=labels.device)
        self.agreement = Agreement()
        self._folder = folder

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n_samples={len(self)}, n_classes={self.n_classes}, "
            f"{self._described()}prior_strength={self.prior_strength:g}, "
            f"discount={self.discount:g}, prior_floor={self.prior_floor:g}, "
            f"device={self.device})"
        )

    def _described(self) -> str:
        """Return a subclass's additions to the representation."""
        return ""

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self.labels.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the store."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Size of the store in bytes, including labels and visit counts."""
        return sum(getattr(self, name).nbytes for name in self._per_sample())

    @property
    def _is_dense(self) -> bool:
        """Whether memory holds one number per sample and class."""
        return False

    def step(
        self,
        logits: Tensor,
        index: Tensor,
        weight: Tensor | None = None,
        rule: UpdateRule | None = None,
        *,
        assume_unique: bool = False,
    ) -> Tensor:
        """Update the rows of a batch with its predictions, and return the loss.

        The rows `index` are updated with softmax(logits), detached. The loss is the
        mean cross-entropy of the updated means with the logits. Its gradient with
        respect to the logits is (p - q) * weight / n.

        Parameters
        ----------
        logits : Tensor of shape (n, n_classes)
            Output of the network, of any floating type.
        index : Tensor of shape (n,)
            Row of each sample of the batch. Rows must be unique: of two updates of one
            row in one step, one would be lost.
        weight : Tensor of shape (n,), optional
            Weight of each sample in the loss, finite and not negative.
        rule : UpdateRule, optional
            How predictions update beliefs and how beliefs become targets, with the
            discount of this posterior. The default is the paper's rule,
            ``UpdateRule(discount=discount)``.
        assume_unique : bool, default=False
            Skip the check for repeated or invalid rows, if `index` is a Tensor that the
            caller drew from a permutation. The check synchronises with the device.

        Returns
        -------
        Tensor of shape ()
            The loss, with its gradient in the autograd graph.

        Raises
        ------
        ValueError
            If `logits` does not have one row per index and one column per class, if a
            row is repeated or does not exist, if `weight` does not have the shape of
            `index`, or if the rule's discount differs from that of a posterior with a
            finite prior.

        Notes
        -----
        A row whose prediction is not finite keeps its belief, so that a diverging
        network does not take the posterior with it.
        """
        loss, gradient = self.update(
            logits, index, weight, rule, assume_unique=assume_unique
        )
        return _KnownGradient.apply(logits, loss, gradient)

    def update(
        self,
        logits: Tensor,
        index: Tensor,
        weight: Tensor | None = None,
        rule: UpdateRule | None = None,
        *,
        assume_unique: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Update the rows of a batch; return the loss and its gradient.

        This is :meth:`step` without autograd, for a loop that calls
        ``logits.backward(gradient)`` itself.

        Parameters
        ----------
        logits : Tensor of shape (n, n_classes)
            Output of the network, of any floating type.
        index : Tensor of shape (n,)
            Row of each sample of the batch, without repetition.
        weight : Tensor of shape (n,), optional
            Weight of each sample in the loss, finite and not negative.
        rule : UpdateRule, optional
            How predictions update beliefs and how beliefs become targets; by default as
            in the paper.
        assume_unique : bool, default=False
            Skip the check for repeated or invalid rows.

        Returns
        -------
        loss : Tensor of shape ()
            Mean cross-entropy of the new targets with the logits.
        gradient : Tensor of shape (n, n_classes)
            Gradient of the loss with respect to the logits, (p - q) * weight / n, in
            their type.

        Raises
        ------
        ValueError
            As in :meth:`step`.
        """
        if not assume_unique:
            index = torch.as_tensor(index, device=self.device).long()
            check_rows(index, len(self))
        if logits.shape != (index.shape[0], self.n_classes):
            raise ValueError(
                f"logits must have shape ({len(index)}, {self.n_classes}), one row per "
                f"index and one column per class, got {tuple(logits.shape)}."
            )
        if weight is not None:
            if weight.shape != index.shape:
                raise ValueError(
                    f"weight must have shape ({len(index)},), one per index, got "
                    f"{tuple(weight.shape)}."
                )
            weight = weight.detach()
        applied = self._rule(rule)
        if self._folder is not None and logits.device != self.device:
            return self._take_in_elsewhere(
                logits.detach(), index, weight, applied, with_rule=rule is not None
            )
        return self._take_in(
            logits.detach(), index, weight, applied, with_rule=rule is not None
        )

    def _take_in(
        self,
        logits: Tensor,
        index: Tensor,
        weight: Tensor | None,
        rule: UpdateRule,
        *,
        with_rule: bool,
    ) -> tuple[Tensor, Tensor]:
        """Perform `update` with validated arguments.

        Parameters
        ----------
        logits, index, weight : Tensor
        rule : UpdateRule
            The rule to apply.
        with_rule : bool
            Whether the caller passed it, so that it is not the paper's.
        """
        arguments = self._arguments(logits, index, weight, rule)
        backend = self._backend(logits)
        if backend is self._KERNELS:
            numbers = self._on_device(rule)
            return backend.posterior_step(*arguments, numbers, sharpen=with_rule)
        return backend.posterior_step(*arguments)

    def _arguments(
        self, logits: Tensor, index: Tensor, weight: Tensor | None, rule: UpdateRule
    ) -> tuple:
        """Return the arguments of a backend's step."""
        raise NotImplementedError

    def _backend(self, logits: Tensor) -> ModuleType:
        """Return the fastest implementation of the step for these logits."""
        raise NotImplementedError

    def _take_in_elsewhere(
        self,
        logits: Tensor,
        index: Tensor,
        weight: Tensor | None,
        rule: UpdateRule,
        *,
        with_rule: bool,
    ) -> tuple[Tensor, Tensor]:
        """Update copies of the rows on the device of the logits; copy them back."""
        index = index.to(self.device)
        part = self._part(index, logits.device)
        rows = torch.arange(len(index), device=logits.device)
        result = part._take_in(logits, rows, weight, rule, with_rule=with_rule)
        self._write(index, part)
        return result

    def _part(self: Self, index: Tensor, device: torch.device) -> Self:
        """Return a separate store of some rows."""
        part = object.__new__(type(self))
        vars(part).update(vars(self))
        part._folder = part._numbers = None
        for name in self._per_sample():
            setattr(part, name, getattr(self, name).index_select(0, index).to(device))
        return part

    def part(self: Self, rows: Tensor) -> Self:
        """Return a store of some of the samples, with copies of their rows.

        Parameters
        ----------
        rows : Tensor of int of shape (n,)
            The samples, in the desired order.

        Returns
        -------
        DirichletPosterior or CompactPosterior
            Of these n samples, on the same device, in memory.
        """
        part = self._part(rows.to(self.device), self.device)
        part.agreement = replace(self.agreement)
        return part

    def put(self: Self, rows: Tensor, part: Self) -> None:
        """Copy the rows of another store into this one; the inverse of :meth:`part`.

        Parameters
        ----------
        rows : Tensor of int of shape (n,)
            The samples of the other store, in its order.
        part : DirichletPosterior or CompactPosterior
            Of these n samples, on any device.

        Raises
        ------
        ValueError
            If the number of samples or their labels differ.
        """
        rows = rows.to(self.device)
        if not torch.equal(self.labels[rows], part.labels.to(self.device)):
            raise ValueError(
                f"part has {len(part)} samples whose labels differ from those of the "
                f"{len(rows)} given rows; it belongs to other data."
            )
        self._write(rows, part)
        self.agreement = replace(part.agreement)

    def _write(self: Self, index: Tensor, part: Self) -> None:
        """Write everything but the labels of another store into some rows."""
        for name in self._per_sample():
            if name != "labels":
                own = getattr(self, name)
                own.index_copy_(0, index, getattr(part, name).to(own))

    def load_rule(self, rule: UpdateRule | None = None) -> None:
        """Copy the values of a rule to the device, for the following steps.

        Ordinary steps do this themselves. Steps that were captured in a CUDA graph
        cannot; they use the rule that was loaded last.

        Parameters
        ----------
        rule : UpdateRule, optional
            By default the paper's. Steps are captured either with a rule or without.

        Raises
        ------
        ValueError
            If the rule's discount differs from that of a posterior with a finite prior.
        """
        applied = self._rule(rule)
        if self.device.type == "cuda":
            self._on_device(applied)

    def concentration(self, index: Tensor | None = None) -> Tensor:
        """Return the concentrations alpha.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.

        Returns
        -------
        Tensor of shape (n, n_classes)
            A copy. The label's entry is infinite if the prior is.
        """
        alpha = self._alpha_of(self._here(index))
        if math.isinf(self.prior_strength):
            labels = self._labels_of(index)
            alpha.scatter_(1, labels.unsqueeze(1), math.inf)
        return alpha

    def mean(self, index: Tensor | None = None) -> Tensor:
        """Return the posterior means q, the targets.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Each row sums to one. In float32 at least.
        """
        wide = torch.promote_types(self.dtype, torch.float32)
        return posterior_mean(self._alpha_of(self._here(index)).to(wide))

    def target(
        self, index: Tensor | None = None, rule: UpdateRule | None = None
    ) -> Tensor:
        """Return the training targets: the means, smoothed by a rule.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.
        rule : UpdateRule, optional
            The rule whose smoothing is applied; by default there is no smoothing.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Each row sums to one. In float32 at least.
        """
        mean = self.mean(index)
        if rule is None:
            return mean
        if self._numbers is not None and self._rule(rule) == self._loaded:
            # Read from device memory, so that a CUDA graph sees later rules too.
            return smooth(mean, self._numbers[2])
        return smooth(mean, rule.smoothing)

    def evidence(self, index: Tensor | None = None) -> Tensor:
        """Return the evidence that updates have added, without the prior.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The sum over T updates of gamma^(T-t) w_t softmax(s_t z_t), with the weight
            w_t, the sharpness s_t and the logits z_t of update t; zero if the prior is
            infinite. In float32 or wider; a float16 store rounds small differences.
        """
        return self._evidence_of(self._here(index))

    def label_mass(self) -> Tensor:
        """Return the share of each target that still comes directly from the label.

        Returns
        -------
        Tensor of shape (n_samples,)
            After T updates it is gamma^T c / S_T, and 1 if the prior is infinite. The
            rest of a target comes from the network's past predictions and the floor.
        """
        if math.isinf(self.prior_strength):
            return torch.ones_like(self.labels, dtype=self.dtype)
        # In double precision, which not every device has.
        left = self.prior_strength * self.discount ** self.visits.cpu().double()
        return (left / self._totals()).to(self.device, self.dtype)

    def to(self: Self, device: torch.device | str) -> Self:
        """Move the rows to a device, in place.

        Parameters
        ----------
        device : torch.device or str
            The new device. Rows in a file stay there.

        Returns
        -------
        Beliefs
            The same object.
        """
        if self._folder is None:
            for name in self._per_sample():
                setattr(self, name, getattr(self, name).to(device))
            self._numbers = None
        return self

    def on_kernel(self, dtype: torch.dtype) -> bool:
        """Return whether a step runs as one fused kernel on a GPU.

        Parameters
        ----------
        dtype : torch.dtype
            Type of the logits.

        Returns
        -------
        bool
            False on the CPU, and if the kernel cannot be compiled.
        """
        logits = torch.empty(0, self.n_classes, dtype=dtype, device=self.device)
        return self._backend(logits) is self._KERNELS

    # Rows

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate memory for rows, or map a file."""
        if self._folder is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return allocate(shape, dtype, self._folder)

    def _per_sample(self) -> tuple[str, ...]:
        """Return the names of the attributes with one entry per sample."""
        return (*(f"_{name}" for name in self._ROWS), "labels", "visits")

    def _rows_of_all(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"_{name}") for name in self._ROWS}

    def _alpha_of(self, index: Tensor | None) -> Tensor:
        """Return a copy of the concentrations, with finite values for infinity."""
        raise NotImplementedError

    def _evidence_of(self, index: Tensor | None) -> Tensor:
        """Return the evidence of rows given on the device of the store."""
        raise NotImplementedError

    def _totals(self) -> Tensor:
        """Return the sum of each row, in double precision on the CPU."""
        raise NotImplementedError

    def _here(self, index: Tensor | None) -> Tensor | None:
        """Return row numbers, also those of a mask, on the device of the store."""
        if index is None:
            return None
        index = torch.as_tensor(index, device=self.device)
        return index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()

    def _labels_of(self, index: Tensor | None) -> Tensor:
        return self.labels if index is None else self.labels[self._here(index)]

    # Rules

    def _rule(self, rule: UpdateRule | None) -> UpdateRule:
        """Return the rule to apply if `rule` is given, or raise."""
        if math.isinf(self.prior_strength):
            # The stored number for infinity is finite, and must not be discounted.
            return _undiscounted(rule)
        if rule is None:
            return _paper_rule(self.discount)
        if rule.discount != self.discount:
            raise ValueError(
                f"the rule's discount must be that of the posterior, {self.discount}, "
                f"got {rule.discount}: label_mass() and evidence() count on one "
                "discount for all updates."
            )
        return rule

    def _on_device(self, rule: UpdateRule) -> Tensor:
        """Return the values of a rule on the device, always in the same memory."""
        if self._numbers is None:
            self._numbers = _kernels.numbers_of(rule, self.device)
        elif rule != self._loaded:
            # Without synchronising: a copy this small is staged when the call returns.
            numbers = _kernels.numbers_of(rule, torch.device("cpu"))
            self._numbers.copy_(numbers, non_blocking=True)
        self._loaded = rule
        return self._numbers

    # State

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that restore this posterior, parameters included.

        Returns
        -------
        dict of str to Tensor
            References to the live rows, as in `torch.nn.Module.state_dict`.
        """
        parameters = (self.prior_strength, self.discount, self.prior_floor)
        return {
            **self._rows_of_all(),
            **self._facts(),
            "labels": self.labels,
            "visits": self.visits,
            "parameters": torch.tensor(parameters, dtype=torch.float64),
            "agreement": torch.tensor(astuple(self.agreement), dtype=torch.float64),
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Copy rows and parameters from :meth:`state_dict` of another posterior.

        Parameters
        ----------
        state_dict : dict of str to Tensor
            For the same samples in the same order, and the same number of classes; on
            any device.

        Raises
        ------
        ValueError
            If entries are missing or unknown, if shapes differ from this posterior's,
            or if labels differ. Nothing is copied in that case.
        """
        own = self.state_dict()
        if state_dict.keys() != own.keys():
            raise ValueError(
                f"state_dict must have the entries {sorted(own)}, got "
                f"{sorted(state_dict)}."
            )
        for name, tensor in own.items():
            if state_dict[name].shape != tensor.shape:
                raise ValueError(
                    f"state_dict[{name!r}] must have shape {tuple(tensor.shape)}, got "
                    f"{tuple(state_dict[name].shape)}; it belongs to other data."
                )
        for name, fact in self._facts().items():
            if not torch.equal(state_dict[name].cpu(), fact):
                raise ValueError(
                    f"state_dict[{name!r}] must be {fact.item()}, got "
                    f"{state_dict[name].item()}; it belongs to other data."
                )
        differ = (state_dict["labels"].to(self.device) != self.labels).nonzero()
        if len(differ):
            row = int(differ[0])
            raise ValueError(
                f"state_dict belongs to other data: {len(differ)} of {len(self)} "
                f"labels differ, first that of row {row}, {self.labels[row].item()} "
                f"here and {state_dict['labels'][row].item()} there. Pass the samples "
                "in the order in which they were when the state was saved."
            )
        for name, tensor in self._rows_of_all().items():
            tensor.copy_(self._fitting(name, state_dict[name]))
        self.visits.copy_(state_dict["visits"])
        self.prior_strength, self.discount, self.prior_floor = state_dict[
            "parameters"
        ].tolist()
        last, mean, n_epochs = state_dict["agreement"].tolist()
        self.agreement = Agreement(last, mean, int(n_epochs))

    def _facts(self) -> dict[str, Tensor]:
        """Return further entries of the state, which must agree when it is loaded."""
        return {}

    def _fitting(self, name: str, tensor: Tensor) -> Tensor:
        """Convert rows of another store to a form that this one can hold."""
        return tensor

    def __deepcopy__(self: Self, memo: dict) -> Self:
        other = object.__new__(type(self))
        memo[id(self)] = other
        vars(other).update(vars(self))
        other._numbers = other._loaded = None
        other.agreement = copy.copy(self.agreement)
        other.labels, other.visits = self.labels.clone(), self.visits.clone()
        for name, tensor in self._rows_of_all().items():
            rows = other._allocate(tuple(tensor.shape), tensor.dtype)
            setattr(other, f"_{name}", rows.copy_(tensor))
        return other

    def __getstate__(self):
        # NumPy arrays and plain data, which any tool can read on any machine. The state
        # includes rows from a file, but not the folder, which is specific to a machine.
        rows = {name: tensor.cpu() for name, tensor in self._rows_of_all().items()}
        brain = torch.bfloat16  # which NumPy does not have
        return {
            "prior_strength": self.prior_strength,
            "discount": self.discount,
            "prior_floor": self.prior_floor,
            "agreement": astuple(self.agreement),
            "dtype": str(self.dtype).removeprefix("torch."),
            **{
                name: (t.view(torch.int16) if t.dtype == brain else t).numpy()
                for name, t in rows.items()
            },
            "labels": self.labels.cpu().numpy(),
            "visits": self.visits.cpu().numpy(),
        }

    def __setstate__(self, state):
        self.prior_strength = state["prior_strength"]
        self.discount = state["discount"]
        self.prior_floor = state["prior_floor"]
        self.agreement = Agreement(*state["agreement"])
        # Copies, as the arrays may belong to a memory-mapped file.
        for name in self._ROWS:
            setattr(self, f"_{name}", torch.tensor(np.asarray(state[name])))
        self.labels = torch.tensor(np.asarray(state["labels"]))
        self.visits = torch.tensor(np.asarray(state["visits"]))
