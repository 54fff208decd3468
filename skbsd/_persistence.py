"""A fitted estimator as a file from which no code runs.

Plain data and tensors are stored directly. Classes and functions are stored by name if
they are in a fixed table, and the reader accepts no other name. Everything else is left
out, and loading warns about it.
"""

import dataclasses
import itertools
import os
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from skorch.history import History
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from . import _architecture, _files, _versions
from ._files import FileFormatError
from ._generators import Generators
from ._optimizer import load_state
from ._preparation import Preparation
from ._rules import Choice
from .augmentation import FlipCrop, flip_crop, strong
from .calibration import Calibration
from .contrastive import Contrastive
from .posterior import posterior_of

# Marks the file of an estimator; other kinds of files have other values.
_KIND = "estimator"

_NAMED: dict[str, Any] = {
    **{
        f"torch.optim.{name}": value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer)
    },
    **{f"skbsd.networks.{name}": n for name, n in _architecture.NETWORKS.items()},
    "torch.utils.data.DataLoader": DataLoader,
    "skbsd.augmentation.flip_crop": flip_crop,
    "skbsd.augmentation.strong": strong,
}

# Fitted attributes of BSDClassifier. Those of a subclass are stored too, if they are
# plain data and their names end in an underscore.
_FITTED = (
    "classes_inferred_",
    "compile_time_",
    "data_loading_",
    "feature_names_in_",
    "image_mean_",
    "image_std_",
    "n_features_in_",
    "n_iter_",
)

# Fitted attributes that are stored in another form, or built again.
_COMPONENTS = (
    "callbacks_",
    "criterion_",
    "device_",
    "history_",
    "init_context_",
    "initialized_",
    "module_",
    "optimizer_",
    "out_of_fold_proba_",
    "posterior_",
    "virtual_params_",
)

# Dataclasses of this library that may be parameters or fitted attributes.
_RECORDS: dict[str, Any] = {
    "contrastive": Contrastive,
    "calibration": Calibration,
    "choice": Choice,
    "flip_crop": FlipCrop,
}

# Parameters whose arguments (such as module__hidden) are meaningless without them.
_OWNERS = ("module", "optimizer", "callbacks", "iterator_train", "iterator_valid")


def save(net: Any, path: str | os.PathLike[str], *, posterior: bool) -> None:
    """Write an estimator into a file; see :meth:`BSDClassifier.save`.

    Parameters
    ----------
    net : BSDClassifier
        Fitted.
    path : path-like
    posterior : bool
        Whether to write the state with which `partial_fit` continues exactly.
    """
    check_is_fitted(net, ["module_", "classes_"])
    if net.optimizer is None:
        raise ValueError(
            f"this {type(net).__name__} was trimmed for prediction, and has lost the "
            "parameters that a file holds; save it before, with posterior=False, "
            "which leaves out what prediction does not need, or use joblib."
        )
    if len(net.cuda_dependent_attributes_) > 3:
        raise ValueError(
            f"save supports one network, optimizer and criterion, and this "
            f"{type(net).__name__} has {net.cuda_dependent_attributes_}; use joblib."
        )
    left_out: dict[str, str] = {}
    header = {
        "kind": _KIND,
        "estimator": type(net).__name__,
        "versions": _versions.current(),
        "parameters": _kept(_parameters(net), left_out),
        "network": _architecture.describe(net.module_),
        "network_class": type(net.module_).__name__,
        "fitted": _kept(_fitted(net), left_out),
        "preparation": _preparation_fields(net._preparation),
        "generators": net._generators.states,
        "history": _history(net.history_ or (), left_out),
        "prior": {
            "prior_strength": net.prior_strength_,
            "discount": net.discount_,
            "prior_floor": net.prior_floor_,
        },
        "training": _training(net) if posterior else None,
        "left_out": left_out,
    }
    state = net.module_.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the network's state contains a {type(value).__name__} ({name}), and "
                "save takes tensors only; use joblib."
            )
    tensors = {f"module.{name}": value for name, value in state.items()}
    _files.write_atomically(path, tensors, header)


