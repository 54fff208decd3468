"""A plugin of pytest: skorch's tests, with BSDClassifier for NeuralNetClassifier.

Only tests that use NeuralNetClassifier are run: those whose code, or that of a fixture
of theirs, names it. skorch_suite.py runs pytest with this plugin.
"""

import inspect
import json
from pathlib import Path

import pytest
import skorch
import skorch.classifier
import torch
from skorch.dataset import ValidSplit

from skbsd import BSDClassifier

NAME = "NeuralNetClassifier"


class NeuralNetClassifier(BSDClassifier):
    """A BSDClassifier with skorch's defaults, which ignores the criterion."""

    def __init__(
        self,
        module=None,
        *,
        criterion=torch.nn.CrossEntropyLoss,
        max_epochs=10,
        lr=0.01,
        optimizer=torch.optim.SGD,
        lr_schedule="constant",
        weight_decay=0.0,
        calibration=None,
        train_split=ValidSplit(5, stratified=True),  # noqa: B008 (as skorch does)
        device="cpu",
        verbose=1,
        **kwargs,
    ):
        super().__init__(
            module,
            max_epochs=max_epochs,
            lr=lr,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            weight_decay=weight_decay,
            calibration=calibration,
            train_split=train_split,
            device=device,
            verbose=verbose,
            **{k: v for k, v in kwargs.items() if not k.startswith("criterion__")},
        )

    @property
    def criterion(self):
        """Cross-entropy, whatever was asked for."""
        return torch.nn.CrossEntropyLoss

    @criterion.setter
    def criterion(self, value):
        """Ignore it."""

    def set_params(self, **params):
        """Set parameters, but those of a criterion."""
        kept = {k: v for k, v in params.items() if k.split("__")[0] != "criterion"}
        return super().set_params(**kept)


def pytest_addoption(parser):
    """Add the options that skorch_suite.py sets."""
    parser.addoption("--stand-in", action="store_true", help="test BSDClassifier")
    parser.addoption("--outcomes", type=Path, help="where to write what came of them")


def pytest_configure(config):
    """Put the class in skorch's place, before tests import it."""
    if config.getoption("--stand-in"):
        setattr(skorch, NAME, NeuralNetClassifier)
        setattr(skorch.classifier, NAME, NeuralNetClassifier)
    if not hasattr(config, "workerinput"):  # one process hears of all tests
        config.pluginmanager.register(_Outcomes(config.getoption("--outcomes")))


def pytest_collection_modifyitems(config, items):
    """Leave out tests of other classes."""
    kept = [item for item in items if _names_it(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _names_it(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(f.func for several in fixtures for f in several)]
    return any(NAME in inspect.getsource(function) for function in functions)


class _Outcomes:
    """What came of each test, for a file."""

    def __init__(self, path: Path):
        self._path = path
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        """Note the worst of a test's three phases."""
        worse = ("passed", "skipped", "failed")
        before = self._outcomes.get(report.nodeid, "passed")
        self._outcomes[report.nodeid] = max(before, report.outcome, key=worse.index)

    def pytest_sessionfinish(self):
        """Write the file."""
        self._path.write_text(json.dumps(self._outcomes))
