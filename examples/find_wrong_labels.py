"""Find the wrong labels among scikit-learn's digits, in one fit.

A tenth of the labels are made wrong. A network that is trained by BSD keeps a belief
about each sample, and what its predictions put into that belief speaks against wrong
labels: the samples are ranked by it, and those beyond a threshold, which needs no clean
labels, are listed with a suggestion. Prints how many of the wrong labels were found,
writes a picture of the worst to examples/output, and trains again on what is left: with
the suspects corrected, and with them left out.

    python examples/find_wrong_labels.py
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # write files, whatever display there is
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skbsd import BSDClassifier
from skbsd.label_noise import find_label_issues, flip_labels, label_quality

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
parser.add_argument("--rate", type=float, default=0.1, help="share of wrong labels")
args = parser.parse_args()

X, y = load_digits(return_X_y=True)
X_train, X_test, true, y_test = train_test_split(X / 16, y, random_state=0, stratify=y)
given, wrong = flip_labels(true, args.rate, random_state=0)
print(f"{len(given):,} digits, {wrong.sum()} of them with a wrong label")

model = BSDClassifier(prior_strength="noisy", random_state=0).fit(X_train, given)
issues = find_label_issues(model)
print("\nThe ten worst of", len(issues["row"]), "that were listed:")
print(f"{'row':>5}  given  suggested  true  mass given  mass suggested")
rows = issues["row"][:10]
columns = [issues[name][:10] for name in list(issues)[1:]]
for row, label, suggested, mass, other in zip(rows, *columns, strict=True):
    print(
        f"{row:5}  {label:5}  {suggested:9}  {true[row]:4}  {mass:10.3f}  {other:14.3f}"
    )

listed = np.zeros(len(given), dtype=bool)
listed[issues["row"]] = True
found = np.asarray(issues["suggested_label"]) == true[issues["row"]]
auroc = roc_auc_score(wrong, -label_quality(model))
print(f"\nAUROC of the ranking        {auroc:.4f}")
print(f"wrong, of those listed      {wrong[listed].mean():.1%}")
print(f"listed, of those wrong      {listed[wrong].mean():.1%}")
print(f"suggestions that are right  {found.mean():.1%}")

corrected = given.copy()
corrected[issues["row"]] = issues["suggested_label"]
left = (corrected != true).mean()
print(f"\nwrong labels before {wrong.mean():.1%}, after correction {left:.1%}")
print("\naccuracy on test images")
clean = BSDClassifier(random_state=0)
for name, samples, labels in (
    ("as given", slice(None), given),
    ("suspects left out", ~listed, given[~listed]),
    ("suspects corrected", slice(None), corrected),
    ("with true labels", slice(None), true),
):
    print(f"{name:20}{clean.fit(X_train[samples], labels).score(X_test, y_test):.1%}")
print(f"{'noisy, as given':20}{model.score(X_test, y_test):.1%}")

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
figure.suptitle(f"The most suspicious of {len(given):,} labels, the worst first")
args.output.mkdir(parents=True, exist_ok=True)
file = args.output / "wrong_labels.png"
figure.savefig(file, dpi=120)
print(f"\nWrote {file}")
