"""Progress bars of training, and the display of estimators in notebooks."""

import copy
import io
import pickle
import re
import sys

import pytest
import sklearn
from helpers import parsed, quick
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version
from skorch.callbacks import Callback, EarlyStopping
from skorch.dataset import ValidSplit

from skbsd import BSDClassifier
from skbsd.callbacks import ProgressBar

NEWEST = parse_version(sklearn.__version__) >= parse_version("1.9")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Kernel(io.StringIO):
    """Standard error of a notebook, which is not a terminal."""

    __module__ = "ipykernel.iostream"


class Copies(Callback):
    def on_epoch_end(self, net, **kwargs):
        copy.deepcopy(net)
        self.pickled_ = pickle.dumps(net)


class TestProgressBar:
    def test_lines_in_a_log(self, iris, capsys):
        model = BSDClassifier(
            max_epochs=20,
            callbacks=[ProgressBar()],
            train_split=ValidSplit(5),
        )
        model.fit(*iris)
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert out == ""
        assert [re.match(r"epoch (\d+) of 20", line)[1] for line in lines] == [
            str(n) for n in range(2, 21, 2)
        ]
        last = model.history_[-1]
        for name in ("train_loss", "valid_loss", "valid_acc"):
            assert f", {name} {last[name]:.3g}" in lines[-1]

    @pytest.mark.parametrize("n_epochs", [1, 3, 11])
    def test_few_epochs(self, iris, capsys, n_epochs):
        BSDClassifier(
            calibration=None, max_epochs=n_epochs, callbacks=[ProgressBar()]
        ).fit(*iris)
        err = capsys.readouterr().err
        assert err.count("\n") == min(n_epochs, 10)
        assert f"epoch {n_epochs} of {n_epochs}, train_loss" in err

    @pytest.mark.parametrize("stream", [Terminal, Kernel])
    def test_bar(self, iris, monkeypatch, stream):
        monkeypatch.setattr(sys, "stderr", stream())
        monkeypatch.setenv("COLUMNS", "100")
        model = BSDClassifier(
            calibration=None, max_epochs=12, callbacks=[ProgressBar()]
        ).fit(*iris)
        shown = sys.stderr.getvalue()
        assert "100%" in shown
        assert "12/12" in shown
        assert f"train_loss={model.history_[-1, 'train_loss']:.3g}" in shown
        assert model.callbacks_[-2][1].bar_ is None

    def test_a_bar_that_an_error_left_is_closed(self, iris, monkeypatch):
        class Fails(Callback):
            def on_epoch_end(self, net, **kwargs):
                raise RuntimeError("on purpose")

        monkeypatch.setattr(sys, "stderr", Terminal())
        bar = ProgressBar()
        with pytest.raises(RuntimeError, match="on purpose"):
            BSDClassifier(calibration=None, max_epochs=2, callbacks=[bar, Fails()]).fit(
                *iris
            )
        left = bar.bar_
        BSDClassifier(calibration=None, max_epochs=2, callbacks=[bar]).fit(*iris)
        assert left.disable  # as tqdm marks what is closed
        assert bar.bar_ is None

    def test_without_standard_error(self, iris, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        BSDClassifier(calibration=None, max_epochs=1, callbacks=[ProgressBar()]).fit(
            *iris
        )

    def test_partial_fit_counts_anew(self, iris, capsys):
        model = BSDClassifier(calibration=None, max_epochs=2, callbacks=[ProgressBar()])
        model.partial_fit(*iris).partial_fit(*iris)
        epochs = re.findall(r"epoch \d of 2", capsys.readouterr().err)
        assert epochs == ["epoch 1 of 2", "epoch 2 of 2"] * 2

    def test_does_not_change_training_nor_wait(self, iris, capsys):
        one = BSDClassifier(
            calibration=None, max_epochs=3, random_state=0, callbacks=[ProgressBar()]
        )
        two = BSDClassifier(calibration=None, max_epochs=3, random_state=0)
        one.fit(*iris)
        two.fit(*iris)
        assert one.history_[:, "train_loss"] == two.history_[:, "train_loss"]

    def test_copies_while_it_runs(self, iris, monkeypatch):
        monkeypatch.setattr(sys, "stderr", Terminal())
        copies = Copies()
        model = BSDClassifier(
            calibration=None, max_epochs=1, callbacks=[ProgressBar(), copies]
        )
        model.fit(*iris)
        assert pickle.loads(copies.pickled_).score(*iris) == model.score(*iris)
        assert isinstance(clone(model).callbacks[0], ProgressBar)


def test_silence(iris, capfd):
    BSDClassifier(calibration=None, max_epochs=2).fit(*iris).predict(iris[0])
    make_pipeline(StandardScaler(), BSDClassifier(calibration=None, max_epochs=2)).fit(
        *iris
    )
    assert capfd.readouterr() == ("", "")


def test_silent_where_print_is_another_function(iris, monkeypatch, capsys):
    """As under Ray."""
    printed = []
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: printed.append(args))
    quick().fit(*iris)
    assert printed == []
    assert capsys.readouterr() == ("", "")


