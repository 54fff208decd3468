r"""How a fitted network's logits become calibrated probabilities.

:class:`skbsd.BSDClassifier` estimates a :class:`Calibration` from held-out predictions.
The functions of this module estimate one from the logits of any classifier.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._label_model import SD_LOG_TEMPERATURE, Likelihood

__all__ = [
    "Calibration",
    "LabelErrors",
    "fit_calibration",
    "fit_label_errors",
    "fit_temperature",
    "log_losses",
]

_STEPS = 60


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""A map from logits to calibrated logits, and facts about its estimation.

    With temperature T, bias b and, for labels that are random by nature, a transition
    matrix C, the logits z become

    .. math:: p = \mathrm{softmax}(z / T + b), \qquad
              z' = \log(C^\top p) \;\text{ or }\; z / T + b.

    Parameters
    ----------
    temperature : float, default=1.0
        The temperature T, above 1 for a network that is overconfident [1]_.
    bias : ndarray of shape (n_classes,), default=None
        The bias b, which corrects base rates [2]_; None is zero.
    transition : ndarray of shape (n_classes, n_classes), default=None
        The matrix C. Entry (i, j) is the probability that a sample of class i has the
        label j. None is the identity.
    applies_transition : bool, default=False
        Whether predictions are of the given labels, including their errors, or of the
        true labels.
    noise_rate : float, default=0.0
        Fraction of the labels that differ from the true ones, in [0, 1].
    noise_rate_interval : tuple of float, default=(0.0, 0.0)
        Its 95 % interval, which covers sampling error only.
    method : {"none", "cross-fit", "hold-out"}, default="none"
        How the held-out predictions were obtained.
    n_folds : int, default=0
        Number of networks that were trained in addition to the final one.
    n_epochs : int, default=0
        Number of epochs of each of these.
    n_samples : int, default=0
        Number of held-out predictions that the map was estimated from.
    seconds : float, default=0.0
        Duration of the estimation, including the training of fold networks.
    log_loss_of_frequencies : float, default=None
        Log loss of predicting the class frequencies for every sample.
    log_loss_before, log_loss_after : float, default=None
        Mean log loss of the held-out predictions with respect to the given labels,
        before and after calibration.

    See Also
    --------
    fit_calibration : Estimates one.

    References
    ----------
    .. [1] C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    .. [2] A. Alexandari et al., "Maximum Likelihood with Bias-Corrected Calibration is
       Hard-To-Beat at Label Shift Adaptation", ICML 2020.

    Examples
    --------
    >>> import torch
    >>> from skbsd.calibration import Calibration
    >>> Calibration(temperature=2.0)(torch.tensor([[1.0, -1.0]]))
    tensor([[ 0.5000, -0.5000]])
    """

    temperature: float = 1.0
    bias: np.ndarray | None = None
    transition: np.ndarray | None = field(default=None, repr=False)
    applies_transition: bool = False
    noise_rate: float = 0.0
    noise_rate_interval: tuple[float, float] = (0.0, 0.0)
    method: str = "none"
    n_folds: int = 0
    n_epochs: int = 0
    n_samples: int = 0
    seconds: float = 0.0
    log_loss_of_frequencies: float | None = None
    log_loss_before: float | None = None
    log_loss_after: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Calibrate logits.

        Parameters
        ----------
        logits : Tensor of shape (n, n_classes)
            As a network returns them.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Logits whose softmax is calibrated; the same tensor for the identity map.
        """
        logits = self.scaled(logits)
        if self.transition is None or not self.applies_transition:
            return logits
        matrix = torch.as_tensor(self.transition, dtype=logits.dtype)
        return _given(logits.log_softmax(dim=1), matrix.to(logits.device))

    def scaled(self, logits: Tensor) -> Tensor:
        """Apply temperature and bias only, which gives logits of the true labels.

        Parameters
        ----------
        logits : Tensor of shape (n, n_classes)
            As a network returns them.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Logits of true labels.
        """
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.bias is None:
            return logits
        # NumPy converts so few numbers in less time than torch.
        kind = np.float32 if logits.dtype == torch.float32 else np.float64
        return logits + torch.from_numpy(self.bias.astype(kind)).to(logits)


class LabelErrors(NamedTuple):
    """Calibration and label noise, estimated together.

    Parameters
    ----------
    temperature : float
        The temperature T.
    bias : ndarray of shape (n_classes,) or None
        The bias b.
    transition : ndarray of shape (n_classes, n_classes) or None
        The matrix C; None if a model without errors explains the labels best.
    rate : float
        Fraction of wrong labels, in [0, 1].
    separation : float
        How well the true classes are separated: 1 if all predictions are certain, 0 if
        they are no more confident than predicting the most frequent class.

    See Also
    --------
    fit_label_errors : Estimates them.

    Examples
    --------
    >>> from skbsd.calibration import LabelErrors
    >>> LabelErrors(1.0, None, None, rate=0.0, separation=0.9).rate
    0.0
    """

    temperature: float
    bias: np.ndarray | None
    transition: np.ndarray | None
    rate: float
    separation: float


def log_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the log loss of each sample.

    Parameters
    ----------
    logits : Tensor of shape (..., n, n_classes)
        Of any number of predictors.
    labels : Tensor of shape (n,)
        Class indices.

    Returns
    -------
    Tensor of shape (..., n)
        Negative log probabilities.

    Examples
    --------
    >>> import torch
    >>> from skbsd.calibration import log_losses
    >>> log_losses(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """
    index = labels.expand(logits.shape[:-1])[..., None]
    return logits.logsumexp(dim=-1) - logits.gather(-1, index)[..., 0]


