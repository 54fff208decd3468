"""Tests that need a CUDA device; skipped without one."""

import itertools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from modules import Linear
from numpy.testing import assert_allclose
from skorch.callbacks import Callback
from torch import nn

from skbsd import BSDClassifier, _loading
from skbsd._batches import ResidentBatches
from skbsd._capture import CapturedSteps
from skbsd.networks import SmallResNet

pytestmark = [
    pytest.mark.gpu,
    # The warning of torch when the synchronisation debug mode is set.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def quick(**kwargs):
    return BSDClassifier(**({"max_epochs": 20, "random_state": 0} | kwargs))


def test_auto_is_cuda(iris):
    model = quick().fit(*iris)
    assert model.device_.type == "cuda"
    assert model.posterior_.device.type == "cuda"
    assert next(model.module_.parameters()).is_cuda
    assert model.score(*iris) > 0.9


def test_agrees_with_the_cpu(iris):
    kwargs = {"module": Linear(), "precision": "float32", "batch_size": -1}
    on_gpu = quick(device="cuda", **kwargs).fit(*iris)
    on_cpu = quick(device="cpu", **kwargs).fit(*iris)
    assert_allclose(
        on_gpu.predict_proba(iris[0]), on_cpu.predict_proba(iris[0]), atol=1e-3
    )
    torch.testing.assert_close(
        on_gpu.posterior_.mean().cpu(), on_cpu.posterior_.mean(), atol=1e-3, rtol=0
    )


def test_images_with_augmentation_and_validation(uint8_digits):
    from skorch.dataset import ValidSplit

    X, y = uint8_digits
    model = quick(
        augmentation="flip-crop", train_split=ValidSplit(5, stratified=True)
    ).fit(X, y, sample_weight=np.ones(len(y)))
    assert model.history[-1, "valid_acc"] > 0.8


def test_tensors_on_the_device_stay_there(iris):
    X = torch.tensor(iris[0], dtype=torch.float32, device="cuda")
    model = quick().fit(X, torch.tensor(iris[1], device="cuda"))
    assert model.predict_proba(X).shape == (150, 3)


def test_global_generators_are_left_alone(iris):
    before = torch.cuda.get_rng_state()
    quick().fit(*iris)
    assert torch.equal(before, torch.cuda.get_rng_state())


@pytest.mark.filterwarnings("default")
def test_loads_where_there_is_no_gpu(iris, tmp_path):
    model = quick(module=None).fit(*iris)
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys; model = pickle.load(open(sys.argv[1], 'rb')); "
        "assert model.device_.type == model.posterior_.device.type == 'cpu'; "
        "print(model.predict([[0.0] * 4])[0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(model.predict(np.zeros((1, 4)))[0])


def test_exports_what_runs_on_the_cpu(uint8_digits, tmp_path):
    X, y = uint8_digits[0][:200], uint8_digits[1][:200]
    model = quick(max_epochs=2, calibration=None, precision="float32").fit(X, y)
    model.export(tmp_path / "model.pt2")
    assert next(model.module_.parameters()).is_cuda
    program = torch.export.load(tmp_path / "model.pt2").module()
    proba = program(torch.tensor(X))
    assert proba.device.type == "cpu"
    assert_allclose(proba, model.predict_proba(X), atol=1e-3)


@pytest.fixture
def strict(monkeypatch):
    """Raise an error if the loop waits for the device between two batches.

    Returns the passes that were looked at, replayed or not.
    """
    iterate, passes = ResidentBatches.__iter__, itertools.count()
    replay, looked_at = CapturedSteps.run, []
    before = torch.cuda.get_sync_debug_mode()

    def strictly(self):
        # The first epoch, two passes with validation, compiles kernels, chooses
        # algorithms and fills caches.
        if next(passes) < 2:
            yield from iterate(self)
            return
        looked_at.append("one by one")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield from iterate(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def strictly_replayed(self):
        had_graph = self.has_graph  # the first pass records
        steps = replay(self)
        yield next(steps)  # an epoch begins with its order and its images
        if had_graph:
            looked_at.append("replayed")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield from steps
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(ResidentBatches, "__iter__", strictly)
    monkeypatch.setattr(CapturedSteps, "run", strictly_replayed)
    yield looked_at
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("contrastive", [None, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_waits_for_the_device_within_an_epoch(
    uint8_digits, weighted, contrastive, cuda_graph, strict
):
    from skorch.dataset import ValidSplit

    X, y = uint8_digits
    model = BSDClassifier(
        max_epochs=3,
        augmentation="flip-crop",
        contrastive=contrastive,
        cuda_graph=cuda_graph,
        calibration=None,
        train_split=ValidSplit(5, stratified=True),
        random_state=0,
    ).fit(X, y, sample_weight=np.ones(len(y)) if weighted else None)
    assert model.data_loading_ == "resident"
    assert model.cuda_graph_ is cuda_graph
    assert ("replayed" in strict) is cuda_graph
    assert "one by one" in strict
    assert model.n_iter_ == 3
    assert model.history[-1, "valid_acc"] > (0.5 if contrastive is None else 0.2)


def test_the_loop_would_notice(strict):
    """A read within an epoch is an error under the mode that the test above sets."""

    class Reads(BSDClassifier):
        def train_step_single(self, batch, **fit_params):
            step = super().train_step_single(batch, **fit_params)
            step["loss"].item()
            return step

    with pytest.raises(RuntimeError, match="synchroniz"):
        Reads(max_epochs=3).fit(np.eye(300, 4, dtype=np.float32), np.arange(300) % 3)


def test_step_is_the_kernel_and_agrees_with_the_cpu():
    from skbsd import _kernels
    from skbsd.posterior import DirichletPosterior

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(100, (64,), generator=generator)
    index = torch.randperm(64, generator=generator)[:33]
    logits = 3 * torch.randn(33, 100, generator=generator)
    here = DirichletPosterior(labels, 100)
    there = DirichletPosterior(labels.cuda(), 100)
    assert _kernels.usable(logits.cuda(), there._alpha)
    loss, gradient = there.update(logits.cuda(), index.cuda())
    expected, slope = here.update(logits, index)
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.cpu(), slope, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(there.mean().cpu(), here.mean(), rtol=1e-5, atol=1e-7)
    assert torch.equal(there.visits.cpu(), here.visits)


def test_compact_step_is_a_kernel_and_agrees_with_the_cpu():
    from skbsd.posterior import CompactPosterior

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1000, (64,), generator=generator)
    here, there = (CompactPosterior(labels.to(d), 1000) for d in ("cpu", "cuda"))
    assert there.on_kernel(torch.float32)
    for _ in range(3):
        index = torch.randperm(64, generator=generator)[:33]
        logits = 3 * torch.randn(33, 1000, generator=generator)
        loss, gradient = there.update(logits.cuda(), index.cuda())
        expected, slope = here.update(logits, index)
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.cpu(), slope, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(there.mean().cpu(), here.mean(), rtol=0, atol=1e-3)
    assert torch.equal(there.visits.cpu(), here.visits)


@pytest.mark.parametrize("store", ["float32", "compact-3"])
def test_beliefs_in_a_file(store, tmp_path):
    X, y = table()
    kwargs = {"posterior_dtype": store, "cuda_graph": False}
    one = recorded(posterior_folder=tmp_path, **kwargs).fit(X, y)
    other = recorded(**kwargs).fit(X, y)
    assert one.posterior_.device.type == "cpu"
    difference = one.posterior_.mean() - other.posterior_.mean().cpu()
    assert difference.abs().mean().item() < 1e-3


def test_arrays_that_do_not_fit_are_pinned_and_loaded(iris, monkeypatch):
    monkeypatch.setattr(_loading, "free_memory", lambda device: 1)
    model = quick(device="cuda").fit(*iris)
    assert model.data_loading_ == "loader"
    assert model.score(*iris) > 0.9


def table(n=1000):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 20)).astype(np.float32)
    return X, (X @ rng.normal(size=(20, 4))).argmax(axis=1)


def recorded(**kwargs):
    settings = {"max_epochs": 5, "batch_size": 64, "calibration": None}
    return quick(device="cuda", **(settings | kwargs))


def assert_alike(one, other, *, atol):
    """Assert that two fits have learnt about the same."""
    assert one.n_iter_ == other.n_iter_
    losses = [model.history_[:, "train_loss"] for model in (one, other)]
    assert_allclose(*losses, atol=atol)
    assert losses[0][-1] < losses[0][0]
    pairs = zip(one.module_.parameters(), other.module_.parameters(), strict=True)
    for a, b in pairs:
        assert (a - b).abs().mean().item() < atol
    difference = one.posterior_.mean() - other.posterior_.mean()
    assert difference.abs().mean().item() < atol
    assert torch.equal(one.posterior_.visits, other.posterior_.visits)


class TestCudaGraph:
    """Steps that are captured once and replayed give the same results as others."""

    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
            {"lr_schedule": "constant", "class_weight": "balanced"},
            {"prior_strength": 60.0, "evidence": "plain"},
            {"posterior_dtype": "float16"},
            {"posterior_dtype": "compact-3"},
        ],
        ids=["default", "sgd", "weighted", "plain", "float16", "compact"],
    )
    def test_table(self, kwargs):
        data = table()  # a last batch is smaller
        models = [recorded(cuda_graph=graph, **kwargs) for graph in ("auto", False)]
        one, other = (model.fit(*data) for model in models)
        assert one.cuda_graph_
        assert not other.cuda_graph_
        assert_alike(one, other, atol=1e-3)

    @pytest.mark.parametrize("contrastive", [None, 0.2])
    def test_images(self, uint8_digits, contrastive):
        X, y = uint8_digits
        settings = {"augmentation": "flip-crop", "contrastive": contrastive}
        one, other = (
            recorded(cuda_graph=graph, **settings).fit(X, y)
            for graph in ("auto", False)
        )
        assert isinstance(one.module_, SmallResNet)
        assert one.cuda_graph_
        assert_alike(one, other, atol=3e-2)

    def test_callbacks_that_look_at_batches(self):
        class Batches(Callback):
            seen = 0

            def on_batch_end(self, net, batch, training, **kwargs):
                self.seen += len(batch[1])

        looks = Batches()
        model = recorded(callbacks=[looks]).fit(*table())
        assert not model.cuda_graph_
        assert looks.seen == 5 * 1000

    def test_says_that_it_has_no_effect(self):
        class Batches(Callback):
            def on_batch_end(self, net, **kwargs):
                pass

        model = recorded(callbacks=[Batches()], cuda_graph=True)
        with pytest.warns(RuntimeWarning, match="callback looks at single batches"):
            model.fit(*table())

    def test_network_that_reads_a_value(self):
        class Reads(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(20, 4)

            def forward(self, x):
                return self.layer(x * 2 if x.sum().item() > 1e30 else x)

        before = torch.cuda.get_rng_state()
        with pytest.warns(RuntimeWarning) as caught:
            model = recorded(module=Reads, cuda_graph=True).fit(*table())
        (message,) = [w.message for w in caught if w.category is RuntimeWarning]
        assert "cannot be recorded as a CUDA graph" in str(message)
        assert not model.cuda_graph_
        other = recorded(module=Reads, cuda_graph=False).fit(*table())
        assert_alike(model, other, atol=1e-3)
        # Random numbers are drawn as usual, and the next capture succeeds.
        assert torch.equal(before, torch.cuda.get_rng_state())
        assert torch.rand(100, device="cuda").unique().numel() > 90
        torch.cuda.set_rng_state(before)
        assert recorded().fit(*table()).cuda_graph_

    def test_networks_of_others_are_left_alone(self):
        class Own(nn.Linear):
            pass

        X, y = table()
        assert not recorded(module=Own(20, 4)).fit(X, y).cuda_graph_
        assert recorded(module=Own(20, 4), cuda_graph=True).fit(X, y).cuda_graph_

    def test_goes_on_after_it(self):
        X, y = table()
        one, other = (recorded(cuda_graph=graph).fit(X, y) for graph in ("auto", False))
        for model in (one, other):
            model.partial_fit(X, y)
        assert one.n_iter_ == other.n_iter_ > 5
        assert_alike(one, other, atol=1e-3)
        assert one.score(X, y) > 0.9

    def test_last_epochs_of_other_layers(self):
        """A layer that is frozen during training is not trained further."""

        class Freeze(Callback):
            def on_epoch_end(self, net, **kwargs):
                if len(net.history) == 3:
                    net.module_.layers[0].weight.requires_grad_(False)
                    self.weight = net.module_.layers[0].weight.clone()

        freeze = Freeze()
        model = recorded(callbacks=[freeze]).fit(*table())
        assert model.cuda_graph_
        assert torch.equal(model.module_.layers[0].weight, freeze.weight)

    def test_copies_and_pickles(self):
        X, y = table()
        model = recorded().fit(X, y)
        assert model.cuda_graph_
        again = pickle.loads(pickle.dumps(model))
        assert_allclose(again.predict_proba(X), model.predict_proba(X), atol=1e-6)


def test_memory_in_reserve_is_free_for_the_next_fit():
    X, y = (np.tile(part, (2**13,) + (1,) * (part.ndim - 1)) for part in table(1024))
    free, _ = torch.cuda.mem_get_info()
    # Memory that torch keeps after a fit, so that the driver has little left.
    held = torch.empty(free - 2**30, dtype=torch.uint8, device="cuda")
    del held
    try:
        model = recorded(max_epochs=1, batch_size=2**18).fit(X, y)
    finally:
        torch.cuda.empty_cache()
    assert X.nbytes > 2**29
    assert model.data_loading_ == "resident"
    assert model.cuda_graph_


def test_second_fit_stays_resident():
    data = table()
    for _ in range(2):
        model = recorded().fit(*data)
        assert model.data_loading_ == "resident"
        assert model.cuda_graph_


class Wide(nn.Module):
    """Takes 256 KiB for each row of a table."""

    def __init__(self):
        super().__init__()
        self.wide, self.head = nn.Linear(20, 2**16), nn.Linear(2**16, 4)

    def forward(self, x):
        return self.head(self.wide(x))


def test_prediction_that_does_not_fit_is_halved():
    X, y = table(256)
    model = recorded(module=Wide(), max_epochs=1, lr=1e-4).fit(X, y)
    expected = model.predict_proba(X)
    many = np.tile(X, (32, 1))  # 2 GiB at once
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    limit = torch.cuda.memory_reserved() + 2**29
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        with pytest.warns(RuntimeWarning, match="more memory than the GPU has"):
            found = model.predict_proba(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert_allclose(found[:256], expected, atol=1e-2)
    assert_allclose(found[-256:], expected, atol=1e-2)
