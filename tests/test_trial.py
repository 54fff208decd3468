"""Arrays of any number of dimensions, and integers that a network embeds."""

import numpy as np
import pytest
import torch
from helpers import quick, same_weights, weights
from modules import Linear, Sequence, Words
from torch import nn

from skbsd._trial import has_embedding, needs_integers


@pytest.fixture(scope="module")
def words():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    return rng.integers(0, 6, (150, 5)) + 6 * y[:, None], y


class TestIntegers:
    @pytest.mark.parametrize(
        "dtype", [np.int64, np.int32, np.int16, np.uint8, np.uint16, np.uint32, ">i8"]
    )
    def test_embedded(self, words, dtype):
        X, y = words
        model = quick(module=Words, max_epochs=20, batch_size=16)
        model.fit(X.astype(dtype), y)
        assert model.score(X, y) > 0.95
        assert model.score(torch.tensor(X), y) > 0.95

    def test_instance_and_one_hot(self, words):
        class OneHot(Linear):
            def forward(self, x):
                return super().forward(nn.functional.one_hot(x, 20).sum(1).float())

        X, y = words
        network = OneHot(20)
        before = weights_of(network)
        model = quick(module=network, max_epochs=20).fit(X, y)
        assert model.score(X, y) > 0.9
        assert all(map(torch.equal, before, weights_of(network)))

    def test_network_of_floats_gets_floats(self, words):
        X, y = words
        module = {"module": Linear, "module__in_features": 5}
        expected = quick(**module).fit(X.astype(float), y)
        model = quick(**module).fit(X, y)
        assert same_weights(model, expected)
        assert np.array_equal(model.predict_proba(X), expected.predict_proba(X))

    def test_embedding_that_takes_floats_gets_floats(self, words):
        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.words = nn.Embedding(20, 4)
                self.out = nn.Linear(8, 3)

            def forward(self, x):
                embedded = self.words(x[:, 0].long())
                return self.out(torch.cat([embedded, x[:, 1:]], dim=1))

        X, y = words
        model = quick(module=Mixed).fit(X, y)
        assert same_weights(model, quick(module=Mixed).fit(X.astype(float), y))

    def test_no_module_gets_floats(self, words):
        X, y = words
        assert same_weights(quick().fit(X, y), quick().fit(X.astype(float), y))

    def test_calibration_and_partial_fit(self, words):
        X, y = words
        model = quick(module=Words, calibration="cross-fit", max_epochs=3).fit(X, y)
        assert model.calibration_.n_samples > 0
        model.partial_fit(X, y)
        assert model.n_iter_ == 6

    def test_prediction_of_floats(self, words):
        X, y = words
        model = quick(module=Words).fit(X, y)
        with pytest.raises(ValueError, match=r"float64, but .* int64.*astype"):
            model.predict(X.astype(float))

    def test_loaded_weights(self, words, tmp_path):
        X, y = words
        model = quick(module=Words).fit(X, y)
        model.save_params(f_params=tmp_path / "weights")
        other = quick(module=Words).initialize()
        other.load_params(f_params=tmp_path / "weights")
        assert np.array_equal(other.predict_proba(X), model.predict_proba(X))

    def test_the_error_of_an_index_is_the_networks(self, words):
        X, y = words
        with pytest.raises(RuntimeError, match="not in the valid range"):
            quick(module=Words).fit(X + 100, y)

    def test_trial_draws_nothing(self, words):
        X, _ = words
        before = torch.get_rng_state()
        assert needs_integers(Words, torch.tensor(X[:2]))
        assert not needs_integers(lambda: Linear(5), torch.tensor(X[:2]))
        assert not needs_integers(lambda: 1 / 0, torch.tensor(X[:2]))
        assert torch.equal(before, torch.get_rng_state())

    def test_has_embedding(self):
        assert has_embedding(nn.Sequential(nn.Embedding(2, 2)))
        assert not has_embedding(Linear())


def weights_of(network):
    return [p.clone() for p in network.state_dict().values()]


class TestDimensions:
    def test_sequences(self, words):
        _, y = words
        X = np.random.default_rng(0).normal(size=(150, 7, 2)) + y[:, None, None]
        model = quick(module=Sequence, max_epochs=20).fit(X, y)
        assert model.score(X, y) > 0.8
        assert model.n_features_in_ == 14
        longer = np.concatenate([X, X], axis=1)
        assert model.predict(longer).shape == (150,)
        with pytest.raises(ValueError, match="Reshape your data"):
            model.predict(X[:, 0])
        assert weights(model)

    def test_volumes(self, words):
        class Flat(Linear):
            def forward(self, x):
                assert x.ndim == 5
                return super().forward(x.flatten(1))

        _, y = words
        X = torch.randn(150, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
        model = quick(module=Flat, module__in_features=8).fit(X, y)
        assert model.predict_proba(X).shape == (150, 3)

    def test_without_a_module(self, words):
        X = np.zeros((150, 7, 2))
        with pytest.raises(ValueError, match=r"3 dimensions.*custom module accepts"):
            quick().fit(X, words[1])
        with pytest.raises(ValueError, match="if image_shape is None"):
            quick(module=Sequence, image_shape=(1, 7, 2)).fit(X, words[1])
