"""
Ways to calibrate, side by side
===============================

Probabilities can be mended after training, by temperature scaling or isotonic
regression, which take data that were held out. Bayesian self-distillation works on them
while it trains, with all of the data. Here they have the same network, the same number
of epochs and the same images in all, and some of the labels are wrong.
"""

# %%
# 450 digits to train and calibrate with, a tenth of them with a wrong label.
# Calibration after training holds a fifth of them out.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from skbsd import BSDClassifier
from skbsd.display import ReliabilityDisplay
from skbsd.label_noise import flip_labels
from skbsd.metrics import expected_calibration_error

X, y = load_digits(return_X_y=True)
X /= 16
CE = float("inf")  # the prior strength that is plain cross-entropy


def train(X, y, prior_strength, seed):
    model = BSDClassifier(
        prior_strength=prior_strength, max_epochs=100, random_state=seed
    )
    return model.fit(X, y)


def calibrated(X, y, method, seed):
    """Train with cross-entropy on four fifths, calibrate on the other."""
    X, X_held, y, y_held = train_test_split(
        X, y, test_size=0.2, random_state=seed, stratify=y
    )
    network = FrozenEstimator(train(X, y, CE, seed))
    return CalibratedClassifierCV(network, method=method).fit(X_held, y_held)


methods = {
    "cross-entropy": lambda X, y, seed: train(X, y, CE, seed),
    "+ isotonic": lambda X, y, seed: calibrated(X, y, "isotonic", seed),
    "+ sigmoid": lambda X, y, seed: calibrated(X, y, "sigmoid", seed),
    "+ temperature": lambda X, y, seed: calibrated(X, y, "temperature", seed),
    "BSD": lambda X, y, seed: train(X, y, "auto", seed),
    "BSD, noisy": lambda X, y, seed: train(X, y, "noisy", seed),
}

# %%
# Five splits of the digits.
scores = {name: [] for name in methods}
predictions = {}
for seed in range(5):
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, train_size=450, random_state=seed, stratify=y
    )
    given, _ = flip_labels(y_train, 0.1, random_state=seed)
    for name, method in methods.items():
        proba = method(X_train, given, seed).predict_proba(X_test).astype(float)
        proba /= proba.sum(axis=1, keepdims=True)  # from single precision
        accuracy = (proba.argmax(axis=1) == y_test).mean()
        ece = expected_calibration_error(y_test, proba)
        scores[name].append((accuracy, ece, log_loss(y_test, proba)))
        predictions[name] = proba

print(f"{'':15}{'accuracy':>14}{'ECE':>14}{'log loss':>16}")
for name, values in scores.items():
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
    print(
        f"{name:15}{mean[0]:8.1%} ± {spread[0]:.1%}{mean[1]:8.1%} ± {spread[1]:.1%}"
        f"{mean[2]:8.3f} ± {spread[2]:.3f}"
    )

# %%
# Reliability in the last of the five splits. What lies on the diagonal is as right as
# it is sure; the strip below shows how sure it is how often. Cross-entropy is surer
# than right. Temperature and sigmoid can only soften all of it alike, to fit labels
# that are wrong in part. BSD keeps both the accuracy and the shape; by default it is
# too careful where labels are wrong, and "noisy" says that they are.
figure, axes = plt.subplots(2, 3, figsize=(10, 8), layout="constrained")
for ax, (name, proba) in zip(axes.flat, predictions.items(), strict=True):
    ReliabilityDisplay.from_predictions(
        y_test, proba, n_bins=10, n_bootstraps=100, random_state=0, ax=ax
    )
    ax.set_title(name)
    ax.get_legend().remove()
    ax.text(
        0.04, 0.9, f"ECE {expected_calibration_error(y_test, proba, n_bins=10):.1%}"
    )
plt.show()
