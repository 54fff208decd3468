import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd.display import PosteriorDisplay
from skbsd.display._style import STYLES
from skbsd.label_noise import find_label_issues, flip_labels, label_quality

MASS = np.array([[0.7, 0.2, 0.1], [0.3, 0.1, 0.6], [0.2, 0.5, 0.3]])
GIVEN, CLASSES = np.array(["cat", "cat", "dog"]), np.array(["cat", "dog", "fox"])


@pytest.fixture(scope="module")
def fitted(digits):
    """A classifier of digits, some mislabelled, with string labels; and its X and y."""
    X, y = digits
    labels, _ = flip_labels(y[:300], 0.2, random_state=0)
    names = np.array(["n" + str(label) for label in labels])
    return quick(prior_strength="noisy").fit(X[:300], names), X[:300], names


def widths(bars):
    return [bar.get_width() for bar in bars]


def names(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def hatched(bars):
    """Return the places of the bars that are told apart."""
    return [i for i, bar in enumerate(bars) if bar.get_hatch()]


def test_from_estimator(plt, fitted):
    model, X, labels = fitted
    rows = [7, 0, 250]
    display = PosteriorDisplay.from_estimator(model, rows, X)

    mean = model.posterior_.mean().numpy()[rows]
    assert display.axes_.shape == display.image_axes_.shape == (3,)
    for i, (ax, bars) in enumerate(zip(display.axes_, display.bars_, strict=True)):
        assert_allclose(widths(bars), mean[i])
        assert_allclose([bar.get_y() + bar.get_height() / 2 for bar in bars], range(10))
        assert names(ax) == [f"n{k}" for k in range(10)]
        assert hatched(bars) == [int(labels[rows[i]][1:])]
        most = mean[i].argmax()
        assert ax.get_title("right") == (
            f"Row {rows[i]}: given {labels[rows[i]]}\n"
            f"most mass: n{most} ({100 * mean[i][most]:.0f} %)"
        )
        assert ax.get_xlim() == (0, 1)
        bottom, top = ax.get_ylim()
        assert bottom > 9.4
        assert top < -0.4  # the first class on top
        (image,) = display.image_axes_[i].images
        shown = X[rows[i], 0]
        low, high = X[rows].min(), X[rows].max()
        assert_allclose(image.get_array(), (shown - low) / (high - low))
        assert image.get_clim() == (0, 1)
    assert display.bounding_ax_ is None
    assert {ax.figure for ax in display.axes_} == {display.figure_}
    assert len(plt.get_fignums()) == 1


def test_given_label_is_told_apart_in_grey_too(plt):
    from matplotlib.colors import to_rgba

    display = PosteriorDisplay(MASS, GIVEN, CLASSES).plot()
    for bars, ax, given in zip(display.bars_, display.axes_, [0, 0, 1], strict=True):
        assert hatched(bars) == [given]
        faces = [bar.get_facecolor() for bar in bars]
        assert {faces[i] for i in range(3) if i != given} == {to_rgba(STYLES[0][0])}
        assert bars[given].get_edgecolor() == to_rgba(STYLES[1][0])
        assert sum(faces[given][:3]) > sum(faces[given - 1][:3]) + 1  # lighter
        weights = [text.get_fontweight() for text in ax.get_yticklabels()]
        assert [i for i, weight in enumerate(weights) if weight == "bold"] == [given]
    texts = [text.get_text() for text in display.legend_ax_.get_legend().get_texts()]
    assert texts == ["Given label", "Another class"]
    patches = display.legend_ax_.get_legend().get_patches()
    assert [bool(patch.get_hatch()) for patch in patches] == [True, False]


def test_init_only_stores():
    values = [object() for _ in range(5)]
    display = PosteriorDisplay(*values[:3], rows=values[3], images=values[4])
    assert list(vars(display).values()) == values


def test_without_rows_and_images(plt):
    display = PosteriorDisplay(MASS.tolist(), list(GIVEN), list(CLASSES)).plot()
    assert display.image_axes_ is None
    assert display.axes_[1].get_title("right") == "Given cat\nmost mass: fox (60 %)"


def test_many_classes(plt):
    mass = np.full((2, 30), 0.01)
    mass[:, [3, 20, 29]] = [0.4, 0.2, 0.13]
    given = [20, 7]
    display = PosteriorDisplay(mass, given, np.arange(30)).plot(max_classes=4)
    assert names(display.axes_[0])[-1] == names(display.axes_[1])[-1] == "other"
    # Ties are broken by the order of the classes.
    assert names(display.axes_[0]) == ["0", "3", "20", "29", "other"]
    assert names(display.axes_[1]) == ["3", "7", "20", "29", "other"]
    assert_allclose(widths(display.bars_[1]), [0.4, 0.01, 0.2, 0.13, 0.26])
    assert hatched(display.bars_[0]) == [2]
    assert hatched(display.bars_[1]) == [1]
    for bars in display.bars_:
        assert sum(widths(bars)) == pytest.approx(mass.sum(axis=1)[0])
        assert len({bar.get_facecolor() for bar in bars}) == 3

    display = PosteriorDisplay(mass, given, np.arange(30)).plot()
    assert [len(bars) for bars in display.bars_] == [11, 11]
    display = PosteriorDisplay(MASS, GIVEN, CLASSES).plot(max_classes=3)
    assert names(display.axes_[0]) == list(CLASSES)


@pytest.mark.parametrize("n_samples", [1, 3, 5])
@pytest.mark.parametrize("images", [None, np.zeros((5, 8, 8, 3))])
def test_grid(plt, n_samples, images):
    n = n_samples
    mass, given = np.full((n, 3), 1 / 3), ["cat"] * n
    images = None if images is None else images[:n]
    display = PosteriorDisplay(mass, given, CLASSES, images=images).plot(n_cols=2)
    display.figure_.canvas.draw()
    boxes = [ax.get_position() for ax in display.axes_]
    assert len({round(box.x0, 3) for box in boxes}) == min(n, 2)
    assert len({round(box.y0, 3) for box in boxes}) == (n + 1) // 2
    labelled = [i for i, ax in enumerate(display.axes_) if ax.get_xlabel()]
    assert labelled == list(range(max(0, n - 2), n))
    # Nothing overlaps, and nothing is cut off.
    page = display.figure_.bbox
    shown = [*display.axes_, display.legend_ax_]
    tight = [ax.get_tightbbox() for ax in shown]
    for i, box in enumerate(tight):
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in tight[:i])