def load(cls: Any, path: str | os.PathLike[str], module: Any) -> Any:
    """Read an estimator from a file; see :meth:`BSDClassifier.load`.

    Parameters
    ----------
    cls : type
        BSDClassifier, or a subclass.
    path : path-like
    module : nn.Module (class or instance), callable or None
        The network, if it is not one of :mod:`skbsd.networks`.
    """
    header, tensors = _files.read(path)
    if header.get("kind") != _KIND:
        raise FileFormatError(
            f"{os.fspath(path)} was not written by `save`: it contains a "
            f"{header.get('kind')!r} instead of an estimator."
        )
    try:
        saved = _Saved(header, tensors)
        net = saved.new(cls, module)
        device = net._device_here(net.device, net._preparation)
        network = saved.network() if module is None else None
        with net._generators.copy().borrowed(torch.device(device)):
            pass  # an invalid generator state raises here
    except _DAMAGE as error:
        raise _damaged(path, error, header, cls) from error
    if network is None and module is None:
        raise ValueError(
            f"{os.fspath(path)} contains the weights of a {saved.network_class}, but "
            "not its code; pass the class, an instance or a function that returns "
            f"one: {cls.__name__}.load(path, module={saved.network_class})."
        )
    requested, net.device = net.device, device
    with net._generators.copy().borrowed(torch.device(device)):
        _assemble(net, network, saved, path)
    try:
        saved.fill(net, given=network is None)
    except _DAMAGE as error:
        raise _damaged(path, error, header, cls) from error
    if requested == "auto":
        net.device = requested
    net._set_training(False)
    _warn(saved, cls, net, path)
    return net


# Errors that an invalid header or invalid tensors can cause.
_DAMAGE = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)


def _damaged(path: Any, error: Exception, header: dict, cls: Any) -> FileFormatError:
    saved_by = header.get("estimator")
    if saved_by != cls.__name__:
        return FileFormatError(
            f"{os.fspath(path)} was saved by a {saved_by}; use {saved_by}.load. It "
            f"cannot be read as a {cls.__name__}: {error}"
        )
    return FileFormatError(f"{os.fspath(path)} is damaged: {error}")


class _Saved:
    """The contents of a file, each part checked when it is used.

    Parameters
    ----------
    header : dict
    tensors : dict of str to Tensor
    """

    def __init__(self, header: dict[str, Any], tensors: dict[str, Tensor]):
        self.estimator = str(header["estimator"])
        self.network_class = str(header["network_class"])
        self.versions = dict(header["versions"])
        self.left_out = dict(header["left_out"])
        self._header = header
        prefix = "module."
        if not all(name.startswith(prefix) for name in tensors):
            raise ValueError(f"it contains tensors named {sorted(tensors)}")
        self.weights = {n.removeprefix(prefix): t for n, t in tensors.items()}

    def new(self, cls: Any, module: Any) -> Any:
        """Return an estimator with its parameters and its fitted data attributes."""
        parameters = {
            name: _revived(value) for name, value in self._header["parameters"].items()
        }
        if module is not None:
            parameters["module"] = module
            self.left_out.pop("module", None)
        for owner in _OWNERS:
            if owner in self.left_out:
                for name in [n for n in parameters if n.startswith(owner + "__")]:
                    self.left_out[name] = f"an argument of {owner}"
                    del parameters[name]
        net = cls(**parameters)
        net._validate_params()  # raises for unknown names
        for name, value in self._header["fitted"].items():
            own = name in _FITTED
            allowed = name.isidentifier() and name.endswith("_") and name[0] != "_"
            if not own and (not allowed or hasattr(cls, name) or name in _COMPONENTS):
                raise ValueError(f"{name!r} is not a fitted attribute")
            setattr(net, name, _revived(value))
        classes = net.classes_inferred_
        if not (isinstance(classes, np.ndarray) and classes.ndim == 1):
            raise ValueError("classes_ is not an array")
        net._preparation = _preparation(self._header["preparation"])
        net._generators = Generators(dict(self._header["generators"]))
        prior = self._header["prior"]
        net._saved_prior = {
            name: float(prior[name])
            for name in ("prior_strength", "discount", "prior_floor")
        }
        return net

    def network(self) -> nn.Module | None:
        """Return the network with its weights, or None if its code is elsewhere."""
        description = self._header["network"]
        if description is None:
            return None
        return _architecture.build_with(description, self.weights)

    def fill(self, net: Any, *, given: bool) -> None:
        """Fill an assembled estimator: weights of a given module, history, beliefs."""
        if given:
            net.module_.load_state_dict(self.weights)
        net.history_ = _revived_history(self._header["history"])
        training = self._header["training"]
        if training is None:
            return
        state = training["posterior"]
        beliefs = posterior_of(state)
        if "optimizer" not in self.left_out:
            load_state(net.optimizer_, training["optimizer"])
        net.posterior_ = beliefs.to(net.device_)
        net._fingerprint = training["fingerprint"]
        if training.get("out_of_fold") is not None:
            net.out_of_fold_proba_ = training["out_of_fold"]


