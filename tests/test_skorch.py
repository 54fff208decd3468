"""BSDClassifier supports the documented behaviour of skorch."""

import io
import pickle
import time
from contextlib import redirect_stdout
from unittest.mock import Mock

import numpy as np
import pytest
import sklearn
import torch
from helpers import quick, same_weights, weights
from modules import Linear
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GroupKFold
from skorch import NeuralNetClassifier
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    InputShapeSetter,
    LRScheduler,
    ProgressBar,
    TrainEndCheckpoint,
)
from skorch.dataset import Dataset, ValidSplit
from skorch.exceptions import NotInitializedError, SkorchTrainingImpossibleError
from skorch.helper import predefined_split
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from skbsd import BSDClassifier

SPLIT = ValidSplit(5, stratified=True)


def test_is_a_skorch_net():
    assert issubclass(BSDClassifier, NeuralNetClassifier)


def test_steps_of_skorchs_loop_that_users_call():
    X = np.random.default_rng(0).normal(size=(150, 4))
    y = np.arange(150) % 3
    model = quick(module=Linear).fit(X, y)
    logits = model.forward(X)
    assert logits.shape == (150, 3)
    (batch,) = model.get_iterator(model.get_dataset(X[:5], y[:5]))
    assert_allclose(model.evaluation_step(batch), logits[:5], rtol=1e-6)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    assert_allclose(model.get_loss(logits, y), expected)
    train, valid = quick(train_split=SPLIT).get_split_datasets(X, y)
    assert (len(train), len(valid)) == (120, 30)


class TestHistory:
    def test_same_keys_and_types_as_skorchs(self, iris):
        X, y = iris[0].astype(np.float32), iris[1]
        ours = quick(module=Linear, train_split=SPLIT).fit(X, y).history
        theirs = (
            NeuralNetClassifier(
                Linear,
                criterion=torch.nn.CrossEntropyLoss,
                train_split=SPLIT,
                max_epochs=3,
                verbose=0,
            )
            .fit(X, y)
            .history
        )
        for row, other in zip(ours, theirs, strict=True):
            assert row.keys() == other.keys()
            for key, value in other.items():
                assert type(row[key]) is type(value), key
            for batch, expected in zip(row["batches"], other["batches"], strict=True):
                assert batch.keys() == expected.keys()
                for key, value in expected.items():
                    assert type(batch[key]) is type(value), key
        file = io.StringIO()
        ours.to_file(file)  # everything in it can be written as JSON

    def test_values(self, iris):
        X, y = iris
        model = quick(train_split=SPLIT).fit(X, y)
        history = model.history
        assert history is model.history_
        sizes = history[0, "batches", :, "train_batch_size"][:1]
        assert sizes == [120]
        _, valid = SPLIT(Dataset(X, y), y)
        rows = np.asarray(valid.indices)
        proba = model.predict_proba(X[rows])
        assert history[-1, "valid_loss"] == pytest.approx(
            log_loss(y[rows], proba), rel=1e-5
        )
        assert history[-1, "valid_acc"] == accuracy_score(
            y[rows], model.predict(X[rows])
        )
        losses = [row["batches"][0]["train_loss"] for row in history]
        assert history[:, "train_loss"] == losses

    def test_verbose(self, iris):
        for verbose in (0, 1):
            out = io.StringIO()
            with redirect_stdout(out):
                quick(verbose=verbose).fit(*iris).fit(*iris)
            assert ("train_loss" in out.getvalue()) == bool(verbose)
            assert verbose or out.getvalue() == ""


