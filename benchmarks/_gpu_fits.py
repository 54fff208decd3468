"""Whole fits on a GPU: steps in a CUDA graph compared with single operations."""

import itertools
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _gpu_table import Figures
from skorch.callbacks import Callback
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from skbsd import BSDClassifier, _graph, _run, networks

NESTEROV = {
    "optimizer": torch.optim.SGD,
    "optimizer__momentum": 0.9,
    "optimizer__nesterov": True,
}
IMAGES = {"augmentation": "flip-crop"}
RESNET18 = {**IMAGES, "module": networks.ResNet}


def table(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a table of 50 columns, and five classes that depend on them."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 50)).astype(np.float32)
    return X, (X @ rng.normal(size=(50, 5))).argmax(axis=1)


def images(n: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images, and ten classes that depend on their brightness."""
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=n)
    X = rng.integers(64, size=(n, 3, side, side)) + 18 * y[:, None, None, None]
    return X.astype(np.uint8), y


def fit(X, y, device: str, **parameters) -> BSDClassifier:
    """Train one network, and show every warning."""
    settings = {"calibration": None, "random_state": 0, "device": device}
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        return BSDClassifier(**(settings | parameters)).fit(X, y)


def measure_all(
    figures: Figures, stage: str, calls: dict[str, Callable[[], None]]
) -> bool:
    """Call each function, and return whether none failed.

    An exception is recorded as a result, and the remaining functions are still called.
    """
    fine = True
    for case, call in calls.items():
        what = "none"
        try:
            call()
        except Exception as error:
            traceback.print_exc()
            last = (str(error).strip().splitlines() or [""])[-1]
            what, fine = f"{type(error).__name__}: {last}", False
        figures.add(stage, case, "error", "", what)
    return fine


# CUDA graphs compared with single operations


@dataclass(frozen=True)
class Pair:
    """A fit, and the tolerance for repetitions of it.

    Parameters
    ----------
    data : callable
        Takes the number of samples, and returns X and y.
    batch_size : int
    tolerance : float
        Largest relative error of the epochs' losses, and largest mean error of weights
        and targets. Convolutions sum in no fixed order.
    parameters : dict
    """

    data: Callable[[int], tuple[np.ndarray, np.ndarray]]
    batch_size: int
    tolerance: float
    parameters: dict = field(default_factory=dict)


EXACT, LOOSE = 1e-3, 3e-2
PAIRS = {
    "MLP": Pair(table, 256, EXACT),
    "MLP, float32": Pair(table, 256, EXACT, {"precision": "float32"}),
    "MLP, SGD": Pair(table, 256, EXACT, NESTEROV),
    "MLP, float16 beliefs": Pair(table, 256, EXACT, {"posterior_dtype": "float16"}),
    "SmallResNet": Pair(images, 128, LOOSE, IMAGES),
    "SmallResNet, class weights": Pair(
        images, 128, LOOSE, {**IMAGES, "class_weight": "balanced"}
    ),
    "SmallResNet, SGD": Pair(images, 128, LOOSE, {**IMAGES, **NESTEROV}),
    "SmallResNet, two views": Pair(images, 128, LOOSE, {**IMAGES, "contrastive": 0.2}),
}
TINY_PAIRS = {"MLP": Pair(table, 16, EXACT)}


def learnt(model: BSDClassifier) -> dict[str, np.ndarray]:
    """Return the losses, weights and targets of a fit as flat arrays."""
    weights = [t.detach().float().flatten() for t in model.module_.parameters()]
    return {
        "losses": np.asarray(model.history_[:, "train_loss"]),
        "weights": torch.cat(weights).cpu().numpy(),
        "targets": model.posterior_.mean().cpu().numpy().ravel(),
    }


def distances(one: dict, other: dict) -> dict[str, float]:
    """Return the distances of losses, weights and targets between two fits."""

    def relative(name: str, reduce: Callable) -> float:
        difference = np.abs(one[name] - other[name])
        return float(reduce(difference) / max(reduce(np.abs(other[name])), 1e-12))

    return {
        "losses": relative("losses", np.max),
        "weights": relative("weights", np.mean),
        "targets": float(np.abs(one["targets"] - other["targets"]).mean()),
    }


def compare_pair(figures: Figures, case: str, pair: Pair, device: str, n: int) -> None:
    """Fit with a CUDA graph once and without it twice, and compare the distances."""
    X, y = pair.data(n * pair.batch_size + pair.batch_size // 2)
    parameters = {"batch_size": pair.batch_size, "max_epochs": 4, **pair.parameters}
    models = {
        "recorded": fit(X, y, device, cuda_graph=True, **parameters),
        "one by one": fit(X, y, device, cuda_graph=False, **parameters),
        "again": fit(X, y, device, cuda_graph=False, **parameters),
    }
    has_graph = models["recorded"].cuda_graph_
    on_gpu = device == "cuda"
    target = 1 if on_gpu else None
    figures.add("graph", case, "recorded", "", int(has_graph), target, at_least=on_gpu)
    found = {name: learnt(model) for name, model in models.items()}
    same = {
        name: int(
            all(np.array_equal(found["recorded"][k], v) for k, v in other.items())
        )
        for name, other in found.items()
    }
    figures.add("graph", case, "bit for bit", "", same["one by one"])
    apart = distances(found["recorded"], found["one by one"])
    noise = distances(found["one by one"], found["again"])
    for name, value in apart.items():
        figures.add("graph", case, f"{name} apart", "", value, pair.tolerance)
        figures.add("graph", case, f"{name} apart, both one by one", "", noise[name])
    losses = found["recorded"]["losses"]
    figures.add("graph", case, "loss, last of first", "", losses[-1] / losses[0])


def measure_graph(figures: Figures, device: str, *, tiny: bool) -> bool:
    """Compare fits of all pairs; return whether none failed."""
    pairs, n = (TINY_PAIRS, 4) if tiny else (PAIRS, 12)
    calls = {
        case: partial(compare_pair, figures, case, pair, device, n)
        for case, pair in pairs.items()
    }
    return measure_all(figures, "graph", calls)


# Profiles


@dataclass
class Profiled:
    """A fit whose steps are profiled.

    Parameters
    ----------
    data : callable
    batch_size : int
    batches : int
        Number per epoch.
    parameters : dict
    """

    data: Callable[[int], tuple[np.ndarray, np.ndarray]]
    batch_size: int
    batches: int
    parameters: dict


def profiled_fits() -> dict[str, Profiled]:
    """Return the fits to profile, by name."""
    found = {
        "MLP, 256": Profiled(table, 256, 80, {}),
        "SmallResNet, 128": Profiled(images, 128, 40, IMAGES),
        "ResNet-18, 512": Profiled(images, 512, 20, RESNET18),
    }
    if hasattr(networks, "SpeedNet"):
        chosen = {**IMAGES, **NESTEROV, "module": networks.SpeedNet}
        found["SpeedNet, 1024"] = Profiled(images, 1024, 20, chosen)
    return found


class StepClock:
    """Records the times at which the host begins the first steps of an epoch.

    Later steps are ignored, as the host may then wait for the device.
    """

    def __init__(self, first: int = 5):
        self.first = first
        self.begun: list[float] = []

    def look(self) -> None:
        """Record the time of a step."""
        if len(self.begun) < self.first:
            self.begun.append(time.perf_counter())

    def microseconds(self) -> list[float]:
        """Return the intervals between steps, except the first, and reset."""
        found = [1e6 * (b - a) for a, b in itertools.pairwise(self.begun)][1:]
        self.begun = []
        return found

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe all steps, both replayed ones and single operations."""
        places = (_graph.Graph, "replay"), (_run.Run, "evaluate_and_step")
        before = [getattr(*place) for place in places]

        def told(method: Callable) -> Callable:
            def call(*args: Any) -> Any:
                self.look()
                return method(*args)

            return call

        try:
            for place, method in zip(places, before, strict=True):
                setattr(*place, told(method))
            yield
        finally:
            for place, method in zip(places, before, strict=True):
                setattr(*place, method)


class Epochs(Callback):
    """Measures the time of epochs, and profiles the last one."""

    def __init__(self, last: int, clock: StepClock, activities: list | None):
        self.last, self.clock, self.activities = last, clock, activities
        self.seconds: list[float] = []
        self.host: list[float] = []
        self.profile: Any = None

    def __deepcopy__(self, memo: dict) -> "Epochs":
        return self  # its results are read after the fit

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the clock, and the profiler in the last epoch."""
        self.clock.microseconds()
        if len(net.history) == self.last and self.activities:
            self.profile = profile(activities=self.activities)
            self.profile.__enter__()
        self._begin = time.perf_counter()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Stop both. The losses have been read, so the device is idle."""
        taken = time.perf_counter() - self._begin
        if self.profile is not None:
            self.profile.__exit__(None, None, None)
        elif len(net.history) > 2:  # the first compiles and captures
            self.seconds.append(taken)
            self.host += self.clock.microseconds()


LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")


def profile_fit(
    figures: Figures, case: str, wanted: Profiled, device: str, file: Path
) -> None:
    """Profile a fit with a CUDA graph and with single operations."""
    X, y = wanted.data(wanted.batches * wanted.batch_size)
    kinds = {ProfilerActivity.CPU}
    if device == "cuda":
        kinds.add(ProfilerActivity.CUDA)
    kinds &= torch.profiler.supported_activities()
    n_epochs = 6
    for how, recorded in (("replayed", True), ("one by one", False)):
        clock = StepClock()
        epochs = Epochs(n_epochs, clock, sorted(kinds, key=str))
        with clock.watching():
            model = fit(
                X,
                y,
                device,
                max_epochs=n_epochs,
                batch_size=wanted.batch_size,
                cuda_graph=recorded,
                callbacks=[epochs],
                **wanted.parameters,
            )
        n = wanted.batches
        name = f"{case}, {how}"
        figures.add("profile", name, "recorded", "", int(model.cuda_graph_))
        each = [1e6 * seconds / n for seconds in epochs.seconds]
        figures.add("profile", name, "whole, per step", "us", each)
        figures.add("profile", name, "host, per step", "us", epochs.host or ["none"])
        _write_profile(figures, name, epochs.profile, n, file)


def _write_profile(figures: Figures, name: str, found: Any, n: int, file: Path) -> None:
    """Summarise a profile, and append its ten most expensive kernels to a file."""
    averages = found.key_averages()
    kernels = [
        e
        for e in averages
        if e.device_type == DeviceType.CUDA
        # Spans of several kernels.
        and not getattr(e, "is_user_annotation", False)
    ]
    if not kernels:
        figures.add("profile", name, "kernels", "", "none were traced")
        return
    total = sum(e.self_device_time_total for e in kernels)
    figures.add("profile", name, "kernels, per step", "us", total / n)
    count = sum(e.count for e in kernels)
    figures.add("profile", name, "kernels and copies, per step", "", count / n)
    launches = {k: sum(e.count for e in averages if k in e.key) for k in LAUNCHES}
    figures.add("profile", name, "launches, per step", "", sum(launches.values()) / n)
    kernels.sort(key=lambda e: -e.self_device_time_total)
    with file.open("a") as out:
        print(f"== {name}: {total / n:.1f} us of kernels per step", file=out)
        for e in kernels[:10]:
            share = 100 * e.self_device_time_total / max(total, 1e-9)
            each = e.self_device_time_total / e.count
            print(
                f"{e.self_device_time_total / n:9.2f} us per step {share:5.1f} % "
                f"{e.count / n:7.2f} x {each:8.2f} us  {e.key[:160]}",
                file=out,
            )
        print(file=out)


def measure_profile(figures: Figures, device: str, *, tiny: bool) -> bool:
    """Profile fits with CUDA graphs and without; return whether none failed."""
    chosen = {"MLP": Profiled(table, 16, 6, {})} if tiny else profiled_fits()
    file = figures.folder / "profile.txt"
    file.unlink(missing_ok=True)
    calls = {
        case: partial(profile_fit, figures, case, wanted, device, file)
        for case, wanted in chosen.items()
    }
    return measure_all(figures, "profile", calls)
