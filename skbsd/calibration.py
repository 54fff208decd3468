r"""How a fitted network's logits become probabilities that are calibrated.

:class:`skbsd.BSDClassifier` estimates a :class:`Calibration` from predictions of
samples that the network which made them has not seen. The functions here are the
mathematics of it, for logits of any origin.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

__all__ = [
    "Calibration",
    "LabelErrors",
    "fit_calibration",
    "fit_label_errors",
    "fit_temperature",
    "log_losses",
]

# Prior standard deviations of log T and of a class's bias. The first is that of
# best temperatures over data sets; without it, few samples that are all predicted
# right would ask for a temperature near zero.
_SD_LOG_TEMPERATURE = 0.7
_SD_BIAS = 0.25
# Pseudo-observations of right labels, per class, for a transition matrix.
_PSEUDO_COUNT = 3.0
# Entries of a transition matrix below this are no parameters that it needs.
_NEGLIGIBLE = 0.01
_NEWTON_STEPS = 40
# How far a model of label errors must tell the true classes apart.
_LEAST_SEPARATION = 0.4
# How many labels may be wrong, as a share of those that would be if all were drawn.
_MOST_ERRORS = 0.93


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""A map from logits to calibrated ones, and what is known of how it was made.

    With temperature T, bias b and, for labels that are random by nature, a transition
    matrix C, the logits z become

    .. math:: p = \mathrm{softmax}(z / T + b), \qquad
              z' = \log(C^\top p) \;\text{ or }\; z / T + b.

    Parameters
    ----------
    temperature : float, default=1.0
        The temperature T, above 1 for a network that is overconfident [1]_.
    bias : ndarray of shape (n_classes,), default=None
        The bias b, which restores base rates where they were off [2]_; None is zero.
    transition : ndarray of shape (n_classes, n_classes), default=None
        The matrix C, whose row i holds the probabilities of what a label of class i is
        given as. None is the identity.
    applies_transition : bool, default=False
        Whether predictions are of labels as they are given, errors included, or of
        true labels.
    noise_rate : float, default=0.0
        Share of the labels that differ from the true ones, in [0, 1].
    noise_rate_interval : tuple of float, default=(0.0, 0.0)
        Its 95 % interval, for sampling alone.
    method : {"none", "cross-fit", "hold-out"}, default="none"
        Where the predictions came from.
    n_folds : int, default=0
        Networks trained besides the final one.
    n_epochs : int, default=0
        How long each of these was trained.
    n_samples : int, default=0
        Predictions that the map was estimated from.
    seconds : float, default=0.0
        What it took.
    log_loss_before, log_loss_after : float, default=None
        Mean log loss of these predictions, against the labels given.

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
            Logits whose softmax is calibrated; the same ones where there is nothing to
            do.
        """
        logits = self.scaled(logits)
        if self.transition is None or not self.applies_transition:
            return logits
        matrix = torch.as_tensor(self.transition, dtype=logits.dtype)
        return _given(logits.log_softmax(dim=1), matrix.to(logits.device).log())

    def scaled(self, logits: Tensor) -> Tensor:
        """Apply temperature and bias alone: logits of the true labels.

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
        return logits + torch.as_tensor(self.bias).to(logits)


class LabelErrors(NamedTuple):
    """Calibration and label noise, estimated together.

    Parameters
    ----------
    temperature : float
        The temperature T.
    bias : ndarray of shape (n_classes,) or None
        The bias b.
    transition : ndarray of shape (n_classes, n_classes) or None
        The matrix C; None where the labels are best explained without errors.
    rate : float
        Share of the labels that are wrong.
    separation : float
        How far the true classes can be told apart: 1 where the predictions are certain,
        0 where they are no more so than those of the most frequent class.

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
    matters where errors are few: without it, predictions that are all right would ask
    for T = 0.

    Parameters
    ----------
    logits : Tensor of shape (..., n, n_classes)
        Of any number of predictors, which are fitted at once.
    labels : Tensor of shape (n,)
        Class indices.
    sample_weight : Tensor of shape (n,), default=None
        Weights, whose sum counts as the number of samples.

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
    index = labels.expand(z.shape[:-1])[..., None]
    own = z.gather(-1, index)[..., 0]
    precision = 1 / _SD_LOG_TEMPERATURE**2
    u = torch.zeros(z.shape[:-2]).to(z)  # log of 1 / T
    for _ in range(_NEWTON_STEPS):
        beta = u.exp()
        proba = (z * beta[..., None, None]).softmax(dim=-1)
        mean = (proba * z).sum(dim=-1)
        variance = (proba * z.square()).sum(dim=-1) - mean.square()
        slope = beta * ((mean - own) * weight).sum(dim=-1) + precision * u
        curvature = beta.square() * (variance * weight).sum(dim=-1) + precision
        step = (slope / curvature).clamp(-1, 1)
        u = u - step
        if step.abs().max() < 1e-9:
            break
    return (-u).exp()


