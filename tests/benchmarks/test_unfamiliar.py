import argparse
import math

import numpy as np
import pytest
import torch
import unfamiliar
from scipy.special import logsumexp, softmax

from skbsd.calibration import Calibration

ARGS = argparse.Namespace(data=None, npz=None)
Z = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.3]])


def test_scores():
    found = unfamiliar.scores(Z, Calibration(temperature=0.5))
    p, z = softmax(Z.numpy(), axis=1), Z.numpy()
    sharp = softmax(z / 0.5, axis=1)
    expected = {
        "probability": np.log(p.max(axis=1)),
        "calibrated probability": np.log(sharp.max(axis=1)),
        "entropy": (p * np.log(p)).sum(axis=1),
        "logit": z.max(axis=1),
        "energy": logsumexp(z, axis=1),
        "calibrated energy": logsumexp(z / 0.5, axis=1),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_aurocs():
    known, strange = {"s": torch.tensor([2.0, 3.0])}, {"s": torch.tensor([1.0, 2.5])}
    assert unfamiliar.aurocs(known, strange) == {"s": 0.75}


@pytest.mark.parametrize(("n", "held"), [(10, 4), (5, 2), (3, 1)])
def test_two_classes_at_least_are_learnt(n, held):
    assert len(set(unfamiliar.left_out(np.arange(n), 0))) == held


def test_panels_share_no_seed_and_no_name():
    tuning, final = unfamiliar.SEEDS.values()
    assert not {*tuning} & {*final}
    names = [{task.name for task in tasks} for tasks in unfamiliar.PANELS.values()]
    assert not names[0] & names[1]


def test_classes_that_are_left_out_are_not_learnt():
    task = unfamiliar.PANELS["tuning"][0]
    data = task.load(0, ARGS)
    assert len(set(data.y)) == 6
    assert len(data.X) == 500
    assert {kind: len(x) for kind, x in data.unfamiliar.items()}.keys() == {
        "classes",
        "shuffled",
        "noise",
    }
    shuffled = np.sort(data.unfamiliar["shuffled"], axis=0)
    np.testing.assert_array_equal(shuffled, np.sort(data.familiar, axis=0))
    noise = data.unfamiliar["noise"]
    assert (noise >= data.X.min(axis=0)).all()
    assert (noise <= data.X.max(axis=0)).all()


def test_run_goes_on_and_reports(tmp_path, capsys, monkeypatch):
    calls = []

    def measured(task, method, seed, args):
        calls.append((task.name, method, seed))
        scores = ("probability", "energy")
        return [(task.name, method, seed, "noise", name, 0.75) for name in scores]

    monkeypatch.setattr(unfamiliar, "measure", measured)
    file = tmp_path / "u.csv"
    arguments = ["tuning", "--tasks", "iris-n75", "--output", str(file)]
    assert unfamiliar.main(arguments) == 0
    seeds = unfamiliar.SEEDS["tuning"]
    assert sorted(calls) == [("iris-n75", m, s) for m in ("BSD", "CE") for s in seeds]
    assert unfamiliar.main(arguments) == 0
    assert len(calls) == 6
    assert "| iris-n75, noise | 75.0 ± 0.0 | 75.0 ± 0.0 |" in capsys.readouterr().out


def test_measure(monkeypatch):
    task = unfamiliar.PANELS["tuning"][2]
    monkeypatch.setitem(
        unfamiliar.METHODS, "CE", {"prior_strength": math.inf, "max_epochs": 2}
    )
    rows = unfamiliar.measure(task, "CE", 60, ARGS)
    assert len(rows) == 3 * 6
    assert all(0 <= float(row[-1]) <= 1 for row in rows)
