"""Estimators that are trained on a part of the data, before the final one is."""

import copy
from typing import Any

from sklearn.utils import check_random_state
from skorch.callbacks import (
    EarlyStopping,
    GradientNormClipping,
    InputShapeSetter,
    LRScheduler,
    ParamMapper,
)

from ._check_callbacks import monitors_validation
from ._rules import Choice
from ._sklearn_tasks import CONTEXTS

# Callbacks of skorch's that change how a network is trained, and not only watch.
_ACTING = (
    EarlyStopping,
    GradientNormClipping,
    InputShapeSetter,
    LRScheduler,
    ParamMapper,
)
# Attributes that are neither parameters nor fitted, but of a call of fit.
_OF_A_FIT = (
    "_fingerprint",
    "_generators",
    "_preparation",
    "_projection",
    "_run",
    "_saved_prior",
    "_skl_callbacks",
    *CONTEXTS,
)


def fold_net(
    net: Any,
    choice: Choice,
    n_epochs: int,
    schedule_epochs: int,
    seed: int | None,
    batch_size: int | None = None,
) -> Any:
    """Return an estimator like another one, to be trained silently and once.

    It is no clone: parameters are shared, as a fit does not change them, and those that
    cannot be copied, such as callbacks with an open file, are left out.

    Parameters
    ----------
    net : BSDClassifier
    choice : Choice
        Learning rate and rule.
    n_epochs : int
    schedule_epochs : int
        That its schedule is for.
    seed : int or None
    batch_size : int, default=None
        In place of that of the other one.
    """
    copied = object.__new__(type(net))
    vars(copied).update(
        {
            name: value
            for name, value in vars(net).items()
            if not name.endswith("_") and name not in _OF_A_FIT
        }
    )
    changed = {
        "lr": choice.lr,
        "prior_strength": choice.prior_strength,
        "discount": choice.discount,
        "evidence": choice.evidence,
        "max_epochs": n_epochs,
        "schedule_epochs": schedule_epochs,
        "random_state": seed,
        "calibration": None,
        "checkpoint": None,
        "gather_posterior": False,
        "train_split": None,
        "warm_start": False,
        "verbose": 0,
    }
    if batch_size is not None:
        changed["batch_size"] = batch_size
        if hasattr(net, "iterator_train__batch_size"):
            changed["iterator_train__batch_size"] = batch_size
    for name, value in changed.items():
        setattr(copied, name, value)
    if net.callbacks != "disable":
        _keep_acting(copied)
    return copied


def _keep_acting(net: Any) -> None:
    """Leave out the user's callbacks that only watch, and what was set of them."""
    named = dict(net._uniquely_named_callbacks())
    own = {name for name, _ in net._default_callbacks}
    acting = {
        name: callback
        for name, callback in named.items()
        if name not in own and _acts(callback)
    }
    net.callbacks = [(name, copy.deepcopy(c)) for name, c in acting.items()]
    left_out = named.keys() - own - acting.keys()
    gone = {
        name
        for name in net._params_to_validate
        if name.startswith("callbacks__") and name.split("__")[1] in left_out
    }
    net._params_to_validate = net._params_to_validate - gone
    for name in gone:
        vars(net).pop(name)


def _acts(callback: Any) -> bool:
    kind = callback if isinstance(callback, type) else type(callback)
    # There are no validation data in a fold.
    return issubclass(kind, _ACTING) and not monitors_validation(callback)


def seeds(random_state: Any, n: int) -> list[int | None]:
    """Return seeds for the folds, without a draw from the user's own generator.

    Parameters
    ----------
    random_state : int, RandomState instance or None
    n : int
    """
    if random_state is None:
        return [None] * n
    rng = copy.deepcopy(check_random_state(random_state))
    rng.randint(2**31 - 1)  # the final network's
    return rng.randint(2**31 - 1, size=n).tolist()
