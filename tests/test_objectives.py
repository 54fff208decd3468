"""Custom objectives, and errors in them."""

import pytest
import torch
from helpers import quick
from torch.nn import functional as F

from skbsd import BSDClassifier
from skbsd.objectives import Objective, SelfDistillation


def classifier(loss):
    """Return an estimator with this loss."""

    class Own(Objective):
        def loss(self, logits, batch):
            return loss(logits, batch.y)

    class Classifier(BSDClassifier):
        def make_objective(self):
            return Own()

    return Classifier(max_epochs=20, calibration=None, random_state=0)


def test_cross_entropy_is_the_limit_of_an_infinite_prior(iris):
    own = classifier(F.cross_entropy).fit(*iris)
    plain = quick(prior_strength=float("inf"), max_epochs=20).fit(*iris)
    for a, b in zip(own.module_.parameters(), plain.module_.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda z, y: F.cross_entropy(z, y, reduction="none"), r"shape \(128,\)"),
        (lambda z, y: None, "returned None; expected a Tensor"),
        (lambda z, y: 1.0, r"returned 1\.0; expected"),
    ],
)
def test_losses_that_are_none(iris, loss, message):
    model = classifier(loss)
    with pytest.raises(TypeError, match=message):
        model.fit(*iris)
    assert not hasattr(model, "module_")


def test_a_class_in_place_of_an_objective(iris):
    class Classifier(BSDClassifier):
        def make_objective(self):
            return Objective

    with pytest.raises(TypeError, match=r"make_objective returned .*instance of"):
        Classifier().fit(*iris)


def test_sample_weights_have_to_be_accepted(iris):
    with pytest.raises(ValueError, match="Own takes no sample or class weights"):
        classifier(F.cross_entropy).fit(*iris, sample_weight=iris[1] + 1)


def test_one_without_a_loss(iris):
    class Classifier(BSDClassifier):
        def make_objective(self):
            return Objective()

    with pytest.raises(NotImplementedError, match="Objective has no loss"):
        Classifier().fit(*iris)


class TestResultOfAStep:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda r: 3, TypeError, "returned int.*'loss' and 'y_pred'"),
            (lambda r: {"loss": r["loss"]}, TypeError, "'loss' and 'y_pred'"),
            (lambda r: {**r, "loss": None}, TypeError, "None as 'loss'.*shape"),
            (lambda r: {**r, "entropy": 1.5}, TypeError, "1.5 as 'entropy'"),
            (lambda r: {**r, "n": torch.tensor(3)}, TypeError, "floating Tensor"),
            (lambda r: {**r, "n": torch.ones(3)}, TypeError, r"of shape \(\)"),
            (lambda r: {**r, "epoch": r["loss"]}, ValueError, "'epoch'.*another name"),
            (lambda r: {**r, "valid_acc": r["loss"]}, ValueError, "'valid_acc'"),
        ],
    )
    def test_is_checked(self, iris, change, error, message):
        class Own(SelfDistillation):
            def step(self, batch):
                return change(super().step(batch))

        class Classifier(BSDClassifier):
            def make_objective(self):
                return Own("auto", "auto")

        with pytest.raises(error, match=message):
            Classifier(calibration=None).fit(*iris)

    def test_further_numbers_are_written_down(self, iris):
        class Own(SelfDistillation):
            def step(self, batch):
                result = super().step(batch)
                return {**result, "twice": 2 * result["loss"]}

        class Classifier(BSDClassifier):
            def make_objective(self):
                return Own("auto", "auto")

        model = Classifier(calibration=None, max_epochs=3, batch_size=50).fit(*iris)
        found = model.history[:, ("twice", "train_loss")]
        assert all(twice == pytest.approx(2 * loss) for twice, loss in found)
