"""skorch's net with the conventions of scikit-learn for parameters and pickling.

skorch's constructor sets fitted state, its `set_params` rebuilds a fitted network, and
its loading changes the `device` parameter. Here, the constructor only assigns
parameters, and training parameters take effect at the next `fit`.
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

# Options of an optimizer that conflict with `fused`, or that already set it.
_NOT_FUSED = {"capturable", "differentiable", "foreach", "fused"}

# Behaviour of estimators from versions that did not have these parameters yet.
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

# Attributes that are not copied: a running call of fit, state that is useful only for a
# further call in this process, and contexts of scikit-learn's callbacks.
_TRANSIENT = ("_run", "_projection", *CONTEXTS)


class Net(NeuralNetClassifier):
    """Base of :class:`skbsd.BSDClassifier`; see the module's docstring."""

    # Attributes that skorch's constructor would set; none of them is a parameter here.
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
    # Attributes that skorch derives when components are set for the first time.
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
    # How inputs are prepared, and the states of the generators between two calls.
    _preparation = Preparation()
    _generators: Generators
    # The running call of fit; None between calls.
    _run: Run | None = None
    # The prior that was loaded from a file without beliefs.
    _saved_prior: dict[str, float] | None = None
    # The contrastive projection, for the next call of partial_fit.
    _projection: Any = None
    compile_time_ = 0.0  # also for an estimator that was never fitted

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @classmethod
    @cache
    def _constructor_names(cls) -> frozenset[str]:
        """Names in the signature of the constructor, including those of subclasses."""
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
        # skorch registers any module that is set as a component of the net, but a
        # parameter may be a module too, such as a transform as augmentation.
        if name.endswith("_"):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def __delattr__(self, name):
        # skorch treats any attribute as a component here too.
        if name.endswith("_"):
            super().__delattr__(name)
        else:
            object.__delattr__(self, name)

    def get_params(self, deep=True):
        """Get the parameters, including those of components such as `module__width`.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include the parameters of parameters that are estimators.

        Returns
        -------
        dict of str to object
            The parameters by name.
        """
        return BaseEstimator.get_params(self, deep=deep)

    def set_params(self, **params):
        """Set parameters, for the next call of `fit`.

        `lr`, `optimizer__*` and `callbacks__*` also change an existing optimizer or
        callback, so that a callback can change them during training (the learning rate
        only with ``lr_schedule="constant"``, as other schedules set it in each step).
        Predictions of a fitted estimator follow the current values of `precision`,
        `compile` and `image_shape`.

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
            For an unknown name. No parameter is set then.
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
        """Start the next schedule at the current learning rates of the optimizer."""
        if self._run is None:
            for group in self.optimizer_.param_groups:
                if "initial_lr" in group:  # set by a scheduler of PyTorch
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
        # Usually no such parameters exist. skorch checks each attribute separately,
        # which takes as long as a layer of a small network for a single row.
        if f"{prefix}__" not in " ".join(vars(self)):
            return {}
        return super()._get_params_for(prefix)

    def _validate_params(self):
        self._check_prefixed(self._params_to_validate)

    def __repr__(self, N_CHAR_MAX=700):
        # The representation of scikit-learn shows only non-default parameters.
        return BaseEstimator.__repr__(self, N_CHAR_MAX)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "module_")

    def _has_classes(self) -> bool:
        """Whether the estimator has been fitted on data, not only loaded weights."""
        return hasattr(self, "classes_")

    def initialize(self):
        """Build network, optimizer, callbacks and history on the device.

        `fit` does this. Call it to load saved weights into a new estimator with a
        custom `module`. With `module=None`, the network can be chosen only from data.

        Returns
        -------
        self
            Initialized, with random weights or those of the given `module`.

        Raises
        ------
        ValueError
            If the device is not available, or if `module` is None before `fit` has seen
            data.
        """
        self.device_ = check_device(self.device)
        super().initialize()
        self._set_training(False)
        return self

    def _in_mode(self, training: bool) -> AbstractContextManager[None]:
        """Run the network in training or evaluation mode within the context.

        Between calls the network is in evaluation mode. Predictions therefore need not
        switch it, so that several threads can predict with it at the same time.
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

    # The next two methods omit skorch's messages about re-initialization, which each
    # call of fit but the first would print.
    def _initialize_module(self, reason=None):
        if not hasattr(self, "device_"):
            self.device_ = check_device(self.device)
        with self._current_init_context("module"):
            self.initialize_module()
            if not hasattr(self, "module_"):
                raise AttributeError(
                    f"initialize_module of {type(self).__name__} did not set module_. "
                    "A BSDClassifier trains the single network in this attribute; "
                    "combine several modules into one."
                )
            self.module_.to(self.device_)
        return self

    def _initialize_criterion(self, reason=None):
        with self._current_init_context("criterion"):
            self.criterion_ = self.criterion().to(self.device_)
        return self

    def _initialize_optimizer(self, reason=None):
        self.initialized_ = False  # otherwise skorch prints a message, as above
        return super()._initialize_optimizer(reason)

    def initialize_optimizer(self, triggered_directly=None):
        """Build the optimizer, with `lr`, `weight_decay` and ``optimizer__*``.

        `weight_decay` is passed to optimizers that accept it. SGD, Adam and AdamW use
        their fused implementation if torch supports it.

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
        """Build the network, or copy a given instance.

        Returns
        -------
        self
            With `module_`.

        Raises
        ------
        ValueError
            If `module` is None and the shape of the data is not known yet.
        """
        kwargs = {
            # Copied for the same reason as an instance of a whole network below.
            name: copy.deepcopy(value) if isinstance(value, nn.Module) else value
            for name, value in self.get_params_for("module").items()
        }
        if self.module is None:
            if self._preparation.shape is None:
                raise ValueError(
                    "module=None chooses the network from the data, but no data have "
                    "been seen yet. Call fit, or pass the module to load weights into."
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
        """Whether the network is a copy of a given instance, including its weights."""
        given = isinstance(self.module, nn.Module)
        return given and not self.get_params_for("module")

    def _build_optimizer(self, named_parameters, *, grouped: bool = True):
        """Build an optimizer; `grouped` applies the user's parameter groups."""
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
        """Return the learning rate, with "auto" resolved to a number."""
        own = self.get_params_for("optimizer").get("lr")
        if own is not None:
            return own
        if not isinstance(self.lr, str):
            return self.lr
        choice = getattr(self, "choice_", None)
        return DEFAULT_LR if choice is None else choice.lr

    def initialize_history(self):
        """Start a new history; the history object of the last fit is not changed.

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
            Passed too, such as `f_params`; `f_posterior` loads the rows of the
            posterior.
        """
        with self._resolved_device():
            super().load_params(*args, **kwargs)

    @contextmanager
    def _resolved_device(self):
        """Replace "auto" by a device of torch within the context, for skorch's code."""
        requested = self.device
        self.device = str(check_device(requested))
        try:
            yield
        finally:
            self.device = requested

    # The steps of skorch's training loop, which a run calls so that subclasses can
    # override them.

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
            Logits: the output of the network, its first entry if it is a tuple, or its
            attribute `logits` if it has one.
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
            Unused, as in the other steps of skorch.

        Returns
        -------
        dict of str to Tensor
            The "loss" and the logits as "y_pred", on the device. If the optimizer
            evaluates the step several times, they are those of the first evaluation.
        """
        return self._running().train_step(batch)

    def train_step_single(self, batch: Batch, **fit_params) -> dict[str, Tensor]:
        """Compute loss and gradients by a step of the objective.

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
        """Compute the cross-entropy with the labels.

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
        """Compute the logits of a pair (x, y), as returned by skorch's loaders.

        Parameters
        ----------
        batch : tuple of (x, y)
            Inputs, and labels that are ignored.
        training : bool, default=False
            Whether to run the network in training mode, with gradients.

        Returns
        -------
        Tensor of shape (n, n_classes)
            The logits, on the device.

        Raises
        ------
        NotInitializedError
            If the network does not exist yet.
        """
        self.check_is_fitted()
        x, _ = unpack_data(batch)
        with torch.set_grad_enabled(training), self._in_mode(training):
            views = None if training else self.prediction_views
            return self._logits(to_tensor(x, self.device_), views)

    def get_loss(self, y_pred, y_true, X=None, training=False) -> Tensor:
        """Compute the cross-entropy of logits with class indices.

        This is the validation loss; the objective defines the training loss.

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
        logits = in_full(y_pred)
        return self.criterion_(logits, to_tensor(y_true, logits.device))

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Train the network further, as `partial_fit` does.

        skorch provides it for code that replaces the surrounding calls. Here, it is an
        alias of `partial_fit`, so callbacks are notified of the beginning and the end
        of training.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table, images, or a Dataset of pairs (x, y).
        y : array-like of shape (n_samples,), default=None
            Labels. None with a Dataset.
        epochs : int, default=None
            Number of epochs to train; None is `max_epochs`.
        **fit_params : dict
            Passed to `partial_fit`.

        Returns
        -------
        self
            The fitted estimator.

        See Also
        --------
        BSDClassifier.partial_fit : Trains the network further.
        """
        return self.partial_fit(X, y, epochs=epochs, **fit_params)

    def run_single_epoch(self, *args, **kwargs):
        """Raise, as only `fit` and `partial_fit` can train.

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
            f"{type(self).__name__} trains only in fit and partial_fit, which match "
            "samples with their posteriors; run_single_epoch is not available. Use "
            "partial_fit(X, y, epochs=1)."
        )

    def _running(self) -> Run:
        if self._run is None:
            raise AttributeError(
                f"{type(self).__name__} supports training steps only within fit and "
                "partial_fit, which match samples with their posteriors."
            )
        return self._run

    def _logits(self, x, views: str | None = None) -> Any:
        """Prepare a batch and run the network on it, without augmentation.

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
            Whether to run the network in training mode, with dropout and gradients, and
            without `prediction_views`.
        device : str or torch.device, default="cpu"
            The device of the returned logits.

        Yields
        ------
        Tensor of shape (n, n_classes)
            Logits of the next n samples.

        Raises
        ------
        NotInitializedError
            If the network does not exist yet. This error of skorch is a NotFittedError.
        ValueError
            If X differs in kind from the training data.
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
        """Predict rows of checked data, without a change to any generator."""
        loader = self._loader("iterator_valid")
        where = self.device_, self._preparation.float_dtype
        generators = self._generators.copy()
        with generators.borrowed(self.device_), self._in_mode(False), torch.no_grad():
            batches = prediction_batches(X, loader, *where, rows)
            views = self.prediction_views
            logits = in_parts(lambda x: self._logits(x, views), batches)
            return gather(from_logits(in_full, logits), len(rows))

    def _probe(self, X) -> Tensor:
        """Run the network on a batch in evaluation mode, without generator changes."""
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
        """Return the arguments of `check_X` that depend on the network.

        `knows` is whether the network has seen data, or loaded weights, and is kept.
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
        """Whether the network receives integers unchanged, not converted to floats."""
        if self.module is None:
            return False
        known = self._preparation.keeps_integers
        # None if weights were loaded, and no data have been seen.
        return has_embedding(self.module_) if known is None else known

    def _needs_integers(self, X) -> bool:
        """Whether a network that will be trained accepts only integers."""

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
        """Raise if X differs in kind from the data that the network was fitted on."""
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
        """Store number and names of the features, or compare X with the stored ones."""
        # Data without names are used as checked: they may be flat rows, or images.
        named = given
        if not hasattr(given, "columns"):
            named = X if X.ndim == 2 else X.reshape(len(X), -1)
        validate_data(self, named, skip_check_array=True, reset=reset)

    def _loader(self, side: str) -> Loader:
        """Return the user's settings for loading training or validation data."""
        options = self.get_params_for(side)
        if side == "iterator_valid":
            check_order(options)
        known = self._preparation
        n_inputs = known.n_inputs
        if isinstance(known.several, list):
            n_inputs = len(known.several)
        return Loader(side, getattr(self, side), options, self.batch_size, n_inputs)

    def _predictions(self, X, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function to the logits, and return the results on the CPU.

        The function receives one batch after the other, so that the logits of all
        samples are never in memory together with the results.
        """
        # forward_iter is looked up on the instance, as skorch's scoring callbacks
        # replace it to return cached predictions.
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
                # It contains functions, which a state without a pickle cannot store.
                state.pop("virtual_params_", None)
                if self.callbacks is None:  # skorch's own have no state to keep
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
            # Only these bytes of a state are unpickled.
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
            self._set_training(False)  # it may have been copied during training
        if requested == "auto":
            self.device = "auto"

    def _register_optimizer_setters(self) -> None:
        """Let `set_params` change the optimizer, as skorch does when building one."""
        setter = partial(
            optimizer_setter, optimizer_attr="optimizer_", optimizer_name="optimizer"
        )
        patterns = ["optimizer__param_groups__*__*", "optimizer__*", "lr"]
        self._register_virtual_param(patterns, setter)

    def _device_here(self, requested: Any, preparation: Preparation) -> str:
        """Return the device on this machine for a network that has been unpickled.

        "auto" is resolved by the devices of this machine, not by those of the machine
        that fitted the network. Networks of double precision stay on the CPU.
        """
        if requested == "auto":
            double = preparation.dtype == "float64"
            return "cpu" if double else str(check_device("auto"))
        return str(self._check_device(requested, get_map_location(requested)))
