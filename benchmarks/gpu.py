"""All benchmarks and tests that need a GPU, in one command and within a time limit.

Stages run one after the other, the most important first. Each has its own process and
time limit, so that one that crashes or hangs does not affect the others:

- ceilings: versions and card; bandwidth of a large copy, matrix products in bfloat16,
  TF32 and float32; time of host and device for launches of kernels and graphs.
- kernel-tests, gpu-tests: results of tests/test_kernels.py and tests/test_gpu.py.
- posterior: the step at the sizes of posterior_step.py, compared with a copy of as many
  bytes and with cross-entropy. 20 calls on different rows are captured as one CUDA
  graph, whose replays are timed by the device, so that launches are excluded; logits
  may be in a cache, and rows as far as they are in training. "step" follows the paper's
  rule, "step, sharpened" a rule like the default's; "kernel" is the launch without the
  sum of the losses.
- graph: a fit with steps in a CUDA graph, and two with single operations: losses,
  weights and targets have to agree within a tolerance (1e-3 for tables, 3e-2 for
  convolutions, which sum in no fixed order).
- profile: time of kernels and host, and launches, per step of four networks, replayed
  and with single operations; profile.txt lists the most expensive kernels.
- speed-*: `fit` compared with hand-written loops and skorch, by speed.py, in as many
  interleaved rounds as time allows.
- cifar10-*: time to 94 % and 96 % on CIFAR-10, by cifar10_speed.py.
- sanitizer-*: tests of the kernel under compute-sanitizer's memcheck and racecheck.
- launches: the output of launches.py.
- noise: wrong labels at full size, by label_noise.py.

Figures are written to gpu.jsonl in the folder at once, and after each stage to gpu.csv
and gpu.md, with median, range and target. The output of the processes is in log.txt,
and rows of the other benchmarks are in CSVs in the same folder. If called again with
the same folder, finished stages are skipped, and failed ones run last.

    python benchmarks/gpu.py --output gpu --npz FOLDER
    python benchmarks/gpu.py --output gpu --npz FOLDER --budget 1200 --stages 'speed-*'
    python benchmarks/gpu.py --self-check

The last line runs at small size on the CPU, as a check of the script.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from _common import add_data_arguments, matching, stop_at_interrupt
from _gpu_stages import ROOT, SELF_CHECK, STAGES, Given, Left, Stage
from _gpu_table import Figures, summary

LOG = "log.txt"
# Seconds reserved for the tables and for the end of a process.
RESERVE = 10
MEASURED = ("ceilings", "posterior", "graph", "profile")


def measure(name: str, folder: Path, *, tiny: bool) -> bool:
    """Run the measurements of a stage of this script; return whether all succeeded."""
    import _gpu_device
    import _gpu_fits

    if not (tiny or torch.cuda.is_available()):
        sys.exit("needs a CUDA device, and none was found; --self-check needs none")
    function = {
        "ceilings": _gpu_device.measure_ceilings,
        "posterior": _gpu_device.measure_posterior,
        "graph": _gpu_fits.measure_graph,
        "profile": _gpu_fits.measure_profile,
    }[name]
    return function(Figures(folder), "cpu" if tiny else "cuda", tiny=tiny) is not False


def environment(stage: Stage) -> dict[str, str]:
    """Return a process's environment, in which this copy of the library comes first."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    added = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    return os.environ | added | dict(stage.environment)


