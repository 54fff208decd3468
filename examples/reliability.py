"""
Reliability, before and after
=============================

A network that is right in 95 of 100 cases should be 95 % sure on average. Trained with
cross-entropy on labels of which some are wrong, as they are in most data, it learns
those by heart too, and is surer than it should be. A `BSDClassifier` of the same
network finds out, before it trains on all images, how sure it may be.
"""

# %%
# A quarter of scikit-learn's digits for training, a fifth of them with a wrong label;
# the others, with right labels, to test on. `prior_strength` of infinity lets no
# prediction into the targets, which is cross-entropy, and `calibration=None` makes it
# the plain one. With the default calibration it has a temperature and a learning rate
# that follow from predictions of unseen images.
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
    loss = log_loss(y_test, model.predict_proba(X_test).astype(float))
    print(f"{name:18}accuracy {model.score(X_test, y_test):.1%}, log loss {loss:.3f}")
print(f"BSD takes {models['BSD'].noise_rate_:.0%} of the labels to be wrong")

# %%
# Each point is a group of test images that the network is about equally sure of: their
# mean confidence, and how many of them it has right. The band is the 95 % interval by
# the bootstrap, of which test images were drawn. Below the diagonal it promises more
# than it keeps, as cross-entropy does. Those that are calibrated lie near it.
figure, ax = plt.subplots(figsize=(6, 7), layout="constrained")
ReliabilityDisplay.from_estimators(
    models, X_test, y_test, n_bins=10, n_bootstraps=200, random_state=0, ax=ax
)
ax.set_title("Digits: as sure as it is right?")
plt.show()

# %%
# What it is worth: suppose that a person looks at whatever the network is less than 90
# % sure of. How many mistakes get past?
for name, model in models.items():
    proba = model.predict_proba(X_test)
    sure = proba.max(axis=1) >= 0.9
    wrong = model.classes_[proba.argmax(axis=1)] != y_test
    print(
        f"{name:18}sure of {sure.mean():.0%}, and wrong in {wrong[sure].mean():.1%} of "
        f"these; catches {(wrong & ~sure).sum()} of {wrong.sum()} mistakes"
    )
