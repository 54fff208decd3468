"""How long a fitted model takes to predict one row, and a batch.

Each way predicts rows of scikit-learn's digits on one core, in rounds that alternate
between the ways. The table has the median time of a call, the tenth and the ninetieth
percentile, and the size of the file. The tenth percentile suffers least from what else
the machine does.

- predict_proba: of the estimator
- onnx: of the file that `export` writes, in onnxruntime
- pt2: of the program that `export` writes, in PyTorch

    OMP_NUM_THREADS=1 python benchmarks/serving.py [--output serving.csv]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from _common import Results, machine, rounds
from sklearn.datasets import load_digits

from skbsd import BSDClassifier

COLUMNS = ("input", "way", "rows", "p10_us", "p50_us", "p90_us", "bytes")


def ways(model: BSDClassifier, folder: Path) -> dict:
    """Return functions from an array to probabilities, and the sizes of their files."""
    model.export(folder / "model.onnx")
    model.export(folder / "model.pt2")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    program = torch.export.load(folder / "model.pt2").module()
    return {
        "predict_proba": (model.predict_proba, None),
        "onnx": (
            lambda X: session.run(None, {"X": X})[0],
            (folder / "model.onnx").stat().st_size,
        ),
        "pt2": (
            lambda X: program(torch.from_numpy(X)).numpy(),
            (folder / "model.pt2").stat().st_size,
        ),
    }


def microseconds(predict, X: np.ndarray, calls: int) -> list[float]:
    """Return the time of each call."""
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        predict(X)
        times.append((time.perf_counter_ns() - start) / 1000)
    return times


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=50, help="per round")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    X, y = load_digits(return_X_y=True)
    inputs = {
        "table of 64 columns": X.astype(np.float32),
        "uint8 images of 8 x 8": (X * 15).astype(np.uint8).reshape(-1, 1, 8, 8),
    }
    print(machine())
    print("".join(f"{name:>22}" for name in COLUMNS))
    results = Results(args.output, COLUMNS)
    for name, samples in inputs.items():
        model = BSDClassifier(max_epochs=2, calibration=None, random_state=0)
        model.fit(samples, y)
        with tempfile.TemporaryDirectory() as folder:
            found = ways(model, Path(folder))
            for n in (1, 256):
                times: dict[str, list[float]] = {way: [] for way in found}
                for _, way in rounds(args.rounds + 1, found):
                    times[way] += microseconds(found[way][0], samples[:n], args.calls)
                for way, (_, size) in found.items():
                    counted = times[way][args.calls :]  # the first round warms up
                    spread = np.percentile(counted, [10, 50, 90])
                    row = (name, way, n, *(f"{t:.0f}" for t in spread), size or "")
                    print("".join(f"{value:>22}" for value in row), flush=True)
                    results.add(*row)


if __name__ == "__main__":
    main()
