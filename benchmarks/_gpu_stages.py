"""The stages of `gpu.py`: their commands, time limits and results.

Stages that measure by themselves write each result at once. For stages that run another
program, results are read from its rows or its output, even if it was stopped.
"""

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from _common import ratios
from _gpu_table import Figures

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SPEED_TARGETS = {("mlp-256", "skbsd", "A"): 0.35, ("resnet18-512", "skbsd", "A"): 1.02}
SPEED_PAIRS = (
    ("skbsd", "A"),
    ("skbsd-eager", "A"),
    ("skbsd", "skbsd-eager"),
    ("skbsd", "B1"),
    ("skbsd", "B0"),
)
SECONDS_TO = {"94": 3.0}  # target for the seconds, by target accuracy


class Given(NamedTuple):
    """The inputs from which a stage builds its command.

    Parameters
    ----------
    folder : Path
        Folder for output files.
    seconds : float
        Time limit.
    data : list of str
        Command-line arguments with the location of CIFAR-10; empty if not available.
    tiny : bool
        Whether to run at small size on the CPU, as a check of the script.
    """

    folder: Path
    seconds: float
    data: Sequence[str] = ()
    tiny: bool = False


class Left(NamedTuple):
    """The output of a process: new rows of its CSV, and the printed text."""

    rows: list[dict[str, str]]
    text: str


Collect = Callable[[Figures, str, Left], None]


@dataclass(frozen=True)
class Stage:
    """A process, and the function that reads results from its output.

    Parameters
    ----------
    name : str
    least, most : float
        Seconds that must be left to start it, and seconds after which it is stopped.
    command : callable
        Takes a `Given`; returns the command, or a str that names a missing requirement.
    collect : callable, optional
        Records results from the output.
    output : str, optional
        Name of the CSV in the folder that the process appends rows to.
    fine : tuple of int
        Exit codes that mean success.
    environment : dict, optional
    """

    name: str
    least: float
    most: float
    command: Callable[[Given], Sequence[str] | str]
    collect: Collect | None = None
    output: str | None = None
    fine: tuple[int, ...] = (0,)
    environment: tuple[tuple[str, str], ...] = ()


def measuring(name: str, least: float, most: float) -> Stage:
    """Return a stage that runs `gpu.measure` in its process."""

    def command(given: Given) -> list[str]:
        arguments = [str(HERE / "gpu.py"), "--measure", name]
        arguments += ["--output", str(given.folder)]
        return [sys.executable, *arguments, *(["--self-check"] if given.tiny else [])]

    return Stage(name, least, most, command)


# Tests

_RESULT = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.M)
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - (.*))?$", re.M)


def pytest(*arguments: str) -> list[str]:
    """Return the command that runs tests on a GPU."""
    options = ["-v", "--tb=short", "--color=no", "-p", "no:cacheprovider"]
    options += ["-o", "faulthandler_timeout=45"]  # shows where one hangs
    return [sys.executable, "-m", "pytest", "-m", "gpu", *options, *arguments]


def collect_tests(figures: Figures, stage: str, left: Left) -> None:
    """Count test results, and record the last line of each failure.

    A test that started but did not finish counts as a failure.
    """
    begun = [line for line in left.text.splitlines() if re.match(r"tests/\S+::", line)]
    without = [line.strip() for line in begun if not _RESULT.match(line)]
    results = dict.fromkeys(without, "ERROR")
    results |= dict(_RESULT.findall(left.text))  # an error at the end counts
    outcomes = [*results.values()]
    for name, kinds in (
        ("passed", {"PASSED"}),
        ("failed", {"FAILED", "ERROR"}),
        ("skipped", {"SKIPPED", "XFAIL", "XPASS"}),
    ):
        count = sum(outcome in kinds for outcome in outcomes)
        target = {"passed": 1, "failed": 0}.get(name)
        at_least = name == "passed"
        figures.add(stage, "tests", name, "", count, target, at_least=at_least)
    reasons = dict(_FAILURE.findall(left.text))
    for test, outcome in results.items():
        if outcome in {"FAILED", "ERROR"}:
            why = reasons.get(test) or "no reason given"
            figures.add(stage, test.rpartition("::")[2], outcome, "", why[:300])
    if not outcomes:
        last = left.text.strip().splitlines()[-1:] or ["no output"]
        figures.add(stage, "tests", "collected none", "", last[0][:300])