def fit_temperature(
    logits: Tensor, labels: Tensor, sample_weight: Tensor | None = None
) -> Tensor:
    r"""Estimate the temperature of each of several predictors.

    The T that minimises :math:`\sum_i w_i \, \mathrm{NLL}(z_i / T, y_i)
    + \tfrac12 (\log T / 0.7)^2` [1]_, by Fisher scoring in log T. The second term
    matters if errors are few: without it, predictions that are all correct would lead
    to T = 0.

    Parameters
    ----------
    logits : Tensor of shape (..., n, n_classes)
        Of any number of predictors, which are fitted at once.
    labels : Tensor of shape (n,)
        Class indices.
    sample_weight : Tensor of shape (n,), default=None
        Weights; their sum is used as the number of samples.

    Returns
    -------
    Tensor of shape (...)
        A temperature for each predictor, in double precision.

    References
    ----------
    .. [1] C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Examples
    --------
    >>> import torch
    >>> from skbsd.calibration import fit_temperature
    >>> logits = torch.tensor([[4.0, 0.0]]).repeat(10_000, 1)
    >>> labels = torch.tensor([0] * 7311 + [1] * 2689)  # of odds e to 1
    >>> round(float(fit_temperature(logits, labels)), 1)
    4.0
    """
    z = logits.double() - logits.double().amax(dim=-1, keepdim=True)
    weight = torch.ones(len(labels)).to(z) if sample_weight is None else sample_weight
    weight = weight.to(z)
    own = z.gather(-1, labels.expand(z.shape[:-1])[..., None])[..., 0]
    precision = 1 / SD_LOG_TEMPERATURE**2
    u = torch.zeros(z.shape[:-2]).to(z)  # log of 1 / T
    step, lowest = torch.zeros_like(u), torch.full_like(u, math.inf)
    for _ in range(_STEPS):
        beta = u.exp()
        scaled = z * beta[..., None, None]
        losses = scaled.logsumexp(dim=-1) - own * beta[..., None]
        loss = losses @ weight + precision * u.square() / 2
        # If a step has increased the loss, take half of it back and try again.
        up = loss > lowest
        proba = scaled.softmax(dim=-1)
        mean = (proba * z).sum(dim=-1)
        variance = (proba * z.square()).sum(dim=-1) - mean.square()
        slope = beta * ((mean - own) @ weight) + precision * u
        curvature = beta.square() * (variance @ weight) + precision
        newton = (slope / curvature).clamp(-1, 1)
        step = torch.where(up, -step / 2, newton)
        lowest = torch.where(up, lowest, loss)
        u = u - step
        if step.abs().max() < 1e-7:
            break
    return (-u).exp()


