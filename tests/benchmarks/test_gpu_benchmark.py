"""The GPU benchmark, at small size on the CPU, and its parsing of outputs."""

import contextlib
import csv
import math
import signal
import sys

import _gpu_fits
import _gpu_stages
import gpu
import numpy as np
import pytest
import torch
from _gpu_stages import STAGES, Given, Left
from _gpu_table import Figure, Figures
from speed import CASES


@pytest.fixture
def figures(tmp_path):
    return Figures(tmp_path / "figures")


def found(figures):
    return {figure.key: figure for figure in figures.read()[0]}


@pytest.fixture
def in_process(monkeypatch):
    """Measure in this process, as imports in a new one take most of the time."""
    run = gpu.run_process

    def run_here(command, seconds, log, env):
        if "--measure" not in command:
            return run(command, seconds, log, env)
        with log.open("a") as output, contextlib.redirect_stdout(output):
            return gpu.main([*command[2:]])

    monkeypatch.setattr(gpu, "run_process", run_here)
    monkeypatch.setattr(gpu, "end_cleanly", lambda: None)


@pytest.mark.filterwarnings("default")
def test_self_check(in_process, tmp_path, capfd):
    assert gpu.main(["--self-check", "--output", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert "self-check passed" in out
    assert "hangs: stopped" in out
    assert f"| dies | failed ({-signal.SIGABRT}) |" in out
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"gpu.csv", "gpu.jsonl", "gpu.md", "log.txt"}
    figures = found(Figures(tmp_path))
    step = figures["posterior", "16 x 10, logits float32, store float32", "step"]
    assert min(step.values) > 0
    assert figures["graph", "MLP", "bit for bit"].values == [1]
    assert figures["graph", "MLP", "losses apart"].met
    host = figures["profile", "MLP, one by one", "host, per step"]
    assert len(host.values) > 5
    assert figures["ceilings", "card", "torch"].values == [torch.__version__]
    with (tmp_path / "gpu.csv").open(newline="") as file:
        assert len([*csv.DictReader(file)]) == len(figures)
    assert "## graph" in (tmp_path / "gpu.md").read_text()


def test_needs_a_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu.main(["--measure", "graph", "--output", str(tmp_path)])


def stage(name, code, *, most=60.0, collect=None, output=None):
    return _gpu_stages.Stage(
        name, 0, most, lambda _: [sys.executable, "-S", "-c", code], collect, output
    )


def test_what_went_through_is_not_run_again_and_what_failed_comes_last(figures):
    stages = [stage("fails", "raise SystemExit(3)"), stage("passes", "print('here')")]
    assert gpu.run(stages, figures, budget=60) == {
        "fails": "failed (3)",
        "passes": "ok",
    }
    assert "here" in (figures.folder / "log.txt").read_text()
    stages.append(stage("new", ""))
    left = gpu.pending(stages, figures, resume=True)
    assert [s.name for s in left] == ["new", "fails"]
    assert gpu.pending(stages, figures, resume=False) == stages


def test_stages_end_within_the_budget(figures, monkeypatch):
    monkeypatch.setattr(gpu, "RESERVE", 0)
    stages = [stage("hangs", "import time; time.sleep(60)"), stage("later", "")]
    ended = gpu.run(stages, figures, budget=1.5)
    assert ended == {"hangs": "stopped", "later": "no time"}


def test_only_new_rows_are_read(figures):
    seen = []

    def collect(figures, stage, left):
        seen.append([row["a"] for row in left.rows])

    file = figures.folder / "rows.csv"
    file.write_text("a\n1\n")
    code = f"open({str(file)!r}, 'a').write('2\\n3\\n')"
    gpu.run([stage("x", code, collect=collect, output="rows.csv")], figures, budget=60)
    assert seen == [["2", "3"]]


def test_output_that_cannot_be_read_is_a_failure(figures):
    def collect(figures, stage, left):
        raise KeyError("column")

    ended = gpu.run([stage("x", "", collect=collect)], figures, budget=60)
    assert ended == {"x": "failed (not read)"}
    assert found(figures)["x", "stage", "not read"].values == ["KeyError('column')"]


def test_figures():
    values = [3.0, 1.0, 2.0]
    assert Figure("s", "c", "q", "us", values).met is None
    assert Figure("s", "c", "q", "us", values, 2.0).met
    assert not Figure("s", "c", "q", "us", values, 1.9).met
    assert not Figure("s", "c", "q", "us", values, 2.1, at_least=True).met
    assert not Figure("s", "c", "q", "us", [math.nan], 2.0).met
    assert Figure("s", "c", "q", "", ["text"], 2.0).met is None
    row = Figure("s", "c", "q", "us", values, 2.0).row()
    assert row[4:] == ["2", "1", "3", "3", "<= 2", "yes"]


def test_the_last_of_a_figure_counts(figures):
    figures.add("s", "c", "q", "us", 1)
    figures.add("s", "c", "q", "us", [2, 3])
    with figures.file.open("a") as file:
        file.write('{"stage": "torn')
    again = Figures(figures.folder)
    assert [figure.values for figure in again.read()[0]] == [[2, 3]]


TESTS = """
tests/test_gpu.py::test_one PASSED                    [ 25%]
tests/test_gpu.py::test_two[a b-1] FAILED             [ 50%]
tests/test_gpu.py::test_three SKIPPED (no reason)     [ 75%]
tests/test_gpu.py::test_four ERROR                    [100%]
tests/test_gpu.py::test_hangs
=================== short test summary info ===================
FAILED tests/test_gpu.py::test_two[a b-1] - AssertionError: assert 1 == 2
ERROR tests/test_gpu.py::test_four
"""


def test_tests_are_counted(figures):
    _gpu_stages.collect_tests(figures, "gpu-tests", Left([], TESTS))
    entries = {key[1:]: figure.values for key, figure in found(figures).items()}
    assert entries["tests", "passed"] == [1]
    assert entries["tests", "failed"] == [3]
    assert entries["tests", "skipped"] == [1]
    assert entries["test_two[a b-1]", "FAILED"] == ["AssertionError: assert 1 == 2"]
    assert entries["test_four", "ERROR"] == ["no reason given"]
    assert entries["test_hangs", "ERROR"] == ["no reason given"]


def test_tests_that_did_not_begin(figures):
    _gpu_stages.collect_tests(figures, "gpu-tests", Left([], "no module named pytest"))
    figure = found(figures)["gpu-tests", "tests", "collected none"]
    assert figure.values == ["no module named pytest"]


def test_ratios_of_speed(figures):
    rows = [
        {"case": "mlp-256", "method": m, "round": str(i), "seconds": str(s)}
        | {"epochs": "10", "status": "ok"}
        for i, m, s in ((1, "A", 4), (0, "A", 2), (0, "skbsd", 1), (1, "skbsd", 1))
    ]
    _gpu_stages.collect_speed(figures, "speed", Left(rows, ""))
    figure = found(figures)["speed", "mlp-256", "skbsd / A"]
    assert figure.values == [0.5, 0.25]
    assert figure.target == 0.35
    assert found(figures)["speed", "mlp-256", "A"].values == [0.2, 0.4]


def test_accuracies(figures):
    rows = [
        {"recipe": "speed", "target": "94", "loss": "bsd", "seed": str(i)}
        | {"accuracy": str(a), "seconds": "5", "compile_seconds": "0.5"}
        for i, a in enumerate((93.9, 94.2))
    ]
    _gpu_stages.collect_cifar10(figures, "cifar10-94", Left(rows, ""))
    entries = {key[2]: figure for key, figure in found(figures).items()}
    assert entries["mean accuracy"].met
    assert entries["mean accuracy"].values == [pytest.approx(94.05)]
    assert entries["compile"].values == [0.5, 0.5]
    _gpu_stages.collect_cifar10(figures, "nothing", Left([], ""))


def test_commands(tmp_path):
    """Every stage returns a command, or a message if it needs missing images."""
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    for chosen in STAGES:
        without = chosen.command(Given(tmp_path, 60))
        given = chosen.command(Given(tmp_path, 60, ["--npz", "folder"]))
        if isinstance(given, list):
            assert without in (_gpu_stages.NO_IMAGES, given, given[:-2])
        if chosen.name.startswith("speed"):
            case = given[given.index("--cases") + 1]
            methods = given[given.index("--methods") + 1 : given.index("--rounds")]
            assert set(methods) <= set(CASES[case].methods)


def test_distances():
    one = {"losses": np.array([1.0, 2.0]), "weights": np.array([1.0, -1.0])}
    one["targets"] = np.array([0.5, 0.5])
    other = {name: value.copy() for name, value in one.items()}
    assert set(_gpu_fits.distances(one, other).values()) == {0.0}
    other["losses"][1] = 2.5
    other["weights"][0] = 1.5
    other["targets"][:] = 0.4, 0.6
    assert _gpu_fits.distances(one, other) == {
        "losses": pytest.approx(0.2),
        "weights": pytest.approx(0.2),
        "targets": pytest.approx(0.1),
    }


@pytest.mark.parametrize("data", [_gpu_fits.table, _gpu_fits.images])
def test_classes_can_be_told(data):
    X, y = data(400)
    assert len(np.unique(y)) in (5, 10)
    bright = [X[y == k].mean() for k in range(10)] if X.ndim == 4 else [0, 1]
    assert np.all(np.diff(bright) > 0)


def test_a_case_that_fails_leaves_the_others(figures, capsys):
    def fail():
        raise RuntimeError("first\nsecond")

    calls = {"bad": fail, "good": lambda: None}
    assert not _gpu_fits.measure_all(figures, "graph", calls)
    errors = {key[1]: figure.values for key, figure in found(figures).items()}
    assert errors == {"bad": ["RuntimeError: second"], "good": ["none"]}
    assert "second" in capsys.readouterr().err
