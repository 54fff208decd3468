"""Objectives of one's own, and mistakes in them."""

import pytest
import torch
from helpers import quick
from torch.nn import functional as F

from skbsd import BSDClassifier
from skbsd.objectives import Objective


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
