"""Searches of many fits: epochs of successive halving; memory and threads of workers.

There are four stages, each with a table:

- `halving`: epochs of `HalvingGridSearchCV` with the resource `max_epochs`, in the
  search and with the final fit, without a checkpoint and with one, where each round
  continues from the last one. Scores have to be exactly equal.
- `memory`: resident memory of a loky worker after each of many fits of the same data,
  which joblib memory-maps, and the memory that a fit of 256 MB adds in a new process,
  for an array that is mapped read-only and for one in memory.
- `threads`: a serial search with one and two threads of torch, while no, one and two
  other processes are busy, in interleaved rounds.
- `workers`: the same search serially and on two loky workers, and whether the results
  are equal.

    python benchmarks/searches.py halving
    python benchmarks/searches.py memory threads workers --rounds 3
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from _common import machine
from joblib.externals.loky import get_reusable_executor
from sklearn.datasets import load_digits
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV

from skbsd import BSDClassifier, _run

RATES = np.geomspace(1e-3, 1e-1, 8).tolist()
DECAYS = [0.0, 1e-3, 1e-2, 1e-1]
# Number of candidates, factor, and epochs of the last round.
HALVINGS = ((8, 2, 32), (16, 2, 32), (32, 2, 32), (32, 3, 81))


def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


# Successive halving


class Counted:
    """Counts the epochs that are run within the context."""

    def __enter__(self) -> "Counted":
        self.n_epochs = 0
        self._run_epoch = run_epoch = _run.Run._run_epoch

        def counted(run):
            self.n_epochs += 1
            return run_epoch(run)

        _run.Run._run_epoch = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_) -> None:
        _run.Run._run_epoch = self._run_epoch  # type: ignore[method-assign]


def halved(
    n_candidates: int, longest: int, factor: int, **kwargs
) -> tuple[int, dict[str, Any]]:
    """Search; return the number of epochs and the results."""
    model = BSDClassifier(calibration=None, random_state=0, device="cpu", **kwargs)
    n_rounds = 1 + int(np.log(n_candidates) / np.log(factor) + 1e-9)
    search = HalvingGridSearchCV(
        model,
        {"lr": RATES[: max(2, n_candidates // 4)], "weight_decay": DECAYS},
        resource="max_epochs",
        min_resources=longest // factor ** (n_rounds - 1),
        max_resources=longest,
        factor=factor,
        cv=5,
        scoring="neg_log_loss",
        random_state=0,
    )
    X, y = digits()
    with Counted() as counted:
        search.fit(X[:600], y[:600])
    return counted.n_epochs, search.cv_results_


def halving() -> None:
    print("candidates  factor  epochs  schedule   plain  continued  ratio  all")
    for n_candidates, factor, longest in HALVINGS:
        for name, schedule in (
            ("constant", {"lr_schedule": "constant", "prior_strength": 60.0}),
            ("one-cycle", {"schedule_epochs": longest}),
        ):
            setting = n_candidates, longest, factor
            plain, expected = halved(*setting, **schedule)
            with tempfile.TemporaryDirectory() as folder:
                again, found = halved(*setting, checkpoint=folder, **schedule)
            keys = [f"split{i}_test_score" for i in range(5)]
            same = all((found[key] == expected[key]).all() for key in keys)
            ratio = (again - longest) / (plain - longest)  # without the final fit
            print(
                f"{n_candidates:10d}  {factor:6d}  {longest:6d}  {name:9s}  "
                f"{plain - longest:5d}  {again - longest:9d}  {ratio:5.3f}  "
                f"{again / plain:5.3f}  {'same' if same else 'OTHER'} scores",
                flush=True,
            )


# Memory


def resident() -> float:
    """Return the resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def fit_and_look(X: np.ndarray, y: np.ndarray) -> tuple[int, str, float]:
    kind = f"{type(X).__name__}, {'writable' if X.flags.writeable else 'read-only'}"
    BSDClassifier(max_epochs=2, random_state=0, device="cpu").fit(X, y)
    return os.getpid(), kind, resident()


