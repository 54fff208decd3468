"""How often the intervals of `estimate_noise_rates` contain the truth.

Two parts, both on a CPU:

- simulation: predictions and labels are drawn from the model of label errors itself, so
  that only sampling is at work. The truth is the rate of the distribution;
- fits: `BSDClassifier` on some of scikit-learn's digits with a known fraction of wrong
  labels. The truth is the fraction that was flipped in the sample. Beside it is the
  coverage of `calibration_.noise_rate_interval`, Wilson's interval of a proportion.

    python benchmarks/noise_rates.py --parts simulation fits
"""

import argparse

import numpy as np
from scipy.special import softmax
from sklearn.datasets import load_digits

from skbsd import BSDClassifier
from skbsd._noise_rates import _kind, _LabelErrors, _limits, _summary
from skbsd.label_noise import estimate_noise_rates, flip_labels

N_BOOTSTRAPS = 100


def draw(n, n_classes, transition, scale, rng):
    """Draw calibrated predictions, and labels that may be wrong."""
    proba = softmax(scale * rng.randn(n, n_classes), axis=1)
    cumulated = proba.cumsum(axis=1)
    true = (rng.uniform(size=(n, 1)) > cumulated).sum(axis=1).clip(max=n_classes - 1)
    cumulated = transition[true].cumsum(axis=1)
    given = (rng.uniform(size=(n, 1)) > cumulated).sum(axis=1)
    return proba, given.clip(max=n_classes - 1), true


def intervals(proba, given, transition, rng):
    """Return limits of the rate of all labels, and of those by class."""
    model, weight = (
        _LabelErrors(given, proba, _kind(transition, *proba.shape)),
        np.ones(len(given)),
    )
    values, pairs = model.fit(weight), np.empty((0, 2), int)
    limits = _limits(model, values, pairs, N_BOOTSTRAPS, 0.95, rng)
    return limits, _summary(model.rates(values, weight), model.count(weight), pairs)


def simulate(n, n_classes, transition, scale, n_repeats):
    """Print the coverage of the intervals where the model is right."""
    rng = np.random.RandomState(0)
    _, given, true = draw(200_000, n_classes, transition, scale, rng)
    wrong = given != true
    truth = np.append(
        wrong.mean(), [wrong[given == k].mean() for k in range(n_classes)]
    )
    covered, errors, widths = [], [], []
    for _ in range(n_repeats):
        proba, given, _ = draw(n, n_classes, transition, scale, rng)
        (low, high), value = intervals(proba, given, transition, rng)
        covered.append((low <= truth) & (truth <= high))
        errors.append(value[0] - truth[0])
        widths.append(high[0] - low[0])
    covered = np.array(covered)
    print(
        f"n {n:5}, {n_classes} classes, scale {scale}, rate {truth[0]:.3f}: covered "
        f"{covered[:, 0].mean():.2f}, by class {covered[:, 1:].mean():.2f}; error "
        f"{np.mean(errors):+.4f} ± {np.std(errors):.4f}, width {np.mean(widths):.3f}",
        flush=True,
    )


def fit(n, rate, kind, n_repeats):
    """Print the coverage of the intervals of fits to digits."""
    X, y = load_digits(return_X_y=True)
    covered, values = [], []
    for seed in range(n_repeats):
        rows = np.random.RandomState(seed).permutation(len(y))[:n]
        labels, flipped = flip_labels(y[rows], rate, kind, random_state=100 + seed)
        model = BSDClassifier(random_state=seed).fit(X[rows] / 16, labels)
        rates = estimate_noise_rates(
            model, n_bootstraps=N_BOOTSTRAPS, random_state=seed
        )
        truth = flipped.mean()
        by_class = [flipped[labels == k].mean() for k in range(10)]
        low, high = rates.by_class_interval
        wilson = model.calibration_.noise_rate_interval
        covered.append(
            [
                rates.interval[0] <= truth <= rates.interval[1],
                np.mean((low <= by_class) & (by_class <= high)),
                wilson[0] <= truth <= wilson[1],
            ]
        )
        values.append([rates.rate - truth, model.noise_rate_ - truth])
    own, by_class, wilson = np.mean(covered, axis=0)
    error, spread = np.mean(values, axis=0), np.std(values, axis=0)
    print(
        f"digits {n}, {rate:.0%} {kind}, {n_repeats} fits: covered {own:.2f}, by class "
        f"{by_class:.2f}, Wilson's {wilson:.2f}; error {error[0]:+.3f} ± "
        f"{spread[0]:.3f}, of noise_rate_ {error[1]:+.3f} ± {spread[1]:.3f}",
        flush=True,
    )


def main():
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ["simulation", "fits"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--repeats", type=int, default=200, help="of simulations")
    parser.add_argument("--fits", type=int, default=20, help="per setting")
    options = parser.parse_args()
    if "simulation" in options.parts:
        symmetric = 0.8 * np.eye(4) + 0.05
        pair = np.eye(4)
        pair[0] = [0.7, 0.3, 0, 0]
        few = 0.96 * np.eye(4) + 0.01
        for transition in (symmetric, few, pair):
            for n, scale in ((500, 6.0), (500, 2.5), (2000, 2.5)):
                simulate(n, 4, transition, scale, options.repeats)
    if "fits" in options.parts:
        for rate, kind in ((0.1, "symmetric"), (0.3, "symmetric"), (0.3, "pairs")):
            fit(600, rate, kind, options.fits)


if __name__ == "__main__":
    main()
