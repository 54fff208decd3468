import math
from dataclasses import replace
from pathlib import Path

import _panel
import _report
import compare
import numpy as np
import pytest
from _common import Results
from _panel import CELLS, PANELS, SEEDS, Source, corrupt, load

COLUMNS = (*compare.ABOUT, *compare.SCORES, *compare.COSTS)
NOWHERE = Source(Path("nowhere"), None)
STUB = """
import math
from functools import partial
from skbsd import BSDClassifier

def fails(**kwargs):
    raise RuntimeError("on purpose")

METHODS = {
    "CE": partial(BSDClassifier, prior_strength=math.inf),
    "BSD": BSDClassifier,
    "fails": fails,
}
"""


def generator():
    return np.random.default_rng(0)


def cell(base, **changes):
    return replace(CELLS[base], **changes)


def figures(**given):
    return dict.fromkeys((*compare.SCORES, *compare.COSTS), 1.0) | given


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_symmetric_noise_has_exactly_the_rate_and_never_the_own_class(rate):
    y = np.repeat(np.arange(10), 100)
    given = corrupt(y, 10, rate, "symmetric", generator())
    assert np.mean(given != y) == rate
    wrong = given[given != y]
    assert set(wrong) == set(range(10))
    assert np.bincount((given - y) % 10)[1:].min() > 0.5 * rate * 1000 / 9


def test_two_classes_change_places():
    y = np.arange(50) % 2
    given = corrupt(y, 2, 0.2, "symmetric", generator())
    assert np.sum(given != y) == 10
    assert set(given) == {0, 1}


@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_asymmetric_noise_changes_a_share_of_each_confused_class(dataset):
    y = np.repeat(np.arange(10), 50)
    confused = _panel.CONFUSED[dataset]
    given = corrupt(y, 10, 0.4, "asymmetric", generator(), confused)
    for k in range(10):
        expected = np.zeros(10, int)
        expected[k] = 50
        if k in confused:
            expected[k], expected[confused[k]] = 30, 20
        np.testing.assert_array_equal(np.bincount(given[y == k], None, 10), expected)


def test_noise_is_reproducible_and_leaves_the_true_labels_alone():
    y = np.arange(100) % 10
    before = y.copy()
    one, same = (corrupt(y, 10, 0.4, "symmetric", generator()) for _ in range(2))
    other = corrupt(y, 10, 0.4, "symmetric", np.random.default_rng(1))
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(y, before)
    assert (one != other).any()
    np.testing.assert_array_equal(corrupt(y, 10, 0.0, "none", generator()), y)
    with pytest.raises(ValueError, match="unknown kind of noise"):
        corrupt(y, 10, 0.4, "other", generator())


def test_digits_are_split_by_the_seed():
    noisy = CELLS["digits-mlp-n449-60ep-asym40"]
    (one,), (same,), (other,) = (load(noisy, s, NOWHERE) for s in (0, 0, 1))
    assert one.X.shape == (449, 64)
    assert len(one.X_test) == len(one.y_test) == 1797 - 449
    assert np.bincount(one.true).min() >= 43
    np.testing.assert_array_equal(one.given, same.given)
    assert (one.X != other.X).any()
    assert 0 < np.mean(one.given != one.true) < 0.4


def test_tables_are_tested_on_every_sample_once_and_trained_on_wrong_labels():
    splits = load(CELLS["breast_cancer-mlp-n569-60ep-sym20"], 0, NOWHERE)
    assert len(splits) == 5
    assert sum(len(split.y_test) for split in splits) == 569
    assert sum(split.y_test.sum() for split in splits) == 357
    for split in splits:
        np.testing.assert_allclose(split.X.mean(axis=0), 0, atol=1e-5)
        assert np.sum(split.given != split.true) == round(0.2 * len(split.true))


