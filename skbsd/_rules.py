"""The update rule of the beliefs, and the values that replace "auto" and "noisy".

The rules for prior strength, weight, sharpness and smoothing were chosen by
measurement; docs/evidence.md shows the alternatives. They go beyond the paper, in which
c is a number and every prediction has weight 1.
"""

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class UpdateRule:
    r"""How a prediction updates a belief, and how a belief becomes a target.

    With the logits z of a sample, weight w, sharpness s, smoothing :math:`\lambda` and
    discount :math:`\gamma`,

    .. math::

        e_t = w \, \mathrm{softmax}(s z), \qquad
        \alpha_t = \gamma \, \alpha_{t-1} + e_t, \qquad
        q_t = (1 - \lambda) \, \alpha_t / \textstyle\sum_k \alpha_t[k] + \lambda / K.

    The evidence :math:`e_t` is what the prediction adds to the belief. The default
    weight, sharpness and smoothing are the paper's method, with any discount.

    Parameters
    ----------
    weight : float, default=1.0
        The weight w of a prediction in [0, inf): the sum of its evidence.
    sharpness : float, default=1.0
        Factor of the logits before they become evidence, the inverse of a temperature,
        in (0, inf). Above 1 the evidence is more confident than the prediction.
    smoothing : float, default=0.0
        Share of the uniform distribution in the target, in [0, 1). The belief itself is
        not smoothed.
    discount : float, default=1.0
        Factor gamma in (0, 1] that an update applies to the previous belief.

    Raises
    ------
    ValueError
        For a value that is not a number in its range.

    See Also
    --------
    DirichletPosterior.step : Applies a rule to the rows of a batch.
    Agreement.rule : The rule of the next epoch, derived from the previous epochs.

    Examples
    --------
    >>> import torch
    >>> from skbsd.posterior import DirichletPosterior, UpdateRule
    >>> posterior = DirichletPosterior(torch.tensor([0]), 2, prior_strength=3.0,
    ...                                prior_floor=1.0)
    >>> logits = torch.tensor([[0.0, 1.0]]).log1p()  # of odds 1 : 2
    >>> loss = posterior.step(logits, torch.tensor([0]), rule=UpdateRule(weight=2.5))
    >>> posterior.evidence()
    tensor([[0.8333, 1.6667]])
    >>> sharp = UpdateRule(weight=2.5, sharpness=2.0)
    >>> loss = posterior.step(logits, torch.tensor([0]), rule=sharp)
    >>> posterior.evidence()  # 2.5 in the proportion 1 : 4 are added
    tensor([[1.3333, 3.6667]])
    """

    weight: float = 1.0
    sharpness: float = 1.0
    smoothing: float = 0.0
    discount: float = 1.0

    def __post_init__(self):
        for name, accepts, expected in (
            ("weight", lambda x: 0 <= x < math.inf, "[0, inf)"),
            ("sharpness", lambda x: 0 < x < math.inf, "(0, inf)"),
            ("smoothing", lambda x: 0 <= x < 1, "[0, 1)"),
            ("discount", lambda x: 0 < x <= 1, "(0, 1]"),
        ):
            value = getattr(self, name)
            if not (isinstance(value, Real) and accepts(value)):
                raise ValueError(
                    f"{name} must be a number in {expected}, got {value!r}."
                )
            # PyTorch's operators take Python's floats, and not NumPy's.
            object.__setattr__(self, name, float(value))


class Budget(NamedTuple):
    """The rule behind a name of `prior_strength`.

    Parameters
    ----------
    least, per_epoch : float
        c = max(least, per_epoch * T) for T epochs. Without `least`, the poor
        predictions of a short training would soon outweigh the labels.
    sharpness : float
        The minimum power to which predictions are raised before they enter the
        posterior. Wrong labels make the targets soft, and the predictions with them.
    smoothing : float
        The share of the uniform distribution in the targets, divided by the squared
        mean disagreement. An underfitted network would train on its own predictions;
        smoothing calibrates as well without that loop.
    """

    least: float
    per_epoch: float
    sharpness: float
    smoothing: float


_PLAIN = Budget(0.0, 0.0, 1.0, 0.0)  # for a number: the paper's method
BUDGETS = {
    "auto": Budget(60.0, 2 / 3, 1.0, 0.3),
    "noisy": Budget(15.0, 0.2, 1.4, 0.0),
}

