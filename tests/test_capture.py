"""Recorded steps compared with single operations, on the CPU.

A stand-in records operations where a GPU would: see recording.py. tests/test_gpu.py has
the same with CUDA graphs.
"""

from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from recording import Recording
from skorch.callbacks import Callback, Freezer, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn

from skbsd import BSDClassifier, _capture, _formulas, _run, posterior
from skbsd._learning_rate import LearningRate
from skbsd.augmentation import FlipCrop
from skbsd.contrastive import Contrastive
from skbsd.networks import SmallResNet, SpeedNet
from skbsd.objectives import SelfDistillation


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Enable recording on the CPU, and use the same operations in eager steps."""
    monkeypatch.setattr(_capture, "Graph", Recording)
    monkeypatch.setattr(_capture, "same_generator", lambda device: nullcontext())
    monkeypatch.setattr(_run, "records_graphs", lambda device: True)
    # Operations of NumPy cannot be recorded.
    monkeypatch.setattr(posterior.DirichletPosterior, "_backend", lambda *_: _formulas)
    monkeypatch.setattr(posterior.DirichletPosterior, "on_kernel", lambda *_: True)
    init = LearningRate.__init__

    def rounded(self, *args):
        init(self, *args)
        self._is_rounded = True

    monkeypatch.setattr(LearningRate, "__init__", rounded)
    Recording.made.clear()


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(230, 6)).astype(np.float32)
    return X, (X[:, 0] + X[:, 1] > 0) + (X[:, 2] > 1).astype(int)


@pytest.fixture(scope="module")
def images(uint8_digits):
    X, y = uint8_digits
    return X[:150], y[:150]


# Learning rates set by callbacks are not rounded; this one is exact in float32.
EXACT = 2.0**-7


def both(data, *, graphs=1, **kwargs):
    """Fit with and without recording; return both."""
    settings = {"batch_size": 32, "max_epochs": 6, "evidence": "plain"} | kwargs
    recorded = quick(cuda_graph=True, **settings).fit(*data)
    assert recorded.cuda_graph_
    assert len(Recording.made) == graphs
    eager = quick(cuda_graph=False, **settings).fit(*data)
    assert not eager.cuda_graph_
    return recorded, eager


def assert_same(one, other):
    assert same_weights(one, other)
    assert torch.equal(one.posterior_._alpha, other.posterior_._alpha)
    assert torch.equal(one.posterior_.visits, other.posterior_.visits)
    for name in ("train_loss", "train_batch_count", *EXTRA & set(one.history[-1])):
        assert one.history[:, name] == other.history[:, name]
    sizes = ("batches", slice(None), "train_batch_size")
    assert one.history[(-1, *sizes)] == other.history[(-1, *sizes)]


EXTRA = {"valid_loss", "valid_acc", "contrastive_loss"}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"lr_schedule": "constant", "lr": EXACT},
        {"batch_size": 46},  # divides the number of samples
        {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
        {"class_weight": {0: 1.0, 1: 2.0, 2: 3.0}},
        {"train_split": ValidSplit(5, stratified=True)},
        {"train_split": ValidSplit(5, stratified=True), "averaging": "ema"},
        {"optimizer__param_groups": [("*.bias", {"lr": 0.05, "weight_decay": 0})]},
    ],
    ids=lambda kwargs: " ".join(kwargs) or "default",
)
def test_learns_the_same(table, kwargs):
    recorded, eager = both(table, **kwargs)
    assert_same(recorded, eager)
    (graph,) = Recording.made
    assert graph.n_calls == 3
    whole = 6 * (len(recorded.posterior_.visits) // kwargs.get("batch_size", 32))
    if "train_split" not in kwargs:
        assert graph.n_replays == whole - 3


@pytest.mark.parametrize(
    "kwargs",
    [
        {"augmentation": "flip-crop"},
        {"augmentation": FlipCrop(alternating=True)},
        {"contrastive": Contrastive(supervised=True)},
        {"contrastive": Contrastive(weight=0.0), "augmentation": "flip-crop"},
        {"module": SmallResNet, "module__in_channels": 1, "module__n_classes": 10},
        {"module": SpeedNet, "module__in_channels": 1, "module__widths": (8, 8)},
    ],
    ids=["flip-crop", "alternating", "contrastive", "two views", "given", "speed"],
)
def test_learns_the_same_from_images(images, kwargs):
    assert_same(*both(images, max_epochs=5, **kwargs))


def test_weighted_evidence_counts_the_same(table):
    """Here too the rule's numbers are Python's, so that only counts can agree."""
    seen = []

    class Noting(SelfDistillation):
        def end_epoch(self, correct):
            super().end_epoch(correct)
            seen.append(correct)

    class Classifier(BSDClassifier):
        def make_objective(self):
            return Noting("auto", "weighted")

    settings = {"batch_size": 32, "max_epochs": 5, "calibration": None}
    recorded = Classifier(cuda_graph=True, **settings).fit(*table)
    assert recorded.cuda_graph_
    assert [correct.total for correct in seen] == [len(table[1])] * 5
    assert all(0 < correct.correct < correct.total for correct in seen)
    weights = {0: 1.0, 1: 2.0, 2: 3.0}
    recorded.set_params(class_weight=weights).fit(*table)
    assert seen[-1].total == pytest.approx(len(table[1]), rel=1e-5)


def test_further_calls_record_anew(table):
    models = [
        quick(cuda_graph=wanted, batch_size=32, max_epochs=5, evidence="plain")
        for wanted in (True, False)
    ]
    for _ in range(3):
        for model in models:
            model.partial_fit(*table)
    assert_same(*models)
    assert len(Recording.made) == 3


def test_goes_on_from_a_checkpoint(table, tmp_path):
    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise Killed

    kwargs = {"batch_size": 32, "max_epochs": 6, "evidence": "plain"}
    kwargs |= {"checkpoint": tmp_path, "cuda_graph": True}
    with pytest.raises(Killed):
        quick(callbacks=[Kill()], **kwargs).fit(*table)
    resumed = quick(**kwargs).fit(*table)
    kwargs |= {"checkpoint": None, "cuda_graph": False}
    assert_same(resumed, quick(**kwargs).fit(*table))


def _halve(module, args, output):
    return output / 2


def move_weights(module):
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def load_copies(optimizer):
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))


class Change(Callback):
    """Calls a function with the net at the beginning of an epoch."""

    def __init__(self, function, epoch=3):
        self.function = function
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.function(net)


@pytest.mark.parametrize(
    ("change", "graphs"),
    [
        (lambda net: net.set_params(lr=8 * EXACT), 1),
        (lambda net: net.set_params(optimizer__weight_decay=0.5), 2),
        (lambda net: net.module_.layers[0].requires_grad_(False), 2),
        (lambda net: net.module_.layers.append(nn.Dropout(0.0)), 2),
        (lambda net: net.module_.layers.insert(1, nn.Sigmoid()), 2),
        (lambda net: net.module_.layers.register_forward_hook(_halve), 2),
        (lambda net: move_weights(net.module_), 2),
        (lambda net: load_copies(net.optimizer_), 2),
    ],
    ids=["rate", "decay", "frozen", "layer", "other", "hook", "moved", "state"],
)
def test_follows_what_callbacks_change(table, change, graphs):
    recorded, eager = both(
        table,
        graphs=graphs,
        callbacks=[Change(change)],
        lr_schedule="constant",
        lr=EXACT,
    )
    assert_same(recorded, eager)


def test_schedulers_of_epochs_are_followed(table):
    policy = LRScheduler(policy="StepLR", step_size=2, gamma=0.5)
    recorded, eager = both(table, callbacks=[policy], lr=EXACT)
    assert_same(recorded, eager)
    assert recorded.optimizer_.param_groups[0]["lr"] == EXACT / 8


def test_callbacks_see_plain_rates(table):
    seen = []
    look = Change(lambda net: seen.append(net.optimizer_.param_groups[0]["lr"]))
    both(table, callbacks=[look])
    assert isinstance(seen[0], float)
    assert seen[0] == seen[1]


def test_an_interrupted_epoch_keeps_its_steps(table, monkeypatch):
    replay, replays = Recording.replay, []

    def interrupted(self):
        replay(self)
        replays.append(self)
        if len(replays) == 13:  # in the third epoch of seven whole batches
            raise KeyboardInterrupt

    monkeypatch.setattr(Recording, "replay", interrupted)
    model = quick(cuda_graph=True, batch_size=32, max_epochs=5, evidence="plain")
    with pytest.warns(UserWarning, match="epoch 3"):
        model.fit(*table)
    assert model.n_iter_ == 2
    losses = model.history[2, "batches", :, "train_loss"]
    assert len(losses) == 1
    assert losses[0] > 0


def test_a_step_that_cannot_be_recorded(table, monkeypatch):
    def record(self):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Recording, "record", record)
    settings = {"batch_size": 32, "max_epochs": 6, "evidence": "plain"}
    model = quick(cuda_graph=True, **settings)
    with pytest.warns(RuntimeWarning, match="cannot be recorded.*not permitted") as w:
        model.fit(*table)
    assert sum("recorded" in str(warning.message) for warning in w) == 1
    assert not model.cuda_graph_
    assert_same(model, quick(cuda_graph=False, **settings).fit(*table))


class Reads(BSDClassifier):
    def train_step(self, batch, **fit_params):
        return super().train_step(batch, **fit_params)


class OnBatches(Callback):
    def on_batch_end(self, net, **kwargs):
        pass


class OnGradients(Callback):
    def on_grad_computed(self, net, **kwargs):
        pass


@pytest.mark.parametrize(
    ("cls", "kwargs", "reason"),
    [
        (BSDClassifier, {"callbacks": [OnBatches()]}, "looks at single batches"),
        (BSDClassifier, {"callbacks": [OnGradients()]}, "looks at single batches"),
        (BSDClassifier, {"optimizer": torch.optim.RMSprop}, "optimizer"),
        (BSDClassifier, {"optimizer__fused": False}, "optimizer"),
        (BSDClassifier, {"iterator_train__shuffle": True}, "loader"),
        (BSDClassifier, {"batch_size": 200}, "fewer than 20"),
        (Reads, {}, "train_step of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_why_it_has_no_effect(table, cls, kwargs, reason):
    settings = {"max_epochs": 3, "batch_size": 32, "calibration": None} | kwargs
    model = cls(cuda_graph=True, **settings)
    with pytest.warns(RuntimeWarning, match=f"no effect.*{reason}"):
        model.fit(*table)
    assert not model.cuda_graph_
    cls(cuda_graph="auto", **settings).fit(*table)  # says nothing


class OwnNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("kwargs", "recorded"),
    [
        ({}, True),
        ({"module": OwnNet}, False),
        ({"module": nn.Linear(6, 3)}, False),
        ({"augmentation": lambda x: x}, False),
    ],
    ids=["own", "class", "instance", "augmentation"],
)
def test_auto_is_for_what_is_known(table, kwargs, recorded):
    model = quick(batch_size=32, **kwargs).fit(*table)
    assert model.cuda_graph_ == recorded


def test_hooks_make_a_network_unknown(table):
    from skbsd.networks import MLP

    network = MLP(6, 3)
    assert quick(batch_size=32, module=network).fit(*table).cuda_graph_
    network.register_forward_hook(_look)
    assert not quick(batch_size=32, module=network).fit(*table).cuda_graph_


def _look(module, args, output):
    pass


@pytest.mark.parametrize(
    "add",
    [
        lambda net: net.module_.register_forward_hook(_look),
        lambda net: net.module_.layers[0].weight.register_hook(lambda grad: grad / 2),
        lambda net: setattr(net.module_.layers, "2", Own()),
        lambda net: net.optimizer_.register_step_post_hook(lambda *_: None),
    ],
    ids=["hook", "gradient", "layer", "optimizer"],
)
def test_goes_on_one_by_one_where_a_network_becomes_unknown(table, add):
    settings = {"batch_size": 32, "max_epochs": 6, "evidence": "plain"}
    settings["callbacks"] = [Change(add, epoch=4)]
    one = quick(cuda_graph="auto", **settings).fit(*table)
    (graph,) = Recording.made
    assert one.cuda_graph_
    assert graph.n_replays == 3 * 7 - 3
    assert_same(one, quick(cuda_graph=False, **settings).fit(*table))


class Own(nn.Module):
    def forward(self, x):
        return x.relu()


def test_freezing_by_skorch(table):
    recorded, eager = both(table, callbacks=[Freezer("layers.0.*")])
    assert_same(recorded, eager)


@pytest.mark.parametrize("value", ["yes", 1.5, None])
def test_checks_the_parameter(table, value):
    with pytest.raises(ValueError, match="cuda_graph"):
        quick(cuda_graph=value).fit(*table)
