"""How long labels hold and what predictions count, where the user leaves it open.

The rules were chosen by measurement; docs/evidence.md shows what else was tried. They
go beyond the paper, in which c is a number and each prediction counts 1.
"""

from dataclasses import dataclass
from typing import NamedTuple


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
    known = BUDGETS[prior_strength]
    return max(known.least, known.per_epoch * max_epochs)


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
    >>> agreement.evidence_weight()
    2.0
    >>> round(agreement.temperature(), 2)
    0.86
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

    def evidence_weight(self) -> float:
        """Return what a prediction counts in the next epoch: its signal over its noise.

        Returns
        -------
        float
            The last agreement over the mean disagreement, 5 at most.
        """
        return min(_LARGEST_WEIGHT, self.last / max(1 - self.mean, 1e-9))

    def temperature(self, sharpness: float = 1.0) -> float:
        """Return what logits are divided by, before they enter the posterior.

        Where predictions nearly always agree, what they are unsure of is noise.

        Parameters
        ----------
        sharpness : float, default=1.0
            The least that they are multiplied with, s.

        Returns
        -------
        float
            1 / (s + 0.1 times the odds of the mean agreement), 0.1 at least.
        """
        odds = self.mean / max(1 - self.mean, 1e-9)
        return 1 / min(_LARGEST_SHARPNESS, sharpness + _SHARPNESS_PER_ODDS * odds)

    def rule(self, prior_strength: float | str) -> dict[str, float]:
        """Return what the next epoch's predictions do to beliefs and targets.

        Parameters
        ----------
        prior_strength : float or {"auto", "noisy"}
            As given to :class:`skbsd.BSDClassifier`. A number stands for no more
            sharpness than 1, and no smoothing.

        Returns
        -------
        dict of str to float
            Arguments of :meth:`skbsd.posterior.DirichletPosterior.step`.
        """
        known = budget(prior_strength)
        return {
            "evidence_weight": self.evidence_weight(),
            "temperature": self.temperature(known.sharpness),
            "smoothing": known.smoothing * (1 - self.mean) ** 2,
        }
