"""Properties of the inputs of a fit, and the preparation of batches."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from skorch.utils import is_dataset
from torch import Tensor

from ._batches import channel_statistics
from ._check_inputs import holds_integers, is_bytes_of_images
from ._items import inputs_of
from ._loading import TrainingData
from ._structure import is_nested, map_leaves
from .augmentation import AUGMENTATIONS


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Properties of the inputs that a network was fitted on.

    Calling it augments a batch, converts it to floats, standardises uint8 images and
    sets the memory format of images. The default is for a network without data.

    Parameters
    ----------
    shape : tuple of int, optional
        Shape of a sample, as the network receives it; () for several inputs.
    dtype : {"float32", "float64"}
        Type that inputs are converted to.
    is_uint8 : bool
        Whether the images were given as uint8, and are standardised.
    is_dataset : bool
        Whether the inputs come from a Dataset, so that little is known in advance.
    mean, std : ndarray of shape (channels,), optional
        Statistics of uint8 images.
    channels_last : bool
        Whether images are stored in the channels-last memory format.
    device : str
        Device of the batches.
    keeps_integers : bool, optional
        Whether the network receives integers unchanged; None if this is unknown.
    integers : str, optional
        Type of these integers: "int32", "int64" or, for one of several inputs, "bool".
    n_inputs : int, optional
        Number of entries of a Dataset's items that are inputs, if items are tuples.
    several : dict or list of Preparation, optional
        The properties of each input, if there are several. The network receives the
        entries of a dict as keyword arguments, and a list as one argument.
    """

    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    is_uint8: bool = False
    is_dataset: bool = True
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    channels_last: bool = False
    device: str = "cpu"
    keeps_integers: bool | None = None
    integers: str | None = None
    n_inputs: int | None = None
    several: "dict[str, Preparation] | list[Preparation] | None" = None
    _scaling: tuple[Tensor, Tensor] | None = dataclasses.field(
        init=False, repr=False, compare=False, default=None
    )

    def __post_init__(self):
        if self.mean is not None:
            # Done once, as a copy to the device in each batch would synchronise. The
            # arrays are copied, as they may belong to a memory-mapped file.
            scaling = tuple(
                torch.tensor(
                    np.asarray(s), dtype=self.float_dtype, device=self.device
                ).view(1, -1, 1, 1)
                for s in (self.mean, self.std)
            )
            object.__setattr__(self, "_scaling", scaling)

    @classmethod
    def of(
        cls,
        data: TrainingData,
        rows: np.ndarray,
        image_shape: Any,
        dtype: str,
        device: torch.device,
    ) -> "Preparation":
        """Create an instance from training data.

        Parameters
        ----------
        data : TrainingData
            Data on the device.
        rows : ndarray of int
            Rows to train on. Statistics of uint8 images are computed from them.
        image_shape : tuple of int or None
        dtype : {"float32", "float64"}
        device : torch.device
        """
        where = str(device)
        if is_dataset(data.X):
            shape = sample_shape(data.X, image_shape)
            return cls(
                shape,
                dtype,
                device=where,
                keeps_integers=data.keeps_integers,
                n_inputs=data.n_inputs,
            )

        def of_part(X: Any) -> Preparation:
            seen = cls((), dtype, is_dataset=False, device=where)
            if isinstance(X, Mapping):
                return seen.changed(several={k: of_part(part) for k, part in X.items()})
            if isinstance(X, list):
                return seen.changed(several=[of_part(part) for part in X])
            seen = seen.changed(shape=sample_shape(X, image_shape))
            if is_bytes_of_images(X):
                mean, std = channel_statistics(X, rows, data.weight)
                seen = seen.changed(is_uint8=True, mean=mean, std=std)
            elif holds_integers(X):
                name = str(X.dtype).removeprefix("torch.")
                return seen.changed(keeps_integers=True, integers=name)
            return seen.changed(keeps_integers=False)

        return of_part(data.X)

    @property
    def float_dtype(self) -> torch.dtype:
        """The floating type of the network's inputs and parameters."""
        return getattr(torch, self.dtype)

    def changed(self, **fields: Any) -> "Preparation":
        """Return a copy with other values of these fields."""
        several = fields.get("several", self.several)
        if several is not None and "device" in fields:
            device = fields["device"]
            fields["several"] = map_leaves(
                lambda part: part.changed(device=device), several
            )
        return dataclasses.replace(self, **fields)

    def parts(self) -> "dict[Any, Preparation]":
        """Return the properties of each of several inputs, by name or number."""
        several = self.several or {}
        return dict(
            several.items() if isinstance(several, dict) else enumerate(several)
        )

    def check_like(self, X: Any, caller: str, name: str = "X") -> None:
        """Raise if X differs in kind from the data that the network was fitted on.

        Parameters
        ----------
        X : array or sparse matrix, or dict or list of these
            Checked inputs.
        caller : str
            Name of the estimator, for messages.
        name : str
            Name of X in messages.
        """
        if self.is_dataset or self.shape is None:
            return  # nothing to compare with
        if self.several is not None:
            self._check_like_several(X, caller, name)
            return
        if is_nested(X):
            raise ValueError(
                f"{name} is a {type(X).__name__} of several inputs, but {caller} was "
                f"fitted on one array of samples of shape {self.shape}."
            )
        self._check_numbers(X, caller, name)
        shape = tuple(X.shape[1:])
        if sparse.issparse(X) and shape == (math.prod(self.shape),):
            shape = self.shape  # dense batches of flattened images are reshaped
        if len(shape) != len(self.shape):
            raise ValueError(
                f"{name} has samples of shape {shape}, but {caller} was fitted on "
                f"samples of shape {self.shape}. Reshape your data."
            )
        if len(shape) != 3:
            return
        if shape[0] != self.shape[0]:
            raise ValueError(
                f"{name} has images with {shape[0]} channels, but {caller} was fitted "
                f"on images with {self.shape[0]}; expected shape (n_samples, "
                f"{', '.join(map(str, self.shape))})."
            )
        self._check_image_type(X.dtype in (np.uint8, torch.uint8), caller)

    def _check_like_several(self, X: Any, caller: str, name: str) -> None:
        parts = self.parts()
        is_dict = isinstance(self.several, dict)
        expected = f"a {'dict' if is_dict else 'list'} with the inputs {list(parts)}"
        if not is_nested(X) or isinstance(X, Mapping) != is_dict:
            raise ValueError(
                f"{name} is a {type(X).__name__}, but {caller} was fitted on "
                f"{expected}."
            )
        given = dict(X.items() if is_dict else enumerate(X))
        if given.keys() != parts.keys():
            raise ValueError(
                f"{name} has the inputs {list(given)}, but {caller} was fitted on "
                f"{expected}."
            )
        for key, part in parts.items():
            part.check_like(given[key], caller, f"{name}[{key!r}]")

    def _check_numbers(self, X: Any, caller: str, name: str) -> None:
        """Raise for floats if the network was fitted on integers."""
        if self.integers is not None and not holds_integers(X):
            raise ValueError(
                f"{name} has type {X.dtype}, but {caller} was fitted on "
                f"{self.integers}, and its network requires integers; pass integers, "
                f"for example with {name}.astype('{self.integers}')."
            )

    def __call__(
        self,
        x: Any,
        *,
        caller: str,
        augmentation: Any = None,
        image_shape: Any = None,
    ) -> Any:
        """Augment a batch, and convert it to the inputs of the network.

        Parameters
        ----------
        x : Tensor, a dict or list of Tensors, or another object from a loader
            Objects that contain no Tensor are returned unchanged.
        caller : str
            Name of the estimator, for messages.
        augmentation : str or callable, optional
        image_shape : tuple of int, optional
            Shape of an image, if the rows are flattened images.
        """
        if not isinstance(x, Tensor):
            if augmentation is not None:
                x = augment(x, augmentation)
            return self._prepared_parts(x, caller)
        if image_shape is not None and x.ndim == 2:
            # Not len(x), which becomes a constant when the network is exported.
            x = x.reshape(-1, *image_shape)
        if augmentation is not None:
            x = augment(x, augmentation)
        return self._prepared(x, caller)

    def _prepared(self, x: Tensor, caller: str) -> Tensor:
        if x.ndim == 4 and not self.is_dataset:  # a Dataset may return either type
            self._check_image_type(x.dtype == torch.uint8, caller)
        if x.is_floating_point():
            if x.dtype != self.float_dtype:
                x = x.to(self.float_dtype)
        elif x.dtype == torch.uint8 and (x.ndim == 4 or not self.keeps_integers):
            x = self._standardised(x)
        elif self.keeps_integers:
            x = self._as_integers(x)
        elif self.keeps_integers is False:
            x = x.to(self.float_dtype)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _as_integers(self, x: Tensor) -> Tensor:
        """Return integers of the fitted type, or of a type that can be an index."""
        if self.integers is not None:
            return x.to(getattr(torch, self.integers))
        return x if x.dtype in (torch.int32, torch.int64) else x.long()

    def _prepared_parts(self, x: Any, caller: str) -> Any:
        """Prepare each of several inputs."""
        if isinstance(x, Tensor):
            # Integers among several inputs of a Dataset are not converted.
            is_left = self.is_dataset and not x.is_floating_point() and x.ndim != 4
            return x if is_left else self._prepared(x, caller)
        if not is_nested(x):
            return x
        parts = self.parts()
        if isinstance(x, Mapping):
            kind: Any = type(x) if self.is_dataset else dict  # e.g. BatchEncoding
            return kind(
                {k: parts.get(k, self)._prepared_parts(v, caller) for k, v in x.items()}
            )
        return [parts.get(i, self)._prepared_parts(v, caller) for i, v in enumerate(x)]

    def _standardised(self, x: Tensor) -> Tensor:
        if self.shape is None:
            raise ValueError(
                "uint8 images are standardised with statistics of the training images, "
                "which saved weights do not include. Save whole estimators with `save` "
                "or joblib, or train on float images."
            )
        x = x.to(self.float_dtype)
        if self._scaling is None:  # statistics of a Dataset are not computed
            return x / 255
        mean, std = self._scaling
        return (x - mean) / std

    def _check_image_type(self, is_uint8: bool, caller: str) -> None:
        if is_uint8 != self.is_uint8:
            types = ("float", "uint8")
            raise ValueError(
                f"X contains {types[is_uint8]} images, but {caller} was fitted on "
                f"{types[self.is_uint8]} images, which have another scale. Pass images "
                "of the same type."
            )

    def __getstate__(self):
        # The scaling is computed again, on the device of the new machine.
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "_scaling": None
        }

    def __setstate__(self, state):
        for name, value in state.items():
            object.__setattr__(self, name, value)


