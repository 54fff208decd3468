"""The cells of the comparison: data, network, number of epochs and label noise."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from _common import load_cifar10, matching
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from skbsd.networks import MLP, ResNet, SmallResNet

# Number of CIFAR-10's test images, taken from the start: its classes are in random
# order, and 5,000 images take half the time of all.
CIFAR10_TEST = 5_000
FOLDS = 5
TABLES = {"breast_cancer": load_breast_cancer, "wine": load_wine}
N_CLASSES = {"cifar10": 10, "digits": 10, "breast_cancer": 2, "wine": 3}
# The new class of each class with asymmetric noise; the others keep their labels.
CONFUSED = {
    # truck to automobile, bird to airplane, deer to horse, cat to dog and back
    "cifar10": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
    "digits": {7: 1, 2: 7, 5: 6, 6: 5, 3: 8},
}
SEEDS = {
    "tuning": (0, 1, 2),
    "final": (10, 11, 12),
    "large": (20, 21, 22),
    "noise": (40, 41, 42),
    "noise-large": (50, 51, 52),
}


class SpaceToDepth(nn.Module):
    """Residual network on blocks of 2 x 2 pixels, a quarter of the positions.

    Parameters
    ----------
    widths : sequence of int
        Channels of each residual block.
    """

    def __init__(self, widths: Iterable[int]):
        super().__init__()
        network = SmallResNet(12, 10, tuple(widths))
        self.body = nn.Sequential(nn.PixelUnshuffle(2), network)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (n, 3, height, width)."""
        return self.body(x)


@dataclass(frozen=True)
class Cell:
    """A setting that all methods are compared on.

    Parameters
    ----------
    name : str
        Unique name without spaces, made from the other fields.
    panel : {"tuning", "final", "large", "noise", "noise-large"}
        The panel that the cell belongs to.
    dataset : {"cifar10", "digits", "breast_cancer", "wine"}
        Source of the samples.
    network : str
        Kind of the network, and its width if not the default.
    n : int
        Number of training samples; for tables of all samples, which are split into
        folds.
    epochs : int
        Passes over the training data.
    noise : float
        Fraction of wrong labels, see :func:`corrupt`.
    noise_kind : {"none", "symmetric", "asymmetric"}
        How wrong labels are drawn.
    rivals : bool
        Whether methods outside the default set run here too.
    n_test : int
        Number of test samples of CIFAR-10.
    parameters : dict
        Further arguments of the classifier.
    """

    name: str
    panel: str
    dataset: str
    network: str
    n: int
    epochs: int
    noise: float = 0.0
    noise_kind: str = "none"
    rivals: bool = False
    n_test: int = CIFAR10_TEST
    parameters: dict = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        """The name shown in reports."""
        noise = f", {self.noise:.0%} {self.noise_kind}" if self.noise else ""
        dataset = self.dataset.replace("_", " ").replace("cifar10", "CIFAR-10")
        return (
            f"{dataset}, {self.network.replace('mlp', 'MLP')}, "
            f"n = {self.n:,}, {self.epochs} epochs{noise}"
        )

    def arguments(self, seed: int) -> dict:
        """Return the arguments of the classifier, the same for every method."""
        common = {"batch_size": 128, "device": "cpu", "random_state": seed}
        common["calibration"] = None  # calibration.py compares calibrated fits
        return {**common, "max_epochs": self.epochs, **self.parameters}


def _cell(panel, dataset, network, parameters, n, epochs, noise="clean", **kwargs):
    kind, _, percent = noise.partition(" ")
    name = f"{dataset}-{network}-n{n}-{epochs}ep-{kind}{percent}"
    kinds = {"clean": "none", "sym": "symmetric", "asym": "asymmetric"}
    rate = int(percent or 0) / 100
    about = (name, panel, dataset, network, n, epochs, rate, kinds[kind])
    return Cell(*about, parameters=parameters, **kwargs)


def _resnet(*widths):
    return {
        "module": SpaceToDepth,
        "module__widths": widths,
        "augmentation": "flip-crop",
    }


def _pixels(*hidden):
    sizes = {"module__in_features": 3 * 32 * 32, "module__n_classes": 10}
    return {"module": MLP, **sizes, "module__hidden": hidden}


# With image_shape, BSDClassifier treats rows as images and uses a residual network.
_DIGITS_RESNET = {"image_shape": (1, 8, 8)}
_NARROW_RESNET = {"image_shape": (1, 8, 8), "module__widths": (12, 24, 48)}