class TestTrainSplit:
    def test_only_the_training_rows_are_visited(self, iris):
        X, y = iris
        model = quick(train_split=SPLIT).fit(X, y)
        train, _ = SPLIT(Dataset(X, y), y)
        visited = np.zeros(150, int)
        visited[train.indices] = 3
        assert_array_equal(model.posterior_.visits, visited)

    def test_predefined_split(self, iris):
        X, y = iris
        named = np.array(["a", "b", "c"])[y]
        other = Dataset(X[::2].astype(np.float32), named[::2])
        model = quick(train_split=predefined_split(other), max_epochs=20).fit(X, named)
        assert (model.posterior_.visits == 20).all()
        assert model.history[-1, "valid_acc"] == model.score(X[::2], named[::2]) > 0.8

    def test_dataset(self, iris):
        dataset = Dataset(iris[0].astype(np.float32), iris[1])
        model = quick(train_split=SPLIT).fit(dataset)
        assert model.posterior_.visits.sum() == 3 * 120
        assert 0 <= model.history[-1, "valid_acc"] <= 1

    @pytest.mark.parametrize("routing", [False, True])
    def test_groups(self, iris, routing):
        X, y = iris
        groups = np.arange(150) % 5
        cv = GroupKFold(5)
        with sklearn.config_context(enable_metadata_routing=routing):
            if routing:
                cv.set_split_request(groups=True)
            model = quick(train_split=ValidSplit(cv)).fit(X, y, groups=groups)
        left_out = groups[model.posterior_.visits.numpy() == 0]
        assert len(set(left_out)) == 1
        assert len(left_out) == 30

    def test_weights_of_the_training_rows(self, iris):
        X, y = iris
        weight = np.arange(150) % 2
        model = quick(train_split=SPLIT).fit(X, y, sample_weight=weight)
        assert (model.posterior_.visits[weight == 0] == 0).all()

    def test_weight_zero_is_left_out_of_validation_too(self, iris):
        X, y = iris
        _, valid = SPLIT(Dataset(X, y), y)
        wrong = y.copy()
        wrong[valid.indices[1:]] = (y[valid.indices[1:]] + 1) % 3
        weight = np.ones(150)
        weight[valid.indices[1:]] = 0
        split = ValidSplit(
            [(np.setdiff1d(np.arange(150), valid.indices), valid.indices)]
        )
        model = quick(train_split=split, max_epochs=30)
        model.fit(X, wrong, sample_weight=weight)
        assert model.history[-1, "valid_acc"] == 1
        assert model.history[-1, "batches", -1, "valid_batch_size"] == 1


