"""Starts the processes that train one network together, from scripts and notebooks.

They get the environment that torchrun would set. Each process reads its task from a
folder and writes its outcome there.
"""

import codecs
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from . import _fitted_state
from ._ranks import RankError, current
from ._sklearn_tasks import in_parallel
from ._state import dumps_by_value

# Number of seconds that the others have to end after one process has failed.
_GRACE = 3.0
# The code of a process. Until `do_part` begins, an interrupt ends it silently.
_CODE = """
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)
from skbsd._launch import do_part

do_part(sys.argv[1])
"""
_TASK, _ARRAY = "task.pkl", "X.npy"


def n_processes(devices: Any, device: torch.device) -> int:
    """Return the number of processes for a value of `devices`.

    Parameters
    ----------
    devices : int, "all" or None
    device : torch.device
        Device of the estimator.
    """
    n_gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    if devices in (None, "all"):
        return 1 if devices is None else n_gpus
    if device.type == "cuda" and devices > n_gpus:
        raise ValueError(
            f"devices={devices!r}, but torch sees {n_gpus} GPUs; pass devices='all', "
            "or device='cpu' to train in several processes on the CPU."
        )
    return devices


def fit_in_processes(net: Any, n: int, method: str, X: Any, arguments: dict) -> None:
    """Call a method of an estimator in new processes, and adopt the fitted state.

    Parameters
    ----------
    net : BSDClassifier
        It stays unchanged if the call fails.
    n : int
        Number of processes.
    method : {"fit", "partial_fit"}
    X : array-like or Dataset
    arguments : dict
        Further keyword arguments of the method.
    """
    with tempfile.TemporaryDirectory(prefix="skbsd-") as name:
        folder = Path(name)
        is_saved = isinstance(X, np.ndarray) and X.dtype != object
        if is_saved:  # mapped to memory by all of them
            np.save(folder / _ARRAY, X)
        task = (net, method, None if is_saved else X, arguments)
        (folder / _TASK).write_bytes(dumps_by_value(task))
        with _running(folder, n) as processes:
            failed, is_interrupted = _wait(processes)
        outcomes = [_outcome(folder, rank) for rank in range(n)]
    if is_interrupted and (failed or in_parallel()):
        # Either some processes had not yet begun to listen for interrupts, or this is
        # one of the fits of a search, and only this process can end the search.
        raise KeyboardInterrupt
    _raise(outcomes, failed)
    packed, caught = outcomes[0][1]
    _fitted_state.unpack(net, packed)
    if not isinstance(net.random_state, int | None):
        # The processes drew from a copy of the user's generator; advance the original.
        check_random_state(net.random_state).randint(2**31 - 1)
    for message, category in caught:
        warnings.warn(message, category, stacklevel=4)


@contextmanager
def _running(folder: Path, n: int) -> Iterator[list[subprocess.Popen]]:
    """Start processes; kill those that still run at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, torch.get_num_threads() // n))
    # Variables of a launcher that started this process must not reach the new ones.
    inherited = {k: v for k, v in os.environ.items() if "TORCHELASTIC" not in k}
    environment = {
        "OMP_NUM_THREADS": threads,
        **inherited,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(n),
        # The import path of this process, without the working directory.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    processes: list[subprocess.Popen] = []
    printing: list[threading.Thread] = []
    try:
        for rank in range(n):
            shown = subprocess.DEVNULL if rank else subprocess.PIPE
            with _errors(folder, rank).open("wb") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-c", _CODE, str(folder)],
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE,  # closed when this process ends
                    stdout=shown,
                    stderr=errors if rank else subprocess.PIPE,
                    # This process passes each interrupt on once.
                    start_new_session=True,
                )
            processes.append(process)
        first = processes[0]
        for pipe, shown_on, path in (
            (first.stdout, sys.stdout, os.devnull),
            (first.stderr, sys.stderr, _errors(folder, 0)),
        ):
            arguments = pipe, shown_on, Path(path)
            thread = threading.Thread(target=_show, args=arguments, daemon=True)
            thread.start()
            printing.append(thread)
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        for thread in printing:
            thread.join()


def _show(pipe: Any, shown_on: Any, path: Path) -> None:
    """Copy the first process's output to this one's, for notebooks, and to a file.

    Progress bars print no line ends, so the output is copied in pieces as it arrives.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with pipe, path.open("ab") as noted:
        while piece := pipe.read1(65536):
            noted.write(piece)
            if shown_on is not None:  # None under pythonw
                shown_on.write(decoder.decode(piece))
                shown_on.flush()


