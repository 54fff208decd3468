import sys

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.stats import sem
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.neighbors import KNeighborsClassifier

from skbsd.display import CalibrationTradeoffDisplay
from skbsd.metrics import get_scorer

INF = float("inf")
SCORING = {
    "brier": "neg_brier_score",
    "ece": get_scorer("neg_expected_calibration_error"),
    "accuracy": "accuracy",
}


METRICS = r"'f1'.*\['brier', 'ece', 'accuracy'\]"


def search(grid, cv=4):
    X, y = load_breast_cancer(return_X_y=True)
    model = KNeighborsClassifier()
    return GridSearchCV(model, grid, scoring=SCORING, refit="brier", cv=cv).fit(X, y)


@pytest.fixture(scope="module")
def results():
    return search({"n_neighbors": [30, 3, 10]}).cv_results_


def made(values, ece, accuracy, **columns):
    """Results of a search as they might be, of two splits."""
    ece, accuracy = np.array(ece, dtype=float), np.array(accuracy, dtype=float)
    column = np.ma.masked_all(len(values), dtype=object)
    column[:] = values
    results = {"param_model__c": column}
    for name, mean in (("ece", ece), ("accuracy", accuracy)):
        results |= {
            f"split0_test_{name}": mean - 0.01,
            f"split1_test_{name}": mean + 0.01,
            f"mean_test_{name}": mean,
            f"std_test_{name}": np.full(len(mean), 0.01),
            f"rank_test_{name}": (-mean).argsort().argsort() + 1,
        }
    return results | columns


def points(display):
    return display.points_.lines[0].get_xydata()


def texts(display):
    return [text.get_text() for text in display.texts_]


