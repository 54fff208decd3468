"""The scores of each class, and the warning that a task is hard."""

import numpy as np
import pytest
from helpers import quick
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support
from test_report import Page, read

from skbsd import BSDClassifier, report
from skbsd._report._classes import balanced_accuracy, class_scores, confusion_counts
from skbsd.calibration import Calibration
from skbsd.label_noise import flip_labels

pytest.importorskip("matplotlib")
SPACE = "\N{NO-BREAK SPACE}"


class Nested(Page):
    """A page that also notes which of its tables and drawings do not scroll."""

    def __init__(self, text):
        self.scrolls, self.fixed = [], []
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        if tag in ("table", "svg") and not any(self.scrolls):
            self.fixed.append(dict(attrs))
        super().handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.scrolls.append(dict(attrs).get("class") == "scroll")

    def handle_endtag(self, tag):
        super().handle_endtag(tag)
        self.scrolls.pop()


def table_of_classes(page, n_classes):
    cells = page.text("td")[: 5 * n_classes]
    return np.reshape(cells, (n_classes, 5)).tolist()


def percent(value):
    return f"{100 * value:.1f}{SPACE}%"


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, (2, 200))
    weight = rng.integers(0, 3, 200)
    scores = class_scores(confusion_counts(true, predicted, 4))
    precision, recall, f1, _ = precision_recall_fscore_support(true, predicted)
    np.testing.assert_allclose(scores, [recall, precision, f1])
    found = balanced_accuracy(true, true == predicted, weight)
    assert found == pytest.approx(
        balanced_accuracy_score(true, predicted, sample_weight=weight)
    )


def test_undefined_scores():
    # Class 1 has no samples, class 2 is never predicted, class 3 is neither.
    true, predicted = np.array([0, 0, 2]), np.array([0, 1, 0])
    recall, precision, f1 = class_scores(confusion_counts(true, predicted, 4))
    np.testing.assert_array_equal(recall, [0.5, np.nan, 0, np.nan])
    np.testing.assert_array_equal(precision, [0.5, 0, np.nan, np.nan])
    np.testing.assert_array_equal(f1, [0.5, 0, 0, np.nan])
    assert balanced_accuracy(true, true == predicted, np.ones(3)) == 0.25


def test_few_classes_are_in_their_order(tmp_path):
    X, y = make_blobs(300, 4, centers=3, cluster_std=5, random_state=0)
    names = np.array(["a", "b", "c"])
    model = LogisticRegression().fit(X, names[y])
    present = y != 1
    page = read(report(model, X[present], names[y[present]], tmp_path / "r.html"))
    rows = table_of_classes(page, 3)
    predicted = model.predict(X[present])
    recall = np.mean(predicted[y[present] == 0] == "a")
    assert [row[0] for row in rows] == ["a", "b", "c"]
    assert rows[0][1:3] == ["100", percent(recall)]
    assert rows[1][1:3] == ["0", "–"]
    assert any("A dash (–) marks" in text for text in page.text("figcaption"))
    assert page.text("summary")[0].startswith("Parameters")


def test_of_many_classes_the_lowest_recall_comes_first(tmp_path):
    X, y = make_blobs(1000, 6, centers=100, cluster_std=3, random_state=0)
    model = LogisticRegression(max_iter=50, tol=1).fit(X, y)
    path = report(model, X, y, tmp_path / "r.html", n_bootstraps=5)
    page = read(path)
    rows = table_of_classes(page, 100)
    assert sorted(int(row[0]) for row in rows) == list(range(100))
    recall = precision_recall_fscore_support(y, model.predict(X), zero_division=0)[1]
    shown = [recall[int(row[0])] for row in rows]
    assert shown == sorted(shown)
    assert [row[2] for row in rows] == [percent(value) for value in shown]
    assert page.text("summary")[0] == "The other 88 classes"
    before_the_fold = path.read_text(encoding="utf-8").split("<details>")[0]
    assert before_the_fold.count("<tr>") == 13  # the header and 12 classes


@pytest.mark.parametrize("n_classes", [3, 20])
def test_every_table_and_map_scrolls(tmp_path, n_classes):
    X, y = make_blobs(300, 4, centers=n_classes, cluster_std=5, random_state=0)
    path = report(quick().fit(X, y), X, y, tmp_path / "r.html", n_bootstraps=2)
    text = path.read_text(encoding="utf-8")
    page = Nested(text)
    assert {tag for tag, _ in page.elements} > {"table", "details"}
    assert page.fixed == []
    assert ".scroll { overflow-x: auto; }" in text


def test_long_names_keep_a_least_width(tmp_path):
    X, y = make_blobs(90, 4, centers=3, random_state=0)
    for names, n_cells in ((["a", "b", "c"], 0), (["a", "b", "c" * 17], 3 + 1 + 3)):
        labels = np.array(names)[y]
        model = LogisticRegression().fit(X, labels)
        page = read(report(model, X, labels, tmp_path / "r.html", n_bootstraps=2))
        classes = [attributes.get("class") for _, attributes in page.elements]
        assert classes.count("name") == n_cells


@pytest.fixture(scope="module")
def hard():
    """A model of overlapping clusters, of which a tenth of the labels are wrong."""
    X, y = make_blobs(600, 4, centers=3, cluster_std=6, random_state=0)
    labels, _ = flip_labels(y, 0.1, random_state=0)
    model = BSDClassifier(
        prior_strength="noisy", calibration=None, max_epochs=20, random_state=0
    )
    return model.fit(X / 10, labels), X / 10, y, labels


def notes(model, X, y, path):
    page = read(report(model, X, y, path, n_bootstraps=2))
    return " ".join(page.text("p")), page


def test_hard_task_without_calibration(hard, tmp_path):
    model, X, y, _ = hard
    text, page = notes(model, X, y, tmp_path / "r.html")
    error = np.mean(model.predict(X) != y)
    assert error > 0.1
    assert "incorrectly, and without calibration the fraction" in text
    assert f"predicts {percent(error)} of the test samples" in text
    assert percent(1 - error) == page.text("dd")[0]  # the accuracy
    right = model.predict(X) == y
    text, _ = notes(model, X[right], y[right], tmp_path / "r.html")
    assert "This task is hard" not in text


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_hard_task_with_calibration(hard, tmp_path, monkeypatch, rate):
    model, X, y, labels = hard
    rng = np.random.default_rng(0)
    proba = np.eye(3)[np.where(rng.uniform(size=600) < 0.35, (labels + 1) % 3, labels)]
    proba[::7] = np.nan
    known = np.isfinite(proba[:, 0])
    contradicted = np.mean(proba[known].argmax(axis=1) != labels[known])
    assert 0.3 < contradicted < 0.4
    transition = None if rate == 0 else (1 - 1.5 * rate) * np.eye(3) + rate / 2
    monkeypatch.setattr(
        model,
        "calibration_",
        Calibration(noise_rate=rate, transition=transition),
        raising=False,
    )
    monkeypatch.setattr(model, "out_of_fold_proba_", proba, raising=False)
    text, page = notes(model, X, y, tmp_path / "r.html")
    assert ("This task is hard" in text) == (rate < 0.3)
    assert percent(rate) in page.text("td")  # among the facts of the training
    if rate == 0.0:
        assert "but there is no evidence that labels are wrong" in text
        assert "may go unnoticed" in text
    if rate == 0.1:
        assert f"contradict {percent(contradicted)} of the labels" in text
        assert f"only {percent(rate)} are estimated" in text
        assert "correct labels of hard samples rather than wrong labels" in text
