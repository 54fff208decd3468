"""Time of `fit`: BSDClassifier compared with training loops without BSD.

The whole fit is timed in one process, from arrays to a trained network. After a
warm-up, every round runs each method once, in changing order, and ratios are computed
within a round. Methods:

- skbsd: BSDClassifier(...).fit(X, y).
- A: a hand-written, optimised loop with cross-entropy. Data are on the device (images
  as uint8, standardised in the batch). Batches are gathered and augmented there, on
  CUDA for a whole epoch at once. The optimizer is fused, cuDNN benchmarks its
  algorithms, and losses are read once per epoch. Network, optimizer, schedule,
  augmentation, batches, precision and memory format (channels_last for images) are the
  same as with skbsd.
- B0: skorch.NeuralNetClassifier as in its documentation: float32 arrays, standardised
  beforehand and not augmented, which is to its advantage; by default, it holds out a
  fifth and scores it after each epoch.
- B1: skorch, tuned: no held-out data, no callbacks, the batches of A in place of the
  DataLoader, fused optimizer; on CUDA autocast and cuDNN's benchmark of algorithms.
  Images stay contiguous.
- C: sklearn.neural_network.MLPClassifier, on tables.
- plain: a simple loop of seven lines, on tables: SGD that is not fused, no schedule, a
  gather per batch. skbsd, which it is compared with, uses its default AdamW.
- two-views: BSDClassifier(..., contrastive=0.2), on images.
- skbsd-eager: BSDClassifier(..., cuda_graph=False), on CUDA: like A, it launches each
  operation.

--compile compiles the network of skbsd, A and B1 in the cases on CUDA. --check does not
measure time: it shows that A and BSDClassifier with infinite prior strength, which is
cross-entropy, reach the same losses and accuracy.

--seconds starts no round that would end after this time.

    python benchmarks/speed.py --output speed.csv
    python benchmarks/speed.py --cases resnet --methods skbsd A --images 2000 --rounds 3
"""

import argparse
import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _common import (
    NO_CUDA,
    Results,
    add_data_arguments,
    load_cifar10,
    machine,
    ratios,
    rounds,
    spread,
    stop_at_interrupt,
    synchronize,
)
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional as F

from skbsd import BSDClassifier
from skbsd.augmentation import flip_crop
from skbsd.networks import ResNet, default_network

# BSDClassifier's defaults, used by the other methods too.
LR, WEIGHT_DECAY = 1e-2, 1e-2

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

PAIRS = [("skbsd", "A"), ("skbsd", "B0"), ("skbsd", "B1"), ("skbsd", "C"), ("B0", "A")]
PAIRS += [("skbsd", "plain"), ("two-views", "skbsd")]
PAIRS += [("skbsd-eager", "A"), ("skbsd", "skbsd-eager")]
TARGETS = {
    ("digits-mlp", "skbsd", "A"): 1.10,
    ("digits-mlp", "skbsd", "plain"): 1.15,
    ("digits-mlp", "skbsd", "B0"): 0.35,
    ("digits-mlp", "skbsd", "C"): 1.50,
    ("table", "skbsd", "B0"): 0.35,
    ("resnet", "skbsd", "A"): 1.03,
    ("resnet", "two-views", "skbsd"): 2.10,
    ("mlp-256", "skbsd", "A"): 0.35,
    ("resnet18-512", "skbsd", "A"): 1.02,
    ("resnet18-512", "skbsd", "B0"): 0.33,
    ("resnet18-512", "skbsd", "B1"): 0.77,
    ("resnet18-512", "two-views", "skbsd"): 2.10,
}
SECONDS_PER_EPOCH = {"resnet18-512": 0.50, "resnet18-1024": 0.50}


class Data(NamedTuple):
    """Arrays; `floats` is X, standardised if X are uint8 images."""

    X: np.ndarray
    y: np.ndarray
    floats: np.ndarray

    def head(self, n: int) -> "Data":
        """Return the first n samples."""
        return Data(*(array[:n] for array in self))


@dataclass
class Case:
    """A training task, the same for every method."""

    load: Callable[[argparse.Namespace], Data]
    methods: tuple[str, ...]
    epochs: int
    batch_size: int = 128
    device: str = "cpu"
    module: Callable[[], nn.Module] | None = None  # None: BSDClassifier's default
    compile: bool = False

    def network(self, data: Data) -> nn.Module:
        """Build the network."""
        if self.module is not None:
            return self.module()
        return default_network(data.X.shape[1:], int(data.y.max()) + 1)

    def augmentation(self, data: Data) -> Callable | None:
        """Return the augmentation of images, None for tables."""
        return flip_crop if data.X.ndim == 4 else None

    def autocast(self):
        """Return the autocast context of BSDClassifier's default precision."""
        if self.device == "cpu":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)