def _assemble(net: Any, network: nn.Module | None, saved: _Saved, path: Any) -> None:
    """Build the components, around `network` or around the parameter `module`."""
    net.device_ = torch.device(net.device)
    net._preparation = net._preparation.changed(device=str(net.device_))
    net._initialize_virtual_params()
    net._initialize_callbacks()
    if network is not None:
        net.module_ = network.to(net.device_)
    else:
        try:
            net._initialize_module()
        except (TypeError, ValueError) as error:
            arguments = net.get_params_for("module")
            raise ValueError(
                f"module={net.module!r} cannot be built with the arguments in "
                f"{os.fspath(path)}, {arguments}: {error}"
            ) from error
        try:
            _architecture.check_weights(net.module_, saved.weights)
        except ValueError as error:
            raise ValueError(
                f"{os.fspath(path)} contains the weights of a {saved.network_class}, "
                f"which do not fit module={net.module!r}: {error}."
            ) from error
    if net._preparation.channels_last:
        net.module_.to(memory_format=torch.channels_last)
    net._initialize_criterion()
    net._initialize_optimizer()
    net.initialized_ = True


def _warn(saved: _Saved, cls: Any, net: Any, path: Any) -> None:
    """Warn once of all differences from the estimator that was saved."""
    _versions.compare(saved.versions, cls.__name__, stacklevel=5)
    remarks = []
    if saved.left_out:
        names = ", ".join(f"{n} ({saved.left_out[n]})" for n in sorted(saved.left_out))
        remarks.append(
            "values that are not plain data could not be saved, and parameters have "
            f"their defaults instead: {names}. Set them before you continue training"
        )
    if saved.estimator != cls.__name__:
        remarks.append(
            f"it was saved by a {saved.estimator} and is loaded as a {cls.__name__}, "
            f"whose predictions may differ; use {saved.estimator}.load"
        )
    network = type(net.module_).__name__
    if network != saved.network_class:
        remarks.append(
            f"its weights are those of a {saved.network_class}, and fit the {network} "
            "given, whose predictions may differ"
        )
    if remarks:
        warnings.warn(f"{os.fspath(path)}: {'; '.join(remarks)}.", stacklevel=4)


def _kept(values: dict[str, Any], left_out: dict[str, str]) -> dict[str, Any]:
    """Return the values that can be stored, and record the others in `left_out`."""
    kept = {}
    for name, value in values.items():
        try:
            kept[name] = _stored(value)
        except TypeError:
            kind = value if isinstance(value, type) else type(value)
            left_out[name] = getattr(value, "__qualname__", kind.__qualname__)
    return kept


def _stored(value: Any) -> tuple[str, Any]:
    """Return the form in which a value is stored, and its stored value."""
    for name, known in _NAMED.items():
        if value is known:
            return "name", name
    for name, kind in _RECORDS.items():
        if type(value) is kind:
            fields = dataclasses.fields(value)
            return name, {f.name: _stored(getattr(value, f.name)) for f in fields}
    description = _architecture.describe(value)
    if description is not None:
        return "network", {
            "description": description,
            "weights": dict(value.state_dict()),
        }
    _files.encode(value)  # raises TypeError if it is not plain data
    return "plain", value


