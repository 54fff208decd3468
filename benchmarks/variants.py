"""Rules that were tried before the defaults were chosen, as methods for `compare.py`.

A variant is BSD with another rule for the prior strength c and for the weight of a
prediction. Its name lists the options that differ from the paper's method, each with
its value:

- L: the label's final share of the target, if each prediction has the weight 1; c
  follows from the number of epochs T and the discount.
- C: lower limit of c.
- k: discount 1 - k / T.
- tau: temperature of the evidence.
- rel: evidence weighted by a ** rel, where a is the fraction of the labels that the
  network predicted in the previous epoch (soft1: the mean probability of the labels).
- pl: evidence weighted by exp(-pl * loss) of the previous epoch.
- ent: evidence weighted by (1 - entropy / log K) ** ent, for each sample.
- pr: evidence weighted by min(1, pr / (1 - b)) too, where b is the mean of a over
  epochs.
- sh, od: 1 / tau grows by sh * b ** 4, or by od * b / (1 - b).
- fl: the prior distributes the fraction fl of its mass evenly over all classes, like
  label smoothing.
- sm, sq: targets are mixed with the uniform distribution, whose share is sm * (1 - b)
  or sq * (1 - b) ** 2.
- resc: the loss is divided by the label's share of the targets, to the power of resc.

The default of `BSDClassifier` is "C12 L0.118 rel1 pr0.2 od0.1 sq0.3", and its "noisy"
rule is "C3 L0.04 rel1 pr0.2 od0.1 tau0.71"; in `BSDClassifier`, weights and c are five
times as large.

    python benchmarks/compare.py --registry variants --full --seeds 0 \
        --output benchmarks/variants.csv --methods 'L0.4 rel1' CE
"""

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from baselines import METHODS as RIVALS
from baselines import Rival
from losses import PerSample
from torch import Tensor
from torch.nn import functional as F

from skbsd.objectives import Batch, TrainingRun
from skbsd.posterior import prior_concentration, soft_cross_entropy

TRIED = (
    "L0.62",
    "L0.4",
    "k3 L0.5",
    "k3 L0.5 tau0.7",
    "k3 L0.5 tau0.5",
    "k3 L0.1 tau0.7",
    "L0.4 rel1",
    "L0.4 rel2 tau0.7",
    "L0.4 ent1",
    "k2 L0.4 rel1 resc1",
    "L0.2 rel3",
    "L0.2 rel3 tau0.8",
    "L0.25 rel4 tau0.8",
    "L0.2 rel2 soft1",
    "L0.3 rel2 soft1 tau0.8",
    "L0.2 pl1",
    "L0.2 pl1 tau0.8",
    "L0.15 pl1.5 tau0.8",
    "C30 L0.35 rel1 tau0.8",
    "C30 L0.35 rel1 sh1",
    "C20 L0.3 rel1 sh1",
    "C30 L0.35 sh1",
    "C25 L0.35 rel1 od0.1",
    "C25 L0.35 rel1 od0.05",
    "C25 L0.3 rel2 od0.05",
    "C8 L0.12 rel1 pr0.2 od0.1",
    "C8 L0.12 rel1 pr0.2 od0.05",
    "C8 L0.12 rel2 pr0.2 od0.1",
    "C16 L0.12 rel1 pr0.2 od0.1",
    "C16 L0.12 rel1 pr0.2 od0.1 fl0.1",
    "C16 L0.12 rel1 pr0.2 od0.1 sm0.2",
    "C16 L0.12 rel1 pr0.2 od0.1 sm0.1",
    "C16 L0.12 rel1 pr0.2 od0.1 sq0.3",
    "C12 L0.12 rel1 pr0.2 od0.1 sq0.3",
    "C8 L0.12 rel1 pr0.2 od0.1 sm0.2",
    "C5 L0.08 rel1 pr0.1 od0.1",
    "C5 L0.08 rel1 pr0.1 od0.05",
    "C6 L0.1 rel1 pr0.2 od0.1",
    "C5 L0.1 rel1 od0.05",
    "C10 L0.1 rel1 od0.05 tau0.7",
    "C3 L0.04 rel1 pr0.2 od0.1",
    "C3 L0.04 rel1 pr0.2 od0.1 tau0.7",
    "C2 L0.03 rel1 pr0.2 od0.05 tau0.7",
)


def parse(name: str) -> dict[str, float]:
    """Return the options that a name lists."""
    parts = (re.fullmatch(r"([A-Za-z]+)([\d.]+)", part) for part in name.split())
    return {part[1]: float(part[2]) for part in parts}


def strength(L: float, discount: float, n_epochs: int) -> float:
    """Return c for which gamma^T c / S_T is L, if each prediction has the weight 1."""
    left = discount**n_epochs
    evidence = n_epochs if discount == 1 else (1 - left) / (1 - discount)
    return L / (1 - L) * evidence / left


