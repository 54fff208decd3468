"""Prediction: of few rows by a short way, in many threads, and with one copy."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick, weights
from modules import Dropout
from numpy.testing import assert_array_equal
from torch.utils._python_dispatch import TorchDispatchMode

from skbsd import _check_inputs
from skbsd.calibration import Calibration

METHODS = ("predict_proba", "predict_log_proba", "decision_function", "predict")


@pytest.fixture
def model(iris):
    model = quick().fit(*iris)
    model.calibration_ = Calibration(1.3, np.array([0.1, -0.2, 0.1]))
    return model


class TestFewRows:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32, ">f8", np.uint8])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_same_as_by_the_long_way(self, model, iris, monkeypatch, dtype, order):
        X = np.asarray(iris[0][:20], dtype=dtype, order=order)
        X.flags.writeable = False
        found = [getattr(model, method)(X) for method in METHODS]
        monkeypatch.setattr(_check_inputs, "_SMALL", 0)
        for method, values in zip(METHODS, found, strict=True):
            assert_array_equal(getattr(model, method)(X), values)

    @pytest.mark.parametrize(
        "X",
        [
            np.array([[1.0, np.nan, 1.0, 1.0]]),
            np.array([[1.0, np.inf, 1.0, 1.0]]),
            np.array([[1.0, 1e39, 1.0, 1.0]]),
            np.ones((1, 3)),
            np.ones((1, 5)),
            np.ones((0, 4)),
            np.ones(4),
            np.ones((1, 2, 2)),
            np.ones((1, 1, 2, 2)),
            np.ones((1, 1, 2, 2), np.uint8),
            np.array([["a", "b", "c", "d"]]),
            np.array([["2020-01-01"] * 4], dtype="M8[D]"),
            np.ones((1, 4), complex),
        ],
    )
    @pytest.mark.parametrize("method", ["predict_proba", "predict"])
    def test_same_errors_as_by_the_long_way(self, model, monkeypatch, X, method):
        model._preparation = model._preparation.changed(dtype="float32")
        model.module_.float()
        with pytest.raises(ValueError, match=" ") as short:
            getattr(model, method)(X)
        monkeypatch.setattr(_check_inputs, "_SMALL", 0)
        with pytest.raises(ValueError, match=" ") as long:
            getattr(model, method)(X)
        assert str(short.value) == str(long.value)

    def test_names_of_features(self, iris):
        frame = pd.DataFrame(iris[0], columns=list("abcd"))
        model = quick().fit(frame, iris[1])
        with pytest.warns(UserWarning, match="valid feature names"):
            found = model.predict_proba(iris[0][:1])
        assert_array_equal(found, model.predict_proba(frame[:1]))
        with pytest.raises(ValueError, match="feature names"):
            model.predict_proba(frame[:1][list("bacd")])

    def test_a_sum_that_is_too_large(self, iris):
        """Sums tell that all numbers are finite, but not that one is not."""
        model = quick(module__hidden=(4,), batch_size=64).fit(*iris)
        assert model._preparation.dtype == "float32"
        found = model.predict_log_proba(np.full((1, 4), 2e38))
        assert found.shape == (1, 3)

    def test_the_result_is_no_memory_of_the_network(self, iris):
        class Keeps(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(4, 3)
                self.register_buffer("kept", torch.zeros(1, 3))

            def forward(self, x):
                return self.layer(x) if self.training else self.kept

        model = quick(module=Keeps).fit(*iris)
        before = weights(model)
        model.decision_function(iris[0][:1])[:] = 5
        assert all(map(torch.equal, before, weights(model)))

    def test_options_that_are_set_later_count(self, model, iris):
        model.set_params(iterator_valid__shuffle=True)
        with pytest.raises(ValueError, match="would shuffle predictions"):
            model.predict_proba(iris[0][:1])


@pytest.mark.parametrize("network", ["float64", "float32", "dropout", "images"])
def test_32_threads(iris, uint8_digits, network):
    X, y = (a[:140] for a in (uint8_digits if network == "images" else iris))
    kwargs = {
        "float64": {},
        "float32": {"precision": "float32"},
        "dropout": {"module": Dropout},
        "images": {"prediction_views": "flip"},
    }[network]
    model = quick(max_epochs=1, **kwargs).fit(X, y)
    model.calibration_ = Calibration(0.7, np.linspace(0, 1, len(model.classes_)))
    parts = [X[i : i + 1 + i % 5] for i in range(0, 128, 4)]
    expected = [model.predict_proba(x) for x in parts]
    before, attributes = weights(model), dict(vars(model))
    state = torch.get_rng_state()
    with ThreadPoolExecutor(32) as pool:
        for _ in range(5):
            found = list(pool.map(model.predict_proba, parts))
            for one, other in zip(found, expected, strict=True):
                assert_array_equal(one, other)
    assert not any(module.training for module in model.module_.modules())
    assert all(map(torch.equal, before, weights(model)))
    assert vars(model) == attributes
    assert torch.equal(torch.get_rng_state(), state)


class LargeTensors(TorchDispatchMode):
    """Notes the memory of tensors that are as large as this."""

    def __init__(self, n_bytes):
        super().__init__()
        self.n_bytes = n_bytes
        self.sizes = {}
        self._kept = []  # so that no other one has the address of one that is gone

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            memory = out.untyped_storage()
            if memory.nbytes() >= self.n_bytes:
                self.sizes[memory.data_ptr()] = memory.nbytes()
                self._kept.append(memory)
        return out


@pytest.mark.parametrize(
    ("method", "copies"),
    [
        ("predict_proba", 1),
        ("predict_log_proba", 1),
        ("decision_function", 1),
        ("predict", 0),
    ],
)
def test_nothing_as_large_as_the_result_beside_it(method, copies):
    n_classes, n = 64, 20_000
    rng = np.random.default_rng(0)
    y = np.arange(256) % n_classes
    model = quick(max_epochs=1, batch_size=128, module__hidden=(8,))
    model.fit(rng.normal(size=(256, 4)), y)
    model.calibration_ = Calibration(1.3, np.linspace(0, 1, n_classes))
    X = rng.normal(size=(n, 4)).astype(np.float32)
    with LargeTensors(n * n_classes * 4 // 2) as large:
        out = getattr(model, method)(X)
    assert len(out) == n
    assert len(large.sizes) == copies, large.sizes


def test_a_large_batch_is_worked_on_in_parts(monkeypatch, iris):
    model = quick(max_epochs=1).fit(*iris)
    expected = [getattr(model, method)(iris[0]) for method in METHODS]
    monkeypatch.setattr("skbsd._gathering._LARGEST_PART", 200)
    for method, values in zip(METHODS, expected, strict=True):
        assert_array_equal(getattr(model, method)(iris[0]), values)
