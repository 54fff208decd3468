"""The Dirichlet posterior of every training sample, and its mathematics.

Pure functions state the method (prior, update, mean, loss and its gradient);
:class:`DirichletPosterior` holds one row per training sample and applies them to
the rows of a batch, in the form that is fastest where the rows are.
:class:`CompactPosterior` does so with rows of the classes that matter.

In the paper's symbols, `prior_strength` is c, `prior_floor` is eps and `discount` is
gamma; alpha is a row of concentrations and q its mean, the training target.
"""

import math
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _compact, _compact_cpu, _compact_kernels, _cpu, _formulas, _kernels
from ._beliefs import Beliefs
from ._check_prior import check_prior
from ._compact import CompactPrior, CompactRows
from ._formulas import (
    posterior_mean,
    prior_concentration,
    sharpen,
    smooth,
    soft_cross_entropy,
    soft_cross_entropy_gradient,
    update_concentration,
)
from ._rules import Agreement, UpdateRule

__all__ = [
    "Agreement",
    "CompactPosterior",
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


class DirichletPosterior(Beliefs):
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
    folder : str or path-like, optional
        Have the rows lie in a file in this folder instead of in memory. It goes when
        the posterior does. They are the CPU's then, and those of a batch move to the
        device of its logits and back.

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

    _ROWS = ("alpha",)
    _KERNELS = _kernels
    _alpha: Tensor

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
        folder: str | os.PathLike[str] | None = None,
    ):
        super().__init__(
            labels,
            n_classes,
            prior_strength=prior_strength,
            discount=discount,
            prior_floor=prior_floor,
            device=device,
            folder=folder,
        )
        check_prior(prior_strength, discount, prior_floor, dtype)
        self._alpha = self._allocate((len(self.labels), n_classes), dtype)
        # In place: the rows may be more than fit in memory twice.
        self._alpha.fill_(prior_floor)
        strength = min(prior_strength, torch.finfo(dtype).max / 4)
        self._alpha.scatter_(1, self.labels.unsqueeze(1), strength)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self._alpha.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the store."""
        return self._alpha.dtype

    def _arguments(
        self, logits: Tensor, index: Tensor, weight: Tensor | None, rule: UpdateRule
    ) -> tuple:
        return logits, self._alpha, self.visits, index, weight, rule

    def _backend(self, logits: Tensor) -> ModuleType:
        """Return the fastest form of the step for these logits."""
        if logits.is_cpu and not _kernels.interpreted and _cpu.usable(self._alpha):
            return _cpu
        return _kernels if _kernels.usable(logits, self._alpha) else _formulas

    def _evidence_of(self, index: Tensor | None) -> Tensor:
        if math.isinf(self.prior_strength):
            return torch.zeros_like(self._alpha_of(index))
        wide = torch.promote_types(self.dtype, torch.float32)
        visits = self.visits if index is None else self.visits[index]
        left = self.discount ** visits.to(wide).unsqueeze(1)
        prior = prior_concentration(
            self._labels_of(index),
            self.n_classes,
            prior_strength=self.prior_strength,
            prior_floor=self.prior_floor,
            dtype=self.dtype,  # rounded as the store is
        )
        alpha = self._alpha if index is None else self._alpha[index]
        return (alpha.to(wide) - left * prior.to(wide)).clamp(min=0)

    @property
    def _is_dense(self) -> bool:
        """Whether memory holds a number per sample and class."""
        return self._folder is None

    @property
    def _has_lost_evidence(self) -> bool:
        """Whether predictions were too small beside the prior to be stored."""
        return self.prior_strength * torch.finfo(self.dtype).eps > 1.1

    def _alpha_of(self, index: Tensor | None) -> Tensor:
        return self._alpha.clone() if index is None else self._alpha[index]

    def _totals(self) -> Tensor:
        if self._folder is None:
            return self._alpha.cpu().double().sum(dim=-1)
        parts = self._alpha.split(max(1, 2**24 // self.n_classes))
        return torch.cat([part.double().sum(dim=-1) for part in parts])

    def _fitting(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.dtype == self.dtype:
            return tensor  # and no copy, as there may be no room for one
        # An infinite prior's stand-in may be that of a wider type.
        return tensor.clamp(max=torch.finfo(self.dtype).max / 4)

    def __setstate__(self, state):
        super().__setstate__(state)
        if state["dtype"] == "bfloat16":
            self._alpha = self._alpha.view(torch.bfloat16)


class CompactPosterior(Beliefs):
    r"""Dirichlet beliefs that keep only the classes with most evidence.

    Of each sample it holds the evidence of m classes: the label, and those for which
    the network's predictions speak most. That of all others is one number, which counts
    as spread evenly over them. With the evidence :math:`a_k` of the classes in
    :math:`S_i`, the sum R of the others, and :math:`b_k` for the prior (c of the label,
    and eps of each other class), the belief after T updates is

    .. math::

        \alpha_T[k] = \gamma^T b_k + \begin{cases} a_k & k \in S_i \
            R / (K - m) & \text{otherwise.} \end{cases}

    An update adds the prediction to all classes, and then keeps the m largest. What
    classes take along that are dropped, and leave behind that come in, changes R alone:
    the sum of a row is exact. The prior needs no memory, so that it may be as strong as
    one likes.

    Parameters
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample, in [0, n_classes).
    n_classes : int
        Number of classes K, at least 2.
    n_kept : int, default=32
        Number of classes m that a row keeps, at least 2; all where there are fewer,
        and then the beliefs are those of :class:`DirichletPosterior`.
    prior_strength : float, default=100.0
        Prior concentration c of the label, in (0, inf].
    discount : float, default=1.0
        What an update leaves of the belief before it: gamma, in (0, 1].
    prior_floor : float, default=1e-3
        Prior concentration eps of each other class, in (0, c).
    dtype : torch.dtype, default=torch.float16
        Type of the values that are kept. They are rounded up or down in turn, as in
        :class:`DirichletPosterior`; the sum of a row is in float32 at least.
    device : torch.device or str, optional
        Where the rows live; by default where `labels` are.
    folder : str or path-like, optional
        Have the rows lie in a file in this folder instead of in memory.

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

    See Also
    --------
    DirichletPosterior : Holds a number per sample and class.

    Notes
    -----
    A row takes 4 bytes per kept class in float16 (6 in float32, and 2 more from 65,537
    classes on) and 20 for sums, label and number of visits.

    The loss of an update is taken to the mean before classes are dropped;
    :meth:`target` is what is left afterwards.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import CompactPosterior
    >>> posterior = CompactPosterior(torch.tensor([0]), 5, n_kept=2, prior_strength=3.0,
    ...                              prior_floor=0.5, dtype=torch.float32)
    >>> logits = torch.tensor([[4.0, 2.0, 1.0, 6.0, 2.0]]).log()
    >>> loss = posterior.step(logits, torch.tensor([0]))
    >>> posterior.concentration()  # classes 0 and 3 are kept
    tensor([[3.2667, 0.6111, 0.6111, 0.9000, 0.6111]])
    >>> posterior.tail_mass()  # 1.8333 of 6
    tensor([0.3056])
    """

    _ROWS = ("classes", "values", "total", "rest")
    _KERNELS = _compact_kernels
    _classes: Tensor
    _values: Tensor
    _total: Tensor
    _rest: Tensor

    def __init__(
        self,
        labels: Tensor,
        n_classes: int,
        *,
        n_kept: int = 32,
        prior_strength: float = 100.0,
        discount: float = 1.0,
        prior_floor: float = 1e-3,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str | None = None,
        folder: str | os.PathLike[str] | None = None,
    ):
        super().__init__(
            labels,
            n_classes,
            prior_strength=prior_strength,
            discount=discount,
            prior_floor=prior_floor,
            device=device,
            folder=folder,
        )
        if n_kept < 2 or n_kept != int(n_kept):
            raise ValueError(
                "n_kept must be an integer of at least 2, the label and another class, "
                f"got {n_kept!r}."
            )
        if dtype not in _COMPACT_TYPES:
            raise ValueError(
                f"dtype must be one of {', '.join(map(str, _COMPACT_TYPES))}, got "
                f"{dtype}."
            )
        sums = torch.promote_types(dtype, torch.float32)
        check_prior(prior_strength, discount, prior_floor, sums)
        self._n_classes = n_classes
        n, n_kept = len(self.labels), min(int(n_kept), n_classes)
        indices = _compact.index_dtype(n_classes)
        self._classes = self._allocate((n, n_kept), indices)
        for part, of in zip(
            self._classes.split(_PART), self.labels.split(_PART), strict=True
        ):
            part.copy_(_compact.first_classes(of, n_classes, n_kept))
        self._values = self._allocate((n, n_kept), dtype).zero_()
        self._total = self._allocate((n,), sums).zero_()
        self._rest = self._allocate((n,), sums).zero_()

    def _described(self) -> str:
        return f"n_kept={self.n_kept}, "

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self._n_classes

    @property
    def n_kept(self) -> int:
        """Number of classes that a row keeps."""
        return self._classes.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the values that are kept."""
        return self._values.dtype

    @property
    def _has_lost_evidence(self) -> bool:
        """Whether predictions were too small beside the prior: they never are."""
        return False

    def kept_classes(self, index: Tensor | None = None) -> Tensor:
        """Return the classes that rows keep, the label first.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.

        Returns
        -------
        Tensor of int64 of shape (n, n_kept)
            Without order, save for the label.
        """
        return self._read(index).classes

    def tail_mass(self, index: Tensor | None = None) -> Tensor:
        """Return the share of each target that belongs to classes that are not kept.

        It is what the store does not tell apart. Where it is large, keep more classes.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.

        Returns
        -------
        Tensor of shape (n,)
            In [0, 1). Zero where all classes are kept.
        """
        n_others = self.n_classes - self.n_kept
        if n_others == 0 or math.isinf(self.prior_strength):
            return torch.zeros_like(self._labels_of(index), dtype=self._total.dtype)
        index = self._here(index)
        total, rest, visits = (
            part if index is None else part[index]
            for part in (self._total, self._rest, self.visits)
        )
        prior = self._prior()
        left = prior.left(visits, total.dtype)
        tail = rest + left * (n_others * prior.floor)
        return tail / (total + left * prior.total)

    def _evidence_of(self, index: Tensor | None) -> Tensor:
        if math.isinf(self.prior_strength):
            shape = (len(self._labels_of(index)), self.n_classes)
            return torch.zeros(shape, dtype=self._total.dtype, device=self.device)
        return self._read(index).dense(self.n_classes)

    def _arguments(
        self, logits: Tensor, index: Tensor, weight: Tensor | None, rule: UpdateRule
    ) -> tuple:
        rows = self._compact_rows()
        return logits, rows, self.visits, index, weight, rule, self._prior()

    def _backend(self, logits: Tensor) -> ModuleType:
        """Return the fastest form of the step for these logits."""
        if logits.is_cpu and not _kernels.interpreted:
            return _compact_cpu
        rows = self._compact_rows()
        usable = _compact_kernels.usable(logits, rows, self.n_classes)
        return _compact_kernels if usable else _compact

    def _compact_rows(self) -> CompactRows:
        return CompactRows(self._classes, self._values, self._total, self._rest)

    def _prior(self) -> CompactPrior:
        if math.isinf(self.prior_strength):
            # A quarter leaves room for the evidence.
            largest = torch.finfo(torch.float32).max / 4
            return CompactPrior(largest, self.prior_floor, 1.0, self.n_classes)
        return CompactPrior(
            self.prior_strength, self.prior_floor, self.discount, self.n_classes
        )

    def _read(self, index: Tensor | None) -> _compact.Evidence:
        rows = self._compact_rows()
        return _compact.read(rows, self._here(index), self._total.dtype)

    def _alpha_of(self, index: Tensor | None) -> Tensor:
        evidence = self._read(index).dense(self.n_classes)
        visits = self.visits if index is None else self.visits[index]
        prior = self._prior()
        left = prior.left(visits, evidence.dtype)
        return _compact.dirichlet(evidence, self._labels_of(index), left, prior)

    def _totals(self) -> Tensor:
        prior = self._prior()
        left = prior.left(self.visits.cpu(), torch.float64)
        return self._total.cpu().double() + left * prior.total

    def _facts(self) -> dict[str, Tensor]:
        return {"n_classes": torch.tensor(self.n_classes)}

    def __getstate__(self):
        return {**super().__getstate__(), "n_classes": self.n_classes}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._n_classes = state["n_classes"]