def testing(name: str, file: str, least: float, most: float) -> Stage:
    """Return a stage that runs a file of tests."""
    # 1: some failed.
    return Stage(name, least, most, lambda _: pytest(file), collect_tests, fine=(0, 1))


_SANITIZER = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
# One test of the kernel in registers, and one of the kernel in chunks.
_SANITIZED = "rows_in_registers and 10-33 or rows_in_chunks and 257-5"


def sanitizer() -> str | None:
    """Return the path of compute-sanitizer, or None."""
    found = shutil.which("compute-sanitizer")
    if found:
        return found
    places = sorted(Path("/usr/local").glob("cuda*/**/compute-sanitizer"))
    return next((str(p) for p in places if p.is_file()), None)


def sanitizing(tool: str) -> Stage:
    """Return a stage that runs a few tests under a tool of compute-sanitizer."""

    def command(given: Given) -> list[str] | str:
        program = sanitizer()
        if program is None:
            return "compute-sanitizer is not installed"
        tests = pytest("tests/test_kernels.py", "-k", _SANITIZED)
        return [program, "--tool", tool, "--print-limit", "5", *tests]

    def collect(figures: Figures, stage: str, left: Left) -> None:
        collect_tests(figures, stage, left)
        for count in _SANITIZER.findall(left.text)[-1:]:
            figures.add(stage, tool, "errors", "", int(count), 0)

    # So that each tensor is an allocation of its own, which the tool can check.
    environment = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    return Stage(
        f"sanitizer-{tool}", 40, 150, command, collect, None, (0, 1), environment
    )


# Other benchmarks

NO_IMAGES = "CIFAR-10 was not found; pass its folder with --data or --npz"


def collect_speed(figures: Figures, stage: str, left: Left) -> None:
    """Record seconds per epoch, and ratios within rounds."""
    rows = [row for row in left.rows if row["status"] == "ok"]
    rows.sort(key=lambda row: (row["case"], int(row["round"])))
    for case, group in groupby(rows, key=lambda row: row["case"]):
        times: dict[str, list[float]] = {}
        epochs: dict[str, list[float]] = {}
        for row in group:
            seconds = float(row["seconds"])
            times.setdefault(row["method"], []).append(seconds)
            epochs.setdefault(row["method"], []).append(seconds / int(row["epochs"]))
        for method, values in epochs.items():
            figures.add(stage, case, method, "s per epoch", values)
        for pair in SPEED_PAIRS:
            if values := ratios(times, *pair):
                target = SPEED_TARGETS.get((case, *pair))
                figures.add(stage, case, " / ".join(pair), "", values, target)


def timing(
    name: str, case: str, methods: Sequence[str], least: float, most: float
) -> Stage:
    """Return a stage that times fits with `speed.py`, in as many rounds as fit."""

    def command(given: Given) -> list[str] | str:
        if case.startswith("resnet") and not given.data:
            return NO_IMAGES
        # The remaining time is for imports, images and warm-up.
        seconds = max(10.0, 0.6 * given.seconds - 10)
        return [
            *(sys.executable, str(HERE / "speed.py"), "--cases", case, "--methods"),
            *methods,
            *("--rounds", "11", "--seconds", f"{seconds:.0f}"),
            *("--output", str(given.folder / "speed.csv"), *given.data),
        ]

    return Stage(name, least, most, command, collect_speed, "speed.csv")


