"""
Finding wrong labels
====================

A tenth of the digits' labels are made wrong. A network that is trained by Bayesian
self-distillation keeps a belief about each sample, and what its predictions put into
that belief speaks against wrong labels. One fit estimates how many are wrong, ranks the
samples, and lists those that are more probably wrong than right.
"""

# %%
# `flip_labels` turns a tenth of the labels into another class, and says which.
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
# One fit. The list holds row, given and suggested label, and the share that each of the
# two has of what the network predicted while it learnt; the worst come first.
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
# How much of it is right? Precision and recall of the list; the area under the ROC
# curve of the ranking, over all samples.
listed = np.zeros(len(given), dtype=bool)
listed[issues["row"]] = True
found = np.asarray(issues["suggested_label"]) == true[issues["row"]]
print(f"listed                      {listed.sum()}")
print(f"wrong, of those listed      {wrong[listed].mean():.1%}")
print(f"listed, of those wrong      {listed[wrong].mean():.1%}")
print(f"suggestions that are right  {found.mean():.1%}")
print(f"AUROC of the ranking        {roc_auc_score(wrong, -label_quality(model)):.4f}")

# %%
# The most suspicious ones, the worst first, with the label that is given and the one
# that the network suggests; where that is not the true one, the true one too.
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
# Training again, with the suggestions taken or the suspects left out. With a person to
# look at the list, nothing else would have to be looked at.
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
