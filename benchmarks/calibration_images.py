"""Calibration of a small residual network on CIFAR-10, with correct and wrong labels.

The network of `_panel.py` is trained for 25 epochs with augmentation "flip-crop" and
one seed, with `calibration=None` and with the default calibration. The script prints
accuracy, calibration error and log loss on the first 3,000 test images with true
labels, the estimated noise rate, and CPU seconds. A run on 2,000 images takes three
minutes on one core.

    python benchmarks/calibration_images.py --images 2000 5000
"""

import argparse
import time

import numpy as np
import torch
from _common import add_data_arguments
from _panel import Source, SpaceToDepth, corrupt, load_cifar10, subset
from sklearn.metrics import log_loss

from skbsd import BSDClassifier
from skbsd.metrics import expected_calibration_error

TEST = 3_000


def describe(model: BSDClassifier, X, y) -> str:
    """Return the scores of a fitted model as text."""
    proba = model.predict_proba(X)
    return (
        f"accuracy {100 * model.score(X, y):.1f} %, "
        f"ECE {100 * expected_calibration_error(y, proba):.1f} %, "
        f"log loss {log_loss(y, proba):.3f}; temperature {model.temperature_:.2f}, "
        f"noise rate {model.noise_rate_:.3f}, rule {model.choice_.prior_strength}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--images", type=int, nargs="+", default=[2_000])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.4])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = Source(args.data, args.npz)
    X_test, y_test = load_cifar10(source, TEST, train=False)
    settings = {
        "module": SpaceToDepth,
        "module__widths": (16, 32, 64),
        "augmentation": "flip-crop",
        "max_epochs": 25,
        "random_state": args.seed,
        "device": "cpu",
    }
    for n in args.images:
        X, y = load_cifar10(source, choose=lambda y, n=n: subset(y, n, args.seed))
        for noise in args.noise:
            rng = np.random.default_rng(args.seed)
            given = corrupt(y, 10, noise, "symmetric", rng)
            for calibration in (None, "auto"):
                before = time.process_time()
                model = BSDClassifier(**settings, calibration=calibration)
                model.fit(X, given)
                seconds = time.process_time() - before
                about = f"{n} images, {noise:.0%} wrong, calibration={calibration}"
                print(f"{about}: {describe(model, X_test, y_test)}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
