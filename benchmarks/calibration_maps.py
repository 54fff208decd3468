"""Maps from logits to probabilities that were considered for the calibration.

On the tasks with correct labels of the tuning panel of `calibration.py`, a network is
trained by the paper's method. The map is fitted to out-of-fold predictions of two
networks, each trained on half of the data for half of the epochs with half of the prior
strength:

- temperature: one number, the reference;
- bias: temperature and a bias, if Akaike's criterion favours it (the default);
- vector: a slope and a bias per class, with normal priors of standard deviation 0.25;
- isotonic: a monotone function per class, renormalised, after the temperature;
- ensemble: the mean prediction of both fold networks and the final one. Its temperature
  is fitted to its test predictions, and so is that of its reference: an optimistic
  comparison.

The script prints the ratio of the test log loss to that of the reference; values below
1 are better. It takes two minutes on one core.

    python benchmarks/calibration_maps.py --seeds 0 1
"""

import argparse

import numpy as np
import torch
from _tables import PANELS, load
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from skbsd import BSDClassifier
from skbsd.calibration import Calibration, fit_calibration, fit_temperature

EPOCHS = 40
SPREAD = 0.25  # standard deviation of the priors of slopes and biases


def logits_of(X, y, tests, *, epochs: int, strength: float, seed: int):
    """Train a network; return its logits of each test set."""
    model = BSDClassifier(
        calibration=None,
        prior_strength=strength,
        max_epochs=epochs,
        random_state=seed,
        device="cpu",
    ).fit(X, y)
    return [np.concatenate([z.numpy() for z in model.forward_iter(t)]) for t in tests]


def fit_vector(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a slope and a bias per class by maximum a posteriori."""
    n_classes = z.shape[1]
    labels = np.eye(n_classes)[y]

    def loss(values):
        slopes, bias = np.exp(values[:n_classes]), values[n_classes:]
        log_proba = log_softmax(z * slopes + bias, axis=1)
        apart = values[:n_classes] - values[:n_classes].mean()
        error = np.exp(log_proba) - labels
        penalty = (apart @ apart + bias @ bias) / SPREAD**2 / 2
        slope = (error * z * slopes).sum(axis=0) + apart / SPREAD**2
        gradient = np.concatenate([slope, error.sum(axis=0) + bias / SPREAD**2])
        return penalty - (labels * log_proba).sum(), gradient

    found = minimize(loss, np.zeros(2 * n_classes), jac=True, method="L-BFGS-B").x
    return np.exp(found[:n_classes]), found[n_classes:]


def fit_isotonic(proba: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return test probabilities, mapped by a monotone function per class."""
    columns = [
        IsotonicRegression(y_min=1e-3, y_max=1, out_of_bounds="clip")
        .fit(proba[:, k], y == k)
        .predict(test[:, k])
        for k in range(proba.shape[1])
    ]
    mapped = np.stack(columns, axis=1)
    return mapped / mapped.sum(axis=1, keepdims=True)


def temperature_of(z: np.ndarray, y: np.ndarray) -> float:
    return float(fit_temperature(torch.from_numpy(z), torch.from_numpy(y)))


def ratios(task, seed: int) -> dict[str, float]:
    """Return the ratio of each map's log loss to that of the temperature."""
    split = load(task, seed)
    X, y, labels = split.X, split.given, np.unique(split.given)
    half = {"epochs": EPOCHS // 2, "strength": 30.0}
    unseen = np.empty((len(y), len(labels)))
    tests = []
    for fold, (train, rest) in enumerate(
        StratifiedKFold(2, shuffle=True, random_state=seed).split(X, y)
    ):
        unseen[rest], other = logits_of(
            X[train], y[train], [X[rest], split.X_test], seed=seed + fold + 1, **half
        )
        tests.append(other)
    whole = {"epochs": EPOCHS, "strength": 60.0}
    (z,) = logits_of(X, y, [split.X_test], seed=seed, **whole)
    z = z.astype(float)
    temperature = temperature_of(unseen, y)
    fitted = fit_calibration(torch.from_numpy(unseen), torch.from_numpy(y))
    slopes, bias = fit_vector(unseen, y)
    mean = logsumexp([log_softmax(t, axis=1) for t in [*tests, z]], axis=0)
    scaled = softmax(z / temperature, axis=1)
    maps = {
        "temperature": scaled,
        "bias": Calibration(*fitted)(torch.from_numpy(z)).softmax(dim=1).numpy(),
        "vector": softmax(z * slopes + bias, axis=1),
        "isotonic": fit_isotonic(softmax(unseen / temperature, axis=1), y, scaled),
        "best temperature": softmax(z / temperature_of(z, split.y_test), axis=1),
        "ensemble": softmax(mean / temperature_of(mean, split.y_test), axis=1),
    }
    loss = {n: log_loss(split.y_test, p, labels=labels) for n, p in maps.items()}
    return {
        **{n: loss[n] / loss["temperature"] for n in ("bias", "vector", "isotonic")},
        "ensemble": loss["ensemble"] / loss["best temperature"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for task in PANELS["tuning"]:
        if "sym" in task.name or "inherent" in task.name:
            continue
        for seed in args.seeds:
            row = found[task.name, seed] = ratios(task, seed)
            figures = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
            print(f"{task.name} {seed}: {figures}", flush=True)
    for name in ("bias", "vector", "isotonic", "ensemble"):
        values = {key: row[name] for key, row in found.items()}
        worst = max(values, key=lambda key: values[key])
        mean = np.exp(np.mean(np.log(list(values.values()))))
        print(f"{name}: geometric mean {mean:.3f}, worst {values[worst]:.3f} {worst}")


if __name__ == "__main__":
    main()
