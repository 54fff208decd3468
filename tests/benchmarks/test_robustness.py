import csv
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import robustness
import torch
from _panel import CELLS, Split
from _panel import SEEDS as PANEL_SEEDS
from robustness import CORRUPTED, TASKS, Figures, Task
from torch import nn

STUB = """
import numpy as np
import torch
from torch import nn

fits = []


class Stub:
    device_ = "cpu"
    image_mean_, image_std_ = np.full(3, 128.0), np.full(3, 64.0)

    def __init__(self, name, random_state, **kwargs):
        self.name, self.seed = name, random_state

    def fit(self, X, y):
        fits.append((self.name, self.seed))
        if self.name == "fails":
            raise RuntimeError("on purpose")
        self.classes_ = np.unique(y)
        torch.manual_seed(self.seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3072, len(self.classes_)))
        self.network = network
        if self.name != "hidden":
            self.module_ = network
        return self

    @torch.no_grad()
    def predict_proba(self, X):
        x = (torch.tensor(X).float() - 128) / 64
        return self.network(x).softmax(dim=1).numpy()

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def method(name):
    return lambda **kwargs: Stub(name, **kwargs)


METHODS = {name: method(name) for name in ("CE", "BSD", "hidden", "fails")}
"""


def generator():
    return np.random.default_rng(0)


def test_flip_probability():
    predicted = np.array([[0, 5], [0, 5], [1, 5], [0, 6]])  # two images, four frames
    by_step = robustness.flip_probability(predicted, from_first=False)
    assert by_step == pytest.approx((0 + 1 + 1 + 0 + 0 + 1) / 6)
    from_first = robustness.flip_probability(predicted, from_first=True)
    assert from_first == pytest.approx((0 + 1 + 0 + 0 + 0 + 1) / 6)


def test_auroc_is_large_where_the_network_is_sure_of_what_it_knows():
    sure, unsure = np.eye(3)[[0, 1, 2]], np.full((3, 3), 1 / 3)
    assert set(robustness.separation(sure, unsure).values()) == {1.0}
    assert set(robustness.separation(unsure, sure).values()) == {0.0}
    assert set(robustness.separation(sure, sure).values()) == {0.5}


def linear_model(weights):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        network[1].weight[:] = torch.tensor(weights)
        network[1].bias.zero_()
    return SimpleNamespace(
        module_=network,
        image_mean_=np.array([100.0, 120.0, 140.0]),
        image_std_=np.array([50.0, 60.0, 70.0]),
        device_="cpu",
        classes_=np.array([3, 5, 8]),
    )


@pytest.mark.parametrize("scale", [0.1, 1e4])  # the latter's probabilities are 0 and 1
def test_gradient_sign_is_that_of_a_linear_model(scale):
    rng = generator()
    weights = scale * rng.standard_normal((3, 12))
    images = rng.integers(0, 256, (50, 3, 2, 2), dtype=np.uint8)
    labels = rng.choice([3, 5, 8], 50)
    model = linear_model(weights)
    signs = robustness.gradient_sign(model, images, labels, batch_size=20)

    x = (images - model.image_mean_[:, None, None]) / model.image_std_[:, None, None]
    logits = x.reshape(50, 12) @ weights.T
    own = np.searchsorted(model.classes_, labels)
    logits[np.arange(50), own] = -np.inf
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    gradient = (share @ weights - weights[own]).reshape(images.shape)
    # A channel's standard deviation is positive: it does not change the sign.
    clear = np.abs(gradient) > 1e-4 * scale
    np.testing.assert_array_equal(signs[clear], np.sign(gradient)[clear])
    assert clear.mean() > 0.99


