"""Several processes train one network, as one process would.

Two of them, on the CPU, go through the scenarios of ranks_script.py once.
"""

import operator
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks_script
from helpers import quick
from ranks_script import SCENARIOS, digits
from sklearn.model_selection import cross_val_score

from skbsd import _fitted_state, _launch
from skbsd._batches import ResidentBatches, Share
from skbsd._launch import _sendable
from skbsd._loading import Split, checked_data
from skbsd._parts import _dealt, part_for
from skbsd._ranks import OneRank, RankError, n_taking_part
from skbsd._replica import synchronised_norms
from skbsd.callbacks import ProgressBar
from skbsd.label_noise import label_quality
from skbsd.networks import SmallResNet

TESTS = Path(__file__).parent
ALONE = ("alone", "late", "few_samples", "failing", "kept_in_parts")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return the results of each scenario in each of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.raises(RuntimeError, match="stopped by a callback"):
        quick(
            max_epochs=4, checkpoint=folder / "of-one", callbacks=[ranks_script.Stop()]
        ).fit(*digits())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", str(TESTS / "ranks_script.py"), str(folder)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    both = [pickle.loads((folder / f"outcomes-{r}.pkl").read_bytes()) for r in (0, 1)]
    found = {name: tuple(part[name] for part in both) for name in SCENARIOS}
    return found | {"folder": folder}


def in_one_process(name, parts, monkeypatch):
    """Train in one process with the batches of two processes."""
    orders = iter(zip(*(part["orders"] for part in parts), strict=True))

    def dealt(self):
        order = np.empty(len(self.rows), dtype=np.int64)
        share = [OneRank(), OneRank()]
        share[1].rank = 1
        for rank, local in enumerate(next(orders)):
            share[rank].size = 2
            rows = self.rows.numpy()
            codes = self.y.numpy()
            order[rank::2] = _dealt(codes, rows, share[rank])[local]
        return self.rows.new_tensor(order)

    monkeypatch.setattr(ResidentBatches, "draw", dealt)
    return SCENARIOS[name]()


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("double", 1e-10),
        ("lbfgs", 1e-10),
        ("table", 1e-5),
        ("weighted", 1e-5),
        ("noisy", 1e-5),
        ("uneven", 1e-5),
        ("unused", 1e-5),
        ("frozen", 1e-5),
        ("gradients", 1e-5),
    ],
)
def test_learns_what_one_process_learns(outcomes, name, tolerance, monkeypatch):
    both = outcomes[name]
    one = in_one_process(name, both, monkeypatch)
    for found in both:
        for mine, other in zip(one["weights"], found["weights"], strict=True):
            np.testing.assert_allclose(other, mine, atol=tolerance, rtol=tolerance)
        largest = np.abs(one["posterior"]).max()
        np.testing.assert_allclose(
            found["posterior"], one["posterior"], atol=tolerance * largest, rtol=0
        )
        np.testing.assert_array_equal(found["visits"], one["visits"])
        np.testing.assert_allclose(found["losses"], one["losses"], rtol=10 * tolerance)
        assert found["sizes"] == one["sizes"]
        assert found["agreement"].n_epochs == one["agreement"].n_epochs
        assert found["agreement"].mean == pytest.approx(one["agreement"].mean, 1e-6)


@pytest.mark.parametrize("name", [n for n in SCENARIOS if n not in ALONE])
def test_all_processes_have_the_same_model(outcomes, name):
    first, second = (dict(part) for part in outcomes[name])
    for part in (first, second):
        part.pop("orders")
    assert first.pop("warnings", None) is not None or name != "interrupted"
    second.pop("warnings", None)
    texts = [part.pop("texts", None) for part in (first, second)]
    assert texts[0] == texts[1]
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_equal(second[key], value, err_msg=key)
    assert all(np.isfinite(w).all() for w in first["weights"])


def test_processes_draw_different_orders(outcomes):
    first, second = (part["orders"] for part in outcomes["network"])
    n = min(len(first[0]), len(second[0]))
    assert (first[0][:n] != second[0][:n]).any()


def test_validates_on_all_samples(outcomes):
    found = outcomes["validation"][0]
    assert found["accuracy"] == pytest.approx(found["valid_acc"])
    assert found["n_valid"] == 101
    # skorch's scores are of all samples too.
    np.testing.assert_allclose(found["valid_nll"], -np.array(found["valid_loss"]), 1e-5)
    # The score that stops it and the scheduler are the first process's.
    assert found["epochs"] < 6
    assert found["rates"][0] < 1e-2


def test_beliefs_are_whole_after_a_divergence(outcomes):
    for part in outcomes["diverging"]:
        assert len(part["posterior"]) == ranks_script.N_DIGITS
        assert not part["has_rows"]
        assert part["epochs"] == 1


def test_validates_on_a_single_sample(outcomes):
    assert np.isfinite(outcomes["few_to_validate"][0]["valid_loss"]).all()