# Agreement on training data overstates the quality of predictions: bound its effect.
_LARGEST_WEIGHT = 5.0
_LARGEST_SHARPNESS = 10.0
_SHARPNESS_PER_ODDS = 0.1

_LARGEST_FLOOR = 1e-3
_SUM_OF_FLOORS = 0.1


def schedule_length(net: Any) -> int:
    """Return the number of epochs that the schedules of a call span.

    It applies to the learning rate and to the values of "auto" and "noisy".

    Parameters
    ----------
    net : BSDClassifier
    """
    stated = net.schedule_epochs
    return net.max_epochs if stated is None else stated


def resolve_prior_strength(prior_strength: float | str, max_epochs: int) -> float:
    """Return c for a training of `max_epochs` epochs.

    Parameters
    ----------
    prior_strength : float or {"auto", "noisy"}
        A number is returned unchanged.
    max_epochs : int

    Returns
    -------
    float
    """
    if not isinstance(prior_strength, str):
        return float(prior_strength)
    rule = BUDGETS[prior_strength]
    return max(rule.least, rule.per_epoch * max_epochs)


def budget(prior_strength: float | str) -> Budget:
    """Return the rule that belongs to a prior strength, given by name or number.

    Parameters
    ----------
    prior_strength : float or {"auto", "noisy"}

    Returns
    -------
    Budget
    """
    return BUDGETS.get(prior_strength, _PLAIN)  # type: ignore[arg-type]


def resolve_prior_floor(
    prior_floor: float | str, n_classes: int, least: float = 0.0
) -> float:
    """Return eps for `n_classes` classes.

    "auto" keeps the sum of all floors below 0.1, which is small relative to the label's
    c: with 1e-3 each, 20,000 classes would have a sum of 20.

    Parameters
    ----------
    prior_floor : float or "auto"
        A number is returned unchanged.
    n_classes : int
    least : float, default=0.0
        Lower bound of "auto": the smallest number that the store represents exactly.

    Returns
    -------
    float
    """
    if not isinstance(prior_floor, str):
        return prior_floor
    return max(least, min(_LARGEST_FLOOR, _SUM_OF_FLOORS / n_classes))


# Fraction of a label's initial evidence that remains after a training on wrong labels.
_LABEL_LEFT = 0.015
DEFAULT_LR = 1e-2


@dataclass(frozen=True)
class Choice:
    """The values that a training uses for parameters set to "auto".

    Parameters
    ----------
    lr : float
        The peak learning rate.
    prior_strength : float or str
        A number, or the name of a rule.
    discount : float
        gamma.
    evidence : {"plain", "weighted", "auto"}
    """

    lr: float
    prior_strength: float | str
    discount: float
    evidence: str

    @classmethod
    def plain(cls, net: Any) -> "Choice":
        """Return the values that are used without held-out predictions."""
        return cls(
            DEFAULT_LR if isinstance(net.lr, str) else net.lr,
            net.prior_strength,
            resolve_discount(net.discount),
            net.evidence,
        )

    @classmethod
    def default(cls, net: Any) -> "Choice":
        """Return the values that are tried first if the logits are calibrated.

        They are the paper's method: weighted evidence compensates for logits of the
        wrong scale, which calibration corrects.
        """
        choice = cls.plain(net)
        if net.prior_strength == "auto" and net.evidence == "auto":
            strength = resolve_prior_strength("auto", schedule_length(net))
            choice = replace(choice, prior_strength=strength, evidence="plain")
        if net.prior_strength == "noisy" and net.discount == "auto":
            choice = replace(choice, discount=cls.noisy(net).discount)
        return choice

    @classmethod
    def noisy(cls, net: Any) -> "Choice":
        """Return the values that are used if many labels are wrong.

        Predictions are weighted by their reliability, and the evidence of the label
        decays exponentially.
        """
        discount = _LABEL_LEFT ** (1 / schedule_length(net))
        return cls(cls.plain(net).lr, "noisy", discount, "weighted")

    def kept(self, net: Any) -> "Choice":
        """Return the values for a further call, whose parameters may have changed."""
        plain = Choice.plain(net)
        lr = self.lr if isinstance(net.lr, str) else plain.lr
        same = rule_is_open(net) or net.prior_strength == self.prior_strength
        if not same:
            return replace(plain, lr=lr)
        discount = self.discount if isinstance(net.discount, str) else plain.discount
        evidence = self.evidence if net.evidence == "auto" else net.evidence
        return Choice(lr, self.prior_strength, discount, evidence)