def fit_calibration(
    logits: Tensor, labels: Tensor, sample_weight: Tensor | None = None
) -> tuple[float, np.ndarray | None]:
    r"""Estimate temperature and, where it pays, a bias.

    The bias b has a normal prior of standard deviation 0.25, and is used where it
    raises the log likelihood by more than its K - 1 parameters (Akaike's criterion).

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Of samples that the network was not trained on.
    labels : Tensor of shape (n,)
        Class indices.
    sample_weight : Tensor of shape (n,), default=None
        Weights, whose sum counts as the number of samples.

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
    fitted = _Likelihood(logits, labels, sample_weight).calibration()
    return fitted.temperature, fitted.bias


def fit_label_errors(
    logits: Tensor, labels: Tensor, sample_weight: Tensor | None = None
) -> LabelErrors:
    r"""Estimate calibration and label noise together, by maximum likelihood.

    A label given is j with probability :math:`\sum_k p_k C_{kj}`, where
    p = softmax(z / T + b) is of the true class and C the transition matrix [1]_. Three
    models are compared by Schwarz's criterion (BIC): no errors; errors to all classes
    alike, :math:`C = (1 - e) I + e / K`; a matrix of its own, regularised by three
    right labels per class, whose entries above 0.01 count as parameters.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Of samples that the network was not trained on.
    labels : Tensor of shape (n,)
        Class indices, as given.
    sample_weight : Tensor of shape (n,), default=None
        Weights, whose sum counts as the number of samples.

    Returns
    -------
    LabelErrors
        Of the model that was chosen.

    Notes
    -----
    Labels that are wrong and labels that are random by nature have the same
    likelihood: what is estimated here can be either.

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
    return _Likelihood(logits, labels, sample_weight).with_errors()


class _Fitted(NamedTuple):
    """Parameters at the maximum, with the penalised log likelihood."""

    temperature: float
    bias: np.ndarray | None
    transition: np.ndarray | None
    likelihood: float


class _Likelihood:
    """The penalised likelihood of labels, given logits, and its maxima.

    Parameters
    ----------
    logits, labels, sample_weight : Tensor
        As in `fit_calibration`.
    """

    def __init__(self, logits: Tensor, labels: Tensor, sample_weight: Tensor | None):
        z = logits.detach().cpu().double().numpy()
        self.z = z - z.max(axis=1, keepdims=True)
        self.labels = labels.cpu().numpy()
        self.n, self.n_classes = z.shape
        self.given = np.eye(self.n_classes)[self.labels]
        self.weight = np.ones(self.n)
        if sample_weight is not None:
            self.weight = sample_weight.cpu().double().numpy()
        self.size = float(self.weight.sum())

    def calibration(self) -> _Fitted:
        """Fit temperature, and a bias where it pays."""
        weight = torch.from_numpy(self.weight)
        z, labels = torch.from_numpy(self.z), torch.from_numpy(self.labels)
        log_t = math.log(float(fit_temperature(z, labels, weight)))
        plain = self._fitted(np.array([log_t]), _Model(self.n_classes, False, "none"))
        if self.size < 10 * self.n_classes:
            return plain  # too few samples to tell
        biased = self._maximise(plain, with_bias=True, errors="none")
        pays = biased.likelihood - plain.likelihood > self.n_classes - 1
        return biased if pays else plain

    def with_errors(self) -> LabelErrors:
        """Choose among no errors, symmetric ones and a transition matrix."""
        clean = self.calibration()
        with_bias = clean.bias is not None
        price = math.log(max(self.size, 2.0)) / 2  # of a parameter
        best, best_score = clean, clean.likelihood
        candidates = ["symmetric"]
        if 2 < self.n_classes <= 100 and self.size >= 20 * self.n_classes:
            candidates.append("matrix")
        for errors in candidates:
            fitted = self._maximise(clean, with_bias=with_bias, errors=errors)
            n_parameters = 1
            if errors == "matrix":
                big = np.asarray(fitted.transition) > _NEGLIGIBLE
                n_parameters = int(big.sum()) - self.n_classes
            score = fitted.likelihood - price * n_parameters
            if score > best_score + price and self._tells_apart(fitted):
                best, best_score = fitted, score
        return self._described(best)

    def _tells_apart(self, fitted: _Fitted) -> bool:
        """Whether a model sees through the labels, and does not only give them up.

        Labels that nothing predicts are all wrong, or none is.
        """
        shares = self.weight @ self.given / self.size
        drawn_at_random = 1 - shares @ shares
        found = self._described(fitted)
        sees = found.rate < _MOST_ERRORS * drawn_at_random
        return bool(sees and found.separation > _LEAST_SEPARATION)

    def _described(self, fitted: _Fitted) -> LabelErrors:
        share = self.weight / self.size
        proba = _softmax(self.z / fitted.temperature + _or_zero(fitted.bias))
        base = float((share @ self.given).max())
        certainty = float(share @ proba.max(axis=1))
        separation = (certainty - base) / max(1 - base, 1e-9)
        rate = 0.0
        if fitted.transition is not None:
            rate = float(share @ (1 - proba @ np.diagonal(fitted.transition)))
        return LabelErrors(
            fitted.temperature, fitted.bias, fitted.transition, rate, separation
        )

    def _maximise(self, start: _Fitted, *, with_bias: bool, errors: str) -> _Fitted:
        """Fit by L-BFGS, from few errors and from many: there are several maxima."""
        model = _Model(self.n_classes, with_bias, errors)
        shares = {"none": (0.0,), "symmetric": (0.1,), "matrix": (0.3,)}[errors]
        found = [
            minimize(
                self._objective,
                model.start(start, share),
                args=(model,),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": 60, "ftol": 1e-7},
            )
            for share in shares
        ]
        return self._fitted(min(found, key=lambda result: result.fun).x, model)

    def _fitted(self, values: np.ndarray, model: "_Model") -> _Fitted:
        log_t, bias, transition = model.parts(values)
        return _Fitted(
            math.exp(log_t),
            bias if model.with_bias else None,
            transition,
            -self._objective(values, model)[0],
        )

    def _objective(
        self, values: np.ndarray, model: "_Model"
    ) -> tuple[float, np.ndarray]:
        """Return the penalised negative log likelihood, and its gradient.

        With the probability r of each true class given the label, the derivative in
        the logits is r - p, and in C the expected counts of pairs.
        """
        log_t, bias, transition = model.parts(values)
        scaled = self.z * math.exp(-log_t)
        proba = _softmax(scaled + bias)
        rows = np.arange(self.n)
        if transition is None:
            given = proba[rows, self.labels]
            posterior = self.given
        else:
            joint = proba * transition.T[self.labels]
            given = joint.sum(axis=1)
            posterior = joint / np.maximum(given, 1e-300)[:, None]
        weighted = self.weight[:, None] * (posterior - proba)
        loss = -self.weight @ np.log(np.maximum(given, 1e-300))
        loss += (log_t / _SD_LOG_TEMPERATURE) ** 2 / 2
        slopes = [
            np.array([(weighted * scaled).sum() + log_t / _SD_LOG_TEMPERATURE**2])
        ]
        if model.with_bias:
            loss += ((bias / _SD_BIAS) ** 2).sum() / 2
            slopes.append(bias / _SD_BIAS**2 - weighted.sum(axis=0))
        if transition is not None:
            pairs = posterior.T @ (self.weight[:, None] * self.given)
            extra, slope = model.errors_of(transition, pairs)
            loss += extra
            slopes.append(slope)
        return float(loss), np.concatenate(slopes)


