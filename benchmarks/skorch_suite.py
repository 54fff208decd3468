"""skorch's own tests, with BSDClassifier in the place of NeuralNetClassifier.

Run are the tests that use NeuralNetClassifier, first as they are, then with a
BSDClassifier that has skorch's defaults and ignores the criterion
(`_skorch_stand_in.py`). Counted are those that pass with skorch's own class. Of these,
some fail by design: `_skorch_differences.py` says which and why, and
docs/coming_from/skorch.md explains it. All others should pass.

    python -m pip install flaky pytest-timeout
    python benchmarks/skorch_suite.py [path of a checkout of skorch] [--workers 2]

Without a path, the tests are those that the installed skorch brings along. Some ten
minutes on two cores. The exit status is 1 if a test fails that should not.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import skorch
from _skorch_differences import reason_for

_HERE = Path(__file__).resolve().parent
_NEEDED = {"flaky": "flaky", "pytest_timeout": "pytest-timeout"}
# Options of these plugins.
_OPTIONS = ("--no-flaky-report", "--timeout=120")
# Those of Hugging Face's and of language models need the network, and no classifier.
_LEFT_OUT = ("test_hf.py", "llm")
_PASSED, _BY_DESIGN, _UNEXPECTED = "pass", "by design", "unexpected"


def outcomes(checkout: Path, n_workers: int, *, stand_in: bool) -> dict[str, str]:
    """Run skorch's tests; return what came of each.

    Parameters
    ----------
    checkout : Path
        Of the folder that holds skorch/tests.
    n_workers : int
        Processes of pytest-xdist.
    stand_in : bool
        Whether BSDClassifier takes the place of skorch's class.

    Returns
    -------
    dict of str to {"passed", "skipped", "failed"}
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes.json"
        tests = "skorch/tests"
        command = [sys.executable, "-m", "pytest", tests, "-p", "_skorch_stand_in"]
        command += ["-o", "addopts=", "-o", "python_files=test*.py", "--rootdir=."]
        command += ["-p", "no:cacheprovider", "-q", "--tb=no", "-W", "ignore"]
        command += [*_OPTIONS, "-n", str(n_workers)]
        command += [f"--ignore={tests}/{name}" for name in _LEFT_OUT]
        command += [f"--outcomes={path}", *(["--stand-in"] if stand_in else [])]
        searched = [str(_HERE.parent), str(_HERE), os.environ.get("PYTHONPATH", "")]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, searched))
        run = subprocess.run(command, cwd=checkout, env=environment)
        if run.returncode not in (0, 1):  # all passed, some failed
            raise SystemExit(f"pytest could not run: exit status {run.returncode}")
        return json.loads(path.read_text())


def verdicts(theirs: dict[str, str], ours: dict[str, str]) -> dict[str, str]:
    """Return a verdict on each test that passes with skorch's own class.

    Parameters
    ----------
    theirs, ours : dict of str to str
        What came of each test with skorch's class and with BSDClassifier.

    Returns
    -------
    dict of str to {"pass", "by design", "unexpected"}
    """
    found = {}
    for test in (test for test, outcome in theirs.items() if outcome == "passed"):
        if ours.get(test) == "passed":
            found[test] = _PASSED
        else:
            found[test] = _UNEXPECTED if reason_for(test) is None else _BY_DESIGN
    return found


def _report(found: dict[str, str]) -> None:
    files: dict[str, Counter] = {}
    for test, verdict in found.items():
        name = test.partition("::")[0].removeprefix("skorch/tests/")
        files.setdefault(name, Counter())[verdict] += 1
    columns = _PASSED, _BY_DESIGN, _UNEXPECTED
    print(f"\n{'file':32}{'tests':>8}", *(f"{name:>12}" for name in columns))
    rows = [*sorted(files.items()), ("all", sum(files.values(), Counter()))]
    for name, counts in rows:
        print(f"{name:32}{counts.total():8}", *(f"{counts[c]:12}" for c in columns))
    reasons = Counter(
        reason_for(test) for test, verdict in found.items() if verdict == _BY_DESIGN
    )
    print("\nBy design:")
    for reason, count in reasons.most_common():
        print(f"{count:5}  {reason}")
    for title, verdict in (
        ("Unexpected:", _UNEXPECTED),
        ("Pass, but are listed as differences:", _PASSED),
    ):
        tests = [t for t, v in found.items() if v == verdict]
        if verdict == _PASSED:
            tests = [test for test in tests if reason_for(test) is not None]
        if tests:
            print(f"\n{title}", *sorted(tests), sep="\n  ")


def main() -> None:
    """Run the tests twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    installed = Path(skorch.__file__).parents[1]
    parser.add_argument("checkout", type=Path, nargs="?", default=installed)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    missing = [n for m, n in _NEEDED.items() if importlib.util.find_spec(m) is None]
    if missing:
        parser.error(f"pip install {' '.join(missing)}")
    if not (arguments.checkout / "skorch" / "tests").is_dir():
        parser.error(f"{arguments.checkout} holds no skorch/tests")
    theirs, ours = (
        outcomes(arguments.checkout, arguments.workers, stand_in=stand_in)
        for stand_in in (False, True)
    )
    print(f"skorch {skorch.__version__}, tests of {arguments.checkout}")
    found = verdicts(theirs, ours)
    _report(found)
    sys.exit(_UNEXPECTED in found.values())


if __name__ == "__main__":
    main()