def test_cifar10_is_drawn_from_all_and_standardised_for_the_mlp(monkeypatch):
    rng = generator()
    images = rng.integers(0, 256, (5000, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, 5000)

    def fake(source, limit=None, *, train=True, choose=None):
        rows = np.arange(5000)[:limit] if choose is None else choose(labels)
        return images[rows], labels[rows]

    monkeypatch.setattr(_panel, "load_cifar10", fake)
    source = Source(Path("fake"), None)
    name = "cifar10-mlp-n4000-25ep-clean"
    (split,) = load(cell(name, n_test=100), 0, source)
    assert split.X.shape == (4000, 3072)
    assert split.X_test.shape == (100, 3072)
    assert abs(split.X.mean()) < 1e-3
    assert split.X.std() == pytest.approx(1, abs=1e-3)
    (split,) = load(CELLS["cifar10-resnet-64-n2000-60ep-sym40"], 0, source)
    assert split.X.shape == (2000, 3, 32, 32)
    assert split.X.dtype == np.uint8
    assert np.mean(split.given != split.true) == 0.4


def test_panels_share_no_cell_and_no_seed():
    cells = [cell for panel in PANELS.values() for cell in panel]
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(cell.panel == name for name in PANELS for cell in PANELS[name])
    seeds = [seed for chosen in SEEDS.values() for seed in chosen]
    assert len(set(seeds)) == len(seeds)

    def tasks(panel):
        return {(c.dataset, c.network, c.n) for c in PANELS[panel]}

    assert not tasks("tuning") & tasks("final")
    assert {name: len(panel) for name, panel in PANELS.items()} == {
        "tuning": 21,
        "final": 19,
        "large": 4,
        "noise": 9,
        "noise-large": 6,
    }
    assert [sum(c.rivals for c in PANELS[p]) for p in ("tuning", "final")] == [4, 4]


def test_plan_is_by_seed_then_cell_and_has_rivals_on_marked_cells_once():
    cells = PANELS["tuning"][:2]
    runs = compare.plan(cells, ["CE", "ELR", "BSD"], (0, 1))
    a, b = (c.name for c in cells)
    assert [run.key for run in runs] == [
        (a, "CE", 0),
        (a, "BSD", 0),
        (b, "CE", 0),
        (b, "ELR", 0),
        (b, "BSD", 0),
        *((name, method, 1) for name in (a, b) for method in ("CE", "BSD")),
    ]
    assert len(compare.plan(cells, ["CE", "ELR"], (0, 1), full=True)) == 8


def test_small_networks_take_their_images():
    import torch

    x = torch.zeros(2, 3, 32, 32)
    assert _panel.SpaceToDepth((4, 8, 8))(x).shape == (2, 10)


def no_process(run):
    if run.method == "fails":
        return None, "Traceback"
    return figures(accuracy=0.5 + run.seed), None


no_process.stop = lambda: None


def test_a_run_that_is_done_is_not_done_again(tmp_path, capsys):
    file = tmp_path / "results.csv"
    chosen = PANELS["tuning"][:2]
    asked = []

    def runner(run):
        asked.append(run.key)
        return no_process(run)

    runner.stop = lambda: None

    def execute(seeds, methods=("CE", "fails")):
        asked.clear()
        runs = compare.plan(chosen, methods, seeds, full=True)
        return compare.execute(runs, runner, Results(file, COLUMNS), 1)

    assert len(execute([0])) == 2  # both failed runs
    assert "FAILED" in capsys.readouterr().out
    assert len(asked) == 4
    execute([0, 1], ["CE"])
    assert [key[2] for key in asked] == [1, 1]
    execute([0])
    assert {key[1] for key in asked} == {"fails"}
    rows = _report.read(file)
    assert [(row["seed"], row["accuracy"]) for row in rows] == [
        (0, 0.5),
        (0, 0.5),
        (1, 1.5),
        (1, 1.5),
    ]


@pytest.mark.parametrize("left", [1, 20, 200])
def test_a_torn_line_is_taken_away(tmp_path, left):
    file = tmp_path / "results.csv"
    run = compare.Run(PANELS["tuning"][0], "CE", 0)
    results = Results(file, COLUMNS)
    results.add(*run.row(figures()))
    whole = file.read_bytes()
    torn = whole.splitlines(keepends=True)[1]
    file.write_bytes(whole + torn[: min(left, len(torn) - 1)])
    results = Results(file, COLUMNS)
    assert file.read_bytes() == whole
    results.add(*run.row(figures()))
    assert len(_report.read(file)) == 2


def test_a_torn_header_is_written_anew(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("panel,cel")
    Results(file, COLUMNS)
    assert file.read_text().strip() == ",".join(COLUMNS)


def test_other_columns_are_refused(tmp_path):
    file = tmp_path / "results.csv"
    Results(file, COLUMNS[1:])
    with pytest.raises(ValueError, match="has other columns: cell, method"):
        Results(file, COLUMNS)


def test_two_methods_from_end_to_end(tmp_path, monkeypatch, capsys):
    (tmp_path / "stub_methods.py").write_text(STUB)
    monkeypatch.syspath_prepend(tmp_path)
    tiny = cell("digits-mlp-n449-60ep-asym40", epochs=5, name="tiny")
    monkeypatch.setitem(PANELS, "tuning", (tiny,))
    monkeypatch.setattr(compare, "stop_at_interrupt", lambda: None)
    file, image = tmp_path / "results.csv", tmp_path / "images" / "picture.png"
    arguments = ["--registry", "stub_methods", "--output", str(file), "--seeds", "0"]
    arguments += ["--jobs", "1", "--tables", str(tmp_path), "--image", str(image)]
    assert compare.main([*arguments, "--methods", "CE", "BSD", "fails"]) == 1
    out = capsys.readouterr().out
    assert "RuntimeError: on purpose" in out
    assert "'tiny', 'fails', 0" in out

    ce, bsd = _report.read(file)
    assert [ce["method"], bsd["method"]] == ["CE", "BSD"]
    for row in (ce, bsd):
        assert 0.5 < row["accuracy"] < 1
        assert 0 < row["ece"] < 0.5
        assert 0 <= row["memorised"] <= 1
        assert row["brier_miscalibration"] < row["brier"]
        assert row["seconds"] > 0
        assert row["peak_memory_mb"] > 50
    assert ce["nll"] != bsd["nll"]
    assert "| BSD | 1 |" in (tmp_path / "compare_tuning.md").read_text()
    assert image.stat().st_size > 1000

    assert compare.main([*arguments, "--methods", "CE", "BSD"]) == 0
    assert "2 runs, 2 of them done before" in capsys.readouterr().out
    assert len(_report.read(file)) == 2


def rows_by_hand():
    """Yield rows of two cells with correct labels, one overfitted, and two others."""

    def row(name, method, seed, noise=0.0, **given):
        about = {"cell": name, "method": method, "seed": seed, "noise": noise}
        return about | figures(memorised=math.nan, train_accuracy=0.9) | given

    for seed in (0, 1):
        up = 0.01 * seed
        ce = {"ece": 0.1, "nll": 1.0, "seconds": 10.0}
        bsd = {"ece": 0.04, "nll": 0.8, "seconds": 11.0}
        yield row("over", "CE", seed, accuracy=0.7 + up, **ce)
        yield row("over", "BSD", seed, accuracy=0.72 + 2 * up, **bsd)
        ce = {"ece": 0.02, "nll": 0.5, "seconds": 10.0}
        bsd = {"ece": 0.03, "nll": 0.6, "seconds": 10.0}
        yield row("under", "CE", seed, accuracy=0.85, **ce)
        yield row("under", "BSD", seed, accuracy=0.84, **bsd)
        for name, share, gain in (("learnt", 0.5, 0.06), ("not", 0.1, -0.02)):
            ce = {"ece": 0.2, "nll": 2.0, "memorised": share}
            bsd = {"ece": 0.1, "nll": 1.5, "memorised": 0.0}
            yield row(name, "CE", seed, 0.4, accuracy=0.5, **ce)
            yield row(name, "BSD", seed, 0.4, accuracy=0.5 + gain, **bsd)
    yield row("over", "ELR", 0, accuracy=0.75, nll=0.7)
    yield row("over", "mixup", 0, accuracy=0.6, nll=0.5)
    # Cells without the reference are ignored.
    yield row("alone", "BSD", 0, accuracy=0.9)


def test_summary():
    data = _report.Comparison(rows_by_hand())
    lines = {line.subject: line for line in _report.summary(data, "BSD")}
    expected = {
        "correct labels: accuracy difference, worst": (-1, 2, "under"),
        "correct labels: accuracy difference, mean": (0.75, 2, ""),
        "correct labels, CE overfits: NLL ratio, mean of ratios": (0.8, 1, ""),
        "correct labels, CE overfits: ECE ratio, ratio of means": (0.4, 1, ""),
        "correct labels: ECE ratio, mean of ratios": ((0.4 + 1.5) / 2, 2, ""),
        "correct labels: ECE ratio, ratio of means": (0.07 / 0.12, 2, ""),
        "correct labels: ECE difference, worst": (1, 2, "under"),
        "wrong labels, CE memorises: accuracy difference, mean": (6, 1, ""),
        "wrong labels: accuracy difference, worst": (-2, 2, "not"),
        "wrong labels: NLL ratio, mean of ratios": (0.75, 2, ""),
        "wrong labels: ECE % of BSD, mean": (10, 2, ""),
        "wrong labels: ECE % of CE, mean": (20, 2, ""),
        "fit seconds ratio, median of runs": (1.0, 8, ""),
        "fit CPU seconds ratio, median of runs": (1.0, 8, ""),
    }
    for subject, (value, cells, where) in expected.items():
        line = lines[subject]
        assert line.value == pytest.approx(value), subject
        assert (line.cells, line.where) == (cells, where), subject


def test_best_rivals_are_compared_on_the_seeds_they_have():
    found = {line[0]: line[1:] for line in _report.best_rivals(_common(), "BSD")}
    assert found["over"] == (
        "ELR",
        pytest.approx(-3),
        "mixup",
        pytest.approx(0.8 / 0.5),
    )
    assert found["under"][0] == "CE"


def _common():
    return _report.Comparison(rows_by_hand())


def test_cell_table_holds_paired_differences():
    (line,) = (
        line
        for line in _report.cell_table(_common(), "over")
        if line.startswith("| BSD ")
    )
    entries = [entry.strip() for entry in line.strip("|").split("|")]
    assert entries[:4] == ["BSD", "2", "73.00 ± 1.41", "+2.50 ± 0.71"]
    assert entries[4:6] == ["4.00 ± 0.00", "-6.00 ± 0.00"]
    assert entries[-2:] == ["11.0", "1.10"]


def test_summary_without_cells_says_so():
    lines = _report.summary(_report.Comparison([]), "BSD")
    assert all(line.value is None and "no results yet" in str(line) for line in lines)


def test_overview_has_a_row_for_each_method():
    header, _, *rows = _report.overview(_common())
    names = [entry.strip() for entry in header.strip("|").split("|")]
    table = {}
    for row in rows:
        method, *entries = (entry.strip() for entry in row.strip("|").split("|"))
        table[method] = dict(zip(names[1:], entries, strict=True))
    assert table.keys() == {"BSD", "CE", "ELR", "mixup"}
    bsd = table["BSD"]
    assert (bsd["settings"], bsd["seeds"]) == ("5", "1 to 2")
    assert (bsd["correct labels: accuracy"], bsd["correct labels: worst accuracy"]) == (
        "+0.75",
        "-1.00",
    )
    assert (bsd["overfit: NLL"], bsd["wrong labels: ECE %"]) == ("0.800", "10.00")
    assert table["ELR"]["wrong labels: ECE %"] == ""


def test_report_ends_rivals_with_their_mean():
    text = _report.markdown(_common(), "tuning")
    (mean,) = (x for x in text.splitlines() if x.startswith("| mean |"))
    found = [*_report.best_rivals(_common(), "BSD")]
    gap = np.mean([line[2] for line in found])
    assert mean == f"| mean | | {gap:+.2f} | | {np.mean([x[4] for x in found]):.3f} |"
