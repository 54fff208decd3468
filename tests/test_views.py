"""Predictions that are averaged over views of an image."""

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from modules import Convolution
from numpy.testing import assert_allclose, assert_array_equal
from skorch.dataset import ValidSplit
from torch.utils.data import TensorDataset

from skbsd import BSDClassifier
from skbsd._views import mean_logits

VIEWS = ["flip", "flip-shift"]


@pytest.fixture
def images(uint8_digits):
    return uint8_digits[0][:300], uint8_digits[1][:300]


def moved(x, down):
    """Return images moved down and right, with reflected borders."""
    rows = np.abs(np.arange(8) - down)
    rows = 7 - np.abs(7 - rows)
    return x[:, :, rows][:, :, :, rows]


class TestMean:
    def test_formula(self):
        """For a network that is linear in the pixels, with a weight for each."""
        x = torch.randn(5, 2, 8, 8).double()
        kernel = torch.randn(2 * 64, 3).double()
        seen = []

        def infer(view):
            seen.append(view)
            return view.flatten(1) @ kernel

        flip, both = (mean_logits(infer, x, views) for views in VIEWS)
        expected = [
            (infer(torch.tensor(v)) + infer(torch.tensor(v[..., ::-1].copy()))) / 2
            for v in [x.numpy()]
        ]
        assert_allclose(flip, expected[0])
        shifted = [
            (
                infer(torch.tensor(moved(x.numpy(), d)))
                + infer(torch.tensor(moved(x.flip(-1).numpy(), d)))
            )
            / 2
            for d in (-1, 1)
        ]
        assert_allclose(both, expected[0] / 2 + (shifted[0] + shifted[1]) / 4)
        assert len(seen) == 2 + 6 + 2 + 4

    @pytest.mark.parametrize("views", VIEWS)
    def test_memory_format_and_digits(self, views):
        x = torch.randn(5, 3, 8, 8).contiguous(memory_format=torch.channels_last)

        def infer(view):
            assert view.is_contiguous(memory_format=torch.channels_last)
            return view.mean((2, 3)).bfloat16()

        assert mean_logits(infer, x, views).dtype == torch.float32

    @pytest.mark.parametrize("views", VIEWS)
    def test_what_is_no_image(self, views):
        for x in (torch.zeros(3, 4), {"x": torch.zeros(3, 4)}):
            with pytest.raises(ValueError, match=f"prediction_views='{views}' needs"):
                mean_logits(torch.Tensor, x, views)

    def test_single_pixels(self):
        x = torch.ones(2, 1, 1, 5)
        mean_logits(lambda view: view.flatten(1), x, "flip")
        with pytest.raises(ValueError, match=r"\(1, 1, 5\); expected at least 2"):
            mean_logits(lambda view: view.flatten(1), x, "flip-shift")


@pytest.mark.parametrize("views", VIEWS)
class TestClassifier:
    def test_mirror_images_are_predicted_alike(self, images, views):
        X, y = images
        model = quick(prediction_views=views).fit(X, y)
        mirrored = np.ascontiguousarray(X[..., ::-1])
        for name in ("predict_proba", "decision_function", "predict", "forward"):
            predict = getattr(model, name)
            assert_array_equal(np.asarray(predict(X)), np.asarray(predict(mirrored)))
        model.set_params(prediction_views=None)
        assert (model.predict_proba(X) != model.predict_proba(mirrored)).any()

    def test_training_and_validation_are_not_changed(self, images, views):
        kwargs = {"train_split": ValidSplit(5, stratified=True), "max_epochs": 2}
        one = quick(prediction_views=views, **kwargs).fit(*images)
        other = quick(**kwargs).fit(*images)
        assert same_weights(one, other)
        assert one.history_[:, "valid_loss"] == other.history_[:, "valid_loss"]
        x = images[0][:5]
        assert torch.equal(
            one.forward(x, training=True), other.forward(x, training=True)
        )

    @pytest.mark.parametrize("method", ["cross-fit", "hold-out"])
    def test_the_calibration_is_of_what_predicts(self, images, views, method):
        kwargs = {"random_state": 0, "max_epochs": 2, "calibration": method}
        kwargs |= {"lr": 1e-2, "prior_strength": 60}
        one = BSDClassifier(prediction_views=views, **kwargs).fit(*images)
        other = BSDClassifier(**kwargs).fit(*images)
        assert same_weights(one, other)
        assert one.temperature_ != other.temperature_
        if method == "hold-out":
            rows = np.isfinite(one.out_of_fold_proba_[:, 0])
            proba = one.calibration_.scaled(one.forward(images[0][rows])).softmax(1)
            assert_allclose(one.out_of_fold_proba_[rows], proba, rtol=1e-4)

    def test_flattened_images_and_datasets(self, images, views):
        X, y = images
        floats = (X / 240).astype(np.float32)
        images = quick(prediction_views=views).fit(floats, y).predict_proba(floats)
        flat = floats.reshape(len(X), -1)
        model = quick(prediction_views=views, image_shape=(1, 8, 8)).fit(flat, y)
        assert_array_equal(model.predict_proba(flat), images)
        data = TensorDataset(torch.tensor(floats), torch.tensor(y))
        model = quick(prediction_views=views, module=Convolution()).fit(data)
        alike = model.predict_proba(np.ascontiguousarray(floats[..., ::-1]))
        assert_allclose(model.predict_proba(data), alike, rtol=1e-5, atol=1e-7)

    def test_tables(self, iris, views):
        model = quick().fit(*iris)
        with pytest.raises(ValueError, match=r"needs images.*\(4,\); pass 4-D X"):
            model.set_params(prediction_views=views).fit(*iris)
        with pytest.raises(ValueError, match=r"needs images.*\(4,\); pass 4-D X"):
            model.predict(iris[0])
        model.set_params(prediction_views=None).predict(iris[0])

    def test_files(self, images, views, tmp_path):
        model = quick(prediction_views=views, max_epochs=1).fit(*images)
        model.save(tmp_path / "model")
        loaded = BSDClassifier.load(tmp_path / "model")
        assert loaded.prediction_views == views
        assert_array_equal(
            loaded.predict_proba(images[0]), model.predict_proba(images[0])
        )


def test_unknown_views(images):
    with pytest.raises(ValueError, match=r"'prediction_views' parameter.*Got 'five'"):
        quick(prediction_views="five").fit(*images)


def test_a_name_that_is_set_after_fit_is_checked(uint8_digits):
    X, y = (part[:60] for part in uint8_digits)
    model = quick(max_epochs=1).fit(X, y).set_params(prediction_views="FLIP")
    with pytest.raises(ValueError, match=r"prediction_views must be .*'FLIP'"):
        model.predict(X)
