import importlib
import pickle
import re
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skbsd
from skbsd._bootstrap import bootstrap
from skbsd.display import ReliabilityDisplay
from skbsd.display._histogram import HISTOGRAM_LABEL
from skbsd.display._reliability import _REF_LABEL
from skbsd.display._style import STYLES
from skbsd.metrics import calibration_curve, expected_calibration_error


@pytest.fixture(scope="module")
def predictions():
    """True labels of three classes and over-confident probabilities."""
    rng = np.random.default_rng(0)
    proba = rng.dirichlet([0.4, 0.4, 0.4], size=400)
    y = np.array([rng.choice(3, p=0.7 * p + 0.1) for p in proba])
    return y, proba


@pytest.fixture(scope="module")
def binary_predictions():
    rng = np.random.default_rng(1)
    p = rng.uniform(size=400)
    return (rng.uniform(size=400) < 0.2 + 0.6 * p).astype(int), p


def fit(n_classes):
    X, y = make_classification(
        300, n_informative=5, n_classes=n_classes, random_state=0, flip_y=0.2
    )
    return LogisticRegression().fit(X, y), X, y


def legend_texts(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def heights(display):
    return [bar.get_height() for bar in display.bars_]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "bins",
    [{}, {"n_bins": 5}, {"n_bins": 8, "strategy": "quantile"}, {"n_bins": 1}],
    ids=str,
)
def test_artists_show_the_curve(plt, predictions, bins, weighted):
    y, proba = predictions
    weight = np.random.default_rng(0).integers(0, 4, len(y)) if weighted else None
    display = ReliabilityDisplay.from_predictions(
        y, proba, sample_weight=weight, name="model", **bins
    )
    curve = calibration_curve(y, proba, sample_weight=weight, **bins)
    ece = expected_calibration_error(y, proba, sample_weight=weight, **bins)

    assert_array_equal(display.line_.get_xdata(), curve.confidence)
    assert_array_equal(display.line_.get_ydata(), curve.accuracy)
    gaps = np.array([segment.T for segment in display.gaps_.get_segments()])
    assert_allclose(gaps[:, 0], np.c_[curve.confidence, curve.confidence])
    assert_allclose(gaps[:, 1], np.c_[curve.confidence, curve.accuracy])

    assert_allclose(heights(display), curve.count / curve.count.sum())
    assert_allclose(
        [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in display.bars_],
        curve.edges,
    )
    assert display.ece == pytest.approx(ece)
    assert legend_texts(display) == [f"model (ECE {100 * ece:.1f} %)", _REF_LABEL]
    # What the notes promise: the error is the mean gap, weighted by the bars.
    lengths = np.abs(gaps[:, 1, 1] - gaps[:, 1, 0])
    assert np.dot(lengths, heights(display)) == pytest.approx(ece)


def test_axes(plt, predictions):
    display = ReliabilityDisplay.from_predictions(*predictions)
    ax, histogram_ax = display.ax_, display.histogram_ax_
    display.figure_.canvas.draw()

    assert display.figure_ is ax.figure is histogram_ax.figure
    assert ax.get_aspect() == 1
    for low, high in (ax.get_xlim(), ax.get_ylim(), histogram_ax.get_xlim()):
        assert -0.05 < low <= 0
        assert 1 <= high < 1.05
    assert histogram_ax.get_ylim()[0] == 0
    assert ax.get_ylabel() == "Accuracy"
    assert ax.get_xlabel() == ""
    assert histogram_ax.get_xlabel() == "Confidence of the predicted class"
    assert histogram_ax.get_ylabel() == "Samples"
    assert not any(tick.label1.get_visible() for tick in ax.xaxis.get_major_ticks())
    ticks = [text.get_text() for text in histogram_ax.get_yticklabels()]
    assert all(re.fullmatch(r"[\d.]+ %", tick) for tick in ticks)
    assert 2 <= len(ticks) <= 4


def test_name(plt, predictions):
    display = ReliabilityDisplay.from_predictions(*predictions)
    ece = f"ECE {100 * display.ece:.1f} %"
    assert legend_texts(display)[0] == f"Classifier ({ece})"
    assert legend_texts(display.plot(name="other"))[0] == f"other ({ece})"
    assert legend_texts(display.plot(label="free text"))[0] == "free text"

    values = (display.confidence, display.accuracy, display.count, display.edges)
    assert legend_texts(ReliabilityDisplay(*values, display.ece).plot())[0] == ece