class TestRepresentation:
    def test_unfitted(self):
        page = parsed(BSDClassifier(prior_strength=7.5, max_epochs=3)._repr_html_())
        assert page.tags["table"] == 1
        names = [text for text in page.texts if text in BSDClassifier().get_params()]
        assert len(names) == len(BSDClassifier().get_params())
        if NEWEST:  # what differs from the defaults comes first
            assert set(names[:2]) == {"prior_strength", "max_epochs"}
        assert not any("epochs on" in text for text in page.texts)

    def test_fitted(self, iris):
        model = BSDClassifier(
            calibration=None, max_epochs=3, train_split=ValidSplit(5)
        ).fit(*iris)
        page = parsed(model._repr_html_())
        last = model.history_[-1]
        (summary,) = (text for text in page.texts if "epochs on" in text)
        seconds = sum(model.history_[:, "dur"])
        assert summary == (
            f"3 epochs on cpu in {seconds:.3g} s; training loss "
            f"{last['train_loss']:.3g}, validation loss {last['valid_loss']:.3g}, "
            f"validation accuracy {last['valid_acc']:.3g}"
        )
        if page.tags["table"] == 2:  # fitted attributes, of scikit-learn 1.9
            start = page.texts.index("Fitted attributes")
            shown = page.texts[start:]
            assert {"device_", "n_iter_", "classes_", "posterior_"} <= set(shown)
            assert shown[shown.index("valid_acc") + 2] == f"{last['valid_acc']:.4g}"
            assert not {"callbacks_", "prefixes_", "init_context_"} & set(shown)

    def test_in_a_pipeline(self, iris):
        model = make_pipeline(
            StandardScaler(), BSDClassifier(calibration=None, max_epochs=1)
        ).fit(*iris)
        texts = parsed(model._repr_html_()).texts
        assert sum("1 epoch on cpu" in text for text in texts) == 1

    def test_escaped(self):
        html = BSDClassifier(augmentation="<script>alert(1)</script>")._repr_html_()
        assert "<script>alert" not in html

    def test_without_a_timer(self, iris):
        model = BSDClassifier(
            calibration=None, max_epochs=2, callbacks__epoch_timer=None
        ).fit(*iris)
        assert "2 epochs on cpu; training loss" in model._repr_html_()

    def test_weights_without_history(self, iris):
        model = BSDClassifier(calibration=None, max_epochs=1).fit(*iris)
        model.history_ = None
        assert "epoch on" not in model._repr_html_()

    def test_fewer_figures_after_an_interrupt(self, iris):
        class Stop(Callback):
            def on_batch_end(self, net, **kwargs):
                if len(net.history) == 2:
                    raise KeyboardInterrupt

        model = BSDClassifier(calibration=None, max_epochs=5, callbacks=[Stop()])
        with pytest.warns(ConvergenceWarning, match="interrupted in epoch 2 of 5"):
            model.fit(*iris)
        assert "1 epoch on cpu" in model._repr_html_()


if NEWEST:
    from sklearn.callback import ProgressBar as SklearnProgressBar
    from sklearn.callback import ScoringMonitor


