"""Digests differ if and only if the values differ."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from modules import Images, Linear
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import TensorDataset

from skbsd._identity import UnknownIdentityError, digest
from skbsd.contrastive import Contrastive


def factory(n):
    def add(x):
        return x + n

    return add


def recursive():
    def f(n):
        return n and f(n - 1)

    return f


def network(seed):
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


PAIRS = [
    (1, 1.0),
    (True, 1),
    ("a", b"a"),
    ([1, 2], (1, 2)),
    ([[1], 2], [[1, 2]]),
    ({"a": 1}, {"a": 2}),
    ({1, 2}, {1, 3}),
    (np.arange(3), np.arange(3).astype(np.int32)),
    (np.arange(4), np.arange(4).reshape(2, 2)),
    (np.array(["a", 1], object), np.array(["a", 2], object)),
    (np.array("2020-01-01", "M8[D]"), np.array("2020-01-02", "M8[D]")),
    (np.float32(1), np.float64(1)),
    (torch.zeros(2), torch.ones(2)),
    (torch.zeros(2), np.zeros(2, np.float32)),
    (Linear, nn.Linear),
    (lambda x: x + 1, lambda x: x + 2),
    (factory(1), factory(2)),
    (functools.partial(factory, 1), functools.partial(factory, n=1)),
    (network(0), network(1)),
    (np.random.RandomState(0), np.random.RandomState(1)),
    (ValidSplit(5), ValidSplit(4)),
    (Contrastive(), Contrastive(weight=0.5)),
    (range(3), range(4)),
    (TensorDataset(torch.zeros(2)), TensorDataset(torch.ones(2))),
    (torch.float32, torch.float64),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_other_contents(one, other):
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_classes_that_were_edited():
    def version(slope):
        class Network(nn.Module):
            def forward(self, x):
                return 1 * x if slope == 1 else 2 * x

        if slope == 2:
            Network.forward = lambda self, x: 2 * x
        return Network

    assert digest(version(1)) == digest(version(1))
    assert digest(version(1)) != digest(version(2))
    assert digest(version(1)()) != digest(version(2)())


def test_same_contents():
    assert digest(factory(1)) == digest(factory(1))
    assert digest(network(0)) == digest(network(0))
    assert digest({"a", "b", "c"}) == digest({"c", "b", "a"})
    assert digest(np.arange(6)[::2]) == digest(np.array([0, 2, 4]))
    assert digest(recursive()) == digest(recursive())


class Counting:
    offset = 1

    @staticmethod
    def shift(x):
        return x + 1

    @property
    def size(self):
        return 3


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("offset", 2),
        ("shift", staticmethod(lambda x: x + 2)),
        ("size", property(lambda self: 4)),
    ],
)
def test_parts_of_a_class(monkeypatch, name, other):
    before = digest(Counting)
    monkeypatch.setattr(Counting, name, other)
    assert digest(Counting) != before


SHIFT = 1


def shifted(x):
    return x + SHIFT


def test_values_from_elsewhere(monkeypatch):
    before = digest(shifted)
    monkeypatch.setitem(globals(), "SHIFT", 2)
    assert digest(shifted) != before


def test_functions_within_functions():
    def one(x):
        return sorted(x, key=lambda v: v)

    first = digest(one)

    def one(x):
        return sorted(x, key=lambda v: -v)

    assert digest(one) != first


def test_datasets():
    assert digest(Images([1], [1])) == digest(Images([1], [1]))
    assert digest(Images([1], [1])) != digest(Images([2], [1]))
    # A part whose contents are not accessible is left out.
    assert digest(Images(iter([]), [1])) == digest(Images(iter([]), [1]))


def test_the_same_in_another_process():
    code = (
        "from skbsd._identity import digest; import torch; "
        "print(digest([{'a', 'b'}, torch.arange(3), torch.optim.SGD, 'x', None]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_what_shows_nothing():
    with pytest.raises(UnknownIdentityError, match="does not give access"):
        digest(object())


SCRIPT = """
import joblib
from torch import nn
from skbsd._identity import digest

class Network(nn.Module):
    width = 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, self.width)

    def forward(self, x):
        return self.layer(x)

if __name__ == "__main__":
    jobs = [joblib.delayed(digest)(Network) for _ in range(2)]
    found = joblib.Parallel(n_jobs=2)(jobs)
    assert set(found) == {digest(Network)}, found
"""


def test_the_same_in_a_worker(tmp_path):
    """A search with n_jobs=2 continues one with n_jobs=1 that was killed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, script], check=True, capture_output=True)
