"""The benchmark of launches, and limits of their number per training step."""

import csv

import launches
import pytest
import torch
from _pretended import pretended

from skbsd import BSDClassifier


def per_step(case="MLP"):
    """Return launches per step by kind, without those that occur once per epoch."""
    few, many = (launches.measure(case, steps, pretended) for steps in (8, 16))
    return {kind: (16 * many[kind] - 8 * few[kind]) / 8 for kind in many} | {
        "graph": many["graph"]
    }


@pytest.fixture(scope="module")
def found():
    pytest.importorskip("triton")
    return per_step()


def test_step_has_no_more_launches_than_one_with_cross_entropy(found):
    # Forward 5, backward 10 and the optimizer's 2 are the same. Cross-entropy takes 5
    # more, of which 3 in the backward pass, and the posterior step 2.
    assert found["loop"] == 22
    assert found["eager"] <= found["loop"]


def test_replayed_step_is_one_launch(found):
    assert found["replayed"] == 1
    # To gather the batch takes 5 more, to count correct predictions 4, to write the
    # loss and the number of the step 2.
    assert found["graph"] <= found["eager"] + 11


def test_more_would_be_noticed(found, monkeypatch):
    class Wasteful(BSDClassifier):
        def train_step_single(self, batch, **fit_params):
            step = super().train_step_single(batch, **fit_params)
            for _ in range(4):
                batch.y + 1
            return step

    monkeypatch.setattr(launches, "BSDClassifier", Wasteful)
    more = per_step()
    assert more["eager"] == found["eager"] + 4 > more["loop"]
    assert more["graph"] == found["graph"] + 4 > found["eager"] + 11
    assert more["replayed"] == 1


def test_views_and_allocations_are_no_launches():
    with pretended() as device:
        x = torch.empty(4, 6, device="cuda")
        _ = x.t(), x[1:], x.view(-1), x.detach(), torch.empty_like(x), x.new_empty(3)
        _ = x.reshape(2, 12), x.split(2), x.expand(3, 4, 6), torch.ones(3) + 1
        assert device.launched == []
        _ = x + 1, x.clone(), x.half(), x.add_(1), torch.zeros_like(x)
    assert device.launched == ["add", "clone", "_to_copy", "add_", "zeros_like"]


def test_prints_and_writes_a_table(capsys, tmp_path):
    file = tmp_path / "launches.csv"
    launches.main(
        ["--pretend", "--cases", "MLP", "--steps", "8", "--output", str(file)]
    )
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[0] == "MLP"
    with file.open() as lines:
        (row,) = csv.DictReader(lines)
    assert [row[kind] for kind in ("loop", "eager", "replayed", "graph")] == line[1:]


@pytest.mark.parametrize("case", launches.CASES)
def test_cases_can_be_built(case):
    shape, n_classes, batch_size, parameters = launches.CASES[case]
    X, y = launches.data(shape, n_classes, batch_size)
    assert X.shape == (batch_size, *shape)
    assert set(y) == set(range(n_classes))
    BSDClassifier(**parameters)._validate_params()