class TestCallbacks:
    def test_epoch_scoring(self, iris):
        X, y = iris
        named = np.array(["a", "b", "c"])[y]
        callbacks = [
            EpochScoring("accuracy", name="train_acc", on_train=True),
            EpochScoring("neg_log_loss", name="nll", lower_is_better=False),
            EpochScoring("accuracy", name="uncached", use_caching=False),
            BatchScoring("accuracy", name="batch_acc", lower_is_better=False),
        ]
        model = quick(callbacks=callbacks, train_split=SPLIT, max_epochs=20)
        history = model.fit(X, named).history
        assert history[-1, "train_acc"] > 0.8
        assert history[-1, "uncached"] == history[-1, "valid_acc"]
        assert history[-1, "batch_acc"] == pytest.approx(history[-1, "valid_acc"])
        assert history[-1, "nll"] == pytest.approx(-history[-1, "valid_loss"], rel=1e-5)

    def test_train_accuracy_of_labels_with_gaps(self, iris):
        X, y = iris
        scoring = EpochScoring("accuracy", name="train_acc", on_train=True)
        model = quick(callbacks=[scoring], max_epochs=30).fit(X, y * 10 - 5)
        assert model.history[-1, "train_acc"] > 0.9

    def test_early_stopping(self, iris):
        stop = EarlyStopping("train_loss", patience=2, threshold=10.0)
        model = quick(callbacks=[stop], max_epochs=50).fit(*iris)
        assert model.n_iter_ == len(model.history) == 3
        assert (model.posterior_.visits == 3).all()

    def test_early_stopping_loads_the_best(self, iris):
        stop = EarlyStopping("valid_loss", patience=3, load_best=True)
        model = quick(callbacks=[stop], train_split=SPLIT, max_epochs=50, lr=0.5)
        X, y = iris
        model.fit(X, y)
        _, valid = SPLIT(Dataset(X, y), y)
        now = log_loss(y[valid.indices], model.predict_proba(X[valid.indices]))
        assert now == pytest.approx(min(model.history[:, "valid_loss"]), rel=1e-4)

    def test_checkpoint(self, iris, tmp_path):
        checkpoint = Checkpoint(
            monitor="valid_loss_best",
            dirname=tmp_path,
            f_posterior="posterior.pt",
        )
        model = quick(module=Linear, callbacks=[checkpoint], train_split=SPLIT)
        model.fit(*iris)
        assert {p.name for p in tmp_path.iterdir()} >= {"params.pt", "posterior.pt"}
        other = quick(module=Linear, random_state=1).fit(*iris)
        other.load_params(checkpoint=checkpoint)
        best = int(np.argmin(model.history[:, "valid_loss"]))
        assert len(other.history) == best + 1
        assert (other.posterior_.visits.max()) == best + 1
        saved = torch.load(tmp_path / "params.pt")
        for name, tensor in other.module_.state_dict().items():
            assert torch.equal(tensor, saved[name])

    def test_train_end_checkpoint(self, iris, tmp_path):
        callback = TrainEndCheckpoint(dirname=tmp_path)
        model = quick(module=Linear, callbacks=[callback]).fit(*iris)
        other = quick(module=Linear).initialize()
        other.load_params(f_params=tmp_path / "train_end_params.pt")
        assert_allclose(
            other.predict_proba(iris[0]), model.predict_proba(iris[0]), atol=1e-6
        )

    def test_lr_scheduler_takes_the_place_of_the_schedule(self, iris):
        policy = LRScheduler(StepLR, step_size=1, gamma=0.1)
        model = quick(callbacks=[policy], lr=1.0).fit(*iris)
        assert_allclose(model.history[:, "event_lr"], [1.0, 0.1, 0.01])

    def test_lr_scheduler_by_batch_sees_the_loss(self, iris):
        policy = LRScheduler(
            ReduceLROnPlateau, monitor="train_loss", step_every="batch", patience=0
        )
        model = quick(callbacks=[policy]).fit(*iris)
        assert len(model.history[-1, "batches", :, "event_lr"]) == 2

    def test_batch_callbacks_see_the_loss_at_once(self, iris):
        seen = []

        class Watch(Callback):
            def on_batch_end(self, net, batch, training, loss, y_pred, **kwargs):
                X, y = batch
                recorded = net.history[-1, "batches", -1, "train_loss"]
                seen.append((recorded, float(loss), len(X), len(y), len(y_pred)))

        quick(callbacks=[Watch]).fit(*iris)
        assert [row[2:] for row in seen] == [(128,) * 3, (22,) * 3] * 3
        assert all(row[0] == row[1] for row in seen)

    def test_losses_are_the_same_whether_watched_or_not(self, iris):
        class Watch(Callback):
            def on_batch_end(self, net, **kwargs):
                pass

        one = quick().fit(*iris)
        other = quick(callbacks=[Watch]).fit(*iris)
        batches = [
            m.history[:, "batches", :, ("train_loss", "train_batch_size")]
            for m in (one, other)
        ]
        assert batches[0] == batches[1]

    def test_progress_bar(self, iris, capsys):
        class Sleep(Callback):
            def on_batch_end(self, net, **kwargs):
                time.sleep(0.11)  # the bar is drawn ten times a second at most

        quick(callbacks=[Sleep, ProgressBar()]).fit(*iris)
        assert "train_loss" in capsys.readouterr().err

    def test_gradient_clipping(self, iris):
        norms = []

        class Norm(Callback):
            def on_grad_computed(self, net, named_parameters, **kwargs):
                norms.append(max(p.grad.abs().max() for _, p in named_parameters))

        clip = GradientNormClipping(1e-4)
        quick(callbacks=[clip, Norm]).fit(*iris)
        assert len(norms) == 6
        assert max(norms) <= 1e-4

    def test_predicting_within_an_epoch(self, iris):
        class Predict(Callback):
            def on_batch_end(self, net, **kwargs):
                net.predict(iris[0])
                assert net.module_.training

        quick(callbacks=[Predict]).fit(*iris)

    def test_hooks_that_are_set_on_the_instance(self, iris):
        seen = []
        watch = Callback()
        watch.on_batch_end = lambda net, **kwargs: seen.append(float(kwargs["loss"]))
        model = quick(callbacks=[watch]).fit(*iris)
        assert seen == [
            loss for row in model.history[:, "batches", :, "train_loss"] for loss in row
        ]

    def test_input_shape_setter(self, iris):
        setter = InputShapeSetter(param_name="in_features")
        model = quick(module=Linear, module__in_features=1, callbacks=[setter])
        assert model.fit(*iris).module_.layer.in_features == 4
        assert model.get_params()["module__in_features"] == 4
        expected = quick(module=Linear, module__in_features=4).fit(*iris)
        assert model.n_iter_ == expected.n_iter_
        assert model.predict(iris[0]).shape == (150,)

    def test_parameters_of_callbacks(self, iris, capsys):
        model = quick(verbose=1, callbacks__print_log=None).fit(*iris)
        assert capsys.readouterr().out == ""
        model = quick(callbacks=[("stop", EarlyStopping("train_loss"))], max_epochs=50)
        model.set_params(callbacks__stop__patience=2, callbacks__stop__threshold=10.0)
        assert model.fit(*iris).n_iter_ == 3

    def test_disable(self, iris):
        model = quick(callbacks="disable").fit(*iris)
        assert model.n_iter_ == 3
        assert model.history[-1, "batches", -1, "train_loss"] > 0