def test_init_only_stores():
    values = [object() for _ in range(7)]
    display = ReliabilityDisplay(
        *values[:5],
        name="a",
        pos_label=1,
        accuracy_interval=values[5],
        ece_interval=values[6],
    )
    assert list(vars(display).values()) == [*values[:5], "a", 1, *values[5:]]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_from_estimator(plt, n_classes):
    model, X, y = fit(n_classes)
    weight = np.arange(len(y)) % 3
    bins = {"n_bins": 6, "strategy": "quantile", "sample_weight": weight}
    display = ReliabilityDisplay.from_estimator(model, X, y, **bins)
    curve = calibration_curve(y, model.predict_proba(X), **bins)
    assert_array_equal(display.line_.get_ydata(), curve.accuracy)
    assert legend_texts(display)[0].startswith("LogisticRegression (ECE ")

    display = ReliabilityDisplay.from_estimator(
        make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y),
        X,
        y,
        name="scaled",
        histogram=False,
        ref_line=False,
        color="black",
    )
    assert legend_texts(display)[0].startswith("scaled (ECE ")
    assert display.histogram_ax_ is display.gaps_ is None
    assert display.line_.get_color() == "black"


def test_string_labels_absent_from_the_test_set(plt):
    model, X, y = fit(3)
    names = np.array(["zebra", "ant", "cat"])
    expected = ReliabilityDisplay.from_estimator(model, X[y < 2], y[y < 2])
    model.fit(X, names[y])
    display = ReliabilityDisplay.from_estimator(model, X[y < 2], names[y[y < 2]])
    assert_allclose(display.line_.get_xydata(), expected.line_.get_xydata(), atol=1e-4)


def test_binary_top_label(plt, binary_predictions):
    y, p = binary_predictions
    one = ReliabilityDisplay.from_predictions(y, p)
    two = ReliabilityDisplay.from_predictions(y, np.c_[1 - p, p])
    assert_array_equal(one.line_.get_xydata(), two.line_.get_xydata())
    assert one.confidence.min() >= 0.5
    assert one.ax_.get_ylabel() == "Accuracy"


def test_binary_positive_class(plt, binary_predictions):
    y, p = binary_predictions
    one = ReliabilityDisplay.from_predictions(y, p, pos_label=1, n_bins=4)
    two = ReliabilityDisplay.from_predictions(y, np.c_[1 - p, p], pos_label=1, n_bins=4)
    assert_array_equal(one.line_.get_xydata(), two.line_.get_xydata())
    index = np.minimum((4 * p).astype(int), 3)
    assert_allclose(one.confidence, [p[index == b].mean() for b in range(4)])
    assert_allclose(one.accuracy, [y[index == b].mean() for b in range(4)])
    gap = [abs((y - p)[index == b].sum()) for b in range(4)]
    assert one.ece == pytest.approx(sum(gap) / len(y))
    assert one.pos_label == 1
    assert one.ax_.get_ylabel() == "Fraction of class 1"
    label = one.histogram_ax_.get_xlabel()
    assert label == "Predicted probability of class 1"


@pytest.mark.parametrize("pos_label", ["no", "yes"])
def test_estimator_positive_class(plt, pos_label):
    model, X, y = fit(2)
    names = np.array(["no", "yes"])[y]
    model.fit(X, names)
    display = ReliabilityDisplay.from_estimator(model, X, names, pos_label=pos_label)
    p = model.predict_proba(X)[:, list(model.classes_).index(pos_label)]
    expected = calibration_curve(names == pos_label, p, multiclass="classwise")[1]
    assert_allclose(display.confidence, expected.confidence)
    assert_allclose(display.accuracy, expected.accuracy)
    assert display.ax_.get_ylabel() == f"Fraction of class {pos_label}"


