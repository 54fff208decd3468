"""The Dirichlet posterior of every training sample, and its mathematics.

Pure functions state the method (prior, update, mean, loss and its gradient);
:class:`DirichletPosterior` holds one row per training sample and applies them to the
rows of a batch, with the fastest implementation for their device.
:class:`CompactPosterior` does the same, but stores only the classes with the most
evidence.

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
    r"""The Dirichlet posteriors (beliefs) of N training samples over their classes.

    Row i starts as a prior centred on the label of sample i. Each update adds the
    network's prediction to it. Its mean is the training target:

    .. math::

        \alpha_t = \gamma \, \alpha_{t-1} + p_t, \qquad
        q_t = \alpha_t / \textstyle\sum_k \alpha_t[k].

    An :class:`UpdateRule` weights and sharpens the added prediction, the evidence.

    Parameters
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample, in [0, n_classes).
    n_classes : int
        Number of classes K, at least 2.
    prior_strength : float, default=100.0
        Prior concentration c of the label, in (0, inf]. With infinity the target is
        always the label, which is training with cross-entropy.
    discount : float, default=1.0
        Factor gamma in (0, 1] that an update applies to the previous belief. It has no
        effect if `prior_strength` is infinite.
    prior_floor : float, default=1e-3
        Prior concentration eps of each other class, in (0, c). Use a smaller value for
        many classes: the default sums to 20 over 20,000 classes, and a label with
        c = 60 then has only three quarters of the target before any prediction.
    dtype : torch.dtype, default=torch.float32
        Floating type of the store. Arithmetic is in float32 or wider. Values stored in
        16 bits are rounded up or down in turn, so that errors do not accumulate.
    device : torch.device or str, optional
        Device of the rows; by default that of `labels`.
    folder : str or path-like, optional
        Store the rows in a temporary file in this folder instead of in memory. The file
        is deleted together with the posterior. The rows are then on the CPU, and those
        of a batch are copied to the device of its logits and back.

    Attributes
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample.
    visits : Tensor of shape (n_samples,)
        How often each row has been updated.
    agreement : Agreement
        How often predictions agreed with the labels; the training loop updates it.

    Raises
    ------
    ValueError
        For a parameter out of its range, or labels outside [0, n_classes).

    Notes
    -----
    With :math:`S_t = \sum_k \alpha_t[k]`, the target is a moving average in which the
    newest prediction has weight :math:`1/S_t`. After T updates, the label's own share
    of the target is :math:`\gamma^T c / S_T` [1]_, see :meth:`label_mass`.

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
        # In place: memory may not have room for two copies of the rows.
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
        """Return the fastest implementation of the step for these logits."""
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
            dtype=self.dtype,  # with the rounding of the store
        )
        alpha = self._alpha if index is None else self._alpha[index]
        return (alpha.to(wide) - left * prior.to(wide)).clamp(min=0)

    @property
    def _is_dense(self) -> bool:
        """Whether memory holds a number per sample and class."""
        return self._folder is None

    @property
    def _has_lost_evidence(self) -> bool:
        """Whether predictions were too small relative to the prior to be stored."""
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
            return tensor  # without a copy, for which there may be no room
        # The number that represents infinity may be that of a wider type.
        return tensor.clamp(max=torch.finfo(self.dtype).max / 4)

    def __setstate__(self, state):
        super().__setstate__(state)
        if state["dtype"] == "bfloat16":
            self._alpha = self._alpha.view(torch.bfloat16)