def test_follows_a_callback_of_the_first_process(outcomes):
    for part in outcomes["users_callback"]:
        assert part["rates"] == [0.01 / 2**3] or part["rates"] == [0.01 / 2**2]
        assert len(part["callbacks"]) == 6  # skorch's five and the user's


def test_goes_on_with_the_same_beliefs(outcomes):
    assert set(outcomes["further"][0]["visits"]) == {6}


def test_beliefs_can_be_left_in_parts(outcomes):
    parts = outcomes["kept_in_parts"]
    rows = np.concatenate([part["rows"] for part in parts])
    np.testing.assert_array_equal(np.sort(rows), np.arange(ranks_script.N_DIGITS))
    for part in parts:
        assert len(part["posterior"]) == len(part["rows"])
        assert set(part["visits"]) == {6}


def test_too_few_samples_are_trained_by_fewer_processes(outcomes):
    first, second = outcomes["few_samples"]
    for found in (first, second, second["again"]):
        np.testing.assert_equal(found["weights"], first["weights"])
        np.testing.assert_equal(found["posterior"], first["posterior"])
        assert found["epochs"] == 3


def test_a_process_says_whom_it_waits_for(outcomes):
    first, second = outcomes["late"]
    assert (
        "process 0 of 2 (by rank) waits for process 1 to call fit" in first["said"][0]
    )
    assert second["said"] == []


def test_each_process_can_train_by_itself(outcomes):
    first, second = outcomes["alone"]
    np.testing.assert_equal(first["weights"], SCENARIOS["alone"]()["weights"])
    assert len(second["posterior"]) == len(first["posterior"]) - 1


def test_continues_a_checkpoint_of_one_process(outcomes):
    for part in outcomes["resumed"]:
        assert part["epochs"] == 4
        assert set(part["visits"]) == {4}
        # One process has finished an epoch, and failed in the second.
        assert len(part["orders"]) == 3


def test_an_interrupt_stops_all_after_the_same_step(outcomes):
    first, second = outcomes["interrupted"]
    assert "interrupted in epoch" in first["warnings"][0]
    assert second["warnings"] == []
    assert first["epochs"] == second["epochs"] < 3
    # Asked for after each 32 steps, it ends the second epoch after 35 of 125.
    assert first["visits"].sum() == ranks_script.N_DIGITS + 35 * 4
    np.testing.assert_equal(first["weights"], second["weights"])


def test_refuses_what_cannot_be_dealt_out(outcomes):
    order, norm, data, rate = outcomes["refused"][0]["texts"]
    assert "iterator_train sets the order of the samples" in order
    assert "sync_batch_norm=True needs GPUs" in norm
    assert "process 1 of 2 (by rank) was given other data" in data
    assert "process 1 of 2 (by rank) was given other values of lr" in rate


def test_a_process_that_fails_is_named_by_the_others(outcomes):
    first, second = outcomes["failing"]
    assert first["error"] == "RuntimeError: stopped by a callback"
    assert second["error"] == (
        "RankError: process 0 of 2 (by rank) failed with RuntimeError: stopped by a "
        "callback"
    )
    for part in (first, second):
        assert "restart the script" in part["again"]


def test_one_process_continues_a_checkpoint_of_two(outcomes):
    model = quick(max_epochs=4, checkpoint=outcomes["folder"] / "of-two")
    with pytest.MonkeyPatch.context() as patch:
        orders = []
        draw = ResidentBatches.draw
        patch.setattr(
            ResidentBatches, "draw", lambda self: orders.append(1) or draw(self)
        )
        model.fit(*digits())
    assert model.n_iter_ == 4
    # The epoch that the callback has failed in is trained again.
    assert len(orders) == 3
    assert set(model.posterior_.visits.tolist()) == {4}


class Dying(ranks_script.nn.Module):
    """Kills the second process in its first step."""

    def __init__(self):
        super().__init__()
        self.layer = ranks_script.nn.Linear(64, 10)

    def forward(self, x):
        if os.environ.get("RANK") == "1" and self.training:
            os.kill(os.getpid(), 9)
        return self.layer(x)


def test_devices_starts_processes(capsys):
    X, y = digits()
    state = np.random.RandomState(0)
    model = quick(
        devices=2,
        module=ranks_script.Unused,
        verbose=1,
        random_state=state,
        callbacks=[ProgressBar()],
    ).fit(X, y)
    assert isinstance(model.module_, ranks_script.Unused)
    assert set(model.posterior_.visits.tolist()) == {3}
    assert model.n_iter_ == 3
    assert model.score(X, y) > 0.5
    shown = capsys.readouterr()
    assert "Training data: on cpu" in shown.out
    assert "epoch 3 of 3" in shown.err
    # It has drawn a seed, as a call without processes does.
    assert state.randint(100) != np.random.RandomState(0).randint(100)
    assert not {"posterior_rows_", "_run"} & vars(model).keys()
    pickle.loads(pickle.dumps(model)).predict(X)
    assert len(label_quality(model)) == len(y)