def run_process(
    command: Sequence[str], seconds: float, log: Path, env: dict[str, str]
) -> int | None:
    """Run a command; return its exit code, or None if it was stopped at the limit.

    Its output is appended to the log. A process that cannot be killed, because it waits
    for the GPU, is left running.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=env,
            process_group=0,
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """End a process and its children."""
    # When it is interrupted, pytest prints a summary of the tests so far.
    for number, patience in (
        (signal.SIGINT, 4),
        (signal.SIGTERM, 2),
        (signal.SIGKILL, 2),
    ):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def end_cleanly() -> None:
    """Turn signals into exceptions, so that no child process is left running."""
    stop_at_interrupt()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))


def rows_of(file: Path | None) -> list[dict[str, str]]:
    """Return the rows of a CSV, none if it is missing."""
    if file is None or not file.exists():
        return []
    with file.open(newline="") as lines:
        return [*csv.DictReader(lines)]


def run_stage(stage: Stage, given: Given, figures: Figures) -> str:
    """Run a stage, record its figures and its status, and return the status."""
    print(f"\n== {stage.name}, at most {given.seconds:.0f} s", flush=True)
    begin = time.monotonic()
    command = stage.command(given)
    if isinstance(command, str):
        figures.add(stage.name, "stage", "not run", "", command)
        figures.finish(stage.name, "not run", 0)
        return "not run"
    log = given.folder / LOG
    with log.open("a") as output:
        print(f"\n== {stage.name}: {' '.join(command)}\n", file=output)
    start = log.stat().st_size
    file = given.folder / stage.output if stage.output else None
    n_before = len(rows_of(file))
    code = run_process(command, given.seconds, log, environment(stage))
    with log.open(errors="replace") as lines:
        lines.seek(start)
        left = Left(rows_of(file)[n_before:], lines.read())
    print("\n".join(left.text.splitlines()[-12:]), flush=True)
    if code is None:
        status = "stopped"
    else:
        status = "ok" if code in stage.fine else f"failed ({code})"
    if stage.collect is not None:
        try:
            stage.collect(figures, stage.name, left)
        except Exception as error:  # such as missing columns
            figures.add(stage.name, "stage", "not read", "", repr(error))
            status = "failed (not read)"
    taken = time.monotonic() - begin
    figures.finish(stage.name, status, taken)
    print(f"{stage.name}: {status}, {taken:.1f} s", flush=True)
    return status


def pending(stages: Sequence[Stage], figures: Figures, *, resume: bool) -> list[Stage]:
    """Return the stages to run; those that were tried before come last."""
    _, ended = figures.read()
    if not resume:
        return [*stages]
    left = [s for s in stages if ended.get(s.name, ("",))[0] != "ok"]
    return sorted(left, key=lambda stage: stage.name in ended)


def run(
    stages: Sequence[Stage],
    figures: Figures,
    *,
    budget: float,
    data: Sequence[str] = (),
    tiny: bool = False,
    resume: bool = True,
) -> dict[str, str]:
    """Run the stages for which `budget` seconds suffice; return the status of each."""
    end = time.monotonic() + budget - RESERVE
    ended = {}
    for stage in pending(stages, figures, resume=resume):
        left = end - time.monotonic()
        if left < max(stage.least, 1):
            print(f"{stage.name}: no time, {left:.0f} s are left", flush=True)
            ended[stage.name] = "no time"
            continue
        given = Given(figures.folder, min(stage.most, left), data, tiny)
        ended[stage.name] = run_stage(stage, given, figures)
        figures.write_tables()
    figures.write_tables()
    return ended


def self_check(folder: Path, names: Sequence[str]) -> int:
    """Run small stages on the CPU twice, and check that finished ones are skipped."""
    figures = Figures(folder)
    stages = matching(SELF_CHECK, names, "stage")
    skipped = run(stages, figures, budget=0, tiny=True)
    ended = run(stages, figures, budget=600, tiny=True)
    again = pending(stages, figures, resume=True)
    expected = {s.name: "ok" for s in stages}
    expected |= {"hangs": "stopped"} if "hangs" in expected else {}
    expected |= {"dies": f"failed ({-signal.SIGABRT})"} if "dies" in expected else {}
    wanted = [s.name for s in stages if expected[s.name] != "ok"]
    print(f"\n{summary(*figures.read())}")
    fine = (
        set(skipped.values()) == {"no time"}
        and ended == expected
        and [stage.name for stage in again] == wanted
    )
    print("self-check passed" if fine else f"self-check failed: {ended}")
    return 0 if fine else 1


def data_arguments(args) -> list[str]:
    """Return the arguments with the location of CIFAR-10, if it exists."""
    if args.npz is not None:
        return ["--npz", str(args.npz.resolve())] if args.npz.is_dir() else []
    return ["--data", str(args.data.resolve())] if args.data.is_dir() else []


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for all output")
    parser.add_argument("--stages", nargs="+", default=["*"], help="names or globs")
    parser.add_argument(
        "--budget", type=float, default=570, help="seconds, for all stages together"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="skip stages that succeeded before",
    )
    parser.add_argument("--self-check", action="store_true")
    parser.add_argument(
        "--measure", choices=MEASURED, help="run only this stage, in this process"
    )
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    if args.output is None and not args.self_check:
        parser.error("--output is missing")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.measure:
        return 0 if measure(args.measure, args.output, tiny=args.self_check) else 1
    end_cleanly()
    if args.self_check:
        with tempfile.TemporaryDirectory() as folder:
            return self_check((args.output or Path(folder)).resolve(), args.stages)
    try:
        stages = matching(STAGES, args.stages, "stage")
    except ValueError as error:
        sys.exit(str(error))
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA device, and none was found; --self-check needs none.")
    figures = Figures(args.output.resolve())  # processes run in another directory
    ended = run(
        stages,
        figures,
        budget=args.budget,
        data=data_arguments(args),
        resume=args.resume,
    )
    print(f"\n{summary(*figures.read())}")
    return 0 if set(ended.values()) <= {"ok", "not run", "no time"} else 1


if __name__ == "__main__":
    sys.exit(main())