class TestEpochs:
    """`epochs` of a call, and none at all."""

    def test_epochs_of_partial_fit(self, iris):
        model = quick(max_epochs=3).partial_fit(*iris, epochs=2)
        assert (model.n_iter_, model.max_epochs) == (2, 3)
        model.partial_fit(*iris, epochs=1).partial_fit(*iris)
        assert (model.n_iter_, model.max_epochs) == (6, 3)

    def test_is_a_call_with_so_many_max_epochs(self, iris):
        one = quick(max_epochs=7).partial_fit(*iris, epochs=2)
        other = quick(max_epochs=2).partial_fit(*iris)
        assert same_weights(one, other)

    def test_callbacks_see_the_epochs_of_the_call(self, iris):
        class Looks(Callback):
            def on_train_begin(self, net, X=None, y=None, **kwargs):
                self.seen_ = net.max_epochs

        model = quick(max_epochs=7, callbacks=[("looks", Looks)])
        model.partial_fit(*iris, epochs=2)
        assert dict(model.callbacks_)["looks"].seen_ == 2

    def test_max_epochs_are_back_after_an_error(self, iris):
        model = quick(max_epochs=7)
        with pytest.raises(ValueError, match="single class"):
            model.partial_fit(iris[0], np.zeros(150), epochs=2)
        assert model.max_epochs == 7

    @pytest.mark.parametrize("epochs", [-1, 1.5, True, "2"])
    def test_other_epochs_are_refused(self, iris, epochs):
        model = quick()
        with pytest.raises(ValueError, match=rf"epochs must be .*{epochs!r}"):
            model.partial_fit(*iris, epochs=epochs)
        assert not hasattr(model, "module_")

    def test_fit_loop_goes_on(self, iris):
        model = quick().fit(*iris)
        assert model.fit_loop(*iris, epochs=1).n_iter_ == 4

    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"calibration": "cross-fit"},
            {"calibration": "hold-out"},
            {"calibration": "auto", "train_split": SPLIT},
            {"averaging": "ema", "lr_schedule": "cosine"},
            {"prior_strength": "noisy", "posterior_dtype": "compact"},
        ],
    )
    def test_none(self, iris, kwargs, tmp_path):
        model = quick(max_epochs=0, checkpoint=tmp_path, **kwargs).fit(*iris)
        initial = weights(model)
        assert (model.n_iter_, len(model.history)) == (0, 0)
        assert not hasattr(model, "calibration_")
        assert model.predict_proba(iris[0]).shape == (150, 3)
        assert set(model.predict(iris[0])) <= {0, 1, 2}
        assert (model.posterior_.visits == 0).all()
        model.partial_fit(*iris, epochs=0)
        assert all(map(torch.equal, weights(model), initial))
        assert model.partial_fit(*iris, epochs=2).n_iter_ == 2

    def test_none_leaves_the_given_weights(self, iris):
        network = Linear(4, 3)
        model = quick(module=network, max_epochs=0).fit(*iris)
        given = network.state_dict().values()
        assert all(map(torch.equal, weights(model), given))

    def test_a_rate_of_zero_leaves_the_weights(self, iris):
        model = quick(lr=0, max_epochs=0).fit(*iris)
        initial = weights(model)
        model.partial_fit(*iris, epochs=2)
        assert all(map(torch.equal, weights(model), initial))


