"""Bayesian self-distillation as a scikit-learn classifier."""

import copy
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_consistent_length
from sklearn.utils.metadata_routing import _routing_enabled, process_routing
from sklearn.utils.validation import check_is_fitted, validate_data
from skorch.callbacks import EpochScoring, EpochTimer, PassthroughScoring, PrintLog
from skorch.dataset import Dataset as SkorchDataset
from skorch.utils import is_dataset, to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from . import _checks
from ._batches import (
    IndexedCollate,
    IndexedDataset,
    LoaderBatches,
    ResidentBatches,
    channel_statistics,
)
from ._training import SCHEDULES, TrainingLoop
from .augmentation import flip_crop
from .networks import MLP, SmallResNet
from .posterior import DirichletPosterior

__all__ = ["BSDClassifier"]

_AUGMENTATIONS = {"flip-crop": flip_crop}


class _TrainingData(NamedTuple):
    """What `fit` was given, checked."""

    given: Any  # X as it came, for its feature names
    X: Any  # ndarray, Tensor or Dataset
    y: np.ndarray
    classes: np.ndarray
    codes: np.ndarray
    weight: np.ndarray | None


class BSDClassifier(TrainingLoop):
    """Neural network classifier trained by Bayesian self-distillation.

    Each training sample has a Dirichlet belief about its class. It starts at the
    label, takes in the network's own predictions as training goes on, and its mean
    is the target that the network is trained towards. The result is a network that
    knows how sure it can be: better calibrated than one trained with cross-entropy,
    and slower to memorise wrong labels [1]_.

    Parameters
    ----------
    module : torch.nn.Module (class or instance), default=None
        A network that returns logits of shape (n, n_classes); the first entry of a
        tuple, or the `logits` of an object, count too. An instance is copied and
        trained from the weights that it has. None chooses from the shape of X:
        :class:`skbsd.networks.MLP` for tables and
        :class:`skbsd.networks.SmallResNet` for images.
    prior_strength : float, default=100.0
        c in (0, inf]: the prior concentration of a sample's label. The larger, the
        longer the label holds against the network's predictions; `inf` is training
        with cross-entropy. After T epochs without discount, c / (c + T) of the target
        still comes from the label.
    discount : float, default=1.0
        gamma in (0, 1]: what each epoch leaves of the evidence so far. With less than
        1 the label is forgotten exponentially; keep
        `prior_strength >= 1 / (1 - discount)`.
    prior_floor : float, default=1e-3
        eps > 0: the prior concentration of each other class.
    max_epochs : int, default=60
        Passes over the data in each call of `fit` or `partial_fit`.
    batch_size : int, default=128
        Samples per step; -1 for all of them.
    lr : float, default=3e-3
        Learning rate, the highest of the schedule.
    optimizer : torch.optim.Optimizer class, default=torch.optim.AdamW
        Further arguments are given as ``optimizer__*``.
    lr_schedule : {"one-cycle", "cosine", "constant"}, default="one-cycle"
        How the learning rate moves over one call of `fit`: up for a quarter of it and
        down along a cosine; down along a cosine; not at all. A skorch `LRScheduler`
        among the callbacks takes its place.
    weight_decay : float, default=1e-2
        Passed to the optimizer, where it has such an argument.
    augmentation : {"flip-crop"} or callable, default=None
        Applied to every training batch on the device. "flip-crop" is
        :func:`skbsd.augmentation.flip_crop`. A callable gets the batch as it was
        given to `fit` (uint8 images as uint8) and returns one of the same shape.
    image_shape : tuple of (channels, height, width), default=None
        Take each row of a 2-D X as a flattened image.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        "bfloat16" runs the network under autocast. "auto" does so on GPUs that have
        it and uses float32 elsewhere, but float64 for the default network on the CPU
        where all of a table fits in one batch: such a fit is deterministic, and does
        not depend on the order of the rows.
    compile : bool, default=False
        Compile the network with :func:`torch.compile`; ``compile__*`` are passed on.
    device : str or torch.device, default="auto"
        "auto" is cuda, then mps, then cpu, what there is first.
    train_split : callable, default=None
        Such as :class:`skorch.dataset.ValidSplit`, to hold out validation data. None
        trains on all of X.
    class_weight : dict or "balanced", default=None
        Weights of the classes, as in scikit-learn; multiplied with `sample_weight`.
    callbacks : list of skorch callbacks, "disable" or None, default=None
        In addition to skorch's default ones.
    iterator_train, iterator_valid : callable, default=torch.utils.data.DataLoader
        How a Dataset is loaded, with ``iterator_train__*`` such as `num_workers`.
        Arrays are gathered on the device instead, unless one of these is set.
    warm_start : bool, default=False
        Let `fit` go on from the network of the last call.
    verbose : int, default=0
        1 prints a line per epoch.
    random_state : int, RandomState instance or None, default=None
        Fixes initialisation, order and augmentation; on the CPU the same seed gives
        the same model bit for bit. torch's global generators are left as they were.
    **kwargs : dict
        Parameters with the prefixes ``module__``, ``optimizer__``, ``callbacks__``,
        ``iterator_train__``, ``iterator_valid__`` and ``compile__``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    n_features_in_ : int
        Number of columns of a table, or values of an image. Not for a Dataset.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where X has them.
    module_ : torch.nn.Module
        The trained network.
    posterior_ : DirichletPosterior
        The belief about each training sample; row i belongs to row i of X.
    history_ : skorch.history.History
        Losses and times of every epoch.
    n_iter_ : int
        Number of epochs trained.
    device_ : torch.device
        Where the network is.
    image_mean_, image_std_ : ndarray of shape (channels,)
        Statistics of the training images that uint8 images are standardised with.

    See Also
    --------
    skbsd.posterior.DirichletPosterior : The beliefs and their mathematics.
    skbsd.metrics.expected_calibration_error : How wrong the confidence is.
    sklearn.neural_network.MLPClassifier : Trained with cross-entropy.
    sklearn.calibration.CalibratedClassifierCV : Calibration after training.

    Notes
    -----
    In the paper's symbols, a visit of sample i with predicted probabilities p does

    .. math:: \\alpha_i \\leftarrow \\gamma \\alpha_i + p, \\qquad
              q_i = \\alpha_i / \\textstyle\\sum_k \\alpha_i[k],

    and the loss is the cross-entropy of q with p. Its gradient in the logits is
    p - q. Samples of weight zero are left out; the others' losses are averaged with
    weights scaled to mean 1.

    A table is taken as it is: put a `StandardScaler` before. uint8 images are
    standardised by channel on the device; float images are taken as they are.

    References
    ----------
    .. [1] F. Adelöw, M. Gamba, A. Maki, "Bayesian Self-Distillation for Image
       Classification", arXiv:2512.24162.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import train_test_split
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skbsd import BSDClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> model = make_pipeline(StandardScaler(), BSDClassifier(random_state=0))
    >>> model.fit(X_train, y_train).score(X_test, y_test) > 0.9
    True
    >>> model[-1].posterior_
    DirichletPosterior(n_samples=133, n_classes=3, prior_strength=100, discount=1, ...)
    """

    def __init__(
        self,
        module=None,
        *,
        prior_strength=100.0,
        discount=1.0,
        prior_floor=1e-3,
        max_epochs=60,
        batch_size=128,
        lr=3e-3,
        optimizer=torch.optim.AdamW,
        lr_schedule="one-cycle",
        weight_decay=1e-2,
        augmentation=None,
        image_shape=None,
        precision="auto",
        compile=False,
        device="auto",
        train_split=None,
        class_weight=None,
        callbacks=None,
        iterator_train=DataLoader,
        iterator_valid=DataLoader,
        warm_start=False,
        verbose=0,
        random_state=None,
        **kwargs,
    ):
        self.module = module
        self.prior_strength = prior_strength
        self.discount = discount
        self.prior_floor = prior_floor
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.weight_decay = weight_decay
        self.augmentation = augmentation
        self.image_shape = image_shape
        self.precision = precision
        self.compile = compile
        self.device = device
        self.train_split = train_split
        self.class_weight = class_weight
        self.callbacks = callbacks
        self.iterator_train = iterator_train
        self.iterator_valid = iterator_valid
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state
        self._params_to_validate = set(kwargs)
        vars(self).update(kwargs)

    @property
    def _default_callbacks(self):
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring("valid_loss")),
            (
                "valid_acc",
                EpochScoring("accuracy", name="valid_acc", lower_is_better=False),
            ),
            ("print_log", PrintLog()),
        ]

    def fit(self, X, y=None, sample_weight=None, **split_params):
        """Train a new network.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table of shape (n_samples, n_features), images of shape (n_samples,
            channels, height, width), or a `torch.utils.data.Dataset` of pairs (x, y).
        y : array-like of shape (n_samples,)
            Labels of any kind: integers, strings, booleans. None with a Dataset, which
            has its own.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; zero leaves a sample out.
        **split_params : dict
            Passed to `train_split`, such as `groups`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For parameters or data that cannot be used, before anything is changed;
            and where the loss becomes NaN or infinite, with the weights kept from the
            last epoch in which it did not.

        Notes
        -----
        An interrupt (Ctrl-C) ends training and leaves a usable model.
        """
        fresh = not (self.warm_start and self.initialized_)
        known = None if fresh else self.classes_
        data = self._check_training_data(X, y, sample_weight, known, reset=fresh)
        return self._train(data, "fit", split_params, fresh=fresh)

    def partial_fit(self, X, y=None, classes=None, sample_weight=None, **split_params):
        """Train the network further, for `max_epochs` more.

        With the X and y of the last call the samples keep their posteriors; other
        data get fresh ones.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            As in :meth:`fit`.
        y : array-like of shape (n_samples,)
            Labels, all among those known.
        classes : array-like of shape (n_classes,), default=None
            All labels there will be, for the first call; by default those in y.
        sample_weight : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.
        **split_params : dict
            Passed to `train_split`, such as `groups`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As in :meth:`fit`, and for labels that are not among the classes.
        """
        fresh = not self.initialized_
        known = None if fresh else self.classes_
        if classes is not None:
            classes = _checks.find_classes(
                _checks.check_y(classes, type(self).__name__)
            )
            if known is not None and not np.array_equal(classes, known):
                raise ValueError(
                    f"classes={classes.tolist()} differ from those of the first call, "
                    f"{known.tolist()}; call fit to start afresh."
                )
            known = classes
        data = self._check_training_data(X, y, sample_weight, known, reset=fresh)
        return self._train(data, "partial_fit", split_params, fresh=fresh)

    def predict_proba(self, X):
        """Predict the probability of each class.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            As in :meth:`fit`. Images may have another height and width where the
            network can take them.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            softmax of the logits; columns in the order of `classes_`.
        """
        return self._all_logits(X).softmax(dim=1).numpy()

    def decision_function(self, X):
        """Compute the logits.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            For two classes the difference of the second's logit and the first's.
        """
        logits = self._all_logits(X)
        if logits.shape[1] == 2:
            return (logits[:, 1] - logits[:, 0]).numpy()
        return logits.numpy()

    def predict(self, X):
        """Predict the label of each sample.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset

        Returns
        -------
        ndarray of shape (n_samples,)
            Values of `classes_`.
        """
        labels = self._all_logits(X).argmax(dim=1).numpy()
        return self.classes_[labels]

    def forward_iter(self, X, training=False, device="cpu"):
        """Yield the logits of one batch after the other.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
        training : bool, default=False
            Run the network in training mode, with dropout and gradients.
        device : str or torch.device, default="cpu"
            Where the logits are wanted.

        Yields
        ------
        Tensor of shape (n, n_classes)
        """
        check_is_fitted(self)
        batches = self._prediction_batches(X)
        was_training = self.module_.training
        self._set_training(training)
        try:
            for x in batches:
                with torch.set_grad_enabled(training):
                    logits = self.infer(self._prepare(x, training=False))
                yield to_device(logits, device)
        finally:
            # Callbacks predict in the middle of an epoch.
            self._set_training(was_training)

    def initialize_module(self):
        """Build the network, or copy the one that was given.

        Returns
        -------
        self
        """
        kwargs = self.get_params_for("module")
        if self.module is None:
            if not hasattr(self, "_input_shape"):
                raise ValueError(
                    "module=None is chosen from the data, and there are none yet. Call "
                    "fit, or pass the module to load weights into."
                )
            network = MLP if len(self._input_shape) == 1 else SmallResNet
            module = network(self._input_shape[0], len(self.classes_), **kwargs)
        elif isinstance(self.module, nn.Module) and not kwargs:
            module = copy.deepcopy(self.module)
        else:
            module = self.initialized_instance(self.module, kwargs)
        self.module_ = module.to(getattr(self, "_float_dtype", torch.float32))
        return self

    # -- training ---------------------------------------------------------------

    def _check_training_data(self, X, y, sample_weight, known, *, reset):
        """Check everything that `fit` was given, before anything is changed."""
        name = type(self).__name__
        _checks.check_parameters(
            self.get_params(deep=False),
            name,
            augmentations=_AUGMENTATIONS,
            schedules=SCHEDULES,
        )
        self._validate_params()
        _checks.check_device(self.device)
        given = X
        if is_dataset(X):
            _checks.check_dataset(X)
            y = _checks.check_y(_checks.dataset_labels(X) if y is None else y, name)
        else:
            X = _checks.check_X(X, image_shape=self.image_shape)
            y = _checks.check_y(y, name)
            if not reset:
                self._check_like_training(given, X)
            if self.augmentation in _AUGMENTATIONS and X.ndim != 4:
                raise ValueError(
                    f"augmentation={self.augmentation!r} needs images, X has shape "
                    f"{tuple(X.shape)}; pass 4-D X or image_shape."
                )
        check_consistent_length(X, y)
        classes = _checks.find_classes(y) if known is None else known
        codes = _checks.encode(y, classes)
        weight = _checks.check_weight(sample_weight, self.class_weight, X, y)
        return _TrainingData(given, X, y, classes, codes, weight)

    def _start(self, data: _TrainingData) -> None:
        """Take note of the data and build everything anew."""
        for attribute in ("n_features_in_", "feature_names_in_", "posterior_"):
            vars(self).pop(attribute, None)
        self.classes_inferred_ = data.classes
        self._input_is_uint8 = False
        if is_dataset(data.X):
            self._input_shape = tuple(np.shape(data.X[0][0]))
        else:
            self._input_shape = tuple(data.X.shape[1:])
            validate_data(self, data.given, skip_check_array=True, reset=True)
            self.n_features_in_ = math.prod(self._input_shape)
            self._input_is_uint8 = data.X.dtype in (np.uint8, torch.uint8)
        n = len(data.y) if data.weight is None else np.count_nonzero(data.weight)
        one_batch = self.batch_size == -1 or n <= self.batch_size
        exact = (
            self.module is None
            and self.precision == "auto"
            and len(self._input_shape) == 1
            and one_batch
            and _checks.check_device(self.device).type == "cpu"
        )
        self._float_dtype = torch.float64 if exact else torch.float32
        self.initialize()

    def _train(self, data: _TrainingData, caller: str, split_params, *, fresh: bool):
        if fresh:
            self.device_ = _checks.check_device(self.device)
        with self._own_generators(fresh=fresh):
            if fresh:
                self._start(data)
            self._continue_posterior(data)
            rows, valid, datasets = self._split(data, caller, split_params)
            if data.weight is not None:
                rows = rows[data.weight[rows] > 0]
            if not is_dataset(data.X):
                data = data._replace(X=self._resident(data.X))
            if fresh and self._input_is_uint8:
                self.image_mean_, self.image_std_ = channel_statistics(
                    data.X, rows, data.weight
                )
            batches = self._make_batches(data, rows, training=True)
            valid_batches = None
            if isinstance(valid, _TrainingData):
                valid_rows = np.arange(len(valid.y))
                valid_batches = self._make_batches(valid, valid_rows, training=False)
            elif valid is not None:
                valid_batches = self._make_batches(data, valid, training=False)
            whole = {"X": datasets.pop("X"), "y": data.y}
            self.notify("on_train_begin", **whole)
            try:
                self._run_epochs(self.max_epochs, batches, valid_batches, datasets)
            except KeyboardInterrupt:
                # Ctrl-C, or a callback such as EarlyStopping.
                pass
            finally:
                self.n_iter_ = len(self.history_)
            self.notify("on_train_end", **whole)
        return self

    def _continue_posterior(self, data: _TrainingData) -> None:
        """Keep the posterior where the samples are the last call's."""
        fingerprint = _checks.fingerprint(data.X, data.codes)
        if hasattr(self, "posterior_") and fingerprint == self._fingerprint:
            return
        self._fingerprint = fingerprint
        self.posterior_ = DirichletPosterior(
            torch.from_numpy(data.codes),
            len(self.classes_),
            prior_strength=self.prior_strength,
            discount=self.discount,
            prior_floor=self.prior_floor,
            dtype=self._float_dtype,
            device=self.device_,
        )

    def _split(self, data: _TrainingData, caller: str, split_params: dict):
        """Split off validation data with `train_split`.

        Returns
        -------
        rows : ndarray of int
            To train on.
        valid : ndarray of int, _TrainingData or None
            Rows to validate on, or other data.
        datasets : dict
            X and both parts as callbacks know them.
        """
        whole = data.X if is_dataset(data.X) else SkorchDataset(data.X, data.y)
        rows = np.arange(len(data.y))
        if self.train_split is None:
            if split_params:
                raise TypeError(
                    f"{caller} got unexpected arguments {sorted(split_params)}: they "
                    "are passed to train_split, which is None."
                )
            return rows, None, dict(X=data.X, dataset_train=whole, dataset_valid=None)
        if split_params:
            split_params = self._route_split_params(caller, split_params)
        train, valid = self.train_split(whole, data.y, **split_params)
        datasets = dict(X=data.X, dataset_train=train, dataset_valid=valid)
        if isinstance(train, Subset) and train.dataset is whole:
            rows = np.asarray(train.indices)
        elif train is not whole:
            raise ValueError(
                f"train_split returned a {type(train).__name__} to train on; expected "
                "the Dataset that it was given or a Subset of it, so that each sample "
                "keeps its row."
            )
        if isinstance(valid, Subset) and valid.dataset is whole:
            return rows, np.asarray(valid.indices), datasets
        if valid is None:
            return rows, None, datasets
        y = _checks.dataset_labels(valid)
        codes = _checks.encode(y, self.classes_)
        return rows, data._replace(X=valid, y=y, codes=codes, weight=None), datasets

    def _route_split_params(self, caller: str, split_params: dict) -> dict:
        if not _routing_enabled():
            return split_params
        return process_routing(self, caller, **split_params)["splitter"]["split"]

    def _resident(self, X) -> Tensor:
        """Return X as a tensor on the device, or on the CPU where it does not fit."""
        X = torch.as_tensor(X)
        if X.dtype != torch.uint8:
            X = self._as_float(X)
        if self.device_.type == "cuda" and not X.is_cuda:
            free, _ = torch.cuda.mem_get_info(self.device_)
            if X.nbytes > free / 2:
                return X
        return X.to(self.device_)

    def _as_float(self, X: Tensor) -> Tensor:
        narrow = X.to(self._float_dtype)
        if narrow.dtype != X.dtype and not narrow.isfinite().all():
            raise ValueError(
                f"X holds values as large as {X.abs().max().item():g}, too large for "
                f"{self._float_dtype}; scale the features, for example with "
                "StandardScaler."
            )
        return narrow

    def _make_batches(self, data: _TrainingData, rows: np.ndarray, *, training: bool):
        """Gather arrays on the device; load a Dataset, or as the user has set."""
        side = "iterator_train" if training else "iterator_valid"
        iterator, kwargs = getattr(self, side), self.get_params_for(side)
        batch_size = kwargs.pop("batch_size", self.batch_size)
        if batch_size == -1:
            batch_size = len(rows)
        weight = None
        if data.weight is not None:
            weight = torch.as_tensor(
                data.weight, dtype=self._float_dtype, device=self.device_
            )
        if not is_dataset(data.X) and iterator is DataLoader and not kwargs:
            return ResidentBatches(
                data.X,
                torch.as_tensor(data.codes, device=self.device_),
                weight,
                torch.as_tensor(rows, device=self.device_),
                batch_size,
                shuffle=training,
            )
        items = data.X if is_dataset(data.X) else TensorDataset(data.X, data.X)
        dataset = IndexedDataset(items, data.codes, rows)
        kwargs["collate_fn"] = IndexedCollate(kwargs.get("collate_fn", default_collate))
        if not {"batch_sampler", "sampler", "shuffle"} & kwargs.keys():
            kwargs["shuffle"] = training
        if "batch_sampler" not in kwargs:
            kwargs["batch_size"] = batch_size
        return LoaderBatches(iterator(dataset, **kwargs), weight, self.device_)

    def _prepare(self, x, *, training: bool):
        """Augment a batch, and make floats of it."""
        if not isinstance(x, Tensor):
            return x
        if self.image_shape is not None and x.ndim == 2:
            x = x.reshape(len(x), *self.image_shape)
        if training and self.augmentation is not None:
            x = _AUGMENTATIONS.get(self.augmentation, self.augmentation)(x)
        if x.dtype != torch.uint8:
            return x.to(self._float_dtype) if x.is_floating_point() else x
        if not self._input_is_uint8:  # from a Dataset
            return x.to(self._float_dtype) / 255
        shape = (1, -1, 1, 1)
        mean, std = (
            torch.as_tensor(s, dtype=self._float_dtype, device=x.device).view(shape)
            for s in (self.image_mean_, self.image_std_)
        )
        return (x.to(self._float_dtype) - mean) / std

    def _check_output(self, logits) -> None:
        """Look at a network's first output."""
        network = type(self.module_).__name__
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the module {network} returned {type(logits).__name__}; expected a "
                "Tensor of logits, a tuple that starts with it, or an object with "
                "`logits`."
            )
        if logits.ndim != 2 or logits.shape[1] != len(self.classes_):
            raise ValueError(
                f"the module {network} returned shape {tuple(logits.shape)}, but y has "
                f"{len(self.classes_)} classes: expected (n_samples, "
                f"{len(self.classes_)}), a logit per class. Set the width of its last "
                "layer."
            )
        values = logits.detach().float()
        if ((values >= 0) & (values <= 1)).all() and torch.allclose(
            values.sum(dim=1), torch.ones(()).to(values), atol=1e-3
        ):
            warnings.warn(
                f"the module {network} seems to return probabilities; expected logits. "
                "Leave out its last softmax, or training will be slow and the "
                "predicted probabilities wrong.",
                UserWarning,
                stacklevel=2,
            )

    # -- prediction -------------------------------------------------------------

    def _all_logits(self, X) -> Tensor:
        # forward_iter is looked up on the instance: skorch's scoring callbacks put
        # cached predictions in its place.
        logits = torch.cat(list(self.forward_iter(X, training=False, device="cpu")))
        # A bfloat16 has too few digits for probabilities that sum to one.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _prediction_batches(self, X):
        kwargs = self.get_params_for("iterator_valid")
        batch_size = kwargs.pop("batch_size", self.batch_size)
        if is_dataset(X):
            size = len(X) if batch_size == -1 else batch_size
            for item in self.iterator_valid(X, batch_size=size, **kwargs):
                x = item[0] if isinstance(item, tuple | list) else item
                yield to_device(x, self.device_)
            return
        given, X = X, _checks.check_X(X, image_shape=self.image_shape)
        if hasattr(self, "n_features_in_"):
            self._check_like_training(given, X)
        X = torch.as_tensor(X)
        for x in X.split(max(batch_size, 256 if X.ndim == 4 else 8192)):
            yield (x if x.dtype == torch.uint8 else self._as_float(x)).to(self.device_)

    def _check_like_training(self, given, X) -> None:
        """Raise where X is not of the kind that the network was trained on."""
        if is_dataset(X) or not hasattr(self, "n_features_in_"):
            return
        shape = tuple(X.shape[1:])
        if len(shape) != len(self._input_shape):
            raise ValueError(
                f"X has samples of shape {shape}, but {type(self).__name__} was fitted "
                f"on samples of shape {self._input_shape}. Reshape your data."
            )
        if len(shape) == 1 or self.image_shape is not None:
            validate_data(self, given, skip_check_array=True, reset=False)
            return
        is_uint8 = X.dtype in (np.uint8, torch.uint8)
        if shape[0] != self._input_shape[0]:
            raise ValueError(
                f"X has images of {shape[0]} channels, but {type(self).__name__} was "
                f"fitted on {self._input_shape[0]}; expected shape (n_samples, "
                f"{', '.join(map(str, self._input_shape))})."
            )
        if is_uint8 != self._input_is_uint8:
            kinds = ("float", "uint8")
            raise ValueError(
                f"X holds {kinds[is_uint8]} images, but {type(self).__name__} was "
                f"fitted on {kinds[self._input_is_uint8]} images, whose scale is "
                "another. Pass images of the same type."
            )
