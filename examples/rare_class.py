"""
A rare class
============

One sample in 30 belongs to the class of interest. Here probabilities are more useful
than predicted classes: the costs of errors determine which samples to inspect, and they
can be chosen after training.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/rare_class.png'

# %%
# The data are handwritten digits, and the rare class is the 8: all but 56 of the eights
# are removed.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import (
    PrecisionRecallDisplay,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    make_scorer,
)
from sklearn.model_selection import TunedThresholdClassifierCV, train_test_split

from skbsd import BSDClassifier

X, digit = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
eights = rng.choice(np.flatnonzero(digit == 8), 56, replace=False)
rows = np.concatenate([np.flatnonzero(digit != 8), eights])
X, y = X[rows] / 16, np.where(digit[rows] == 8, "rare", "other")
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, random_state=0, stratify=y
)
is_rare = y_test == "rare"
print(f"{np.mean(y_train == 'rare'):.1%} of {len(y_train)} training samples are rare")

# %%
# By default, the probabilities estimate frequencies, so their mean should be close to
# the frequency of the rare class. With ``class_weight="balanced"`` both classes have
# the same total weight. More of the rare samples then exceed the usual threshold of one
# half, but the probabilities of the rare class are too high by design.
models = {
    "default": BSDClassifier(random_state=0),
    "balanced": BSDClassifier(class_weight="balanced", random_state=0),
}
proba = {}
for name, model in models.items():
    column = model.fit(X_train, y_train).classes_.tolist().index("rare")
    proba[name] = model.predict_proba(X_test)[:, column]
    predicted = np.where(proba[name] > 0.5, "rare", "other")
    print(
        f"{name:9s} mean probability {proba[name].mean():.1%}, "
        f"log loss {log_loss(is_rare, proba[name]):.3f}, "
        f"balanced accuracy {balanced_accuracy_score(y_test, predicted):.1%}"
    )
print(f"frequency of the rare class: {is_rare.mean():.1%}")

# %%
# **From costs to a threshold.** Suppose that missing a rare sample costs 20 times as
# much as a false alarm. With calibrated probabilities, the best threshold follows from
# the costs alone: inspect a sample if its probability of being rare exceeds
# 1 / (1 + 20).
COST = 20


def cost(y_true, y_pred):
    """Return the cost per 1,000 samples."""
    (_, false_alarms), (missed, _) = confusion_matrix(
        y_true, y_pred, labels=["other", "rare"]
    )
    return 1000 * (false_alarms + COST * missed) / len(y_true)


for threshold in (1 / (1 + COST), 0.5):
    decided = np.where(proba["default"] > threshold, "rare", "other")
    print(
        f"threshold {threshold:.3f}: {np.mean(decided[is_rare] == 'rare'):.0%} of the "
        f"rare samples found, {np.sum(decided == 'rare')} inspected, "
        f"cost {cost(y_test, decided):.0f}"
    )

# %%
# scikit-learn's `TunedThresholdClassifierCV` chooses a threshold by cross-validation,
# for any score. It needs a fit for each fold, and the chosen threshold depends on the
# few rare samples in the folds.
tuned = TunedThresholdClassifierCV(
    models["default"],
    scoring=make_scorer(cost, greater_is_better=False),
    cv=3,
    random_state=0,
).fit(X_train, y_train)
print(
    f"tuned threshold {tuned.best_threshold_:.3f}: "
    f"cost {cost(y_test, tuned.predict(X_test)):.0f}"
)

# %%
# Each point of a curve belongs to one threshold. The two curves are similar: class
# weights change the probabilities, but much less the order of the samples.
_, ax = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
for name, values in proba.items():
    PrecisionRecallDisplay.from_predictions(is_rare, values, name=name, ax=ax)
ax.set(xlabel="recall of the rare class", ylabel="precision")
plt.show()