def test_confidence_of_one_is_drawn_in_the_last_bar(plt):
    proba = np.array([[0.95, 0.05]] * 3 + [[1.0, 0.0]] * 2 + [[0.65, 0.35]] * 5)
    y = np.zeros(10, dtype=int)
    display = ReliabilityDisplay.from_predictions(y, proba, n_bins=10, labels=[0, 1])
    assert_allclose(display.line_.get_xdata(), [0.65, 0.95, 1])
    assert_allclose(heights(display), [0.5, 0.5])
    assert_allclose([bar.get_x() for bar in display.bars_], [0.6, 0.9])

    # Without a neighbour it gets a bar as wide as the others.
    display = ReliabilityDisplay.from_predictions(
        y[3:], proba[3:], n_bins=10, labels=[0, 1]
    )
    assert_allclose(heights(display), [5 / 7, 2 / 7])
    assert_allclose([bar.get_x() for bar in display.bars_], [0.6, 0.9])


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_all_confidences_the_same(plt, strategy):
    proba = np.array([[1.0, 0.0]] * 4)
    display = ReliabilityDisplay.from_predictions(
        [0, 0, 0, 1], proba, strategy=strategy
    )
    display.figure_.canvas.draw()
    assert_array_equal(display.line_.get_xydata(), [[1, 0.75]])
    (bar,) = display.bars_
    assert bar.get_height() == 1
    assert 0 < bar.get_width() < 0.1
    assert bar.get_x() + bar.get_width() == pytest.approx(1)


@pytest.mark.parametrize("layout", [None, "tight", "constrained"])
def test_everything_lies_within_the_given_axes(plt, predictions, layout):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout=layout)
    display = ReliabilityDisplay.from_predictions(*predictions, ax=right)
    assert display.ax_ is right
    assert display.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    assert not left.lines

    figure.canvas.draw()
    cell = right.get_position(original=True)
    main, strip = right.get_position(), display.histogram_ax_.get_position()
    for box in (main, strip):
        assert cell.x0 - 1e-6 <= box.x0 < box.x1 <= cell.x1 + 1e-6
        assert cell.y0 - 1e-6 <= box.y0 < box.y1 <= cell.y1 + 1e-6
    assert strip.y1 < main.y0
    assert strip.x0 == pytest.approx(main.x0)
    assert strip.x1 == pytest.approx(main.x1)
    assert main.width * 8 == pytest.approx(main.height * 4)
    if layout is not None:  # labels are not cut off
        box = figure.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0


def test_two_models_on_one_axes(plt, predictions):
    y, proba = predictions
    _, ax = plt.subplots()
    first = ReliabilityDisplay.from_predictions(y, proba, name="first", ax=ax)
    soft = 0.7 * proba + 0.1
    second = ReliabilityDisplay.from_predictions(y, soft, name="second", ax=ax)

    assert second.ax_ is first.ax_ is ax
    assert second.histogram_ax_ is first.histogram_ax_
    assert [a.get_label() for a in ax.child_axes] == [HISTOGRAM_LABEL]
    assert first.line_.get_color() != second.line_.get_color()
    assert first.line_.get_marker() != second.line_.get_marker()
    assert first.line_.get_linestyle() != second.line_.get_linestyle()
    texts = legend_texts(second)
    assert [text.split(" (")[0] for text in texts] == ["first", "second", _REF_LABEL]
    assert len(ax.lines) == 3
    assert len(first.histogram_ax_.containers) == 2
    assert sum(heights(first)) == pytest.approx(1)
    assert sum(heights(second)) == pytest.approx(1)
    top = first.histogram_ax_.get_ylim()[1]
    assert top >= max(heights(first) + heights(second))


def test_many_models_and_cleared_axes(plt, predictions):
    display = ReliabilityDisplay.from_predictions(*predictions)
    ax, colors = display.ax_, [display.line_.get_color()]
    for _ in STYLES[1:]:
        colors.append(display.plot(ax).line_.get_color())
    assert colors == [style[0] for style in STYLES]
    display.plot(ax)  # more models than styles

    ax.clear()
    display.plot(ax, histogram=False)
    display.figure_.canvas.draw()
    assert display.histogram_ax_ is display.bars_ is None
    assert ax.get_xlabel() == "Confidence of the predicted class"
    cell = ax.get_position(original=True)
    assert ax.get_position().height == pytest.approx(cell.height)
    assert display.line_.get_color() == colors[0]


