"""Prediction does not change a fitted model, so threads can share it."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import quick, weights
from modules import Dropout
from numpy.testing import assert_array_equal
from skorch.callbacks import Callback


def at_rest(model):
    return not any(module.training for module in model.module_.modules())


@pytest.mark.parametrize("copied", [False, True])
def test_predictions_of_eight_threads(uint8_digits, copied):
    X, y = uint8_digits
    model = quick(max_epochs=2).fit(X[:300], y[:300])
    if copied:
        model = pickle.loads(pickle.dumps(model))
    assert at_rest(model)
    rows = [X[i : i + 7] for i in range(0, 700, 7)]
    expected = [model.predict_proba(x) for x in rows]
    before, attributes = weights(model), dict(vars(model))
    with ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(lambda: [model.predict_proba(x) for x in rows])
            for _ in range(8)
        ]
        for answer in answers:
            for found, right in zip(answer.result(), expected, strict=True):
                assert_array_equal(found, right)
    assert all(map(torch.equal, before, weights(model)))
    assert vars(model) == attributes


def test_networks_rest_in_evaluation_mode(iris):
    model = quick(module=Dropout).initialize()
    assert at_rest(model)
    assert at_rest(model.fit(*iris))
    assert at_rest(model.partial_fit(*iris))
    assert at_rest(copy.deepcopy(model))
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.set_params(lr=1e30).partial_fit(*iris)
    assert at_rest(model)
    model.forward(iris[0], training=True)
    assert at_rest(model)


def test_copies_that_are_made_while_training_rest_too(iris):
    copies = []

    class Copy(Callback):
        def on_batch_end(self, net, **kwargs):
            assert net.module_.training
            copies.append(copy.deepcopy(net))
            net.predict(iris[0])
            assert net.module_.training

    quick(module=Dropout, callbacks=[Copy], max_epochs=1).fit(*iris)
    assert all(map(at_rest, copies))
