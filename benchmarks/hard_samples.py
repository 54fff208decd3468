"""Whether listed labels are wrong, or those of hard samples, and how one can tell.

Labels of tasks of several difficulties are flipped, and `find_label_issues` lists the
suspicious ones. Precision is the fraction of the listed labels that were flipped. It is
compared with what `skbsd.report` decides by: the fraction of the labels that
out-of-fold predictions contradict, minus the fraction that `fit` estimates to be wrong.
The tasks are scikit-learn's digits with noise in the pixels, overlapping blobs, and
`make_classification`; 27 fits, some minutes on a core.

    python benchmarks/hard_samples.py
"""

import warnings

import numpy as np
from sklearn.datasets import load_digits, make_blobs, make_classification
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier
from skbsd._report._labels import _contradicted
from skbsd.label_noise import find_label_issues, flip_labels

RATES = (0.1, 0.2, 0.3)


def tasks():
    """Yield names, samples and labels."""
    X, y = load_digits(return_X_y=True)
    for noise in (0.0, 0.3, 0.5):
        drawn = np.random.RandomState(0).randn(*X.shape)
        yield f"digits, pixel noise {noise}", X / 16 + noise * drawn, y
    for spread in (2.0, 4.0, 5.0):
        X, y = make_blobs(1000, 6, centers=4, cluster_std=spread, random_state=1)
        yield f"blobs, spread {spread}", StandardScaler().fit_transform(X), y
    for distance in (2.0, 1.5, 1.0):
        X, y = make_classification(
            1500,
            n_informative=8,
            n_classes=4,
            class_sep=distance,
            flip_y=0,
            random_state=0,
        )
        yield f"clusters, distance {distance}", StandardScaler().fit_transform(X), y


def main():
    """Print a line per task and fraction of wrong labels."""
    warnings.simplefilter("ignore")
    print("| task | flipped | contradicted | estimated | beyond | listed | precision |")
    print("|---|---|---|---|---|---|---|")
    for name, X, y in tasks():
        for rate in RATES:
            labels, flipped = flip_labels(y, rate, random_state=0)
            model = BSDClassifier(random_state=0).fit(X, labels)
            contradicted, estimated = _contradicted(model), model.noise_rate_
            rows = np.asarray(find_label_issues(model)["row"])
            precision = f"{flipped[rows].mean():.2f}" if len(rows) else ""
            print(
                f"| {name} | {rate:.0%} | {contradicted:.1%} | {estimated:.1%} | "
                f"{contradicted - estimated:.1%} | {len(rows)} | {precision} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
