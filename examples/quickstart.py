"""Bayesian self-distillation against cross-entropy on scikit-learn's digits.

A small network is trained on 449 images of digits, few enough for it to overfit, and
tested on the other 1,348. It is trained in three ways, with five splits and seeds each:
with cross-entropy; with cross-entropy and skbsd's default calibration, which for
correct labels is a temperature; and by BSD with its defaults, calibrated too. Then all
of this is repeated with 30 % of the training labels wrong. The defaults are not told
so.

GridSearchCV shows what BSD and calibration each gain and cost. cross_val_score shows
how well the best model is calibrated on images of other writers. The script takes about
a minute on two cores, and writes a table and reliability diagrams to examples/output.

    python examples/quickstart.py
"""

import argparse
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from comparison import Comparison, write
from sklearn.datasets import load_digits
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier
from skbsd.label_noise import flip_labels
from skbsd.metrics import get_scorer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
args = parser.parse_args()

X, y = load_digits(return_X_y=True)

# The same network and training: an infinite prior strength is cross-entropy.
trainings = {
    "CE": BSDClassifier(prior_strength=math.inf, calibration=None),
    "CE + temperature": BSDClassifier(prior_strength=math.inf),
    "BSD": BSDClassifier(),
}


def compare(wrong: float) -> Comparison:
    """Train in each way on five splits, with a share of the labels wrong."""
    comparison = Comparison()
    noise_rates, seconds = [], defaultdict(list)
    for seed in range(5):
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, test_size=0.75, random_state=seed, stratify=y
        )
        y_train, _ = flip_labels(y_train, wrong, random_state=seed)
        for name, classifier in trainings.items():
            classifier.set_params(random_state=seed)
            began = time.perf_counter()
            model = make_pipeline(StandardScaler(), classifier).fit(X_train, y_train)
            seconds[name].append(time.perf_counter() - began)
            y_proba = model.predict_proba(X_test)
            comparison.add(name, seed, y_test, y_proba, model.classes_)
        noise_rates.append(100 * model[-1].noise_rate_)
    comparison.summary()
    mean, spread = np.mean(noise_rates), np.std(noise_rates, ddof=1)
    print(f"BSD's noise_rate_: {mean:.1f} ± {spread:.1f} % of the labels are wrong")
    medians = [f"{name} {np.median(taken):.2f} s" for name, taken in seconds.items()]
    print(f"a fit takes {', '.join(medians)}")
    return comparison


print("Digits: 449 to train on, 1,348 to test on; five splits and seeds\n")
right = compare(0.0)
print("\nThe same with 30 % of the training labels wrong\n")
wrong = compare(0.3)

print("\nGridSearchCV on all images, 3 folds")
bsd = make_pipeline(StandardScaler(), BSDClassifier(random_state=0))
ece = get_scorer("neg_expected_calibration_error")
search = GridSearchCV(
    bsd,
    {
        "bsdclassifier__prior_strength": ["auto", math.inf],
        "bsdclassifier__calibration": ["auto", None],
    },
    scoring={"accuracy": "accuracy", "ece": ece, "nll": "neg_log_loss"},
    refit="nll",
    cv=StratifiedKFold(3, shuffle=True, random_state=0),
    n_jobs=args.jobs,
).fit(X, y)
print("calibration  prior_strength  accuracy   ECE     NLL    fit")
results = search.cv_results_
for row in zip(
    map(str, results["param_bsdclassifier__calibration"]),
    results["param_bsdclassifier__prior_strength"],
    100 * results["mean_test_accuracy"],
    -100 * results["mean_test_ece"],
    -results["mean_test_nll"],
    results["mean_fit_time"],
    strict=True,
):
    print("{:>11}  {:>14}  {:6.1f} %  {:4.1f} %  {:.3f}  {:.1f} s".format(*row))

# The images are sorted by writer, so these unshuffled folds separate writers.
errors = -cross_val_score(search.best_estimator_, X, y, scoring=ece, n_jobs=args.jobs)
print(
    "\ncross_val_score of the best, on images of other writers: "
    f"ECE {100 * errors.mean():.1f} ± {100 * errors.std(ddof=1):.1f} %"
)
write(args.output / "quickstart", {"Correct labels": right, "30 % wrong labels": wrong})
