"""Choice and calibration by out-of-fold predictions, with the estimator."""

import threading

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback, EarlyStopping
from skorch.dataset import ValidSplit
from torch.utils.data import RandomSampler, TensorDataset

from skbsd import BSDClassifier
from skbsd._fold_nets import fold_net
from skbsd._rules import Choice
from skbsd.label_noise import flip_labels
from skbsd.networks import MLP


@pytest.fixture(scope="module")
def table():
    X, y = load_digits(return_X_y=True)
    split = train_test_split(
        (X / 16).astype(np.float32), y, train_size=500, stratify=y, random_state=0
    )
    return split[0], split[2], split[1], split[3]


@pytest.fixture(scope="module")
def calibrated(table):
    return BSDClassifier(random_state=0).fit(*table[:2])


class TestCalibrated:
    def test_is_better_calibrated_than_a_plain_training(self, table, calibrated):
        X, y, X_test, y_test = table
        plain = clone(calibrated).set_params(calibration=None).fit(X, y)
        losses = [
            log_loss(y_test, m.predict_proba(X_test)) for m in (calibrated, plain)
        ]
        assert losses[0] < 0.8 * losses[1]

    def test_says_what_was_done(self, calibrated):
        made = calibrated.calibration_
        assert made.method == "cross-fit"
        assert (made.n_folds, made.n_epochs, made.n_samples) == (2, 20, 500)
        assert made.log_loss_after < made.log_loss_before
        assert made.seconds > 0
        assert calibrated.temperature_ == made.temperature < 1
        assert calibrated.noise_rate_ == 0

    def test_final_network_learns_from_all_samples(self, calibrated):
        assert (calibrated.posterior_.visits == 40).all()
        assert calibrated.n_iter_ == 40

    def test_logits_are_within_reach(self, table, calibrated):
        X = table[2][:10]
        raw = calibrated.forward(X)
        scaled = raw.numpy() / calibrated.temperature_
        assert calibrated.decision_function(X) == pytest.approx(scaled)

    def test_predictions_of_unseen_samples(self, table, calibrated):
        proba = calibrated.out_of_fold_proba_
        assert proba.shape == (500, 10)
        assert proba.sum(axis=1) == pytest.approx(np.ones(500))
        assert 0.9 < (proba.argmax(axis=1) == table[1]).mean() < 0.99

    def test_repeats(self, table, calibrated):
        again = clone(calibrated).fit(*table[:2])
        assert same_weights(calibrated, again)
        assert again.temperature_ == calibrated.temperature_

    def test_network_is_that_of_a_plain_training_with_the_same_settings(
        self, table, calibrated
    ):
        plain = BSDClassifier(
            calibration=None, lr=calibrated.lr_, prior_strength=60.0, random_state=0
        )
        assert same_weights(plain.fit(*table[:2]), calibrated)

    def test_leaves_the_generator_of_the_user_alone(self, table):
        X, y = table[0][:100], table[1][:100]
        one, other = (np.random.RandomState(0) for _ in range(2))
        quick(calibration="auto", random_state=one, lr=1e-2).fit(X, y)
        quick(random_state=other).fit(X, y)
        assert one.randint(2**31) == other.randint(2**31)


class TestNone:
    def test_no_calibration(self, iris):
        model = quick().fit(*iris)
        assert not hasattr(model, "calibration_")
        assert not hasattr(model, "out_of_fold_proba_")
        assert (model.temperature_, model.noise_rate_, model.lr_) == (1, 0, 1e-2)

    def test_forgets_that_of_another_fit(self, iris):
        model = quick(calibration="auto").fit(*iris)
        assert model.temperature_ != 1
        model.set_params(calibration=None).fit(*iris)
        assert model.temperature_ == 1
        assert not hasattr(model, "calibration_")

    def test_before_fit(self):
        model = BSDClassifier()
        assert not hasattr(model, "temperature_")
        assert not hasattr(model, "noise_rate_")

    def test_too_few_samples(self, iris):
        X, y = iris
        model = BSDClassifier(max_epochs=2, random_state=0).fit(X[::10], y[::10])
        assert not hasattr(model, "calibration_")


