"""What stores of beliefs have in common, however they hold their rows."""

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
    """Enter a loss and its gradient, computed before, into the autograd graph."""

    @staticmethod
    def forward(ctx, logits, loss, gradient):
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        # Nearly always one; on the CPU it costs nothing to look.
        if not (grad_output.is_cpu and grad_output.item() == 1):
            gradient = gradient * grad_output.to(gradient.dtype)
        return gradient, None, None


# Made once, not in every step: a rule checks itself.
@lru_cache(maxsize=16)
def _paper_rule(discount: float) -> UpdateRule:
    return UpdateRule(discount=discount)


@lru_cache(maxsize=16)
def _undiscounted(rule: UpdateRule | None) -> UpdateRule:
    return UpdateRule() if rule is None else replace(rule, discount=1.0)


class Beliefs:
    """A belief about the class of each training sample.

    A subclass holds the rows, in the tensors that `_ROWS` names, and knows the modules
    that take in predictions: its `_KERNELS` do so on a GPU.

    Parameters
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample, in [0, n_classes).
    n_classes : int
        Number of classes K, at least 2.
    prior_strength, discount, prior_floor : float
        c, gamma and eps.
    device : torch.device or str or None
        Where the rows live.
    folder : path-like or None
        Where the rows lie in a file, if anywhere.
    """

    # Names of the tensors that hold the rows: attributes with an underscore before,
    # and entries of the state.
    _ROWS: tuple[str, ...] = ()
    _KERNELS: ModuleType

    # The rule that was applied last, and its numbers on the device.
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
        """Return what a subclass adds to the text above."""
        return ""

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self.labels.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the store."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes that the store takes, with labels and numbers of visits."""
        return sum(getattr(self, name).nbytes for name in self._per_sample())

    @property
    def _is_dense(self) -> bool:
        """Whether memory holds a number per sample and class."""
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
        """Take in the predictions of a batch and return the loss to its new targets.

        The rows `index` are updated with softmax(logits), detached; the loss is the
        mean cross-entropy of the updated means with the logits, and its gradient in
        the logits is (p - q) * weight / n.

        Parameters
        ----------
        logits : Tensor of shape (n, n_classes)
            Output of the network, of any floating type.
        index : Tensor of shape (n,)
            Row of each sample of the batch. Without repetition: two updates of one
            row in one step would lose one of them.
        weight : Tensor of shape (n,), optional
            Weight of each sample in the loss, finite and not negative.
        rule : UpdateRule, optional
            How predictions change beliefs, and these the targets, with the discount of
            this posterior. By default the paper's, ``UpdateRule(discount=discount)``.
        assume_unique : bool, default=False
            Skip the check for rows that repeat or are not there, where `index` is a
            Tensor that the caller drew from a permutation. The check waits for the
            device.

        Returns
        -------
        Tensor of shape ()
            The loss, which autograd knows the gradient of.

        Raises
        ------
        ValueError
            If `logits` has not one row per index and one column per class, a row is
            repeated or not there, `weight` is not of the shape of `index`, or the
            rule's discount is not that of a posterior whose prior is finite.

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
        """Take in the predictions of a batch; return the loss and its gradient.

        :meth:`step` without autograd, for a loop that calls
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
            How predictions change beliefs, and these the targets; by default as in the
            paper.
        assume_unique : bool, default=False
            Skip the check for rows that repeat or are not there.

        Returns
        -------
        loss : Tensor of shape ()
            Mean cross-entropy of the new targets with the logits.
        gradient : Tensor of shape (n, n_classes)
            Of the loss in the logits, (p - q) * weight / n, in their type.

        Raises
        ------
        ValueError
            For what :meth:`step` raises it for.
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
        """Do what `update` does, with arguments that were checked.

        Parameters
        ----------
        logits, index, weight : Tensor
        rule : UpdateRule
            What is applied.
        with_rule : bool
            Whether it was given, and is not the paper's.
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
        """Return what a backend's step is called with."""
        raise NotImplementedError

    def _backend(self, logits: Tensor) -> ModuleType:
        """Return the fastest form of the step for these logits."""
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
        """Move the rows of the batch to where the logits are, and back."""
        index = index.to(self.device)
        part = self._part(index, logits.device)
        rows = torch.arange(len(index), device=logits.device)
        result = part._take_in(logits, rows, weight, rule, with_rule=with_rule)
        self._write(index, part)
        return result

    def _part(self: Self, index: Tensor, device: torch.device) -> Self:
        """Return some rows as a store of their own."""
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
            Which samples, in the order wanted.

        Returns
        -------
        DirichletPosterior or CompactPosterior
            Of n samples, on the same device, in memory.
        """
        part = self._part(rows.to(self.device), self.device)
        part.agreement = replace(self.agreement)
        return part

    def put(self: Self, rows: Tensor, part: Self) -> None:
        """Copy another store's rows into some of these, as :meth:`part` took them.

        Parameters
        ----------
        rows : Tensor of int of shape (n,)
            Which samples the other store is about, in its order.
        part : DirichletPosterior or CompactPosterior
            Of n samples, on any device.

        Raises
        ------
        ValueError
            If the number of samples or their labels differ.
        """
        rows = rows.to(self.device)
        if not torch.equal(self.labels[rows], part.labels.to(self.device)):
            raise ValueError(
                f"part has {len(part)} samples whose labels are not those of the "
                f"{len(rows)} rows given; it belongs to other data."
            )
        self._write(rows, part)
        self.agreement = replace(part.agreement)

    def _write(self: Self, index: Tensor, part: Self) -> None:
        """Write what another store has of some samples, but for their labels."""
        for name in self._per_sample():
            if name != "labels":
                own = getattr(self, name)
                own.index_copy_(0, index, getattr(part, name).to(own))

    def load_rule(self, rule: UpdateRule | None = None) -> None:
        """Copy the numbers of a rule to the device, for the steps that follow.

        Steps do so by themselves. Those that were captured in a CUDA graph cannot: they
        follow the rule that was loaded last.

        Parameters
        ----------
        rule : UpdateRule, optional
            By default the paper's. Steps are captured either with a rule or without.

        Raises
        ------
        ValueError
            If the rule's discount is not that of a posterior whose prior is finite.
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
            A copy. Infinite on the label where the prior is.
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
        """Return what the network is trained towards: the means, smoothed by a rule.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.
        rule : UpdateRule, optional
            Whose smoothing is applied; by default none is.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Each row sums to one. In float32 at least.
        """
        mean = self.mean(index)
        if rule is None:
            return mean
        if self._numbers is not None and self._rule(rule) == self._loaded:
            # From memory, where a CUDA graph finds the number of a later rule too.
            return smooth(mean, self._numbers[2])
        return smooth(mean, rule.smoothing)

    def evidence(self, index: Tensor | None = None) -> Tensor:
        """Return what the beliefs have taken in, without what is left of the prior.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The sum over T updates of gamma^(T-t) w_t softmax(s_t z_t), with the weight
            w_t, the sharpness s_t and the logits z_t of update t; zero where the prior
            is infinite. In float32 at least; small differences of a float16 store are
            rounded.
        """
        return self._evidence_of(self._here(index))

    def label_mass(self) -> Tensor:
        """Return the share of each target that still comes directly from the label.

        Returns
        -------
        Tensor of shape (n_samples,)
            After T updates gamma^T c / S_T; 1 where the prior is infinite. The rest
            of the target is the network's own past predictions (and the floor).
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
            Where the rows are to live. Those in a file stay there.

        Returns
        -------
        Beliefs
            Itself.
        """
        if self._folder is None:
            for name in self._per_sample():
                setattr(self, name, getattr(self, name).to(device))
            self._numbers = None
        return self

    def on_kernel(self, dtype: torch.dtype) -> bool:
        """Tell whether steps run as one kernel on a GPU.

        Parameters
        ----------
        dtype : torch.dtype
            Of the logits.

        Returns
        -------
        bool
            False on the CPU, and where the kernel cannot be compiled.
        """
        logits = torch.empty(0, self.n_classes, dtype=dtype, device=self.device)
        return self._backend(logits) is self._KERNELS

    # Rows

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory for rows, or a file's."""
        if self._folder is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return allocate(shape, dtype, self._folder)

    def _per_sample(self) -> tuple[str, ...]:
        """Return the attributes that hold something of each sample."""
        return (*(f"_{name}" for name in self._ROWS), "labels", "visits")

    def _rows_of_all(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"_{name}") for name in self._ROWS}

    def _alpha_of(self, index: Tensor | None) -> Tensor:
        """Return a copy of concentrations, those of an infinite prior finite."""
        raise NotImplementedError

    def _evidence_of(self, index: Tensor | None) -> Tensor:
        """Return what `evidence` does, for rows that are where the store is."""
        raise NotImplementedError

    def _totals(self) -> Tensor:
        """Return the sum of each row, in double precision on the CPU."""
        raise NotImplementedError

    def _here(self, index: Tensor | None) -> Tensor | None:
        """Return row numbers, or those where a mask is true, where the store is."""
        if index is None:
            return None
        index = torch.as_tensor(index, device=self.device)
        return index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()

    def _labels_of(self, index: Tensor | None) -> Tensor:
        return self.labels if index is None else self.labels[self._here(index)]

    # Rules

    def _rule(self, rule: UpdateRule | None) -> UpdateRule:
        """Return what is applied where `rule` is given, or raise."""
        if math.isinf(self.prior_strength):
            # It stays infinite under every discount; its finite stand-in would not.
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
        """Return the numbers of a rule on the device, always at the same place."""
        if self._numbers is None:
            self._numbers = _kernels.numbers_of(rule, self.device)
        elif rule != self._loaded:
            # Without waiting: such a small copy has left the host when it returns.
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
            For the same samples, in their order, and as many classes; on any device.

        Raises
        ------
        ValueError
            If entries are missing or unknown, or have another shape than this
            posterior's, or belong to samples with other labels. Nothing is copied
            then.
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
        """Return what the state tells besides, of which another must have the same."""
        return {}

    def _fitting(self, name: str, tensor: Tensor) -> Tensor:
        """Return rows of another store as this one can hold them."""
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
        # In NumPy and plain data, which any tool can read, on any machine. Rows in a
        # file are part of it, and not their folder, which is one of this machine.
        rows = {name: tensor.cpu() for name, tensor in self._rows_of_all().items()}
        brain = torch.bfloat16  # which NumPy has not
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
        # Copies, as the arrays may be those of a file that is mapped to memory.
        for name in self._ROWS:
            setattr(self, f"_{name}", torch.tensor(np.asarray(state[name])))
        self.labels = torch.tensor(np.asarray(state["labels"]))
        self.visits = torch.tensor(np.asarray(state["visits"]))
