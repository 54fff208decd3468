"""The calibration benchmark: its tasks, a small run, and its report."""

from dataclasses import replace

import _tables
import calibration
import numpy as np
import pytest
from _calibration_report import Figures, markdown, read
from _tables import PANELS, SEEDS, choose, load


@pytest.fixture(autouse=True)
def no_handler(monkeypatch):
    """Leave Ctrl-C to pytest."""
    monkeypatch.setattr(calibration, "stop_at_interrupt", lambda: None)


def row(task, method, seed=0, **figures):
    about = dict.fromkeys(calibration.COLUMNS, 1.0)
    about |= {"panel": "final", "labels": "clean", "n_classes": 2, "rare_share": 0.5}
    return about | {"task": task, "method": method, "seed": seed} | figures


def test_panels_share_no_task_no_table_and_no_seed():
    tasks = {panel: {task.name for task in PANELS[panel]} for panel in PANELS}
    assert all(len(tasks[panel]) == len(PANELS[panel]) for panel in PANELS)
    assert not tasks["tuning"] & tasks["final"]
    assert not set(SEEDS["tuning"]) & set(SEEDS["final"])
    tables = {
        panel: {
            task.source.keywords["item"]
            for task in PANELS[panel]
            if getattr(task.source, "func", None) is _tables._r_table
        }
        for panel in PANELS
    }
    assert {panel: len(tables[panel]) for panel in PANELS} == {"tuning": 5, "final": 13}
    assert not tables["tuning"] & tables["final"]
    with pytest.raises(ValueError, match=r"no such task; those of the panel:\ndigits"):
        choose("tuning", ["unknown"])


def test_training_labels_alone_are_made_wrong():
    (task,) = choose("tuning", ["cancer-n284-sym20"])
    one, same, other = (load(task, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.given, same.given)
    assert (one.X != other.X).any()
    assert one.X.dtype == one.X_test.dtype == np.float32
    assert np.sum(one.given != one.true) == round(0.2 * 284)
    clean = load(replace(task, noise=""), 0)
    np.testing.assert_array_equal(one.y_test, clean.y_test)
    inherent = load(replace(task, noise="inherent 20"), 0)
    assert np.sum(inherent.y_test != clean.y_test) == round(0.2 * 285)
    assert [task.labels, replace(task, noise="").labels] == ["wrong", "clean"]


def test_rivals_run_where_they_are_meant_to():
    tasks = choose("final", ["digits-n350", "digits-images-n450", "*n300-sym10"])
    runs = calibration.plan(tasks, ["BSD", "SELC", "MLPClassifier"], [10])
    assert [(run.task.name, run.method) for run in runs] == [
        ("digits-n350", "BSD"),
        ("digits-n350", "MLPClassifier"),
        ("digits-images-n450", "BSD"),
        ("cancer-n300-sym10", "BSD"),
        ("cancer-n300-sym10", "SELC"),
    ]


def test_a_run_is_recorded_once_and_reported(tmp_path, capsys):
    file, page = tmp_path / "calibration.csv", tmp_path / "page.md"
    arguments = ["--tasks", "iris-*", "--methods", "BSD none", "LogisticRegression"]
    arguments += ["--seeds", "0", "--output", str(file)]
    assert calibration.main(arguments) == 0
    network, logistic = read(file)
    assert (network["method"], logistic["method"]) == ("BSD none", "LogisticRegression")
    assert network["accuracy"] > 0.6
    assert (network["n_train"], network["n_classes"]) == (75, 3)
    assert (network["temperature"], network["prior"]) == (1, "auto")
    assert np.isnan([network["noise_rate"], logistic["temperature"]]).all()
    assert network["true_noise_rate"] == 0
    before = file.read_bytes()
    assert calibration.main([*arguments, "--markdown", str(page)]) == 0
    assert "2 runs, 2 of them done before" in capsys.readouterr().out
    assert calibration.main([*arguments, "--report"]) == 0
    assert file.read_bytes() == before
    text = page.read_text(encoding="utf-8")
    assert f"| iris-n75 | {100 * network['accuracy']:.2f} | " in text
    assert "| ECE % of BSD, mean | no results yet | 0 | |" in text


def test_ratios_are_of_means_over_common_seeds():
    rows = [
        row("a", "BSD", log_loss=0.2),
        row("a", "BSD", seed=1, log_loss=0.9),
        row("a", "CE", log_loss=0.4),
        row("b", "BSD", log_loss=0.4),
        row("b", "CE", log_loss=0.2),
        row("c", "BSD", log_loss=0.4),
    ]
    data = Figures(rows)
    assert data.log_loss_ratios("CE") == {"a": 0.5, "b": 2.0}
    text = markdown(rows, "final")
    assert "| log loss, ratio to CE, geometric mean | 1.000 | 2 |  |" in text
    assert "| log loss, ratio to CE, worst | 2.000 | 2 | b |" in text


def test_report_counts_noise_rates_and_compares_rare_classes():
    rare = {"rare_share": 0.02, "rare_proba": 0.03}
    wrong = {"labels": "wrong", "true_noise_rate": 0.3}
    rows = [
        row("a", "BSD", noise_rate=0.08, true_noise_rate=0.0, **rare),
        row("b", "BSD", noise_rate=0.27, accuracy=0.8, **wrong),
        row("b", "noisy", accuracy=0.85, **wrong),
        row("b", "BSD noisy", accuracy=0.7, **wrong),
    ]
    text = markdown(rows, "final")
    assert "| a | 2.00 | 1.50 |" in text
    assert "| correct | 1 | 1 | 0.080 | +0.080 | a |" in text
    assert "| wrong | 1 | 0 | 0.030 | -0.030 | b |" in text
    better = "accuracy, points above the better of noisy and BSD noisy, mean"
    assert f"| {better} | -5.00 | 1 |" in text
    assert markdown([], "final") == "no results yet"
