"""skorch's net with scikit-learn's manners: parameters, pickling, device, generators.

skorch's constructor sets fitted state, its `set_params` rebuilds a fitted network and
its loading changes the `device` parameter. Here the constructor only assigns,
parameters take effect at the next `fit`, and no method changes one.
"""

import inspect
from contextlib import contextmanager

import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset
from skorch.history import History
from torch import nn

from ._checks import check_device

_PREFIXES = (
    "module",
    "optimizer",
    "callbacks",
    "iterator_train",
    "iterator_valid",
    "compile",
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
    _params_to_validate: set[str]
    _generator_state: tuple

    def _get_param_names(self):
        named = inspect.signature(type(self).__init__).parameters.values()
        names = [p.name for p in named if p.name != "self" and p.kind != p.VAR_KEYWORD]
        return sorted([*names, *self._params_to_validate])

    def get_params(self, deep=True):
        """Get the parameters, those of components given as `module__width` too.

        Parameters
        ----------
        deep : bool, default=True
            Include the parameters of parameters that are estimators.

        Returns
        -------
        dict
        """
        return BaseEstimator.get_params(self, deep=deep)

    def set_params(self, **params):
        """Set parameters, for the next call of `fit`.

        `lr`, `optimizer__*` and `callbacks__*` also reach a live optimizer or
        callback, so that a callback can change them while training runs.

        Parameters
        ----------
        **params : dict
            Names as in `get_params`, or with the prefixes ``module__``,
            ``optimizer__``, ``callbacks__``, ``iterator_train__``,
            ``iterator_valid__`` and ``compile__``.

        Returns
        -------
        self

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
            elif self.initialized_ and key.startswith("callbacks__"):
                self._set_params_callback(**{key: value})
        return self

    def _check_prefixed(self, names) -> None:
        """Raise for a name without one of the prefixes."""
        for name in sorted(names):
            prefix, _, rest = name.partition("__")
            if not rest or prefix not in _PREFIXES:
                meant = [p for p in _PREFIXES if name.startswith(p + "_") and not rest]
                hint = f" Did you mean {meant[0]}__*?" if meant else ""
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}."
                    f"{hint} Valid parameters are {self._get_param_names()}, and those "
                    f"with a prefix: {', '.join(p + '__*' for p in _PREFIXES)}."
                )

    def _validate_params(self):
        self._check_prefixed(self._params_to_validate)

    def __repr__(self, N_CHAR_MAX=700):
        # scikit-learn's, which shows what differs from the defaults.
        return BaseEstimator.__repr__(self, N_CHAR_MAX)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "module_")

    def initialize(self):
        """Build network, optimizer, callbacks and history on the device.

        `fit` does this. Call it to load saved weights into a new estimator, with a
        `module` of your own: `module=None` is chosen from the data.

        Returns
        -------
        self
        """
        self.device_ = check_device(self.device)
        return super().initialize()

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

        `weight_decay` is passed to optimizers that have it, and those that come in a
        fused form use it.

        Parameters
        ----------
        triggered_directly : None
            Unused, deprecated in skorch.

        Returns
        -------
        self
        """
        args, kwargs = self.get_params_for_optimizer(
            "optimizer", self.get_all_learnable_params()
        )
        accepted = inspect.signature(self.optimizer).parameters
        if "weight_decay" in accepted:
            kwargs.setdefault("weight_decay", self.weight_decay)
        if "fused" in accepted and not {"foreach", "fused"} & kwargs.keys():
            kwargs["fused"] = True
        self.optimizer_ = self.optimizer(*args, **kwargs)
        return self

    def initialize_history(self):
        """Start a new history; that of the last fit stays as it is.

        Returns
        -------
        self
        """
        self.history_ = History()
        return self

    def load_params(self, *args, **kwargs):
        """Load parameters that :meth:`save_params` wrote.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`skorch.NeuralNet.load_params`; ``f_posterior=`` loads the
            posterior's rows.
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
        before = _generator_state(device)
        try:
            if fresh:
                seed = check_random_state(self.random_state).randint(2**31 - 1)
                torch.default_generator.manual_seed(int(seed))
                if device.type == "cuda":
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(int(seed))
            else:
                _set_generator_state(device, self._generator_state)
            yield
        finally:
            self._generator_state = _generator_state(device)
            _set_generator_state(device, before)

    def __getstate__(self):
        state = super().__getstate__()
        state.pop("_compiled", None)
        return state

    def __setstate__(self, state):
        requested = state["device"]
        if requested == "auto":
            # What is here counts, not what was where the model was fitted.
            state = {**state, "device": str(check_device("auto"))}
        super().__setstate__(state)
        if "device_" in state:
            self.device_ = check_device(self.device)
            posterior = getattr(self, "posterior_", None)
            if posterior is not None:
                posterior.to(self.device_)
        if requested == "auto":
            self.device = "auto"


def _generator_state(device: torch.device) -> tuple:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _set_generator_state(device: torch.device, state: tuple) -> None:
    on_cpu, on_device = state
    torch.set_rng_state(on_cpu)
    if device.type == "cuda" and on_device is not None:
        torch.cuda.set_rng_state(on_device, device)
