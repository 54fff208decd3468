"""The state of an estimator with pickle, joblib, skops and copies."""

import copy
import pickle

import joblib
import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from modules import Convolution, Linear
from numpy.testing import assert_array_equal
from skorch.callbacks import EpochScoring
from torch import nn

from skbsd import BSDClassifier
from skbsd._net import _LATER_PARAMETERS
from skbsd._state import PickledComponents
from skbsd.posterior import DirichletPosterior


def plain(value) -> bool:
    """Whether a value is NumPy and plain data throughout."""
    if isinstance(value, dict):
        return all(plain(k) and plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or isinstance(
        value, bool | int | float | str | np.ndarray | np.generic
    )


def by_pickle(model, tmp_path):
    return pickle.loads(pickle.dumps(model))


def by_joblib(model, tmp_path):
    joblib.dump(model, tmp_path / "model.joblib")
    return joblib.load(tmp_path / "model.joblib")


def by_compressed_joblib(model, tmp_path):
    joblib.dump(model, tmp_path / "model.joblib.gz", compress=3)
    return joblib.load(tmp_path / "model.joblib.gz")


def by_mapped_joblib(model, tmp_path):
    joblib.dump(model, tmp_path / "model.joblib")
    return joblib.load(tmp_path / "model.joblib", mmap_mode="r")


def by_skops(model, tmp_path):
    io = pytest.importorskip("skops.io")
    data = io.dumps(model)
    return io.loads(data, trusted=io.get_untrusted_types(data=data))


def by_copy(model, tmp_path):
    return copy.copy(model)


def by_deepcopy(model, tmp_path):
    return copy.deepcopy(model)


WAYS = [
    by_pickle,
    by_joblib,
    by_compressed_joblib,
    by_mapped_joblib,
    by_skops,
    by_deepcopy,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"batch_size": -1},
        {"posterior_dtype": "float16", "optimizer__betas": (0.8, 0.99)},
        {"posterior_dtype": "compact-2"},
        {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
        {"module": Linear},
        {"optimizer": torch.optim.Adagrad},
    ],
)
def test_predictions_and_what_follows_are_the_same(iris, tmp_path, way, given):
    model = quick(**given).fit(*iris)
    other = way(model, tmp_path)
    assert np.array_equal(other.predict_proba(iris[0]), model.predict_proba(iris[0]))
    assert not other.module_.training
    for one in (model, other):
        one.partial_fit(*iris)
    assert same_weights(model, other)
    mine, theirs = model.posterior_.state_dict(), other.posterior_.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("way", WAYS)
def test_uint8_images(uint8_digits, tmp_path, way):
    X, y = uint8_digits[0][:200], uint8_digits[1][:200]
    model = quick().fit(X, y)
    other = way(model, tmp_path)
    assert np.array_equal(other.predict_proba(X), model.predict_proba(X))
    assert same_weights(model.partial_fit(X, y), other.partial_fit(X, y))


def test_a_mapped_file_is_not_written_to(iris, tmp_path):
    joblib.dump(quick().fit(*iris), tmp_path / "model.joblib")
    before = (tmp_path / "model.joblib").read_bytes()
    model = joblib.load(tmp_path / "model.joblib", mmap_mode="r+")
    model.partial_fit(*iris)
    assert (tmp_path / "model.joblib").read_bytes() == before


def test_a_copy_goes_its_own_way(iris):
    model = quick().fit(*iris)
    before = model.predict_proba(iris[0])
    copy.deepcopy(model).partial_fit(*iris)
    assert np.array_equal(model.predict_proba(iris[0]), before)


def test_a_live_optimizer_can_be_set(iris, tmp_path):
    model = by_pickle(quick(lr_schedule="constant").fit(*iris), tmp_path)
    model.set_params(lr=0.5)
    assert model.optimizer_.param_groups[0]["lr"] == 0.5


