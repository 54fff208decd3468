"""The rule of an update, and the rules for "auto" parameters."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from skbsd import BSDClassifier
from skbsd._rules import (
    BUDGETS,
    Agreement,
    UpdateRule,
    budget,
    is_weighted,
    resolve_discount,
    resolve_prior_floor,
    resolve_prior_strength,
)
from skbsd.networks import MLP
from skbsd.posterior import DirichletPosterior


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(return_X_y=True)
    return (X[:300] / 16).astype(np.float32), y[:300]


class TestRules:
    def test_numbers_are_taken_as_they_are(self):
        assert resolve_prior_strength(7, 1000) == 7.0
        assert resolve_prior_strength(math.inf, 10) == math.inf
        assert resolve_discount(0.9) == 0.9
        assert resolve_prior_floor(0.5, 10_000, least=1.0) == 0.5

    @pytest.mark.parametrize("name", BUDGETS)
    def test_names_follow_the_epochs(self, name):
        budget = BUDGETS[name]
        assert resolve_prior_strength(name, 1) == budget.least
        assert resolve_prior_strength(name, 10) == budget.least
        c = resolve_prior_strength(name, 1000)
        assert c == pytest.approx(1000 * budget.per_epoch)
        assert c > budget.least

    def test_wrong_labels_hold_for_less(self):
        for epochs in (1, 30, 300):
            c, less = (resolve_prior_strength(n, epochs) for n in ("auto", "noisy"))
            assert less < c

    def test_discount(self):
        assert resolve_discount("auto") == 1.0

    def test_floor_follows_the_classes(self):
        for n_classes in (2, 10, 100):
            assert resolve_prior_floor("auto", n_classes) == 1e-3
        for n_classes in (101, 1000, 21_841):
            floor = resolve_prior_floor("auto", n_classes)
            assert n_classes * floor == pytest.approx(0.1)
        half = torch.finfo(torch.float16).smallest_normal
        assert resolve_prior_floor("auto", 1000, half) == 1e-4
        assert resolve_prior_floor("auto", 21_841, half) == half

    @pytest.mark.parametrize(
        ("evidence", "strength", "expected"),
        [
            ("auto", "auto", True),
            ("auto", "noisy", True),
            ("auto", 100.0, False),
            ("plain", "auto", False),
            ("weighted", 100.0, True),
        ],
    )
    def test_evidence(self, evidence, strength, expected):
        assert is_weighted(evidence, strength) is expected


class TestUpdateRule:
    def test_is_the_papers_by_default(self):
        rule = UpdateRule()
        values = (rule.weight, rule.sharpness, rule.smoothing, rule.discount)
        assert values == (1.0, 1.0, 0.0, 1.0)

    def test_is_a_value(self):
        rule = UpdateRule(weight=np.float32(2), discount=1)
        assert rule == UpdateRule(2.0)
        assert type(rule.weight) is type(rule.discount) is float
        assert {rule: 1}[UpdateRule(2.0)] == 1
        assert pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule) == rule
        with pytest.raises(AttributeError):
            rule.weight = 1.0

    @pytest.mark.parametrize(
        ("name", "expected", "values"),
        [
            ("weight", r"\[0, inf\)", [-0.1, math.inf, math.nan, "1", None]),
            ("sharpness", r"\(0, inf\)", [0.0, -1.0, math.inf, math.nan, "1"]),
            ("smoothing", r"\[0, 1\)", [-0.1, 1.0, math.nan, None]),
            ("discount", r"\(0, 1\]", [0.0, 1.1, math.nan, "auto"]),
        ],
    )
    def test_errors(self, name, expected, values):
        for value in values:
            message = f"{name} must be a number in {expected}, got {value!r}"
            with pytest.raises(ValueError, match=message):
                UpdateRule(**{name: value})


class TestAgreement:
    def test_nothing_counts_before_the_first_epoch(self):
        assert Agreement().weight() == 0
        assert Agreement().sharpness() == 1
        assert budget(100.0).sharpness == budget("auto").sharpness == 1
        assert Agreement().sharpness(budget("noisy").sharpness) == 1.4

    def test_last_and_mean(self):
        agreement = Agreement()
        for share in (0.2, 0.6, 1.0):
            agreement.add(share)
        assert agreement.last == 1.0
        assert agreement.mean == pytest.approx(0.6)
        assert agreement.weight() == pytest.approx(1 / 0.4)
        # A tenth of the odds, 1.5, adds to the exponent.
        assert agreement.sharpness() == pytest.approx(1.15)
        assert agreement.sharpness(2.0) == pytest.approx(2.15)

    def test_rule(self):
        agreement = Agreement()
        agreement.add(0.5)
        rule = agreement.rule("auto", 0.9)
        assert (rule.weight, rule.sharpness) == pytest.approx((1.0, 1.1))
        assert (rule.smoothing, rule.discount) == pytest.approx((0.3 * 0.25, 0.9))
        for other in ("noisy", 100.0):
            assert agreement.rule(other).smoothing == 0
            assert agreement.rule(other).discount == 1

    def test_bounds(self):
        agreement = Agreement()
        agreement.add(1.0)
        assert agreement.weight() == pytest.approx(5.0)
        assert agreement.sharpness() == pytest.approx(10)
        agreement = Agreement()
        agreement.add(0.0)
        assert agreement.weight() == 0.0


class TestEstimator:
    def test_floor(self, data):
        parameters = {"max_epochs": 1, "random_state": 0}
        model = BSDClassifier(calibration=None, **parameters).fit(*data)
        assert model.prior_floor_ == model.posterior_.prior_floor == 1e-3
        model.set_params(prior_floor=0.01, prior_strength=5.0).fit(*data)
        assert model.prior_floor_ == 0.01

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_floor_of_many_classes(self, dtype):
        """The prior floors reduce the label's share only little."""
        K = 2000
        X, y = np.eye(3 * K, 3, dtype=np.float32), np.repeat(np.arange(K), 3)
        model = BSDClassifier(
            calibration=None,
            max_epochs=1,
            batch_size=500,
            posterior_dtype=dtype,
            prior_strength=20.0,
        ).fit(X, y)
        half = torch.finfo(torch.float16).smallest_normal
        assert model.prior_floor_ == (half if dtype == "float16" else 0.1 / K)
        share = 20 / (20 + (K - 1) * model.prior_floor_ + 1)  # after one update
        assert model.posterior_.label_mass().mean() == pytest.approx(share, rel=1e-3)
        assert share > 0.94

    def test_numbers_give_the_papers_method(self, data):
        """S_t = gamma S_{t-1} + 1, starting at c + (K - 1) eps."""
        X, y = data
        parameters = {"prior_strength": 9.0, "discount": 0.5, "max_epochs": 3}
        model = BSDClassifier(calibration=None, **parameters, random_state=0).fit(X, y)
        total = 9.0 + 9 * 1e-3
        for _ in range(3):
            total = 0.5 * total + 1
        sums = model.posterior_.concentration().sum(1)
        torch.testing.assert_close(sums, torch.full_like(sums, total))
        assert (model.prior_strength_, model.discount_) == (9.0, 0.5)

    def test_defaults_are_weighted_by_the_agreement(self, data):
        X, y = data
        model = BSDClassifier(calibration=None, max_epochs=4, random_state=0).fit(X, y)
        c = resolve_prior_strength("auto", 4)
        assert (model.prior_strength_, model.discount_) == (c, 1.0)
        assert model.posterior_.prior_strength == c
        assert (model.posterior_.visits == 4).all()
        # Each epoch counts what went before it is worth, and the first nothing.
        shares, weights = [], []

        class Watch(Callback):
            def on_epoch_begin(self, net, **kwargs):
                weights.append(net.posterior_.agreement.weight())

            def on_epoch_end(self, net, **kwargs):
                shares.append(net.posterior_.agreement.last)

        again = clone(model).set_params(callbacks=[Watch()]).fit(X, y)
        counted = again.posterior_.concentration().sum(1) - c - 9 * 1e-3
        torch.testing.assert_close(
            counted, torch.full_like(counted, sum(weights)), rtol=1e-4, atol=1e-4
        )
        assert weights[0] == 0 < weights[1]
        assert weights[3] == pytest.approx(shares[2] / (1 - np.mean(shares[:3])))
        assert again.posterior_.agreement.mean == pytest.approx(np.mean(shares))

    def test_agreement_is_of_the_training_samples(self, data):
        X, y = data
        model = BSDClassifier(
            calibration=None, max_epochs=1, batch_size=-1, lr=1e-9, random_state=0
        )
        model.fit(X, y)  # which does not move
        assert model.posterior_.agreement.last == pytest.approx(model.score(X, y))
        weight = np.arange(len(y)) % 3.0
        model.fit(X, y, sample_weight=weight)
        assert model.posterior_.agreement.last == pytest.approx(
            model.score(X, y, weight)
        )

    def test_first_epoch_takes_in_nothing(self, data):
        model = BSDClassifier(calibration=None, max_epochs=1, random_state=0).fit(*data)
        assert (model.posterior_.visits == 1).all()
        sums = model.posterior_.concentration().sum(1)
        torch.testing.assert_close(
            sums, torch.full_like(sums, model.prior_strength_ + 9 * 1e-3)
        )

    @pytest.mark.parametrize("strength", ["auto", "noisy"])
    def test_beliefs_have_their_closed_form(self, data, strength):
        """alpha_T = alpha_0 + sum_t w_t softmax(z_t / tau_t)."""
        expected = []

        class Watch(Callback):
            def on_batch_end(self, net, batch, training, y_pred, **kwargs):
                agreement = net.posterior_.agreement  # of the epochs before
                sharpness = 1.4 if strength == "noisy" else 1.0
                odds = agreement.mean / (1 - agreement.mean)
                weight = min(5, agreement.last / (1 - agreement.mean))
                proba = (y_pred * min(10, sharpness + 0.1 * odds)).softmax(1)
                expected.append(weight * proba)

        model = BSDClassifier(
            calibration=None,
            prior_strength=strength,
            max_epochs=40,
            batch_size=-1,  # rows stay in their order
            lr=0.1,
            callbacks=[Watch()],
            random_state=0,
        ).fit(*data)
        prior = DirichletPosterior(
            torch.from_numpy(data[1]), 10, prior_strength=model.prior_strength_
        )
        torch.testing.assert_close(
            model.posterior_.concentration(),
            prior.concentration() + sum(expected),
            rtol=1e-4,
            atol=1e-4,
        )
        assert expected[0].sum() == 0
        assert expected[-1].sum(1).max() > 1

    def test_plain_evidence_with_an_automatic_prior(self, data):
        model = BSDClassifier(
            calibration=None, evidence="plain", max_epochs=3, random_state=0
        ).fit(*data)
        sums = model.posterior_.concentration().sum(1)
        c = model.prior_strength_
        torch.testing.assert_close(sums, torch.full_like(sums, c + 9 * 1e-3 + 3))

    def test_partial_fit_goes_on_with_the_agreement(self, data):
        model = BSDClassifier(
            calibration=None, max_epochs=2, random_state=0
        ).partial_fit(*data)
        c = model.prior_strength_
        model.set_params(max_epochs=200).partial_fit(*data)
        assert model.posterior_.agreement.n_epochs == 202
        assert model.prior_strength_ == c
        again = pickle.loads(pickle.dumps(model)).set_params(max_epochs=1)
        assert again.partial_fit(*data).posterior_.agreement.n_epochs == 203
        assert model.fit(*data).posterior_.agreement.n_epochs == 200
        assert model.prior_strength_ == resolve_prior_strength("auto", 200)

    def test_infinite_prior_counts_nothing(self, data):
        model = BSDClassifier(
            calibration=None,
            prior_strength=math.inf,
            evidence="weighted",
            max_epochs=2,
            random_state=0,
        ).fit(*data)
        assert model.posterior_.agreement.n_epochs == 0

    def test_a_diverging_epoch_does_not_count(self, data):
        model = BSDClassifier(calibration=None, max_epochs=3, random_state=0).fit(*data)
        before = copy.copy(model.posterior_.agreement)
        model.set_params(lr_schedule="constant", lr=1e30)
        with pytest.raises(ValueError, match="NaN or infinite"):
            model.partial_fit(*data)
        assert model.posterior_.agreement == before

    def test_a_checkpoint_holds_the_agreement(self, data, tmp_path):
        parameters = {"module": MLP(64, 10), "max_epochs": 3, "random_state": 0}
        model = BSDClassifier(calibration=None, **parameters).fit(*data)
        files = {
            f"f_{name}": tmp_path / name
            for name in ("params", "optimizer", "posterior")
        }
        model.save_params(**files)
        other = BSDClassifier(calibration=None, **parameters | {"max_epochs": 1}).fit(
            *data
        )
        other.load_params(**files)
        assert other.posterior_.agreement == model.posterior_.agreement
        before = other.posterior_.concentration().sum(1)
        grown = other.partial_fit(*data).posterior_.concentration().sum(1) - before
        weight = model.posterior_.agreement.weight()
        torch.testing.assert_close(
            grown, torch.full_like(grown, weight), rtol=1e-4, atol=1e-4
        )

    def test_parameters_set_while_training_wait_for_the_next_fit(self, data):
        class Meddle(Callback):
            def on_epoch_end(self, net, **kwargs):
                net.set_params(prior_strength="noisy")

        one, other = (
            BSDClassifier(
                calibration=None, max_epochs=4, callbacks=callbacks, random_state=0
            ).fit(*data)
            for callbacks in (None, [Meddle()])
        )
        np.testing.assert_array_equal(
            one.predict_proba(data[0]), other.predict_proba(data[0])
        )

    def test_optimizers_with_a_closure_count_once(self, data):
        model = BSDClassifier(
            calibration=None,
            optimizer=torch.optim.LBFGS,
            lr=0.1,
            max_epochs=3,
            random_state=0,
        ).fit(*data)
        assert model.posterior_.agreement.n_epochs == 3
        assert (model.posterior_.visits == 3).all()

    def test_a_loader_and_resident_data_count_alike(self, data):
        X, y = data
        one, other = (
            BSDClassifier(
                calibration=None, max_epochs=3, batch_size=-1, random_state=0, **kwargs
            )
            for kwargs in ({}, {"iterator_train__num_workers": 0})
        )
        assert (
            one.fit(X, y).posterior_.agreement == other.fit(X, y).posterior_.agreement
        )

    def test_names_in_a_grid_search(self, data):
        grid = {"prior_strength": ["auto", "noisy", 100.0, math.inf]}
        model = BSDClassifier(calibration=None, max_epochs=2, random_state=0)
        search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(*data)
        assert len(search.cv_results_["params"]) == 4
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"prior_strength": "strong"}, "prior_strength.*Got 'strong'"),
            ({"prior_strength": 0.0}, "prior_strength.*Got 0.0"),
            ({"discount": "some"}, "discount.*Got 'some'"),
            ({"evidence": "sharp"}, "evidence.*Got 'sharp'"),
            (
                {"posterior_dtype": "float16", "max_epochs": 3000},
                "at most 1024, got 2000.0 for this number of epochs",
            ),
        ],
    )
    def test_bad_parameters(self, data, parameters, message):
        with pytest.raises(ValueError, match=message):
            BSDClassifier(calibration=None, **parameters).fit(*data)