def digits(args) -> Data:
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    return Data(X, y, X)


def table(args) -> Data:
    X, y = make_classification(
        100_000, 50, n_informative=20, n_classes=5, random_state=0
    )
    X = X.astype(np.float32)
    return Data(X, y, X)


def images(args, n: int) -> Data:
    X, y = load_cifar10(args, args.images or n)
    floats = X.astype(np.float32)
    floats -= floats.mean(axis=(0, 2, 3), keepdims=True)
    floats /= floats.std(axis=(0, 2, 3), keepdims=True)
    return Data(X, y, floats)


TABLE_METHODS = ("skbsd", "A", "plain", "B0", "B1", "C")
IMAGE_METHODS = ("skbsd", "A", "B0", "B1", "two-views")
CUDA_IMAGE_METHODS = (*IMAGE_METHODS, "skbsd-eager")
CASES = {
    "digits-mlp": Case(digits, TABLE_METHODS, epochs=40),
    "table": Case(table, TABLE_METHODS, epochs=3),
    "resnet": Case(partial(images, n=10_000), IMAGE_METHODS, epochs=1),
    "mlp-256": Case(
        table, (*TABLE_METHODS[:-1], "skbsd-eager"), 10, batch_size=256, device="cuda"
    ),
    "resnet18-512": Case(
        partial(images, n=50_000), CUDA_IMAGE_METHODS, 5, 512, "cuda", ResNet
    ),
    "resnet18-1024": Case(
        partial(images, n=50_000), CUDA_IMAGE_METHODS, 5, 1024, "cuda", ResNet
    ),
}


class Batches:
    """Batches gathered on the device, in a new order for each pass.

    Parameters
    ----------
    data : Data, or skorch's Dataset
    batch_size : int
    device : str
    augmentation : callable, optional
    memory_format : torch.memory_format, optional
        Memory format of batches of images.
    """

    def __init__(
        self,
        data,
        batch_size: int,
        device: str,
        augmentation=None,
        memory_format=torch.contiguous_format,
    ):
        self.X = torch.from_numpy(data.X).to(device)
        self.y = torch.from_numpy(data.y).to(device)
        self.augmentation = augmentation
        self.memory_format = memory_format
        self.is_uint8 = self.X.dtype == torch.uint8
        if self.is_uint8:
            # Mean and standard deviation per channel, from counts of the 256 values.
            counts = [
                torch.bincount(x.flatten(), minlength=256) for x in self.X.unbind(1)
            ]
            share = torch.stack(counts).double() / self.X[:, 0].numel()
            value = torch.arange(256, device=device).double()
            mean = share @ value
            std = (share @ value.square() - mean.square()).sqrt()
            self.mean, self.std = (
                mean.float().view(-1, 1, 1),
                std.float().view(-1, 1, 1),
            )
        # As in BSDClassifier, a single last sample joins the batch before.
        n = len(self.X)
        starts = list(range(0, n, batch_size))
        if len(starts) > 1 and n - starts[-1] == 1:
            del starts[-1]
        self.bounds = list(zip(starts, [*starts[1:], n], strict=True))

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self):
        order = torch.randperm(len(self.X), device=self.X.device)
        if self.X.is_cuda:
            # The whole epoch at once, for the fewest launches.
            x, y = self.gather(order)
            for start, stop in self.bounds:
                yield self.prepare(x[start:stop]), y[start:stop]
            return
        for start, stop in self.bounds:
            x, y = self.gather(order[start:stop])
            yield self.prepare(x), y

    def gather(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return samples by their rows, augmented."""
        x = self.X.index_select(0, index)
        if self.augmentation is not None:
            x = self.augmentation(x)
        return x, self.y.index_select(0, index)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Standardise uint8 images."""
        if not self.is_uint8:
            return x
        x = x.to(torch.float32, memory_format=self.memory_format)
        return (x - self.mean) / self.std


class Loop(NamedTuple):
    """Results of the hand-written loop."""

    network: nn.Module
    batches: Batches
    losses: list[float]  # mean of each epoch

    def score(self, data: Data) -> float:
        """Return the accuracy."""
        self.network.eval()
        with torch.no_grad():
            x = torch.from_numpy(data.X).to(self.batches.X.device).split(1000)
            found = [self.network(self.batches.prepare(part)).argmax(1) for part in x]
        return (torch.cat(found).cpu().numpy() == data.y).mean()


def one_cycle(progress: float) -> float:
    """Rise for a quarter and fall along a cosine, as in BSDClassifier."""
    if progress < 0.25:
        return progress / 0.25
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.25) / 0.75))


