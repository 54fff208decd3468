"""skorch's net with scikit-learn's manners: parameters, pickling, device, generators.

skorch's constructor sets fitted state, its `set_params` rebuilds a fitted network and
its loading changes the `device` parameter. Here the constructor only assigns, and what
concerns training takes effect at the next `fit`.
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset, unpack_data
from skorch.history import History
from skorch.setter import optimizer_setter
from skorch.utils import get_map_location, is_dataset, to_tensor
from torch import Tensor, nn

from . import _state, _versions
from ._batches import Batch
from ._check_inputs import as_numbers
from ._checks import check_device, check_order, check_X, length_of
from ._forward import Forward, check_output, infer_prepared
from ._gathering import from_logits, gather, in_full
from ._generators import Generators
from ._items import as_dataset
from ._loading import Loader, prediction_batches
from ._memory import in_parts
from ._optimizer import can_fuse
from ._preparation import Preparation
from ._rules import DEFAULT_LR
from ._run import Run
from ._sklearn_tasks import CONTEXTS
from ._trial import has_embedding, needs_integers
from ._views import mean_logits
from ._workers import one_thread_after_fork
from .networks import default_network

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

# What an estimator of a version without these parameters did.
_LATER_PARAMETERS = {
    "averaging": None,
    "calibration": None,
    "cuda_graph": "auto",
    "devices": None,
    "gather_posterior": True,
    "label_noise": "auto",
    "posterior_folder": None,
    "prediction_views": None,
    "schedule_epochs": None,
    "sync_batch_norm": False,
}

# What no copy of an estimator has: a call of fit that runs, what only a further one
# can use, and contexts of scikit-learn's callbacks.
_TRANSIENT = ("_run", "_projection", *CONTEXTS)


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
    module_: Any
    optimizer_: Any
    classes_: Any
    image_shape: Any
    precision: Any
    prediction_views: Any
    _params_to_validate: set[str]
    # Facts of the inputs; the states of the generators between two calls.
    _preparation = Preparation()
    _generators: Generators
    # The call of fit that runs; at rest there is none.
    _run: Run | None = None
    # The prior of a file that has no beliefs.
    _saved_prior: dict[str, float] | None = None
    # The contrastive projection, for the next call of partial_fit.
    _projection: Any = None
    compile_time_ = 0.0  # also of one that was never fitted

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

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
        names = set(self._get_param_names())
        self._check_prefixed(params.keys() - names)
        for key, value in params.items():
            if key not in names:
                self._params_to_validate = self._params_to_validate | {key}
            setattr(self, key, value)
            if self.initialized_ and self._is_virtual_param(key):
                if key == "lr":
                    value = self._resolved_lr()
                self._apply_virtual_params({key: value})
                self._forget_schedule()
            elif self.initialized_ and key.startswith("callbacks__"):
                self._set_params_callback(**{key: value})
        return self

    def _forget_schedule(self) -> None:
        """Have the next schedule begin at the optimizer's rates as they are now."""
        if self._run is None:
            for group in self.optimizer_.param_groups:
                if "initial_lr" in group:  # of a scheduler of PyTorch's
                    group["initial_lr"] = group["lr"]

    def _check_prefixed(self, names) -> None:
        """Raise for a name without one of the prefixes."""
        for name in sorted(names):
            prefix, _, rest = name.partition("__")
            if not rest or prefix not in _PREFIXES:
                valid = sorted(self._constructor_names())
                meant = [f"{p}__*" for p in _PREFIXES if name.startswith(p + "_")]
                meant += get_close_matches(name, valid, n=1)
                hint = f" Did you mean {meant[0]}?" if meant else ""
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}."
                    f"{hint} Valid parameters are {valid}, and those with a prefix: "
                    f"{', '.join(p + '__*' for p in _PREFIXES)}."
                )

    def _get_params_for(self, prefix):
        # Mostly there are none. skorch looks at each attribute by itself, which takes
        # as long as a layer of a small network does for a row.
        if f"{prefix}__" not in " ".join(vars(self)):
            return {}
        return super()._get_params_for(prefix)

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

    def _in_mode(self, training: bool) -> AbstractContextManager[None]:
        """Run the network in training or evaluation mode within the context.

        A network at rest is in evaluation mode, so that prediction has nothing to
        switch: threads that predict at the same time share the network.
        """
        if self.module_.training == training:
            return nullcontext()
        return self._switched(training)

    @contextmanager
    def _switched(self, training: bool):
        self._set_training(training)
        try:
            yield
        finally:
            self._set_training(not training)

    # The two below leave out skorch's messages about re-initialization, which every
    # second call of fit would print.
    def _initialize_module(self, reason=None):
        if not hasattr(self, "device_"):
            self.device_ = check_device(self.device)
        with self._current_init_context("module"):
            self.initialize_module()
            if not hasattr(self, "module_"):
                raise AttributeError(
                    f"initialize_module of {type(self).__name__} has set no module_: "
                    "a BSDClassifier trains one network, which has this name. Put "
                    "several modules into one."
                )
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

    def initialize_module(self):
        """Build the network, or copy the one that was given.

        Returns
        -------
        self
            With `module_`.

        Raises
        ------
        ValueError
            If `module` is None and no data tell its shape yet.
        """
        kwargs = {
            # As an instance of a whole network is, below.
            name: copy.deepcopy(value) if isinstance(value, nn.Module) else value
            for name, value in self.get_params_for("module").items()
        }
        if self.module is None:
            if self._preparation.shape is None:
                raise ValueError(
                    "module=None is chosen from the data, and there are none yet. Call "
                    "fit, or pass the module to load weights into."
                )
            module = default_network(
                self._preparation.shape, len(self.classes_), **kwargs
            )
        elif self._copies_module():
            module = copy.deepcopy(self.module)
        else:
            module = self.initialized_instance(self.module, kwargs)
        self.module_ = module.to(self._preparation.float_dtype)
        return self

    def _copies_module(self) -> bool:
        """Whether the network is a copy of one that was given, weights included."""
        given = isinstance(self.module, nn.Module)
        return given and not self.get_params_for("module")

    def _build_optimizer(self, named_parameters, *, grouped: bool = True):
        """Build one; `grouped` by the user's patterns, where there are any."""
        named_parameters = list(named_parameters)
        args, kwargs = self.get_params_for_optimizer("optimizer", named_parameters)
        if not grouped:
            args = ([parameter for _, parameter in named_parameters],)
        if isinstance(kwargs.get("lr"), str):
            kwargs["lr"] = self._resolved_lr()
        accepted = inspect.signature(self.optimizer).parameters
        if "weight_decay" in accepted:
            kwargs.setdefault("weight_decay", self.weight_decay)
        fusible = can_fuse(self.optimizer, self.module_, self.device_)
        if fusible and not kwargs.keys() & _NOT_FUSED:
            kwargs["fused"] = True
        return self.optimizer(*args, **kwargs)

    def _resolved_lr(self) -> float:
        """Return the learning rate, or what stands for "auto"."""
        own = self.get_params_for("optimizer").get("lr")
        if own is not None:
            return own
        if not isinstance(self.lr, str):
            return self.lr
        choice = getattr(self, "choice_", None)
        return DEFAULT_LR if choice is None else choice.lr

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

    # The steps of skorch's loop. A run calls them, so subclasses can override them.

    def infer(self, x, **fit_params) -> Tensor:
        """Run the network on a prepared batch.

        Parameters
        ----------
        x : Tensor, or dict or list of Tensor
            A dict is passed as keyword arguments, and a list as one argument.
        **fit_params : dict
            Further keyword arguments of the network.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Logits: the network's output, its first entry where it is a tuple, or its
            `logits` where it has such an attribute.
        """
        if self._run is not None:
            return self._run.forward(x, **fit_params)
        return Forward(self.module_, self.device_, self.precision)(x, **fit_params)

    def train_step(self, batch: Batch, **fit_params) -> dict[str, Tensor]:
        """Take one optimization step.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.
        **fit_params : dict
            Unused, as in skorch's other steps.

        Returns
        -------
        dict of str to Tensor
            The "loss" and "y_pred", the logits, of the first evaluation, on the device.
        """
        return self._running().train_step(batch)

    def train_step_single(self, batch: Batch, **fit_params) -> dict[str, Tensor]:
        """Compute loss and gradients: the step of the objective.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.
        **fit_params : dict
            Unused.

        Returns
        -------
        dict of str to Tensor
            The "loss" and the logits as "y_pred", on the device.
        """
        return self._running().objective.step(batch)

    def validation_step(self, batch: Batch, **fit_params) -> dict[str, Tensor]:
        """Compute cross-entropy with the labels.

        Parameters
        ----------
        batch : Batch
            Samples and their rows.
        **fit_params : dict
            Unused.

        Returns
        -------
        dict of str to Tensor
            The "loss" and the logits as "y_pred", on the device.
        """
        with torch.no_grad():
            logits = self._logits(batch.x)
            return {"loss": self.get_loss(logits, batch.y), "y_pred": logits}

    def evaluation_step(self, batch, training=False) -> Tensor:
        """Compute the logits of a pair (x, y), as skorch's loaders give it.

        Parameters
        ----------
        batch : tuple of (x, y)
            Inputs, and labels that are not looked at.
        training : bool, default=False
            Run the network in training mode, with gradients.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits, on the device.

        Raises
        ------
        NotInitializedError
            If there is no network yet.
        """
        self.check_is_fitted()
        x, _ = unpack_data(batch)
        with torch.set_grad_enabled(training), self._in_mode(training):
            views = None if training else self.prediction_views
            return self._logits(to_tensor(x, self.device_), views)

    def get_loss(self, y_pred, y_true, X=None, training=False) -> Tensor:
        """Compute the cross-entropy of logits with class indices.

        This is the loss of validation; that of training is the objective's.

        Parameters
        ----------
        y_pred : Tensor of shape (n, n_classes)
            Logits.
        y_true : array-like of shape (n,)
            Class indices.
        X : array-like, default=None
            Unused, as in skorch.
        training : bool, default=False
            Unused, as in skorch.

        Returns
        -------
        Tensor of shape ()
            The mean over the samples.
        """
        logits = y_pred.to(torch.promote_types(y_pred.dtype, torch.float32))
        return self.criterion_(logits, to_tensor(y_true, logits.device))

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Train the network further, as `partial_fit` does.

        skorch has it for code that takes over the calls around it. Here it is
        `partial_fit` under another name: callbacks hear that training begins and ends.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table, images, or a Dataset of pairs (x, y).
        y : array-like of shape (n_samples,), default=None
            Labels. None with a Dataset.
        epochs : int, default=None
            How many epochs to train; None is `max_epochs`.
        **fit_params : dict
            Passed to `partial_fit`.

        Returns
        -------
        self
            The fitted estimator.

        See Also
        --------
        BSDClassifier.partial_fit : Does the work.
        """
        return self.partial_fit(X, y, epochs=epochs, **fit_params)

    def run_single_epoch(self, *args, **kwargs):
        """Raise, as training goes through `fit` and `partial_fit`.

        Parameters
        ----------
        *args : tuple
            Unused.
        **kwargs : dict
            Unused.

        Raises
        ------
        AttributeError
            Always.
        """
        raise AttributeError(
            f"{type(self).__name__} trains through fit and partial_fit, which tie "
            "samples to their posteriors; run_single_epoch is not available. Use "
            "partial_fit(X, y, epochs=1)."
        )

    def _running(self) -> Run:
        if self._run is None:
            raise AttributeError(
                f"{type(self).__name__} takes training steps within fit and "
                "partial_fit only, which tie samples to their posteriors."
            )
        return self._run

    def _logits(self, x, views: str | None = None) -> Any:
        """Run the network on a batch as it was given, without augmentation.

        With `views`, logits are averaged over views of each image.
        """
        x = self._preparation(
            x, caller=type(self).__name__, image_shape=self.image_shape
        )
        shape, network = self._preparation.shape, type(self.module_).__name__
        if views is None:
            return infer_prepared(self.infer, x, shape, network)
        return mean_logits(
            lambda view: infer_prepared(self.infer, view, shape, network), x, views
        )

    def forward_iter(self, X, training=False, device="cpu"):
        """Yield the logits of one batch after the other.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
            As in :meth:`fit`.
        training : bool, default=False
            Run the network in training mode, with dropout and gradients, and without
            `prediction_views`.
        device : str or torch.device, default="cpu"
            Where the logits are wanted.

        Yields
        ------
        Tensor of shape (n, n_classes)
            Logits of the next n samples.

        Raises
        ------
        NotInitializedError
            If there is no network yet: skorch's, which is a NotFittedError too.
        ValueError
            If X is not of the kind that was fitted.
        """
        if not self.__sklearn_is_fitted__():  # checked first, as it is faster
            self.check_is_fitted()

        views = None if training else self.prediction_views

        def predict(x):
            with torch.set_grad_enabled(training):
                logits = self._logits(x, views)
            if logits.ndim != 2:
                network = type(self.module_).__name__
                check_output(logits, network, len(self.classes_))
            return logits

        with self._in_mode(training):
            for logits in in_parts(predict, self._prediction_batches(X)):
                there = device is None or logits.device == device
                yield logits if there else logits.to(device)

    def _logits_of(self, X, rows) -> Tensor:
        """Predict rows of checked data, and leave all generators as they are."""
        loader = self._loader("iterator_valid")
        where = self.device_, self._preparation.float_dtype
        generators = self._generators.copy()
        with generators.borrowed(self.device_), self._in_mode(False), torch.no_grad():
            batches = prediction_batches(X, loader, *where, rows)
            views = self.prediction_views
            logits = in_parts(lambda x: self._logits(x, views), batches)
            return gather(from_logits(in_full, logits), len(rows))

    def _probe(self, X) -> Tensor:
        """Run the network on a few samples in evaluation mode; leave generators."""
        loader = self._loader("iterator_valid")
        where = self.device_, self._preparation.float_dtype
        with self._generators.copy().borrowed(self.device_), self._in_mode(False):
            return self._logits(next(prediction_batches(X, loader, *where)))

    def _prediction_batches(self, X):
        """Check X, and return its batches."""
        X = as_dataset(X)
        given, caller = X, type(self).__name__
        if not is_dataset(X):
            ways = self._ways_of_inputs(knows=True)
            X = check_X(X, caller=caller, image_shape=self.image_shape, **ways)
            self._check_like_training(given, X)
        return prediction_batches(
            X,
            self._loader("iterator_valid"),
            self.device_,
            self._preparation.float_dtype,
        )

    def _ways_of_inputs(self, *, knows: bool) -> dict[str, Any]:
        """Return what `check_X` has to know of the network.

        `knows` is whether it has seen data, or loaded weights, and is to be kept.
        """
        fitted = self._preparation
        told = knows and not fitted.is_dataset
        return {
            "own_module": self.module is not None,
            "needs_integers": (
                (lambda X: self._takes_integers()) if knows else self._needs_integers
            ),
            "is_several": fitted.several is not None if told else None,
        }

    def _takes_integers(self) -> bool:
        """Whether the network is given integers as such, and not as floats."""
        if self.module is None:
            return False
        known = self._preparation.keeps_integers
        # Of one whose weights were loaded, without data.
        return has_embedding(self.module_) if known is None else known

    def _needs_integers(self, X) -> bool:
        """Find out whether a network that is to be trained takes integers alone."""

        def build():
            if self._copies_module():
                return copy.deepcopy(self.module).to("cpu")
            kwargs = copy.deepcopy(self.get_params_for("module"))
            return self.initialized_instance(self.module, kwargs)

        if self.module is None:
            return False
        few = as_numbers(X[:2], keep_integers=True)
        few = few.cpu() if isinstance(few, Tensor) else torch.tensor(few)
        return needs_integers(build, few)

    def _check_like_training(self, given, X) -> None:
        """Raise where X is not of the kind that the network was fitted on."""
        self._preparation.check_like(X, type(self).__name__)
        if not hasattr(self, "n_features_in_"):
            return
        has_names = hasattr(given, "columns")
        if not has_names and X.ndim != 2:
            return
        agree = X.ndim == 2 and X.shape[1] == self.n_features_in_
        if has_names or hasattr(self, "feature_names_in_") or not agree:
            self._note_features(given, X, reset=False)

    def _note_features(self, given, X, *, reset: bool) -> None:
        """Take note of number and names of the features, or compare with them."""
        # What has no names is looked at as checked: it may be flat rows, or images.
        named = given
        if not hasattr(given, "columns"):
            named = X if X.ndim == 2 else X.reshape(len(X), -1)
        validate_data(self, named, skip_check_array=True, reset=reset)

    def _loader(self, side: str) -> Loader:
        """Return how the user has set one side of loading."""
        options = self.get_params_for(side)
        if side == "iterator_valid":
            check_order(options)
        known = self._preparation
        n_inputs = known.n_inputs
        if isinstance(known.several, list):
            n_inputs = len(known.several)
        return Loader(side, getattr(self, side), options, self.batch_size, n_inputs)

    def _predictions(self, X, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what a function makes of the logits, on the CPU.

        It gets those of one batch after the other, so that logits of all samples are
        never held beside what is made of them.
        """
        # forward_iter is looked up on the instance: skorch's scoring callbacks put
        # cached predictions in its place.
        device = getattr(self, "device_", "cpu")
        with one_thread_after_fork():
            batches = self.forward_iter(X, training=False, device=device)
            return gather(from_logits(of, batches), length_of(X))

    # Copies

    def __getstate__(self):
        state = {k: v for k, v in vars(self).items() if k not in _TRANSIENT}
        prefixes = tuple(self.cuda_dependent_attributes_)
        found = [k for k in state if k.startswith(prefixes) and "__" not in k]
        components = {k: state.pop(k) for k in found}
        if components:
            state["_components"] = packed = _state.pack(components)
            if isinstance(packed, dict):
                # Functions, which a state without a pickle should not name.
                state.pop("virtual_params_", None)
                if self.callbacks is None:  # skorch's own remember nothing of use
                    state.pop("callbacks_", None)
        versions = _versions.current()
        state["_sklearn_version"] = versions["scikit-learn"]
        state["_skbsd_version"] = versions["skbsd"]
        return state

    def __setstate__(self, state):
        state = _LATER_PARAMETERS | state
        _versions.compare(
            {
                "scikit-learn": state.pop("_sklearn_version", None),
                "skbsd": state.pop("_skbsd_version", None),
            },
            type(self).__name__,
            stacklevel=3,
        )
        components = state.pop("_components", None)
        requested = state["device"]
        preparation = state.get("_preparation", Preparation())
        state["device"] = self._device_here(requested, preparation)
        if isinstance(components, _state.PickledComponents):
            # Its bytes are unpickled. Nothing else in a state is.
            state["__cuda_dependent_attributes__"] = components.data
            super().__setstate__(state)
        else:
            self.__dict__.update(state)
        if "device_" in state:
            self.device_ = check_device(self.device)
            posterior = getattr(self, "posterior_", None)
            if posterior is not None:
                posterior.to(self.device_)
            self._preparation = preparation.changed(device=str(self.device_))
        if isinstance(components, dict):
            last = preparation.channels_last
            found = _state.unpack(components, self.device_, channels_last=last)
            self.__dict__.update(found)
            self._initialize_virtual_params()
            self._register_optimizer_setters()
            if "callbacks_" not in state:
                self._initialize_callbacks()
        if hasattr(self, "module_"):
            self._set_training(False)  # it may have been copied while it was trained
        if requested == "auto":
            self.device = "auto"

    def _register_optimizer_setters(self) -> None:
        """Let `set_params` reach a live optimizer, as skorch does as it builds one."""
        setter = partial(
            optimizer_setter, optimizer_attr="optimizer_", optimizer_name="optimizer"
        )
        patterns = ["optimizer__param_groups__*__*", "optimizer__*", "lr"]
        self._register_virtual_param(patterns, setter)

    def _device_here(self, requested: Any, preparation: Preparation) -> str:
        """Return where a network lives that came from elsewhere.

        What is here counts, not what was where it was fitted; double precision is the
        CPU's.
        """
        if requested == "auto":
            double = preparation.dtype == "float64"
            return "cpu" if double else str(check_device("auto"))
        return str(self._check_device(requested, get_map_location(requested)))