def _errors(folder: Path, rank: int) -> Path:
    """Return the path of the file with a process's standard error."""
    return folder / f"errors-{rank}.txt"


def _wait(processes: list[subprocess.Popen]) -> tuple[dict[int, int], bool]:
    """Wait for processes; return exit codes of failed ones, and any interrupt.

    The exit codes are in the order of the failures. An interrupt is passed on to all
    processes, which agree where to stop. A second interrupt is raised immediately.
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
                return failed, is_interrupted
            time.sleep(0.02)
        except KeyboardInterrupt:
            if is_interrupted:
                raise
            is_interrupted = True
            for process in processes:
                process.send_signal(signal.SIGINT)


def _outcome(folder: Path, rank: int) -> tuple[str, Any]:
    """Return the outcome of a process, or the end of its standard error if it died."""
    path = folder / f"outcome-{rank}.pkl"
    if path.exists():
        return pickle.loads(path.read_bytes())
    text = _errors(folder, rank).read_text(errors="replace")
    return "died", text[-2000:]


def _raise(outcomes: list[tuple[str, Any]], failed: dict[int, int]) -> None:
    """Raise the error that made a process fail, if any."""
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
            said = f" Its last output:\n{text}" if text else ""
            raise RankError(
                f"process {rank} of {n} that trained together died {how}. The "
                "estimator is unchanged. If `checkpoint` is set, the same call resumes "
                f"after the last complete epoch.{said}"
            )
    for error in raised.values():
        raise error


def _signal_name(number: int) -> str:
    if number == signal.SIGKILL:
        return "by SIGKILL, which the system sends when memory runs out"
    return f"by {signal.Signals(number).name}"


def do_part(name: str) -> None:
    """Run the task of a process.

    Parameters
    ----------
    name : str
        Path of the folder with the task.
    """
    folder = Path(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rank = int(os.environ["RANK"])
    parent = threading.Thread(target=_end_with_parent, args=(folder,), daemon=True)
    parent.start()
    try:
        current()  # selects this process's GPU before the estimator is loaded to it
        net, method, X, arguments = pickle.loads((folder / _TASK).read_bytes())
        if X is None:
            # Torch needs writable arrays; with "c", changes stay in this process.
            X = np.load(folder / _ARRAY, mmap_mode="c")
        with warnings.catch_warnings(record=True) as caught:
            getattr(net, method)(X, **arguments)
        if rank:
            outcome: tuple[str, Any] = ("done", None)
        else:
            said = [(str(w.message), w.category) for w in caught]
            outcome = ("done", (_fitted_state.pack(net), said))
    except BaseException as error:
        outcome = ("error", _sendable(error))
    path = folder / f"outcome-{rank}.pkl"
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(dumps_by_value(outcome))
    temporary.replace(path)
    sys.exit(outcome[0] == "error")


def _end_with_parent(folder: Path) -> None:
    """End this process when its parent ends, such as the kernel of a notebook.

    The parent can no longer remove the folder, which may contain all of X.
    """
    while os.read(0, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)  # another process may do so too
    os._exit(1)


def _sendable(error: BaseException) -> BaseException:
    """Return an exception that can be pickled, with its traceback as a note."""
    where = "".join(traceback.format_exception(error))
    try:
        pickle.loads(dumps_by_value(error))
    except Exception:  # pickling a custom exception may raise anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, RankError):
        error.add_note(f"\n{where}")
    return error
