"""Calibration of short trainings: single functions, and the estimator."""

import math
import types

import numpy as np
import pytest
import torch
from helpers import same_weights
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from skorch.dataset import ValidSplit

from skbsd import BSDClassifier, _advice
from skbsd._brief import (
    LogTemperature,
    batch_size_of_fold,
    estimate_log_temperature,
    first_choice,
    for_final_network,
    is_brief,
    label_errors,
    least_separation,
)
from skbsd.calibration import Calibration, fit_temperature
from skbsd.label_noise import flip_labels
from skbsd.networks import MLP


def drawn(n=4000, scale=1.0, seed=0, bias=0.0):
    """Return logits of three classes, and labels that are drawn from their softmax."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 3, generator=rng, dtype=torch.float64)
    logits[:, 0] += bias
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=rng)[:, 0]
    logits[:, 0] -= bias
    return logits * scale, labels, torch.ones(n, dtype=torch.float64)


class Faint(MLP):
    """Return logits that are almost equal for all classes."""

    def forward(self, x):
        return super().forward(x) / 50


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(
        (X / 16).astype(np.float32), y, train_size=500, stratify=y, random_state=0
    )


class TestWhichTrainingsAreBrief:
    @pytest.mark.parametrize(
        ("epochs", "size", "shows_images", "expected"),
        [
            (9, 20_000, False, True),
            (16, 1_000, False, True),  # 8 epochs of 4 steps
            (16, 1_200, False, False),  # 8 epochs of 5
            (19, 200, False, True),
            (20, 200, False, False),  # folds of all epochs
            (40, 200, True, True),
            (40, 450, True, False),
        ],
    )
    def test_by_epochs_and_steps(self, epochs, size, shows_images, expected):
        net = BSDClassifier(max_epochs=epochs)
        assert is_brief(net, size, shows_images=shows_images) is expected

    @pytest.mark.parametrize(
        ("epochs", "whole", "expected"),
        [(5, None, "auto"), (5, 9, "auto"), (5, 40, "plain"), (40, None, "plain")],
    )
    def test_the_beginning_of_a_longer_one_has_its_rule(self, epochs, whole, expected):
        net = BSDClassifier(max_epochs=epochs, schedule_epochs=whole)
        choice = first_choice(net, 1_000, shows_images=False)
        assert choice.evidence == expected

    def test_one_batch_is_one_step(self):
        net = BSDClassifier(max_epochs=30, batch_size=-1)
        assert is_brief(net, 10_000, shows_images=False)

    @pytest.mark.parametrize(
        ("batch_size", "n", "n_fold", "expected"),
        [
            (128, 1200, 600, 64),
            (128, 1201, 601, 65),
            (-1, 99, 49, -1),
            (99, 99, 49, 99),
            (2, 9, 4, 2),
            (1, 9, 4, 1),
        ],
    )
    def test_folds_take_as_many_steps(self, batch_size, n, n_fold, expected):
        found = batch_size_of_fold(batch_size, n, n_fold)
        assert found == expected
        if found > 2:
            assert math.ceil(n_fold / found) == math.ceil(n / batch_size)


class TestLogTemperature:
    def test_is_that_of_fit_temperature(self):
        logits, labels, weight = drawn(scale=3.0)
        found = estimate_log_temperature(Calibration(), logits, labels, weight)
        expected = float(fit_temperature(logits, labels))
        assert math.exp(found.value) == pytest.approx(expected, rel=1e-5)

    def test_variance_is_that_over_samples(self):
        estimates = [
            estimate_log_temperature(Calibration(), *drawn(500, seed=seed))
            for seed in range(60)
        ]
        spread = np.var([e.value for e in estimates])
        mean = np.mean([e.variance for e in estimates])
        assert 0.6 < mean / spread < 1.6

    def test_few_contradictions_of_sure_predictions_leave_it_uncertain(self):
        logits, labels, weight = drawn(1000, scale=8.0)
        labels = logits.argmax(dim=1)
        labels[:3] = (labels[:3] + 1) % 3
        found = estimate_log_temperature(Calibration(), logits, labels, weight)
        assert found.variance > 0.05

    def test_weights_are_repetitions(self):
        logits, labels, _ = drawn(90)
        weight = torch.arange(90).double() % 3
        rows = torch.arange(90).repeat_interleave(weight.long())
        weighted = estimate_log_temperature(Calibration(), logits, labels, weight)
        repeated = estimate_log_temperature(
            Calibration(), logits[rows], labels[rows], torch.ones(len(rows)).double()
        )
        assert weighted == pytest.approx(repeated, rel=1e-6)


class TestFinalNetwork:
    def test_scale_is_its_own(self):
        logits, labels, weight = drawn()
        folds = estimate_log_temperature(Calibration(), logits, labels, weight)
        made = for_final_network(
            Calibration(temperature=1.3), folds, 5 * logits, labels, weight
        )
        assert made.temperature == pytest.approx(5 * 1.3, rel=0.1)

    def test_scale_is_the_folds_where_nothing_is_known(self):
        logits, labels, weight = drawn()
        folds = LogTemperature(0.0, 1e6, 0.1)
        made = for_final_network(
            Calibration(temperature=1.3), folds, 5 * logits, labels, weight
        )
        assert made.temperature == pytest.approx(1.3, rel=1e-3)

    @pytest.mark.parametrize(("bias", "stays"), [(1.0, True), (-1.0, False)])
    def test_bias_stays_where_it_helps(self, bias, stays):
        logits, labels, weight = drawn(bias=1.0)
        given = Calibration(bias=np.array([bias, 0.0, 0.0]))
        folds = estimate_log_temperature(given, logits, labels, weight)
        made = for_final_network(given, folds, logits, labels, weight)
        assert (made.bias is not None) is stays


class TestLabelErrors:
    def of(self, accuracy, wrong, cautious, sure=6.0):
        """Estimate the error of a network of this accuracy and constant confidence."""
        rng = np.random.default_rng(0)
        true = rng.integers(5, size=2000)
        given, _ = flip_labels(true, wrong, random_state=0)
        missed = rng.random(2000) > accuracy
        predicted = np.where(missed, (true + rng.integers(1, 5, size=2000)) % 5, true)
        logits = sure * np.eye(5)[predicted] + rng.normal(size=(2000, 5))
        return label_errors(
            torch.from_numpy(logits),
            torch.from_numpy(given),
            torch.ones(2000, dtype=torch.float64),
            shows_images=True,
            separable=0.5 if cautious else None,
        )

    def test_are_found(self):
        assert self.of(0.98, 0.3, True).rate == pytest.approx(0.3, abs=0.05)

    def test_need_more_separation_before_statistics_settle(self):
        net = BSDClassifier(max_epochs=3)
        early, late = (least_separation(net, n, brief=True) for n in (1_000, 1_200))
        assert early > late  # 24 steps, and 30
        net.set_params(max_epochs=20)
        assert least_separation(net, 1_000, brief=False) is None

    def test_few_are_left_alone(self):
        assert self.of(1.0, 0.03, False).rate == pytest.approx(0.03, abs=0.02)
        assert self.of(1.0, 0.03, True).transition is None


class TestBSDClassifier:
    @pytest.mark.parametrize("epochs", [2, 3, 5, 8])
    def test_is_no_worse_than_a_plain_training(self, digits, epochs):
        X, X_test, y, y_test = digits
        model = BSDClassifier(max_epochs=epochs, random_state=0).fit(X, y)
        plain = clone(model).set_params(calibration=None).fit(X, y)
        assert same_weights(model, plain)
        losses = [log_loss(y_test, m.predict_proba(X_test)) for m in (model, plain)]
        assert losses[0] < 1.05 * losses[1]

    def test_images_of_few_epochs_are_calibrated(self):
        X, y = load_digits(return_X_y=True)
        X = (X / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        X, X_test, y, y_test = train_test_split(
            X, y, train_size=700, stratify=y, random_state=0
        )
        model = BSDClassifier(max_epochs=4, random_state=0).fit(X, y)
        plain = clone(model).set_params(calibration=None).fit(X, y)
        losses = [log_loss(y_test, m.predict_proba(X_test)) for m in (model, plain)]
        assert losses[0] < 0.9 * losses[1]
        assert model.noise_rate_ == 0

    def test_wrong_labels_are_found(self, digits):
        X, _, y, _ = digits
        given, _ = flip_labels(y, 0.3, random_state=0)
        model = BSDClassifier(max_epochs=8, random_state=0).fit(X, given)
        assert model.noise_rate_ == pytest.approx(0.3, abs=0.06)

    def test_says_what_was_done(self, digits):
        model = BSDClassifier(max_epochs=3, random_state=0).fit(*digits[::2])
        made = model.calibration_
        assert (made.method, made.n_folds, made.n_epochs) == ("cross-fit", 2, 3)
        assert made.n_samples == 500
        assert np.isfinite(model.out_of_fold_proba_).all()

    def test_a_rate_of_ones_own_is_that_of_the_folds(self, digits, monkeypatch):
        rates = []

        def fold_net(net, choice, *args):
            rates.append(choice.lr)
            return original(net, choice, *args)

        from skbsd._cross_fit import fold_net as original

        monkeypatch.setattr("skbsd._cross_fit.fold_net", fold_net)
        BSDClassifier(max_epochs=2, lr=3e-3, random_state=0).fit(*digits[::2])
        assert rates == [3e-3, 3e-3]

    def test_batch_size_of_the_iterator(self, digits):
        model = BSDClassifier(
            max_epochs=2, iterator_train__batch_size=100, random_state=0
        ).fit(*digits[::2])
        assert model.get_params()["iterator_train__batch_size"] == 100
        same = BSDClassifier(max_epochs=2, batch_size=100, random_state=0)
        same.fit(*digits[::2])
        assert model.temperature_ == same.temperature_

    def test_validation_data_calibrate_the_plain_network(self, digits):
        X, _, y, _ = digits
        split = ValidSplit(5, stratified=True)
        model = BSDClassifier(max_epochs=3, train_split=split, random_state=0)
        plain = clone(model).set_params(calibration=None).fit(X, y)
        assert same_weights(model.fit(X, y), plain)
        assert model.calibration_.method == "hold-out"

    def test_checkpoint_holds_what_the_folds_have_learnt(self, digits, tmp_path):
        X, _, y, _ = digits
        model = BSDClassifier(max_epochs=2, random_state=0, checkpoint=tmp_path)
        first = model.fit(X, y).temperature_
        assert clone(model).fit(X, y).temperature_ == first
        again = BSDClassifier(max_epochs=2, random_state=0).fit(X, y)
        assert again.temperature_ == first


class TestAdvice:
    @pytest.mark.parametrize(
        ("temperature", "advice"), [(0.01, "Raise max_epochs"), (60.0, "Lower lr")]
    )
    def test_extreme_temperatures(self, temperature, advice):
        net = types.SimpleNamespace(
            temperature_=temperature, max_epochs=1, history_=None
        )
        outcome = types.SimpleNamespace(calibration=Calibration(temperature))
        with pytest.warns(ConvergenceWarning, match=advice) as caught:
            _advice.of_result(net, outcome, stacklevel=2)
        assert f"{temperature:g}" in str(caught[0].message)

    def test_is_given_where_fit_is_called(self, digits):
        X, _, y, _ = digits
        model = BSDClassifier(Faint, max_epochs=1, random_state=0)
        model.set_params(module__in_features=64, module__n_classes=10)
        with pytest.warns(ConvergenceWarning, match="differ so little") as caught:
            model.fit(X[:400], y[:400])
        assert caught[0].filename == __file__
