"""Imports follow the table in CONTRIBUTING, and state has the owners that it names."""

import ast
import gc
import re
import weakref
from pathlib import Path

import pytest
from helpers import quick
from sklearn.base import clone
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit

import skbsd
from skbsd import BSDClassifier

PACKAGE = Path(skbsd.__file__).parent
PAGE = PACKAGE.parent / "CONTRIBUTING.md"
PRIVATE = {
    "_fingerprint",
    "_generators",
    "_params_to_validate",
    "_preparation",
    "_projection",
}


def floors():
    """Return the modules of each row of the table, from top to bottom."""
    rows = [
        re.findall(r"`(\w+(?:\.py|/))`", line)
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    return [
        [name.removesuffix(".py").removesuffix("/") for name in row]
        for row in rows
        if row
    ]


def imported(path):
    """Yield the modules or packages of skbsd that a file imports from."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [a.name for a in node.names]
            yield from (name.partition(".")[0] for name in names)


pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="CONTRIBUTING is not here")


def test_every_module_has_its_place():
    found = [name for row in floors() for name in row]
    modules = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir()}
    modules -= {"__init__", "__pycache__", "py"}  # py.typed
    assert sorted(set(found) - {"examples", "benchmarks"}) == sorted(modules)
    assert len(found) == len(set(found))


def test_no_import_runs_upwards():
    place = {}
    for i, row in enumerate(floors()):
        # Within a row, those on the left stand on those on the right.
        place |= {name: (i, j) for j, name in enumerate(row)}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        for other in set(imported(path)) - {name, "__version__"}:
            assert place[name] < place[other], f"{name} imports {other}"


def test_few_classes_make_the_estimator():
    own = [c for c in BSDClassifier.__mro__ if c.__module__.startswith("skbsd.")]
    assert [c.__name__ for c in own] in (
        ["BSDClassifier", "HTMLRepresentation", "Net"],
        # Before scikit-learn 1.9 there is a stand-in for its mixin.
        ["BSDClassifier", "HTMLRepresentation", "CallbackSupportMixin", "Net"],
    )


@pytest.mark.parametrize("calibration", ["auto", None])
@pytest.mark.parametrize("contrastive", [None, 0.2])
def test_memory_is_free_without_the_collector(digits, calibration, contrastive):
    """Count objects instead of bytes, as hundreds of fits may have run before."""
    model = quick(max_epochs=1, contrastive=contrastive, calibration=calibration)
    X, y = digits[0][:100], digits[1][:100]
    clone(model).fit(X, y)  # the first call imports parts of torch, which keep frames
    gc.collect()
    gc.disable()
    try:
        model.fit(X, y)
        left = [weakref.ref(x) for x in (model, model.module_, model.posterior_)]
        del model
        assert [ref() for ref in left] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("contrastive", [None, 0.2])
def test_nothing_of_a_run_is_left(digits, tmp_path, contrastive):
    model = quick(
        max_epochs=2,
        contrastive=contrastive,
        train_split=ValidSplit(5),
        callbacks=[EpochScoring("accuracy", on_train=True)],
        checkpoint=tmp_path,
    ).fit(digits[0][:100], digits[1][:100])
    names = vars(model).keys() - model.get_params().keys()
    assert {n for n in names if not n.endswith("_")} == PRIVATE
    pickled = model.__getstate__().keys() - model.get_params().keys()
    assert {n for n in pickled if not n.endswith("_")} == (
        PRIVATE - {"_projection"} | {"_components", "_sklearn_version"}
    ) | {"_skbsd_version"}