def legend_texts(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def bars(display):
    """Return half the lengths of the horizontal and the vertical error bars."""
    horizontal, vertical = display.points_.lines[2]
    return (
        [np.ptp(segment[:, 0]) / 2 for segment in horizontal.get_segments()],
        [np.ptp(segment[:, 1]) / 2 for segment in vertical.get_segments()],
    )


@pytest.mark.parametrize("kind", [dict, pd.DataFrame])
def test_points_of_a_search(plt, results, kind):
    display = CalibrationTradeoffDisplay.from_cv_results(kind(results), refit="brier")
    splits = {
        name: np.array([results[f"split{i}_test_{name}"] for i in range(4)])
        for name in ("ece", "accuracy")
    }
    expected = np.c_[-splits["ece"].mean(axis=0), splits["accuracy"].mean(axis=0)]
    assert_allclose(points(display), expected)
    assert (expected > 0).all()
    horizontal, vertical = bars(display)
    assert_allclose(horizontal, sem(splits["ece"], axis=0))
    assert_allclose(vertical, sem(splits["accuracy"], axis=0))

    assert texts(display) == ["30", "3", "10"]
    assert [text.xy for text in display.texts_] == [tuple(p) for p in expected]
    assert_allclose(display.line_.get_xydata(), expected[[1, 2, 0]])  # 3, 10, 30
    best = int(np.argmin(results["rank_test_brier"]))
    assert display.best_index == best
    assert_allclose(display.best_.get_xydata(), [expected[best]])
    assert legend_texts(display) == ["n_neighbors", "Best by brier"]
    assert display.ax_.get_xlabel() == "Calibration error (ece)"
    assert display.ax_.get_ylabel() == "Accuracy"
    assert display.figure_ is display.ax_.figure


def test_values_of_any_kind(plt):
    values = ["auto", 10, INF, 2.5, None, True]
    ece = [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]
    display = CalibrationTradeoffDisplay.from_cv_results(made(values, ece, [0.5] * 6))
    assert texts(display) == ["auto", "10", "∞", "2.5", "None", "True"]
    # Names have no order: the line goes through the numbers.
    assert_allclose(display.line_.get_xdata(), [0.4, 0.2, 0.3])
    assert display.best_ is None
    assert legend_texts(display) == ["c"]
    negative = CalibrationTradeoffDisplay([0.1], [0.9], [-INF]).plot()
    assert texts(negative) == ["−∞"]
    assert negative.ax_.get_legend() is None
    assert negative.ax_.get_xlabel() == "Calibration error"


def test_list_of_grids(plt):
    grids = [{"n_neighbors": [3, 5]}, {"weights": ["distance"]}]
    results = search(grids, cv=2).cv_results_
    with pytest.raises(ValueError, match=r"2 parameters vary.*'n_neighbors', 'weigh"):
        CalibrationTradeoffDisplay.from_cv_results(results)
    display = CalibrationTradeoffDisplay.from_cv_results(results, param="n_neighbors")
    assert texts(display) == ["3", "5", "not set"]


def test_two_parameters(plt):
    results = search({"n_neighbors": [3, 5], "p": [1, 2], "leaf_size": [30]}, cv=2)
    results = results.cv_results_
    with pytest.raises(ValueError, match="2 parameters vary") as caught:
        CalibrationTradeoffDisplay.from_cv_results(results)
    for name in ("n_neighbors", "p", "leaf_size"):
        assert repr(name) in str(caught.value)
    display = CalibrationTradeoffDisplay.from_cv_results(results, param="p")
    assert texts(display) == ["1", "2", "1", "2"]
    assert len(display.line_.get_xdata()) == 0  # there is no order among them
    one = search({"n_neighbors": [3, 5], "p": [1]}, cv=2).cv_results_
    assert legend_texts(CalibrationTradeoffDisplay.from_cv_results(one)) == [
        "n_neighbors"
    ]


def test_errors_that_are_not_negated_and_other_names(plt):
    results = made([1, 2], [0.02, 0.0], [0.8, 0.9])
    results = {key.replace("accuracy", "balanced"): v for key, v in results.items()}
    display = CalibrationTradeoffDisplay.from_cv_results(results, accuracy="balanced")
    assert_allclose(points(display), [[0.02, 0.8], [0, 0.9]])
    assert display.ax_.get_ylabel() == "Accuracy (balanced)"
    with pytest.raises(ValueError, match=r"'ece' lie between -0.02 and 0.1"):
        CalibrationTradeoffDisplay.from_cv_results(made([1, 2], [-0.02, 0.1], [1, 1]))


def test_failed_and_single_fits(plt):
    nan = np.nan
    results = made([1, 2, 3], [nan, -0.1, -0.2], [nan, 0.9, 0.8])
    results["rank_test_accuracy"] = np.array([3, 2, 1])
    display = CalibrationTradeoffDisplay.from_cv_results(results, refit="accuracy")
    assert texts(display) == ["2", "3"]
    assert display.best_index == 1
    with pytest.raises(ValueError, match="none of the 2 candidates has scores"):
        CalibrationTradeoffDisplay.from_cv_results(made([1, 2], [nan, nan], [1, 1]))

    single = ShuffleSplit(1, random_state=0)
    results = search({"n_neighbors": [3, 10]}, cv=single).cv_results_
    display = CalibrationTradeoffDisplay.from_cv_results(results)
    assert display.calibration_error_sem is display.accuracy_sem is None
    assert display.points_.lines[2] == ()


def test_several_on_one_axes(plt, results):
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    options = {"refit": "brier", "ax": right}
    first = CalibrationTradeoffDisplay.from_cv_results(results, name="one", **options)
    second = CalibrationTradeoffDisplay.from_cv_results(results, name="two", **options)
    assert first.ax_ is second.ax_ is right
    assert plt.get_fignums() == [figure.number]
    assert not left.lines
    assert legend_texts(second) == ["one", "two", "Best by brier"]
    one, two = first.points_.lines[0], second.points_.lines[0]
    assert one.get_color() != two.get_color()
    assert one.get_marker() != two.get_marker()
    assert first.line_.get_linestyle() != second.line_.get_linestyle()
    figure.canvas.draw()


def test_init_only_stores():
    names = (
        "calibration_error_sem",
        "accuracy_sem",
        "best_index",
        "param_name",
        "calibration_name",
        "accuracy_name",
        "best_name",
    )
    values = [object() for _ in range(10)]
    options = dict(zip(names, values[3:], strict=True))
    display = CalibrationTradeoffDisplay(*values[:3], **options)
    assert list(vars(display).values()) == values


def test_style(plt, results):
    rc = dict(plt.rcParams)
    display = CalibrationTradeoffDisplay.from_cv_results(results, c="red", ms=9, ls=":")
    assert dict(plt.rcParams) == rc
    assert display.line_.get_color() == display.points_.lines[0].get_color() == "red"
    assert display.points_.lines[0].get_markersize() == 9
    assert display.line_.get_linestyle() == ":"
    assert display.points_.lines[0].get_linestyle() == "None"


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"param": "weights"}, ValueError, r"param='weights'.*\['n_neighbors'\]"),
        ({"calibration": "f1"}, ValueError, METRICS),
        ({"accuracy": "f1"}, ValueError, METRICS),
        ({"refit": "f1"}, ValueError, METRICS),
        ({"not_a_property": 1}, AttributeError, "not_a_property"),
    ],
)
def test_bad_input(plt, results, kwargs, error, match):
    with pytest.raises(error, match=match):
        CalibrationTradeoffDisplay.from_cv_results(results, **kwargs)
    assert not plt.get_fignums()


def test_nothing_varies(plt):
    results = made([1, 1], [0.1, 0.2], [0.5, 0.6])
    with pytest.raises(ValueError, match=r"0 parameters vary, of \['model__c'\]"):
        CalibrationTradeoffDisplay.from_cv_results(results)


def test_metrics_of_a_search_with_one(plt):
    X, y = load_breast_cancer(return_X_y=True)
    one = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [3, 5]}, cv=2).fit(X, y)
    with pytest.raises(ValueError, match=r"expected one of \['score'\]"):
        CalibrationTradeoffDisplay.from_cv_results(one.cv_results_)


def test_matplotlib_is_optional(monkeypatch, results):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    match = r"CalibrationTradeoffDisplay\.{} .*pip install \"\.\[plot\]\""
    with pytest.raises(ImportError, match=match.format("plot")):
        CalibrationTradeoffDisplay([0.1], [0.9], [1]).plot()
    with pytest.raises(ImportError, match=match.format("from_cv_results")):
        CalibrationTradeoffDisplay.from_cv_results(results)
