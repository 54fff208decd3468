"""Estimators that are trained on parts of the data before the final network."""

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

# skorch's callbacks that affect training instead of only observing it.
_ACTING = (
    EarlyStopping,
    GradientNormClipping,
    InputShapeSetter,
    LRScheduler,
    ParamMapper,
)
# Attributes that belong to a call of fit: neither parameters nor fitted attributes.
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
    """Return a copy of an estimator for a single, silent training on a fold.

    It is not a clone: the copy shares the parameters, as a fit does not change them.
    The user's callbacks that only observe are omitted, as some cannot be copied, such
    as those with an open file.

    Parameters
    ----------
    net : BSDClassifier
    choice : Choice
        The chosen learning rate and rule.
    n_epochs : int
        Number of epochs.
    schedule_epochs : int
        Number of epochs that the learning-rate schedule spans.
    seed : int or None
    batch_size : int, default=None
        Batch size; by default that of `net`.
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
    """Remove the user's callbacks that only observe, and their parameters."""
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
    # A fold has no validation data.
    return issubclass(kind, _ACTING) and not monitors_validation(callback)


def seeds(random_state: Any, n: int) -> list[int | None]:
    """Return seeds for the folds, without advancing the user's generator.

    Parameters
    ----------
    random_state : int, RandomState instance or None
    n : int
    """
    if random_state is None:
        return [None] * n
    rng = copy.deepcopy(check_random_state(random_state))
    rng.randint(2**31 - 1)  # the seed of the final network
    return rng.randint(2**31 - 1, size=n).tolist()