def fit_calibration(
    logits: Tensor, labels: Tensor, sample_weight: Tensor | None = None
) -> tuple[float, np.ndarray | None]:
    r"""Estimate a temperature and, if it improves the fit enough, a bias.

    The bias b has a normal prior of standard deviation 0.25. It is used if it raises
    the log likelihood by more than its K - 1 parameters (Akaike's criterion).

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Of samples that the network was not trained on.
    labels : Tensor of shape (n,)
        Class indices.
    sample_weight : Tensor of shape (n,), default=None
        Weights; their sum is used as the number of samples.

    Returns
    -------
    temperature : float
        The temperature T.
    bias : ndarray of shape (n_classes,) or None
        The bias b.

    Examples
    --------
    >>> import torch
    >>> from skbsd.calibration import fit_calibration
    >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(500, 1)
    >>> labels = torch.tensor([0] * 900 + [1] * 100)
    >>> temperature, bias = fit_calibration(logits, labels)
    >>> bool(bias[0] > bias[1])
    True
    """
    temperature = fit_temperature(logits, labels, sample_weight)
    likelihood = Likelihood(logits, labels, sample_weight)
    fitted = likelihood.with_bias_where_it_pays(float(temperature))
    return fitted.temperature, fitted.bias


def fit_label_errors(
    logits: Tensor,
    labels: Tensor,
    sample_weight: Tensor | None = None,
    *,
    suspected: bool = False,
) -> LabelErrors:
    r"""Estimate calibration and label noise together, by maximum likelihood.

    A given label is j with probability :math:`\sum_k p_k C_{kj}`, where
    p = softmax(z / T + b) is the distribution of the true class and C the transition
    matrix [1]_. Three models are compared by Schwarz's criterion (BIC): no errors;
    symmetric errors, :math:`C = (1 - e) I + e / K`; and a general matrix, regularised
    by three correct pseudo-labels per class, whose entries above 0.01 are counted as
    parameters.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Of samples that the network was not trained on.
    labels : Tensor of shape (n,)
        Class indices, as given.
    sample_weight : Tensor of shape (n,), default=None
        Weights; their sum is used as the number of samples.
    suspected : bool, default=False
        Whether errors are the likely explanation of labels that contradict predictions,
        as with images. Symmetric errors then need less evidence, and less confident
        predictions.

    Returns
    -------
    LabelErrors
        The estimates of the selected model.

    Notes
    -----
    Wrong labels and labels that are random by nature have the same likelihood, so the
    estimate cannot distinguish them.

    References
    ----------
    .. [1] G. Patrini et al., "Making Deep Neural Networks Robust to Label Noise",
       CVPR 2017.

    Examples
    --------
    >>> import torch
    >>> from skbsd.calibration import fit_label_errors
    >>> true = torch.arange(1000) % 4
    >>> given = torch.where(torch.arange(1000) % 5 == 0, (true + 1 + true // 2) % 4,
    ...                     true)
    >>> logits = 6.0 * torch.nn.functional.one_hot(true) + torch.randn(
    ...     1000, 4, generator=torch.Generator().manual_seed(0))
    >>> round(fit_label_errors(logits, given).rate, 1)
    0.2
    """
    temperature = fit_temperature(logits, labels, sample_weight)
    likelihood = Likelihood(logits, labels, sample_weight)
    fitted = likelihood.with_errors(float(temperature), suspected=suspected)
    rate, separation = likelihood.rate_and_separation(fitted)
    return LabelErrors(
        fitted.temperature, fitted.bias, fitted.transition, rate, separation
    )


def _given(log_proba: Tensor, transition: Tensor) -> Tensor:
    """Return log probabilities of the given labels, from those of the true labels."""
    largest = log_proba.amax(dim=1, keepdim=True)
    given = (log_proba - largest).exp() @ transition
    return given.clamp_min(torch.finfo(given.dtype).tiny).log() + largest
