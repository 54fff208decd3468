import numpy as np
import pytest
from helpers import quick
from numpy.testing import assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd.calibration import Calibration
from skbsd.display import CalibrationEffectDisplay, ReliabilityDisplay
from skbsd.metrics import expected_calibration_error


@pytest.fixture(scope="module")
def model(iris):
    """A pipeline whose classifier has a temperature."""
    X, y = iris
    fitted = make_pipeline(StandardScaler(), quick()).fit(3 * X + 1, y)
    fitted[-1].calibration_ = Calibration(temperature=0.3)
    return fitted, 3 * X + 1, y


def legend(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_both_curves_of_a_pipeline(plt, model):
    fitted, X, y = model
    display = CalibrationEffectDisplay.from_estimator(fitted, X, y, n_bins=8)
    after = fitted.predict_proba(X)
    assert display.after.ece == pytest.approx(
        expected_calibration_error(y, after, n_bins=8)
    )
    logits = fitted[-1].forward(fitted[:-1].transform(X))
    before = logits.softmax(dim=1).numpy()
    assert display.before.ece == pytest.approx(
        expected_calibration_error(y, before, n_bins=8)
    )
    assert display.before.ece != display.after.ece
    assert_array_equal(display.before_.line_.get_ydata(), display.before.accuracy)
    assert_array_equal(display.after_.line_.get_ydata(), display.after.accuracy)
    assert legend(display) == [
        f"Before calibration (ECE {100 * display.before.ece:.1f} %)",
        f"After calibration (ECE {100 * display.after.ece:.1f} %)",
        "Perfectly calibrated",
    ]
    assert fitted[-1].temperature_ == 0.3


def test_predictions_of_any_method(plt, model):
    fitted, X, y = model
    after = fitted.predict_proba(X)
    before = after**0.3 / (after**0.3).sum(axis=1, keepdims=True)
    _, ax = plt.subplots()
    display = CalibrationEffectDisplay.from_predictions(
        y, before, after, n_bootstraps=5, random_state=0, ax=ax, histogram=False
    )
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert display.before_.histogram_ax_ is None
    assert display.before.ece == pytest.approx(expected_calibration_error(y, before))
    assert display.after.ece == pytest.approx(expected_calibration_error(y, after))
    assert display.before_.band_ is not None


def test_binary_class(plt, model):
    y = np.arange(60) % 2
    X = np.random.default_rng(0).normal(size=(60, 2)) + y[:, np.newaxis]
    fitted = quick().fit(X, y)
    fitted.calibration_ = Calibration(temperature=2.0)
    display = CalibrationEffectDisplay.from_estimator(fitted, X, y, pos_label=0)
    expected = ReliabilityDisplay.from_estimator(fitted, X, y, pos_label=0)
    assert_array_equal(display.after.confidence, expected.confidence)
    assert display.ax_.get_ylabel() == "Fraction of class 0"


def test_the_displays_passed_stay_as_they_were(plt):
    before = ReliabilityDisplay([0.9], [0.7], [1], [[0.85, 0.95]], 0.2, name="raw")
    after = ReliabilityDisplay([0.7], [0.7], [1], [[0.65, 0.75]], 0.0)
    display = CalibrationEffectDisplay(before, after).plot(ref_line=False)
    assert legend(display) == ["raw (ECE 20.0 %)", "After calibration (ECE 0.0 %)"]
    assert not hasattr(before, "ax_")


def test_errors(plt, iris):
    X, y = iris
    with pytest.raises(
        ValueError, match=r"is not calibrated.*has calibration=None and"
    ):
        CalibrationEffectDisplay.from_estimator(quick(max_epochs=1).fit(X, y), X, y)
    with pytest.raises(ValueError, match="expected a fitted BSDClassifier"):
        CalibrationEffectDisplay.from_estimator(LogisticRegression().fit(X, y), X, y)