def _tuning():
    cifar10 = ("tuning", "cifar10")
    resnet = (*cifar10, "resnet-64", _resnet(16, 32, 64))
    pixels = (*cifar10, "mlp", _pixels(128, 128))
    yield _cell(*resnet, 1_000, 60)
    yield _cell(*resnet, 10_000, 10, rivals=True)
    yield _cell(*resnet, 10_000, 10, "sym 40")
    yield _cell(*resnet, 2_000, 60, rivals=True)
    yield _cell(*resnet, 4_000, 25)
    # Between overfitting and underfitting; `robustness.py` uses it too.
    yield _cell(*resnet, 5_000, 25, n_test=10_000)
    yield _cell(*resnet, 2_000, 60, "sym 40", rivals=True)
    yield _cell(*resnet, 4_000, 25, "sym 20")
    yield _cell(*resnet, 2_000, 60, "asym 40")
    yield _cell(*pixels, 4_000, 25)
    yield _cell(*pixels, 4_000, 60, "sym 40")
    images = ("tuning", "digits", "resnet", _DIGITS_RESNET)
    rows = ("tuning", "digits", "mlp", {})
    yield _cell(*images, 1_347, 25)
    yield _cell(*images, 1_347, 60, "sym 20")
    yield _cell(*rows, 449, 200)
    yield _cell(*rows, 1_347, 10)
    yield _cell(*rows, 1_347, 60, "sym 20")
    yield _cell(*rows, 1_347, 200, "sym 40")
    yield _cell(*rows, 449, 60, "asym 40", rivals=True)
    yield _cell("tuning", "breast_cancer", "mlp", {}, 569, 60)
    yield _cell("tuning", "breast_cancer", "mlp", {}, 569, 60, "sym 20")
    yield _cell("tuning", "wine", "mlp", {}, 178, 200)


def _final():
    cifar10 = ("final", "cifar10")
    resnet = (*cifar10, "resnet-96", _resnet(16, 48, 96))
    pixels = (*cifar10, "mlp-192", _pixels(192, 192))
    yield _cell(*resnet, 1_500, 60, rivals=True)
    yield _cell(*resnet, 3_000, 25)
    yield _cell(*resnet, 8_000, 10, rivals=True)
    yield _cell(*resnet, 1_500, 60, "sym 40", rivals=True)
    yield _cell(*resnet, 3_000, 25, "sym 20")
    yield _cell(*resnet, 3_000, 25, "asym 40")
    yield _cell(*resnet, 8_000, 10, "sym 40")
    yield _cell(*pixels, 3_000, 25)
    yield _cell(*pixels, 3_000, 60, "sym 40")
    images = ("final", "digits", "resnet-12", _NARROW_RESNET)
    rows = ("final", "digits", "mlp-96", {"module__hidden": (96, 96)})
    yield _cell(*images, 899, 25)
    yield _cell(*images, 899, 60, "sym 40")
    yield _cell(*rows, 300, 200)
    yield _cell(*rows, 1_198, 10)
    yield _cell(*rows, 1_198, 60, "sym 20")
    yield _cell(*rows, 1_198, 200, "sym 40")
    yield _cell(*rows, 599, 60, "asym 40", rivals=True)
    table = ("mlp-64", {"module__hidden": (64, 64)})
    yield _cell("final", "breast_cancer", *table, 569, 25)
    yield _cell("final", "breast_cancer", *table, 569, 60, "sym 20")
    yield _cell("final", "wine", *table, 178, 60)


# The usual settings of SGD for these networks, under the one-cycle schedule.
_LARGE = {
    "module": ResNet,
    "augmentation": "flip-crop",
    "device": "auto",
    "optimizer": torch.optim.SGD,
    "optimizer__momentum": 0.9,
    "optimizer__nesterov": True,
    "lr": 0.1,
    "weight_decay": 5e-4,
}


def _large():
    for depth in (18, 50):
        about = ("large", "cifar10", f"resnet{depth}")
        chosen = {**_LARGE, "module__depth": depth}
        for noise in ("clean", "sym 40"):
            yield _cell(*about, chosen, 50_000, 100, noise, rivals=True, n_test=10_000)


_NOISE = ("clean", "sym 20", "sym 40", "sym 60", "sym 80", "asym 40")


def _noise():
    """Yield cells with wrong labels that a network does and does not memorise."""
    resnet = _resnet(16, 48, 96)
    unchanged = {**resnet, "augmentation": None}
    for noise in _NOISE:
        about = ("noise", "cifar10", "resnet-96-unaugmented", unchanged)
        yield _cell(*about, 10_000, 20, noise, rivals=True, n_test=10_000)
    for noise in ("clean", "sym 40", "asym 40"):
        about = ("noise", "cifar10", "resnet-96", resnet)
        yield _cell(*about, 10_000, 60, noise, rivals=True, n_test=10_000)


def _noise_large():
    chosen = {**_LARGE, "module__depth": 18}
    for noise in _NOISE:
        about = ("noise-large", "cifar10", "resnet-18", chosen)
        yield _cell(*about, 50_000, 100, noise, rivals=True, n_test=10_000)


