"""
Finding wrong labels
====================

A fitted `BSDClassifier` knows how often the network's predictions contradicted each
training label. `find_label_issues` uses this to list the labels that are more probably
wrong than correct, and `noise_rate_` estimates their share. Neither needs a second fit.
Here a tenth of the digits' labels are made wrong, so the list can be checked.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/find_wrong_labels.png'

# %%
# `flip_labels` changes a tenth of the labels to another class, and returns which.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skbsd import BSDClassifier
from skbsd.label_noise import find_label_issues, flip_labels, label_quality

X, y = load_digits(return_X_y=True)
X_train, X_test, true, y_test = train_test_split(X / 16, y, random_state=0, stratify=y)
given, wrong = flip_labels(true, 0.1, random_state=0)
print(f"{len(given):,} digits, {wrong.sum()} of them with a wrong label")

# %%
# One fit. The list has the row, the given and the suggested label, and the share that
# each of the two has in the network's predictions during training. The most suspicious
# labels come first.
model = BSDClassifier(random_state=0).fit(X_train, given)
low, high = model.calibration_.noise_rate_interval
print(f"estimated: {model.noise_rate_:.1%} are wrong, {low:.1%} to {high:.1%}")
issues = find_label_issues(model)
print(f"{'row':>5}  given  suggested  true  mass given  mass suggested")
for row, label, suggested, mass, other in list(
    zip(*(issues[name] for name in list(issues)), strict=True)
)[:10]:
    print(
        f"{row:5}  {label:5}  {suggested:9}  {true[row]:4}  {mass:10.3f}  {other:14.3f}"
    )

# %%
# How good is the list? These are its precision and recall, and the area under the ROC
# curve of the ranking of all samples.
listed = np.zeros(len(given), dtype=bool)
listed[issues["row"]] = True
found = np.asarray(issues["suggested_label"]) == true[issues["row"]]
print(f"listed                      {listed.sum()}")
print(f"wrong, of those listed      {wrong[listed].mean():.1%}")
print(f"listed, of those wrong      {listed[wrong].mean():.1%}")
print(f"suggestions that are true   {found.mean():.1%}")
print(f"AUROC of the ranking        {roc_auc_score(wrong, -label_quality(model)):.4f}")

# %%
# The most suspicious images, with the given and the suggested label. Where the
# suggestion is not the true label, the title shows the true one too.
figure, axes = plt.subplots(3, 8, figsize=(9, 4.6), layout="constrained")
for axis in axes.flat:
    axis.axis("off")
for axis, row, label, suggested in zip(
    axes.flat,
    issues["row"],
    issues["given_label"],
    issues["suggested_label"],
    strict=False,
):
    axis.imshow(X_train[row].reshape(8, 8), cmap="gray_r", interpolation="nearest")
    right = "" if suggested == true[row] else f"\n(true: {true[row]})"
    axis.set_title(f"given {label}\nsuggested {suggested}{right}", fontsize=9)
figure.suptitle(f"The most suspicious of {len(given):,} labels")
plt.show()

# %%
# Train again without the listed samples, or with the suggested labels. In practice a
# person would check the list, which is much shorter than the data set.
corrected = given.copy()
corrected[issues["row"]] = issues["suggested_label"]
print(f"wrong labels before  {wrong.mean():.1%}")
print(f"wrong labels after   {(corrected != true).mean():.1%}")

print("\naccuracy on test images")
clean = BSDClassifier(random_state=0)
for name, samples, labels in (
    ("as given", slice(None), given),
    ("suspects left out", ~listed, given[~listed]),
    ("suspects corrected", slice(None), corrected),
    ("with true labels", slice(None), true),
):
    print(f"{name:20}{clean.fit(X_train[samples], labels).score(X_test, y_test):.1%}")