class TestHoldOut:
    def test_learns_from_the_rest(self, table):
        model = quick(calibration="hold-out").fit(*table[:2])
        assert model.calibration_.method == "hold-out"
        assert model.calibration_.n_samples == 100
        held = model.posterior_.visits.numpy() == 0
        assert held.sum() == 100
        assert (np.isfinite(model.out_of_fold_proba_[:, 0]) == held).all()

    def test_auto_where_data_are_many(self, monkeypatch, table):
        monkeypatch.setattr("skbsd._cross_fit._LARGE", 300)
        monkeypatch.setattr("skbsd._held_out._HELD_OUT", 50)
        model = quick(calibration="auto").fit(*table[:2])
        assert model.calibration_.method == "hold-out"
        assert model.calibration_.n_samples == 50

    def test_validation_data_serve(self, table):
        model = quick(calibration="auto", train_split=ValidSplit(5, stratified=True))
        model.fit(*table[:2])
        assert model.calibration_.method == "hold-out"
        assert model.calibration_.n_samples == 100
        assert (model.posterior_.visits == 0).sum() == 100


class TestComposes:
    def test_dataset(self, table):
        X, y = table[0][:200], table[1][:200]
        data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
        sizes = {"module__in_features": 64, "module__n_classes": 10}
        model = quick(module=MLP, **sizes, calibration="auto").fit(data, y=None)
        assert model.calibration_.n_samples == 200
        assert model.predict_proba(data).shape == (200, 10)

    def test_tensor(self, table):
        X, y = table[0][:60], table[1][:60]
        arrays = quick(calibration="auto").fit(X, y)
        tensors = quick(calibration="auto").fit(torch.from_numpy(X), y)
        assert arrays.temperature_ == tensors.temperature_

    def test_images(self, uint8_digits):
        X, y = uint8_digits
        model = quick(calibration="auto", augmentation="flip-crop").fit(
            X[:200], y[:200]
        )
        assert model.calibration_.n_samples == 200

    def test_several_views(self, uint8_digits):
        X, y = uint8_digits
        model = quick(calibration="auto", contrastive=0.2).fit(X[:200], y[:200])
        assert model.temperature_ != 1

    def test_partial_fit_keeps_the_calibration(self, iris):
        model = quick(calibration="auto").fit(*iris)
        made = model.calibration_
        assert model.partial_fit(*iris).calibration_ is made
        assert not hasattr(quick(calibration="auto").partial_fit(*iris), "calibration_")

    def test_weights_are_repetitions(self, iris):
        X, y = (part[::2] for part in iris)
        weight = np.arange(75) % 3
        settings = {"calibration": "auto", "batch_size": -1, "max_epochs": 5}
        weighted = quick(**settings).fit(X, y, sample_weight=weight)
        repeated = quick(**settings).fit(X.repeat(weight, 0), y.repeat(weight))
        assert weighted.temperature_ == pytest.approx(repeated.temperature_, rel=1e-5)

    def test_groups_stay_together(self, table, monkeypatch):
        X, y = table[0][:100], table[1][:100]
        folds = []

        def deal(keys, codes, n_folds):
            folds.append(keys)
            return keys.astype(int) % n_folds

        monkeypatch.setattr("skbsd._cross_fit.deal", deal)
        groups = np.array(list("abcd"))[np.arange(100) % 4]
        quick(calibration="auto").fit(X, y, groups=groups)
        assert (folds[0] == np.arange(100) % 4).all()

    def test_groups_of_another_length(self, iris):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            quick(calibration="auto").fit(*iris, groups=[1, 2])

    def test_checkpoint(self, table, tmp_path, monkeypatch):
        X, y = table[0][:100], table[1][:100]
        settings = {"calibration": "auto", "checkpoint": tmp_path}
        first = quick(**settings).fit(X, y)
        monkeypatch.setattr("skbsd._cross_fit.CrossFit.run", None)
        again = quick(**settings).fit(X, y)
        assert same_weights(first, again)
        assert first.temperature_ == again.temperature_
        proba = first.out_of_fold_proba_, again.out_of_fold_proba_
        np.testing.assert_array_equal(*proba)

    def test_save_and_load(self, table, calibrated, tmp_path):
        calibrated.save(tmp_path / "model")
        loaded = BSDClassifier.load(tmp_path / "model")
        expected = calibrated.predict_proba(table[2])
        np.testing.assert_array_equal(loaded.predict_proba(table[2]), expected)
        assert loaded.choice_ == calibrated.choice_
        assert not hasattr(loaded, "out_of_fold_proba_")
        calibrated.save(tmp_path / "model", posterior=True)
        loaded = BSDClassifier.load(tmp_path / "model")
        proba = loaded.out_of_fold_proba_, calibrated.out_of_fold_proba_
        np.testing.assert_array_equal(*proba)

    def test_only_callbacks_that_act_are_in_the_folds(self):
        stop, looks = EarlyStopping("train_loss"), Callback()
        model = BSDClassifier(
            callbacks=[("stop", stop), ("looks", looks), EarlyStopping],
            callbacks__stop__patience=3,
            callbacks__looks__nothing=1,
        )
        fold = fold_net(model, Choice.default(model), 5, 5, 0)
        assert [name for name, _ in fold.callbacks] == ["stop"]
        assert fold.callbacks[0][1] is not stop
        assert "callbacks__stop__patience" in fold.get_params()
        assert "callbacks__looks__nothing" not in fold.get_params()
        assert len(model.callbacks) == 3

    def test_callbacks_that_cannot_be_copied(self, iris):
        class Locked(Callback):
            def __init__(self):
                self.lock, self.epochs = threading.Lock(), 0

            def on_epoch_end(self, net, **kwargs):
                self.epochs += 1

        locked = Locked()
        quick(calibration="auto", callbacks=[locked]).fit(*iris)
        assert locked.epochs == 3  # of the final network

    def test_folds_that_stop_early(self, iris):
        stop = EarlyStopping("train_loss", patience=2, threshold=0.2)
        model = quick(calibration="auto", max_epochs=30, callbacks=[stop]).fit(*iris)
        assert model.temperature_ != 1

    def test_data_frames(self, iris):
        pd = pytest.importorskip("pandas")
        X = pd.DataFrame(iris[0], columns=list("abcd"))
        model = quick(calibration="auto").fit(X, iris[1])
        assert list(model.feature_names_in_) == list("abcd")
        assert quick(calibration="hold-out").fit(X, iris[1]).temperature_ != 1

    def test_a_class_of_one_sample(self, table):
        X, y = table[0].copy(), table[1] % 2
        y[17] = 2
        for method in ("auto", "hold-out"):
            model = quick(calibration=method).fit(X, y)
            assert model.posterior_.visits[17] > 0
            assert model.predict_proba(table[2])[:, 2].mean() < 0.05

    def test_many_classes(self):
        rng = np.random.default_rng(0)
        X, y = rng.normal(size=(600, 5)), np.arange(600) % 300
        with pytest.warns(ConvergenceWarning, match="no better than the frequencies"):
            model = quick(calibration="auto").fit(X, y)
        proba = model.predict_proba(X)
        assert proba.sum(axis=1) == pytest.approx(np.ones(600), abs=1e-5)

    def test_own_order_of_samples(self, iris):
        settings = {"iterator_train__sampler": RandomSampler(range(150))}
        assert not hasattr(
            quick(calibration="auto", **settings).fit(*iris), "calibration_"
        )
        with pytest.raises(ValueError, match="iterator_train__sampler does not know"):
            quick(calibration="cross-fit", **settings).fit(*iris)

    def test_constant_features(self, iris):
        X = np.zeros_like(iris[0])
        assert not hasattr(quick(calibration="auto").fit(X, iris[1]), "calibration_")

    def test_no_draw_from_the_global_generator(self, table):
        data = TensorDataset(torch.from_numpy(table[0]), torch.from_numpy(table[1]))
        sizes = {"module__in_features": 64, "module__n_classes": 10}
        before = torch.get_rng_state()
        quick(module=MLP, **sizes, calibration="auto").fit(data, y=None)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_network_that_diverges(self, iris):
        X, y = iris
        model = quick(calibration="auto", lr=1e30)
        uncalibrated = pytest.warns(ConvergenceWarning, match="are not calibrated")
        with uncalibrated, pytest.raises(ValueError, match="NaN or infinite"):
            model.fit(X * 1e2, y)

    def test_an_interrupt_in_a_fold_leaves_the_model_as_it_was(self, iris, monkeypatch):
        model = quick(calibration="auto").fit(*iris)
        before, made = model.module_, model.calibration_

        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr("skbsd._run.Run._run_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.fit(*iris)
        assert model.module_ is before
        assert model.calibration_ is made


class TestLabelNoise:
    def test_wrong_labels_are_noticed_and_forgotten(self, table):
        X, y, X_test, y_test = table
        given, _ = flip_labels(y, 0.4, random_state=0)
        model = BSDClassifier(random_state=0).fit(X, given)
        assert model.noise_rate_ == pytest.approx(0.4, abs=0.06)
        low, high = model.calibration_.noise_rate_interval
        assert low < model.noise_rate_ < high
        assert model.choice_.prior_strength == "noisy"
        assert model.score(X_test, y_test) > 0.88
        proba = model.predict_proba(X_test)
        confidence = proba.max(axis=1).mean()
        assert confidence == pytest.approx(model.score(X_test, y_test), abs=0.05)

    def test_random_labels_are_predicted_as_such(self):
        X, y = make_classification(
            3000, n_informative=8, flip_y=0.4, class_sep=2.0, random_state=0
        )
        model = BSDClassifier(label_noise="inherent", random_state=0)
        model.fit(X[:1000], y[:1000])
        confidence = model.predict_proba(X[1000:]).max(axis=1).mean()
        assert confidence == pytest.approx(model.score(X[1000:], y[1000:]), abs=0.05)
        model.calibration_ = None
        sure = BSDClassifier(label_noise="errors", random_state=0)
        sure.fit(X[:1000], y[:1000])
        assert sure.predict_proba(X[1000:]).max(axis=1).mean() > confidence + 0.1

    def test_a_number_is_taken_as_it_is(self, table):
        X, y = table[:2]
        given, _ = flip_labels(y, 0.4, random_state=0)
        model = BSDClassifier(prior_strength=30.0, lr=5e-3, max_epochs=4)
        model.fit(X, given)
        assert (model.prior_strength_, model.discount_, model.lr_) == (30.0, 1.0, 5e-3)


class TestLearningRate:
    def test_is_lower_where_a_network_memorises(self):
        X, y = make_classification(
            2500, n_informative=3, n_classes=3, n_clusters_per_class=1, class_sep=0.5,
            random_state=0,
        )  # fmt: skip
        model = BSDClassifier(random_state=0).fit(X[:500], y[:500])
        assert model.lr_ < 5e-3
        default = BSDClassifier(lr=1e-2, random_state=0).fit(X[:500], y[:500])
        losses = [log_loss(y[500:], m.predict_proba(X[500:])) for m in (model, default)]
        assert losses[0] < losses[1]

    def test_auto_on_a_live_optimizer(self, iris):
        model = quick().fit(*iris)
        model.set_params(lr=0.5)
        assert model.optimizer_.param_groups[0]["lr"] == 0.5
        model.set_params(lr="auto")
        assert model.optimizer_.param_groups[0]["lr"] == 1e-2

    def test_of_the_optimizer(self, iris):
        model = quick(calibration="auto", optimizer__lr=0.02).fit(*iris)
        assert model.lr_ == model.optimizer_.param_groups[0]["lr"] == 0.02

    def test_another_rule_afterwards(self, iris):
        model = quick(calibration="auto").fit(*iris)
        model.set_params(prior_strength="noisy").partial_fit(*iris)
        assert model.prior_strength_ == 15
        assert model.choice_.evidence == "auto"
        assert not hasattr(model, "out_of_fold_proba_")

    def test_partial_fit_goes_on_with_it(self, iris):
        model = BSDClassifier(random_state=0, max_epochs=10).fit(*iris)
        rate = model.lr_
        assert model.partial_fit(*iris).lr_ == rate
        assert model.optimizer_.param_groups[0]["lr"] == rate
