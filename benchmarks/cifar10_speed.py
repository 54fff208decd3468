"""Time in which BSDClassifier reaches 94 % (or 96 %) on CIFAR-10's test set, on a GPU.

The time is that of BSDClassifier(...).fit(X, y), from uint8 arrays in main memory to a
trained network, without compilation: on a GPU a warm-up fit with the same shapes runs
first, and the compilation time of later fits is subtracted. The time of prediction is
measured separately.

There are two recipes. "speed" follows airbench (K. Jordan, "94% on CIFAR-10 in 3.29
Seconds on a Single GPU", arXiv:2404.00498), with self-distillation in place of label
smoothing, and an average of the weights in place of its lookahead optimizer. It uses
SpeedNet, large batches, Nesterov's momentum, high learning rates for the biases of
normalisation layers, mirroring in every other epoch, and predictions of six views.
`--target 96` selects its larger network, which is trained for longer. "resnet9" follows
the DAWNBench entries ("How to train your ResNet", D. Page, 2018). The script prints
accuracy and seconds of each seed, and their means and standard deviations.

    python benchmarks/cifar10_speed.py --compile --output cifar10_speed.csv
    python benchmarks/cifar10_speed.py --loss smoothing --compile
    python benchmarks/cifar10_speed.py --target 96 --compile
    python benchmarks/cifar10_speed.py --recipe resnet9

A run on a CPU shows whether the accuracy is plausible, compared with a default
SmallResNet that is trained for the same time:

    python benchmarks/cifar10_speed.py --device cpu --images 4000 --epochs 6
        --batch-size 128 --seeds 1 --compare-small
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import (
    Results,
    add_data_arguments,
    load_cifar10,
    machine,
    stop_at_interrupt,
    synchronize,
)
from torch import Tensor, nn
from torch.nn import functional as F

from skbsd import BSDClassifier
from skbsd.augmentation import FlipCrop, cutout
from skbsd.networks import SmallResNet, SpeedNet
from skbsd.objectives import Objective

COLUMNS = (
    "recipe",
    "target",
    "loss",
    "seed",
    "accuracy",
    "seconds",
    "compile_seconds",
    "predict_seconds",
    "epochs",
    "batch_size",
    "compile",
    "graph",
    "n",
    "device",
)


def convolution(in_channels: int, out_channels: int, *, pool: bool) -> nn.Sequential:
    """Return 3x3 convolution, batch normalisation and ReLU, with optional pooling."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2) if pool else nn.Identity(),
    )


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, channels, pool=False),
            convolution(channels, channels, pool=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of x and the body's output."""
        return x + self.body(x)


class ResNet9(nn.Module):
    """Residual network of few, wide layers, which a GPU computes fast."""

    def __init__(self, n_classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            convolution(3, 64, pool=False),
            convolution(64, 128, pool=True),
            Residual(128),
            convolution(128, 256, pool=True),
            convolution(256, 512, pool=True),
            Residual(512),
        )
        self.head = nn.Linear(512, n_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, scaled so that the first steps are small."""
        x = F.adaptive_max_pool2d(self.body(x), 1).flatten(1)
        return 0.125 * self.head(x)


class Smoothing(Objective):
    """Cross-entropy with smoothed labels, as in the paper."""

    def loss(self, logits, batch):
        """Return the mean over the batch."""
        return F.cross_entropy(logits, batch.y, label_smoothing=0.2)


class SmoothingClassifier(BSDClassifier):
    """BSDClassifier without self-distillation."""

    def make_objective(self):
        """Return cross-entropy with smoothed labels."""
        return Smoothing()


@dataclass(frozen=True)
class FlipCropCutout:
    """Mirror and shift images, and cover a square of each."""

    flip_crop: FlipCrop
    share: float

    @property
    def by_row(self) -> bool:
        """Whether it takes the rows of the images and the epoch as arguments."""
        return self.flip_crop.by_row

    def __call__(self, images, rows=None, epoch=None):
        """Return new images of the same type."""
        return cutout(self.flip_crop(images, rows, epoch), self.share)


@dataclass(frozen=True)
class Target:
    """Settings of the recipe "speed" for a target accuracy.

    The learning rate is the paper's for batches of 1,024, for a mean over the batch.
    The paper states the weight decay relative to the learning rate.
    """

    widths: tuple[int, ...]
    depth: int
    epochs: int
    lr: float
    weight_decay: float
    augmentation: Callable[..., Tensor]


# The paper's rates are for a sum over the batch, and include momentum's sum of steps.
_PER_STEP = 1 + 1 / (1 - 0.85)
TARGETS = {
    94: Target(
        widths=(64, 256, 256),
        depth=2,
        epochs=10,
        lr=11.5 / _PER_STEP,
        weight_decay=0.0153 / 11.5,
        augmentation=FlipCrop(2, "reflect", alternating=True),
    ),
    96: Target(
        widths=(128, 384, 512),
        depth=3,
        epochs=37,
        lr=9.0 / _PER_STEP,
        weight_decay=0.012 / 9.0,
        augmentation=FlipCropCutout(FlipCrop(4, "reflect", alternating=True), 12 / 32),
    ),
}
# Factor of the learning rate of normalisation layers' biases.
BIAS_FACTOR = 64


def speed(args) -> dict[str, Any]:
    """Return the parameters of the recipe "speed"."""
    target = TARGETS[args.target]
    lr = args.lr or target.lr * args.batch_size / 1024
    biases = {
        "lr": BIAS_FACTOR * lr,
        "weight_decay": target.weight_decay / BIAS_FACTOR,
    }
    return {
        "module": SpeedNet,
        "module__widths": tuple(args.widths or target.widths),
        "module__depth": target.depth,
        "lr": lr,
        "weight_decay": target.weight_decay,
        "optimizer__momentum": 0.85,
        "optimizer__param_groups": [("*.norms.*.bias", biases)],
        "augmentation": target.augmentation,
        "averaging": None if args.no_averaging else "ema",
        "prediction_views": None if args.views == "none" else args.views,
        "channels_last": True,  # "auto" would first run a trial
    }


def resnet9(args) -> dict[str, Any]:
    """Return the parameters of the recipe "resnet9"."""
    return {
        "module": ResNet9,
        # Page uses 0.4 for 512 samples; the rate is proportional to the batch size.
        "lr": args.lr or 0.4 * args.batch_size / 512,
        "weight_decay": 5e-4,
        "optimizer__momentum": 0.9,
        "augmentation": "flip-crop",
    }


RECIPES = {"speed": speed, "resnet9": resnet9}


def build(args, seed: int, epochs: int) -> BSDClassifier:
    parameters = RECIPES[args.recipe](args)
    if args.prior_strength is not None:
        parameters["prior_strength"] = args.prior_strength
    if args.compile:
        parameters |= {"compile": True, "compile__mode": args.compile_mode}
    kind = SmoothingClassifier if args.loss == "smoothing" else BSDClassifier
    return kind(
        calibration=None,
        max_epochs=epochs,
        batch_size=args.batch_size,
        optimizer=torch.optim.SGD,
        optimizer__nesterov=True,
        lr_schedule="one-cycle",
        # Also for networks and losses of this file, which "auto" does not know.
        cuda_graph=not args.no_graph,
        device=args.device,
        random_state=seed,
        **parameters,
    )


def build_small(args, seed: int, epochs: int) -> BSDClassifier:
    """Return SmallResNet with defaults and the usual augmentation."""
    return BSDClassifier(
        SmallResNet,
        module__in_channels=3,
        module__n_classes=10,
        calibration=None,
        max_epochs=epochs,
        augmentation="flip-crop",
        device=args.device,
        random_state=seed,
    )


def fit(model: BSDClassifier, X, y) -> tuple[float, float]:
    """Fit; return its seconds without compilation, and those of compilation."""
    synchronize(model.device)
    start = time.perf_counter()
    model.fit(X, y)
    synchronize(model.device)
    compilation = getattr(model, "compile_time_", 0.0)
    return time.perf_counter() - start - compilation, compilation


def score(model: BSDClassifier, X, y) -> tuple[float, float]:
    """Return the accuracy in percent, and the seconds of prediction."""
    start = time.perf_counter()
    accuracy = 100 * model.score(X, y)
    return accuracy, time.perf_counter() - start


def compare_small(args, seed: int, seconds: float, train, test) -> float:
    """Return the accuracy of SmallResNet, trained for about `seconds`."""
    one_epoch, _ = fit(build_small(args, seed, 1), *train)
    epochs = max(1, round(seconds / one_epoch))
    model = build_small(args, seed, epochs)
    taken, _ = fit(model, *train)
    accuracy, _ = score(model, *test)
    print(
        f"seed {seed}, SmallResNet: {accuracy:.2f} % in {taken:.3f} s "
        f"({epochs} epochs)",
        flush=True,
    )
    return accuracy


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=RECIPES, default="speed")
    parser.add_argument("--target", type=int, choices=TARGETS, default=94)
    parser.add_argument("--loss", choices=("bsd", "smoothing"), default="bsd")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    parser.add_argument("--lr", type=float, help="default: by the size of the batches")
    parser.add_argument("--widths", type=int, nargs="+", help="of SpeedNet's blocks")
    parser.add_argument("--no-averaging", action="store_true")
    parser.add_argument(
        "--views", choices=("none", "flip", "flip-shift"), default="flip-shift"
    )
    parser.add_argument("--prior-strength", type=float, help="default: BSDClassifier's")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--compile-mode", default="max-autotune-no-cudagraphs")
    parser.add_argument("--no-graph", action="store_true", help="launch each operation")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, help="number for training and for test")
    parser.add_argument(
        "--compare-small",
        action="store_true",
        help="train SmallResNet for the same time too",
    )
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    is_speed = args.recipe == "speed"
    args.epochs = args.epochs or (TARGETS[args.target].epochs if is_speed else 18)
    args.batch_size = args.batch_size or (1024 if is_speed else 512)
    return args


def warm_up(args, X, y) -> None:
    """Prepare memory, kernels and, with --compile, the compiled network."""
    taken, compilation = fit(build(args, 0, 1), X, y)  # an epoch meets all shapes
    print(
        f"warm-up: {taken + compilation:.2f} s, of which {compilation:.2f} s measured "
        "as compilation",
        flush=True,
    )


def described(values: list[float], unit: str, digits: int) -> str:
    """Return the mean as text, with the standard deviation of several values."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" (sd {statistics.stdev(values):.{digits}f})"
    return f"{text} {unit}"


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    on_gpu = args.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        sys.exit(
            "needs a CUDA device, and none was found. Pass --device cpu --images 4000 "
            "--epochs 6 --batch-size 128 to check whether the accuracy is plausible."
        )
    stop_at_interrupt()
    print(machine(), flush=True)
    train = load_cifar10(args, args.images)
    test = load_cifar10(args, args.images, train=False)
    print(
        f"{args.recipe} with {args.loss}: {len(train[1]):,} images, {args.epochs} "
        f"epochs, batches of {args.batch_size}",
        flush=True,
    )
    if on_gpu or args.compile:
        warm_up(args, *train)
    results = Results(args.output, COLUMNS)
    accuracies, seconds, small = [], [], []
    for seed in range(args.seeds):
        model = build(args, seed, args.epochs)
        taken, compilation = fit(model, *train)
        accuracy, predicting = score(model, *test)
        accuracies.append(accuracy)
        seconds.append(taken)
        print(
            f"seed {seed}: {accuracy:.2f} % in {taken:.3f} s, predicted in "
            f"{predicting:.3f} s",
            flush=True,
        )
        settings = args.recipe, args.target, args.loss, seed
        times = (f"{t:.4f}" for t in (taken, compilation, predicting))
        how = args.epochs, args.batch_size, args.compile, model.cuda_graph_
        results.add(
            *settings, f"{accuracy:.2f}", *times, *how, len(train[1]), args.device
        )
        if args.compare_small:
            small.append(compare_small(args, seed, taken, train, test))
    verdict = "reached" if statistics.fmean(accuracies) >= args.target else "missed"
    per_epoch = statistics.fmean(seconds) / args.epochs
    print(
        f"mean of {len(seconds)}: {described(accuracies, '%', 2)} in "
        f"{described(seconds, 's', 3)}, {per_epoch:.3f} s per epoch; "
        f"{args.target} % {verdict}"
    )
    if small:
        print(f"SmallResNet in the same time: {described(small, '%', 2)}")


if __name__ == "__main__":
    main()
