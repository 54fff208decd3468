"""
Prediction sets with MAPIE
==========================

Instead of one class, a conformal predictor returns a set of classes that contains the
true class with a probability of your choice. `MAPIE <https://mapie.readthedocs.io>`_
provides such predictors, and accepts a fitted `BSDClassifier`. Run it with
`pip install mapie`.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/prediction_sets.png'

# %%
# The network is trained on 300 digits. Another 500, which it has not seen, are used to
# conformalize. The remaining digits are the test data.
import copy

import matplotlib.pyplot as plt
import numpy as np
from mapie.classification import SplitConformalClassifier
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skbsd import BSDClassifier

X, y = load_digits(return_X_y=True)
X /= 16
X_train, X_rest, y_train, y_rest = train_test_split(
    X, y, train_size=300, random_state=0, stratify=y
)
X_conf, X_test, y_conf, y_test = train_test_split(
    X_rest, y_rest, train_size=500, random_state=0, stratify=y_rest
)
model = BSDClassifier(random_state=0).fit(X_train, y_train)
print(f"accuracy {model.score(X_test, y_test):.1%}")

# %%
# MAPIE expects a fitted classifier by default. Each level is a requested coverage,
# which is the probability that a set contains the true class. `sets` is a boolean array
# of shape (n_samples, n_classes, n_levels).
levels = [0.95, 0.98, 0.99]
mapie = SplitConformalClassifier(model, confidence_level=levels).conformalize(
    X_conf, y_conf
)
predicted, sets = mapie.predict_set(X_test)


def coverage(sets, y):
    """Return how often the true class is in the set, for each level."""
    return sets[np.arange(len(y)), y].mean(axis=0)


sizes = sets.sum(axis=1)
for i, level in enumerate(levels):
    counts = np.bincount(sizes[:, i])
    by_size = ", ".join(f"{n}: {counts[n]}" for n in np.flatnonzero(counts))
    print(
        f"requested {level:.0%}, reached {coverage(sets, y_test)[i]:.1%}; "
        f"sets by number of classes: {by_size}"
    )

# %%
# At a level close to the accuracy, or below it, some sets are empty. The most probable
# class alone is already correct about as often as requested, so sets that are never
# empty would contain the true class too often. Choose a level above the accuracy, or
# use `conformity_score="aps"`, whose sets are larger and never empty.
#
# Most sets at 99 % contain a single class. Images that are hard to recognise have
# larger sets:
level = levels.index(0.99)
order = np.argsort(sizes[:, level], kind="stable")
shown = np.r_[order[sizes[order, level] == 1][:5], order[-10:]]
figure, axes = plt.subplots(3, 5, figsize=(8, 6), layout="constrained")
for ax, row in zip(axes.flat, shown, strict=True):
    ax.imshow(X_test[row].reshape(8, 8), cmap="gray_r")
    ax.set_axis_off()
    names = ", ".join(map(str, np.flatnonzero(sets[row, :, level])))
    ax.set_title(f"{{{names}}}\ntrue class {y_test[row]}", fontsize=10)
figure.suptitle("Sets at 99 %: one class in the first row, the largest sets below")
plt.show()

# %%
# The guarantee holds on average over all test samples and over random draws of the 500
# samples that are used to conformalize. The coverage of a single draw may be higher or
# lower. Here are 50 draws with the same network, with the range of 90 % of them.
draws = []
for seed in range(50):
    X_a, X_b, y_a, y_b = train_test_split(
        X_rest, y_rest, train_size=500, random_state=seed
    )
    drawn = SplitConformalClassifier(model, confidence_level=levels)
    draws.append(coverage(drawn.conformalize(X_a, y_a).predict_set(X_b)[1], y_b))
draws = np.array(draws)
for requested, found in zip(levels, draws.T, strict=True):
    low, high = np.quantile(found, [0.05, 0.95])
    spread = f"{low:.1%} to {high:.1%}"
    print(f"requested {requested:.0%}: mean {found.mean():.1%}, {spread}")

# %%
# Two things are not guaranteed. First, the coverage of a single class may differ: some
# digits are covered less often than requested, others more often. Second, the guarantee
# requires test data from the same distribution as the data used to conformalize. With
# added noise the coverage falls, without any warning; the larger sets are only a hint.
noises = np.linspace(0, 0.5, 6)
rng = np.random.default_rng(0)
by_noise = []
for scale in noises:
    noisy = X_test + scale * rng.standard_normal(X_test.shape)
    noisy_sets = mapie.predict_set(noisy)[1][:, :, level]
    by_noise.append((coverage(noisy_sets, y_test), noisy_sets.sum(axis=1).mean()))
covered, mean_sizes = np.array(by_noise).T
by_class = [
    coverage(sets[y_test == k][:, :, level], y_test[y_test == k]) for k in range(10)
]

figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(11, 3.4), layout="constrained"
)
left.boxplot(draws, tick_labels=[f"{x:.0%}" for x in levels], whis=(5, 95))
left.plot(range(1, len(levels) + 1), levels, "_", markersize=40, color="#D55E00")
left.set(xlabel="requested (line)", ylabel="coverage", title="50 draws of 500 samples")
middle.bar(range(10), by_class, color="#0072B2")
middle.axhline(0.99, color="#D55E00")
middle.set(xlabel="digit", title="Each class, 99 % requested", ylim=(0.9, 1.005))
middle.set_xticks(range(10))
right.plot(noises, covered, "o-", color="#0072B2")
right.axhline(0.99, color="#D55E00")
right.set(xlabel="standard deviation of the noise", title="Noise, 99 % requested")
right.margins(0.1)
for at, share, size in zip(noises, covered, mean_sizes, strict=True):
    right.annotate(f"{size:.1f}", (at, share), (4, 6), textcoords="offset points")
right.text(0.02, 0.03, "numbers: mean size of a set", transform=right.transAxes)
plt.show()

# %%
# Tables, DataFrames, labels of any kind and Pipelines work in the same way. Images need
# an additional step. To check that a model is fitted, MAPIE predicts a row of
# `n_features_in_` zeros. This is not an image, so MAPIE reports that the model is not
# fitted. It skips the check for a shallow copy of the model without this attribute,
# which shares the network.
images = (X_train * 255).astype(np.uint8).reshape(-1, 1, 8, 8)
conf_images = (X_conf * 255).astype(np.uint8).reshape(-1, 1, 8, 8)
on_images = BSDClassifier(max_epochs=20, random_state=0).fit(images, y_train)

unchecked = copy.copy(on_images)
del unchecked.n_features_in_
mapie = SplitConformalClassifier(unchecked, confidence_level=0.99)
mapie = mapie.conformalize(conf_images, y_conf)
test_images = (X_test * 255).astype(np.uint8).reshape(-1, 1, 8, 8)
sets_of_images = mapie.predict_set(test_images)[1]
print(f"images: coverage {coverage(sets_of_images, y_test)[0]:.1%}")

# %%
# `CrossConformalClassifier(BSDClassifier(), cv=5).fit_conformalize(X, y)` trains a
# network for each fold. It needs no separate data to conformalize, and accepts images
# without this step.
