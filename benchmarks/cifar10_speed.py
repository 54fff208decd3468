"""How soon BSDClassifier reaches 94 % on CIFAR-10's test set, on a GPU.

The time is that of BSDClassifier(...).fit(X, y), from uint8 arrays in main memory to a
trained network, without compilation: a warm-up fit with the same shapes comes first,
and what later fits still compile is subtracted. The network is the ResNet-9 of the
DAWNBench entries ("How to train your ResNet", D. Page, 2018), trained as there with
Nesterov's momentum, a learning rate that goes up and down, and mirrored and shifted
images. Prints accuracy and seconds of each seed and their means.

    python benchmarks/cifar10_speed.py --output cifar10_speed.csv
    python benchmarks/cifar10_speed.py --device cpu --images 512 --epochs 1 --seeds 1

The second line only shows that the script runs.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

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

TARGET = 94.0


def convolution(in_channels: int, out_channels: int, *, pool: bool) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU, and half the size where asked."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2) if pool else nn.Identity(),
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, channels, pool=False),
            convolution(channels, channels, pool=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x and what the body adds to it."""
        return x + self.body(x)


class ResNet9(nn.Module):
    """Few, wide layers: what a GPU does fast."""

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


def build(args, seed: int, epochs: int) -> BSDClassifier:
    parameters = {}
    if args.prior_strength is not None:
        parameters["prior_strength"] = args.prior_strength
    return BSDClassifier(
        ResNet9,
        calibration=None,
        max_epochs=epochs,
        batch_size=args.batch_size,
        # 0.4 for 512 samples is Page's; larger batches take larger steps.
        lr=args.lr or 0.4 * args.batch_size / 512,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        optimizer__nesterov=True,
        weight_decay=5e-4,
        lr_schedule="one-cycle",
        augmentation="flip-crop",
        compile=args.compile,
        device=args.device,
        random_state=seed,
        **parameters,
    )


def fit(model: BSDClassifier, X, y) -> tuple[float, float]:
    """Return seconds of the fit without compilation, and of compilation."""
    synchronize(model.device)
    start = time.perf_counter()
    model.fit(X, y)
    synchronize(model.device)
    compilation = getattr(model, "compile_time_", 0.0)
    return time.perf_counter() - start - compilation, compilation


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, help="default: 0.4 for batches of 512")
    parser.add_argument("--prior-strength", type=float, help="default: BSDClassifier's")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, help="train and test on so many")
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    add_data_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "needs a CUDA device, and there is none. --device cpu --images 512 "
            "--epochs 1 only shows that the script runs."
        )
    stop_at_interrupt()
    print(machine(), flush=True)
    X, y = load_cifar10(args, args.images)
    X_test, y_test = load_cifar10(args, args.images, train=False)
    print(f"{len(y):,} images, {args.epochs} epochs, batches of {args.batch_size}")

    # Memory, kernels and, with --compile, the network; an epoch meets all shapes.
    taken, compilation = fit(build(args, 0, 1), X, y)
    print(
        f"warm-up: {taken + compilation:.2f} s, of which compilation known apart: "
        f"{compilation:.2f} s"
    )

    columns = ("seed", "accuracy", "seconds", "compile_seconds", "epochs", "batch_size")
    results = Results(args.output, (*columns, "compile", "n", "device"))
    runs = []
    for seed in range(args.seeds):
        model = build(args, seed, args.epochs)
        taken, compilation = fit(model, X, y)
        accuracy = 100 * model.score(X_test, y_test)
        runs.append((accuracy, taken))
        print(f"seed {seed}: {accuracy:.2f} % in {taken:.3f} s", flush=True)
        row = (seed, f"{accuracy:.2f}", f"{taken:.4f}", f"{compilation:.4f}")
        results.add(
            *row, args.epochs, args.batch_size, args.compile, len(y), args.device
        )

    accuracy, taken = (statistics.fmean(values) for values in zip(*runs, strict=True))
    verdict = "reached" if accuracy >= TARGET else "not reached"
    print(
        f"mean of {len(runs)}: {accuracy:.2f} % in {taken:.3f} s, "
        f"{taken / args.epochs:.3f} s per epoch; {TARGET:g} % {verdict}"
    )


if __name__ == "__main__":
    main()
