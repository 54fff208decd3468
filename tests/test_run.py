"""Optimisations of the training loop do not change its results."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from modules import Convolution, Images, Linear, Squeezed
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.metrics import f1_score
from skorch.callbacks import Callback, PrintLog
from skorch.dataset import ValidSplit
from torch import nn

from skbsd import BSDClassifier, _batches, _fitting, _gathering
from skbsd._backup import WeightsBackup
from skbsd._batches import IndexedDataset, IndexedTensor, LoaderBatches
from skbsd._epoch import read

SPLIT = ValidSplit(5, stratified=True)


class Flat(nn.Module):
    """Takes contiguous images only, as `view` fails for others."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, x):
        x = self.convolution(x)
        return self.head(x.view(len(x), -1))


class Repeated(torch.optim.SGD):
    """An optimizer that needs a closure, like some of other packages."""

    evaluations = 0

    def step(self, closure=None):
        assert closure is not None
        with torch.enable_grad():
            for _ in range(2):
                loss = closure()
                type(self).evaluations += 1
        super().step()
        return loss


class Zeroing(torch.optim.SGD):
    calls = 0

    def zero_grad(self, set_to_none=True):
        type(self).calls += 1
        super().zero_grad(set_to_none)


class Normed(nn.Module):
    """Cannot be copied: its weight is computed from others."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and met
            self.convolution = nn.utils.weight_norm(nn.Conv2d(1, 4, 3))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.convolution(x).mean((2, 3)))


class FlatInTraining(Flat):
    def forward(self, x):
        return super().forward(x if self.training else x.contiguous())


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(3)

    def forward(self, x):
        return self.layer(x)


class Collating(Images):
    """Returns whole batches."""

    def __getitems__(self, indices):
        return torch.from_numpy(self.X[indices]), torch.from_numpy(self.y[indices])


class OwnStep(BSDClassifier):
    def train_step_single(self, batch, **fit_params):
        logits = self.infer(batch.x)
        loss = self.posterior_.step(logits, batch.rows)
        loss.backward()
        return {"loss": loss, "y_pred": logits}


class Watch(Callback):
    def on_batch_end(self, net, **kwargs):
        pass


class TestDataPath:
    def test_arrays_lie_on_the_device(self, iris, capsys):
        model = quick(verbose=1).fit(*iris)
        assert model.data_loading_ == "resident"
        assert capsys.readouterr().out.startswith("Training data: on cpu\n")

    def test_datasets_are_loaded(self, iris, capsys):
        X = iris[0].astype(np.float32)
        model = quick(verbose=1).fit(Images(X, iris[1]), None)
        assert model.data_loading_ == "loader"
        assert "Training data: loaded to cpu by batch\n" in capsys.readouterr().out

    @pytest.mark.parametrize("weighted", [False, True])
    def test_arrays_that_do_not_fit_train_to_the_same(
        self, iris, monkeypatch, weighted
    ):
        X, y = iris[0].astype(np.float32), iris[1]
        weight = np.linspace(0.5, 1.5, len(y)) if weighted else None
        # A network that stays as it is, since a loader draws another order.
        sgd = {"optimizer": torch.optim.SGD, "lr": 1e-12}
        kwargs = {"module": Linear, "train_split": SPLIT, **sgd}
        expected = quick(**kwargs).fit(X, y, sample_weight=weight)

        def elsewhere(data, device, dtype, *, by_loader):
            return data._replace(X=Elsewhere(torch.from_numpy(data.X)))

        class Elsewhere(torch.Tensor):
            """A tensor that says it is on another device."""

            @property
            def device(self):
                return torch.device("meta")

            def index_select(self, dim, index):
                return self.as_subclass(torch.Tensor).index_select(dim, index)

        monkeypatch.setattr(_fitting, "on_device", elsewhere)
        model = quick(**kwargs).fit(X, y, sample_weight=weight)
        assert model.data_loading_ == "loader"
        torch.testing.assert_close(model.posterior_.mean(), expected.posterior_.mean())
        assert set(model.posterior_.visits.tolist()) == {0, 3}
        for key in ("train_loss", "valid_loss", "valid_acc"):
            assert_allclose(model.history[:, key], expected.history[:, key], rtol=1e-5)

    def test_batches_are_fetched_at_once(self):
        x, codes = torch.arange(12.0).view(6, 2), np.array([0, 1, 2, 0, 1, 2])
        rows = np.array([5, 3, 1])

        class Fetching(torch.utils.data.TensorDataset):
            fetched = []  # noqa: RUF012

            def __getitems__(self, indices):
                self.fetched.append(indices)
                return [self[i] for i in indices]

        dataset = Fetching(x, torch.zeros(6))
        items = IndexedDataset(dataset, codes, rows).__getitems__([0, 2])
        assert dataset.fetched == [[5, 1]]
        assert [(item[1], item[2]) for item in items] == [(2, 5), (1, 1)]
        fetched = torch.stack([item[0][0] for item in items])  # (x, y), class, row
        assert torch.equal(fetched, x[[5, 1]])

        batch = IndexedTensor(x, codes, rows).__getitems__([2, 0])
        assert torch.equal(batch[0], x[[1, 5]])
        assert [t.tolist() for t in batch[1:]] == [[1, 2], [1, 5]]
        (loaded,) = LoaderBatches(
            [batch], torch.arange(6.0), torch.device("cpu"), 6, unique=True
        )
        assert loaded.weight.tolist() == [1.0, 5.0]

    @pytest.mark.parametrize("batch_size", [2, 50])
    def test_datasets_that_collate_themselves(self, iris, batch_size):
        X, y = iris[0].astype(np.float32), iris[1]
        kwargs = {"module": Linear, "batch_size": batch_size}
        one, other = (
            quick(**kwargs).fit(kind(X, y), None) for kind in (Images, Collating)
        )
        assert same_weights(one, other)

    def test_a_gather_per_epoch_or_per_batch(self, iris, monkeypatch):
        one = quick().fit(*iris)
        monkeypatch.setattr(_batches.ResidentBatches, "COPY", 0)
        assert same_weights(one, quick().fit(*iris))


class TestStep:
    def test_optimizers_that_ask_repeatedly(self, iris):
        Repeated.evaluations = 0
        model = quick(optimizer=Repeated, lr=0.1).fit(*iris)
        assert Repeated.evaluations == 2 * 6
        assert set(model.posterior_.visits.tolist()) == {3}  # once per epoch

    def test_an_optimizers_own_zero_grad(self, iris):
        Zeroing.calls = 0
        quick(optimizer=Zeroing).fit(*iris)
        assert Zeroing.calls == 6

    def test_gradients_do_not_add_up(self, iris):
        norms = []

        class Norm(Callback):
            def on_grad_computed(self, net, named_parameters, **kwargs):
                norms.append(
                    max(p.grad.abs().max().item() for _, p in named_parameters)
                )

        # Learns nothing, so that all batches of an epoch are much the same.
        quick(optimizer=torch.optim.SGD, lr=1e-12, callbacks=[Norm]).fit(*iris)
        assert max(norms[4:]) < 2 * max(norms[:2])

    def test_a_step_of_ones_own(self, iris):
        model = OwnStep(max_epochs=2, random_state=0).fit(*iris)
        assert set(model.posterior_.visits.tolist()) == {2}

    def test_lazy_networks_that_diverge_at_once(self, iris):
        sgd = {"optimizer": torch.optim.SGD, "lr": 1e39, "lr_schedule": "constant"}
        model = quick(module=Lazy, max_epochs=1, batch_size=-1, **sgd)
        with pytest.raises(ValueError, match="NaN or infinite in epoch 1"):
            model.fit(*iris)

    def test_lbfgs_on_images(self, digits):
        """It flattens gradients, which must be stored as they are shaped."""
        X, y = digits[0][:100] / 16, digits[1][:100]
        model = quick(optimizer=torch.optim.LBFGS, lr=0.1, max_epochs=2, batch_size=-1)
        losses = model.fit(X, y).history_[:, "train_loss"]
        assert losses[1] < losses[0]

    def test_optimizer_state_of_another_memory_format(self, digits, tmp_path):
        X, y = digits[0][:200], digits[1][:200]
        kwargs = {"module": Convolution, "max_epochs": 1}
        expected = quick(**kwargs).fit(X, y)
        model = pickle.loads(pickle.dumps(expected))
        expected.partial_fit(X, y)
        for values in model.optimizer_.state.values():
            for name, value in values.items():
                values[name] = value.contiguous()
        model.partial_fit(X, y)
        assert same_weights(model, expected)

    def test_watched_or_not(self, iris):
        kwargs = {"train_split": SPLIT}
        one = quick(**kwargs).fit(*iris)
        other = quick(callbacks=[Watch], **kwargs).fit(*iris)
        assert same_weights(one, other)
        for row, expected in zip(one.history, other.history, strict=True):
            assert row["batches"] == expected["batches"]
            assert row["valid_acc"] == expected["valid_acc"]


class TestValidation:
    def test_another_scoring_of_the_default_callback(self, iris):
        X, y = iris
        model = quick(train_split=SPLIT, callbacks__valid_acc__scoring="f1_macro")
        model.fit(X, y)
        _, valid = model.get_split_datasets(X, y)
        expected = f1_score(
            y[valid.indices], model.predict(X[valid.indices]), average="macro"
        )
        assert model.history[-1, "valid_acc"] == pytest.approx(expected)

    def test_nothing_is_laid_out_where_nobody_sees_it(self, iris, monkeypatch):
        def fail(*args):
            raise AssertionError("laid out")

        monkeypatch.setattr(PrintLog, "table", fail)
        quick().fit(*iris)
        with pytest.raises(AssertionError, match="laid out"):
            quick(verbose=1).fit(*iris)

    def test_a_sink_is_served_in_silence(self, iris):
        lines = []
        quick(callbacks__print_log__sink=lines.append).fit(*iris)
        assert len(lines) == 1 + 2 + 3  # where, header, epochs


class TestPrediction:
    def test_several_batches(self, iris, monkeypatch):
        model = quick().fit(*iris)
        X = np.tile(iris[0], (120, 1))  # three batches of 8,192
        expected = np.tile(model.decision_function(iris[0]), (120, 1))
        for size in (0, 2**28):
            monkeypatch.setattr(_gathering, "_LARGEST_BUFFER", size)
            assert_allclose(model.decision_function(X), expected, rtol=1e-4, atol=1e-5)

    def test_a_loader_that_repeats_samples(self, iris):
        def thrice(dataset, **kwargs):
            return 3 * list(torch.utils.data.DataLoader(dataset, **kwargs))

        X = iris[0].astype(np.float32)
        model = quick(module=Linear).fit(X, iris[1])
        once = model.predict(Images(X, iris[1]))
        model.set_params(iterator_valid=thrice)
        assert_array_equal(model.predict(Images(X, iris[1])), np.tile(once, 3))

    def test_nothing_to_predict(self, iris):
        X = iris[0].astype(np.float32)
        model = quick(module=Linear).fit(X, iris[1])
        with pytest.raises(ValueError, match="no samples; expected at least one"):
            model.predict(Images(X[:0], iris[1][:0]))

    def test_images_of_any_size_come_in_batches(self, digits):
        model = quick(max_epochs=1).fit(digits[0][:300], digits[1][:300])
        sizes = [len(logits) for logits in model.forward_iter(digits[0])]
        assert sizes == [1797]  # up to 2**18 pixels
        wide = np.zeros((5, 1, 600, 600), np.float32)
        assert [len(logits) for logits in model.forward_iter(wide)] == [5]


class TestMemoryFormat:
    @pytest.mark.parametrize("setting", ["auto", True, False])
    def test_pixel_by_pixel(self, digits, setting):
        X, y = digits[0][:300], digits[1][:300]
        # AdamW's first steps depend on the last digits of small gradients.
        kwargs = {"optimizer": torch.optim.SGD}
        model = quick(channels_last=setting, **kwargs).fit(X, y)
        weight = model.module_.blocks[1].conv1.weight
        is_last = weight.is_contiguous(memory_format=torch.channels_last)
        assert is_last == bool(setting)
        other = quick(channels_last=False, **kwargs).fit(X, y)
        assert_allclose(
            model.predict_proba(X[:50]), other.predict_proba(X[:50]), atol=1e-4
        )

    def test_networks_that_cannot_take_it(self, digits):
        X, y = digits[0][:100], digits[1][:100]
        for module in (Flat, FlatInTraining, Normed):
            assert not quick(module=module).fit(X, y)._preparation.channels_last
        assert quick(module=Convolution).fit(X, y)._preparation.channels_last
        with pytest.raises(RuntimeError, match="view"):
            quick(module=Flat, channels_last=True).fit(X, y)

    def test_trying_leaves_no_trace(self, digits):
        X, y = digits[0][:100], digits[1][:100]
        one = quick(module=Convolution, channels_last="auto", max_epochs=1).fit(X, y)
        assert one.module_.layers[1].num_batches_tracked == 1

    def test_tables_have_none(self, iris):
        assert not quick(channels_last=True).fit(*iris)._preparation.channels_last


class TestCompile:
    def test_once_per_shape_and_timed_apart(self, iris):
        shapes = []

        def backend(graph, inputs):
            shapes.append([tuple(x.shape) for x in inputs if x.ndim == 2])
            return graph

        torch.compiler.reset()
        kwargs = {"module": Linear, "compile__backend": backend, "batch_size": 64}
        X, y = iris
        model = quick(compile=True, **kwargs).fit(X, y)
        assert len(shapes) == 2  # 64 and 22 samples; prediction is not compiled
        assert_allclose(model.predict_proba(X).sum(1), 1, atol=1e-6)
        assert len(shapes) == 2
        assert model.compile_time_ > 0
        assert sum(model.history[:, "dur"]) > model.compile_time_
        plain = quick(module=Linear, batch_size=64).fit(X, y)
        assert plain.compile_time_ == 0
        assert_allclose(
            model.predict_proba(X), plain.predict_proba(X), rtol=1e-5, atol=1e-6
        )

    def test_said_when_verbose(self, iris, capsys):
        kwargs = {"module": Linear, "compile": True, "compile__backend": "eager"}
        quick(verbose=1, **kwargs).fit(*iris)
        assert "Compilation: " in capsys.readouterr().out


class TestPosteriorType:
    def test_half(self, iris):
        X, y = iris[0].astype(np.float32), iris[1]
        kwargs = {"module": Linear, "max_epochs": 20}
        half = quick(posterior_dtype="float16", **kwargs).fit(X, y)
        full = quick(**kwargs).fit(X, y)
        assert half.posterior_.dtype == torch.float16
        assert full.posterior_.dtype == torch.float32
        error = half.posterior_.mean().float() - full.posterior_.mean()
        assert error.abs().sum(1).max() < 0.005
        assert_allclose(half.predict_proba(X), full.predict_proba(X), atol=0.01)

    @pytest.mark.parametrize("strength", [np.inf, 2e3])
    def test_too_large_for_half(self, iris, strength):
        model = quick(posterior_dtype="float16", prior_strength=strength)
        with pytest.raises(ValueError, match=r"at most 1024, got .*Use 'float32'"):
            model.fit(*iris)

    def test_too_small_for_half(self, iris):
        model = quick(posterior_dtype="float16", prior_floor=1e-9)
        with pytest.raises(ValueError, match=r"prior_floor at least .*1e-09"):
            model.fit(*iris)

    def test_beliefs_stay_as_they_are_stored(self, iris):
        model = quick().fit(*iris)
        model.set_params(posterior_dtype="float16").partial_fit(*iris)
        assert model.posterior_.dtype == torch.float32
        assert set(model.posterior_.visits.tolist()) == {6}
        assert model.fit(*iris).posterior_.dtype == torch.float16


class TestState:
    def test_nothing_of_a_batch_is_kept(self, iris):
        model = quick(train_split=SPLIT).fit(*iris)
        assert model._run is None
        assert "_run" not in vars(model)

    def test_parameters_survive(self, iris):
        kwargs = {"posterior_dtype": "float16", "channels_last": False}
        model = quick(**kwargs).fit(*iris)
        for other in (clone(model), pickle.loads(pickle.dumps(model))):
            assert {k: other.get_params()[k] for k in kwargs} == kwargs
        other.partial_fit(*iris)
        assert other.data_loading_ == "resident"
        assert set(other.posterior_.visits.tolist()) == {6}

    def test_a_later_batch_of_another_shape(self, iris):
        X, y = iris[0].astype(np.float32), iris[1]
        sampler = torch.utils.data.BatchSampler(range(150), 149, drop_last=False)
        model = quick(module=Squeezed, iterator_train__batch_sampler=sampler)
        with pytest.raises(ValueError, match=r"must have shape \(1, 3\).*\(3,\)"):
            model.fit(Images(X, y), None)


def test_backward_is_torchs():
    from skbsd._forward import backward

    x = torch.randn(5, 4)
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    gradient = torch.randn(5, 2)
    torch.autograd.backward(network(x), gradient)
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    backward(network(x), gradient)
    for parameter, grad in zip(network.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, grad)


class TestBackup:
    @pytest.mark.parametrize("move", [False, True])
    def test_follows_weights_that_are_moved(self, move):
        """A callback may replace the parameters' storage, as `module.to(...)` does."""
        module = torch.nn.Linear(3, 2)
        backup = WeightsBackup(module)
        for _ in range(2):
            backup.save()
        if move:
            module.weight.data = module.weight.data.clone()
        with torch.no_grad():
            module.weight.fill_(1.0)
        backup.save()
        with torch.no_grad():
            module.weight.fill_(float("nan"))
        backup.restore()
        assert (module.weight == 1).all()


def test_nothing_to_read():
    assert read([], (), [torch.zeros(0)]) == [[], [], []]
    assert read([torch.ones(2)], [torch.tensor(3)]) == [[1.0, 1.0], [3]]