class TestNotInitialized:
    @pytest.mark.parametrize(
        "method", ["predict", "predict_proba", "forward", "forward_iter", "score"]
    )
    def test_error_is_skorchs_and_scikit_learns(self, iris, method):
        X, y = iris
        arguments = (X, y) if method == "score" else (X,)
        assert issubclass(NotInitializedError, NotFittedError)
        with pytest.raises(NotInitializedError, match="not initialized yet"):
            list(getattr(quick(), method)(*arguments))

    def test_trimmed_predicts_and_no_more(self, iris, tmp_path):
        model = quick().fit(*iris)
        proba = model.predict_proba(iris[0])
        model.trim_for_prediction()
        for copied in (model, pickle.loads(pickle.dumps(model))):
            assert_array_equal(copied.predict_proba(iris[0]), proba)
            for fit in (copied.fit, copied.partial_fit):
                with pytest.raises(SkorchTrainingImpossibleError, match="trimmed"):
                    fit(*iris)
        with pytest.raises(ValueError, match=r"trimmed for prediction.*before"):
            model.save(tmp_path / "model.skbsd")
        assert not list(tmp_path.iterdir())


def test_a_subclass_without_module_is_told_so(iris):
    class Two(BSDClassifier):
        def initialize_module(self):
            self.encoder_ = Linear(4, 3)
            return self

    with pytest.raises(AttributeError, match="of Two did not set module_"):
        Two(max_epochs=1).fit(*iris)


class TestDuckTypedCallback:
    """skorch asks of a callback no more than that it has the methods."""

    def test_hears_all_that_skorch_tells(self, iris):
        listener = Mock(spec=Callback)
        listener.get_params.return_value = {}
        X, y = iris
        quick(callbacks=[("mock", listener)], train_split=SPLIT).fit(X, y)
        begun = listener.on_train_begin.call_args
        assert begun.kwargs["X"].shape == X.shape
        assert listener.on_epoch_end.call_count == 3
        # A batch of training and one of validation in each epoch.
        assert listener.on_batch_begin.call_count == 6
        assert listener.on_batch_end.call_count == 6
        assert listener.on_grad_computed.call_count == 3
        heard = listener.on_batch_end.call_args
        assert {"batch", "training", "loss", "y_pred"} <= heard.kwargs.keys()


def test_fit_takes_no_epochs(iris):
    with pytest.raises(TypeError, match=r"\['epochs'\].*max_epochs; partial_fit"):
        quick().fit(*iris, epochs=2)