@contextmanager
def fast_convolutions(device: str):
    """Let cuDNN benchmark its algorithms, as is usual for constant shapes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def fit_by_hand(case: Case, data: Data, epochs: int) -> Loop:
    with fast_convolutions(case.device):
        return run_by_hand(case, data, epochs)


def run_by_hand(case: Case, data: Data, epochs: int) -> Loop:
    torch.manual_seed(0)
    nhwc = data.X.ndim == 4
    memory_format = torch.channels_last if nhwc else torch.contiguous_format
    batches = Batches(
        data, case.batch_size, case.device, case.augmentation(data), memory_format
    )
    network = case.network(data).to(case.device)
    if nhwc:
        network = network.to(memory_format=memory_format)
    forward = torch.compile(network) if case.compile else network
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True
    )
    autocast = case.autocast()
    steps, step = epochs * len(batches), 0
    history = []
    for _ in range(epochs):
        losses = []
        for x, y in batches:
            lr = LR * one_cycle((step + 0.5) / steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = F.cross_entropy(forward(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            step += 1
        history.append(statistics.fmean(torch.stack(losses).tolist()))
    return Loop(network, batches, history)


def fit_plain(case: Case, data: Data, epochs: int) -> nn.Module:
    network = case.network(data).to(case.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    X, y = (torch.from_numpy(array).to(case.device) for array in (data.X, data.y))
    for _ in range(epochs):
        for index in torch.randperm(len(X), device=X.device).split(case.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(X[index]), y[index]).backward()
            optimizer.step()
    return network


def fit_skbsd(case: Case, data: Data, epochs: int, **parameters) -> BSDClassifier:
    model = BSDClassifier(
        case.module,
        calibration=None,
        max_epochs=epochs,
        batch_size=case.batch_size,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        augmentation=case.augmentation(data),
        compile=case.compile,
        device=case.device,
        random_state=0,
        **parameters,
    )
    return model.fit(data.X, data.y)


def skorch_settings(case: Case, data: Data, epochs: int) -> dict:
    """Return the settings that B0 and B1 share."""
    return {
        "module": partial(case.network, data),
        "criterion": nn.CrossEntropyLoss,
        "optimizer": torch.optim.AdamW,
        "optimizer__weight_decay": WEIGHT_DECAY,
        "lr": LR,
        "max_epochs": epochs,
        "batch_size": case.batch_size,
        "device": case.device,
        "verbose": 0,
    }


def fit_skorch(case: Case, data: Data, epochs: int) -> NeuralNetClassifier:
    net = NeuralNetClassifier(
        **skorch_settings(case, data, epochs), iterator_train__shuffle=True
    )
    return net.fit(data.floats, data.y)


class AutocastNet(NeuralNetClassifier):
    """skorch's net with the precision of BSDClassifier."""

    def __init__(self, *args, autocast=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.autocast = autocast

    def infer(self, x, **fit_params):
        """Run the network."""
        with self.autocast:
            return super().infer(x, **fit_params).float()


def fit_tuned_skorch(case: Case, data: Data, epochs: int) -> NeuralNetClassifier:
    net = AutocastNet(
        **skorch_settings(case, data, epochs),
        autocast=case.autocast(),
        optimizer__fused=True,
        iterator_train=Batches,
        iterator_train__device=case.device,
        iterator_train__augmentation=case.augmentation(data),
        train_split=None,
        callbacks="disable",
        compile=case.compile,
    )
    with fast_convolutions(case.device):
        return net.fit(data.X, data.y)


def fit_sklearn(case: Case, data: Data, epochs: int) -> MLPClassifier:
    mlp = MLPClassifier(
        (128, 128),
        batch_size=case.batch_size,
        learning_rate_init=LR,
        max_iter=epochs,
        n_iter_no_change=epochs,  # no early stop
    )
    with warnings.catch_warnings():
        # Convergence does not matter: all methods train for the same number of epochs.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mlp.fit(data.X, data.y)


METHODS = {
    "skbsd": fit_skbsd,
    "A": fit_by_hand,
    "plain": fit_plain,
    "B0": fit_skorch,
    "B1": fit_tuned_skorch,
    "C": fit_sklearn,
    "two-views": partial(fit_skbsd, contrastive=0.2),
    "skbsd-eager": partial(fit_skbsd, cuda_graph=False),
}


def seconds(method: str, case: Case, data: Data, epochs: int, clock: str) -> float:
    gc.collect()  # objects of the previous method
    synchronize(case.device)
    start = CLOCKS[clock]()
    METHODS[method](case, data, epochs)
    synchronize(case.device)
    return CLOCKS[clock]() - start


def measure(name: str, args, results: Results, times: dict) -> None:
    """Measure a case: append to `times` by method and to the results."""
    case = CASES[name]
    data = case.load(args)
    methods = [m for m in case.methods if m in args.methods]
    # On CUDA the warm-up needs all shapes of batches, as each is compiled.
    warm_up = data if case.device == "cuda" else data.head(4 * case.batch_size)
    torch.compiler.reset()  # its cache holds few variants of a network
    times.update({method: [] for method in methods})
    for method in methods:
        seconds(method, case, warm_up, 1, args.clock)
    begin, round_of_last = time.perf_counter(), 0
    for i, method in rounds(args.rounds, methods):
        if i > round_of_last and args.seconds is not None:
            # From the mean duration of the rounds so far.
            expected = (time.perf_counter() - begin) * (i + 1) / i
            if expected > args.seconds:
                break
        round_of_last = i
        taken = seconds(method, case, data, case.epochs, args.clock)
        times[method].append(taken)
        row = (name, method, i, f"{taken:.4f}", case.epochs, len(data.y))
        results.add(*row, args.clock, case.compile, "ok")
        print(f"{name:14} round {i}: {method:11} {taken:9.3f} s", flush=True)


def check(name: str, args) -> None:
    """Compare results of A and of BSDClassifier with infinite prior strength."""
    case = CASES[name]
    data = case.load(args)
    n = len(data.y) * 4 // 5
    train, test = data.head(n), Data(*(array[n:] for array in data))
    loop = fit_by_hand(case, train, case.epochs)
    model = fit_skbsd(case, train, case.epochs, prior_strength=math.inf)
    for method, losses, accuracy in (
        ("A", loop.losses, loop.score(test)),
        ("skbsd", model.history_[:, "train_loss"], model.score(test.X, test.y)),
    ):
        print(
            f"{name:14} {method:5}: training loss {losses[0]:.4f} in the first epoch, "
            f"{losses[-1]:.4f} in the last; accuracy {100 * accuracy:.1f} %",
            flush=True,
        )


def summary(times: dict[str, dict[str, list[float]]]) -> None:
    """Print seconds, and ratios within rounds with their targets."""
    if not any(values for by_method in times.values() for values in by_method.values()):
        return
    header = f"{'median':>9} {'min':>9} {'max':>9}"
    print(f"\n{'seconds':14} {'':15} {header} {'per epoch':>10} {'target':>7}")
    for name, by_method in times.items():
        for method, values in by_method.items():
            if not values:
                continue  # interrupted
            per_epoch = statistics.median(values) / CASES[name].epochs
            target = SECONDS_PER_EPOCH.get(name) if method == "skbsd" else None
            print(
                f"{name:14} {method:15} {spread(values)} {per_epoch:10.3f} "
                f"{'' if target is None else format(target, '7.2f')}".rstrip()
            )
    print(f"\n{'ratio':14} {'':15} {header} {'':10} {'target':>7}")
    for name, by_method in times.items():
        for above, below in PAIRS:
            values = ratios(by_method, above, below)
            target = TARGETS.get((name, above, below))
            if values:
                print(
                    f"{name:14} {above + '/' + below:15} {spread(values)} {'':10} "
                    f"{'' if target is None else format(target, '7.2f')}".rstrip()
                )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, help="limit for a case's rounds")
    parser.add_argument("--epochs", type=int, help="default: those of each case")
    parser.add_argument("--images", type=int, help="default: those of each case")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time of the process, for machines with other running processes; "
        "only with --threads 1, and not on CUDA",
    )
    parser.add_argument("--compile", action="store_true", help="cases on CUDA only")
    parser.add_argument(
        "--check", action="store_true", help="compare results, not time"
    )
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    add_data_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    stop_at_interrupt()
    limits = ExitStack()
    if args.threads:
        torch.set_num_threads(args.threads)
        limits.enter_context(threadpool_limits(args.threads))  # scikit-learn's BLAS
    print(machine(), flush=True)
    columns = ("case", "method", "round", "seconds", "epochs", "n", "clock")
    results = Results(args.output, (*columns, "compile", "status"))
    times: dict[str, dict[str, list[float]]] = {}
    with limits:
        try:
            for name in args.cases:
                case = CASES[name]
                case.epochs = args.epochs or case.epochs
                case.compile = args.compile and case.device == "cuda"
                if case.device == "cuda" and not torch.cuda.is_available():
                    print(f"{name:14} {NO_CUDA}")
                    for method in case.methods:
                        if method in args.methods and not args.check:
                            results.add(name, method, *6 * [""], NO_CUDA)
                elif args.check:
                    check(name, args)
                else:
                    measure(name, args, results, times.setdefault(name, {}))
        finally:
            summary(times)  # also when interrupted


if __name__ == "__main__":
    main()
