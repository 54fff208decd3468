"""A fit that was stopped at any time continues without a trace of it."""

import collections
import copy
import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from modules import Dropout, Images, Linear
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    LRScheduler,
)
from skorch.dataset import ValidSplit
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from skbsd import BSDClassifier, _files, _run
from skbsd._callback_state import UncoveredStateError
from skbsd._checkpoint import CheckpointError
from skbsd.callbacks import ProgressBar
from skbsd.contrastive import Contrastive
from skbsd.objectives import Objective

SPLIT = ValidSplit(5, stratified=True)


class Killed(BaseException):
    """Simulates the end of the process."""


@pytest.fixture
def killed_after(monkeypatch):
    """Return a function that ends the process after a number of files."""
    write = _files.write_atomically

    def after(n):
        written = []

        def dying(*args):
            write(*args)
            written.append(1)
            if len(written) == n:
                raise Killed

        monkeypatch.setattr(_files, "write_atomically", dying)

    yield after
    monkeypatch.undo()


def files(folder):
    return sorted(folder.glob("*"))


def history(model):
    return [{k: v for k, v in epoch.items() if k != "dur"} for epoch in model.history_]


def tensors_of(state):
    """Yield the tensors of nested data, in their order."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_of(value)


def assert_same(one, other):
    assert same_weights(one, other)
    assert history(one) == history(other)
    assert one.n_iter_ == other.n_iter_
    assert one.data_loading_ == other.data_loading_
    pairs = [
        (one.posterior_.state_dict(), other.posterior_.state_dict()),
        (one.optimizer_.state_dict(), other.optimizer_.state_dict()),
        (one._generators.states, other._generators.states),
    ]
    for mine, yours in pairs:
        for a, b in zip(tensors_of(mine), tensors_of(yours), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(
        one.optimizer_.param_groups, other.optimizer_.param_groups, strict=True
    ):
        assert {k: v for k, v in a.items() if k != "params"} == {
            k: v for k, v in b.items() if k != "params"
        }


SETTINGS = {
    "MLP": {},
    "SGD": {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
    "constant": {"lr_schedule": "constant", "optimizer": torch.optim.Adam},
    "LBFGS": {
        "optimizer": torch.optim.LBFGS,
        "optimizer__max_iter": 3,
        "lr": 0.1,
        "lr_schedule": "constant",
    },
    "dropout": {
        "module": Dropout,
        "module__in_features": 64,
        "module__out_features": 10,
    },
    "paper": {"prior_strength": 20, "discount": 0.9},
    "half store": {"posterior_dtype": "float16"},
    "compact store": {"posterior_dtype": "compact-4"},
    "validation": {"train_split": SPLIT},
    "stops early": {
        "train_split": SPLIT,
        "max_epochs": 12,
        "callbacks": [EarlyStopping(patience=2, threshold=0.3, load_best=True)],
    },
    "scheduler": {"callbacks": [LRScheduler("StepLR", step_size=2)]},
    "plateau": {
        "callbacks": [LRScheduler(ReduceLROnPlateau, monitor="train_loss", patience=0)]
    },
    "batches are watched": {
        "callbacks": [
            EpochScoring("accuracy", on_train=True, name="train_acc"),
            GradientNormClipping(0.5),
        ]
    },
    "frozen": {"callbacks": [Freezer("layers.0.*", at=2)]},
}


class TestGoesOn:
    @pytest.mark.parametrize("name", SETTINGS)
    def test_tables(self, name, digits, tmp_path, killed_after):
        X, y = digits[0][:400].reshape(400, 64) / 16, digits[1][:400]
        self.check({"max_epochs": 5} | SETTINGS[name], X, y, tmp_path, killed_after)

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"augmentation": "flip-crop"},
            {"augmentation": "strong", "optimizer": torch.optim.SGD},
            {"contrastive": 0.2, "augmentation": "flip-crop"},
            {"contrastive": Contrastive(supervised=True), "train_split": SPLIT},
        ],
    )
    def test_images(self, kwargs, uint8_digits, tmp_path, killed_after):
        X, y = uint8_digits[0][:300], uint8_digits[1][:300]
        self.check({"max_epochs": 3} | kwargs, X, y, tmp_path, killed_after)

    def test_weights(self, iris, tmp_path, killed_after):
        weight = np.arange(150) % 3
        kwargs = {"max_epochs": 4, "class_weight": "balanced"}
        self.check(kwargs, *iris, tmp_path, killed_after, sample_weight=weight)

    def test_datasets(self, iris, tmp_path, killed_after):
        data = Images(iris[0].astype(np.float32), iris[1])
        kwargs = {"module": Linear, "max_epochs": 4}
        self.check(kwargs, data, None, tmp_path, killed_after)

    @staticmethod
    def check(kwargs, X, y, folder, killed_after, **fit_params):
        expected = quick(**copy.deepcopy(kwargs)).fit(X, y, **fit_params)

        def fresh():
            return quick(checkpoint=folder, **copy.deepcopy(kwargs))

        for n in (1, 2):  # the second time it goes on, and is killed again
            killed_after(n)
            with pytest.raises(Killed):
                fresh().fit(X, y, **fit_params)
            assert len(files(folder)) == 1
        killed_after(0)
        model = fresh().fit(X, y, **fit_params)
        assert_same(model, expected)
        done = fresh().fit(X, y, **fit_params)
        assert_same(done, expected)
        assert_same(
            done.partial_fit(X, y, **fit_params),
            expected.partial_fit(X, y, **fit_params),
        )

    def test_partial_fit_of_a_stream(self, iris, tmp_path, killed_after):
        X, y = iris

        def stream(folder):
            model = quick(checkpoint=folder, max_epochs=2)
            for part in (slice(0, None, 2), slice(1, None, 2), slice(0, None, 2)):
                model.partial_fit(X[part], y[part], classes=[0, 1, 2])
            return model

        expected = stream(None)
        killed_after(5)  # two epochs and the end of the first part, and two more
        with pytest.raises(Killed):
            stream(tmp_path)
        killed_after(0)
        assert_same(stream(tmp_path), expected)

    def test_state_of_a_callback_of_ones_own(self, iris, tmp_path, killed_after):
        class Remembers(Callback):
            def __init__(self):
                self.losses = []

            def on_epoch_end(self, net, **kwargs):
                self.losses.append(net.history[-1, "train_loss"])

        killed_after(2)
        with pytest.raises(Killed):
            quick(checkpoint=tmp_path, callbacks=[Remembers()]).fit(*iris)
        killed_after(0)
        model = quick(checkpoint=tmp_path, callbacks=[Remembers()]).fit(*iris)
        assert (
            dict(model.callbacks_)["Remembers"].losses
            == model.history_[:, "train_loss"]
        )

    def test_after_an_interrupt(self, iris, tmp_path):
        """Ctrl-C leaves a usable model; the same call again trains the rest."""

        class Interrupts(Callback):
            pressed = False

            def on_batch_begin(self, net, **kwargs):
                if len(net.history) == 3 and not Interrupts.pressed:
                    Interrupts.pressed = True
                    raise KeyboardInterrupt

        kwargs = {"callbacks": [Interrupts], "max_epochs": 5}
        model = quick(checkpoint=tmp_path, **kwargs)
        with pytest.warns(UserWarning, match="interrupted in epoch 3 of 5"):
            model.fit(*iris)
        assert model.n_iter_ == 2
        assert model.fit(*iris).n_iter_ == 5
        assert_same(model, quick(**kwargs).fit(*iris))

    def test_an_objective_of_ones_own(self, iris, tmp_path, killed_after):
        def model(folder):
            return Averaging(checkpoint=folder, max_epochs=4, random_state=0)

        expected = model(None).fit(*iris)
        killed_after(2)
        with pytest.raises(Killed):
            model(tmp_path).fit(*iris)
        killed_after(0)
        assert_same(model(tmp_path).fit(*iris), expected)


class Average(Objective):
    """Cross-entropy, and the distance to a running mean of the predictions."""

    def begin(self, run):
        super().begin(run)
        n = len(run.posterior)
        self.mean = torch.full((n, run.n_classes), 1 / run.n_classes, dtype=run.dtype)

    def loss(self, logits, batch):
        past = self.mean[batch.rows]
        self.mean[batch.rows] = 0.9 * past + 0.1 * logits.detach().softmax(1)
        return F.cross_entropy(logits, batch.y) + F.mse_loss(logits.softmax(1), past)


class Covered(Average):
    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean.copy_(state["mean"])


class Averaging(BSDClassifier):
    def make_objective(self):
        return Covered()


class Forgetful(BSDClassifier):
    def make_objective(self):
        return Average()


class TestDone:
    def test_returns_at_once(self, iris, tmp_path, monkeypatch):
        quick(checkpoint=tmp_path).fit(*iris)

        def fail(*args):
            raise AssertionError("an epoch is run")

        monkeypatch.setattr(_run.Run, "_run_epoch", fail)
        assert quick(checkpoint=tmp_path).fit(*iris).n_iter_ == 3
        with pytest.raises(AssertionError, match="an epoch"):
            quick(checkpoint=tmp_path, lr=0.1).fit(*iris)

    @pytest.mark.parametrize(
        "change",
        [
            {"lr": 0.02},
            {"max_epochs": 4},
            {"random_state": 1},
            {"augmentation": lambda x: x},
            {"module": Linear},
            {"callbacks": [GradientNormClipping(0.1)]},
            {"prior_strength": 30},
        ],
    )
    def test_other_parameters_are_another_call(self, iris, tmp_path, change):
        for _ in range(2):
            quick(checkpoint=tmp_path).fit(*iris)
            quick(checkpoint=tmp_path, **change).fit(*iris)
        assert len(files(tmp_path)) == 2

    def test_other_data_are_another_call(self, iris, tmp_path):
        X, y = iris
        calls = [(X, y), (X[::-1], y[::-1]), (X[:100], y[:100] % 2), (X, (y + 1) % 3)]
        for X, y in calls:
            quick(checkpoint=tmp_path).fit(X, y)
        quick(checkpoint=tmp_path).fit(*calls[0], sample_weight=calls[0][1] + 1)
        quick(checkpoint=tmp_path, train_split=SPLIT).fit(*calls[0])
        assert len(files(tmp_path)) == 6

    def test_what_only_shows_is_the_same_call(self, iris, tmp_path, capsys):
        quick(checkpoint=tmp_path).fit(*iris)
        kwargs = {"verbose": 1, "callbacks": [ProgressBar()], "device": "cpu"}
        quick(checkpoint=str(tmp_path), **kwargs).fit(*iris)
        assert len(files(tmp_path)) == 1
        assert "Resumed: done after 3 of 3 epochs" in capsys.readouterr().out

    def test_a_search_that_was_killed_is_started_again(
        self, iris, tmp_path, killed_after
    ):
        def search():
            model = make_pipeline(StandardScaler(), quick(checkpoint=tmp_path))
            grid = {"bsdclassifier__prior_strength": [10.0, 100.0]}
            return GridSearchCV(model, grid, cv=2)

        killed_after(10)  # in the third of five fits, of four files each
        with pytest.raises(Killed):
            search().fit(*iris)
        assert len(files(tmp_path)) == 3
        written = []
        write = _files.write_atomically
        with pytest.MonkeyPatch.context() as patch:
            killed_after(0)
            patch.setattr(
                _files,
                "write_atomically",
                lambda *args: (write(*args), written.append(args[0])),
            )
            found = search().fit(*iris)
        assert len(files(tmp_path)) == 5
        assert len(written) == 5 * 4 - 10
        plain = make_pipeline(StandardScaler(), quick())
        grid = {"bsdclassifier__prior_strength": [10.0, 100.0]}
        expected = GridSearchCV(plain, grid, cv=2).fit(*iris)
        for key in ("mean_test_score", "split0_test_score"):
            assert (found.cv_results_[key] == expected.cv_results_[key]).all()

    def test_in_the_log_and_on_the_screen(
        self, iris, tmp_path, killed_after, capsys, caplog
    ):
        killed_after(1)
        with pytest.raises(Killed):
            quick(checkpoint=tmp_path).fit(*iris)
        killed_after(0)
        capsys.readouterr()
        with caplog.at_level(logging.INFO, logger="skbsd"):
            model = quick(checkpoint=tmp_path, callbacks=[ProgressBar()]).fit(*iris)
        (path,) = files(tmp_path)
        assert f"Resumed: epoch 2 of 3, from {path}" in caplog.text
        assert "epoch 3 of 3" in capsys.readouterr().err
        assert model.n_iter_ == 3


class TestErrors:
    def test_a_folder_that_cannot_be(self, iris, tmp_path):
        file = tmp_path / "file"
        file.write_text("")
        model = quick(checkpoint=file / "folder")
        with pytest.raises(CheckpointError, match="not a writable folder"):
            model.fit(*iris)
        with pytest.raises(CheckpointError, match=r"is a file; expected a folder"):
            model.set_params(checkpoint=file).fit(*iris)
        with pytest.raises(ValueError, match="name a folder, got ''"):
            model.set_params(checkpoint="").fit(*iris)
        assert not hasattr(model, "module_")

    def test_the_home_folder(self, iris, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        quick(checkpoint="~/runs").fit(*iris)
        assert len(files(tmp_path / "runs")) == 1

    def test_a_full_disk(self, iris, tmp_path, monkeypatch):
        fsync, calls = os.fsync, []

        def full(descriptor):
            calls.append(1)
            if len(calls) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        model = quick(checkpoint=tmp_path)
        with pytest.raises(CheckpointError, match=r"after epoch 2: .*No space left"):
            model.fit(*iris)
        assert model.n_iter_ == 2
        assert model.predict(iris[0]).shape == (150,)
        assert not model.module_.training
        monkeypatch.undo()
        assert len(files(tmp_path)) == 1  # the last good one, and no other
        assert_same(model.fit(*iris), quick().fit(*iris))

    @pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04N.", None])
    def test_a_damaged_file(self, iris, tmp_path, content):
        quick(checkpoint=tmp_path).fit(*iris)
        (path,) = files(tmp_path)
        content = path.read_bytes()[:-100] if content is None else content
        path.write_bytes(content)
        model = quick(checkpoint=tmp_path)
        with pytest.raises(CheckpointError, match=r"cannot be read.*Delete the file"):
            model.fit(*iris)
        assert path.read_bytes() == content
        assert not hasattr(model, "module_")

    def test_another_version(self, iris, tmp_path):
        quick(checkpoint=tmp_path).fit(*iris)
        (path,) = files(tmp_path)
        header, tensors = _files.read(path)
        header["versions"]["torch"] = "1.0"
        _files.write_atomically(path, tensors, header)
        with pytest.raises(CheckpointError, match=r"torch 1\.0.*this is"):
            quick(checkpoint=tmp_path).fit(*iris)

    def test_another_calls_file(self, iris, tmp_path):
        quick(checkpoint=tmp_path / "a").fit(*iris)
        quick(checkpoint=tmp_path / "b", lr=0.1).fit(*iris)
        (mine,), (other,) = files(tmp_path / "a"), files(tmp_path / "b")
        mine.write_bytes(other.read_bytes())
        with pytest.raises(CheckpointError, match="a call with other parameters"):
            quick(checkpoint=tmp_path / "a").fit(*iris)
        header, tensors = _files.read(other)
        _files.write_atomically(mine, tensors, header | {"kind": "model"})
        with pytest.raises(
            CheckpointError, match="not a checkpoint; its kind is 'model'"
        ):
            quick(checkpoint=tmp_path / "a").fit(*iris)

    def test_a_fitted_model_stays(self, iris, tmp_path):
        model = quick(checkpoint=tmp_path, warm_start=True).fit(*iris)
        before = pickle.dumps(model.module_.state_dict())
        (path,) = files(tmp_path)
        model.set_params(warm_start=False)
        path.write_bytes(b"")
        with pytest.raises(CheckpointError):
            quick(checkpoint=tmp_path, warm_start=True).fit(*iris)
        assert pickle.dumps(model.module_.state_dict()) == before

    def test_what_a_kill_has_left_is_removed(self, iris, tmp_path):
        quick(checkpoint=tmp_path).fit(*iris)
        (path,) = files(tmp_path)
        old, young = (tmp_path / f".{path.name}.{i}.tmp" for i in (1, 2))
        for temporary in (old, young):
            temporary.write_bytes(b"half")
        os.utime(old, (0, 0))
        quick(checkpoint=tmp_path).fit(*iris)
        assert {p.name for p in tmp_path.iterdir()} == {path.name, young.name}

    @pytest.mark.parametrize("value", [1, True, b"folder"])
    def test_parameter(self, iris, value):
        with pytest.raises(ValueError, match="checkpoint"):
            quick(checkpoint=value).fit(*iris)


class TestNotCovered:
    def test_an_objective_that_remembers(self, iris, tmp_path):
        model = Forgetful(checkpoint=tmp_path)
        with pytest.raises(
            UncoveredStateError, match=r"Average has changed .* mean.*None"
        ):
            model.fit(*iris)
        assert not hasattr(model, "module_")

    def test_a_callback_with_an_object(self, iris, tmp_path):
        class Keeps(Callback):
            def on_epoch_end(self, net, **kwargs):
                self.kept_ = object()

        with pytest.raises(UncoveredStateError, match=r"'Keeps'.*'kept_'.*state_dict"):
            quick(checkpoint=tmp_path, callbacks=[Keeps]).fit(*iris)

    @pytest.mark.parametrize("make", [set, lambda: [set()], collections.deque])
    def test_a_callback_whose_containers_change(self, iris, tmp_path, make):
        class Keeps(Callback):
            def on_train_begin(self, net, **kwargs):
                self.kept_ = make()

            def on_epoch_end(self, net, **kwargs):
                kept = self.kept_[0] if isinstance(self.kept_, list) else self.kept_
                add = kept.append if hasattr(kept, "append") else kept.add
                add(len(net.history))

        with pytest.raises(UncoveredStateError, match=r"'Keeps'.*'kept_'.*state_dict"):
            quick(checkpoint=tmp_path, callbacks=[Keeps]).fit(*iris)

    def test_an_objective_that_remembers_in_place(self, iris, tmp_path):
        class Counts(Objective):
            def __init__(self):
                self.total = {"n": 0}

            def loss(self, logits, batch):
                self.total["n"] += 1
                return F.cross_entropy(logits, batch.y) / self.total["n"]

        class Counting(BSDClassifier):
            def make_objective(self):
                return Counts()

        with pytest.raises(
            UncoveredStateError, match="Counts has changed its attributes total"
        ):
            Counting(checkpoint=tmp_path, max_epochs=2).fit(*iris)

    def test_a_callback_with_methods_for_it(self, iris, tmp_path, killed_after):
        class Keeps(Callback):
            def on_train_begin(self, net, **kwargs):
                self.kept_ = {1, 2}

            def state_dict(self):
                return {"kept": sorted(self.kept_)}

            def load_state_dict(self, state):
                self.kept_ = {*state["kept"], 3}

        killed_after(1)
        with pytest.raises(Killed):
            quick(checkpoint=tmp_path, callbacks=[Keeps]).fit(*iris)
        killed_after(0)
        model = quick(checkpoint=tmp_path, callbacks=[Keeps]).fit(*iris)
        assert dict(model.callbacks_)["Keeps"].kept_ == {1, 2, 3}

    def test_samplers(self, iris, tmp_path):
        sampler = torch.utils.data.RandomSampler(range(150))
        model = quick(checkpoint=tmp_path, iterator_train__sampler=sampler)
        with pytest.raises(UncoveredStateError, match="iterator_train__sampler"):
            model.fit(*iris)

    def test_a_second_network(self, iris, tmp_path):
        class Two(BSDClassifier):
            def initialize_module(self):
                super().initialize_module()
                self.second_ = Linear()
                return self

        with pytest.raises(UncoveredStateError, match="not second_ of Two"):
            Two(checkpoint=tmp_path).fit(*iris)


SCRIPT = """
import sys
from sklearn.datasets import load_digits
from skbsd import BSDClassifier
X, y = load_digits(return_X_y=True)
model = BSDClassifier(
    checkpoint=sys.argv[1],
    calibration=None,
    max_epochs=40,
    random_state=0,
    device="cpu",
)
print("begins", flush=True)
model.fit(X[:500], y[:500])
model.save_params(f_params=sys.argv[2])
"""


def test_kill_9(tmp_path):
    """At random moments; benchmarks/kills.py does it forty times, on more settings."""
    rng = np.random.default_rng(0)
    command = [sys.executable, "-c", SCRIPT, tmp_path / "run", tmp_path / "out.pt"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
        for path in Path(tmp_path / "run").glob("*.safetensors"):
            _files.read(path)
    else:
        subprocess.run(command, env=environment, check=True, capture_output=True)
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    expected = quick(max_epochs=40).fit(X[:500], y[:500])
    saved = torch.load(tmp_path / "out.pt")
    assert kills > 0
    for name, tensor in expected.module_.state_dict().items():
        assert torch.equal(saved[name], tensor)