def _revived(stored: Any) -> Any:
    kind, value = stored
    if kind == "plain":
        return value
    if kind == "name":
        return _NAMED[value]
    if kind in _RECORDS:
        fields = {name: _revived(field) for name, field in value.items()}
        return _RECORDS[kind](**fields)
    if kind == "network":
        return _architecture.build_with(value["description"], value["weights"])
    raise ValueError(f"{kind!r} is not a form of a stored value")


def _parameters(net: Any) -> dict[str, Any]:
    """Return the parameters, without the folders, which exist on this machine only."""
    folders = {"checkpoint": None, "posterior_folder": None}
    return net.get_params(deep=False) | folders


def _fitted(net: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(net).items()
        if name in _FITTED
        or (name.endswith("_") and name[0] != "_" and name not in _COMPONENTS)
    }


def _preparation_fields(preparation: Preparation) -> dict[str, Any]:
    fields = [f.name for f in dataclasses.fields(Preparation) if f.init]
    found = {
        name: getattr(preparation, name)
        for name in fields
        if name not in ("device", "several")  # the reader chooses its own device
    }
    several = preparation.several
    if isinstance(several, dict):
        found["several"] = {k: _preparation_fields(p) for k, p in several.items()}
    elif several is not None:
        found["several"] = [_preparation_fields(part) for part in several]
    return found


def _preparation(fields: dict[str, Any]) -> Preparation:
    if fields["dtype"] not in ("float32", "float64"):
        raise ValueError(f"{fields['dtype']!r} is not a dtype of inputs")
    several = fields.get("several")
    if isinstance(several, dict):
        several = {key: _preparation(part) for key, part in several.items()}
    elif several is not None:
        several = [_preparation(part) for part in several]
    return Preparation(**(fields | {"several": several}))


def _training(net: Any) -> dict[str, Any]:
    """Return the state from which `partial_fit` continues."""
    if not hasattr(net, "posterior_"):
        raise ValueError(
            "posterior=True saves beliefs, and this estimator has none: it was loaded "
            "from a file without them. Save it without, or fit it."
        )
    state = net.optimizer_.state_dict()
    try:
        _files.encode(state, {})
    except TypeError as error:
        raise ValueError(
            f"the state of optimizer={type(net.optimizer_).__name__} is not plain data "
            f"({error}); use joblib, or save without the posterior."
        ) from error
    return {
        "posterior": net.posterior_.state_dict(),
        "optimizer": state,
        "fingerprint": net._fingerprint,
        "out_of_fold": getattr(net, "out_of_fold_proba_", None),
    }


def _history(history: Any, left_out: dict[str, str]) -> list[dict[str, Any]]:
    """Return the epochs, with batches as columns, as there may be many batches."""
    epochs = []
    for epoch in history:
        figures = {name: value for name, value in epoch.items() if name != "batches"}
        epochs.append(
            {
                "figures": _kept(figures, left_out),
                "batches": _runs(epoch.get("batches", []), left_out),
            }
        )
    return epochs


def _runs(batches: list[dict[str, Any]], left_out: dict) -> list[dict[str, Any]]:
    """Return each run of batches with the same keys as one dict of columns."""
    runs = []
    for kinds, run in itertools.groupby(batches, key=_kinds):
        alike = list(run)
        columns = {
            name: np.array(column) if kind is float else column
            for name, kind in kinds
            for column in [[batch[name] for batch in alike]]
        }
        # Without columns the number of batches would be lost.
        runs += [_kept(columns, left_out)] if columns else alike
    return runs


def _kinds(batch: dict[str, Any]) -> list[tuple[str, type]]:
    return [(name, type(value)) for name, value in batch.items()]


def _revived_history(epochs: list[dict[str, Any]]) -> History:
    history = History()
    for epoch in epochs:
        batches: list[dict[str, Any]] = []
        for run in epoch["batches"]:
            columns = {name: _listed(_revived(column)) for name, column in run.items()}
            rows = zip(*columns.values(), strict=True)
            batches += [dict(zip(columns, row, strict=True)) for row in rows]
            batches += [] if columns else [{}]
        figures = {name: _revived(value) for name, value in epoch["figures"].items()}
        history.append({"batches": batches, **figures})
    return history


def _listed(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)
