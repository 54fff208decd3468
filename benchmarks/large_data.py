"""Train on a table that is larger than memory, and measure memory and time.

The script writes a table of --gigabytes to a file in --folder, unless one of this size
exists: rows of --features numbers in float32, of ten classes. Then a new process, whose
memory is limited to --limit gigabytes (RLIMIT_DATA: all memory that is not mapped from
a file, including that of libraries), maps the file and trains for an epoch with
`calibration="auto"`, which holds out 2,000 samples. It prints

- seconds of `fit` and of its epoch, and samples per second of the epoch;
- the peak of anonymous memory (RssAnon in /proc/self/status), and its size before
  `fit`. The system also keeps pages of the file in free memory.

--ways selects among

- mapped: numpy.load(file, mmap_mode="r"), with batches gathered in this process;
- workers: the same array, with two worker processes of a DataLoader;
- dataset: a Dataset that reads rows of the file, with two worker processes;
- beliefs: as mapped, with the beliefs in a file too, by `posterior_folder`.

With --cold, the file is dropped from the system's cache before each run. Linux only.

    python benchmarks/large_data.py --gigabytes 20 --folder /scratch [--cold]
"""

import argparse
import json
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _common import Results, machine
from torch.utils.data import Dataset

from skbsd import BSDClassifier

WAYS = ("mapped", "workers", "dataset", "beliefs")
N_CLASSES = 10


def write_table(path: Path, n_bytes: int, n_features: int) -> None:
    """Write rows of normal numbers about the centre of their class."""
    n = n_bytes // (4 * n_features)
    if path.exists() and np.load(path, mmap_mode="r").shape == (n, n_features):
        return
    rng = np.random.default_rng(0)
    centres = 0.1 * rng.normal(size=(N_CLASSES, n_features)).astype(np.float32)
    X = np.lib.format.open_memmap(path, "w+", np.float32, (n, n_features))
    # The same noise, shifted each time, as generating it is slower than the disk.
    noise = rng.normal(size=(4096, n_features)).astype(np.float32)
    for start in range(0, n, len(noise)):
        part = X[start : start + len(noise)]
        y = np.arange(start, start + len(part)) % N_CLASSES
        part[:] = noise[: len(part)] + centres[y]
        noise = np.roll(noise, 1 + start % 97, axis=1)
    X.flush()


class Rows(Dataset):
    """Dataset of the rows of a file, which each process maps separately."""

    def __init__(self, path: Path, n: int):
        self.path, self.n = path, n
        self._X: np.ndarray | None = None

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, int]]:
        if self._X is None:
            self._X = np.load(self.path, mmap_mode="r")
            # Rows are read in random order, so reading ahead is useless.
            self._X._mmap.madvise(mmap.MADV_RANDOM)
        return [(x, 0) for x in torch.from_numpy(self._X[rows])]

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.__getitems__([row])[0]

    def __getstate__(self) -> dict:
        return {**vars(self), "_X": None}


def anonymous() -> int:
    """Return the bytes of memory that are not mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) << 10 for x in lines if x.startswith("RssAnon"))


class Peak:
    """Measures the peak of anonymous memory in a thread."""

    def __init__(self):
        self.bytes = anonymous()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.01):
            self.bytes = max(self.bytes, anonymous())


def train(args) -> None:
    """Train in this process, within the limit; print the measurements as JSON."""
    limit = int(args.limit * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    path = table_of(args)
    if args.cold:
        drop_from_cache(path)
    X = np.load(path, mmap_mode="r")
    y = np.arange(len(X)) % N_CLASSES
    options = {}
    if args.train in ("workers", "dataset"):
        options["iterator_train__num_workers"] = 2
    if args.train == "beliefs":
        options["posterior_folder"] = args.folder
    model = BSDClassifier(
        max_epochs=1, batch_size=args.batch_size, random_state=0, **options
    )
    data = Rows(path, len(X)) if args.train == "dataset" else X
    before = anonymous()
    began = time.perf_counter()
    with Peak() as peak:
        model.fit(data, y)
    seconds = time.perf_counter() - began
    held_out = np.arange(0, len(X), max(1, len(X) // 5000))
    score = float((model.predict(X[held_out]) == y[held_out]).mean())
    epoch = model.history_[-1]["dur"]
    found = {
        "seconds": seconds,
        "epoch": epoch,
        "samples per second": len(X) / epoch,
        "before": before,
        "peak": peak.bytes,
        "accuracy": score,
    }
    print(json.dumps(found))


def drop_from_cache(path: Path) -> None:
    """Drop a file from the system's cache, so that it is read from the disk again."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def table_of(args) -> Path:
    return args.folder / f"skbsd-{args.gigabytes:g}GB-{args.features}.npy"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--features", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=4.0, help="gigabytes of memory")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--keep", action="store_true", help="do not delete the table")
    parser.add_argument("--output", type=Path, help="CSV that rows are appended to")
    parser.add_argument("--train", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.train:
        train(args)
        return
    print(machine())
    path = table_of(args)
    began = time.perf_counter()
    write_table(path, int(args.gigabytes * 1e9), args.features)
    n = len(np.load(path, mmap_mode="r"))
    print(
        f"{n:,} rows of {args.features} numbers, {path.stat().st_size / 1e9:.1f} GB, "
        f"written in {time.perf_counter() - began:.0f} s; memory limited to "
        f"{args.limit:g} GB, {'cold' if args.cold else 'warm'} cache"
    )
    columns = ("way", "gigabytes", "limit", "cold", "figure", "value")
    results = Results(args.output, columns)
    print(
        f"{'':8} {'fit, s':>8} {'epoch, s':>8} {'samples/s':>10} {'before, MB':>10} "
        f"{'peak, MB':>9} {'accuracy':>8}"
    )
    try:
        for way in args.ways:
            run = subprocess.run(
                [sys.executable, *sys.argv, "--train", way],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                print(f"{way:8} failed:\n{run.stderr[-2000:]}")
                continue
            found = json.loads(run.stdout.splitlines()[-1])
            print(
                f"{way:8} {found['seconds']:8.1f} {found['epoch']:8.1f} "
                f"{found['samples per second']:10,.0f} {found['before'] / 1e6:10.0f} "
                f"{found['peak'] / 1e6:9.0f} {found['accuracy']:8.3f}",
                flush=True,
            )
            for name, value in found.items():
                row = way, args.gigabytes, args.limit, args.cold, name, f"{value:g}"
                results.add(*row)
    finally:
        if not args.keep:
            path.unlink()


if __name__ == "__main__":
    main()
