"""Maximum likelihood estimation from logits and labels that may be wrong."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax
from torch import Tensor

# Prior standard deviations of log T and of a class's bias. The first is that of the
# best temperatures over data sets. Without it, a small sample that is predicted without
# an error would lead to a temperature near zero.
SD_LOG_TEMPERATURE = 0.7
SD_BIAS = 0.25
# Pseudo-observations of correct labels, per class, for a transition matrix.
_RIGHT_LABELS = 3.0
# Entries of a transition matrix up to this are not counted as parameters.
_NEGLIGIBLE = 0.01
# Minimum separation of the true classes for a model of label errors.
_LEAST_SEPARATION = 0.4
_LEAST_IF_SUSPECTED = 0.1
# Maximum error rate, relative to that of labels drawn at random.
_MOST_ERRORS = 0.93
# A matrix has the square of the number of classes as parameters.
MOST_CLASSES = 100
LEAST_PER_CLASS = 20
_TINY = 1e-300


class Fitted(NamedTuple):
    """Parameters at the maximum, with the penalised log likelihood."""

    temperature: float
    bias: np.ndarray | None
    transition: np.ndarray | None
    likelihood: float


class Likelihood:
    """The penalised likelihood of labels given logits, and its maximisation.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    labels : Tensor of shape (n,)
    sample_weight : Tensor of shape (n,) or None
    """

    def __init__(self, logits: Tensor, labels: Tensor, sample_weight: Tensor | None):
        z = logits.detach().cpu().double().numpy()
        self.z = z - z.max(axis=1, keepdims=True)
        self.labels = labels.cpu().numpy()
        self.n, self.n_classes = z.shape
        self.weight = np.ones(self.n)
        if sample_weight is not None:
            self.weight = sample_weight.cpu().double().numpy()
        self.size = float(self.weight.sum())
        counts = np.bincount(self.labels, self.weight, minlength=self.n_classes)
        self.shares = counts / self.size

    def with_bias_where_it_pays(self, temperature: float) -> Fitted:
        """Return the temperature, and a bias if it raises the likelihood by enough.

        Parameters
        ----------
        temperature : float
            The best temperature without a bias.
        """
        start = np.array([math.log(temperature)])
        plain = self._fitted(start, Model(self.n_classes, False, "none"))
        if self.size < 10 * self.n_classes:
            return plain  # too few samples to tell
        biased = self._maximise(plain, with_bias=True, errors="none")
        pays = biased.likelihood - plain.likelihood > self.n_classes - 1
        return biased if pays else plain

    def with_errors(self, temperature: float, *, suspected: bool = False) -> Fitted:
        """Choose among no errors, symmetric errors and a transition matrix.

        Parameters
        ----------
        temperature : float
            The best temperature without errors.
        suspected : bool, default=False
            Whether symmetric errors need less evidence.
        """
        clean = self.with_bias_where_it_pays(temperature)
        with_bias = clean.bias is not None
        price = math.log(max(self.size, 2.0)) / 2  # per parameter, of the BIC
        best, best_score = clean, clean.likelihood
        candidates = ["symmetric"]
        enough = self.size >= LEAST_PER_CLASS * self.n_classes
        if 2 < self.n_classes <= MOST_CLASSES and enough:
            candidates.append("matrix")
        for errors in candidates:
            fitted = self._maximise(clean, with_bias=with_bias, errors=errors)
            n_parameters = 1 if errors == "symmetric" else self._n_entries(fitted)
            score = fitted.likelihood - price * n_parameters
            lenient = suspected and errors == "symmetric"
            gain = score - best_score - (0 if lenient else price)
            if gain > 0 and self._tells_apart(fitted, lenient=lenient):
                best, best_score = fitted, score
        return best

    def rate_and_separation(self, fitted: Fitted) -> tuple[float, float]:
        """Return the fraction of wrong labels, and the separation of the true classes.

        Parameters
        ----------
        fitted : Fitted
        """
        share = self.weight / self.size
        bias = 0.0 if fitted.bias is None else fitted.bias
        proba = softmax(self.z / fitted.temperature + bias, axis=1)
        base = float(self.shares.max())
        certainty = float(share @ proba.max(axis=1))
        separation = (certainty - base) / max(1 - base, 1e-9)
        if fitted.transition is None:
            return 0.0, separation
        rate = float(share @ (1 - proba @ np.diagonal(fitted.transition)))
        return rate, separation

    def _n_entries(self, fitted: Fitted) -> int:
        """Return how many off-diagonal entries are larger than one sample's share."""
        matrix = np.array(fitted.transition)
        np.fill_diagonal(matrix, 0.0)
        return int((matrix > min(_NEGLIGIBLE, self.n_classes / self.size)).sum())

    def _tells_apart(self, fitted: Fitted, *, lenient: bool) -> bool:
        """Whether a model identifies the true classes behind the wrong labels.

        For labels that cannot be predicted, a model may call all of them wrong.
        """
        drawn_at_random = 1 - self.shares @ self.shares
        rate, separation = self.rate_and_separation(fitted)
        sees = rate < _MOST_ERRORS * drawn_at_random
        least = _LEAST_IF_SUSPECTED if lenient else _LEAST_SEPARATION
        return bool(sees) and separation > least

    def _maximise(self, start: Fitted, *, with_bias: bool, errors: str) -> Fitted:
        """Fit by L-BFGS."""
        model = Model(self.n_classes, with_bias, errors)
        found = minimize(
            self.objective,
            model.start(start),
            args=(model,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 60, "ftol": 1e-7},
        )
        return self._fitted(found.x, model)

    def _fitted(self, values: np.ndarray, model: "Model") -> Fitted:
        log_t, bias, transition = model.parts(values)
        return Fitted(
            math.exp(log_t),
            bias if model.with_bias else None,
            transition,
            -self.objective(values, model)[0],
        )

    def objective(self, values: np.ndarray, model: "Model") -> tuple[float, np.ndarray]:
        """Return the penalised negative log likelihood, and its gradient.

        With the posterior probability r of each true class given the label, the
        derivative with respect to the logits is r - p, and that with respect to C
        follows from the expected counts of pairs.

        Parameters
        ----------
        values : ndarray of shape (n_parameters,)
        model : Model
            The meaning of the values.
        """
        log_t, bias, transition = model.parts(values)
        scaled = self.z * math.exp(-log_t)
        proba = softmax(scaled + bias, axis=1)
        rows = np.arange(self.n)
        if transition is None:
            given = proba[rows, self.labels]
            true = np.zeros_like(proba)
            true[rows, self.labels] = 1
        else:
            joint = proba * transition.T[self.labels]
            given = joint.sum(axis=1)
            true = joint / np.maximum(given, _TINY)[:, None]
        weighted = self.weight[:, None] * (true - proba)
        loss = -self.weight @ np.log(np.maximum(given, _TINY))
        loss += (log_t / SD_LOG_TEMPERATURE) ** 2 / 2
        slopes = [np.array([(weighted * scaled).sum() + log_t / SD_LOG_TEMPERATURE**2])]
        if model.with_bias:
            loss += ((bias / SD_BIAS) ** 2).sum() / 2
            slopes.append(bias / SD_BIAS**2 - weighted.sum(axis=0))
        if transition is None:
            return float(loss), np.concatenate(slopes)
        if model.errors == "symmetric":
            right = self.weight @ true[rows, self.labels]
            slopes.append(model.slope_of_share(transition, right, self.size - right))
        else:
            labels = np.eye(self.n_classes)[self.labels] * self.weight[:, None]
            extra, slope = model.slope_of_matrix(transition, true.T @ labels)
            loss += extra
            slopes.append(slope)
        return float(loss), np.concatenate(slopes)


