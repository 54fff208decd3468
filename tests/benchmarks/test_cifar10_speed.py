"""The benchmark runs with each of its options, on few images."""

import cifar10_speed as benchmark
import numpy as np
import pytest
import torch

from skbsd.networks import SpeedNet

SMALL = ["--device", "cpu", "--epochs", "1", "--seeds", "2", "--batch-size", "20"]


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """Replace the data by noise, and leave the signal handlers unchanged."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(40) % 10
    monkeypatch.setattr(benchmark, "load_cifar10", lambda *a, **k: (images, labels))
    monkeypatch.setattr(benchmark, "stop_at_interrupt", lambda: None)


@pytest.mark.parametrize(
    "options",
    [
        ["--widths", "4", "4", "4", "--seeds", "1", "--compare-small"],
        ["--widths", "4", "4", "4", "--loss", "smoothing", "--no-averaging"],
        ["--widths", "4", "4", "4", "--target", "96", "--views", "flip"],
        ["--recipe", "resnet9", "--seeds", "1"],
    ],
)
def test_runs(options, capsys, tmp_path):
    file = tmp_path / "rows.csv"
    benchmark.main([*SMALL, *options, "--output", str(file)])
    out = capsys.readouterr().out
    assert "% in" in out
    assert ("SmallResNet in the same time" in out) is ("--compare-small" in options)
    rows = file.read_text().splitlines()
    assert rows[0].startswith("recipe,target,loss,seed,accuracy,seconds")
    assert len(rows) == 1 + (1 if "--seeds" in options else 2)


def test_rates_are_the_papers():
    args = benchmark.parse_arguments(["--device", "cpu"])
    model = benchmark.build(args, 0, args.epochs)
    assert (model.batch_size, model.max_epochs) == (1024, 10)
    assert model.lr == pytest.approx(1.5)
    model.initialize()
    biases, others = model.optimizer_.param_groups
    assert biases["lr"] == pytest.approx(96)
    assert len(biases["params"]) == 6
    assert len(others["params"]) == 8  # convolutions, whitening's bias, head
    # What a step takes of a weight is the same.
    taken = [group["lr"] * group["weight_decay"] for group in (biases, others)]
    assert taken[0] == pytest.approx(taken[1])
    assert isinstance(model.module_, SpeedNet)


def test_needs_a_device():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        benchmark.main([])
