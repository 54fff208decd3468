"""Number of launches on a GPU per training step.

A launch takes the host some microseconds, whatever the device does. The script compares
steps that launch each operation (`cuda_graph=False`) with steps that are replayed from
a CUDA graph. It counts all launches of the last of a few epochs, and divides them by
the number of steps. This includes work that is done once per epoch, such as the order
of the samples, augmentation ahead of the steps, and reading the losses.

- loop: a hand-written loop over the same network and optimizer, with cross-entropy
- eager: steps that launch each operation
- replayed: steps from a graph, each of which is one launch
- graph: operations in a graph

Without a GPU, or with --pretend, operations on torch's meta device are counted: those
that compute or copy, without views and allocations. Nearly always, such an operation is
one kernel of PyTorch; some, such as the backward pass of a convolution, are several.
Casts of autocast are missing. With a GPU, launches of kernels and graphs and copies are
counted as CUDA's runtime reports them to torch.profiler, which does not include the
contents of a graph.

    python benchmarks/launches.py [--pretend] [--output launches.csv]
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Results, machine
from _pretended import Device, pretended
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from skbsd import BSDClassifier
from skbsd.networks import ResNet

EPOCHS = 3
FLIP_CROP = {"augmentation": "flip-crop"}
# Shape of a sample, number of classes, size of a batch, parameters.
CASES: dict[str, tuple[tuple[int, ...], int, int, dict[str, Any]]] = {
    "MLP": ((50,), 5, 256, {}),
    "SmallResNet": ((3, 32, 32), 10, 128, FLIP_CROP),
    "SmallResNet strong": ((3, 32, 32), 10, 128, {"augmentation": "strong"}),
    "ResNet-18": ((3, 32, 32), 10, 128, FLIP_CROP | {"module": ResNet}),
    "two views": ((3, 32, 32), 10, 128, FLIP_CROP | {"contrastive": 0.2}),
}
COLUMNS = ("case", "way", "steps", "loop", "eager", "replayed", "graph")
# Prefixes of the launching functions of CUDA's runtime and driver.
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")


def data(shape: tuple[int, ...], n_classes: int, n: int) -> tuple[np.ndarray, Any]:
    """Draw samples that are independent of their classes."""
    generator = np.random.default_rng(0)
    if len(shape) == 1:
        X = generator.normal(size=(n, *shape)).astype(np.float32)
    else:
        X = generator.integers(0, 256, size=(n, *shape), dtype=np.uint8)
    return X, np.arange(n) % n_classes


class Counted:
    """Counts launches within the context `counting`.

    Parameters
    ----------
    device : Device or None
        The simulated GPU; None counts launches of a real one.
    """

    def __init__(self, device: Device | None):
        self.device = device
        self.launches = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the launches within the context, and replace the previous count."""
        if self.device is not None:
            before = len(self.device.launched)
            yield
            self.launches = len(self.device.launched) - before
            return
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        with profile(activities=activities) as profiler:
            yield
            torch.cuda.synchronize()
        self.launches = sum(
            event.count
            for event in profiler.key_averages()
            if event.key.startswith(LAUNCHES)
        )


class LastEpoch(Callback):
    """Counts launches in the last epoch of a call of `fit`."""

    def __init__(self, counted: Counted):
        self.counted = counted
        self._context: Any = nullcontext()

    def on_epoch_begin(self, net, **kwargs) -> None:
        """Begin to count in the last epoch."""
        if len(net.history) == net.max_epochs:
            self._context = self.counted.counting()
            self._context.__enter__()

    def on_epoch_end(self, net, **kwargs) -> None:
        """End the count."""
        if len(net.history) == net.max_epochs:
            self._context.__exit__(None, None, None)


def fit(counted: Counted, case: str, steps: int, **parameters) -> BSDClassifier:
    """Train, and count the launches of the last epoch."""
    shape, n_classes, batch_size, settings = CASES[case]
    if "module" in settings:
        settings = settings | {"module__n_classes": n_classes}
    return BSDClassifier(
        max_epochs=EPOCHS,
        batch_size=batch_size,
        device="cuda",
        calibration=None,
        callbacks=[("count", LastEpoch(counted))],
        random_state=0,
        **settings | parameters,
    ).fit(*data(shape, n_classes, steps * batch_size))


def train_by_hand(
    counted: Counted, model: BSDClassifier, case: str, steps: int
) -> None:
    """Train the network of a model with cross-entropy, and count an epoch's launches.

    The optimizer and the precision are the model's; images are only standardised.
    """
    shape, n_classes, batch_size, _ = CASES[case]
    X, y = data(shape, n_classes, steps * batch_size)
    device = model.device_
    inputs, labels = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    network: nn.Module = model.module_.train()
    wide = model.precision != "float32" and len(shape) == 3
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=wide)

    def step(x: Tensor, target: Tensor) -> Tensor:
        model.optimizer_.zero_grad()
        with autocast:
            logits = network((x.float() - 128) / 64 if wide else x)
        loss = F.cross_entropy(logits.float(), target)
        loss.backward()
        model.optimizer_.step()
        return loss.detach()

    def epoch() -> list[float]:
        order = torch.randperm(len(inputs), device=device)
        batches = zip(
            inputs[order].split(batch_size),
            labels[order].split(batch_size),
            strict=True,
        )
        return torch.stack([step(*batch) for batch in batches]).tolist()

    epoch()
    with counted.counting():
        epoch()


def measure(case: str, steps: int, context: Callable[[], Any]) -> dict[str, float]:
    """Return launches per step, by kind.

    Parameters
    ----------
    case : str
    steps : int
        Number per epoch.
    context : callable
        `pretended`, or `nullcontext` to count with a real GPU.
    """
    found: dict[str, float] = {}
    with context() as device:
        counted = Counted(device)
        model = fit(counted, case, steps, cuda_graph=False)
        found["eager"] = counted.launches / steps
        train_by_hand(counted, model, case, steps)
        found["loop"] = counted.launches / steps
        if not fit(counted, case, steps, cuda_graph=True).cuda_graph_:
            raise RuntimeError(f"{case}: no step was captured")
        found["replayed"] = counted.launches / steps
        if device is not None:
            found["graph"] = len(device.recorded[-1])
    return found


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=20, help="per epoch")
    parser.add_argument("--pretend", action="store_true", help="use no GPU")
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    pretends = args.pretend or not torch.cuda.is_available()
    way = "meta device" if pretends else torch.cuda.get_device_name()
    print(machine())
    print(f"launches per step, {way}, {args.steps} steps per epoch\n")
    results = Results(args.output, COLUMNS)
    kinds = COLUMNS[3:]
    print(f"{'':20}" + "".join(f"{kind:>10}" for kind in kinds))
    for case in args.cases:
        found = measure(case, args.steps, pretended if pretends else nullcontext)
        shown = [f"{found[kind]:.1f}" if kind in found else "" for kind in kinds]
        results.add(case, way, args.steps, *shown)
        print(f"{case:20}" + "".join(f"{text:>10}" for text in shown), flush=True)


if __name__ == "__main__":
    main()