# What a sample knows about its class, in one form or the other.
Posterior = DirichletPosterior | CompactPosterior


def make_posterior(
    labels: Tensor,
    n_classes: int,
    *,
    posterior_dtype: str,
    float_dtype: torch.dtype,
    **options: Any,
) -> Posterior:
    """Return the store that an estimator's `posterior_dtype` names.

    Parameters
    ----------
    labels : Tensor of shape (n_samples,)
    n_classes : int
    posterior_dtype : {"float32", "float16", "compact", "compact-m"}
    float_dtype : torch.dtype
        That stands for "float32".
    **options : dict
        Prior, device and folder.
    """
    n_kept = _compact.n_kept_of(posterior_dtype)
    # Of so few classes a dense row is no larger, and exact.
    if n_kept is not None and n_kept < n_classes:
        return CompactPosterior(labels, n_classes, n_kept=n_kept, **options)
    half = posterior_dtype == "float16"
    dtype = torch.float16 if half else float_dtype
    return DirichletPosterior(labels, n_classes, dtype=dtype, **options)


def posterior_of(
    state_dict: dict[str, Tensor],
) -> Posterior:
    """Return a posterior in memory from the `state_dict` of one.

    Parameters
    ----------
    state_dict : dict of str to Tensor
    """
    strength, discount, floor = state_dict["parameters"].tolist()
    prior = {
        "prior_strength": strength,
        "discount": discount,
        "prior_floor": floor,
    }
    labels = state_dict["labels"]
    posterior: Posterior
    if "alpha" in state_dict:
        alpha = state_dict["alpha"]
        posterior = DirichletPosterior(
            labels, alpha.shape[1], dtype=alpha.dtype, **prior
        )
    else:
        posterior = CompactPosterior(
            labels,
            int(state_dict["n_classes"]),
            n_kept=state_dict["classes"].shape[1],
            dtype=state_dict["values"].dtype,
            **prior,
        )
    posterior.load_state_dict(state_dict)
    return posterior


# Rows that are filled at once.
_PART = 2**16
_COMPACT_TYPES = (torch.float16, torch.float32, torch.float64)