@pytest.mark.skipif(not NEWEST, reason="callbacks of scikit-learn 1.9")
class TestSklearnCallbacks:
    def test_scores_of_every_epoch(self, iris):
        X, y = iris
        monitor = ScoringMonitor(scoring=["accuracy", "neg_log_loss"])
        model = BSDClassifier(
            calibration=None, max_epochs=4, random_state=0
        ).set_callbacks(monitor)
        assert model.fit(X, y) is model
        log = monitor.get_logs().data_as_pandas
        epochs = log[log["task_name"] == "epoch"]
        assert len(epochs) == 4
        for n, accuracy in enumerate(epochs["accuracy"], start=1):
            early = quick(max_epochs=4, callbacks=[StopAfter(n)]).fit(X, y)
            assert accuracy == early.score(X, y)
        assert epochs["accuracy"].iloc[-1] == model.score(X, y)
        assert log.loc[log["task_name"] == "fit", "accuracy"].item() == model.score(
            X, y
        )

    def test_changes_nothing(self, iris):
        monitor = ScoringMonitor(scoring="accuracy")
        watched = BSDClassifier(
            calibration=None, max_epochs=3, random_state=0
        ).set_callbacks(monitor)
        plain = BSDClassifier(calibration=None, max_epochs=3, random_state=0).fit(*iris)
        watched.fit(*iris)
        assert watched.history_[:, "train_loss"] == plain.history_[:, "train_loss"]
        assert watched.__dict__.keys() - plain.__dict__.keys() == {"_skl_callbacks"}

    def test_sample_weight_reaches_the_score(self, iris):
        X, y = iris
        weight = (y == 0) * 1.0 + (y == 1)
        monitor = ScoringMonitor(scoring="accuracy")
        model = BSDClassifier(
            calibration=None, max_epochs=3, random_state=0
        ).set_callbacks(monitor)
        model.fit(X, y, sample_weight=weight)
        log = monitor.get_logs().data_as_pandas
        assert log["accuracy"].iloc[0] == model.score(X, y, weight)

    def test_a_callback_stops(self, iris):
        class Stop:
            ended = 0

            def setup(self, estimator, context):
                pass

            def teardown(self, estimator, context):
                self.torn_down = True

            def on_fit_task_begin(self, estimator, context):
                pass

            def on_fit_task_end(self, estimator, context):
                self.ended += context.task_name == "epoch"
                return self.ended == 2

        stop = Stop()
        model = (
            BSDClassifier(calibration=None, max_epochs=9).set_callbacks(stop).fit(*iris)
        )
        assert model.n_iter_ == stop.ended == 2
        assert stop.torn_down

    def test_hears_of_the_epoch_in_which_skorch_stops(self, iris):
        monitor = ScoringMonitor(scoring="accuracy")
        model = BSDClassifier(
            max_epochs=9,
            callbacks=[EarlyStopping(patience=2, threshold=1e9)],
            train_split=ValidSplit(5),
        )
        model.set_callbacks(monitor).fit(*iris)
        log = monitor.get_logs().data_as_pandas
        assert 2 <= model.n_iter_ < 9
        assert (log["task_name"] == "epoch").sum() == model.n_iter_

    def test_nothing_is_left_where_a_callback_fails(self, iris):
        class Fails(ScoringMonitor):
            def on_fit_task_begin(self, estimator, context):
                raise RuntimeError("on purpose")

        model = BSDClassifier(calibration=None, max_epochs=1)
        before = model.__dict__.keys() | {"_skl_callbacks"}
        model.set_callbacks(Fails(scoring="accuracy"))
        with pytest.raises(RuntimeError, match="on purpose"):
            model.fit(*iris)
        assert model.__dict__.keys() == before

    def test_torn_down_after_an_error(self, iris):
        X, y = iris
        bars = SklearnProgressBar()
        model = BSDClassifier(calibration=None, max_epochs=2, lr=1e30).set_callbacks(
            bars
        )
        too_large = pytest.warns(UserWarning, match="standard deviation")
        with too_large, pytest.raises(ValueError, match="NaN or infinite"):
            model.fit(X * 1e18, y)
        assert bars._listener_handles == {}
        assert not hasattr(model, "_callback_fit_ctx")

    def test_in_pipeline_and_search(self, iris):
        monitor = ScoringMonitor(scoring="accuracy")
        model = BSDClassifier(calibration=None, max_epochs=2).set_callbacks(monitor)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), model),
            {"bsdclassifier__prior_strength": [10, 100]},
            cv=2,
        )
        search.set_callbacks(SklearnProgressBar()).fit(*iris)
        log = monitor.get_logs().data_as_pandas
        assert (log["task_name"] == "epoch").sum() == 2 * (2 * 2 + 1)

    def test_pickled_with_its_callbacks(self, iris):
        model = BSDClassifier(calibration=None, max_epochs=1).set_callbacks(
            ScoringMonitor(scoring="accuracy")
        )
        model.fit(*iris)
        again = pickle.loads(pickle.dumps(model))
        assert again.score(*iris) == model.score(*iris)

    def test_refuses_what_is_no_callback(self):
        with pytest.raises(TypeError, match="FitCallback"):
            BSDClassifier().set_callbacks(ProgressBar())


class StopAfter(Callback):
    def __init__(self, n):
        self.n = n

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.n:
            raise KeyboardInterrupt
