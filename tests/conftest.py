import os

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import StandardScaler

# The networks of the tests are too small to gain from a second thread.
torch.set_num_threads(1)


def pytest_configure(config):
    """Hide GPUs unless the GPU tests are selected, as expected values are the CPU's.

    device="auto" would use them. `make test-gpu` runs the GPU tests.
    """
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # For child processes too, as test files run in parallel.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="session")
def digits():
    """Images (1797, 1, 8, 8) of 0 to 16, as float32."""
    X, y = load_digits(return_X_y=True)
    return X.reshape(-1, 1, 8, 8).astype(np.float32), y


@pytest.fixture(scope="session")
def uint8_digits(digits):
    X, y = digits
    return (X * 15).astype(np.uint8), y


@pytest.fixture
def plt():
    """Return pyplot with the Agg backend and no open figures."""
    matplotlib = pytest.importorskip("matplotlib")
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    yield plt
    plt.close("all")
    matplotlib.use(backend)
