"""Callbacks that monitor validation scores raise an error without validation data."""

import pytest
from helpers import quick
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, EpochScoring
from skorch.callbacks import LRScheduler as Scheduler
from skorch.dataset import ValidSplit
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from skbsd import BSDClassifier


class Patient(EarlyStopping):
    """A callback with its own defaults and without hooks."""


class Recorder(Callback):
    """Records a score on its own data."""

    def on_epoch_end(self, net, **kwargs):
        net.history.record("valid_loss", 1.0)


class RecordingStop(EarlyStopping):
    def on_epoch_end(self, net, **kwargs):
        net.history.record("valid_loss", 1.0)
        super().on_epoch_end(net, **kwargs)


class RecordingClassifier(BSDClassifier):
    def on_epoch_end(self, net, **kwargs):
        super().on_epoch_end(net, **kwargs)
        net.history.record("valid_own", 1.0)


def plateau(monitor, policy=ReduceLROnPlateau, **kwargs):
    return Scheduler(policy, monitor=monitor, **kwargs)


REFUSED = [
    (EarlyStopping(), r"EarlyStopping monitors 'valid_loss'.*train_loss\""),
    (EarlyStopping, r"EarlyStopping monitors 'valid_loss'"),
    (("stop", EarlyStopping()), r"EarlyStopping 'stop' monitors 'valid_loss'"),
    (("stop", EarlyStopping), r"EarlyStopping 'stop' monitors 'valid_loss'"),
    (EarlyStopping("valid_acc"), r"EarlyStopping monitors 'valid_acc'"),
    (Patient(), r"Patient monitors 'valid_loss'"),
    (Checkpoint(), r"Checkpoint monitors 'valid_loss_best'.*train_loss_best\""),
    (Checkpoint, r"Checkpoint monitors 'valid_loss_best'"),
    (plateau("valid_loss"), r"LRScheduler monitors 'valid_loss'"),
    (plateau("valid_acc", "ReduceLROnPlateau"), r"LRScheduler monitors 'valid_acc'"),
]


class TestWithoutValidationData:
    @pytest.mark.parametrize(("callback", "message"), REFUSED)
    def test_refused(self, iris, callback, message):
        model = quick(callbacks=[callback])
        with pytest.raises(ValueError, match=message) as error:
            model.fit(*iris)
        assert "train_split=ValidSplit(5)" in str(error.value)
        assert not hasattr(model, "module_")

    def test_parameters_of_callbacks_count(self, iris, tmp_path):
        model = quick(
            callbacks=[EarlyStopping, ("save", Checkpoint(dirname=tmp_path))],
            callbacks__EarlyStopping__monitor="train_loss",
            callbacks__save__monitor="train_loss_best",
        ).fit(*iris)
        assert model.n_iter_ == 3
        model = quick(callbacks=[EarlyStopping()], callbacks__EarlyStopping=None)
        assert model.fit(*iris).n_iter_ == 3
        model = quick(callbacks=[("stop", EarlyStopping("train_loss"))])
        model.set_params(callbacks__stop__monitor="valid_acc")
        with pytest.raises(ValueError, match="'stop' monitors 'valid_acc'"):
            model.fit(*iris)

    @pytest.mark.parametrize(
        "callbacks",
        [
            "disable",
            None,
            [EarlyStopping("train_loss")],
            [("stop", EarlyStopping("train_loss"))],
            [Checkpoint(monitor=None)],
            [Checkpoint(monitor="train_loss_best")],
            [Checkpoint(monitor=lambda net: False)],
            [plateau(lambda net: 1.0)],
            [plateau("valid_loss", StepLR, step_size=1)],
            [Recorder, EarlyStopping()],
            [RecordingStop()],
            [
                EpochScoring("accuracy", name="valid_fit", on_train=True),
                EarlyStopping("valid_fit", lower_is_better=False),
                Checkpoint("valid_fit_best"),
            ],
        ],
    )
    def test_accepted(self, iris, callbacks, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # where checkpoints go
        assert quick(callbacks=callbacks).fit(*iris).n_iter_ == 3

    def test_scores_that_a_subclass_records(self, iris):
        model = RecordingClassifier(
            max_epochs=3, callbacks=[EarlyStopping("valid_own")], random_state=0
        )
        assert model.fit(*iris).n_iter_ == 3

    def test_partial_fit_runs_the_callbacks_that_it_has(self, iris):
        model = quick(callbacks=[EarlyStopping()], train_split=ValidSplit(5))
        model.fit(*iris).set_params(train_split=None)
        with pytest.raises(ValueError, match="EarlyStopping monitors 'valid_loss'"):
            model.partial_fit(*iris)
        assert model.n_iter_ == 3


def test_with_validation_data(iris, tmp_path):
    callbacks = [EarlyStopping(), Checkpoint(dirname=tmp_path), plateau("valid_loss")]
    model = quick(callbacks=callbacks, train_split=ValidSplit(5)).fit(*iris)
    assert model.n_iter_ == 3
