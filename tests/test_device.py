"""Within an epoch the host neither waits for a GPU nor copies to it.

Shown without one, where no operation takes the way through the host that only a GPU
would notice. With one, `test_gpu.py` finds waits in torch's own code as well.
"""

import itertools

import numpy as np
import pytest
import torch
from _pretended import HostError, pretended
from helpers import quick
from modules import Convolution
from skorch.dataset import ValidSplit
from torch.nn import functional as F

from skbsd import BSDClassifier
from skbsd._batches import ResidentBatches
from skbsd.contrastive import Contrastive
from skbsd.posterior import DirichletPosterior, UpdateRule

RNG = np.random.default_rng(0)
N, BATCH_SIZE = 100, 16
Y = np.arange(N) % 3
TABLE = RNG.normal(size=(N, 6)).astype(np.float32)
IMAGES = RNG.integers(0, 255, size=(N, 1, 8, 8), dtype=np.uint8)
SMALL = {"module": Convolution(3), "cuda_graph": True}
FLIP_CROP = SMALL | {"augmentation": "flip-crop"}
CASES = {
    "table": (TABLE, {}),
    "plain evidence": (TABLE, {"prior_strength": 100.0}),
    "infinite prior": (TABLE, {"prior_strength": np.inf}),
    "discount": (TABLE, {"prior_strength": "noisy", "discount": 0.9}),
    "float16 store": (TABLE, {"posterior_dtype": "float16"}),
    "class weights": (TABLE, {"class_weight": {0: 1.0, 1: 2.0, 2: 3.0}}),
    "SGD": (TABLE, {"optimizer": torch.optim.SGD}),
    "images": (IMAGES, FLIP_CROP),
    "strong": (IMAGES, SMALL | {"augmentation": "strong"}),
    "weighted images": (IMAGES, FLIP_CROP | {"class_weight": "balanced"}),
    "two views": (IMAGES, FLIP_CROP | {"contrastive": 0.2}),
    "supervised": (
        IMAGES,
        FLIP_CROP
        | {"contrastive": Contrastive(supervised=True), "class_weight": "balanced"},
    ),
}


@pytest.fixture
def device():
    with pretended() as device:
        yield device


@pytest.fixture
def guarded(device, monkeypatch):
    """Raise an error if the loop waits for the device or copies to it."""
    iterate, passes = ResidentBatches.__iter__, itertools.count()

    def guarded(self):
        # The first epoch, two passes with validation, fills caches.
        if next(passes) < 2:
            yield from iterate(self)
            return
        with device.guarded():
            yield from iterate(self)

    monkeypatch.setattr(ResidentBatches, "__iter__", guarded)
    return passes


EAGER = {"cuda_graph": False, "max_epochs": 2, "batch_size": 32}


def fit(X, *, model=BSDClassifier, **parameters):
    """Train for enough steps that some of them can be captured."""
    settings = {"max_epochs": 4, "batch_size": BATCH_SIZE, "device": "cuda"}
    fixed = {"train_split": ValidSplit(5), "calibration": None, "random_state": 0}
    return model(**settings | fixed | parameters).fit(X, Y)


def faulty(fault, device):
    """Return a classifier that calls a function in its guarded steps."""

    class Faulty(BSDClassifier):
        def train_step_single(self, batch, **fit_params):
            step = super().train_step_single(batch, **fit_params)
            if device.is_guarded:
                fault(step, batch)
            return step

    return Faulty


