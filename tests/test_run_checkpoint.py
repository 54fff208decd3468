"""A call with more epochs continues from one with fewer epochs."""

import copy

import pytest
import torch
from helpers import quick, same_weights
from modules import Linear
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingGridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from test_checkpoint import assert_same

from skbsd import BSDClassifier, _run
from skbsd.callbacks import ProgressBar

SPLIT = ValidSplit(5, stratified=True)
CONSTANT = {"lr_schedule": "constant"}


@pytest.fixture
def epochs(monkeypatch):
    """Count the epochs that are run."""
    run_epoch, count = _run.Run._run_epoch, []

    def counted(run):
        count.append(run.epoch)
        return run_epoch(run)

    monkeypatch.setattr(_run.Run, "_run_epoch", counted)
    return count


def after(n_epochs, folder, data, **kwargs):
    """Fit for some epochs."""
    model = quick(max_epochs=n_epochs, checkpoint=folder, **copy.deepcopy(kwargs))
    return model.fit(*data)


CONTINUES = {
    "constant": CONSTANT,
    "one-cycle": {"schedule_epochs": 6},
    "cosine": {"schedule_epochs": 9, "lr_schedule": "cosine", "random_state": 3},
    "SGD": {
        "optimizer": torch.optim.SGD,
        "optimizer__momentum": 0.9,
        "schedule_epochs": 6,
    },
    "noisy": {"prior_strength": "noisy", "schedule_epochs": 6},
    "paper": {"prior_strength": 20.0, "discount": 0.96, **CONSTANT},
    "module": {"module": Linear, **CONSTANT},
    "hold-out": {"calibration": "hold-out", "schedule_epochs": 6},
    "validation": {"train_split": SPLIT, **CONSTANT},
    "callbacks": {
        "callbacks": [
            LRScheduler("StepLR", step_size=2),
            EpochScoring("accuracy", on_train=True, name="train_acc"),
        ]
    },
    "shows": {"callbacks": [ProgressBar()], **CONSTANT},
}


class TestContinues:
    @pytest.mark.parametrize("name", CONTINUES)
    def test_bit_for_bit(self, name, iris, tmp_path, epochs):
        kwargs = CONTINUES[name]
        expected = after(6, None, iris, **kwargs)
        del epochs[:]
        for n_epochs in (1, 3, 6):
            model = after(n_epochs, tmp_path, iris, **kwargs)
            assert model.n_iter_ == n_epochs
        assert epochs == [0, 1, 2, 3, 4, 5]
        assert_same(model, expected)
        if kwargs.get("calibration"):
            assert model.temperature_ == expected.temperature_
        # Each call has its own file, and returns at once.
        for n_epochs in (6, 1, 3):
            assert after(n_epochs, tmp_path, iris, **kwargs).n_iter_ == n_epochs
        assert len(epochs) == 6
        more = model.partial_fit(*iris)
        assert_same(more, expected.partial_fit(*iris))

    @pytest.mark.parametrize("calibration", ["hold-out", "cross-fit"])
    def test_a_brief_beginning_of_what_is_not_brief(
        self, iris, tmp_path, epochs, calibration
    ):
        """By the rule of the whole."""
        kwargs = {"calibration": calibration, "schedule_epochs": 20, "lr": 0.01}
        finals = []
        for n_epochs in (4, 20):
            del epochs[:]
            model = after(n_epochs, tmp_path, iris, **kwargs)
            finals.append(epochs[-(n_epochs - sum(map(len, finals))) :])
        assert finals == [[0, 1, 2, 3], list(range(4, 20))]
        assert_same(model, after(20, None, iris, **kwargs))

    @pytest.mark.parametrize("augmentation", [None, "flip-crop"])
    def test_images(self, uint8_digits, tmp_path, epochs, augmentation):
        data = uint8_digits[0][:100], uint8_digits[1][:100]
        kwargs = {"augmentation": augmentation, "contrastive": 0.2, **CONSTANT}
        expected = after(3, None, data, **kwargs)
        after(1, tmp_path, data, **kwargs)
        del epochs[:]
        assert_same(after(3, tmp_path, data, **kwargs), expected)
        assert epochs == [1, 2]

    def test_from_the_longest(self, iris, tmp_path, epochs):
        for n_epochs in (2, 4, 3, 5):
            after(n_epochs, tmp_path, iris, **CONSTANT)
        assert epochs == [0, 1, 2, 3, 2, 4]

    def test_partial_fit(self, iris, tmp_path, epochs):
        def twice(folder, n_epochs):
            model = after(2, folder, iris, **CONSTANT)
            return model.set_params(max_epochs=n_epochs).partial_fit(*iris)

        expected = twice(None, 4)
        twice(tmp_path, 1)
        del epochs[:]
        assert_same(twice(tmp_path, 4), expected)
        assert epochs == [1, 2, 3]

    @pytest.mark.parametrize("shorter", [3, 4])
    def test_one_that_a_callback_has_stopped(self, iris, tmp_path, epochs, shorter):
        """Also if it was stopped in its last epoch."""
        stopping = EarlyStopping("train_loss", patience=2, threshold=0.9)
        kwargs = {"callbacks": [stopping], **CONSTANT}
        expected = after(8, None, iris, **kwargs)
        n_run = expected.n_iter_
        assert n_run == 3
        after(shorter, tmp_path, iris, **kwargs)
        del epochs[:]
        assert_same(after(8, tmp_path, iris, **kwargs), expected)
        assert epochs == []

    def test_says_so(self, iris, tmp_path, capsys):
        after(2, tmp_path, iris, **CONSTANT)
        (path,) = tmp_path.iterdir()
        capsys.readouterr()
        after(3, tmp_path, iris, verbose=1, **CONSTANT)
        assert f"Resumed: epoch 3 of 3, from {path}" in capsys.readouterr().out


