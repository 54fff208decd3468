"""What only a CUDA device can show. Skipped where there is none."""

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

from skbsd import BSDClassifier, _loading
from skbsd._batches import ResidentBatches

pytestmark = [
    pytest.mark.gpu,
    # What the mode that finds waits says as it is set.
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


@pytest.fixture
def strict(monkeypatch):
    """Have the loop fail where it waits for the device between two batches."""
    iterate, passes = ResidentBatches.__iter__, itertools.count()
    before = torch.cuda.get_sync_debug_mode()

    def strictly(self):
        # The first epoch, two passes with validation, compiles kernels, chooses
        # algorithms and fills caches.
        if next(passes) < 2:
            yield from iterate(self)
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield from iterate(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(ResidentBatches, "__iter__", strictly)
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("contrastive", [None, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_waits_for_the_device_within_an_epoch(
    uint8_digits, weighted, contrastive, strict
):
    from skorch.dataset import ValidSplit

    X, y = uint8_digits
    model = BSDClassifier(
        max_epochs=3,
        augmentation="flip-crop",
        contrastive=contrastive,
        train_split=ValidSplit(5, stratified=True),
        random_state=0,
    ).fit(X, y, sample_weight=np.ones(len(y)) if weighted else None)
    assert model.data_loading_ == "resident"
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


def test_arrays_that_do_not_fit_are_pinned_and_loaded(iris, monkeypatch):
    monkeypatch.setattr(_loading, "free_memory", lambda device: 1)
    model = quick(device="cuda").fit(*iris)
    assert model.data_loading_ == "loader"
    assert model.score(*iris) > 0.9