def test_contexts_of_a_search_are_its_own(iris):
    """scikit-learn, from 1.9 on, keeps them on the estimators that it fits."""
    packed = _fitted_state.pack(quick(max_epochs=1).fit(*iris))
    model, context = quick(max_epochs=1), object()
    model._parent_callback_ctx = context
    model._skl_callbacks = callbacks = [object()]
    _fitted_state.unpack(model, packed)
    assert model._parent_callback_ctx is context
    assert model._skl_callbacks is callbacks
    assert model.n_iter_ == 1


def test_an_interrupt_ends_a_search_whose_fits_start_processes(monkeypatch):
    fits = []

    def interrupted(processes):
        fits.append(processes)
        for process in processes:
            process.wait()
        return {}, True

    monkeypatch.setattr(_launch, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(quick(devices=2, max_epochs=1), *digits(), cv=2)
    assert len(fits) == 1


def test_an_error_of_any_kind_can_be_passed_on():
    class Odd(Exception):
        def __init__(self, one, other):
            super().__init__(f"{one} and {other}")

    try:
        raise Odd("this", "that")
    except Odd as error:
        sent = pickle.loads(pickle.dumps(_sendable(error)))
    assert type(sent) is RuntimeError
    assert str(sent) == "Odd: this and that"
    assert 'raise Odd("this", "that")' in sent.__notes__[0]


def test_a_process_ends_with_the_one_that_has_started_it(tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "X.npy").touch()
    code = (
        "import sys; from pathlib import Path; from skbsd import _launch; "
        "_launch._end_with_parent(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as one:
        one.stdin.close()
        assert one.wait(60) == 1
    assert not folder.exists()


def test_batch_norms_are_exchanged_and_put_back():
    """SyncBatchNorm computes on GPUs only, but its buffers can be tested without."""
    module = SmallResNet(1, 10, widths=(4,)).train()
    before = dict(module.named_modules())
    parameters = list(module.parameters())
    statistics = dict(module.named_buffers())
    ranks = OneRank()
    ranks.size = 2
    with synchronised_norms(module, ranks):
        kinds = [type(m).__name__ for m in module.modules()]
        assert "SyncBatchNorm" in kinds
        assert "BatchNorm2d" not in kinds
        assert all(map(operator.is_, module.parameters(), parameters))
        for name, buffer in module.named_buffers():
            assert buffer is statistics[name]
        module.eval()
    assert dict(module.named_modules()) == before
    assert not any(m.training for m in module.modules())


def test_devices_names_a_process_that_dies():
    X, y = digits()
    model = quick(devices=2, module=Dying)
    with pytest.raises(RankError, match=r"process 1 of 2 .* died by SIGKILL"):
        model.fit(X, y)
    assert not hasattr(model, "module_")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"devices": 0}, "'devices' parameter"),
        ({"devices": "some"}, "'devices' parameter"),
        ({"devices": 2, "device": "cuda:0"}, "names one device"),
    ],
)
def test_devices_are_checked(options, text):
    with pytest.raises(ValueError, match=text):
        quick(**options).fit(*digits())


def test_several_devices_need_no_process_where_there_is_one():
    X, y = digits()
    one = quick(devices="all", device="cpu").fit(X, y)
    np.testing.assert_array_equal(
        one.predict_proba(X), quick().fit(X, y).predict_proba(X)
    )


@pytest.mark.parametrize("batch_size", [1, 7, 33, 128, 501, 600])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_make_up_the_batches(size, batch_size):
    n = 501
    shares = [Share(n, rank, size) for rank in range(size)]
    totals = shares[0].totals(batch_size)
    assert sum(totals) == n
    sums = [sum(share.sizes(batch_size)) for share in shares]
    assert sum(sums) == n
    assert max(sums) - min(sums) <= 1
    if batch_size >= 2 * size:
        parts = np.array([share.sizes(batch_size) for share in shares])
        np.testing.assert_array_equal(parts.sum(axis=0), totals)
        assert parts.min() >= 2
        assert (parts.max(axis=0) - parts.min(axis=0)).max() <= 1


def test_classes_are_dealt_evenly():
    y = np.arange(100) % 2  # in turn, as ranks are
    data = checked_data(
        np.arange(100.0)[:, None],
        y,
        None,
        class_weight=None,
        classes=None,
        image_shape=None,
        caller="test",
    )
    ranks = OneRank()
    ranks.size = 2
    part = part_for(data, Split(np.arange(100), None, None, {}), ranks)
    assert np.bincount(part.data.codes).tolist() == [25, 25]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((8, 1000, 128), 8), ((8, 1000, 4), 2), ((8, 5, 128), 2), ((2, 1, -1), 1)],
)
def test_processes_have_two_samples_of_each_batch(arguments, expected):
    assert n_taking_part(*arguments) == expected