@pytest.mark.parametrize("layout", [None, "tight", "constrained"])
def test_given_axes(plt, layout):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout=layout)
    place = right.get_position()
    display = PosteriorDisplay(MASS, GIVEN, CLASSES).plot(right)
    assert display.figure_ is figure
    assert display.bounding_ax_ is right
    assert not right.axison
    assert left.axison
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()
    if layout is None:
        for ax in [*display.axes_, display.legend_ax_]:
            box = ax.get_position()
            assert place.x0 - 1e-6 <= box.x0 < box.x1 <= place.x1 + 1e-6
            assert place.y0 - 1e-6 <= box.y0 < box.y1 <= place.y1 + 1e-6
    else:
        assert min(ax.get_tightbbox().x0 for ax in display.axes_) > left.bbox.x1

    by_hand = plt.figure().add_axes((0.5, 0.5, 0.4, 0.4))
    display = PosteriorDisplay(MASS, GIVEN, CLASSES).plot(by_hand)
    assert min(ax.get_position().x0 for ax in display.axes_) == pytest.approx(0.5)
    part = plt.figure().subfigures(1, 2)[1]
    assert PosteriorDisplay(MASS, GIVEN, CLASSES).plot(part.subplots()).figure_ is part


def test_without_rows_the_worst_are_shown(plt, fitted):
    model = fitted[0]
    quality = label_quality(model)
    display = PosteriorDisplay.from_estimator(model, n_cols=2)
    assert len(display.rows) == 4
    assert_array_equal(display.rows, np.argsort(quality, kind="stable")[:4])
    with pytest.raises(ValueError, match="'n_cols' parameter"):
        PosteriorDisplay.from_estimator(model, n_cols=0)


def test_without_rows_and_evidence(plt, iris):
    X, y = iris
    weight = np.r_[np.zeros(148), 1, 1]
    labels = np.r_[y[:149], 0]
    model = quick(batch_size=1).fit(X, labels, sample_weight=weight)
    display = PosteriorDisplay.from_estimator(model, n_cols=1)
    assert sorted(display.rows) == [148, 149]
    model = quick(max_epochs=1, prior_strength=np.inf).fit(X, y)
    display = PosteriorDisplay.from_estimator(model, n_cols=1)
    assert_array_equal(display.rows, [0, 1])


