"""The Dirichlet posterior of every training sample, and its mathematics.

Pure functions state the method (prior, update, mean, loss and its gradient);
:class:`DirichletPosterior` holds one row per training sample and applies them to
the rows of a batch, in the form that is fastest where the rows are.

In the paper's symbols, `prior_strength` is c, `prior_floor` is eps and `discount` is
gamma; alpha is a row of concentrations and q its mean, the training target.
"""

import copy
import math
from dataclasses import astuple, replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _cpu, _formulas, _kernels
from ._formulas import (
    posterior_mean,
    prior_concentration,
    sharpen,
    smooth,
    soft_cross_entropy,
    soft_cross_entropy_gradient,
    update_concentration,
)
from ._rows import check_rows
from ._rules import Agreement, UpdateRule

__all__ = [
    "Agreement",
    "DirichletPosterior",
    "UpdateRule",
    "posterior_mean",
    "prior_concentration",
    "sharpen",
    "smooth",
    "soft_cross_entropy",
    "soft_cross_entropy_gradient",
    "update_concentration",
]


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


class DirichletPosterior:
    r"""Dirichlet beliefs about the classes of N training samples.

    Row i starts as a prior centred on the label of sample i, takes in the network's
    own prediction at each update, and offers its mean as the target to train towards:

    .. math::

        \alpha_t = \gamma \, \alpha_{t-1} + p_t, \qquad
        q_t = \alpha_t / \textstyle\sum_k \alpha_t[k].

    An :class:`UpdateRule` weighs and sharpens what is added, the evidence.

    Parameters
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample, in [0, n_classes).
    n_classes : int
        Number of classes K, at least 2.
    prior_strength : float, default=100.0
        Prior concentration c of the label, in (0, inf]. Infinity keeps the target at
        the label: cross-entropy.
    discount : float, default=1.0
        What an update leaves of the belief before it: gamma, in (0, 1]. It has no
        effect when `prior_strength` is infinite.
    prior_floor : float, default=1e-3
        Prior concentration eps of each other class, in (0, c). For many classes choose
        less: the default adds up to 20 over 20,000 classes, beside which a label of
        c = 60 has only three quarters of the target before any prediction.
    dtype : torch.dtype, default=torch.float32
        Floating type of the store. Arithmetic is in float32 at least; what is stored in
        16 bits is rounded up or down in turn, so that errors do not add up.
    device : torch.device or str, optional
        Where the rows live; by default where `labels` are.

    Attributes
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample.
    visits : Tensor of shape (n_samples,)
        How often each row has been updated.
    agreement : Agreement
        How often predictions agreed with the labels, kept by whoever trains.

    Raises
    ------
    ValueError
        For a parameter out of its range, or labels outside [0, n_classes).

    Notes
    -----
    With :math:`S_t = \sum_k \alpha_t[k]`, the target is a moving average whose weight
    on the newest prediction is :math:`1/S_t`, and what is left of the label itself
    after T updates is :math:`\gamma^T c / S_T` [1]_, see :meth:`label_mass`.

    References
    ----------
    .. [1] A. Adelöw, M. Gamba, A. Maki, "Bayesian Self-Distillation for Image
       Classification", arXiv:2512.24162.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import DirichletPosterior
    >>> posterior = DirichletPosterior(torch.tensor([0, 1]), 2, prior_strength=3.0,
    ...                                prior_floor=1.0)
    >>> logits = torch.zeros(2, 2, requires_grad=True)
    >>> loss = posterior.step(logits, torch.tensor([0, 1]))
    >>> posterior.concentration()
    tensor([[3.5000, 1.5000],
            [1.5000, 3.5000]])
    >>> posterior.mean()
    tensor([[0.7000, 0.3000],
            [0.3000, 0.7000]])
    """

    # The rule that was applied last, and its numbers on the device.
    _loaded: UpdateRule | None = None
    _numbers: Tensor | None = None

    def __init__(
        self,
        labels: Tensor,
        n_classes: int,
        *,
        prior_strength: float = 100.0,
        discount: float = 1.0,
        prior_floor: float = 1e-3,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        labels = _checked_labels(labels, n_classes, device)
        _check_prior(prior_strength, discount, prior_floor, dtype)
        self.prior_strength = float(prior_strength)
        self.discount = float(discount)
        self.prior_floor = float(prior_floor)
        self.labels = labels
        self.visits = torch.zeros(len(labels), dtype=torch.int32, device=labels.device)
        self.agreement = Agreement()
        self._alpha = prior_concentration(
            labels,
            n_classes,
            prior_strength=prior_strength,
            prior_floor=prior_floor,
            dtype=dtype,
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._alpha)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n_samples={len(self)}, n_classes={self.n_classes}, "
            f"prior_strength={self.prior_strength:g}, discount={self.discount:g}, "
            f"prior_floor={self.prior_floor:g}, device={self.device})"
        )

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self._alpha.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self._alpha.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the store."""
        return self._alpha.dtype

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
        if logits.shape != (index.shape[0], self._alpha.shape[1]):
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
        arguments = logits.detach(), self._alpha, self.visits, index, weight
        applied = self._rule(rule)
        backend = self._backend(logits)
        if backend is _kernels:
            numbers = self._on_device(applied)
            return _kernels.posterior_step(
                *arguments, applied, numbers, sharpen=rule is not None
            )
        return backend.posterior_step(*arguments, applied)

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
        alpha = self._rows(index)
        if math.isinf(self.prior_strength):
            labels = self.labels if index is None else self.labels[index]
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
        return posterior_mean(self._rows(index).to(wide))

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

    def evidence(self) -> Tensor:
        """Return what the beliefs have taken in, without what is left of the prior.

        Returns
        -------
        Tensor of shape (n_samples, n_classes)
            The sum over T updates of gamma^(T-t) w_t softmax(s_t z_t), with the weight
            w_t, the sharpness s_t and the logits z_t of update t; zero where the prior
            is infinite. In float32 at least; small differences of a float16 store are
            rounded.
        """
        if math.isinf(self.prior_strength):
            return torch.zeros_like(self._alpha)
        wide = torch.promote_types(self.dtype, torch.float32)
        left = self.discount ** self.visits.to(wide).unsqueeze(1)
        prior = prior_concentration(
            self.labels,
            self.n_classes,
            prior_strength=self.prior_strength,
            prior_floor=self.prior_floor,
            dtype=self.dtype,  # rounded as the store is
        )
        return (self._alpha.to(wide) - left * prior.to(wide)).clamp(min=0)

    def label_mass(self) -> Tensor:
        """Return the share of each target that still comes directly from the label.

        Returns
        -------
        Tensor of shape (n_samples,)
            After T updates gamma^T c / S_T; 1 where the prior is infinite. The rest
            of the target is the network's own past predictions (and the floor).
        """
        if math.isinf(self.prior_strength):
            return torch.ones_like(self._alpha[:, 0])
        # In double precision, which not every device has.
        left = self.prior_strength * self.discount ** self.visits.cpu().double()
        return (left / self._alpha.cpu().double().sum(dim=-1)).to(self._alpha)

    def to(self, device: torch.device | str) -> "DirichletPosterior":
        """Move the rows to a device, in place.

        Parameters
        ----------
        device : torch.device or str
            Where the rows are to live.

        Returns
        -------
        DirichletPosterior
            Itself.
        """
        self.labels = self.labels.to(device)
        self.visits = self.visits.to(device)
        self._alpha = self._alpha.to(device)
        self._numbers = None
        return self

    def part(self, rows: Tensor) -> "DirichletPosterior":
        """Return a posterior of some of the samples, with copies of their rows.

        Parameters
        ----------
        rows : Tensor of int of shape (n,)
            Which samples, in the order wanted.

        Returns
        -------
        DirichletPosterior
            Of n samples, on the same device.
        """
        part = copy.copy(self)
        rows = rows.to(self.device)
        for name in ("labels", "visits", "_alpha"):
            setattr(part, name, getattr(self, name)[rows])
        part.agreement = replace(self.agreement)
        part._numbers = None
        return part

    def put(self, rows: Tensor, part: "DirichletPosterior") -> None:
        """Copy another posterior's rows into some of these, as :meth:`part` took them.

        Parameters
        ----------
        rows : Tensor of int of shape (n,)
            Which samples the other posterior is about, in its order.
        part : DirichletPosterior
            Of n samples, on any device.

        Raises
        ------
        ValueError
            If the number of samples or their labels differ.
        """
        rows = rows.to(self.device)
        labels = part.labels.to(self.device)
        if not torch.equal(self.labels[rows], labels):
            raise ValueError(
                f"part has {len(part)} samples whose labels are not those of the "
                f"{len(rows)} rows given; it belongs to other data."
            )
        self._alpha[rows] = part._alpha.to(self._alpha)
        self.visits[rows] = part.visits.to(self.device)
        self.agreement = replace(part.agreement)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that restore this posterior, parameters included.

        Returns
        -------
        dict of str to Tensor
            References to the live rows, as in `torch.nn.Module.state_dict`.
        """
        parameters = (self.prior_strength, self.discount, self.prior_floor)
        return {
            "alpha": self._alpha,
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
        differ = (state_dict["labels"].to(self.device) != self.labels).nonzero()
        if len(differ):
            row = int(differ[0])
            raise ValueError(
                f"state_dict belongs to other data: {len(differ)} of {len(self)} "
                f"labels differ, first that of row {row}, {self.labels[row].item()} "
                f"here and {state_dict['labels'][row].item()} there. Pass the samples "
                "in the order in which they were when the state was saved."
            )
        # An infinite prior's stand-in may be that of a wider type.
        largest = torch.finfo(self.dtype).max / 4
        self._alpha.copy_(state_dict["alpha"].clamp(max=largest))
        self.visits.copy_(state_dict["visits"])
        self.prior_strength, self.discount, self.prior_floor = state_dict[
            "parameters"
        ].tolist()
        last, mean, n_epochs = state_dict["agreement"].tolist()
        self.agreement = Agreement(last, mean, int(n_epochs))

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
        return self._backend(logits) is _kernels

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

    def _backend(self, logits: Tensor) -> ModuleType:
        """Return the fastest form of the step for these logits."""
        if logits.is_cpu and not _kernels.interpreted and _cpu.usable(self._alpha):
            return _cpu
        return _kernels if _kernels.usable(logits, self._alpha) else _formulas

    def _rows(self, index: Tensor | None) -> Tensor:
        return self._alpha.clone() if index is None else self._alpha[index]

    def __getstate__(self):
        # In NumPy and plain data, which any tool can read, on any machine.
        brain = self.dtype == torch.bfloat16  # which NumPy has not
        alpha = self._alpha.view(torch.int16) if brain else self._alpha
        return {
            "prior_strength": self.prior_strength,
            "discount": self.discount,
            "prior_floor": self.prior_floor,
            "agreement": astuple(self.agreement),
            "dtype": str(self.dtype).removeprefix("torch."),
            "alpha": alpha.cpu().numpy(),
            "labels": self.labels.cpu().numpy(),
            "visits": self.visits.cpu().numpy(),
        }

    def __setstate__(self, state):
        self.prior_strength = state["prior_strength"]
        self.discount = state["discount"]
        self.prior_floor = state["prior_floor"]
        self.agreement = Agreement(*state["agreement"])
        # Copies, as the arrays may be those of a file that is mapped to memory.
        self._alpha = torch.tensor(np.asarray(state["alpha"]))
        if state["dtype"] == "bfloat16":
            self._alpha = self._alpha.view(torch.bfloat16)
        self.labels = torch.tensor(np.asarray(state["labels"]))
        self.visits = torch.tensor(np.asarray(state["visits"]))


def _checked_labels(labels: Any, n_classes: int, device: Any) -> Tensor:
    """Return a copy of the labels on the device, or raise for what are none."""
    labels = torch.as_tensor(labels)
    if labels.is_floating_point():
        raise ValueError(
            f"labels must be integers, got {labels.dtype}; encode them as indices "
            "of the classes."
        )
    labels = labels.to(device or labels.device, torch.int64, copy=True)
    if labels.ndim != 1:
        raise ValueError(
            f"labels must be one-dimensional, got shape {tuple(labels.shape)}."
        )
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, got {n_classes!r}.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
        raise ValueError(
            f"labels must lie in [0, {n_classes}), got values from "
            f"{labels.min().item()} to {labels.max().item()}; encode them as "
            "indices of the classes."
        )
    return labels


def _check_prior(
    prior_strength: float, discount: float, prior_floor: float, dtype: torch.dtype
) -> None:
    """Raise for a prior that is out of range, or does not fit in the store."""
    largest = torch.finfo(dtype).max / 4
    if not prior_strength > 0:
        raise ValueError(
            f"prior_strength must lie in (0, inf], got {prior_strength!r}."
        )
    if prior_strength > largest and (
        dtype == torch.float16 or not math.isinf(prior_strength)
    ):
        raise ValueError(
            f"prior_strength={prior_strength!r} does not fit in a store of {dtype} "
            f"(at most {largest:g}); use infinity, and at least float32."
        )
    if not 0 < discount <= 1:
        raise ValueError(f"discount must lie in (0, 1], got {discount!r}.")
    if not 0 < prior_floor < math.inf:
        raise ValueError(f"prior_floor must lie in (0, inf), got {prior_floor!r}.")
    if prior_floor >= prior_strength:
        raise ValueError(
            f"prior_floor={prior_floor!r} must be smaller than "
            f"prior_strength={prior_strength!r}: the label comes first."
        )