def rule_is_open(net: Any) -> bool:
    """Whether `fit` chooses the update rule from the data."""
    return (net.prior_strength, net.evidence, net.discount) == ("auto",) * 3


def rate_is_open(net: Any) -> bool:
    """Whether `fit` chooses the learning rate from the data."""
    return isinstance(net.lr, str) and not hasattr(net, "optimizer__lr")


def resolve_discount(discount: float | str) -> float:
    """Return gamma; "auto" is 1, as no lower value was better on any data.

    Parameters
    ----------
    discount : float or "auto"

    Returns
    -------
    float
    """
    return 1.0 if isinstance(discount, str) else float(discount)


def is_weighted(evidence: str, prior_strength: float | str) -> bool:
    """Whether predictions are weighted by their reliability.

    Parameters
    ----------
    evidence : {"auto", "plain", "weighted"}
    prior_strength : float or {"auto", "noisy"}

    Returns
    -------
    bool
    """
    return evidence == "weighted" or (
        evidence == "auto" and isinstance(prior_strength, str)
    )


@dataclass
class Agreement:
    """How often predictions agreed with the given labels, epoch by epoch.

    Parameters
    ----------
    last : float, default=0.0
        Fraction in the last epoch, in [0, 1]; 0 before the first.
    mean : float, default=0.0
        Mean over the epochs so far. It stays low if labels are hard to learn, even if
        the network memorises them in the end.
    n_epochs : int, default=0
        Number of epochs so far.

    Examples
    --------
    >>> from skbsd.posterior import Agreement
    >>> agreement = Agreement()
    >>> agreement.add(0.5)
    >>> agreement.add(0.75)
    >>> agreement
    Agreement(last=0.75, mean=0.625, n_epochs=2)
    >>> agreement.weight()
    2.0
    >>> round(agreement.sharpness(), 3)
    1.167
    """

    last: float = 0.0
    mean: float = 0.0
    n_epochs: int = 0

    def add(self, share: float) -> None:
        """Add the agreement of an epoch.

        Parameters
        ----------
        share : float
            Weighted fraction of the training samples whose prediction was the label, in
            [0, 1].
        """
        self.n_epochs += 1
        self.last = share
        self.mean += (share - self.mean) / self.n_epochs

    def weight(self) -> float:
        """Return the weight of a prediction in the next epoch: signal over noise.

        Returns
        -------
        float
            The last agreement over the mean disagreement, 5 at most.
        """
        return min(_LARGEST_WEIGHT, self.last / max(1 - self.mean, 1e-9))

    def sharpness(self, least: float = 1.0) -> float:
        """Return the factor of the logits before they become evidence.

        If predictions nearly always agree with the labels, their uncertainty is noise.

        Parameters
        ----------
        least : float, default=1.0
            The sharpness if no prediction has agreed.

        Returns
        -------
        float
            `least` + 0.1 times the odds of the mean agreement, 10 at most.
        """
        odds = self.mean / max(1 - self.mean, 1e-9)
        return min(_LARGEST_SHARPNESS, least + _SHARPNESS_PER_ODDS * odds)

    def rule(self, prior_strength: float | str, discount: float = 1.0) -> UpdateRule:
        """Return the rule of the next epoch's updates.

        Parameters
        ----------
        prior_strength : float or {"auto", "noisy"}
            As given to :class:`skbsd.BSDClassifier`. A number means a minimum
            sharpness of 1 and no smoothing.
        discount : float, default=1.0
            The discount gamma of the posterior.

        Returns
        -------
        UpdateRule
            Its weight and sharpness are those of :meth:`weight` and :meth:`sharpness`.
        """
        chosen = budget(prior_strength)
        return UpdateRule(
            weight=self.weight(),
            sharpness=self.sharpness(chosen.sharpness),
            smoothing=chosen.smoothing * (1 - self.mean) ** 2,
            discount=discount,
        )
