"""Bayesian self-distillation against cross-entropy on CIFAR-10.

The same small residual network is trained with cross-entropy, with cross-entropy and
skbsd's default calibration, and by BSD. All use the same seeds and randomly mirrored
and shifted images. A table and a reliability diagram of the test set go to
examples/output. With more than 20,000 images, the two calibrated trainings hold out
2,000 of them to calibrate on. With --search, GridSearchCV chooses a prior strength, and
cross_val_score estimates the calibration error.

    python examples/cifar10.py --limit 5000 --epochs 20     a quick look
    python examples/cifar10.py                              all of it; better on a GPU

torchvision downloads the images to ./data at the first call; --data names another
folder. --npz reads JPEG files packed into train.npz and test.npz instead, with the
arrays `jpeg` (bytes), `offset` (where each file begins, and the end of the last) and
`label`.
"""

import argparse
import io
import math
from pathlib import Path

import numpy as np
from comparison import Comparison, write
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

from skbsd import BSDClassifier
from skbsd.metrics import get_scorer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--npz", type=Path, help="folder of train.npz and test.npz")
    parser.add_argument("--limit", type=int, help="number of images to use")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--prior-strength", type=strength, default="auto", help='a number, or "noisy"'
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--search", action="store_true", help="search prior_strength")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    return parser.parse_args()


def load_torchvision(folder: Path, train: bool):
    """Return images (n, 3, 32, 32) and labels; download them if they are missing."""
    from torchvision.datasets import CIFAR10

    data = CIFAR10(folder, train=train, download=True)
    return np.moveaxis(data.data, -1, 1), np.asarray(data.targets)


def load_npz(file: Path, limit: int | None):
    """Return images (n, 3, 32, 32) and labels from packed JPEG files."""
    with np.load(file) as packed:
        jpeg, offset, label = packed["jpeg"], packed["offset"], packed["label"][:limit]
    images = np.empty((len(label), 3, 32, 32), np.uint8)
    for i, image in enumerate(images):
        data = io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())
        image[:] = np.moveaxis(np.asarray(Image.open(data).convert("RGB")), -1, 0)
    return images, label


def strength(text: str) -> float | str:
    """Read a prior strength from the command line."""
    return text if text in ("auto", "noisy") else float(text)


def search_prior_strength(model: BSDClassifier, X, y) -> None:
    """Print accuracy and calibration error for several prior strengths."""
    search = GridSearchCV(
        model,
        {"prior_strength": ["auto", "noisy", 100.0, 300.0, math.inf]},
        scoring={
            "accuracy": "accuracy",
            "ece": get_scorer("neg_expected_calibration_error"),
        },
        refit=False,
        cv=3,
        verbose=3,
    ).fit(X, y)
    results = search.cv_results_
    print("\nprior_strength  accuracy   ECE")
    for row in zip(
        results["param_prior_strength"],
        100 * results["mean_test_accuracy"],
        -100 * results["mean_test_ece"],
        strict=True,
    ):
        print("{:>14}  {:6.1f} %  {:4.1f} %".format(*row))
    scorer = get_scorer("neg_expected_calibration_error")
    errors = -cross_val_score(model, X, y, scoring=scorer, cv=3, verbose=3)
    mean, spread = 100 * errors.mean(), 100 * errors.std()
    print(f"cross_val_score: ECE {mean:.1f} ± {spread:.1f} %")


def main() -> None:
    """Load the images, compare the trainings, and search if asked to."""
    args = parse_arguments()
    print("loading the images ...", flush=True)
    if args.npz:
        X_train, y_train = load_npz(args.npz / "train.npz", args.limit)
        X_test, y_test = load_npz(args.npz / "test.npz", args.limit)
    else:
        X_train, y_train = load_torchvision(args.data, train=True)
        X_test, y_test = load_torchvision(args.data, train=False)
    X_train, y_train = X_train[: args.limit], y_train[: args.limit]
    X_test, y_test = X_test[: args.limit], y_test[: args.limit]
    print(f"{len(y_train):,} to train on, {len(y_test):,} to test on\n")

    bsd = BSDClassifier(
        max_epochs=args.epochs,
        batch_size=args.batch_size,
        augmentation="flip-crop",
        prior_strength=args.prior_strength,
        device=args.device,
        verbose=1,
    )
    # The same network and training: an infinite prior strength is cross-entropy.
    with_temperature = clone(bsd).set_params(prior_strength=math.inf)
    trainings = {
        "CE": clone(with_temperature).set_params(calibration=None),
        "CE + temperature": with_temperature,
        "BSD": bsd,
    }

    comparison = Comparison()
    for seed in range(args.seeds):
        for name, model in trainings.items():
            print(f"\n{name}, seed {seed}")
            model.set_params(random_state=seed).fit(X_train, y_train)
            comparison.add(
                name, seed, y_test, model.predict_proba(X_test), model.classes_
            )
    print()
    comparison.summary()
    title = f"CIFAR-10, {len(y_train):,} images"
    write(args.output / "cifar10", {title: comparison})
    if args.search:
        search_prior_strength(clone(bsd).set_params(verbose=0), X_train, y_train)


if __name__ == "__main__":
    main()
