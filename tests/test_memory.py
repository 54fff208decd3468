from types import SimpleNamespace

import pytest
import torch

from skbsd import _memory
from skbsd._memory import free_memory, in_parts


@pytest.fixture
def small():
    """Doubles its input, at most three samples at once, and counts calls."""
    sizes = []

    def call(x):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2 * x

    return SimpleNamespace(call=call, sizes=sizes)


def test_batches_that_fit_stay_whole(small):
    batches = [torch.arange(3.0), torch.arange(2.0)]
    out = list(in_parts(small.call, batches))
    assert [part.tolist() for part in out] == [[0, 2, 4], [0, 2]]


def test_halves_until_it_fits_and_keeps_to_it(small):
    batches = [torch.arange(10.0), torch.arange(10.0, 15.0)]
    with pytest.warns(RuntimeWarning, match="a batch of 10 samples") as warned:
        out = torch.cat(list(in_parts(small.call, batches)))
    assert torch.equal(out, 2 * torch.arange(15.0))
    assert small.sizes == [10, 5, 2, 2, 2, 2, 2, 2, 2, 1]
    assert len(warned) == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_single_sample_that_does_not_fit(small):
    def call(x):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        list(in_parts(call, [torch.arange(10.0)]))


def test_what_is_no_tensor_is_passed_on():
    assert list(in_parts(lambda batch: batch["x"], [{"x": 1}])) == [1]


def test_memory_in_reserve_is_free(monkeypatch):
    for name, value in (
        ("mem_get_info", (10, 100)),
        ("memory_reserved", 50),
        ("memory_allocated", 20),
    ):
        monkeypatch.setattr(_memory.torch.cuda, name, lambda _, value=value: value)
    assert free_memory(torch.device("cuda")) == 40


def test_prediction_goes_on_without_memory(iris):
    from helpers import quick

    X, y = iris
    model = quick(max_epochs=1).fit(X, y)
    expected = model.predict_proba(X)
    network = type(model.module_)

    class Large(network):
        def forward(self, x):
            if len(x) > 40:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    model.module_.__class__ = Large
    with pytest.warns(RuntimeWarning, match="150 samples"):
        found = model.predict_proba(X)
    assert found == pytest.approx(expected, abs=1e-6)
