"""Fingerprints of trained models, to detect whether a change of code alters results.

Each setting is trained on a CPU with one thread. The script prints a hash of its
network (parameters and buffers), of its posterior (rows, visits, agreement) and of its
history (all except times). The same code gives the same hashes on the same machine and
versions. Other processors and versions of PyTorch round differently, so compare only
with hashes that the code before the change gave on the same machine:

    git stash; python benchmarks/golden.py --write /tmp/before.json; git stash pop
    python benchmarks/golden.py --compare /tmp/before.json

`--compare` exits with status 1 if a hash differs, and prints which part differs.
"""

import argparse
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EarlyStopping, EpochScoring, GradientNormClipping
from skorch.callbacks import LRScheduler as SkorchScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import TensorDataset

from skbsd import BSDClassifier
from skbsd.contrastive import Contrastive
from skbsd.networks import MLP, SmallResNet


class DropoutNet(nn.Module):
    """A custom module with dropout that returns a tuple of logits and embedding."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        """Return logits and embedding."""
        embedding = self.body(x)
        return self.head(embedding), embedding


@cache
def table(name: str):
    X, y = {"wine": load_wine, "cancer": load_breast_cancer, "digits": load_digits}[
        name
    ](return_X_y=True)
    return StandardScaler().fit_transform(X), y


@cache
def images(dtype: str, n: int = 600):
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 1, 8, 8)[:n]
    X = (X * 15).astype(np.uint8) if dtype == "uint8" else X.astype(np.float32) / 16
    return X, y[:n]


def weights_of(y: np.ndarray) -> np.ndarray:
    """Return the weights 0, 1, 2 in turn."""
    return (np.arange(len(y)) % 3).astype(float)


def model(**parameters) -> BSDClassifier:
    defaults = {"max_epochs": 3, "random_state": 0, "device": "cpu"}
    return BSDClassifier(**(defaults | parameters), calibration=None)


def fitted(data: Callable, *, weighted: bool = False, **parameters) -> BSDClassifier:
    X, y = data()
    weight = weights_of(y) if weighted else None
    return model(**parameters).fit(X, y, sample_weight=weight)


def digits():
    X, y = table("digits")
    return X[:700], y[:700]


def twice(data: Callable, **parameters) -> BSDClassifier:
    X, y = data()
    return model(**parameters).fit(X, y).partial_fit(X, y)


def stream() -> BSDClassifier:
    X, y = digits()
    net = model()
    for part in np.array_split(np.arange(len(y)), 3):
        net.partial_fit(X[part], y[part], classes=np.arange(10))
    return net


def dataset() -> BSDClassifier:
    X, y = digits()
    pairs = TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(y))
    return model(module=MLP(64, 10)).fit(pairs)


def of_predictions(net: BSDClassifier, X: np.ndarray) -> BSDClassifier:
    """Predict between two calls of training, which must not change the results."""
    net.predict_proba(X)
    return net.partial_fit(X, table("wine")[1])


split = ValidSplit(5, stratified=True)
SETTINGS: dict[str, Callable[[], BSDClassifier]] = {
    "table": lambda: fitted(digits),
    "table, one batch, double": lambda: fitted(lambda: table("wine"), batch_size=-1),
    "two classes": lambda: fitted(lambda: table("cancer")),
    "weights": lambda: fitted(digits, weighted=True),
    "class weights": lambda: fitted(digits, class_weight="balanced"),
    "cross-entropy": lambda: fitted(digits, prior_strength=math.inf),
    "paper": lambda: fitted(digits, prior_strength=20, discount=0.9),
    "noisy": lambda: fitted(digits, prior_strength="noisy"),
    "weighted evidence": lambda: fitted(digits, prior_strength=50, evidence="weighted"),
    "half store": lambda: fitted(digits, posterior_dtype="float16"),
    "cosine, SGD": lambda: fitted(
        digits,
        lr_schedule="cosine",
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
    ),
    "constant, Adam, groups": lambda: fitted(
        digits,
        lr_schedule="constant",
        optimizer=torch.optim.Adam,
        optimizer__param_groups=[("*bias", {"lr": 0.02})],
        module=MLP(64, 10),
    ),
    "LBFGS": lambda: fitted(
        lambda: table("wine"),
        optimizer=torch.optim.LBFGS,
        optimizer__max_iter=4,
        lr=0.1,
        lr_schedule="constant",
    ),
    "own module": lambda: fitted(digits, module=DropoutNet, module__width=24),
    "instance": lambda: fitted(digits, module=MLP(64, 10, hidden=(32,))),
    "float images": lambda: fitted(lambda: images("float32")),
    "uint8 images": lambda: fitted(lambda: images("uint8")),
    "uint8 images, weights": lambda: fitted(lambda: images("uint8"), weighted=True),
    "flip-crop": lambda: fitted(lambda: images("uint8"), augmentation="flip-crop"),
    "strong": lambda: fitted(lambda: images("uint8"), augmentation="strong"),
    "flat images": lambda: fitted(
        lambda: (images("float32")[0].reshape(600, 64), images("float32")[1]),
        image_shape=(1, 8, 8),
    ),
    "channels first": lambda: fitted(
        lambda: images("float32"), channels_last=False, module=SmallResNet(1, 10)
    ),
    "two views": lambda: fitted(
        lambda: images("uint8"), augmentation="flip-crop", contrastive=0.2
    ),
    "two views, supervised, weights": lambda: fitted(
        lambda: images("uint8"),
        weighted=True,
        contrastive=Contrastive(supervised=True, n_components=16),
    ),
    "two views, no loss": lambda: fitted(
        lambda: images("uint8"), contrastive=Contrastive(weight=0.0)
    ),
    "validation": lambda: fitted(digits, train_split=split),
    "validation, weights, images": lambda: fitted(
        lambda: images("uint8"), weighted=True, train_split=split
    ),
    "early stopping": lambda: fitted(
        digits,
        train_split=split,
        max_epochs=12,
        callbacks=[EarlyStopping(patience=1, threshold=0.1)],
    ),
    "callbacks": lambda: fitted(
        digits,
        callbacks=[
            GradientNormClipping(0.5),
            EpochScoring("accuracy", on_train=True, name="train_acc"),
            SkorchScheduler("StepLR", step_size=2),
        ],
    ),
    "partial_fit, same data": lambda: twice(digits),
    "partial_fit, images, two views": lambda: twice(
        lambda: images("uint8"), contrastive=0.2
    ),
    "partial_fit, stream": stream,
    "warm start": lambda: model(warm_start=True).fit(*digits()).fit(*digits()),
    "prediction in between": lambda: of_predictions(
        fitted(lambda: table("wine")), table("wine")[0]
    ),
    "Dataset": dataset,
    "loader": lambda: fitted(digits, iterator_train__num_workers=0, batch_size=64),
    "odd last batch": lambda: fitted(lambda: images("uint8", 129)),
    "compile": lambda: fitted(
        digits, compile=True, compile__backend="aot_eager", max_epochs=2
    ),
}


def fingerprint(parts) -> str:
    """Return a hash of names and values, with arrays as bytes."""
    digest = hashlib.sha256()
    for name, value in parts:
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous().numpy()
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(value.tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def history_of(net: BSDClassifier):
    """Yield the numbers of a history, without the times."""
    for i, epoch in enumerate(net.history_):
        for key, value in sorted(epoch.items()):
            if key == "batches":
                for batch in value:
                    yield from ((f"{i} {k}", v) for k, v in sorted(batch.items()))
            elif key not in ("dur", "event_lr"):
                yield f"{i} {key}", float(value)


def fingerprints(net: BSDClassifier) -> dict[str, str]:
    return {
        "network": fingerprint(sorted(net.module_.state_dict().items())),
        "posterior": fingerprint(sorted(net.posterior_.state_dict().items())),
        "history": fingerprint(history_of(net)),
    }


def compare(found: dict, expected: dict) -> int:
    """Print the differences; return the number of settings that differ."""
    different = 0
    for name in found:
        if name not in expected:
            print(f"{name}: not in the file to compare with")
            continue
        parts = [p for p in found[name] if found[name][p] != expected[name][p]]
        if parts:
            different += 1
            print(f"{name}: different {', '.join(parts)}")
    print(f"{len(found) - different} of {len(found)} settings are unchanged")
    return different


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--write", type=Path, help="JSON file for the hashes")
    parser.add_argument("--compare", type=Path, help="JSON to compare with")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as about a small split
        for name in args.settings:
            torch.manual_seed(0)  # for networks that are passed as instances
            found[name] = fingerprints(SETTINGS[name]())
            print(f"{name:32}", *found[name].values(), flush=True)
    print(f"{len(found)} settings, PyTorch {torch.__version__}")
    if args.write:
        args.write.write_text(json.dumps(found, indent=1) + "\n")
    if args.compare:
        sys.exit(compare(found, json.loads(args.compare.read_text())) > 0)


if __name__ == "__main__":
    main()