def test_histogram_of_some_models_only(plt, predictions):
    _, ax = plt.subplots()
    display = ReliabilityDisplay.from_predictions(*predictions, ax=ax, histogram=False)
    assert ax.get_xlabel() == "Confidence of the predicted class"
    display.plot(ax, color="red")
    assert ax.get_xlabel() == ""
    histogram_ax = display.histogram_ax_
    display.plot(ax, histogram=False)
    assert display.histogram_ax_ is None
    assert ax.get_xlabel() == ""
    assert len(histogram_ax.containers) == 1


def test_reference_line(plt, predictions):
    display = ReliabilityDisplay.from_predictions(*predictions, ref_line=False)
    assert display.gaps_ is None
    assert display.ax_.lines[:] == [display.line_]
    assert len(legend_texts(display)) == 1


def test_style(plt, predictions):
    from matplotlib.colors import to_rgba

    rc = dict(plt.rcParams)
    display = ReliabilityDisplay.from_predictions(*predictions, c="red", ls=":", lw=4)
    assert dict(plt.rcParams) == rc
    assert display.line_.get_color() == "red"
    assert display.line_.get_linestyle() == ":"
    assert display.line_.get_linewidth() == 4
    assert display.bars_[0].get_edgecolor() == to_rgba("red")
    assert display.bars_[0].get_facecolor() == to_rgba("red", 0.3)


def test_shared_grid_subfigure_and_pickle(plt, predictions, tmp_path):
    _, axes = plt.subplots(2, 2, sharex=True, sharey=True)
    displays = [
        ReliabilityDisplay.from_predictions(*predictions, ax=ax) for ax in axes.flat
    ]
    assert len({display.histogram_ax_ for display in displays}) == 4
    displays[0].figure_.tight_layout()
    displays[0].figure_.savefig(tmp_path / "figure.png", bbox_inches="tight")

    figure = plt.figure(layout="constrained")
    part = figure.subfigures(1, 2)[0]
    display = ReliabilityDisplay.from_predictions(*predictions, ax=part.subplots())
    assert display.figure_ is part
    figure.canvas.draw()
    pickle.loads(pickle.dumps(figure)).canvas.draw()


def band_limits(display):
    """Return confidences and both limits, as the band is drawn."""
    (path,) = display.band_.get_paths()
    vertices, n = path.vertices, len(display.confidence)
    lower, upper = vertices[1 : n + 1], vertices[n + 2 : 2 * n + 2][::-1]
    assert_array_equal(lower[:, 0], upper[:, 0])
    return lower[:, 0], lower[:, 1], upper[:, 1]


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("weighted", [False, True])
def test_bootstrap_band(plt, predictions, strategy, weighted):
    y, proba = predictions
    weight = np.random.default_rng(0).integers(0, 3, len(y)) if weighted else None
    bins = {"n_bins": 6, "strategy": strategy}
    display = ReliabilityDisplay.from_predictions(
        y,
        proba,
        sample_weight=weight,
        name="model",
        n_bootstraps=50,
        confidence_level=0.8,
        random_state=0,
        **bins,
    )
    confidence, low, high = band_limits(display)
    assert_array_equal(confidence, display.confidence)
    assert_array_equal([low, high], display.accuracy_interval)
    assert ((low <= display.accuracy) & (display.accuracy <= high)).all()
    assert low.min() >= 0
    assert high.max() <= 1

    # The same, bin by bin, from the definition.
    used = np.ones(len(y), dtype=bool) if weight is None else weight > 0
    top, hit = proba.max(axis=1)[used], (proba.argmax(axis=1) == y)[used]
    weight = np.ones(len(top)) if weight is None else weight[used].astype(float)

    def statistics(w):
        means = [
            [np.average(values[inside], weights=w[inside]) for values in (top, hit)]
            for inside in bins_of(display, top)
        ]
        counts = [w[inside].sum() for inside in bins_of(display, top)]
        gaps = np.abs(np.diff(means)[:, 0])
        return [accuracy for _, accuracy in means] + [np.average(gaps, weights=counts)]

    expected = bootstrap(
        statistics, weight, n_resamples=50, confidence_level=0.8, random_state=0
    )
    expected = np.clip(expected, 0, 1)
    assert_allclose(display.accuracy_interval, expected[:, :-1])
    assert_allclose(display.ece_interval, expected[:, -1])
    low, high = 100 * display.ece_interval
    text = f"model: ECE {100 * display.ece:.1f} % ({low:.1f}–{high:.1f})"
    assert legend_texts(display)[0] == text
    assert legend_texts(display.plot(name="other"))[0] == text.replace("model", "other")


