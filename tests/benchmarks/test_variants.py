"""Rules that were tried before the defaults: their names, and the defaults."""

import copy
import math

import numpy as np
import pytest
import variants
from helpers import same_weights
from sklearn.datasets import load_digits

from skbsd import BSDClassifier


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(return_X_y=True)
    return (X[:400] / 16).astype(np.float32), y[:400]


def fit(model, data, **parameters):
    settings = {"max_epochs": 8, "calibration": None, "random_state": 0}
    return model(**settings, **parameters).fit(*data)


def test_names():
    assert variants.parse("k3 L0.5 tau0.7") == {"k": 3.0, "L": 0.5, "tau": 0.7}
    assert len(set(variants.TRIED)) == len(variants.TRIED)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_strength_leaves_the_mass(discount):
    c, T = variants.strength(0.3, discount, 12), 12
    total = c
    for _ in range(T):
        total = discount * total + 1
    assert discount**T * c / total == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("C12 L0.12 rel1 pr0.2 od0.1 sq0.3", "auto"),
        ("C3 L0.04 rel1 pr0.2 od0.1 tau0.7", "noisy"),
        ("L0.5", 8.0),
    ],
)
def test_estimator_is_a_variant(name, strength, data):
    """Another implementation of the same rule."""
    one = fit(BSDClassifier, data, prior_strength=strength)
    # Where weights and c are a fifth of the estimator's, the floor has to be as well.
    floor = 1e-3 if name == "L0.5" else 2e-4
    options = {**variants.parse(name), "prior_floor": floor}
    other = fit(variants.Variant, data, **options)
    proba = [model.predict_proba(data[0]) for model in (one, other)]
    # 1 / 0.7 is 1.43 and not 1.4.
    np.testing.assert_allclose(*proba, atol=0.01 if strength == "noisy" else 1e-4)
    plain = fit(BSDClassifier, data, prior_strength=math.inf)
    assert np.abs(proba[0] - plain.predict_proba(data[0])).max() > 0.03


@pytest.mark.parametrize(
    "name", ["k2 L0.4 rel1 resc1", "L0.4 ent1", "L0.2 rel2 soft1", "L0.4 fl0.1 sm0.1"]
)
def test_options_do_something(name, data):
    options = variants.parse(name)
    one = variants.Variant(max_epochs=8, random_state=0, **options).fit(*data)
    assert one.score(*data) > 0.9
    for option in options.keys() - {"L"}:
        fewer = {key: value for key, value in options.items() if key != option}
        other = variants.Variant(max_epochs=8, random_state=0, **fewer).fit(*data)
        difference = one.predict_proba(data[0]) - other.predict_proba(data[0])
        assert np.abs(difference).max() > 0.01


def test_goes_on_from_its_state(data):
    class Restarted(variants.Beliefs):
        loads = True

        def begin_epoch(self):
            if self.run.epoch == 4:
                state = copy.deepcopy(self.state_dict())
                self.begin(self.run)
                if self.loads:
                    self.load_state_dict(state)
            super().begin_epoch()

    class Forgetful(Restarted):
        loads = False

    class Restarting(variants.Variant):
        objective = Restarted

    class Forgetting(variants.Variant):
        objective = Forgetful

    options = variants.parse("C12 L0.12 rel1 pr0.2 od0.1 sq0.3")
    expected = fit(variants.Variant, data, **options)
    assert same_weights(fit(Restarting, data, **options), expected)
    assert not same_weights(fit(Forgetting, data, **options), expected)