def test_gradient_sign_is_taken_in_evaluation_mode_which_it_puts_back():
    model = linear_model(generator().standard_normal((3, 12)))
    model.module_.insert(1, nn.Dropout(0.9))
    images = generator().integers(0, 256, (5, 3, 2, 2), dtype=np.uint8)
    model.module_.train()
    one, same = (
        robustness.gradient_sign(model, images, [3, 5, 8, 3, 5]) for _ in range(2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != 0).all()
    assert model.module_.training
    assert model.module_[2].weight.grad is None


def test_attack_moves_each_value_by_the_step_within_the_levels():
    weights = np.zeros((3, 12))
    weights[0], weights[1] = 1, -1
    images = np.array([0, 2, 100, 254, 255, 128] * 4, np.uint8).reshape(2, 3, 2, 2)
    model = linear_model(weights)
    moved = robustness.attack(model, images, [3, 5], 4)
    assert moved.dtype == np.uint8
    # Against the first class all values fall, against the second they rise.
    np.testing.assert_array_equal(moved[0], np.maximum(images[0].astype(int) - 4, 0))
    np.testing.assert_array_equal(moved[1], np.minimum(images[1].astype(int) + 4, 255))


def test_a_task_draws_the_same_each_time_and_others_something_else():
    draws = {task: task.rng().integers(2**62) for task in TASKS}
    assert len(set(draws.values())) == len(TASKS) == 1 + 75 + 4 + 3 + 3
    assert draws[TASKS[5]] == TASKS[5].rng().integers(2**62)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Run the script with stubs instead of networks, and return the figures."""
    (tmp_path / "stubs_of_robustness.py").write_text(STUB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(robustness, "stop_at_interrupt", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.delitem(sys.modules, "stubs_of_robustness", raising=False)
    X = generator().integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    y = np.arange(12) % 3

    def load(cell, seed, source):
        return [Split(X, y, y, X[: cell.n_test], y[: cell.n_test])]

    monkeypatch.setattr(robustness, "load", load)
    file = tmp_path / "results.csv"

    def run(*arguments):
        given = ["--registry", "stubs_of_robustness", "--output", str(file)]
        result = robustness.main([*given, "--test-images", "9", *arguments])
        return result, Figures(file, robustness.DEFAULT)

    run.file = file
    return run


def fits():
    return sys.modules["stubs_of_robustness"].fits


def test_from_end_to_end(program, tmp_path, capsys):
    arguments = ["--methods", "BSD", "CE", "--seeds", "30", "31"]
    tables = tmp_path / "deep" / "tables"
    result, figures = program(*arguments, "--tables", str(tables))
    assert result == 0
    assert fits() == [("BSD", 30), ("CE", 30), ("BSD", 31), ("CE", 31)]
    with program.file.open(newline="") as lines:
        rows = [*csv.DictReader(lines)]
    assert len(rows) == 4 * (3 + 75 * 2 + 4 * 2 + 3 + 3 * 2)
    values = [float(row["value"]) for row in rows if row["metric"] != "test_images"]
    assert 0 <= min(values) < max(values) <= 1
    assert figures.missing("CE", 30) == []
    # Stubs of the same seed are the same, so that no difference is left.
    text = (tables / "robustness.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    head, first = (
        next(line for line in text.splitlines() if line.startswith(start))
        for start in ("| %", "| unchanged: accuracy")
    )
    assert head == "| % | CE | BSD | BSD − CE |"
    assert first.endswith("| +0.00 ± 0.00 |")
    assert "the first 9 test images" in text
    for title in ("Accuracy by corruption", "Flip probability", "AUROC"):
        assert f"## {title}" in text

    before = program.file.read_bytes()
    assert program(*arguments)[0] == 0
    assert len(fits()) == 4
    assert program.file.read_bytes() == before
    program("--methods", "CE", "--seeds", "32")
    assert fits()[4:] == [("CE", 32)]


def test_what_was_stopped_goes_on_where_it_was(program):
    arguments = ["--methods", "CE", "BSD", "--seeds", "30"]
    program(*arguments)
    whole = program.file.read_bytes()
    # In the middle of a line, and between two figures of a task.
    program.file.write_bytes(whole[: len(whole) // 2])
    assert program("--report")[0] == 0
    result, figures = program(*arguments)
    assert result == 0
    assert len(fits()) == 4
    assert sorted(program.file.read_bytes().split()) == sorted(whole.split())
    assert not figures.missing("CE", 30) + figures.missing("BSD", 30)


def test_a_method_that_fails_is_named_and_the_others_go_on(program, capsys):
    result, figures = program("--methods", "fails", "CE", "--seeds", "30")
    assert result == 1
    assert figures.methods() == ["CE"]
    out = capsys.readouterr().out
    assert "RuntimeError: on purpose" in out
    assert "failed: ('fails', 30)" in out
    assert program("--methods", "CE", "--seeds", "30")[0] == 0
    assert fits().count(("CE", 30)) == 1


def test_a_method_without_a_network_is_not_attacked(program):
    _, figures = program("--methods", "hidden", "--seeds", "30")
    run = figures.values["hidden", 30]
    assert math.isnan(run[Task("adversarial", "fgsm", 4), "accuracy"])
    assert not math.isnan(run[CORRUPTED[0], "ece"])
    assert figures.missing("hidden", 30) == []


def test_another_number_of_test_images_is_refused(program):
    program("--methods", "CE", "--seeds", "30")
    with pytest.raises(SystemExit, match=r"has results with \[9\] test images"):
        program("--methods", "CE", "--seeds", "31", "--test-images", "8")
    assert program("--report", "--test-images", "8")[0] == 0


def test_unknown_methods_and_empty_reports(program, capsys):
    with pytest.raises(SystemExit, match=r"no such method: \['other'\]"):
        program("--methods", "other")
    assert program("--report")[0] == 0
    assert "no results yet" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        program("--test-images", "10001")


def test_only_seeds_with_all_figures_count(tmp_path):
    file = tmp_path / "results.csv"
    results = robustness.Results(file, robustness.COLUMNS)
    cell = robustness.DEFAULT
    some = CORRUPTED[:2]
    for seed, tasks in ((0, some), (1, some), (2, some[:1])):
        for i, task in enumerate(tasks):
            for method, shift in (("CE", 0.0), ("BSD", 0.1 * (seed + 1))):
                value = 0.2 * (i + 1) + 0.1 * seed + shift
                results.add(method, seed, cell, *task, "accuracy", value)
    results.add("CE", 0, "another cell", *some[0], "accuracy", 9.0)
    figures = Figures(file, cell)
    means = figures.means("CE", some, "accuracy")
    assert means == {0: pytest.approx(0.3), 1: pytest.approx(0.4)}
    line = robustness.table("title", [("both", some, "accuracy")], figures)[-2]
    assert line == "| both | 35.00 ± 7.07 | 50.00 ± 14.14 | +15.00 ± 7.07 |"
    assert figures.means("ELR", some, "accuracy") == {}
    assert figures.missing("CE", 2) == TASKS  # ece is not there


def test_cells_have_images_and_seeds_of_their_own():
    assert not set(robustness.SEEDS) & {
        s for used in PANEL_SEEDS.values() for s in used
    }
    assert all("mlp" not in name for name in robustness.IMAGE_CELLS)
    assert len(robustness.IMAGE_CELLS) == sum(
        cell.dataset == "cifar10" and "mlp" not in cell.network
        for cell in CELLS.values()
    )
