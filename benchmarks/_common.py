"""Functions that the benchmarks share: CIFAR-10, clocks, rounds and result files."""

import csv
import io
import os
import platform
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

NO_CUDA = "not run: no CUDA device"


def add_data_arguments(parser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        help="folder of torchvision's CIFAR-10, which is downloaded if missing",
    )
    parser.add_argument(
        "--npz",
        type=Path,
        help="folder of train.npz and test.npz instead, with the arrays `jpeg` "
        "(bytes), `offset` (start of each file, and the end) and `label`",
    )


def load_cifar10(
    args,
    limit: int | None = None,
    *,
    train: bool = True,
    choose: Callable[[np.ndarray], np.ndarray] | None = None,
):
    """Return uint8 images (n, 3, 32, 32) and labels.

    They are the first `limit` images, or those at the rows that `choose` returns from
    the array of all labels.
    """
    if args.npz is None:
        from torchvision.datasets import CIFAR10

        data = CIFAR10(args.data, train=train, download=True)
        label = np.asarray(data.targets)
        rows = slice(limit) if choose is None else choose(label)
        return np.ascontiguousarray(np.moveaxis(data.data[rows], -1, 1)), label[rows]
    from PIL import Image

    with np.load(args.npz / ("train.npz" if train else "test.npz")) as packed:
        jpeg, offset = packed["jpeg"], packed["offset"]
        label = packed["label"].astype(np.int64)
    rows = np.arange(len(label))[:limit] if choose is None else choose(label)
    images = np.empty((len(rows), 3, 32, 32), np.uint8)
    for i, image in zip(rows, images, strict=True):
        file = io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())
        image[:] = np.moveaxis(np.asarray(Image.open(file).convert("RGB")), -1, 0)
    return images, label[rows]


def machine() -> str:
    """Describe the machine and the versions, for the output."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if "model name" in x]
        name = models[0].partition(":")[2].strip() if models else name
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA"
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {name} "
        f"({os.cpu_count()} CPUs), {torch.get_num_threads()} threads, {gpu}"
    )


def stop_at_interrupt() -> None:
    """Let Ctrl-C end the program.

    A KeyboardInterrupt would only end the current fit, as skorch and BSDClassifier
    return the model so far, and its time would be recorded as that of a full fit.
    """
    signal.signal(signal.SIGINT, lambda *_: sys.exit("interrupted"))


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def clocked(call: Callable[[], object], repeats: int, device: str) -> float:
    """Return the seconds of `repeats` calls, by CUDA events on a GPU."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - begin


def rounds(n: int, names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield each name once per round, in an order that changes with the round.

    A machine that is slower for a while then affects all of them alike.
    """
    for i in range(n):
        order = list(names)
        random.Random(i).shuffle(order)
        for name in order:
            yield i, name


def ratios(times: dict[str, list[float]], above: str, below: str) -> list[float]:
    """Return ratios within each round; an interrupted round may lack a value."""
    pairs = zip(times.get(above, ()), times.get(below, ()), strict=False)
    return [a / b for a, b in pairs]


def spread(values: list[float], digits: int = 3) -> str:
    """Format median, minimum and maximum."""
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{mid:9.{digits}f} {low:9.{digits}f} {high:9.{digits}f}"


class Results:
    """CSV to which each row is appended at once, so that an interrupt loses none.

    An incomplete last line, left by a crash, is removed first.

    Parameters
    ----------
    file : Path or None
        With None, nothing is written.
    columns : sequence of str
        The header, written if the file is new.

    Raises
    ------
    ValueError
        If the file has other columns.
    """

    def __init__(self, file: Path | None, columns: tuple[str, ...]):
        self.file = file
        if file is None:
            return
        repair(file)
        if not (file.exists() and file.stat().st_size):
            self.add(*columns)
        with file.open(newline="") as lines:
            found = next(csv.reader(lines))
        if found != list(columns):
            raise ValueError(f"{file} has other columns: {', '.join(found)}.")

    def add(self, *row) -> None:
        """Append a row."""
        if self.file is not None:
            with self.file.open("a", newline="") as file:
                csv.writer(file).writerow(row)


def read_rows(
    file: Path | None, *, text: Collection[str], whole: Collection[str]
) -> list[dict]:
    """Return the rows of a file of `Results`, with numbers converted.

    Parameters
    ----------
    file : Path or None
        With None or a missing file, the result is empty.
    text, whole : collection of str
        Columns of text, and columns of integers; the others are floats.
    """

    def value(name: str, entry: str):
        if name in text:
            return entry
        return int(entry) if name in whole else float(entry)

    if file is None or not file.exists():
        return []
    with file.open(newline="") as lines:
        return [
            {name: value(name, entry) for name, entry in row.items()}
            for row in csv.DictReader(lines)
        ]


def matching(items: Iterable[Any], globs: Iterable[str], kind: str) -> list[Any]:
    """Return the cells or tasks of a panel whose names match.

    Parameters
    ----------
    items : iterable
        Objects with an attribute `name`.
    globs : iterable of str
        Names, or patterns such as "digits-*".
    kind : str
        What the items are, for the message.

    Raises
    ------
    ValueError
        If no name matches.
    """
    items, globs = [*items], [*globs]
    chosen = [x for x in items if any(fnmatchcase(x.name, glob) for glob in globs)]
    if not chosen:
        names = "\n".join(item.name for item in items)
        raise ValueError(f"no such {kind}; those of the panel:\n{names}")
    return chosen


def print_failures(errors: dict) -> None:
    """Print the tracebacks of failed runs, by the key of the run."""
    for key, error in errors.items():
        print(f"\nfailed: {key}\n{error}")


def repair(file: Path) -> None:
    """Remove an incomplete last line."""
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)
