"""Accepted types of X, and their conversion."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick, same_weights
from modules import (
    Convolution,
    Images,
    InPlace,
    Linear,
    Relabelled,
    ReturnsObject,
    ReturnsTuple,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import (
    cross_val_score,
)
from skorch.helper import SliceDataset
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.models import resnet18
from torchvision.transforms.v2 import RandomHorizontalFlip

from skbsd._check_inputs import check_X
from skbsd._fingerprint import fingerprint
from skbsd._loading import TrainingData, on_device


class TestInputs:
    def test_kinds_of_tables_agree(self, iris):
        X, y = iris
        frame = pd.DataFrame(X, columns=list("abcd"))
        model = quick().fit(frame, y)
        assert_array_equal(model.feature_names_in_, list("abcd"))
        assert model.n_features_in_ == 4
        proba = model.predict_proba(frame)
        for other in (X.tolist(), torch.tensor(X), np.asfortranarray(X)):
            assert_array_equal(quick().fit(other, y).predict_proba(other), proba)

    @pytest.mark.parametrize("dtype", ["object", "category", "str", "Float64"])
    def test_columns_that_hold_numbers(self, iris, dtype):
        X, y = iris
        numbers = pd.DataFrame(X, columns=list("abcd"))
        frame = numbers.astype({"b": dtype, "d": dtype})
        model = quick().fit(frame, y)
        assert_array_equal(model.feature_names_in_, list("abcd"))
        assert same_weights(model, quick().fit(numbers, y))
        assert_array_equal(model.predict_proba(frame), model.predict_proba(numbers))
        every = numbers.astype(dtype)
        assert_array_equal(model.predict_proba(every), model.predict_proba(numbers))

    def columns(self, X):
        """Return a table as a DataFrame stores it."""
        frame = pd.DataFrame({f"c{i}": column for i, column in enumerate(X.T)})
        assert check_X(frame).flags.f_contiguous
        return frame

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"calibration": "cross-fit"},
            {"calibration": "hold-out"},
            {"precision": "float32", "batch_size": 16},
            {"iterator_train__num_workers": 1},
            {"iterator_train__collate_fn": torch.utils.data.default_collate},
        ],
    )
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_order_in_memory_changes_nothing(self, options, dtype, iris):
        X, y = iris[0].astype(dtype), iris[1]
        frame = self.columns(X)
        by_rows, by_columns = quick(**options).fit(X, y), quick(**options).fit(frame, y)
        assert same_weights(by_rows, by_columns)
        for n in (150, 1):
            expected = by_rows.predict_proba(X[:n])
            assert_array_equal(by_columns.predict_proba(frame[:n]), expected)
        by_columns.partial_fit(pd.DataFrame(X, columns=frame.columns), y)
        assert by_columns.posterior_.visits.max() == 6  # beliefs were kept

    def test_own_network_gets_rows(self, iris):
        class Rows(Linear):
            def forward(self, x):
                assert x.is_contiguous()
                return super().forward(x)

        for dtype in ("float32", "float64"):
            X = np.asfortranarray(iris[0], dtype)
            quick(module=Rows).fit(X, iris[1]).predict(X)

    def test_columns_are_narrowed_without_a_copy_of_the_same_type(self, iris):
        frame = self.columns(iris[0])
        X = check_X(frame)
        assert fingerprint(X, iris[1]) == fingerprint(iris[0], iris[1])
        data = TrainingData(frame, X, iris[1], np.arange(3), iris[1], None, None)
        cpu = torch.device("cpu")
        moved = on_device(data, cpu, torch.float32, by_loader=False).X
        assert moved.is_contiguous()
        assert moved.dtype == torch.float32
        assert_array_equal(moved, X.astype(np.float32))

    @pytest.mark.parametrize("dtype", ["object", "category", "bool", "boolean"])
    def test_columns_of_truth_values(self, iris, dtype):
        X, y = iris
        numbers = pd.DataFrame(X, columns=list("abcd")).assign(e=X[:, 0] > 6)
        model = quick().fit(numbers.astype({"e": dtype}), y)
        assert same_weights(model, quick().fit(numbers.to_numpy(float), y))

    def test_strides_and_byte_order(self, iris, digits):
        X, y = iris
        model = quick().fit(X[::-1], y[::-1])
        same = quick().fit(X[::-1].copy(), y[::-1].copy())
        assert_array_equal(model.predict_proba(X[::-1]), same.predict_proba(X[::-1]))
        quick().fit(X.astype(">f8"), y).predict(X.astype(">f4"))
        images, labels = (a[:50] for a in digits)
        quick(max_epochs=1).fit(images, labels).predict(images[..., ::-1])

    def test_slice_dataset(self, iris):
        dataset = TensorDataset(
            torch.tensor(iris[0], dtype=torch.float32), torch.tensor(iris[1])
        )
        X = SliceDataset(dataset)
        scores = cross_val_score(quick(), X, iris[1], cv=3, error_score="raise")
        assert len(scores) == 3

    def test_flat_and_shaped_images_are_interchangeable(self, digits):
        X, y = (a[:100] for a in digits)
        model = quick(image_shape=(1, 8, 8), max_epochs=1).fit(X, y)
        proba = model.predict_proba(X)
        assert_array_equal(proba, model.predict_proba(X.reshape(100, -1)))
        model.partial_fit(X, y)

    def test_transform_of_torchvision(self, uint8_digits):
        X, y = (a[:100] for a in uint8_digits)
        model = quick(max_epochs=1)
        model.set_params(augmentation=RandomHorizontalFlip()).fit(X, y)
        assert clone(model).fit(X, y).predict(X).shape == (100,)

    def test_X_is_left_as_it_was(self, iris):
        X, y = iris[0].astype(np.float32), iris[1]
        for given in (X, torch.tensor(X)):
            before = copy.deepcopy(given)
            model = quick(module=InPlace).fit(given, y)
            first = model.predict_proba(given)
            assert_array_equal(given, before)
            assert_array_equal(model.predict_proba(given), first)

    def test_read_only_arrays(self, iris):
        X, y = (a.copy() for a in iris)
        X.flags.writeable = y.flags.writeable = False
        quick().fit(X, y).partial_fit(X, y).predict(X)

    def test_flat_rows_are_images(self, digits):
        X, y = (a[:300] for a in digits)
        flat = X.reshape(300, -1)
        one = quick(image_shape=(1, 8, 8)).fit(flat, y)
        other = quick().fit(X, y)
        assert same_weights(one, other)
        assert_array_equal(one.predict_proba(flat), other.predict_proba(X))
        assert one.n_features_in_ == other.n_features_in_ == 64

    def test_uint8_images_are_standardised(self, uint8_digits):
        X, y = (a[:300] for a in uint8_digits)
        model = quick(prior_strength=100).fit(X, y)
        assert_allclose(model.image_mean_, [X.mean()])
        assert_allclose(model.image_std_, [X.std()])
        scaled = ((X - X.mean()) / X.std()).astype(np.float32)
        other = quick(prior_strength=100).fit(scaled, y)
        assert_allclose(model.predict_proba(X), other.predict_proba(scaled), atol=1e-3)

    def test_statistics_are_those_of_the_last_fit(self, uint8_digits):
        X, y = (a[:300] for a in uint8_digits)
        model = quick(max_epochs=1).fit(X, y)
        model.fit(X // 2, y)
        assert same_weights(model, quick(max_epochs=1).fit(X // 2, y))
        proba = model.predict_proba(X)
        assert_array_equal(copy.deepcopy(model).predict_proba(X), proba)

    @pytest.mark.parametrize(
        "shape",
        [
            (1, 128, 40),
            (3, 224, 8),
            (2, 64, 3),
            (4, 32, 2),
            (3, 3, 1),
            (8, 8, 8),
            (16, 8, 8),
            (64, 8, 8),
            (512, 7, 7),
            (512, 7, 5),
            (22, 1000, 2),
            (64, 64, 40),
            (32, 40, 32),
            (9, 9, 200),
        ],
    )
    def test_shapes_of_images(self, shape):
        X, y = np.zeros((4, *shape), np.float32), np.arange(4) % 2
        for given in (X, torch.tensor(X)):
            assert check_X(given).shape == (4, *shape)
        if np.prod(shape) < 1e4:
            quick(max_epochs=1).fit(X, y).predict(X)

    @pytest.mark.parametrize("shape", [(32, 32, 5), (8, 8, 3)])
    def test_image_shape_says_that_channels_are_first(self, shape):
        X, y = np.zeros((4, *shape), np.float32), np.arange(4) % 2
        model = quick(image_shape=shape, max_epochs=1).fit(X, y)
        assert model.predict_proba(X).shape == (4, 2)
        assert next(model.module_.parameters()).shape[1] == shape[0]

    def test_other_image_size(self, digits):
        X, y = (a[:300] for a in digits)
        larger = X.repeat(2, 2).repeat(2, 3)
        assert quick().fit(X, y).predict_proba(larger).shape == (300, 10)

    def test_callable_augmentation_gets_the_images_as_given(self, uint8_digits):
        seen = []

        def augment(x):
            seen.append((x.dtype, tuple(x.shape[1:])))
            return x

        X, y = (a[:100] for a in uint8_digits)
        model = quick(augmentation=augment, max_epochs=1).fit(X, y)
        assert seen == [(torch.uint8, (1, 8, 8))]
        model.predict(X)
        assert len(seen) == 1

    def test_a_sample_left_alone_joins_the_batch_before(self, digits):
        X, y = (a[:129] for a in digits)
        model = quick(module=Convolution, batch_size=64).fit(X, y)
        assert model.history[0, "batches", :, "train_batch_size"] == [64, 65]

    @pytest.mark.parametrize("module", [ReturnsTuple, ReturnsObject])
    def test_outputs_of_networks(self, iris, module):
        one, other = quick(module=Linear).fit(*iris), quick(module=module).fit(*iris)
        assert_array_equal(one.predict_proba(iris[0]), other.predict_proba(iris[0]))

    def test_torchvision_network(self):
        rng = np.random.default_rng(0)
        X = rng.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
        y = np.arange(8) % 2
        model = quick(module=resnet18, module__num_classes=2, max_epochs=1, lr=1e-3)
        assert model.fit(X, y).predict_proba(X).shape == (8, 2)
        model = quick(module=resnet18(num_classes=2), max_epochs=1, lr=1e-3)
        assert model.fit(X, y).predict_proba(X).shape == (8, 2)

    def test_prediction_in_batches(self, iris):
        X, y = iris
        model = quick().fit(X, y)
        many = np.tile(X, (70, 1))
        assert_allclose(
            model.predict_proba(many)[-150:], model.predict_proba(X), atol=1e-6
        )


class TestDataset:
    def test_kinds(self, iris):
        X = torch.tensor(iris[0], dtype=torch.float32)
        y = torch.tensor(iris[1])
        whole = TensorDataset(X, y)
        halves = [Subset(whole, range(0, 150, 2)), Subset(whole, range(1, 150, 2))]
        for dataset in (whole, Images(X, y), ConcatDataset(halves), halves[0]):
            model = quick(max_epochs=10).fit(dataset)
            assert model.predict_proba(dataset).shape == (len(dataset), 3)
            assert len(model.posterior_) == len(dataset)
            assert (model.posterior_.visits == 10).all()
        with pytest.raises(AttributeError):
            model.n_features_in_  # noqa: B018

    def test_labels_are_those_that_it_returns(self, iris):
        X, y = torch.tensor(iris[0], dtype=torch.float32), torch.tensor(iris[1])
        model = quick(max_epochs=20).fit(Relabelled(X, y))
        assert (model.predict(X) == (iris[1] + 1) % 3).mean() > 0.8

    def test_other_tensors_are_other_samples(self, iris):
        X, y = torch.tensor(iris[0], dtype=torch.float32), torch.tensor(iris[1])
        model = quick().fit(TensorDataset(X, y)).partial_fit(TensorDataset(-X, y))
        assert (model.posterior_.visits == 3).all()

    def test_workers_and_a_sample_left_alone(self, digits):
        X, y = (torch.tensor(a[:129]) for a in digits)
        model = quick(module=Convolution, iterator_train__num_workers=1, max_epochs=1)
        model.fit(Images(X, y))
        assert model.history[0, "batches", :, "train_batch_size"] == [129]

    def test_labels_of_any_kind(self, iris):
        X = torch.tensor(iris[0], dtype=torch.float32)
        named = np.array(["a", "b", "c"])[iris[1]]
        model = quick(max_epochs=20).fit(Images(X, named))
        assert (model.predict(X) == named).mean() > 0.8

    def test_rows_are_the_datasets(self, iris):
        """The posterior of item i belongs to item i, whatever the order."""
        X, y = torch.tensor(iris[0], dtype=torch.float32), iris[1]
        model = quick(prior_strength=1e6).fit(Images(X, y))
        assert_array_equal(model.posterior_.mean().argmax(1), y)

    def test_uint8_images_and_own_module(self, uint8_digits):
        X, y = (a[:200] for a in uint8_digits)
        model = quick(module=Convolution).fit(Images(torch.tensor(X), y))
        assert model.predict_proba(Images(torch.tensor(X), y)).shape == (200, 10)

    def test_partial_fit_and_weights(self, iris):
        dataset = Images(torch.tensor(iris[0], dtype=torch.float32), iris[1])
        weight = np.arange(150) % 2
        model = quick().partial_fit(dataset, sample_weight=weight)
        model.partial_fit(dataset, sample_weight=weight)
        assert model.posterior_.visits.tolist() == [6 * w for w in weight]

    def test_loader_parameters(self, iris):
        dataset = Images(torch.tensor(iris[0], dtype=torch.float32), iris[1])
        model = quick(iterator_train__batch_size=50, iterator_train__drop_last=True)
        model.fit(dataset)
        assert model.history[0, "batches", :, "train_batch_size"] == [50] * 3
        # The same for arrays, which then go through the loader too.
        model.set_params(iterator_train__batch_size=40).fit(*iris)
        assert model.history[0, "batches", :, "train_batch_size"] == [40] * 3