def test_ways_to_name_rows(plt, fitted):
    model, _, _ = fitted
    issues = find_label_issues(model)["row"]
    for rows in (5, np.int64(5), [5], issues[:3], np.array([2], dtype=np.uint8)):
        display = PosteriorDisplay.from_estimator(model, rows)
        assert_array_equal(display.rows, np.atleast_1d(rows))
        assert display.image_axes_ is None


def test_kinds_of_X(plt, fitted):
    model, X, labels = fitted
    flat = X.reshape(300, -1)
    expected = PosteriorDisplay.from_estimator(model, [1, 2], X).images
    for given, image_shape in [
        (torch.from_numpy(X), None),
        (X[:, 0], None),
        (flat, (1, 8, 8)),
        (pd.DataFrame(flat), (8, 8)),
    ]:
        display = PosteriorDisplay.from_estimator(
            model, [1, 2], given, image_shape=image_shape
        )
        assert_array_equal(display.images, expected)
    assert PosteriorDisplay.from_estimator(model, [1, 2], flat).images is None

    of_rows = quick(image_shape=(1, 8, 8), max_epochs=1)
    pipeline = make_pipeline(StandardScaler(), of_rows).fit(flat, labels)
    display = PosteriorDisplay.from_estimator(pipeline, [1, 2], flat)
    assert_array_equal(display.images, expected)
    assert_array_equal(display.mass, of_rows.posterior_.mean([1, 2]).numpy())


def test_infinite_prior(plt, iris):
    X, y = iris
    model = quick(prior_strength=float("inf"), max_epochs=1).fit(X, y == 2)
    display = PosteriorDisplay.from_estimator(model, [0, 149])
    assert_allclose([widths(b) for b in display.bars_], [[1, 0], [0, 1]], atol=1e-9)
    assert names(display.axes_[0]) == ["False", "True"]


def test_style_is_left_alone(plt):
    rc = dict(plt.rcParams)
    PosteriorDisplay(MASS, GIVEN, CLASSES).plot()
    assert dict(plt.rcParams) == rc


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], r"rows=array\(\[\].*are no row numbers"),
        ([0.5], "are no row numbers"),
        ([[1, 2]], "are no row numbers"),
        ([True, False], "np.flatnonzero"),
        ([0, 300], r"\[0, 300\).*from 0 to 300"),
        (-1, r"\[0, 300\).*from -1 to -1"),
    ],
)
def test_bad_rows(plt, fitted, rows, match):
    with pytest.raises(ValueError, match=match):
        PosteriorDisplay.from_estimator(fitted[0], rows)
    assert not plt.get_fignums()


def test_bad_input(plt, fitted, iris):
    model, X, _ = fitted
    from_estimator = PosteriorDisplay.from_estimator
    with pytest.raises(ValueError, match=r"X has 299 samples, .*on 300;"):
        from_estimator(model, [0], X[1:])
    with pytest.raises(ValueError, match=r"image_shape=\(1, 9, 8\) does not fit"):
        from_estimator(model, [0], X.reshape(300, -1), image_shape=(1, 9, 8))
    with pytest.raises(NotFittedError):
        from_estimator(quick(), [0])
    other = LogisticRegression().fit(*iris)
    with pytest.raises(ValueError, match="got LogisticRegression;"):
        from_estimator(other, [0])
    with pytest.raises(ValueError, match="got LogisticRegression as last step"):
        from_estimator(make_pipeline(StandardScaler(), other), [0])
    with pytest.raises(ValueError, match=r"n_cols.*Got 0"):
        from_estimator(model, [0], n_cols=0)
    with pytest.raises(ValueError, match=r"max_classes.*Got 1"):
        from_estimator(model, [0], max_classes=1)
    with pytest.raises(ValueError, match=r"given\[2\]=.*'cow'.* is not one of the cl"):
        PosteriorDisplay(MASS, ["cat", "cat", "cow"], CLASSES).plot()
    with pytest.raises(IndexError):
        PosteriorDisplay(MASS, GIVEN, CLASSES, images=np.zeros((2, 8, 8))).plot()
    assert not plt.get_fignums()


def test_matplotlib_is_optional(monkeypatch, fitted):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    match = r"PosteriorDisplay\.{} .*pip install \"\.\[plot\]\""
    with pytest.raises(ImportError, match=match.format("plot")):
        PosteriorDisplay(MASS, GIVEN, CLASSES).plot()
    with pytest.raises(ImportError, match=match.format("from_estimator")):
        PosteriorDisplay.from_estimator(fitted[0], [0])
