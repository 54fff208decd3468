"""The benchmark of wrong labels, on a small task."""

import label_noise as benchmark
import numpy as np
import pytest
from _panel import Split, corrupt
from _report import read
from sklearn.datasets import load_digits

ARGUMENTS = {"max_epochs": 8, "calibration": None, "random_state": 0, "device": "cpu"}


class Cell:
    name = "digits"
    title = "digits, 20 % wrong"
    noise = 0.2

    def arguments(self, seed):
        return {**ARGUMENTS, "random_state": seed}


@pytest.fixture(scope="module")
def split():
    X, y = load_digits(return_X_y=True)
    X, y = (X[:600] / 16).astype(np.float32), y[:600]
    given = corrupt(y, 10, 0.2, "symmetric", np.random.default_rng(0))
    return Split(X, given, y, X, y)


@pytest.mark.parametrize("name", benchmark.DETECTORS)
def test_detectors(name, split):
    if name == "cleanlab":
        pytest.importorskip("cleanlab")
    auroc, at_k, listed, precision, recall, seconds, used = benchmark.detect(
        name, Cell(), 0, split
    )
    assert auroc > 0.9
    assert at_k > 0.7
    assert precision * listed == pytest.approx(recall * 120)
    assert 0 < recall <= 1
    assert seconds > 0
    assert used > 0


def test_what_is_done_is_not_done_again(split, tmp_path, monkeypatch):
    calls = []

    def detector(arguments, split):
        calls.append(arguments["random_state"])
        return -(split.given != split.true).astype(float), split.given != split.true

    monkeypatch.setattr(benchmark, "DETECTORS", {"exact": detector})
    monkeypatch.setattr(benchmark, "load", lambda *args: [split])
    file = tmp_path / "found.csv"
    for seeds in ((0,), (0, 1)):
        results = benchmark.Results(file, benchmark.FOUND)
        benchmark.run_detection([Cell()], seeds, None, results)
    assert calls == [0, 1]
    rows = read(file)
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row["auroc"] == row["precision"] == row["recall"] == 1 for row in rows)
    table = benchmark.detection_table(rows, [Cell()])
    assert "| exact | 1.000 ± 0.000 |" in table


def test_training_table():
    shared = {"cell": "digits", "memorised": 0.5, "noise": 0.2}
    rows = [
        {**shared, "method": method, "seed": seed, "accuracy": acc, "ece": 0.1}
        for method, seed, acc in (("CE", 0, 0.5), ("CE", 1, 0.6), ("BSD", 0, 0.7))
    ]
    table = benchmark.training_table(rows, [Cell()])
    assert "| CE | 55.0 ± 7.1; 10.0 ± 0.0 |" in table
    assert "| BSD | 70.0; 10.0 |" in table
    assert "ELR" not in table
    assert "memorised, % | 50 |" in table


def test_strong_is_bsd_with_other_images():
    model = benchmark.METHODS["BSD noisy, strong"](augmentation="flip-crop")
    assert (model.augmentation, model.prior_strength) == ("strong", "noisy")
    assert benchmark.METHODS["BSD contrastive"]().contrastive is not None
