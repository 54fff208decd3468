"""
Reliability, before and after
=============================

A network that is correct in 95 of 100 cases should be 95 % confident on average.
Cross-entropy memorises wrong labels, which most data sets contain, and becomes
overconfident. `BSDClassifier` trains the same network and calibrates it on held-out
predictions. This example shows how to compare the two with a reliability diagram.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/reliability.png'

# %%
# A quarter of scikit-learn's digits are used for training, and a fifth of these get a
# wrong label. The other digits, with correct labels, are the test set. With an infinite
# `prior_strength` the targets stay at the labels, which is cross-entropy;
# `calibration=None` turns calibration off. "CE + temperature" keeps the default
# calibration, which chooses the temperature and the learning rate on held-out
# predictions.
import math

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from skbsd import BSDClassifier
from skbsd.display import ReliabilityDisplay
from skbsd.label_noise import flip_labels

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, y, train_size=0.25, random_state=0, stratify=y
)
given, _ = flip_labels(y_train, 0.2, random_state=0)
settings = {"max_epochs": 100, "random_state": 0}
models = {
    "CE": BSDClassifier(prior_strength=math.inf, calibration=None, **settings),
    "CE + temperature": BSDClassifier(prior_strength=math.inf, **settings),
    "BSD": BSDClassifier(**settings),
}
for name, model in models.items():
    model.fit(X_train, given)
    loss = log_loss(y_test, model.predict_proba(X_test))
    print(f"{name:18}accuracy {model.score(X_test, y_test):.1%}, log loss {loss:.3f}")
print(f"BSD estimates that {models['BSD'].noise_rate_:.0%} of the labels are wrong")

# %%
# Each point is a bin of test images with similar confidence. It shows their mean
# confidence and their accuracy. The band is the 95 % bootstrap interval over the test
# images. Below the diagonal a network is overconfident, as cross-entropy is. The
# calibrated networks lie near the diagonal.
figure, ax = plt.subplots(figsize=(6, 7), layout="constrained")
ReliabilityDisplay.from_estimators(
    models, X_test, y_test, n_bins=10, n_bootstraps=200, random_state=0, ax=ax
)
ax.set_title("Digits: does confidence match accuracy?")
plt.show()

# %%
# Why it matters: suppose that a person checks every prediction with a confidence below
# 90 %. How many of the network's mistakes does the person see?
for name, model in models.items():
    proba = model.predict_proba(X_test)
    sure = proba.max(axis=1) >= 0.9
    wrong = model.classes_[proba.argmax(axis=1)] != y_test
    print(
        f"{name:18}confident in {sure.mean():.0%}, of which {wrong[sure].mean():.1%} "
        f"are wrong; {(wrong & ~sure).sum()} of {wrong.sum()} mistakes are checked"
    )
