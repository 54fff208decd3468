"""skorch's net with scikit-learn's manners: parameters, pickling, device, generators.

skorch's constructor sets fitted state, its `set_params` rebuilds a fitted network and
its loading changes the `device` parameter. Here the constructor only assigns, and what
concerns training takes effect at the next `fit`.
"""

import inspect
import os
import threading
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from typing import Any

import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset
from skorch.history import History
from torch import nn

from ._checks import check_device

# torch's generators belong to the process: fits in several threads take turns.
_GENERATOR_LOCK = threading.RLock()


def _renew_lock() -> None:
    """Take a new lock in a forked process, where nobody would release the old one."""
    global _GENERATOR_LOCK
    _GENERATOR_LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

_PREFIXES = (
    "module",
    "optimizer",
    "callbacks",
    "iterator_train",
    "iterator_valid",
    "compile",
)

# Options of an optimizer that speak against fusing it, or decide it.
_NOT_FUSED = {"capturable", "differentiable", "foreach", "fused"}

# What no copy of an estimator has.
_TRANSIENT = (
    "_callback_fit_ctx",
    "_compiled",
    "_contrast",
    "_contrast_losses",
    "_contrasted",
    "_first_logits",
    "_learning_rate",
    "_fit_task",
    "_parent_callback_ctx",
    "_projection",
    "_scaling",
    "_skl_callbacks_to_teardown",
    "_task_data",
    "_watch",
)