def memory(n_fits: int = 20) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 200), dtype=np.float32)
    y = (X[:, 0] > 0).astype(int)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        found = joblib.Parallel()(
            joblib.delayed(fit_and_look)(X, y) for _ in range(2 * n_fits)
        )
    get_reusable_executor().shutdown()
    by_worker: dict[int, list[float]] = {}
    for pid, _, size in found:
        by_worker.setdefault(pid, []).append(size)
    print(f"{X.nbytes / 2**20:.0f} MB come as {found[0][1]}")
    for sizes in by_worker.values():
        print(
            f"MB after fit 1: {sizes[0]:.0f}, 5: {sizes[4]:.0f}, 10: {sizes[9]:.0f}, "
            f"{len(sizes)}: {sizes[-1]:.0f}"
        )
    _of_a_large_array()


_LARGE = """
import resource, sys
import numpy as np
from skbsd import BSDClassifier
X = np.load(sys.argv[1], mmap_mode="r" if sys.argv[2] == "mapped" else None)
y = np.arange(len(X)) % 2
fit = BSDClassifier(calibration=None, max_epochs=1, random_state=0, device="cpu").fit
fit(X[:1000], y[:1000])
def private():  # what is not the file's
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(l.split()[1]) for l in lines if l.startswith("Anonymous:"))
import threading, time
peak, ends = [0], threading.Event()
def look():
    while not ends.wait(0.005):
        peak[0] = max(peak[0], private())
before = private()
watch = threading.Thread(target=look); watch.start()
fit(X, y)
ends.set(); watch.join()
print(round((peak[0] - before) / 1024))
"""


def _of_a_large_array() -> None:
    """Print the memory that a fit adds, for data that are mapped or in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "X.npy")
        rng = np.random.default_rng(0)
        # Above ResidentBatches.COPY, batches are gathered one by one.
        np.save(path, rng.standard_normal((360_000, 200), dtype=np.float32))
        size = path.stat().st_size / 2**20
        for how in ("mapped", "in memory"):
            command = [sys.executable, "-c", _LARGE, str(path), how]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{size:.0f} MB {how}: a fit adds {done.stdout.strip()} MB at most")


# Threads and workers


def search(**kwargs) -> GridSearchCV:
    model = BSDClassifier(calibration=None, max_epochs=10, random_state=0, device="cpu")
    grid = {"lr": RATES[4:], "weight_decay": DECAYS[2:]}
    found = GridSearchCV(model, grid, cv=3, scoring="neg_log_loss", **kwargs)
    return found.fit(*digits())


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _busy() -> None:
    while True:
        pass


def threads(rounds: int) -> None:
    search()  # warms up
    for n_busy in range(3):
        others = [multiprocessing.Process(target=_busy) for _ in range(n_busy)]
        for process in others:
            process.start()
        taken: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for n in taken:
                torch.set_num_threads(n)
                taken[n].append(seconds(search))
        for process in others:
            process.terminate()
        print(
            f"with {n_busy} other busy processes: "
            + "; ".join(
                f"{n} threads {statistics.median(t):.1f} s "
                f"({min(t):.1f} to {max(t):.1f})"
                for n, t in taken.items()
            ),
            flush=True,
        )
    torch.set_num_threads(1)


def workers(rounds: int) -> None:
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    taken: dict[str, list[float]] = {"serial": [], "two workers": []}
    for i in range(rounds + 1):
        for name, n_jobs in (("serial", None), ("two workers", 2)):
            with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
                start = time.perf_counter()
                results.append(search(n_jobs=n_jobs).cv_results_)
                if i:  # the first one starts the workers
                    taken[name].append(time.perf_counter() - start)
    for name, t in taken.items():
        print(f"{name}: {statistics.median(t):.2f} s ({min(t):.2f} to {max(t):.2f})")
    keys = [key for key in results[0] if key.endswith("_test_score")]
    same = all((r[key] == results[0][key]).all() for r in results for key in keys)
    print("exactly the same scores:", same)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = ["halving", "memory", "threads", "workers"]
    parser.add_argument("stages", nargs="+", choices=stages)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(machine())
    for stage in args.stages:
        print(f"\n{stage}")
        if stage in ("threads", "workers"):
            globals()[stage](args.rounds)
        else:
            globals()[stage]()


if __name__ == "__main__":
    main()
