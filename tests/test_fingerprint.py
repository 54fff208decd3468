import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from skbsd._fingerprint import _ROW, _sums, _sums_on_device, fingerprint

Y = np.arange(3)


def test_is_the_same_for_the_same_numbers():
    X = np.random.default_rng(0).normal(size=(3000, 31)).astype(np.float32)
    expected = fingerprint(X, Y)
    assert fingerprint(X.copy(), Y) == expected
    assert fingerprint(np.asfortranarray(X), Y) == expected
    assert fingerprint(torch.from_numpy(X), Y) == expected


@pytest.mark.parametrize("n", [3, 8 * _ROW, 20 * _ROW + 5])
def test_notices_a_single_bit(n):
    X = np.random.default_rng(0).integers(256, size=(n, 1), dtype=np.uint8)
    before = fingerprint(X, Y)
    for i in (0, n // 2, n - 1):
        other = X.copy()
        other[i] ^= 0x80
        assert fingerprint(other, Y) != before
    assert fingerprint(X, Y + 1) != before
    assert fingerprint(X.reshape(1, -1), Y) != before
    assert fingerprint(X.view(np.int8), Y) != before


def test_notices_another_order():
    X = np.random.default_rng(0).integers(256, size=(100, 8 * _ROW), dtype=np.uint8)
    other = X.copy()
    other[[3, 70]] = X[[70, 3]]
    assert fingerprint(other, Y) != fingerprint(X, Y)
    other = X.copy()
    other[3, :16] = X[3, [*range(8, 16), *range(8)]]
    assert fingerprint(other, Y) != fingerprint(X, Y)


def test_sums_are_the_same_on_a_gpu():
    octets = np.random.default_rng(0).integers(256, size=3 * 8 * _ROW, dtype=np.uint8)
    found = _sums_on_device(torch.from_numpy(octets))
    assert np.array_equal(found, _sums(octets))


def test_of_a_dataset():
    X, other = torch.zeros(3, 2), torch.ones(3, 2)
    assert fingerprint(TensorDataset(X), Y) == fingerprint(TensorDataset(X.clone()), Y)
    assert fingerprint(TensorDataset(X), Y) != fingerprint(TensorDataset(other), Y)


def test_is_the_same_in_another_process():
    code = (
        "import numpy as np; from skbsd._fingerprint import fingerprint; "
        "print(fingerprint(np.arange(50_000.0), np.arange(3)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(fingerprint(np.arange(50_000.0), Y))