def bins_of(display, confidence):
    """Return which samples are in each of the bins."""
    place = np.searchsorted(display.edges[:, 0], confidence, side="right") - 1
    return [place == b for b in range(len(display.edges))]


def test_no_bootstrap_no_band(plt, predictions):
    display = ReliabilityDisplay.from_predictions(*predictions)
    assert display.band_ is display.accuracy_interval is display.ece_interval is None


def test_bootstrap_of_positive_class(plt, binary_predictions):
    y, p = binary_predictions
    options = {"n_bins": 4, "n_bootstraps": 40, "random_state": 0, "pos_label": 1}
    one = ReliabilityDisplay.from_predictions(y, p, **options)
    low, high = one.accuracy_interval
    assert (low < one.accuracy).all()
    assert (one.accuracy < high).all()
    # That of the other class is its mirror image.
    flipped = ReliabilityDisplay.from_predictions(1 - y, 1 - p, **options)
    assert_allclose(flipped.accuracy_interval, 1 - one.accuracy_interval[::-1, ::-1])
    assert_allclose(flipped.ece_interval, one.ece_interval)


def test_band_takes_the_colour_and_leaves_no_bin_out(plt):
    from matplotlib.colors import to_rgba

    proba = np.array([[0.95, 0.05]] * 30 + [[0.65, 0.35]] * 20)
    y = np.r_[np.zeros(28, int), 1, 1, np.zeros(10, int), np.ones(10, int)]
    display = ReliabilityDisplay.from_predictions(
        y, proba, n_bootstraps=20, random_state=0, n_bins=10, color="red"
    )
    color = display.band_.get_facecolor()[0]
    assert_allclose(color[:3], to_rgba("red")[:3])
    assert 0 < color[3] < 0.5
    assert len(band_limits(display)[0]) == 2
    # Of a single bin too there is something to be seen.
    one = ReliabilityDisplay.from_predictions(
        y, proba, n_bootstraps=20, random_state=0, n_bins=1
    )
    assert one.band_.get_linewidth()[0] > 0


def test_bin_that_no_resample_holds(plt):
    proba = np.array([[0.55, 0.45]] + [[0.9, 0.1]] * 40)
    y = np.zeros(41, dtype=int)
    lacking = next(
        seed
        for seed in range(50)
        if 0 not in np.random.RandomState(seed).randint(41, size=41)
    )
    display = ReliabilityDisplay.from_predictions(
        y, proba, labels=[0, 1], n_bootstraps=1, random_state=lacking
    )
    display.figure_.canvas.draw()
    # Of the other bin all samples are right, in every resample.
    assert_array_equal(display.accuracy_interval, [[np.nan, 1], [np.nan, 1]])


def test_legend_fits_in_small_axes(plt, predictions):
    figure, axes = plt.subplots(2, 2, figsize=(10, 8))
    display = ReliabilityDisplay.from_predictions(
        *predictions, name="BSDClassifier", n_bootstraps=9, ax=axes[0, 0]
    )
    figure.canvas.draw()
    legend = display.ax_.get_legend().get_window_extent()
    assert display.ax_.bbox.x0 <= legend.x0 < legend.x1 <= display.ax_.bbox.x1