@dataclass(eq=False)
class Beliefs(PerSample):
    """BSD with the options of a name; see the module's docstring."""

    L: float
    C: float
    k: float
    tau: float
    rel: float
    soft: float
    pl: float
    ent: float
    pr: float
    sh: float
    od: float
    fl: float
    sm: float
    sq: float
    resc: float

    def begin(self, run: TrainingRun) -> None:
        """Start at the prior, with no record of earlier predictions."""
        super().begin(run)
        self._gamma = 1 - self.k / run.max_epochs
        self._c = max(self.C, strength(self.L, self._gamma, run.max_epochs))
        self._shares: list[float] = []  # agreement of each epoch
        self._loss = math.log(run.n_classes)  # of the previous epoch
        prior = prior_concentration(
            run.posterior.labels,
            run.n_classes,
            prior_strength=self._c,
            prior_floor=run.posterior.prior_floor,
        )
        self.memory = (1 - self.fl) * prior + self.fl * self._c / run.n_classes

    def begin_epoch(self) -> None:
        """Reset the sums of the epoch."""
        self._sums = [0.0, 0.0, 0]  # of agreement, loss and samples

    def end_epoch(self, correct: Any) -> None:
        """Record agreement and loss of the epoch."""
        agreed, loss, n = self._sums
        self._shares.append(agreed / n)
        self._loss = loss / n

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Update the beliefs by the variant's rule; return the loss to their mean."""
        known = logits.detach()
        proba = known.softmax(dim=1)
        belief = self._gamma * self.memory[batch.rows]
        belief += self._weight(proba) * (known * self._sharpness()).softmax(dim=1)
        self.memory[batch.rows] = belief
        total = belief.sum(dim=1, keepdim=True)
        target = belief / total
        if self.sm or self.sq:
            _, mean = self._reliability()
            uniform = self.sm * (1 - mean) + self.sq * (1 - mean) ** 2
            target = (1 - uniform) * target + uniform / target.shape[1]
        loss = soft_cross_entropy(logits, target)
        self._add(proba, batch, loss)
        visits = self.run.epoch + 1
        share = (self._gamma**visits * self._c / total).mean()
        return loss * share**-self.resc if self.resc else loss

    def state_dict(self) -> dict[str, Any]:
        """Return the beliefs, and the reliability of earlier predictions."""
        return super().state_dict() | {"shares": self._shares, "loss": self._loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        super().load_state_dict(state)
        self._shares, self._loss = list(state["shares"]), state["loss"]

    def _weight(self, proba: Tensor) -> float | Tensor:
        last, mean = self._reliability()
        weight = last**self.rel if self.rel else 1.0
        if self.pl:
            weight = math.exp(-self.pl * self._loss)
        if self.pr:
            weight *= min(1.0, self.pr / max(1 - mean, 1e-9))
        if self.ent:
            entropy = F.cross_entropy(proba.log(), proba, reduction="none")
            sure = 1 - entropy / math.log(proba.shape[1])
            return weight * sure.clamp(min=0).unsqueeze(1) ** self.ent
        return weight

    def _sharpness(self) -> float:
        _, mean = self._reliability()
        return 1 / self.tau + self.sh * mean**4 + self.od * mean / max(1 - mean, 1e-3)

    def _reliability(self) -> tuple[float, float]:
        """Return the reliability of the last epoch, and the mean over epochs."""
        shares = self._shares or [0.0]
        return shares[-1], sum(shares) / len(shares)

    def _add(self, proba: Tensor, batch: Batch, loss: Tensor) -> None:
        if self.soft:
            agreed = proba.gather(1, batch.y.unsqueeze(1)).sum()
        else:
            agreed = (proba.argmax(dim=1) == batch.y).sum()
        n = len(proba)
        new = (agreed.item(), n * loss.item(), n)
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)]


class Variant(Rival):
    """BSD with the options of a name; the defaults are the paper's method."""

    objective = Beliefs

    def __init__(
        self,
        module=None,
        *,
        L=0.5,
        C=0.0,
        k=0.0,
        tau=1.0,
        rel=0.0,
        soft=0.0,
        pl=0.0,
        ent=0.0,
        pr=0.0,
        sh=0.0,
        od=0.0,
        fl=0.0,
        sm=0.0,
        sq=0.0,
        resc=0.0,
        **kwargs,
    ):
        super().__init__(module, **kwargs)
        self.L = L
        self.C = C
        self.k = k
        self.tau = tau
        self.rel = rel
        self.soft = soft
        self.pl = pl
        self.ent = ent
        self.pr = pr
        self.sh = sh
        self.od = od
        self.fl = fl
        self.sm = sm
        self.sq = sq
        self.resc = resc


METHODS = RIVALS | {name: partial(Variant, **parse(name)) for name in TRIED}
