import base64
import re
import shutil
import subprocess
import sys
from collections import Counter
from html import escape, unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick
from modules import Images, Linear
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, make_blobs, make_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from skorch import NeuralNetClassifier

from skbsd import BSDClassifier, report
from skbsd._report._quality import measure, reliability
from skbsd.label_noise import find_label_issues, flip_labels
from skbsd.metrics import expected_calibration_error

pytest.importorskip("matplotlib")

VOID = {"img", "meta", "br"}
QUALITY, CALIBRATION, MATRIX = "Quality", "Calibration", "Confusion matrix"
CLASSES = "Classes"
MISTAKES, SUSPICIOUS = "Most confident mistakes", "Most suspicious training labels"
SETTINGS, TRAINING = "Settings", "Training"


class Page(HTMLParser):
    """The elements of a well-formed page, and the text at the start of each."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.append((tag, []))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.texts:
            self.texts[-1][1].append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag):
        return ["".join(parts) for name, parts in self.texts if name == tag]

    def images(self):
        prefix = "data:image/png;base64,"
        return [a for a in self.attributes("img") if a["src"].startswith(prefix)]


def measured(y, proba):
    curve = reliability(y, proba, n_bootstraps=50, random_state=0)
    return measure(y, proba, curve, 50, 0)


def read(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def noisy_digits(digits):
    """A model of digits with wrong labels, its training images, and test data."""
    X, y = digits
    labels, _ = flip_labels(y[:1000], 0.1, random_state=0)
    model = BSDClassifier(prior_strength="noisy", max_epochs=8, random_state=0)
    return model.fit(X[:1000] / 16, labels), X[:1000] / 16, X[1000:] / 16, y[1000:]


@pytest.fixture(scope="module")
def linear():
    X, y = make_classification(
        400, n_informative=5, n_classes=3, random_state=0, flip_y=0.2
    )
    return LogisticRegression().fit(X[:200], y[:200]), X[200:], y[200:]


def test_sections_and_images(noisy_digits, tmp_path):
    model, X_train, X, y = noisy_digits
    path = report(model, X, y, tmp_path / "digits.html", X_train=X_train)
    assert path == tmp_path / "digits.html"
    assert [p.name for p in tmp_path.iterdir()] == ["digits.html"]
    page = read(path)

    assert page.text("h1") == page.text("title") == ["Report on BSDClassifier"]
    assert page.text("h2") == [
        QUALITY,
        CALIBRATION,
        CLASSES,
        MATRIX,
        MISTAKES,
        SUSPICIOUS,
        SETTINGS,
        TRAINING,
    ]
    assert page.attributes("html") == [{"lang": "en"}]
    assert all(a["alt"] for a in page.attributes("img"))
    assert len(page.text("figcaption")) == 5

    wrong = np.flatnonzero(model.predict(X) != y)
    confidence = model.predict_proba(X).max(axis=1)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:24]
    issues = find_label_issues(model)
    expected = [
        f"Row {i}: given {y[i]}, predicted {p}"
        for i, p in zip(worst, model.predict(X[worst]), strict=True)
    ] + [
        f"Row {row}: given {given}, suggested {suggested}"
        for row, given, suggested in issues.iloc[:24, :3].itertuples(index=False)
    ]
    assert [a["alt"] for a in page.images()] == expected
    text = path.read_text(encoding="utf-8")
    assert f"{len(wrong):,} of {len(y):,} test samples" in text
    assert f"{len(issues):,} of 1,000 training labels" in text
    assert "prior_strength" in text
    assert "SmallResNet, " in text


def test_images_are_those_of_the_rows(noisy_digits, tmp_path):
    from PIL import Image

    model, X_train, X, y = noisy_digits
    path = report(model, X, y, tmp_path / "r.html", X_train=X_train)
    for attributes in read(path).images():
        row = int(re.match(r"Row (\d+)", attributes["alt"])[1])
        source = X if "predicted" in attributes["alt"] else X_train
        data = base64.b64decode(attributes["src"].partition(",")[2])
        (tmp_path / "image.png").write_bytes(data)
        with Image.open(tmp_path / "image.png") as image:
            shown = np.asarray(image) / 255
        np.testing.assert_allclose(shown, source[row, 0], atol=0.5 / 255 + 1e-6)
        assert attributes["class"] == "pixels"


def test_nothing_is_fetched(noisy_digits, linear, tmp_path):
    model, X_train, X, y = noisy_digits
    paths = [
        report(model, X, y, tmp_path / "a.html", X_train=X_train),
        report(*linear, tmp_path / "b.html"),
    ]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert not {"script", "link", "iframe", "object"} & {
            t for t, _ in page.elements
        }
        assert "url(" not in text
        assert "@import" not in text
        sources = [
            a[key]
            for _, a in page.elements
            for key in ("src", "href", "srcset")
            if key in a
        ]
        assert sources
        assert all(source.startswith("data:image/") for source in sources)
        (svg,) = [s for s in sources if s.startswith("data:image/svg+xml;base64,")]
        drawing = base64.b64decode(svg.partition(",")[2]).decode()
        assert all(
            link.startswith("#") for link in re.findall(r'href="([^"]*)"', drawing)
        )
        assert "url(http" not in drawing


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measures(n_classes, dtype):
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.full(n_classes, 0.5), size=300).astype(dtype)
    proba[0] = np.eye(n_classes)[1]  # a log loss that is cut
    y = np.array([rng.choice(n_classes, p=p / p.sum()) for p in proba.astype(float)])
    y[0] = 0
    labels = np.arange(n_classes)
    value, low, high = measured(y, proba)
    expected = [
        accuracy_score(y, proba.argmax(axis=1)),
        balanced_accuracy_score(y, proba.argmax(axis=1)),
        log_loss(y, proba, labels=labels),
        brier_score_loss(y, proba, labels=labels),
        expected_calibration_error(y, proba, labels=labels),
    ]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert (low <= value).all()
    assert (value <= high).all()
    assert (low < high).all()
    assert (low >= 0).all()
    assert (high[[0, 1, 3, 4]] <= [1, 1, 2, 1]).all()


def test_interval_of_a_small_calibration_error_reaches_it():
    # As well calibrated in each bin as 15 samples can be: no resample is.
    confidence = np.repeat(np.linspace(0.52, 0.98, 7), 15)
    y = (np.tile(np.arange(15), 7) + 0.5) / 15 < confidence
    proba = np.column_stack([1 - confidence, confidence])
    value, low, high = measured(y.astype(int), proba)
    assert 0 < value[4] < 0.03
    assert low[4] == 0
    assert high[4] == value[4]


def test_numbers_of_the_page(linear, tmp_path):
    model, X, y = linear
    page = read(report(model, X, y, tmp_path / "r.html", n_bootstraps=100))
    proba = model.predict_proba(X)
    balanced = balanced_accuracy_score(y, model.predict(X))
    expected = [
        f"{100 * model.score(X, y):.1f}\N{NO-BREAK SPACE}%",
        f"{100 * balanced:.1f}\N{NO-BREAK SPACE}%",
        f"{log_loss(y, proba):.3f}",
        f"{brier_score_loss(y, proba, labels=model.classes_):.3f}",
        f"{100 * expected_calibration_error(y, proba):.1f}\N{NO-BREAK SPACE}%",
    ]
    texts = page.text("dd")
    assert texts[::3] == expected
    for value, limits in zip(texts[::3], texts[1::3], strict=True):
        number, low, high = (
            float(t.removesuffix("%")) for t in (value, *limits.split(" to "))
        )
        assert low <= number <= high
    counts = pd.crosstab(y, model.predict(X)).to_numpy()
    cells = [int(t) for t in page.text("td")[16:25]]
    assert cells == counts.ravel().tolist()
    assert "100 resamples" in " ".join(page.text("p"))


def test_same_seed_same_report(linear, tmp_path):
    def cards(seed):
        path = report(*linear, tmp_path / "r.html", n_bootstraps=20, random_state=seed)
        return read(path).text("dd")

    assert cards(0) == cards(0) == cards(np.random.RandomState(0))
    assert cards(0) != cards(1)


def test_other_classifiers_have_fewer_sections(linear, tmp_path):
    model, X, y = linear
    page = read(report(model, X, y, str(tmp_path / "r.html"), X_train=X[:1]))
    assert page.text("h2") == [
        QUALITY,
        CALIBRATION,
        CLASSES,
        MATRIX,
        MISTAKES,
        SETTINGS,
    ]
    assert "All parameters are at their defaults." in page.text("p")
    assert len(page.attributes("details")) == 1


def test_network_of_skorch(iris, tmp_path):
    net = NeuralNetClassifier(
        Linear,
        criterion=torch.nn.CrossEntropyLoss,
        lr=0.1,
        max_epochs=2,
        classes=[0, 1, 2],
        verbose=0,
    )
    X, y = iris[0].astype(np.float32), iris[1]
    path = report(net.fit(X, y), X, y, tmp_path / "r.html")
    assert read(path).text("h2")[-2:] == [SETTINGS, TRAINING]
    text = path.read_text(encoding="utf-8")
    chosen, default = text.split("<details>")
    assert '<th scope="row">module</th><td>modules.Linear</td>' in chosen
    assert '<th scope="row">lr</th><td>0.1</td>' in chosen
    assert '<th scope="row">batch_size</th><td>128</td>' in default
    assert "Linear, 15 weights" in default


def test_several_targets(iris, tmp_path):
    X, y = iris
    model = DecisionTreeClassifier().fit(X, np.column_stack([y, y]))
    with pytest.raises(ValueError, match=r"predicts 2 targets; expected .* of one"):
        report(model, X, y, tmp_path / "r.html")


def test_cross_entropy_has_no_suspicious_labels(iris, tmp_path):
    model = quick(prior_strength=float("inf")).fit(*iris)
    page = read(report(model, *iris, tmp_path / "r.html"))
    assert SUSPICIOUS not in page.text("h2")
    assert TRAINING in page.text("h2")


def test_pipeline_search_and_frame(tmp_path):
    data = load_breast_cancer(as_frame=True)
    X, y = data.data, data.target_names[data.target]
    X_train, y_train, X, y = X[:350], y[:350], X[350:], y[350:]
    model = make_pipeline(StandardScaler(), quick(prior_strength=40))
    search = GridSearchCV(model, {"bsdclassifier__lr": [0.02]}, cv=2)
    for estimator in (model, search):
        estimator.fit(X_train, y_train)
        path = report(estimator, X, y, tmp_path / "r.html", X_train=X_train)
        page = read(path)
        text = path.read_text(encoding="utf-8")
        assert "StandardScaler → BSDClassifier, tested on 219 samples" in text
        assert {SUSPICIOUS, TRAINING} < set(page.text("h2"))
        chosen, default = text.split("<details>")
        assert '<th scope="row">bsdclassifier__prior_strength</th><td>40</td>' in chosen
        assert "standardscaler__with_mean" in default
        assert ("bsdclassifier__lr" in chosen) == (estimator is search)

        proba = estimator.predict_proba(X).max(axis=1)
        wrong = np.flatnonzero(estimator.predict(X) != y)
        worst = wrong[np.argmax(proba[wrong])]
        distance = ((X.iloc[worst] - X.mean()) / X.std(ddof=0)).abs()
        first = distance.idxmax()
        assert f'<td class="number">{worst}</td>' in text
        assert f'<td class="long">{first} {X.iloc[worst][first]:.4g} (' in text


def test_features_that_are_no_numbers_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=60), "b": ["x", "y"] * 30})
    X.loc[3, "a"] = np.nan
    y = rng.integers(0, 2, 60)

    class OnlyNumbers(LogisticRegression):
        def predict_proba(self, X):
            return super().predict_proba(X[["a"]].fillna(0))

        def fit(self, X, y):
            return super().fit(X[["a"]].fillna(0), y)

    model = OnlyNumbers().fit(X, y)
    page = read(report(model, X, y, tmp_path / "r.html"))
    features = [t for t in page.text("td") if t.startswith("a ")]
    assert len(features) == 12
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(X[["b"]], y)
    page = read(report(model, X[["b"]], y, tmp_path / "r.html"))
    assert "Probability of predicted" in page.text("th")
    assert "Most unusual features" not in page.text("th")


@pytest.mark.parametrize("kind", ["array", "tensor", "dataset", "flat"])
def test_ways_to_pass_images(digits, tmp_path, kind):
    X, y = digits[0][:300], digits[1][:300]
    shape = (1, 8, 8) if kind == "flat" else None
    X_train = {
        "array": X,
        "tensor": torch.from_numpy(X),
        "dataset": Images(X, y),
        "flat": X.reshape(len(X), -1),
    }[kind]
    model = quick(image_shape=shape, max_epochs=1).fit(X_train, y)
    page = read(report(model, X_train, y, tmp_path / "r.html", X_train=X_train))
    assert len(page.images()) >= 24


def test_table_of_a_dataset_and_uint8_colours(iris, tmp_path):
    X, y = iris[0].astype(np.float32), iris[1]
    data = Images(X, y)
    model = quick(max_epochs=1).fit(data)
    page = read(report(model, data, y, tmp_path / "r.html"))
    assert not page.images()
    assert "Probability of predicted" in page.text("th")

    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (24, 3, 8, 288), dtype=np.uint8)
    y = rng.integers(0, 2, 24)
    model = quick(max_epochs=1).fit(X, y)
    images = read(report(model, X, 1 - model.predict(X), tmp_path / "r.html")).images()
    assert len(images) == 24
    assert all("class" not in a for a in images)
    # Reduced to 256 pixels in width.
    header = base64.b64decode(images[0]["src"].partition(",")[2])[:24]
    assert int.from_bytes(header[16:20], "big") == 256


def test_a_step_that_makes_the_image(digits, tmp_path):
    from sklearn.decomposition import PCA

    X, y = digits[0][:200].reshape(200, -1), digits[1][:200]
    model = make_pipeline(PCA(16), quick(image_shape=(1, 4, 4), max_epochs=1))
    page = read(report(model.fit(X, y), X, y, tmp_path / "r.html", X_train=X))
    assert not page.images()


@pytest.mark.parametrize("n_classes", [20, 120])
def test_many_classes(tmp_path, n_classes):
    X, y = make_blobs(1200, 6, centers=n_classes, cluster_std=3, random_state=0)
    names = np.array([f"kind {k:03d}, a long name" for k in range(n_classes)])
    model = LogisticRegression(max_iter=50, tol=1).fit(X, names[y])
    path = report(model, X, names[y], tmp_path / "r.html", n_bootstraps=5)
    page = read(path)
    titles = page.text("h2")
    assert "Most frequent confusions" in titles
    assert (MATRIX in titles) == (n_classes == 20)

    predicted = model.predict(X)
    pairs = Counter(zip(names[y], predicted, strict=True))
    if n_classes == 20:
        tips = page.text("title")[1:]
        expected = {f"true {a}, predicted {b}: {n}" for (a, b), n in pairs.items()}
        assert set(tips) == expected
        (svg,) = page.attributes("svg")
        assert f"{(predicted == names[y]).sum():,} of 1,200" in svg["aria-label"]
    largest = max(n for (a, b), n in pairs.items() if a != b)
    cells = page.text("td")[5 * n_classes :]  # after the scores of each class
    assert cells[2] == str(largest)
    assert pairs[cells[0], cells[1]] == largest


def test_no_mistakes(tmp_path):
    X, y = make_blobs(60, centers=[[-9, 0], [9, 0]], random_state=0)
    model = LogisticRegression().fit(X, y)
    page = read(report(model, X, y, tmp_path / "r.html"))
    assert MISTAKES in page.text("h2")
    assert any(
        "all 60 test samples are predicted correctly" in t for t in page.text("p")
    )


def test_text_of_the_user_is_escaped(linear, tmp_path):
    _, X, y = linear
    evil = "<script>alert('1')</script>&\"$x"
    names = np.array([f"{evil}{k}" for k in range(3)])
    frame = pd.DataFrame(X, columns=[f"{evil}{i}" for i in range(X.shape[1])])
    model = make_pipeline(LogisticRegression(class_weight=dict.fromkeys(names, 1)))
    model.fit(frame, names[y])
    path = report(model, frame, names[y], tmp_path / "r.html", title=evil)
    page = read(path)
    assert "script" not in [tag for tag, _ in page.elements]
    assert page.text("h1") == page.text("title") == [evil]
    assert page.text("th").count(names[0]) == 2
    assert any(evil in text for text in page.text("td"))
    assert "<script" not in path.read_text(encoding="utf-8")


def test_style_of_the_session_is_kept_out_and_untouched(linear, tmp_path):
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    def drawing():
        (image,) = read(report(*linear, tmp_path / "r.html")).attributes("img")
        # Not the whole drawing: matplotlib makes up identifiers.
        text = base64.b64decode(image["src"].partition(",")[2]).decode()
        return re.findall(r"#[0-9a-f]{6}\b", text), text.count("<path")

    figures, expected = plt.get_fignums(), drawing()
    with plt.style.context("dark_background"):
        before = dict(mpl.rcParams)
        assert drawing() == expected
        assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == figures


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"path": "missing/r.html"}, FileNotFoundError, "'missing' .* create it"),
        ({"path": "."}, IsADirectoryError, "folder; expected a file"),
        ({"path": 3}, ValueError, "'path' parameter"),
        ({"y_test": [0, 1]}, ValueError, "X_test has 200 samples, but y_test 2"),
        ({"y_test": [7] * 200}, ValueError, r"\[7\]; expected some .* \[0, 1, 2\]"),
        ({"y_test": ["a"] * 200}, ValueError, r"\['a'\]; expected some"),
        ({"y_test": None}, ValueError, "target y is None"),
        ({"estimator": LogisticRegression()}, NotFittedError, "not fitted"),
        ({"estimator": BSDClassifier()}, NotFittedError, "not fitted"),
        ({"estimator": KMeans()}, ValueError, "classifier, got KMeans"),
        ({"n_bootstraps": 0}, ValueError, "'n_bootstraps' parameter"),
        ({"title": 3}, ValueError, "'title' parameter"),
        ({"random_state": "a"}, ValueError, "'random_state' parameter"),
    ],
    ids=str,
)
def test_errors_come_before_anything_is_computed(
    linear, tmp_path, monkeypatch, change, error, match
):
    monkeypatch.chdir(tmp_path)

    def predict_proba(self, X):
        pytest.fail("predicted")

    monkeypatch.setattr(LogisticRegression, "predict_proba", predict_proba)
    model, X, y = linear
    arguments = {"estimator": model, "X_test": X, "y_test": y, "path": "r.html"}
    with pytest.raises(error, match=match):
        report(**(arguments | change))
    assert not list(tmp_path.iterdir())


def test_more_errors(linear, noisy_digits, tmp_path, monkeypatch):
    _, X, y = linear
    path = tmp_path / "r.html"
    with pytest.raises(AttributeError, match="RidgeClassifier has no predict_proba"):
        report(RidgeClassifier().fit(X, y), X, y, path)
    model, X_train, X, y = noisy_digits
    with pytest.raises(ValueError, match=r"X_train has 9 samples, .* fitted on 1000"):
        report(model, X, y, path, X_train=X_train[:9])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'report requires .*"\.\[plot\]"'):
        report(*linear, path)
    assert not path.exists()


def test_whole_or_not_at_all(linear, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("before")
    with monkeypatch.context() as patch:

        def replace(*args):
            raise OSError("disk full")

        patch.setattr("os.replace", replace)
        with pytest.raises(OSError, match="disk full"):
            report(*linear, path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    report(*linear, path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def browser():
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


@pytest.mark.skipif(browser() is None, reason="needs Chromium")
@pytest.mark.parametrize("n_classes", [3, 16])
def test_fits_the_screen(tmp_path, n_classes):
    X, y = make_blobs(400, 30, centers=n_classes, cluster_std=9, random_state=0)
    names = np.array([f"{k}_{'a_very_long_label' * 3}" for k in range(n_classes)])
    frame = pd.DataFrame(
        X, columns=[f"a_long_name_of_a_feature_{i}" for i in range(30)]
    )
    model = make_pipeline(StandardScaler(), quick(class_weight=dict.fromkeys(names, 1)))
    path = report(model.fit(frame, names[y]), frame, names[y], tmp_path / "r.html")
    text = path.read_text(encoding="utf-8").replace("<details>", "<details open>")
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border: 0" '
        f'srcdoc="{escape(text)}"></iframe>'
        for width in (360, 1280)
    )
    script = (
        "document.title = [...document.querySelectorAll('iframe')].map(f => ["
        "f.contentDocument.documentElement.scrollWidth, f.contentWindow.innerWidth, "
        "f.contentDocument.images.length])"
    )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f"<body>{frames}<script>onload = () => {{ {script} }}</script></body>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            browser(),
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search("<title>(.*?)</title>", unescape(done.stdout))[1]
    narrow, wide = np.reshape([int(n) for n in title.split(",")], (2, 3)).tolist()
    assert narrow == [360, 360, 1]
    assert wide == [1280, 1280, 1]
