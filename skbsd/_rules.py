"""The rule of a belief's update, and the rules for what the user leaves open.

Those of prior strength, weight, sharpness and smoothing were chosen by measurement;
docs/evidence.md shows what else was tried. They go beyond the paper, in which c is a
number and each prediction counts 1.
"""

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class UpdateRule:
    r"""How a prediction changes a belief, and the belief a target.

    With the logits z of a sample, weight w, sharpness s, smoothing :math:`\lambda` and
    discount :math:`\gamma`,

    .. math::

        e_t = w \, \mathrm{softmax}(s z), \qquad
        \alpha_t = \gamma \, \alpha_{t-1} + e_t, \qquad
        q_t = (1 - \lambda) \, \alpha_t / \textstyle\sum_k \alpha_t[k] + \lambda / K.

    The evidence :math:`e_t` is what the belief takes in from the prediction. The
    defaults, whatever the discount, are the paper's method.

    Parameters
    ----------
    weight : float, default=1.0
        How much a prediction counts, w in [0, inf): the sum of its evidence.
    sharpness : float, default=1.0
        What the logits are multiplied by before they become evidence, the inverse of a
        temperature, in (0, inf). Above 1 the evidence is surer than the prediction.
    smoothing : float, default=0.0
        Share of the uniform distribution in the target, in [0, 1). It does not enter
        the belief.
    discount : float, default=1.0
        What an update leaves of the belief before it: gamma, in (0, 1].

    Raises
    ------
    ValueError
        For a value that is not a number in its range.

    See Also
    --------
    DirichletPosterior.step : Applies a rule to the rows of a batch.
    Agreement.rule : The rule of the next epoch, from how the last ones went.

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
    """What a name of `prior_strength` stands for.

    Parameters
    ----------
    least, per_epoch : float
        c = max(least, per_epoch * T) for T epochs. With the second alone, labels would
        soon give way to the predictions of a short training, which are poor.
    sharpness : float
        The power that predictions are raised to at least, before they enter the
        posterior. Where labels are wrong, targets are soft, and so are predictions that
        follow them.
    smoothing : float
        What the squared mean disagreement is multiplied with to give the share of the
        uniform distribution in the targets. A network that has not fitted its data
        holds itself up with its own predictions; smoothed labels calibrate it as well,
        and do not.
    """

    least: float
    per_epoch: float
    sharpness: float
    smoothing: float


_PLAIN = Budget(0.0, 0.0, 1.0, 0.0)  # of a number, which is the paper's method
BUDGETS = {
    "auto": Budget(60.0, 2 / 3, 1.0, 0.3),
    "noisy": Budget(15.0, 0.2, 1.4, 0.0),
}

# Agreement on the training data flatters the predictions: its effect has bounds.
_LARGEST_WEIGHT = 5.0
_LARGEST_SHARPNESS = 10.0
_SHARPNESS_PER_ODDS = 0.1

_LARGEST_FLOOR = 1e-3
_SUM_OF_FLOORS = 0.1


def schedule_length(net: Any) -> int:
    """Return the epochs that the schedules of a call are for.

    Those are the learning rate's, and what "auto" and "noisy" stand for.

    Parameters
    ----------
    net : BSDClassifier
    """
    stated = net.schedule_epochs
    return net.max_epochs if stated is None else stated


def resolve_prior_strength(prior_strength: float | str, max_epochs: int) -> float:
    """Return c for a training of so many epochs.

    Parameters
    ----------
    prior_strength : float or {"auto", "noisy"}
        A number is returned as it is.
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
    """Return the rules that go with a prior strength, by name or number.

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
    """Return eps for so many classes.

    "auto" keeps the sum of all floors below 0.1, which is little beside the label's c:
    with 1e-3 each, 20,000 classes would have a sum of 20.

    Parameters
    ----------
    prior_floor : float or "auto"
        A number is returned as it is.
    n_classes : int
    least : float, default=0.0
        Of what "auto" stands for: the smallest number that the store holds exactly.

    Returns
    -------
    float
    """
    if not isinstance(prior_floor, str):
        return prior_floor
    return max(least, min(_LARGEST_FLOOR, _SUM_OF_FLOORS / n_classes))


# What is left of a label's own evidence at the end of a training on wrong labels.
_LABEL_LEFT = 0.015
DEFAULT_LR = 1e-2


@dataclass(frozen=True)
class Choice:
    """What a training uses where the user leaves it open.

    Parameters
    ----------
    lr : float
        The highest learning rate.
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
        """Return what is used without looking at held-out predictions."""
        return cls(
            DEFAULT_LR if isinstance(net.lr, str) else net.lr,
            net.prior_strength,
            resolve_discount(net.discount),
            net.evidence,
        )

    @classmethod
    def default(cls, net: Any) -> "Choice":
        """Return what is tried first where the scale of the logits is set apart.

        That is the paper's method: weighted evidence makes up for logits of the wrong
        scale.
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
        """Return what is used where many labels are wrong.

        Predictions are weighted by how reliable they are, and the label's own evidence
        fades exponentially.
        """
        discount = _LABEL_LEFT ** (1 / schedule_length(net))
        return cls(cls.plain(net).lr, "noisy", discount, "weighted")

    def kept(self, net: Any) -> "Choice":
        """Return what a further call goes on with, whose parameters may be others."""
        plain = Choice.plain(net)
        lr = self.lr if isinstance(net.lr, str) else plain.lr
        same = rule_is_open(net) or net.prior_strength == self.prior_strength
        if not same:
            return replace(plain, lr=lr)
        discount = self.discount if isinstance(net.discount, str) else plain.discount
        evidence = self.evidence if net.evidence == "auto" else net.evidence
        return Choice(lr, self.prior_strength, discount, evidence)


def rule_is_open(net: Any) -> bool:
    """Whether how long labels hold is left to the data."""
    return (net.prior_strength, net.evidence, net.discount) == ("auto",) * 3


def rate_is_open(net: Any) -> bool:
    """Whether the learning rate is left to the data."""
    return isinstance(net.lr, str) and not hasattr(net, "optimizer__lr")


def resolve_discount(discount: float | str) -> float:
    """Return gamma; "auto" is 1, as less was better on no data.

    Parameters
    ----------
    discount : float or "auto"

    Returns
    -------
    float
    """
    return 1.0 if isinstance(discount, str) else float(discount)


def is_weighted(evidence: str, prior_strength: float | str) -> bool:
    """Whether predictions count by how reliable they are.

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
    """How often predictions agreed with the labels given, epoch by epoch.

    Parameters
    ----------
    last : float, default=0.0
        Share in the last epoch; none before the first.
    mean : float, default=0.0
        Mean over the epochs so far. It stays low where labels are hard to learn, even
        if the network knows them by heart in the end.
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
        """Take note of an epoch.

        Parameters
        ----------
        share : float
            Of the training samples (by weight), how many were predicted as labelled,
            in [0, 1].
        """
        self.n_epochs += 1
        self.last = share
        self.mean += (share - self.mean) / self.n_epochs

    def weight(self) -> float:
        """Return what a prediction counts in the next epoch: its signal over its noise.

        Returns
        -------
        float
            The last agreement over the mean disagreement, 5 at most.
        """
        return min(_LARGEST_WEIGHT, self.last / max(1 - self.mean, 1e-9))

    def sharpness(self, least: float = 1.0) -> float:
        """Return what logits are multiplied by before they become evidence.

        Where predictions nearly always agree, what they are unsure of is noise.

        Parameters
        ----------
        least : float, default=1.0
            The sharpness where no prediction has agreed.

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
            As given to :class:`skbsd.BSDClassifier`. A number stands for a least
            sharpness of 1, and no smoothing.
        discount : float, default=1.0
            That of the posterior, gamma.

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
