"""Bayesian self-distillation against cross-entropy on scikit-learn's digits.

A small network learns to read from 449 images of digits, few enough for it to become
over-confident, and is tested on the other 1,348. Five times, with five splits and
seeds: with cross-entropy, and by BSD with the prior strength that GridSearchCV finds on
the training images alone (it may find infinity, which is cross-entropy). Then
cross_val_score estimates the calibration error of BSD on all images. Takes about half a
minute on two cores, and writes a table and a reliability diagram to examples/output.

    python examples/quickstart.py
"""

import argparse
import math
from pathlib import Path

from comparison import Comparison
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier
from skbsd.metrics import get_scorer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
args = parser.parse_args()

X, y = load_digits(return_X_y=True)
ece = get_scorer("neg_expected_calibration_error")
bsd = make_pipeline(StandardScaler(), BSDClassifier())
# The same network and training: an infinite prior strength is cross-entropy.
cross_entropy = clone(bsd).set_params(bsdclassifier__prior_strength=math.inf)
search = GridSearchCV(
    bsd,
    {"bsdclassifier__prior_strength": [100.0, 200.0, 400.0, 800.0, math.inf]},
    scoring={"accuracy": "accuracy", "ece": ece, "nll": "neg_log_loss"},
    refit="nll",
    n_jobs=args.jobs,
)

print("Digits: 449 to train on, 1,348 to test on; five splits and seeds\n")
comparison = Comparison(args.output)
for seed in range(5):
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.75, random_state=seed, stratify=y
    )
    cross_entropy.set_params(bsdclassifier__random_state=seed)
    search.set_params(estimator__bsdclassifier__random_state=seed)
    for name, model in (("CE", cross_entropy), ("BSD", search)):
        model.fit(X_train, y_train)
        comparison.add(name, seed, y_test, model.predict_proba(X_test), model.classes_)
print()
comparison.summary()

print("\nGridSearchCV on the last split's training images, 5 folds")
print("prior_strength  accuracy   ECE     NLL")
results = search.cv_results_
for row in zip(
    results["param_bsdclassifier__prior_strength"],
    100 * results["mean_test_accuracy"],
    -100 * results["mean_test_ece"],
    -results["mean_test_nll"],
    strict=True,
):
    print("{:>14}  {:6.1f} %  {:4.1f} %  {:.3f}".format(*row))
strength = search.best_params_["bsdclassifier__prior_strength"]

best = search.best_estimator_
errors = -cross_val_score(best, X, y, scoring=ece, n_jobs=args.jobs)
print(
    f"\ncross_val_score on all images with prior_strength={strength:g}: "
    f"ECE {100 * errors.mean():.1f} ± {100 * errors.std():.1f} %"
)
comparison.write("quickstart", "Digits, five seeds")
