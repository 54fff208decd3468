"""Networks whose initial weights depend on the data."""

import pickle

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from modules import Linear
from skorch.callbacks import Callback
from torch.utils.data import TensorDataset

from skbsd import BSDClassifier, _initialisation
from skbsd.networks import SpeedNet

SMALL = {"module__in_channels": 1, "module__widths": (4, 6)}


class Watching(Linear):
    """Stores the data that it was initialised with."""

    shown = ()

    def initialize_from(self, x):
        assert not torch.is_grad_enabled()
        torch.rand(1)  # leaves no trace
        self.shown = (*self.shown, x)


class Wider(Callback):
    """Sets an argument of the network, as skorch's InputShapeSetter."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        net.set_params(module__scale=2.0)


def test_a_new_network_is_shown_training_samples(iris):
    X, y = iris
    model = quick(module=Watching).fit(X, y)
    (shown,) = model.module_.shown
    np.testing.assert_array_equal(shown.numpy(), X.astype(np.float32))
    assert same_weights(model, quick(module=Linear).fit(X, y))


def test_only_what_is_trained_on_is_shown(iris, monkeypatch):
    X, y = iris
    weight = np.arange(150) % 2
    monkeypatch.setattr(_initialisation, "_SAMPLES", 30)
    model = quick(module=Watching, iterator_valid__batch_size=7).fit(X, y, weight)
    (shown,) = model.module_.shown
    rows = np.flatnonzero(weight)[np.arange(30) * 75 // 30]
    assert set(y[rows]) == {0, 1, 2}  # though they are sorted
    np.testing.assert_array_equal(shown.numpy(), X[rows].astype(np.float32))


def test_of_large_samples_fewer_are_shown(iris, monkeypatch):
    monkeypatch.setattr(_initialisation, "_VALUES", 50)
    (shown,) = quick(module=Watching).fit(*iris).module_.shown
    assert shown.shape == (12, 4)


def test_datasets(iris):
    X, y = iris
    data = TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(y))
    model = quick(module=Watching).fit(data)
    (shown,) = model.module_.shown
    assert torch.equal(shown, data.tensors[0])
    assert same_weights(model, quick(module=Linear).fit(data))


def test_a_network_that_was_given_keeps_its_weights(iris):
    assert quick(module=Watching()).fit(*iris).module_.shown == ()
    # With arguments, its class is built anew.
    assert (
        len(quick(module=Watching(), module__scale=1.0).fit(*iris).module_.shown) == 1
    )


def test_once_per_network(iris):
    model = (
        quick(module=Watching, warm_start=True).fit(*iris).partial_fit(*iris).fit(*iris)
    )
    assert len(model.module_.shown) == 1
    assert len(quick(module=Watching).partial_fit(*iris).module_.shown) == 1
    loaded = quick(module=Watching).initialize()
    assert loaded.partial_fit(*iris).module_.shown == ()


def test_a_network_that_a_callback_has_built_anew(iris):
    model = quick(module=Watching, callbacks=[Wider]).fit(*iris)
    assert (len(model.module_.shown), model.module_.scale) == (1, 2.0)


def test_uint8_images_are_shown_standardised(uint8_digits):
    X, y = uint8_digits[0][:300].repeat(2, 2).repeat(2, 3), uint8_digits[1][:300]
    model = quick(module=SpeedNet, **SMALL, max_epochs=1, augmentation="flip-crop").fit(
        X, y
    )
    assert model._preparation.channels_last
    x = torch.tensor((X / 1.0 - model.image_mean_[0]) / model.image_std_[0])
    expected = SpeedNet(1, 10).double()
    expected.initialize_from(x)
    torch.testing.assert_close(
        model.module_.whitening.weight,
        expected.whitening.weight.float(),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("depth", [2, 3])
def test_speed_net_is_saved_as_plain_data(digits, tmp_path, depth):
    X, y = digits[0][:200].repeat(2, 2).repeat(2, 3), digits[1][:200]
    model = quick(module=SpeedNet, **SMALL, module__depth=depth, max_epochs=1).fit(X, y)
    model.save(tmp_path / "model.skbsd", posterior=True)
    loaded = BSDClassifier.load(tmp_path / "model.skbsd")
    for copy in (loaded, pickle.loads(pickle.dumps(model))):
        assert same_weights(copy, model)
        np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
        assert same_weights(copy.partial_fit(X, y), model) is False
    assert isinstance(model.__getstate__()["_components"], dict)  # no pickle within