def test_several_estimators(plt):
    model, X, y = fit(3)
    other = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2)).fit(X, y)
    options = {"n_bins": 5, "n_bootstraps": 20, "random_state": 0, "linewidth": 3}
    displays = ReliabilityDisplay.from_estimators(
        {"one": model, "two": other}, X, y, **options
    )
    assert [display.name for display in displays] == ["one", "two"]
    ax = displays[0].ax_
    assert displays[1].ax_ is ax
    assert displays[1].histogram_ax_ is displays[0].histogram_ax_
    assert len(plt.get_fignums()) == 1
    texts = legend_texts(displays[1])
    assert [text.split(":")[0] for text in texts] == ["one", "two", _REF_LABEL]
    for display, estimator in zip(displays, (model, other), strict=True):
        alone = ReliabilityDisplay.from_estimator(estimator, X, y, **options)
        assert_array_equal(display.line_.get_xydata(), alone.line_.get_xydata())
        assert_array_equal(display.accuracy_interval, alone.accuracy_interval)
        assert display.line_.get_linewidth() == 3

    _, (left, right) = plt.subplots(1, 2)
    displays = ReliabilityDisplay.from_estimators(
        [model, other, model], X, y, ax=right, histogram=False, ref_line=False
    )
    names = [display.name for display in displays]
    assert names == ["LogisticRegression-1", "Pipeline", "LogisticRegression-2"]
    assert {display.ax_ for display in displays} == {right}
    assert not left.lines
    assert {display.histogram_ax_ for display in displays} == {None}
    assert len({display.line_.get_marker() for display in displays}) == 3


def test_several_estimators_of_which_one_is_bad(plt):
    model, X, y = fit(2)
    from_estimators = ReliabilityDisplay.from_estimators
    with pytest.raises(NotFittedError, match="LogisticRegression"):
        from_estimators([model, LogisticRegression()], X, y)
    with pytest.raises(ValueError, match=r"estimators=\[\] is empty"):
        from_estimators([], X, y)
    with pytest.raises(AttributeError, match="not_a_property"):
        from_estimators([model], X, y, not_a_property=1)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"n_bins": 0}, ValueError, "n_bins"),
        ({"strategy": "other"}, ValueError, "strategy"),
        ({"pos_label": 1}, ValueError, "pos_label"),
        ({"labels": [0, 1]}, ValueError, "labels"),
        ({"sample_weight": [1]}, ValueError, "inconsistent"),
        ({"not_a_property": 1}, AttributeError, "not_a_property"),
        ({"color": "red", "c": "red"}, TypeError, "aliases"),
        ({"n_bootstraps": -1}, ValueError, "n_bootstraps.*Got -1"),
        ({"n_bootstraps": 9.5}, ValueError, "n_bootstraps.*Got 9.5"),
        ({"n_bootstraps": 9, "confidence_level": 95}, ValueError, "confidence_level"),
        ({"n_bootstraps": 9, "random_state": "a"}, ValueError, "random_state"),
    ],
)
def test_invalid_parameters(plt, predictions, kwargs, error, match):
    with pytest.raises(error, match=match):
        ReliabilityDisplay.from_predictions(*predictions, **kwargs)
    assert not plt.get_fignums()


def test_invalid_estimators(plt):
    model, X, y = fit(2)
    from_estimator = ReliabilityDisplay.from_estimator
    with pytest.raises(NotFittedError, match="LogisticRegression"):
        from_estimator(LogisticRegression(), X, y)
    with pytest.raises(ValueError, match="classifier, got KMeans"):
        from_estimator(KMeans(2, n_init=1).fit(X), X, y)
    with pytest.raises(AttributeError, match="RidgeClassifier has no predict_proba"):
        from_estimator(RidgeClassifier().fit(X, y), X, y)
    with pytest.raises(ValueError, match="pos_label=7"):
        from_estimator(model, X, y, pos_label=7)
    assert not plt.get_fignums()


def test_matplotlib_is_optional(monkeypatch, predictions):
    display = ReliabilityDisplay(*np.ones((3, 1)), np.ones((1, 2)), 0.0)
    model, X, y = fit(2)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for method, args in [
        ("plot", ()),
        ("from_estimator", (model, X, y)),
        ("from_estimators", ([model], X, y)),
        ("from_predictions", predictions),
    ]:
        match = rf"ReliabilityDisplay\.{method} .*pip install \"\.\[plot\]\""
        with pytest.raises(ImportError, match=match):
            getattr(display, method)(*args)


def test_import_without_matplotlib(monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] in ("matplotlib", "mpl_toolkits"):
            monkeypatch.setitem(sys.modules, name, None)
        if name.startswith("skbsd.display"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(skbsd, "display", None)  # puts the package back afterwards
    module = importlib.import_module("skbsd.display")
    assert module.ReliabilityDisplay is not ReliabilityDisplay
    with pytest.raises(ImportError, match=r"\.\[plot\]"):
        module.ReliabilityDisplay.from_predictions([0, 1], [0.2, 0.9])
