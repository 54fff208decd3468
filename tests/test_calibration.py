import math

import numpy as np
import pytest
import torch

from skbsd._label_model import Likelihood, Model
from skbsd.calibration import (
    Calibration,
    fit_calibration,
    fit_label_errors,
    fit_temperature,
    log_losses,
)


def drawn(logits, seed=1):
    """Draw labels from the softmax of logits."""
    generator = torch.Generator().manual_seed(seed)
    proba = logits.double().softmax(dim=1)
    return torch.multinomial(proba, 1, generator=generator)[:, 0]


def normal(n, k, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, k, generator=generator, dtype=torch.float64)


def flipped(labels, k, rate, seed=2):
    """Replace a fraction of the labels by uniformly drawn classes."""
    rng = np.random.default_rng(seed)
    given = labels.numpy().copy()
    rows = rng.random(len(given)) < rate
    given[rows] = rng.integers(0, k, rows.sum())
    return torch.from_numpy(given)


class TestCalibration:
    def test_is_the_identity_by_default(self):
        logits = normal(5, 3)
        assert Calibration()(logits) is logits

    def test_temperature_and_bias(self):
        logits = normal(5, 3)
        bias = np.array([0.1, 0.0, -0.1])
        calibrated = Calibration(temperature=2.0, bias=bias)(logits)
        assert torch.allclose(calibrated, logits / 2 + torch.from_numpy(bias))

    def test_transition(self):
        logits = normal(50, 3)
        matrix = np.array([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.3, 0.0, 0.7]])
        made = Calibration(transition=matrix, applies_transition=True)
        expected = logits.softmax(dim=1) @ torch.from_numpy(matrix)
        assert torch.allclose(made(logits).softmax(dim=1), expected)

    def test_true_labels_are_not_those_given(self):
        logits = normal(50, 3)
        made = Calibration(transition=np.full((3, 3), 1 / 3))
        assert made(logits) is logits

    def test_keeps_the_type(self):
        logits = normal(5, 3).float()
        made = Calibration(2.0, np.zeros(3), np.eye(3), applies_transition=True)
        assert made(logits).dtype == torch.float32


class TestFitTemperature:
    @pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
    def test_finds_it(self, true):
        logits = normal(20_000, 4)
        labels = drawn(logits / true)
        assert float(fit_temperature(logits, labels)) == pytest.approx(true, rel=0.05)

    def test_is_the_minimum(self):
        logits, labels = normal(300, 3), drawn(normal(300, 3) / 2)

        def loss(log_t):
            nll = log_losses(logits / math.exp(log_t), labels).sum()
            return float(nll) + (log_t / 0.7) ** 2 / 2

        best = math.log(float(fit_temperature(logits, labels)))
        assert loss(best) < min(loss(best - 1e-3), loss(best + 1e-3))

    def test_few_samples_all_right(self):
        logits = 4 * torch.eye(3).repeat(10, 1)
        temperature = float(fit_temperature(logits, logits.argmax(dim=1)))
        assert 0.2 < temperature < 1

    def test_several_at_once(self):
        logits = torch.stack([normal(200, 3), 5 * normal(200, 3)])
        labels = drawn(normal(200, 3))
        together = fit_temperature(logits, labels)
        apart = [float(fit_temperature(z, labels)) for z in logits]
        assert together.tolist() == pytest.approx(apart)

    def test_weights_are_repetitions(self):
        logits, labels = normal(100, 3), drawn(normal(100, 3))
        weight = torch.arange(100) % 3
        repeated = fit_temperature(
            logits.repeat_interleave(weight, dim=0), labels.repeat_interleave(weight)
        )
        weighted = fit_temperature(logits, labels, weight)
        assert float(weighted) == pytest.approx(float(repeated), rel=1e-9)


class TestFitCalibration:
    def test_bias_where_the_base_rate_is_off(self):
        logits = normal(4000, 3)
        labels = drawn(logits + torch.tensor([1.0, 0.0, 0.0]))
        _, bias = fit_calibration(logits, labels)
        assert bias[0] - bias[1] == pytest.approx(1.0, abs=0.2)

    def test_none_where_it_is_right(self):
        logits = normal(4000, 3)
        assert fit_calibration(logits, drawn(logits))[1] is None


class TestFitLabelErrors:
    @pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
    def test_symmetric(self, rate):
        logits = normal(3000, 5, scale=8.0)
        given = flipped(drawn(logits / 2), 5, rate)
        found = fit_label_errors(logits, given)
        assert found.rate == pytest.approx(rate * 4 / 5, abs=0.03)
        assert found.temperature == pytest.approx(2, rel=0.2)

    def test_no_errors(self):
        logits = normal(3000, 5, scale=8.0)
        found = fit_label_errors(logits, drawn(logits / 2))
        assert found.transition is None
        assert found.rate == 0

    def test_asymmetric(self):
        logits = normal(4000, 4, scale=8.0)
        true = drawn(logits)
        given = true.clone()
        rows = (true == 2) & (torch.arange(4000) % 3 == 0)
        given[rows] = 0
        found = fit_label_errors(logits, given)
        assert found.transition[2, 0] == pytest.approx(1 / 3, abs=0.06)
        assert found.transition[1, 1] > 0.97
        assert found.rate == pytest.approx(float(rows.float().mean()), abs=0.02)

    def test_separation_is_of_true_labels(self):
        logits = normal(3000, 5, scale=20.0)
        given = flipped(drawn(logits), 5, 0.4)
        assert fit_label_errors(logits, given).separation > 0.85

    def test_labels_that_nothing_predicts(self):
        logits = normal(3000, 2)
        found = fit_label_errors(logits, drawn(torch.zeros(3000, 2)))
        assert (found.rate, found.transition) == (0, None)

    @pytest.mark.parametrize("with_bias", [False, True])
    @pytest.mark.parametrize("errors", ["none", "symmetric", "matrix"])
    def test_gradient(self, with_bias, errors):
        weight = torch.linspace(0.5, 2, 50)
        likelihood = Likelihood(normal(50, 4), drawn(normal(50, 4)), weight)
        clean = likelihood._fitted(np.array([0.3]), Model(4, False, "none"))
        model = Model(4, with_bias, errors)
        values = model.start(clean)
        values += np.random.default_rng(0).normal(size=len(values)) / 5
        _, gradient = likelihood.objective(values, model)
        steps = 1e-6 * np.eye(len(values))
        numeric = [
            likelihood.objective(values + h, model)[0]
            - likelihood.objective(values - h, model)[0]
            for h in steps
        ]
        assert gradient == pytest.approx(np.array(numeric) / 2e-6, abs=1e-5)
