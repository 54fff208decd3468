import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.tree import DecisionTreeClassifier

from skbsd.display import SearchTimeDisplay

GRID = {"max_depth": [1, 2, 3, 4], "min_samples_leaf": [1, 5]}


@pytest.fixture(scope="module")
def searches():
    X, y = load_iris(return_X_y=True)
    tree = DecisionTreeClassifier(random_state=0)
    several = {"nll": "neg_log_loss", "accuracy": "accuracy"}
    return {
        "grid": GridSearchCV(tree, GRID, cv=3).fit(X, y),
        "several": GridSearchCV(tree, GRID, scoring=several, refit="nll").fit(X, y),
        "halving": HalvingGridSearchCV(tree, GRID, random_state=0, factor=2).fit(X, y),
    }


@pytest.mark.parametrize("kind", [dict, pd.DataFrame])
def test_steps_of_a_grid_search(plt, searches, kind):
    results = searches["grid"].cv_results_
    display = SearchTimeDisplay.from_cv_results(kind(results), name="grid")
    time = 3 * (results["mean_fit_time"] + results["mean_score_time"])
    assert_allclose(display.points_.get_xdata(), np.cumsum(time))
    assert_array_equal(display.points_.get_ydata(), results["mean_test_score"])
    (line,) = display.lines_
    best = [max(results["mean_test_score"][: i + 1]) for i in range(8)]
    assert_array_equal(line.get_ydata(), best)
    assert line.get_drawstyle() == "steps-post"
    assert display.texts_ == []
    (text,) = display.ax_.get_legend().get_texts()
    assert text.get_text() == "grid: best so far"


def test_iterations_of_successive_halving(plt, searches):
    search = searches["halving"]
    display = SearchTimeDisplay.from_estimator(search)
    results, n = search.cv_results_, search.n_iterations_
    assert n > 1
    assert len(display.lines_) == len(display.texts_) == n
    for i, line in enumerate(display.lines_):
        score = results["mean_test_score"][results["iter"] == i]
        assert_array_equal(line.get_ydata(), np.maximum.accumulate(score))
    expected = [f"{n_resources:,}" for n_resources in search.n_resources_[:n]]
    expected[0] = f"n_resources {expected[0]}"
    assert [text.get_text() for text in display.texts_] == expected
    (text,) = display.ax_.get_legend().get_texts()
    assert text.get_text() == "HalvingGridSearchCV: best so far"


def test_several_metrics(plt, searches):
    search = searches["several"]
    display = SearchTimeDisplay.from_estimator(search)
    assert_array_equal(display.score, search.cv_results_["mean_test_nll"])
    assert display.ax_.get_ylabel() == "Mean test score (nll)"
    display = SearchTimeDisplay.from_estimator(search, metric="accuracy")
    assert_array_equal(display.score, search.cv_results_["mean_test_accuracy"])
    with pytest.raises(ValueError, match=r"2 metrics, \['nll', 'accuracy'\]; pass one"):
        SearchTimeDisplay.from_cv_results(search.cv_results_)
    with pytest.raises(ValueError, match="no metric 'f1'; expected one of"):
        SearchTimeDisplay.from_estimator(search, metric="f1")


def test_failed_fits_take_time_but_have_no_score(plt):
    display = SearchTimeDisplay([1, 2, 3, 4], [np.nan, 0.5, np.nan, 0.4]).plot()
    assert_array_equal(display.lines_[0].get_xdata(), [2, 4])
    assert_array_equal(display.lines_[0].get_ydata(), [0.5, 0.5])
    results = {
        "mean_fit_time": [1.0],
        "mean_score_time": [0.0],
        "mean_test_score": [np.nan],
        "split0_test_score": [np.nan],
    }
    with pytest.raises(ValueError, match="none of the 1 candidates has a score"):
        SearchTimeDisplay.from_cv_results(results)


def test_two_searches_on_the_same_axes(plt, searches):
    one = SearchTimeDisplay.from_estimator(searches["grid"], name="one")
    two = SearchTimeDisplay.from_estimator(searches["grid"], name="two", ax=one.ax_)
    assert two.ax_ is one.ax_
    assert one.lines_[0].get_color() != two.lines_[0].get_color()
    texts = [text.get_text() for text in two.ax_.get_legend().get_texts()]
    assert texts == ["one: best so far", "two: best so far"]


def test_errors(plt, searches):
    with pytest.raises(TypeError, match="DecisionTreeClassifier has no cv_results_"):
        SearchTimeDisplay.from_estimator(DecisionTreeClassifier())
    with pytest.raises(TypeError, match=r"pass search\.cv_results_"):
        SearchTimeDisplay.from_cv_results(searches["grid"])