class Net(NeuralNetClassifier):
    """Base of :class:`skbsd.BSDClassifier`; see the module's docstring."""

    # What skorch's constructor would set, of which nothing is a parameter here.
    initialized_ = False
    history_ = None
    virtual_params_: dict = {}  # noqa: RUF012 (replaced, never changed in place)
    criterion = nn.CrossEntropyLoss
    dataset = Dataset
    classes = None
    predict_nonlinearity = "auto"
    use_caching = "auto"
    torch_load_kwargs = None
    device: str | torch.device
    # And what it finds out as components are set for the first time.
    _modules = ["module"]  # noqa: RUF012
    _criteria = ["criterion"]  # noqa: RUF012
    _optimizers = ["optimizer"]  # noqa: RUF012
    prefixes_ = [*_PREFIXES, "criterion"]  # noqa: RUF012
    cuda_dependent_attributes_ = ["module_", "criterion_", "optimizer_"]  # noqa: RUF012

    device_: torch.device
    optimizer_: Any
    _params_to_validate: set[str]
    _generator_state: dict

    @classmethod
    @cache
    def _constructor_names(cls) -> frozenset[str]:
        """Names in the constructors' signatures, those of subclasses included."""
        classes = cls.__mro__[: cls.__mro__.index(Net)]
        inits = [vars(c)["__init__"] for c in classes if "__init__" in vars(c)]
        return frozenset(
            p.name
            for init in inits
            for p in inspect.signature(init).parameters.values()
            if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        )

    def _get_param_names(self):
        return sorted(self._constructor_names() | self._params_to_validate)

    def __setattr__(self, name, value):
        # skorch takes any module that is set for a component of the net, but a
        # parameter may be one: a transform as augmentation.
        if name.endswith("_"):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def __delattr__(self, name):
        # skorch takes anything for a component here too.
        if name.endswith("_"):
            super().__delattr__(name)
        else:
            object.__delattr__(self, name)

    def get_params(self, deep=True):
        """Get the parameters, those of components given as `module__width` too.

        Parameters
        ----------
        deep : bool, default=True
            Include the parameters of parameters that are estimators.

        Returns
        -------
        dict of str to object
            The parameters by name.
        """
        return BaseEstimator.get_params(self, deep=deep)

    def set_params(self, **params):
        """Set parameters, for the next call of `fit`.

        `lr`, `optimizer__*` and `callbacks__*` also reach a live optimizer or
        callback, so that a callback can change them while training runs (the learning
        rate with ``lr_schedule="constant"``; other schedules set it in each step).
        A fitted estimator predicts as `precision`, `compile` and `image_shape` say
        now.

        Parameters
        ----------
        **params : dict
            Names as in `get_params`, or with the prefixes ``module__``,
            ``optimizer__``, ``callbacks__``, ``iterator_train__``,
            ``iterator_valid__`` and ``compile__``.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            For an unknown name. Nothing is set then.
        """
        known = set(self._get_param_names())
        self._check_prefixed(params.keys() - known)
        for key, value in params.items():
            if key not in known:
                self._params_to_validate = self._params_to_validate | {key}
            setattr(self, key, value)
            if self.initialized_ and self._is_virtual_param(key):
                self._apply_virtual_params({key: value})
                self._forget_schedule()
            elif self.initialized_ and key.startswith("callbacks__"):
                self._set_params_callback(**{key: value})
        return self

    def _forget_schedule(self) -> None:
        """Have the next schedule begin at the optimizer's rates as they are now."""
        if not hasattr(self, "_learning_rate"):
            for group in self.optimizer_.param_groups:
                if "initial_lr" in group:  # of a scheduler of PyTorch's
                    group["initial_lr"] = group["lr"]

    def _check_prefixed(self, names) -> None:
        """Raise for a name without one of the prefixes."""
        for name in sorted(names):
            prefix, _, rest = name.partition("__")
            if not rest or prefix not in _PREFIXES:
                known = sorted(self._constructor_names())
                meant = [f"{p}__*" for p in _PREFIXES if name.startswith(p + "_")]
                meant += get_close_matches(name, known, n=1)
                hint = f" Did you mean {meant[0]}?" if meant else ""
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}."
                    f"{hint} Valid parameters are {known}, and those with a prefix: "
                    f"{', '.join(p + '__*' for p in _PREFIXES)}."
                )

    def _validate_params(self):
        self._check_prefixed(self._params_to_validate)

    def __repr__(self, N_CHAR_MAX=700):
        # scikit-learn's, which shows what differs from the defaults.
        return BaseEstimator.__repr__(self, N_CHAR_MAX)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "module_")

    def _has_classes(self) -> bool:
        """Whether it has seen data, and not only loaded weights."""
        return hasattr(self, "classes_")

    def initialize(self):
        """Build network, optimizer, callbacks and history on the device.

        `fit` does this. Call it to load saved weights into a new estimator, with a
        `module` of your own: `module=None` is chosen from the data.

        Returns
        -------
        self
            Initialized, with random weights or those of the `module` given.

        Raises
        ------
        ValueError
            If the device is not there, or `module` is None and there are no data yet.
        """
        self.device_ = check_device(self.device)
        super().initialize()
        self._set_training(False)
        return self

    @contextmanager
    def _in_mode(self, training: bool):
        """Run the network in training or evaluation mode within the context.

        A network at rest is in evaluation mode, so that prediction has nothing to
        switch: threads that predict at the same time share the network.
        """
        before = self.module_.training
        if before == training:
            yield
            return
        self._set_training(training)
        try:
            yield
        finally:
            self._set_training(before)

    # The two below leave out skorch's messages about re-initialization, which every
    # second call of fit would print.
    def _initialize_module(self, reason=None):
        with self._current_init_context("module"):
            self.initialize_module()
            self.module_.to(self.device_)
        return self

    def _initialize_criterion(self, reason=None):
        with self._current_init_context("criterion"):
            self.criterion_ = self.criterion().to(self.device_)
        return self

    def _initialize_optimizer(self, reason=None):
        self.initialized_ = False  # else it prints a message, as above
        return super()._initialize_optimizer(reason)

    def initialize_optimizer(self, triggered_directly=None):
        """Build the optimizer, with `lr`, `weight_decay` and ``optimizer__*``.

        `weight_decay` is passed to optimizers that have it; SGD, Adam and AdamW are
        fused where torch can.

        Parameters
        ----------
        triggered_directly : None, default=None
            Unused, deprecated in skorch.

        Returns
        -------
        self
            With `optimizer_`.
        """
        self.optimizer_ = self._build_optimizer(self.get_all_learnable_params())
        return self

    def _build_optimizer(self, named_parameters, *, grouped: bool = True):
        """Build one; `grouped` by the user's patterns, where there are any."""
        named_parameters = list(named_parameters)
        args, kwargs = self.get_params_for_optimizer("optimizer", named_parameters)
        if not grouped:
            args = ([parameter for _, parameter in named_parameters],)
        accepted = inspect.signature(self.optimizer).parameters
        if "weight_decay" in accepted:
            kwargs.setdefault("weight_decay", self.weight_decay)
        if self._can_fuse() and not kwargs.keys() & _NOT_FUSED:
            kwargs["fused"] = True
        return self.optimizer(*args, **kwargs)

    def _can_fuse(self) -> bool:
        """Whether torch has the optimizer in a fused form for this network."""
        sparse = any(getattr(m, "sparse", False) for m in self.module_.modules())
        return (
            self.optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
            and self.device_.type in ("cpu", "cuda")
            and not sparse
            and all(p.is_floating_point() for p in self.module_.parameters())
        )

    def initialize_history(self):
        """Start a new history; that of the last fit stays as it is.

        Returns
        -------
        self
            With an empty `history_`.
        """
        self.history_ = History()
        return self

    def load_params(self, *args, **kwargs):
        """Load parameters that :meth:`save_params` wrote.

        Parameters
        ----------
        *args : tuple
            Passed to :meth:`skorch.NeuralNet.load_params`.
        **kwargs : dict
            Passed too, such as `f_params`; `f_posterior` loads the posterior's rows.
        """
        with self._resolved_device():
            super().load_params(*args, **kwargs)

    @contextmanager
    def _resolved_device(self):
        """Show skorch's own code a device that torch knows, not "auto"."""
        requested = self.device
        self.device = str(check_device(requested))
        try:
            yield
        finally:
            self.device = requested

    @contextmanager
    def _own_generators(self, device: torch.device, *, fresh: bool):
        """Draw from generators of this estimator; restore torch's own afterwards.

        `fresh` seeds them from `random_state`; otherwise they go on from the last
        call, so that partial_fit does not repeat the same order of samples.
        """
        with _GENERATOR_LOCK:
            before = _generator_state(device)
            try:
                if fresh:
                    seed = check_random_state(self.random_state).randint(2**31 - 1)
                    _seed(device, int(seed))
                    # For a copy made while training, such as a callback's.
                    self._generator_state = _generator_state(device)
                else:
                    _set_generator_state(device, self._generator_state)
                yield
            finally:
                self._generator_state = _generator_state(device)
                _set_generator_state(device, before)

    def __getstate__(self):
        state = super().__getstate__()
        # Made again where they are needed.
        for name in _TRANSIENT:
            state.pop(name, None)
        return state

    def __setstate__(self, state):
        requested = state["device"]
        if requested == "auto":
            # What is here counts, not what was where the model was fitted; double
            # precision is the CPU's.
            exact = state.get("_float_dtype") == torch.float64
            found = torch.device("cpu") if exact else check_device("auto")
            state = {**state, "device": str(found)}
        super().__setstate__(state)
        if "device_" in state:
            self.device_ = check_device(self.device)
            posterior = getattr(self, "posterior_", None)
            if posterior is not None:
                posterior.to(self.device_)
        if hasattr(self, "module_"):
            self._set_training(False)  # it may have been copied while it was trained
        if requested == "auto":
            self.device = "auto"


def _generator_state(device: torch.device) -> dict:
    """Return the states of the generators that training draws from, by device type."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        module = torch.get_device_module(device)
        state[device.type] = module.get_rng_state(*_index(device))
    return state


def _set_generator_state(device: torch.device, state: dict) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cpu":
        return
    if device.type in state:
        module = torch.get_device_module(device)
        module.set_rng_state(state[device.type], *_index(device))
    else:
        # A model that was fitted elsewhere: what comes follows from its own state.
        _seed(device, int(torch.randint(2**31, ())))


def _seed(device: torch.device, seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _index(device: torch.device) -> tuple:
    # Of the types with a generator, CUDA alone may have several devices.
    return (device,) if device.type == "cuda" else ()
