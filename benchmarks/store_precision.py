"""Errors of beliefs that are stored in 16 bits, compared with double precision.

The error is the L1 distance between two targets (at most 2), averaged over rows, after
a number of updates with predictions that vary about a mean of each row. The prior
strength is 100.

- float16, bfloat16: stores of :class:`skbsd.posterior.DirichletPosterior`, which round
  without bias, by a dither that covers its range evenly
- nearest: float16, each update rounded to the nearest number
- random: float16, rounded up or down at random, without bias

    python benchmarks/store_precision.py [--updates 20 200 2000]
"""

import argparse
import itertools

import torch
from torch import Tensor

from skbsd.posterior import DirichletPosterior

N = 100
STRENGTH = 100.0


def nearest(alpha: Tensor) -> Tensor:
    return alpha.half()


def random(alpha: Tensor) -> Tensor:
    bits = alpha.float().view(torch.int32)
    bits = bits + torch.randint_like(bits, 2**13)
    return (bits & -(2**13)).view(torch.float32).half()


def errors(
    n_classes: int, discount: float, noise: float, updates: list[int]
) -> dict[str, list[float]]:
    """Return the errors after each number of updates, by the kind of the store."""
    torch.manual_seed(0)
    labels, rows = torch.randint(n_classes, (N,)), torch.arange(N)
    stores = {
        str(dtype).removeprefix("torch."): DirichletPosterior(
            labels, n_classes, prior_strength=STRENGTH, discount=discount, dtype=dtype
        )
        for dtype in (torch.float64, torch.float16, torch.bfloat16)
    }
    others = {f: stores["float16"].concentration() for f in (nearest, random)}
    mean = 3 * torch.randn(N, n_classes)
    found: dict[str, list[float]] = {}
    for t in range(1, max(updates) + 1):
        logits = mean + noise * torch.randn(N, n_classes)
        for store in stores.values():
            store.update(logits, rows, assume_unique=True)
        for f, alpha in others.items():
            others[f] = f(discount * alpha.float() + logits.softmax(dim=1))
        if t in updates:
            targets = {k: store.mean().double() for k, store in stores.items()}
            for f, alpha in others.items():
                total = alpha.double().sum(dim=1, keepdim=True)
                targets[f.__name__] = alpha.double() / total
            exact = targets.pop("float64")
            for kind, target in targets.items():
                error = (target - exact).abs().sum(dim=1).mean().item()
                found.setdefault(kind, []).append(error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, nargs="+", default=[20, 200, 2000])
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts = "".join(f"{n:>9}" for n in args.updates)
    print(f"{'classes':>7} {'discount':>8} {'noise':>5} {'store':9}{counts} updates")
    for setting in itertools.product((10, 100), (1.0, 0.999, 0.9), (0.0, 1.0)):
        for kind, values in errors(*setting, args.updates).items():
            shown = "".join(f"{value:9.4f}" for value in values)
            print("{:7} {:8g} {:5g}".format(*setting), f"{kind:9}{shown}", flush=True)


if __name__ == "__main__":
    main()