class Ends(Callback):
    """Uses the number of epochs."""

    def on_epoch_end(self, net, **kwargs):
        net.history.record("left", net.max_epochs - len(net.history))


class Longer(BSDClassifier):
    """A user's code, which may read `max_epochs`."""


ANEW = {
    "another length": {},
    "another prior": {"prior_strength": "noisy", **CONSTANT},
    "averaging": {"averaging": "ema", "schedule_epochs": 200},
    "a callback that knows": {"callbacks": [Ends], **CONSTANT},
    "the best epoch": {
        "callbacks": [EarlyStopping("train_loss", load_best=True)],
        **CONSTANT,
    },
    "set apart": {
        "callbacks": [("stops", EarlyStopping("train_loss"))],
        "callbacks__stops__load_best": True,
        **CONSTANT,
    },
}


class TestBeginsAnew:
    @pytest.mark.parametrize("name", ANEW)
    def test_where_the_beginning_may_differ(self, name, iris, tmp_path, epochs):
        n_epochs = 100 if name == "another prior" else 3
        kwargs = ANEW[name]
        after(2, tmp_path, iris, **kwargs)
        del epochs[:]
        model = after(n_epochs, tmp_path, iris, **kwargs)
        assert epochs == list(range(n_epochs))
        assert_same(model, after(n_epochs, None, iris, **kwargs))

    def test_a_subclass(self, iris, tmp_path, epochs):
        kwargs = {"random_state": 0, "calibration": None, "checkpoint": tmp_path}
        for n_epochs in (1, 2):
            Longer(max_epochs=n_epochs, **kwargs, **CONSTANT).fit(*iris)
        assert epochs == [0, 0, 1]

    def test_a_shorter_one(self, iris, tmp_path, epochs):
        after(3, tmp_path, iris, **CONSTANT)
        after(2, tmp_path, iris, **CONSTANT)
        assert epochs == [0, 1, 2, 0, 1]


class TestScheduleEpochs:
    def test_is_the_beginning_of_a_longer_call(self, iris):
        seen = []

        class Look(Callback):
            def on_epoch_end(self, net, **kwargs):
                seen.append([p.clone() for p in net.module_.parameters()])

        whole = quick(max_epochs=100, callbacks=[Look]).fit(*iris)
        part = quick(max_epochs=3, schedule_epochs=100).fit(*iris)
        assert all(map(torch.equal, seen[2], part.module_.parameters()))
        assert part.prior_strength_ == whole.prior_strength_ == 2 / 3 * 100
        assert part.history_[:, "train_loss"] == whole.history_[:3, "train_loss"]

    def test_of_the_same_length(self, iris):
        given = quick(calibration="auto", schedule_epochs=3).fit(*iris)
        default = quick(calibration="auto").fit(*iris)
        assert same_weights(given, default)
        assert given.temperature_ == default.temperature_

    def test_the_folds_go_through_the_same_part(self, iris):
        """Early in a schedule, fold networks learn as little as the final network."""
        kwargs = {"calibration": "cross-fit", "max_epochs": 4}
        early = quick(schedule_epochs=400, **kwargs).fit(*iris)
        whole = quick(**kwargs).fit(*iris)
        loss = "log_loss_before"
        assert getattr(early.calibration_, loss) > 2 * getattr(whole.calibration_, loss)

    def test_too_short(self, iris):
        with pytest.raises(ValueError, match="schedule_epochs=2 is less than"):
            quick(schedule_epochs=2).fit(*iris)


def halving(folder, data, **kwargs):
    """Search two rates in rounds of 1, 2 and 4 epochs."""
    model = make_pipeline(StandardScaler(), quick(checkpoint=folder, **kwargs))
    search = HalvingGridSearchCV(
        model,
        {"bsdclassifier__lr": [0.003, 0.01, 0.03, 0.1]},
        resource="bsdclassifier__max_epochs",
        min_resources=1,
        max_resources=4,
        factor=2,
        cv=2,
        random_state=0,
    )
    return search.fit(*data)


@pytest.mark.parametrize("kwargs", [CONSTANT, {"schedule_epochs": 4}])
def test_successive_halving(iris, tmp_path, epochs, kwargs):
    plain = halving(None, iris, **kwargs)
    n_plain = len(epochs)
    found = halving(tmp_path, iris, **kwargs)
    assert n_plain == 2 * (4 * 1 + 2 * 2 + 1 * 4) + 4
    assert len(epochs) - n_plain == 2 * (4 * 1 + 2 * 1 + 1 * 2) + 4
    for key in ("mean_test_score", "split1_test_score", "n_resources"):
        assert (found.cv_results_[key] == plain.cv_results_[key]).all()
    assert same_weights(found.best_estimator_[-1], plain.best_estimator_[-1])
