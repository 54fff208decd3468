"""From what a user passes to the batches that the network sees."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_consistent_length
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.validation import validate_data
from skorch.utils import is_dataset
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
)

from . import _checks
from ._batches import (
    IndexedCollate,
    IndexedDataset,
    IndexedTensor,
    LoaderBatches,
    ResidentBatches,
    WholeBatches,
    move,
)
from ._net import Net
from ._schedules import SCHEDULES
from .augmentation import AUGMENTATIONS


class TrainingData(NamedTuple):
    """What `fit` was given, checked."""

    given: Any  # X as it came, for its feature names
    X: Any  # ndarray, Tensor or Dataset
    y: np.ndarray
    classes: np.ndarray
    codes: np.ndarray
    weight: np.ndarray | None
    sample_weight: Any  # as it came


class InputHandling(Net):
    """Checks, splits and batches, for :class:`skbsd.BSDClassifier`."""

    _input_shape: tuple[int, ...]
    _input_is_uint8 = False
    _float_dtype = torch.float32
    _fingerprint: tuple
    _scaling: tuple[Tensor, Tensor] | None = None

    def _check_training_data(self, X, y, sample_weight, known, *, reset):
        """Check everything that `fit` was given, before anything is changed."""
        name = type(self).__name__
        _checks.check_parameters(
            self.get_params(deep=False),
            name,
            augmentations=AUGMENTATIONS,
            schedules=SCHEDULES,
        )
        self._validate_params()
        _checks.check_monitors(self, reset=reset)
        _checks.check_order(self)
        _checks.check_device(self.device)
        given = X
        if is_dataset(X):
            _checks.check_dataset(X)
            y = _checks.check_y(_checks.dataset_labels(X) if y is None else y, name)
        else:
            X = _checks.check_X(X, caller=name, image_shape=self.image_shape)
            y = _checks.check_y(y, name)
            if not reset:
                self._check_like_training(given, X)
            if isinstance(self.augmentation, str) and X.ndim != 4:
                raise ValueError(
                    f"augmentation={self.augmentation!r} needs images, X has shape "
                    f"{tuple(X.shape)}; pass 4-D X or image_shape."
                )
        check_consistent_length(X, y)
        classes = _checks.find_classes(y) if known is None else known
        codes = _checks.encode(y, classes)
        weight = _checks.check_weight(
            sample_weight,
            self.class_weight,
            X,
            y,
            classes,
            several_classes=known is None,
        )
        return TrainingData(given, X, y, classes, codes, weight, sample_weight)

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
        if len(shape) == 1 or hasattr(given, "columns"):
            self._note_features(given, X, reset=False)
        if len(shape) == 1:
            return
        if shape[0] != self._input_shape[0]:
            raise ValueError(
                f"X has images of {shape[0]} channels, but {type(self).__name__} was "
                f"fitted on {self._input_shape[0]}; expected shape (n_samples, "
                f"{', '.join(map(str, self._input_shape))})."
            )
        self._check_image_type(X.dtype in (np.uint8, torch.uint8))

    def _note_features(self, given, X, *, reset: bool) -> None:
        """Take note of number and names of the features, or compare with them."""
        # What has no names is looked at as checked: it may be flat rows, or images.
        named = given if hasattr(given, "columns") else X.reshape(len(X), -1)
        validate_data(self, named, skip_check_array=True, reset=reset)

    def _check_image_type(self, is_uint8: bool) -> None:
        if is_uint8 != self._input_is_uint8:
            kinds = ("float", "uint8")
            raise ValueError(
                f"X holds {kinds[is_uint8]} images, but {type(self).__name__} was "
                f"fitted on {kinds[self._input_is_uint8]} images, whose scale is "
                "another. Pass images of the same type."
            )

    def _split(self, data: TrainingData, caller: str, split_params: dict):
        """Split off validation data with `train_split`.

        Returns
        -------
        rows : ndarray of int
            To train on.
        valid : ndarray of int, TrainingData or None
            Rows to validate on, or other data.
        datasets : dict
            X and both parts as callbacks know them.
        """
        whole = self.get_dataset(data.X, data.y)  # itself, where X is a Dataset
        datasets = {"X": data.X, "dataset_train": whole, "dataset_valid": None}
        rows = np.arange(len(data.y))
        if self.train_split is None:
            if split_params:
                raise TypeError(
                    f"{caller} got unexpected arguments {sorted(split_params)}: they "
                    "are passed to train_split, which is None."
                )
            return self._weighted(rows, data), None, datasets
        if split_params:
            split_params = self._route_split_params(caller, split_params)
        train, valid = self.train_split(whole, data.y, **split_params)
        datasets |= {"dataset_train": train, "dataset_valid": valid}
        if isinstance(train, Subset) and train.dataset is whole:
            rows = np.asarray(train.indices)
        elif train is not whole:
            raise ValueError(
                f"train_split returned a {type(train).__name__} to train on; expected "
                "the Dataset that it was given or a Subset of it, so that each sample "
                "keeps its row."
            )
        rows = self._weighted(rows, data)
        if isinstance(valid, Subset) and valid.dataset is whole:
            return rows, self._weighted(np.asarray(valid.indices), data), datasets
        if valid is None:
            return rows, None, datasets
        y = _checks.dataset_labels(valid)
        codes = _checks.encode(y, data.classes)
        return rows, data._replace(X=valid, y=y, codes=codes, weight=None), datasets

    @staticmethod
    def _weighted(rows: np.ndarray, data: TrainingData) -> np.ndarray:
        """Leave out the rows of weight zero."""
        return rows if data.weight is None else rows[data.weight[rows] > 0]

    def _route_split_params(self, caller: str, split_params: dict) -> dict:
        # skorch routes from 1.4 on.
        routes = isinstance(self.get_metadata_routing(), MetadataRouter)
        if not (_routing_enabled() and routes):
            return split_params
        return process_routing(self, caller, **split_params)["splitter"]["split"]

    def _sample_shape(self, X) -> tuple[int, ...]:
        """Return the shape of a sample as the network sees it."""
        if self.image_shape is not None:
            return tuple(self.image_shape)
        if is_dataset(X):
            return tuple(getattr(X[0][0], "shape", ()))
        return tuple(X.shape[1:])

    def _resident(self, data: TrainingData, device, dtype) -> TrainingData:
        """Put arrays on the device, or leave them on the CPU where they do not fit."""
        if is_dataset(data.X):
            return data
        X = data.X
        if not isinstance(X, Tensor):
            # torch warns of arrays that are read-only, such as a DataFrame's.
            X = torch.from_numpy(X if X.flags.writeable else X.copy())
        if X.dtype != torch.uint8:
            X = _narrow(X, dtype)
        if self._loads("iterator_train") or self._loads("iterator_valid"):
            return data._replace(X=X.cpu())  # for the loader's processes
        if device.type == "cuda" and not X.is_cuda:
            free, _ = torch.cuda.mem_get_info(device)
            if X.nbytes > free / 2:
                return data._replace(X=X)
        return data._replace(X=X.to(device))

    def _loads(self, side: str) -> bool:
        """Whether arrays too go through a loader: where the user has set one."""
        options = self.get_params_for(side).keys() - {"batch_size"}
        return bool(options) or getattr(self, side) is not DataLoader

    def _make_batches(self, data: TrainingData, rows: np.ndarray, *, training: bool):
        """Gather arrays on the device; load a Dataset, or as the user has set."""
        side = "iterator_train" if training else "iterator_valid"
        iterator, kwargs = getattr(self, side), self.get_params_for(side)
        batch_size = kwargs.pop("batch_size", self.batch_size)
        if len(rows) == 0:
            raise ValueError(
                f"no samples are left to {'train' if training else 'validate'} on, of "
                f"{len(data.y)}; look at train_split and sample_weight."
            )
        if batch_size == -1:
            batch_size = len(rows)
        weight = None
        if data.weight is not None and training:
            weight = torch.as_tensor(
                data.weight / data.weight[rows].mean(),
                dtype=self._float_dtype,
                device=self.device_,
            )
        own = isinstance(data.X, Tensor) and not self._loads(side)
        if own and data.X.device.type == self.device_.type:
            return ResidentBatches(
                data.X,
                torch.as_tensor(data.codes, device=self.device_),
                weight,
                torch.as_tensor(rows, device=self.device_),
                batch_size,
                shuffle=training,
            )
        dataset: Dataset
        if own:
            dataset = IndexedTensor(data.X, data.codes, rows)
            kwargs["collate_fn"] = _as_fetched
        else:
            items = data.X if is_dataset(data.X) else TensorDataset(data.X)
            dataset = IndexedDataset(items, data.codes, rows)
            kwargs["collate_fn"] = IndexedCollate(
                kwargs.get("collate_fn", default_collate)
            )
        if iterator is DataLoader:
            kwargs.setdefault("pin_memory", self.device_.type == "cuda")
        own_order = iterator is DataLoader and not kwargs.keys() & {
            "batch_sampler",
            "drop_last",
            "sampler",
            "shuffle",
        }
        if own_order:
            kwargs["batch_sampler"] = WholeBatches(
                len(dataset), batch_size, shuffle=training
            )
        elif "batch_sampler" not in kwargs:
            kwargs["batch_size"] = batch_size
            if "sampler" not in kwargs:
                kwargs.setdefault("shuffle", training)
        loader = iterator(dataset, **kwargs)
        if len(loader) == 0:
            raise ValueError(
                f"{side} yields no batch of {len(rows)} samples with "
                f"batch_size={batch_size}; drop_last leaves an incomplete one out."
            )
        # Other samplers may draw with replacement.
        return LoaderBatches(loader, weight, self.device_, unique=own_order)

    def _prediction_batches(self, X):
        _checks.check_order(self)
        kwargs = self.get_params_for("iterator_valid")
        batch_size = kwargs.pop("batch_size", self.batch_size)
        if is_dataset(X):
            size = len(X) if batch_size == -1 else batch_size
            for item in self.iterator_valid(X, batch_size=size, **kwargs):
                x = item[0] if isinstance(item, tuple | list) else item
                yield move(x, self.device_)
            return
        given, caller = X, type(self).__name__
        X = _checks.check_X(X, caller=caller, image_shape=self.image_shape)
        if hasattr(self, "n_features_in_"):
            self._check_like_training(given, X)
        on_gpu = self.device_.type == "cuda"
        if X.ndim == 4:
            fit = (2**20 if on_gpu else 2**18) // math.prod(X.shape[2:])
        else:
            fit = 2**16 if on_gpu else 2**13
        size = max(batch_size, fit)
        for start in range(0, len(X), size):
            # A copy: a network may work in place, and X is the user's.
            x = X[start : start + size]
            x = x.clone() if isinstance(x, Tensor) else torch.tensor(x)
            if x.dtype != torch.uint8:
                x = _narrow(x, self._float_dtype)
            yield move(x.pin_memory() if on_gpu and x.is_cpu else x, self.device_)

    def _prepare(self, x, augmentation=None):
        """Augment a batch, and make floats of it."""
        if not isinstance(x, Tensor):
            return x
        if self.image_shape is not None and x.ndim == 2:
            x = x.reshape(len(x), *self.image_shape)
        if augmentation is not None:
            x = self._augment(x, augmentation)
        if x.ndim == 4 and hasattr(self, "n_features_in_"):  # of a Dataset too
            self._check_image_type(x.dtype == torch.uint8)
        if x.dtype == self._float_dtype:
            return x
        if x.dtype != torch.uint8:
            return x.to(self._float_dtype) if x.is_floating_point() else x
        if not self._has_classes():
            raise ValueError(
                "uint8 images are standardised with statistics of the training images, "
                "which are not among saved weights. Save whole estimators with pickle "
                "or joblib, or train on float images."
            )
        x = x.to(self._float_dtype)
        if not self._input_is_uint8:  # a Dataset's images, whose statistics nobody took
            return x / 255
        if self._scaling is None:  # once: a copy to the device in each batch would wait
            mean, std = (
                torch.as_tensor(s, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
                for s in (self.image_mean_, self.image_std_)
            )
            self._scaling = (mean, std)
        mean, std = self._scaling
        return (x - mean) / std

    def _augment(self, x: Tensor, augmentation) -> Tensor:
        augment = augmentation
        if isinstance(augment, str):  # others need not be hashable
            augment = AUGMENTATIONS[augment]
        out = augment(x)
        kind, shape = getattr(out, "dtype", type(out)), getattr(out, "shape", None)
        if kind != x.dtype or shape != x.shape:
            raise ValueError(
                f"augmentation={augmentation!r} turned a batch of {x.dtype} and "
                f"shape {tuple(x.shape)} into {kind} and shape {shape}; expected the "
                "same type and shape."
            )
        return out

    def _check_output(self, logits) -> None:
        """Raise where a network's output is not what it has to be."""
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

    def _check_values(self, logits: Tensor) -> None:
        """Warn of a network whose output looks like probabilities."""
        values = logits.float()
        if ((values >= 0) & (values <= 1)).all() and torch.allclose(
            values.sum(dim=1), torch.ones(()).to(values), atol=1e-3
        ):
            warnings.warn(
                f"the module {type(self.module_).__name__} seems to return "
                "probabilities; expected logits. Leave out its last softmax, or "
                "training will be slow and the predicted probabilities wrong.",
                UserWarning,
                stacklevel=2,
            )


def _as_fetched(batch):
    return batch


def _narrow(X: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to `dtype`, and raise where that makes a number infinite."""
    narrow = X.to(dtype)
    if dtype != X.dtype and not narrow.isfinite().all():
        raise ValueError(
            f"X holds values as large as {X.abs().max().item():g}, too large for "
            f"{dtype}; scale the features, for example with StandardScaler."
        )
    return narrow
