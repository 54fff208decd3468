import sys

import numpy as np
import pytest
from helpers import quick
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from skbsd.display import TrainingDisplay

EPOCHS = [
    {"epoch": 1, "train_loss": 1.1, "valid_loss": 0.9, "valid_acc": 0.6, "batches": []},
    {"epoch": 2, "train_loss": 0.8, "valid_loss": 0.5, "valid_acc": 0.7, "batches": []},
    {"epoch": 3, "train_loss": 0.7, "valid_loss": 0.6, "valid_acc": 0.9, "batches": []},
]


class InterruptingIn(Callback):
    """Interrupts training in the middle of some epoch, as Ctrl-C does."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


def curve(display, name):
    return display.lines_[name].get_xydata().T


def legend_texts(display):
    return [text.get_text() for text in display.axes_[0].get_legend().get_texts()]


def test_with_validation(plt, iris):
    model = quick(max_epochs=4, train_split=ValidSplit(3, stratified=True)).fit(*iris)
    display = TrainingDisplay.from_estimator(model)
    history = model.history_
    assert list(display.lines_) == ["train_loss", "valid_loss", "valid_acc"]
    for name in display.lines_:
        assert_array_equal(curve(display, name), [[1, 2, 3, 4], history[:, name]])

    losses, accuracy = display.axes_
    assert display.lines_["train_loss"].axes is losses
    assert display.lines_["valid_loss"].axes is losses
    assert display.lines_["valid_acc"].axes is accuracy
    assert losses.get_ylabel() == "Loss"
    assert losses.get_xlabel() == ""
    assert accuracy.get_ylabel() == "Validation accuracy"
    assert accuracy.get_xlabel() == "Epoch"
    assert losses.get_xlim() == accuracy.get_xlim()
    best = 1 + int(np.argmin(history[:, "valid_loss"]))
    assert display.best_epoch_ == best
    for ax in display.axes_:
        assert_array_equal(ax.lines[-1].get_xdata(), [best, best])
    assert legend_texts(display) == [
        "Training, to its targets",
        "Validation, to the labels",
        f"Least validation loss: epoch {best}",
    ]
    styles = [(line.get_color(), line.get_marker()) for line in losses.lines[:2]]
    assert len({*styles[0], *styles[1]}) == 4


def test_without_validation(plt, iris):
    model = make_pipeline(StandardScaler(), quick()).fit(*iris)
    display = TrainingDisplay.from_estimator(model)
    assert list(display.lines_) == ["train_loss"]
    assert_array_equal(
        curve(display, "train_loss"), [[1, 2, 3], model[-1].history_[:, "train_loss"]]
    )
    assert len(display.axes_) == 1
    assert display.best_epoch_ is None
    assert display.axes_[0].get_xlabel() == "Epoch"
    assert len(display.axes_[0].lines) == 1


def test_contrastive(plt, digits):
    X, y = digits
    model = quick(contrastive=0.5, max_epochs=2).fit(X[:64] / 16, y[:64])
    display = TrainingDisplay.from_estimator(model)
    recorded = model.history_[:, "contrastive_loss"]
    assert_array_equal(curve(display, "contrastive_loss"), [[1, 2], recorded])
    assert legend_texts(display) == [
        "Training, contrastive included",
        "Contrastive, before its weight",
    ]


def test_epochs_that_were_interrupted(plt, iris):
    model = quick(callbacks=[InterruptingIn(3)], batch_size=50)
    with pytest.warns(ConvergenceWarning, match="interrupted in epoch 3"):
        model.fit(*iris)
    assert len(model.history_) == 3
    display = TrainingDisplay.from_estimator(model)
    assert_array_equal(display.epoch, [1, 2])
    # What goes on later has the numbers of skorch.
    model.set_params(callbacks=None)
    model.warm_start = True
    model.fit(*iris)
    display = TrainingDisplay.from_estimator(model)
    known = [epoch for epoch in model.history_ if "train_loss" in epoch]
    assert_array_equal(display.epoch, [epoch["epoch"] for epoch in known])
    assert_array_equal(display.train_loss, [epoch["train_loss"] for epoch in known])


def test_columns_that_some_epochs_lack(plt):
    history = [dict(epoch) for epoch in EPOCHS]
    del history[1]["valid_loss"], history[1]["valid_acc"]
    display = TrainingDisplay.from_history(history)
    assert_array_equal(display.valid_loss, [0.9, np.nan, 0.6])
    assert display.best_epoch_ == 3
    display.figure_.canvas.draw()


def test_validation_loss_that_is_never_a_number(plt):
    display = TrainingDisplay([1, 2], [1.0, 0.9], valid_loss=[np.nan, np.nan]).plot()
    assert display.best_epoch_ is None
    assert len(legend_texts(display)) == 2


def test_init_only_stores():
    values = [object() for _ in range(5)]
    names = ("valid_loss", "contrastive_loss", "valid_acc")
    display = TrainingDisplay(*values[:2], **dict(zip(names, values[2:], strict=True)))
    assert list(vars(display).values()) == values


def test_lone_epoch_is_seen(plt):
    display = TrainingDisplay.from_history(EPOCHS[:1])
    assert display.lines_["train_loss"].get_marker() != "None"
    ticks = display.axes_[-1].get_xticks()
    assert_array_equal(ticks, np.round(ticks))


def test_many_epochs_have_few_markers(plt):
    display = TrainingDisplay(np.arange(1, 201), np.ones(200)).plot()
    assert 200 / display.lines_["train_loss"].get_markevery() <= 25


@pytest.mark.parametrize("layout", [None, "tight", "constrained"])
def test_given_axes(plt, layout):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout=layout)
    place = right.get_position()
    display = TrainingDisplay.from_history(EPOCHS, ax=right)
    assert display.figure_ is figure
    assert display.bounding_ax_ is right
    assert not right.axison
    assert not left.lines
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()
    upper, lower = (ax.get_position() for ax in display.axes_)
    assert lower.y1 < upper.y0
    if layout is None:
        assert (upper.x0, upper.x1, upper.y1, lower.y0) == pytest.approx(
            (place.x0, place.x1, place.y1, place.y0)
        )

    _, ax = plt.subplots()
    one_panel = TrainingDisplay([1, 2], [1.0, 0.9]).plot(ax)
    assert one_panel.axes_[0] is ax
    assert one_panel.bounding_ax_ is None


def test_style(plt):
    rc = dict(plt.rcParams)
    display = TrainingDisplay.from_history(EPOCHS, lw=4, alpha=0.5)
    assert dict(plt.rcParams) == rc
    assert {line.get_linewidth() for line in display.lines_.values()} == {4}
    assert {line.get_alpha() for line in display.lines_.values()} == {0.5}


def test_bad_input(plt, iris):
    from_history = TrainingDisplay.from_history
    for empty in (None, []):
        with pytest.raises(ValueError, match="none of the history's 0 epochs"):
            from_history(empty)
    with pytest.raises(ValueError, match=r"they hold \['batches', 'epoch'\]"):
        from_history([{"epoch": 1, "batches": []}])
    silent = quick(callbacks="disable", max_epochs=1).fit(*iris)
    with pytest.raises(ValueError, match="callbacks='disable'"):
        TrainingDisplay.from_estimator(silent)
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimator(quick())
    with pytest.raises(ValueError, match="got KNeighborsClassifier"):
        TrainingDisplay.from_estimator(KNeighborsClassifier().fit(*iris))
    with pytest.raises(AttributeError, match="not_a_property"):
        from_history(EPOCHS, not_a_property=1)
    assert not plt.get_fignums()


def test_matplotlib_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    display = TrainingDisplay([1], [1.0])
    for method, args in [
        ("plot", ()),
        ("from_estimator", (None,)),
        ("from_history", (EPOCHS,)),
    ]:
        match = rf"TrainingDisplay\.{method} .*pip install \"\.\[plot\]\""
        with pytest.raises(ImportError, match=match):
            getattr(display, method)(*args)
