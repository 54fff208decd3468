import numpy as np
import pytest
from metric_calls import sample
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.metrics import brier_score_loss, log_loss

from skbsd.metrics import brier_decomposition, log_loss_decomposition


def test_brier_decomposition_by_hand():
    # PAV maps 1/4 to 1/3 and 3/4 to 1.
    parts = brier_decomposition([0, 0, 1, 1], [0.25, 0.25, 0.25, 0.75])
    np.testing.assert_allclose(parts, [3 / 16, 3 / 16 - 1 / 6, 1 / 6])
    # PAV pools the first two, in the wrong order.
    parts = brier_decomposition([1, 0, 1], [0.1, 0.2, 0.8], scale_by_half=False)
    np.testing.assert_allclose(parts.refinement, 2 * 0.5 / 3)
    # A perfect ranking is refined to nothing, however bad the probabilities.
    parts = brier_decomposition([0, 0, 1], [0.1, 0.2, 0.3])
    assert parts.refinement == pytest.approx(0, abs=1e-15)


def test_log_loss_decomposition_by_hand():
    # Confidence .9, right three times of four: tempering turns it into 3/4.
    parts = log_loss_decomposition([0, 1, 1, 1], [0.1, 0.1, 0.9, 0.9])
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    score = -0.75 * np.log(0.9) - 0.25 * np.log(0.1)
    np.testing.assert_allclose(parts, [score, score - entropy, entropy])
    # Worse than chance: the best temperature is infinite.
    parts = log_loss_decomposition([0, 1, 2], np.roll(np.eye(3), 1, axis=0))
    assert parts.refinement == pytest.approx(np.log(3))
    # Always right: the best temperature is zero, and ties remain.
    parts = log_loss_decomposition([0, 1, 2], 0.1 + 0.7 * np.eye(3))
    assert parts.refinement == 0
    parts = log_loss_decomposition([0, 1], [[0.4, 0.4, 0.2], [0.1, 0.8, 0.1]])
    assert parts.refinement == pytest.approx(np.log(2) / 2)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_log_loss_refinement_is_the_least_of_all_temperatures(sharpness):
    y, p = sample(200, 4, sharpness=sharpness)

    def loss(inverse):
        logits = inverse * np.log(p)
        return np.mean(logsumexp(logits, axis=1) - logits[np.arange(200), y])

    best = minimize_scalar(loss, bounds=(0, 20), method="bounded").fun
    parts = log_loss_decomposition(y, p)
    assert parts.refinement == pytest.approx(best, abs=1e-9)
    assert parts.miscalibration == pytest.approx(log_loss(y, p) - best, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_decompositions_add_up_to_the_scores_of_scikit_learn(n_classes, dtype):
    y, p = sample(150, n_classes, dtype=dtype)
    labels, weight = np.arange(n_classes), np.linspace(0.1, 2, 150)
    p[0] = np.eye(n_classes)[(y[0] + 1) % n_classes]  # an infinite loss, if unclipped
    settings = {"labels": labels, "sample_weight": weight}
    results = [(log_loss_decomposition(y, p, **settings), log_loss(y, p, **settings))]
    for half in (True, False, "auto"):
        settings["scale_by_half"] = half
        parts = brier_decomposition(y, p, **settings)
        results.append((parts, brier_score_loss(y, p, **settings)))
    for parts, score in results:
        assert parts.score == parts.miscalibration + parts.refinement
        assert parts.score == pytest.approx(
            score, rel=5e-6 if dtype == np.float32 else 1e-12
        )
        assert parts.miscalibration > 0
        assert parts.refinement > 0


@pytest.mark.parametrize("split", [brier_decomposition, log_loss_decomposition])
def test_miscalibration_is_never_negative(split):
    for seed in range(30):
        y, p = sample(25, 3, seed=seed, sharpness=[0.0, 0.5, 1.0, 4.0][seed % 4])
        parts = split(y, p, labels=range(3))
        assert parts.miscalibration >= 0
        assert parts.refinement >= 0


def test_recalibrated_predictions_are_calibrated():
    y, p = sample(200, 3)
    frequencies = np.tile(np.bincount(y) / 200, (200, 1))
    parts = brier_decomposition(y, frequencies)
    assert parts.miscalibration == pytest.approx(0, abs=1e-15)

    def loss(inverse):
        return log_loss(y, softmax(inverse * np.log(p), axis=1))

    best = minimize_scalar(loss, bounds=(0, 5), method="bounded").x
    tempered = softmax(best * np.log(p), axis=1)
    assert log_loss_decomposition(y, p).miscalibration > 0.01
    assert log_loss_decomposition(y, tempered).miscalibration < 1e-9
