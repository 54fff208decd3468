import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skbsd import BSDClassifier
from skbsd.display import NoiseRateDisplay
from skbsd.label_noise import NoiseRates, flip_labels


def made(n_classes, names=None):
    """Rates of classes, the last of which has no labels."""
    rate = np.linspace(0.05, 0.3, n_classes)
    rate[-1] = np.nan
    pairs = np.array([[0, 1], [1, 0]])
    return NoiseRates(
        classes=np.array(names or [f"c{k}" for k in range(n_classes)]),
        n_samples=1000,
        n_labels=np.full(n_classes, 10),
        rate=0.2,
        interval=np.array([0.15, 0.26]),
        by_class=rate,
        by_class_interval=np.array([rate - 0.04, rate + 0.05]),
        pairs=pairs,
        by_pair=np.array([0.1, 0.02]),
        by_pair_interval=np.array([[0.08, 0.03], [0.12, 0.04]]),
        confidence_level=0.9,
    )


def names(display):
    return [text.get_text() for text in display.ax_.get_yticklabels()]


def limits(container):
    (bars,) = container.lines[2]
    return np.array([segment[:, 0] for segment in bars.get_segments()])


def test_rates_close_to_zero_look_small(plt):
    rates = made(3)
    small = {
        name: 1e-6 * getattr(rates, name)
        for name in ("rate", "interval", "by_class", "by_class_interval")
    }
    display = NoiseRateDisplay(replace(rates, **small)).plot()
    assert display.ax_.get_xlim() == (0, 1)  # percent


def test_classes_in_descending_order(plt):
    rates = made(4)
    display = NoiseRateDisplay(rates).plot()
    assert names(display) == ["All labels", "c2", "c1", "c0"]
    assert_allclose(display.rows_.lines[0].get_xdata(), 100 * rates.by_class[[2, 1, 0]])
    assert_allclose(
        limits(display.rows_), 100 * rates.by_class_interval[:, [2, 1, 0]].T
    )
    assert_allclose(limits(display.overall_), [[15, 26]])
    assert_allclose(display.band_.get_bbox().intervalx, [15, 26])
    assert "90 % confidence interval" in display.ax_.get_xlabel()
    assert display.ax_.get_ylabel() == "Given label"
    assert display.ax_.yaxis_inverted()


def test_pairs(plt):
    display = NoiseRateDisplay(made(3)).plot(by="pair")
    assert names(display) == ["c0 labelled c1", "c1 labelled c0"]
    assert display.overall_ is display.band_ is None
    # An interval that does not contain its rate ends there.
    assert_allclose(limits(display.rows_), [[8, 12], [2, 4]])


def test_many_classes_with_long_names(plt):
    long = [f"{k} costs $5 and $6, a long name" for k in range(100)]
    display = NoiseRateDisplay(made(100, long)).plot(max_rows=7)
    assert len(names(display)) == 8
    assert names(display)[1] == "98 costs $5 and $6, a long …"
    assert display.ax_.get_ylabel() == "Given label\n(the 7 highest rates of 99)"
    display.figure_.canvas.draw()
    box = display.figure_.bbox
    for text in display.ax_.get_yticklabels():
        assert box.x0 <= text.get_window_extent().x0
        assert not text.get_parse_math()


def test_axes_and_style_of_the_user(plt):
    _, ax = plt.subplots()
    display = NoiseRateDisplay(made(3)).plot(ax, c="k")
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert display.rows_.lines[0].get_color() == "k"


def test_of_a_classifier(plt, digits):
    X, y = digits[0][:400] / 16, digits[1][:400]
    labels, _ = flip_labels(y, 0.2, random_state=0)
    model = BSDClassifier(max_epochs=10, random_state=0).fit(X, labels)
    display = NoiseRateDisplay.from_estimator(
        model, n_bootstraps=5, random_state=0, max_rows=3, by="pair"
    )
    assert len(display.noise_rates.pairs) <= 3
    assert display.noise_rates.n_samples == 400


def test_errors(plt, monkeypatch):
    display = NoiseRateDisplay(made(3))
    with pytest.raises(ValueError, match=r"'by' parameter of NoiseRateDisplay\.plot"):
        display.plot(by="label")
    with pytest.raises(ValueError, match="'max_rows' parameter"):
        display.plot(max_rows=0)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'NoiseRateDisplay\.plot .*"\.\[plot\]"'):
        display.plot()