class CompactPosterior(Beliefs):
    r"""Dirichlet posteriors (beliefs) that store only the classes with most evidence.

    For each sample it stores the evidence of m classes: the label, and the classes with
    the most evidence from predictions. The evidence of all other classes is one number,
    which is treated as spread evenly over them. With the evidence :math:`a_k` of the
    classes in :math:`S_i`, the sum R of the others, and the prior :math:`b_k` (c for
    the label and eps for each other class), the belief after T updates is

    .. math::

        \alpha_T[k] = \gamma^T b_k + \begin{cases} a_k & k \in S_i \
            R / (K - m) & \text{otherwise.} \end{cases}

    An update adds the prediction to all classes and then keeps the m largest. Evidence
    of classes that are dropped moves into R, and that of classes that enter is taken
    from R, so the sum of a row is exact. The prior is not stored, so it may be
    arbitrarily strong.

    Parameters
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample, in [0, n_classes).
    n_classes : int
        Number of classes K, at least 2.
    n_kept : int, default=32
        Number of classes m that a row keeps, at least 2. If there are no more classes
        than that, the beliefs equal those of :class:`DirichletPosterior`.
    prior_strength : float, default=100.0
        Prior concentration c of the label, in (0, inf].
    discount : float, default=1.0
        Factor gamma in (0, 1] that an update applies to the previous belief.
    prior_floor : float, default=1e-3
        Prior concentration eps of each other class, in (0, c).
    dtype : torch.dtype, default=torch.float16
        Type of the stored values. They are rounded up or down in turn, as in
        :class:`DirichletPosterior`; the sum of a row is in float32 or wider.
    device : torch.device or str, optional
        Device of the rows; by default that of `labels`.
    folder : str or path-like, optional
        Store the rows in a temporary file in this folder instead of in memory.

    Attributes
    ----------
    labels : Tensor of shape (n_samples,)
        Class index of each training sample.
    visits : Tensor of shape (n_samples,)
        How often each row has been updated.
    agreement : Agreement
        How often predictions agreed with the labels; the training loop updates it.

    Raises
    ------
    ValueError
        For a parameter out of its range, or labels outside [0, n_classes).

    See Also
    --------
    DirichletPosterior : Stores one number per sample and class.

    Notes
    -----
    A row takes 4 bytes per kept class in float16 (6 in float32, and 2 more from 65,537
    classes on) and 20 for sums, label and number of visits.

    The loss of an update uses the mean before classes are dropped; :meth:`target`
    returns the mean after that.

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
        """Whether predictions were too small relative to the prior: never."""
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
            In no particular order, except that the label is first.
        """
        return self._read(index).classes

    def tail_mass(self, index: Tensor | None = None) -> Tensor:
        """Return the share of each target that belongs to classes that are not kept.

        Within this share the store cannot distinguish classes. If it is large, keep
        more classes.

        Parameters
        ----------
        index : Tensor of shape (n,), optional
            Rows to return; by default all.

        Returns
        -------
        Tensor of shape (n,)
            In [0, 1). Zero if all classes are kept.
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
        """Return the fastest implementation of the step for these logits."""
        if logits.is_cpu and not _kernels.interpreted:
            return _compact_cpu
        rows = self._compact_rows()
        usable = _compact_kernels.usable(logits, rows, self.n_classes)
        return _compact_kernels if usable else _compact

    def _compact_rows(self) -> CompactRows:
        return CompactRows(self._classes, self._values, self._total, self._rest)

    def _prior(self) -> CompactPrior:
        if math.isinf(self.prior_strength):
            # A quarter of the largest number leaves room for the evidence.
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


# The type of `posterior_`.
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
        The type used for "float32".
    **options : dict
        Prior, device and folder.
    """
    n_kept = _compact.n_kept_of(posterior_dtype)
    # For so few classes a dense row is no larger, and it is exact.
    if n_kept is not None and n_kept < n_classes:
        return CompactPosterior(labels, n_classes, n_kept=n_kept, **options)
    half = posterior_dtype == "float16"
    dtype = torch.float16 if half else float_dtype
    return DirichletPosterior(labels, n_classes, dtype=dtype, **options)


def posterior_of(
    state_dict: dict[str, Tensor],
) -> Posterior:
    """Build a posterior in memory from a `state_dict`.

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


# Number of rows that are filled at once.
_PART = 2**16
_COMPACT_TYPES = (torch.float16, torch.float32, torch.float64)
