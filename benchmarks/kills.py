"""Fits that are killed (`kill -9`) repeatedly, compared with undisturbed fits.

Each setting trains with `BSDClassifier(checkpoint=...)` in a separate process, which is
killed at random times: every other time as soon as a file is being written. Then the
same call is made again. After four kills it runs until it finishes.

The script reports the number of kills, of files that could not be read after a kill
(expected: 0), the largest number of finished epochs that were lost (expected: 1, the
one whose file was being written), and whether network, posterior and history equal
those of the undisturbed fit bit for bit.

    python benchmarks/kills.py
    python benchmarks/kills.py --kills 100 --seed 1 --settings mlp
"""

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _common import machine
from golden import fingerprints, images, table
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from skbsd import BSDClassifier
from skbsd._files import read

# With more kills, a fit makes little progress between them.
_KILLS_PER_FIT = 4

# Forked from a process that has imported all packages, but trained nothing.
context = multiprocessing.get_context("fork")

split = ValidSplit(5, stratified=True)
SETTINGS: dict[str, tuple[Callable, dict]] = {
    "mlp": (lambda: table("digits"), {}),
    "mlp, SGD, weights, validation": (
        lambda: table("digits"),
        {
            "optimizer": torch.optim.SGD,
            "optimizer__momentum": 0.9,
            "class_weight": "balanced",
            "train_split": split,
        },
    ),
    "resnet, flip-crop": (
        lambda: images("uint8", 300),
        {"augmentation": "flip-crop", "max_epochs": 8},
    ),
    "resnet, SGD, validation": (
        lambda: images("float32", 300),
        {"optimizer": torch.optim.SGD, "train_split": split, "max_epochs": 8},
    ),
    "resnet, two views": (
        lambda: images("uint8", 200),
        {"contrastive": 0.2, "augmentation": "flip-crop", "max_epochs": 6},
    ),
}


class Tells(Callback):
    """Reports the number of finished epochs before the file of the last is written."""

    def __init__(self, counter):
        self.counter_ = counter  # not a parameter, for skorch, with an underscore

    def on_epoch_end(self, net, **kwargs):
        """Count the epoch."""
        self.counter_.value = len(net.history)

    def state_dict(self):
        """Return an empty state, as there is none."""
        return {}

    def load_state_dict(self, state):
        """Load nothing."""


def child(name: str, folder: str | None, counter, answer) -> None:
    """Fit, and send fingerprints of the result."""
    torch.set_num_threads(1)
    load, parameters = SETTINGS[name]
    defaults = {"max_epochs": 40, "random_state": 0, "device": "cpu"}
    model = BSDClassifier(
        **(defaults | parameters), calibration=None, checkpoint=folder
    )
    if counter is not None:
        model.set_params(callbacks=[Tells(counter)])
    answer.put(fingerprints(model.fit(*load())))


def left_alone(name: str) -> tuple[dict, float]:
    """Return the fingerprints of an undisturbed fit, and its seconds."""
    answer = context.Queue()
    start = time.perf_counter()
    process = context.Process(target=child, args=(name, None, None, answer))
    process.start()
    found = answer.get()
    process.join()
    return found, time.perf_counter() - start


class Outcome:
    """Counts of the kills and fits of a setting, and of their failures."""

    def __init__(self):
        self.kills = self.fits = self.unreadable = self.most_lost = self.equal = 0

    def look(self, folder: Path, finished: int) -> None:
        """Read the files that exist after a kill, and count losses."""
        paths = list(folder.glob("*.safetensors"))
        epochs = 0
        for path in paths:
            try:
                header, _ = read(path)
                epochs = header["state"]["run"]["epoch"]
            except ValueError as error:
                print(f"unreadable: {error}", flush=True)
                self.unreadable += 1
        self.most_lost = max(self.most_lost, finished - epochs)


def wait(process, folder: Path, longest: float, *, while_writing: bool) -> None:
    """Wait for up to `longest` seconds, and then optionally for a write to begin."""
    process.join(longest)
    deadline = time.monotonic() + 1
    while while_writing and process.is_alive() and time.monotonic() < deadline:
        if any(folder.glob(".*.tmp")):
            return


def fit_with_kills(
    name: str, rng, seconds: float, kills: int, outcome: Outcome, expected: dict
) -> None:
    """Repeat the same call until it finishes, killing it at most `kills` times."""
    with tempfile.TemporaryDirectory() as folder:
        for kill in range(kills + 1):
            counter, answer = context.Value("i", 0), context.Queue()
            arguments = name, folder, counter, answer
            process = context.Process(target=child, args=arguments)
            process.start()
            if kill < kills:
                longest = rng.uniform(0, seconds)
                wait(process, Path(folder), longest, while_writing=kill % 2 == 1)
            if kill == kills or not answer.empty():
                outcome.equal += answer.get() == expected
                outcome.fits += 1
                process.join()
                return
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            outcome.kills += 1
            outcome.look(Path(folder), counter.value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10, help="minimum per setting")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(machine(), flush=True)
    print(f"{'setting':30} kills  fits  unreadable  epochs lost  equal")
    for name in args.settings:
        expected, seconds = left_alone(name)
        outcome = Outcome()
        while outcome.kills < args.kills:
            left = min(_KILLS_PER_FIT, args.kills - outcome.kills)
            fit_with_kills(name, rng, seconds, left, outcome, expected)
        print(
            f"{name:30} {outcome.kills:5} {outcome.fits:5} {outcome.unreadable:11} "
            f"{outcome.most_lost:12} {outcome.equal:3} of {outcome.fits}",
            flush=True,
        )


if __name__ == "__main__":
    main()