def test_state_of_posterior_and_generators_is_plain(iris):
    model = quick(posterior_dtype="float16").fit(*iris)
    for part in (model.posterior_, model._generators, model._preparation):
        assert plain(part.__getstate__()), part


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_a_posterior_comes_back_bit_for_bit(dtype):
    posterior = DirichletPosterior(torch.tensor([0, 1, 2]), 3, dtype=dtype)
    posterior.update(torch.randn(2, 3), torch.tensor([0, 2]))
    other = pickle.loads(pickle.dumps(posterior))
    assert other.dtype == dtype
    mine, theirs = posterior.state_dict(), other.state_dict()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert torch.equal(mine[name], theirs[name])


class TestWhatIsPickledWithin:
    """Networks of other classes, and networks that plain data cannot describe."""

    @pytest.mark.parametrize(
        ("given", "is_plain"),
        [
            ({}, True),
            ({"module__hidden": (4,), "optimizer": torch.optim.Adam}, True),
            ({"module": Linear}, False),
            ({"optimizer": torch.optim.Adagrad}, False),
        ],
    )
    def test_only_where_it_must(self, iris, given, is_plain):
        components = quick(**given).fit(*iris).__getstate__()["_components"]
        assert plain(components) == is_plain
        assert isinstance(components, PickledComponents) != is_plain

    def test_frozen_weights_stay_frozen(self, iris, tmp_path):
        model = quick().fit(*iris)
        next(model.module_.parameters()).requires_grad_(False)
        other = by_pickle(model, tmp_path)
        assert not next(other.module_.parameters()).requires_grad

    def test_a_changed_network_stays_changed(self, iris, tmp_path):
        model = quick().fit(*iris)
        model.module_.layers[1] = nn.GELU()
        other = by_pickle(model, tmp_path)
        P = model.predict_proba(iris[0])
        assert np.array_equal(other.predict_proba(iris[0]), P)

    def test_callbacks_of_the_user_are_kept(self, iris, tmp_path):
        scoring = EpochScoring("accuracy", lower_is_better=False, on_train=True)
        model = quick(callbacks=[("score", scoring)]).fit(*iris)
        other = by_pickle(model, tmp_path)
        assert [name for name, _ in other.callbacks_] == [
            name for name, _ in model.callbacks_
        ]


class TestSkops:
    @pytest.fixture
    def io(self):
        return pytest.importorskip("skops.io")

    def test_a_network_of_this_library_needs_no_functions(self, iris, io):
        data = io.dumps(quick().fit(*iris))
        assert set(io.get_untrusted_types(data=data)) <= {
            "skbsd._generators.Generators",
            "skbsd._preparation.Preparation",
            "skbsd._rules.Choice",
            "skbsd.calibration.Calibration",
            "skbsd.classifier.BSDClassifier",
            "skbsd.posterior.DirichletPosterior",
            "skorch.history.History",
            "torch.device",
            "torch.optim.adamw.AdamW",
            "torch.utils.data.dataloader.DataLoader",
        }

    def test_a_pickle_within_has_a_name_of_its_own(self, digits, io):
        data = io.dumps(quick(module=Convolution, max_epochs=1).fit(*digits))
        types = set(io.get_untrusted_types(data=data))
        assert "skbsd._state.PickledComponents" in types
        with pytest.raises(Exception, match="PickledComponents"):
            io.loads(data, trusted=sorted(types - {"skbsd._state.PickledComponents"}))

    def test_bytes_in_a_state_are_not_unpickled(self, iris):
        state = quick().fit(*iris).__getstate__()
        del state["_components"]
        state["__cuda_dependent_attributes__"] = b"no pickle, so reading it would fail"
        other = quick()
        other.__setstate__(state)
        assert not hasattr(other, "module_")


def test_of_a_version_with_fewer_parameters(iris):
    model = quick().fit(*iris)
    state = model.__getstate__()
    for name in _LATER_PARAMETERS:
        del state[name]
    other = BSDClassifier.__new__(BSDClassifier)
    other.__setstate__(state)
    assert repr(other) == repr(model)
    assert_array_equal(other.predict_proba(iris[0]), model.predict_proba(iris[0]))
    other.partial_fit(*iris)