class Model(NamedTuple):
    """A model of labels, whose parameters form one vector.

    Parameters
    ----------
    n_classes : int
    with_bias : bool
    errors : {"none", "symmetric", "matrix"}
    """

    n_classes: int
    with_bias: bool
    errors: str

    def start(self, fitted: Fitted) -> np.ndarray:
        """Return the initial values of the optimisation.

        The more labels are wrong, the more confident are predictions of the true ones.
        """
        k = self.n_classes
        share = {"none": 0.0, "symmetric": 0.1, "matrix": 0.3}[self.errors]
        values = [np.array([math.log(fitted.temperature * (1 - share) ** 2)])]
        if self.with_bias:
            values.append(np.zeros(k) if fitted.bias is None else fitted.bias)
        if self.errors == "symmetric":
            values.append(np.array([math.log(share / (1 - share))]))
        elif self.errors == "matrix":
            off = math.log(share / (k - 1) / (1 - share))
            values.append(np.where(np.eye(k, dtype=bool), 0.0, off).ravel())
        return np.concatenate(values)

    def parts(self, values: np.ndarray) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Return log T, b and C."""
        k = self.n_classes
        bias, rest = np.zeros(k), values[1:]
        if self.with_bias:
            bias, rest = rest[:k], rest[k:]
        if self.errors == "none":
            return values[0], bias, None
        if self.errors == "symmetric":
            share = 1 / (1 + math.exp(-rest[0]))
            return values[0], bias, (1 - share) * np.eye(k) + share / k
        return values[0], bias, softmax(rest.reshape(k, k), axis=1)

    def slope_of_share(
        self, transition: np.ndarray, right: float, wrong: float
    ) -> np.ndarray:
        """Return the gradient with respect to the logit of the error rate.

        Parameters
        ----------
        transition : ndarray of shape (n_classes, n_classes)
        right, wrong : float
            Expected counts of correct and of wrong labels.
        """
        share = transition[0, 1] * self.n_classes
        stays = right / max(transition[0, 0], _TINY)
        others = wrong / max(transition[0, 1], _TINY)
        by_share = (stays + others) / self.n_classes - stays
        return np.array([-by_share * share * (1 - share)])

    def slope_of_matrix(
        self, transition: np.ndarray, pairs: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Return the penalty of C, and the gradient with respect to its logits.

        Parameters
        ----------
        transition : ndarray of shape (n_classes, n_classes)
        pairs : ndarray of shape (n_classes, n_classes)
            Expected counts of pairs of true class and given label.
        """
        right = np.maximum(np.diagonal(transition), _TINY)
        counts = pairs + _RIGHT_LABELS * np.eye(self.n_classes)
        slope = transition * counts.sum(axis=1, keepdims=True) - counts
        return -_RIGHT_LABELS * float(np.log(right).sum()), slope.ravel()