def collect_cifar10(figures: Figures, stage: str, left: Left) -> None:
    """Record accuracy and seconds of the seeds."""
    if not left.rows:
        return
    about = [left.rows[0].get(name) for name in ("recipe", "loss")]
    case = ", ".join(part for part in about if part)
    aim = left.rows[0].get("target") or "94"

    def values(column: str) -> list[float]:
        return [float(row[column]) for row in left.rows if row.get(column)]

    accuracy = values("accuracy")
    figures.add(stage, case, "accuracy", "%", accuracy, float(aim), at_least=True)
    mean = sum(accuracy) / len(accuracy)
    figures.add(stage, case, "mean accuracy", "%", mean, float(aim), at_least=True)
    figures.add(stage, case, "fit", "s", values("seconds"), SECONDS_TO.get(aim))
    for column in left.rows[0]:
        if column.endswith("_seconds"):
            figures.add(
                stage, case, column.removesuffix("_seconds"), "s", values(column)
            )


def reaching(
    name: str, target: int, seeds: int, least: float, most: float, *options: str
) -> Stage:
    """Return a stage that trains on CIFAR-10 with a target accuracy."""

    def command(given: Given) -> list[str] | str:
        if not given.data:
            return NO_IMAGES
        return [
            *(sys.executable, str(HERE / "cifar10_speed.py"), "--target", str(target)),
            *("--seeds", str(seeds), *options),
            *("--output", str(given.folder / "cifar10.csv"), *given.data),
        ]

    return Stage(name, least, most, command, collect_cifar10, "cifar10.csv")


def noise(given: Given) -> list[str] | str:
    """Return the command that trains on wrong labels."""
    if not given.data:
        return NO_IMAGES
    output = given.folder / "label_noise.csv"
    return [
        *(sys.executable, str(HERE / "label_noise.py"), "--panel", "noise-large"),
        *("--parts", "training", "--cells", "*-sym40", "--seeds", "50"),
        *("--methods", "CE", "BSD noisy", "--jobs", "1", "--output", str(output)),
        *("--detection", str(given.folder / "no_detection.csv"), *given.data),
    ]


def collect_noise(figures: Figures, stage: str, left: Left) -> None:
    """Record accuracy, calibration and seconds of training on wrong labels."""
    for row in left.rows:
        for name, unit in (("accuracy", ""), ("ece", ""), ("seconds", "s")):
            if row.get(name):
                case = f"{row['cell']}, {row['method']}"
                figures.add(stage, case, name, unit, float(row[name]))


def launches(given: Given) -> list[str] | str:
    """Return the command that counts kernel launches."""
    program = HERE / "launches.py"
    return [sys.executable, str(program)] if program.exists() else "no launches.py"


# The most important ones first.
STAGES = [
    measuring("ceilings", 15, 90),
    testing("kernel-tests", "tests/test_kernels.py", 60, 180),
    testing("gpu-tests", "tests/test_gpu.py", 40, 150),
    measuring("posterior", 20, 100),
    measuring("graph", 30, 120),
    timing(
        "speed-resnet18-512", "resnet18-512", ("skbsd", "A", "skbsd-eager"), 50, 110
    ),
    timing("speed-mlp-256", "mlp-256", ("skbsd", "A", "skbsd-eager", "B1"), 30, 80),
    reaching("cifar10-94", 94, 5, 40, 120),
    measuring("profile", 30, 120),
    reaching("cifar10-96", 96, 3, 90, 300),
    timing("speed-skorch", "resnet18-512", ("skbsd", "B1", "B0"), 60, 180),
    timing(
        "speed-resnet18-1024", "resnet18-1024", ("skbsd", "A", "skbsd-eager"), 50, 90
    ),
    sanitizing("memcheck"),
    sanitizing("racecheck"),
    reaching("cifar10-94-smoothing", 94, 5, 40, 120, "--loss", "smoothing"),
    reaching("cifar10-94-compiled", 94, 5, 90, 240, "--compile"),
    Stage("launches", 20, 60, launches),
    Stage("noise", 240, 560, noise, collect_noise, "label_noise.csv"),
]
# Stages of the self-check. Those that hang or die must not affect the others.
SELF_CHECK = [
    Stage(
        "hangs",
        0,
        1,
        lambda _: [sys.executable, "-c", "import time; time.sleep(600)"],
    ),
    Stage("dies", 0, 20, lambda _: [sys.executable, "-c", "import os; os.abort()"]),
    *(
        measuring(name, 0, 120)
        for name in ("ceilings", "posterior", "graph", "profile")
    ),
]