def first(error):
    """Return the error that caused the others."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@pytest.mark.parametrize("case", CASES)
def test_epoch_stays_on_the_device(case, guarded, device):
    X, parameters = CASES[case]
    model = fit(X, **parameters | EAGER)
    assert (model.device_.type, model.data_loading_) == ("cuda", "resident")
    assert next(guarded) == 2 * model.n_iter_ == 4
    assert "posterior_step" in device.launched


@pytest.mark.parametrize("given", [{}, {"prior_strength": 100.0}])
def test_compact_store_stays_on_the_device(given, guarded, device):
    model = fit(TABLE, posterior_dtype="compact-2", **given | EAGER)
    assert next(guarded) == 2 * model.n_iter_ == 4
    assert "topk" in device.launched
    assert model.posterior_.device.type == "cuda"
    captured = fit(TABLE, posterior_dtype="compact-2", **given)
    assert captured.cuda_graph_
    assert "topk" in device.recorded[0]


@pytest.mark.parametrize("case", CASES)
def test_captured_step_stays_on_the_device(case, device):
    X, parameters = CASES[case]
    model = fit(X, **parameters)
    assert model.cuda_graph_
    (recorded,) = device.recorded
    assert "posterior_step" in recorded
    assert ("adam" in " ".join(recorded)) == (case != "SGD")
    # A whole batch is one launch, but for the first steps, which are not captured.
    pairs = itertools.groupby(device.launched, "graph".__eq__)
    runs = [len(list(run)) for is_graph, run in pairs if is_graph]
    per_epoch = len(Y) * 4 // 5 // BATCH_SIZE
    assert runs == [per_epoch - 3, *[per_epoch] * 3]


# Operations that wait for the device or copy to it, and part of the error.
FAULTS = {
    "item": (lambda step, batch: step["loss"].item(), "reads"),
    "float": (lambda step, batch: float(step["loss"]), "reads"),
    "condition": (lambda step, batch: bool((batch.y >= 0).all()), "reads"),
    "equal": (lambda step, batch: torch.equal(batch.y, batch.rows), "reads"),
    "mask": (lambda step, batch: batch.x[batch.y == 0], "reads"),
    "nonzero": (lambda step, batch: (batch.y == 0).nonzero(), "reads"),
    "one-hot": (lambda step, batch: F.one_hot(batch.y), "reads"),
    "repeat": (lambda step, batch: batch.x.repeat_interleave(batch.y, 0), "reads"),
    "slice": (lambda step, batch: batch.x[: batch.y[0]], "reads"),
    "cpu": (lambda step, batch: step["loss"].cpu(), "copies"),
    "tolist": (lambda step, batch: batch.y.tolist(), "copies"),
    "to": (lambda step, batch: torch.ones(3).to(batch.y), "copies"),
    "numpy": (
        lambda step, batch: torch.as_tensor(np.ones(3), device=batch.y.device),
        "copies",
    ),
    "numbers": (
        lambda step, batch: torch.tensor([1.0, 2.0], device=batch.y.device),
        "copies",
    ),
    "alike": (lambda step, batch: batch.x.new_tensor([1.0, 2.0]), "copies"),
    "fill": (lambda step, batch: batch.x[0].copy_(torch.ones(6)), "host and device"),
    "index": (lambda step, batch: batch.y[torch.arange(3)], "host and device"),
    "list": (lambda step, batch: batch.y[[0, 1]], "copies"),
    "select": (
        lambda step, batch: batch.y.index_select(0, torch.arange(3)),
        "host and device",
    ),
    "add": (lambda step, batch: step["y_pred"] + torch.ones(3), "host and device"),
    "wait": (lambda step, batch: torch.cuda.synchronize(), "waits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_noticed(fault, guarded, device):
    call, message = FAULTS[fault]
    with pytest.raises(HostError) as caught:
        fit(TABLE, model=faulty(call, device), **EAGER)
    assert message in str(first(caught.value))


@pytest.mark.parametrize("fault", ["item", "mask", "cpu", "numbers", "list", "wait"])
def test_fault_is_noticed_where_a_step_is_captured(fault, device):
    call, message = FAULTS[fault]
    with pytest.warns(RuntimeWarning, match=f"HostError.*{message}"):
        model = fit(TABLE, model=faulty(call, device), cuda_graph=True)
    assert not model.cuda_graph_


HOST_WORK = {
    "random": lambda step, batch: torch.rand(2),
    "arithmetic": lambda step, batch: HOST_TENSOR.add_(1),
    "with the device": lambda step, batch: step["loss"] + HOST_TENSOR,
}
HOST_TENSOR = torch.zeros(())


@pytest.mark.parametrize("name", HOST_WORK)
def test_captured_step_does_nothing_on_the_host(name, guarded, device):
    model = faulty(HOST_WORK[name], device)
    fit(TABLE, model=model, **EAGER)  # where it is allowed
    with pytest.warns(RuntimeWarning, match=r"HostError.*works on the host"):
        assert not fit(TABLE, model=model, cuda_graph=True).cuda_graph_


def test_fault_is_noticed_beside_the_step(guarded):
    class Reads(BSDClassifier):
        def validation_step(self, batch, **fit_params):
            step = super().validation_step(batch, **fit_params)
            step["loss"].item()
            return step

    def augmentation(x):
        return x if x.mean() > 0 else -x

    for parameters in ({"model": Reads}, {"augmentation": augmentation}):
        with pytest.raises(HostError) as caught:
            fit(TABLE, **parameters | EAGER)
        assert "reads" in str(first(caught.value))


def test_what_does_not_wait_is_allowed(guarded, device):
    def harmless(step, batch):
        x, y = batch.x, batch.y
        x.new_zeros(3)[0] = 1.0
        x.new_ones(6).masked_fill_(x[0] > 0, 2.0)
        _ = x[y], x[0], x[-1:], x * 2.0, x + torch.tensor(1.0)
        _ = torch.arange(3, device=x.device), torch.full((2,), 3.0, device=x.device)
        _ = F.one_hot(y, 3), torch.where(x > 0, x, 0.0), torch.as_tensor(x)
        _ = x.shape, len(y), x.to(torch.float64), x.to("cuda")

    fit(TABLE, model=faulty(harmless, device), **EAGER)


def test_rule_is_loaded_once_and_always_to_the_same_place(device):
    labels = torch.zeros(4, dtype=torch.int64, device="cuda")
    posterior = DirichletPosterior(labels, 3)
    assert posterior.on_kernel(torch.float32)
    rules = [UpdateRule(weight=weight) for weight in (1.0, 2.0, 2.0, 1.0)]
    places, copies = set(), []
    for rule in rules:
        before = len(device.launched)
        posterior.load_rule(rule)
        copies.append(len(device.launched) - before)
        places.add(posterior._numbers)
        with device.guarded():  # nothing is left to be copied
            posterior.update(
                torch.zeros(4, 3, device="cuda"), labels, None, rule, assume_unique=True
            )
            posterior.target(labels, rule)
    assert copies == [0, 1, 0, 1]  # the first is made of the numbers
    assert len(places) == 1
    with device.guarded(), pytest.raises(HostError, match="host and device"):
        posterior.load_rule(UpdateRule(weight=3.0))


def test_nothing_is_left_of_the_pretence(iris):
    before = torch.cuda.is_available(), torch.cuda.CUDAGraph
    with pretended() as device, device.guarded():
        numbers = torch.zeros(2, device="cuda")
        assert numbers.is_cuda
        with pytest.raises(HostError):
            numbers.tolist()
    assert (torch.cuda.is_available(), torch.cuda.CUDAGraph) == before
    assert quick(device="cpu").fit(*iris).device_.type == "cpu"
    assert torch.ones(2).tolist() == [1.0, 1.0]
