"""The beliefs of several trainings, updated together."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cpu
from ._formulas import rounded, soft_cross_entropy_gradient, updated
from ._rules import UpdateRule
from .posterior import DirichletPosterior


class StackedRule(NamedTuple):
    """The rules of several members; a field is a number if all members share it.

    Parameters
    ----------
    weight, sharpness, smoothing, discount : float or Tensor of shape (n_members, 1, 1)
        As in :class:`UpdateRule`.
    """

    weight: float | Tensor
    sharpness: float | Tensor
    smoothing: float | Tensor
    discount: float | Tensor

    def of(self, members: slice) -> "StackedRule":
        """Return the rules of some members."""
        return StackedRule(*(v if isinstance(v, float) else v[members] for v in self))


class StackedBeliefs:
    """The concatenated rows of several posteriors.

    Parameters
    ----------
    posteriors : sequence of DirichletPosterior
        With equal types and numbers of classes, on one device. `leave` copies the rows
        back to them.
    """

    def __init__(self, posteriors: Sequence[DirichletPosterior]):
        self._posteriors = posteriors
        self._states = [posterior.state_dict() for posterior in posteriors]
        self._alpha = torch.cat([state["alpha"] for state in self._states])
        self._visits = torch.cat([state["visits"] for state in self._states])
        self._labels = torch.cat([state["labels"] for state in self._states])
        sizes = torch.tensor([0, *map(len, posteriors)])[:-1]
        self._first = sizes.cumsum(0).unsqueeze(1).to(self._alpha.device)
        self._rule = StackedRule(1.0, 1.0, 0.0, 1.0)

    def load_rules(self, rules: Sequence[UpdateRule | None]) -> None:
        """Set the rules of the next updates.

        Parameters
        ----------
        rules : sequence of UpdateRule or None
            Rule of each member; None means the paper's rule.
        """
        applied = [
            p._rule(rule) for p, rule in zip(self._posteriors, rules, strict=True)
        ]
        self._rule = StackedRule(
            *(
                self._number([getattr(rule, name) for rule in applied])
                for name in StackedRule._fields
            )
        )

    def _number(self, values: list[float]) -> float | Tensor:
        if len(set(values)) == 1:
            return values[0]
        wide = torch.promote_types(self._alpha.dtype, torch.float32)
        return torch.tensor(values, dtype=wide, device=self._alpha.device).view(
            -1, 1, 1
        )

    def places(self, members: slice, rows: Tensor) -> Tensor:
        """Return the positions of some members' rows in the concatenated rows.

        Parameters
        ----------
        members : slice
        rows : Tensor of int of shape (m, n)
            Rows of each of these m members, in its own numbering.
        """
        return self._first[members] + rows

    def labels(self, places: Tensor) -> Tensor:
        """Return the labels at some positions, in the shape of `places`."""
        return self._labels[places]

    @torch.no_grad()
    def update(
        self, members: slice, logits: Tensor, rows: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update the beliefs of some members; return losses and their gradient.

        Parameters
        ----------
        members : slice
        logits : Tensor of shape (m, n, n_classes)
            Detached.
        rows : Tensor of int of shape (m, n)
            Rows of each member's own X, without repetition.
        weight : Tensor of shape (m, n) or None
            Weight of each sample in the loss.

        Returns
        -------
        losses : Tensor of shape (m,)
            Mean cross-entropy of each member's new targets with its logits.
        gradient : Tensor of shape (m, n, n_classes)
            Gradient of each member's loss with respect to its logits, in their type.
        """
        wide = (torch.float32, torch.float64)
        if logits.is_cpu and logits.dtype in wide and self._alpha.dtype in wide:
            return _cpu.stacked_step(
                logits,
                self._alpha,
                self._visits,
                self.places(members, rows),
                weight,
                self._rule.of(members),
            )
        return self._update(members, logits, rows, weight)

    def _update(
        self, members: slice, logits: Tensor, rows: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Perform the update on any device, with the functions of `_formulas`."""
        places = self.places(members, rows).flatten()
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_proba = logits.log_softmax(dim=-1, dtype=dtype)
        proba = log_proba.exp()
        before = self._alpha.index_select(0, places).to(dtype).view_as(proba)
        after, target = updated(before, proba, self._rule.of(members))
        losses = -(target * log_proba).sum(dim=-1)
        finite = losses.isfinite()
        after = torch.where(finite.unsqueeze(-1), after, before).flatten(0, 1)
        visits = self._visits.index_select(0, places)
        stored = rounded(after, self._alpha.dtype, rows.flatten(), visits)
        self._alpha.index_copy_(0, places, stored)
        self._visits.index_add_(0, places, finite.flatten().to(visits.dtype))
        gradient = soft_cross_entropy_gradient(proba, target, weight).to(logits.dtype)
        if weight is not None:
            losses = weight * losses
        return losses.mean(dim=1), gradient

    def leave(self) -> None:
        """Copy the rows back to the posteriors."""
        sizes = [len(posterior) for posterior in self._posteriors]
        parts = zip(self._alpha.split(sizes), self._visits.split(sizes), strict=True)
        for state, (alpha, visits) in zip(self._states, parts, strict=True):
            state["alpha"].copy_(alpha)
            state["visits"].copy_(visits)