def sample_shape(X: Any, image_shape: Any) -> tuple[int, ...]:
    """Return the shape of a sample as the network receives it."""
    if image_shape is not None:
        return tuple(image_shape)
    if is_dataset(X):
        return tuple(getattr(inputs_of(X[0]), "shape", ()))
    return () if is_nested(X) else tuple(X.shape[1:])


def is_image(X: Any, image_shape: Any) -> bool:
    """Whether the samples are images."""
    return len(sample_shape(X, image_shape)) == 3


def choose_dtype(
    shape: tuple[int, ...],
    n_samples: int,
    batch_size: int,
    device: torch.device,
    *,
    chosen: bool,
) -> str:
    """Return "float64" if it costs little and makes `fit` exact, else "float32".

    "float64" is used for a table in a single batch on the CPU, if network and precision
    are `chosen` automatically.
    """
    one_batch = batch_size == -1 or n_samples <= batch_size
    is_exact = chosen and one_batch and len(shape) == 1 and device.type == "cpu"
    return "float64" if is_exact else "float32"


def augment(x: Any, augmentation: Any, arguments: tuple = ()) -> Any:
    """Apply an augmentation, by name or callable, and check what it returns.

    Parameters
    ----------
    x : Tensor, or dict or list of Tensors
    augmentation : str or callable
        A callable receives several inputs as the dict or list.
    arguments : tuple
        Further arguments of the callable.
    """
    function = augmentation
    if isinstance(function, str):  # other augmentations need not be hashable
        if not isinstance(x, Tensor):
            raise ValueError(
                f"augmentation={augmentation!r} requires a single array of images, but "
                f"X is a {type(x).__name__}; pass a function that receives and returns "
                "one."
            )
        function = AUGMENTATIONS[function]
    out = function(x, *arguments)
    if isinstance(x, Tensor):
        expected: Any = _form(x)
        if (getattr(out, "dtype", None), getattr(out, "shape", None)) == (
            x.dtype,
            x.shape,
        ):
            return out
    else:
        expected = map_leaves(_form, x)
        if map_leaves(_form, out) == expected:
            return out
    raise ValueError(
        f"augmentation={augmentation!r} turned a batch of {expected} into "
        f"{map_leaves(_form, out)}; expected the same type and shape."
    )


def _form(x: Any) -> str:
    """Describe type and shape of a batch."""
    kind = getattr(x, "dtype", type(x))
    shape = getattr(x, "shape", None)
    return f"{kind} and shape {None if shape is None else tuple(shape)}"