class _Model(NamedTuple):
    """Which parameters a model of labels has, as one vector.

    Parameters
    ----------
    n_classes : int
    with_bias : bool
    errors : {"none", "symmetric", "matrix"}
    """

    n_classes: int
    with_bias: bool
    errors: str

    def start(self, fitted: _Fitted, share: float) -> np.ndarray:
        """Return where the search begins, with a share of errors.

        The more labels are wrong, the surer are predictions of the true ones.
        """
        k = self.n_classes
        values = [np.array([math.log(fitted.temperature * (1 - share) ** 2)])]
        if self.with_bias:
            values.append(np.zeros(k) if fitted.bias is None else fitted.bias)
        if self.errors == "symmetric":
            values.append(np.array([math.log(share)]))
        elif self.errors == "matrix":
            off = math.log(share / (k - 1) / (1 - share))
            values.append(np.where(np.eye(k, dtype=bool), 0.0, off).ravel())
        return np.concatenate(values)

    def parts(self, values: np.ndarray) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Return log T, b and C."""
        k = self.n_classes
        bias = np.zeros(k)
        rest = values[1:]
        if self.with_bias:
            bias, rest = rest[:k], rest[k:]
        if self.errors == "none":
            return values[0], bias, None
        if self.errors == "symmetric":
            share = 1 / (1 + math.exp(-rest[0]))
            return values[0], bias, (1 - share) * np.eye(k) + share / k
        return values[0], bias, _softmax(rest.reshape(k, k))

    def errors_of(
        self, transition: np.ndarray, pairs: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Return the penalty of C, and the gradient in what it is made of.

        Parameters
        ----------
        transition : ndarray of shape (n_classes, n_classes)
            C.
        pairs : ndarray of shape (n_classes, n_classes)
            Expected counts of true class and label given.
        """
        k = self.n_classes
        if self.errors == "symmetric":
            share = transition[0, 1] * k
            ratio = pairs / transition
            by_share = ratio.sum() / k - np.trace(ratio)
            return 0.0, np.array([-by_share * share * (1 - share)])
        right = np.diagonal(transition)
        counts = pairs + _PSEUDO_COUNT * np.eye(k)
        slope = transition * counts.sum(axis=1, keepdims=True) - counts
        return -_PSEUDO_COUNT * float(
            np.log(np.maximum(right, 1e-300)).sum()
        ), slope.ravel()


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _or_zero(bias: np.ndarray | None) -> np.ndarray | float:
    return 0.0 if bias is None else bias


def _given(log_proba: Tensor, log_transition: Tensor) -> Tensor:
    """Return log probabilities of the labels given, from those of the true ones."""
    columns = [
        (log_proba + log_transition[:, j]).logsumexp(dim=1)
        for j in range(log_proba.shape[1])
    ]
    return torch.stack(columns, dim=1)
