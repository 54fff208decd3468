"""Pyplot for tests of pictures: `pytest_plugins = ["drawing"]`."""

import pytest


@pytest.fixture
def plt():
    """Pyplot that draws to memory, its figures closed."""
    matplotlib = pytest.importorskip("matplotlib")
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    yield plt
    plt.close("all")
    matplotlib.use(backend)
