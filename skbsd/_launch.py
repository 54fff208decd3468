"""Starting the processes that train one network together, for scripts and notebooks.

They are what torchrun would start: each runs ``python -m skbsd._launch FOLDER``, finds
in the folder what to do, and leaves its outcome there.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from . import _fitted_state
from ._ranks import RankError
from ._state import dumps_by_value

# How long the others have, in seconds, to end when one process has failed.
_GRACE = 3.0
_TASK, _ARRAY = "task.pkl", "X.npy"


def n_processes(devices: Any, device: torch.device) -> int:
    """Return how many processes `devices` stands for.

    Parameters
    ----------
    devices : int, "all" or None
    device : torch.device
        Of the estimator.
    """
    n_gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    if devices in (None, "all"):
        return 1 if devices is None else n_gpus
    if device.type == "cuda" and devices > n_gpus:
        raise ValueError(
            f"devices={devices!r}, but there are {n_gpus} GPUs; pass devices='all', or "
            "device='cpu' to train on processes of the CPU."
        )
    return devices


def fit_in_processes(net: Any, n: int, method: str, X: Any, arguments: dict) -> None:
    """Have processes call a method of an estimator, and take over what it leaves.

    Parameters
    ----------
    net : BSDClassifier
        Left as it is where the call fails.
    n : int
        How many processes.
    method : {"fit", "partial_fit"}
    X : array-like or Dataset
    arguments : dict
        The others.
    """
    with tempfile.TemporaryDirectory(prefix="skbsd-") as name:
        folder = Path(name)
        is_saved = isinstance(X, np.ndarray) and X.dtype != object
        if is_saved:  # mapped to memory by all of them
            np.save(folder / _ARRAY, X)
        task = (net, method, None if is_saved else X, arguments)
        (folder / _TASK).write_bytes(dumps_by_value(task))
        with _running(folder, n) as processes:
            failed = _wait(processes)
        outcomes = [_outcome(folder, rank) for rank in range(n)]
    _raise(outcomes, failed)
    packed, caught = outcomes[0][1]
    _fitted_state.unpack(net, packed)
    if not isinstance(net.random_state, int | None):
        # What a call draws from a generator of the user's, which was copied.
        check_random_state(net.random_state).randint(2**31 - 1)
    for message, category in caught:
        warnings.warn(message, category, stacklevel=4)


@contextmanager
def _running(folder: Path, n: int) -> Iterator[list[subprocess.Popen]]:
    """Start processes; what is left of them at the end is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, torch.get_num_threads() // n))
    environment = {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(n),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONUNBUFFERED": "1",
    }
    processes = []
    printing = None
    try:
        for rank in range(n):
            with (folder / f"errors-{rank}.txt").open("wb") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(folder)],
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                    stderr=errors,
                    # Interrupts come through this process, once.
                    start_new_session=True,
                )
            processes.append(process)
        printing = threading.Thread(target=_print, args=(processes[0],), daemon=True)
        printing.start()
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        if printing is not None:
            printing.join()
            if processes[0].stdout is not None:
                processes[0].stdout.close()


def _print(process: subprocess.Popen) -> None:
    """Print what the first process does, where a notebook shows it."""
    for line in process.stdout or ():
        sys.stdout.write(line.decode(errors="replace"))


def _wait(processes: list[subprocess.Popen]) -> dict[int, int]:
    """Wait for processes; return which have failed, and their exit codes.

    The first that fails is first. An interrupt is passed on to all of them, which
    agree where to stop; at a second one nothing is waited for.
    """
    failed: dict[int, int] = {}
    end = None
    is_interrupted = False
    while True:
        try:
            codes = [process.poll() for process in processes]
            new = {r: c for r, c in enumerate(codes) if c and r not in failed}
            failed |= new
            if new and end is None:
                end = time.monotonic() + _GRACE
            if None not in codes or (end is not None and time.monotonic() > end):
                return failed
            time.sleep(0.02)
        except KeyboardInterrupt:
            if is_interrupted:
                raise
            is_interrupted = True
            for process in processes:
                process.send_signal(signal.SIGINT)


def _outcome(folder: Path, rank: int) -> tuple[str, Any]:
    """Return what a process has left, or what it has said in place of that."""
    path = folder / f"outcome-{rank}.pkl"
    if path.exists():
        return pickle.loads(path.read_bytes())
    text = (folder / f"errors-{rank}.txt").read_text(errors="replace")
    return "died", text[-2000:]


def _raise(outcomes: list[tuple[str, Any]], failed: dict[int, int]) -> None:
    """Raise what has made a process fail, if one has."""
    n = len(outcomes)
    raised = {r: what for r, (kind, what) in enumerate(outcomes) if kind == "error"}
    for rank, error in raised.items():
        if not isinstance(error, RankError):
            if not isinstance(error, KeyboardInterrupt):
                error.add_note(f"(in process {rank} of {n} that trained together)")
            raise error
    for rank, code in failed.items():
        kind, text = outcomes[rank]
        if kind == "died":
            how = f"with exit code {code}" if code > 0 else _signal_name(-code)
            said = f" Its last words:\n{text}" if text else ""
            raise RankError(
                f"process {rank} of {n} that trained together died {how}. The "
                "estimator is as it was; with `checkpoint` set, the same call goes on "
                f"after the last whole epoch.{said}"
            )
    for error in raised.values():
        raise error


def _signal_name(number: int) -> str:
    if number == signal.SIGKILL:
        return "by SIGKILL, as processes do when memory runs out"
    return f"by {signal.Signals(number).name}"


def _main(folder: Path) -> None:
    """Do a process's part."""
    rank = int(os.environ["RANK"])
    try:
        net, method, X, arguments = pickle.loads((folder / _TASK).read_bytes())
        if X is None:
            X = np.load(folder / _ARRAY, mmap_mode="r")
        with warnings.catch_warnings(record=True) as caught:
            getattr(net, method)(X, **arguments)
        if rank:
            outcome: tuple[str, Any] = ("done", None)
        else:
            said = [(str(w.message), w.category) for w in caught]
            outcome = ("done", (_fitted_state.pack(net), said))
    except BaseException as error:
        outcome = ("error", error)
    path = folder / f"outcome-{rank}.pkl"
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(dumps_by_value(outcome))
    temporary.replace(path)
    sys.exit(outcome[0] == "error")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