PANELS = {
    "tuning": (*_tuning(),),
    "final": (*_final(),),
    "large": (*_large(),),
    "noise": (*_noise(),),
    "noise-large": (*_noise_large(),),
}
CELLS = {cell.name: cell for cells in PANELS.values() for cell in cells}


def choose(panel: str, globs: Iterable[str]) -> list[Cell]:
    """Return the cells of a panel whose names match.

    Raises
    ------
    ValueError
        If no name matches.
    """
    return matching(PANELS[panel], globs, "cell")


def corrupt(y, n_classes: int, rate: float, kind: str, rng, confused=None):
    """Replace a fraction of the labels by wrong ones.

    Parameters
    ----------
    y : ndarray of shape (n,)
        True labels, 0 to `n_classes` - 1.
    n_classes : int
        Number of classes.
    rate : float
        Fraction of labels to change, rounded to a whole number of samples. "symmetric":
        the fraction of all labels; each becomes one of the *other* classes with equal
        probability. "asymmetric": the fraction of each class in `confused`; they get
        the label of its counterpart.
    kind : {"none", "symmetric", "asymmetric"}
        How new labels are chosen.
    rng : numpy.random.Generator
        Draws the samples and their new labels.
    confused : dict of int to int, optional
        The counterpart of each class that asymmetric noise changes.

    Returns
    -------
    ndarray of shape (n,)
    """
    given = y.copy()
    if kind == "symmetric":
        wrong = rng.choice(len(y), round(rate * len(y)), replace=False)
        given[wrong] += rng.integers(1, n_classes, len(wrong))
        given %= n_classes
    elif kind == "asymmetric":
        for before, after in confused.items():
            rows = np.flatnonzero(y == before)
            given[rng.choice(rows, round(rate * len(rows)), replace=False)] = after
    elif kind != "none":
        raise ValueError(f"unknown kind of noise: {kind!r}")
    return given


class Source(NamedTuple):
    """Location of CIFAR-10; see `add_data_arguments`."""

    data: Path
    npz: Path | None


class Split(NamedTuple):
    """Training data with given and true labels, and test data."""

    X: np.ndarray
    given: np.ndarray
    true: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


def subset(y, n: int, seed: int) -> np.ndarray:
    """Draw n rows, stratified and in random order; all rows keep their order."""
    rows = np.arange(len(y))
    if n == len(y):
        return rows
    return train_test_split(rows, train_size=n, stratify=y, random_state=seed)[0]


# The images of a seed are used by all methods, and by cells that differ in noise only.
@lru_cache(maxsize=2)
def _cifar10_train(source: Source, n: int, seed: int):
    return load_cifar10(source, choose=lambda y: subset(y, n, seed))


@lru_cache(maxsize=1)
def _cifar10_test(source: Source, n: int):
    return load_cifar10(source, n, train=False)


_lock = Lock()


def load(cell: Cell, seed: int, source: Source) -> list[Split]:
    """Return the data of a cell: one split, or the folds of a table.

    The subset, the folds and the noise depend on the seed only, so that all methods
    get the same data. Only training labels are changed.
    """
    if cell.dataset == "cifar10":
        with _lock:  # two threads would decode the same images
            X, y = _cifar10_train(source, cell.n, seed)
            X_test, y_test = _cifar10_test(source, cell.n_test)
        if cell.parameters["module"] is MLP:
            mean, std = X.mean(axis=(0, 2, 3)), X.std(axis=(0, 2, 3))
            X, X_test = (_flat(images, mean, std) for images in (X, X_test))
        splits = [(X, y, X_test, y_test)]
    elif cell.dataset == "digits":
        X, y = load_digits(return_X_y=True)
        X = (X / 16).astype(np.float32)
        rows = subset(y, cell.n, seed)
        rest = np.setdiff1d(np.arange(len(y)), rows)
        splits = [(X[rows], y[rows], X[rest], y[rest])]
    else:
        splits = list(_folds(*TABLES[cell.dataset](return_X_y=True), seed))
    confused = CONFUSED.get(cell.dataset)
    noise = (N_CLASSES[cell.dataset], cell.noise, cell.noise_kind)
    return [
        Split(
            X,
            corrupt(y, *noise, np.random.default_rng([seed, i]), confused),
            y,
            X_test,
            y_test,
        )
        for i, (X, y, X_test, y_test) in enumerate(splits)
    ]


def _flat(images, mean, std):
    """Standardise images by channel, as BSDClassifier does with uint8 images."""
    scaled = (images - mean[:, None, None]) / std[:, None, None]
    return scaled.reshape(len(images), -1).astype(np.float32)


def _folds(X, y, seed):
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(
        X, y
    ):
        scaler = StandardScaler().fit(X[train])
        scaled = (
            scaler.transform(X[rows]).astype(np.float32) for rows in (train, test)
        )
        X_train, X_test = scaled
        yield X_train, y[train], X_test, y[test]
