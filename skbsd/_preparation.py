"""What a fit has found out about its inputs, and what it does to a batch of them."""

import dataclasses
from typing import Any

import numpy as np
import torch
from skorch.utils import is_dataset
from torch import Tensor

from ._batches import channel_statistics
from ._loading import TrainingData
from .augmentation import AUGMENTATIONS


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The facts of the inputs that a network was fitted on.

    It augments a batch, makes floats of it, standardises uint8 images and stores images
    as the network wants them. The default is that of a network that has seen no data.

    Parameters
    ----------
    shape : tuple of int, optional
        Of a sample, as the network sees it.
    dtype : {"float32", "float64"}
        What inputs are converted to.
    is_uint8 : bool
        Whether the images were given as uint8, and are standardised.
    is_dataset : bool
        Whether they came from a Dataset, of which little is known beforehand.
    mean, std : ndarray of shape (channels,), optional
        Statistics of uint8 images.
    channels_last : bool
        Whether images are stored pixel by pixel.
    device : str
        Where batches are.
    """

    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    is_uint8: bool = False
    is_dataset: bool = True
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    channels_last: bool = False
    device: str = "cpu"
    _scaling: tuple[Tensor, Tensor] | None = dataclasses.field(
        init=False, repr=False, compare=False, default=None
    )

    def __post_init__(self):
        if self.mean is not None:
            # Once: a copy to the device in each batch would wait for it. They are
            # copied, as they may be those of a file that is mapped to memory.
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
        """Take note of the data.

        Parameters
        ----------
        data : TrainingData
            On the device.
        rows : ndarray of int
            What is trained on, of which uint8 images have their statistics.
        image_shape : tuple of int or None
        dtype : {"float32", "float64"}
        device : torch.device
        """
        shape = sample_shape(data.X, image_shape)
        if is_dataset(data.X):
            return cls(shape, dtype, device=str(device))
        of_arrays = cls(shape, dtype, is_dataset=False, device=str(device))
        if data.X.dtype != torch.uint8:
            return of_arrays
        mean, std = channel_statistics(data.X, rows, data.weight)
        return of_arrays.changed(is_uint8=True, mean=mean, std=std)

    @property
    def float_dtype(self) -> torch.dtype:
        """The type of the network's inputs and parameters."""
        return getattr(torch, self.dtype)

    def changed(self, **fields: Any) -> "Preparation":
        """Return one with other facts."""
        return dataclasses.replace(self, **fields)

    def check_like(self, X: Any, caller: str) -> None:
        """Raise where X is not of the kind that the network was fitted on.

        Parameters
        ----------
        X : ndarray or Tensor
            A table or images, checked.
        caller : str
            Name of the estimator, for messages.
        """
        if self.is_dataset or self.shape is None:
            return  # little is known
        shape = tuple(X.shape[1:])
        if len(shape) != len(self.shape):
            raise ValueError(
                f"X has samples of shape {shape}, but {caller} was fitted on samples "
                f"of shape {self.shape}. Reshape your data."
            )
        if len(shape) == 1:
            return
        if shape[0] != self.shape[0]:
            raise ValueError(
                f"X has images of {shape[0]} channels, but {caller} was fitted on "
                f"{self.shape[0]}; expected shape (n_samples, "
                f"{', '.join(map(str, self.shape))})."
            )
        self._check_image_type(X.dtype in (np.uint8, torch.uint8), caller)

    def __call__(
        self,
        x: Any,
        *,
        caller: str,
        augmentation: Any = None,
        image_shape: Any = None,
    ) -> Any:
        """Augment a batch, and make of it what the network takes.

        Parameters
        ----------
        x : Tensor, or whatever a loader has given
            What is no Tensor is left as it is.
        caller : str
            Name of the estimator, for messages.
        augmentation : str or callable, optional
        image_shape : tuple of int, optional
            Of the images that rows are.
        """
        if not isinstance(x, Tensor):
            return x
        if image_shape is not None and x.ndim == 2:
            # Not len(x), which is a constant where the network is exported.
            x = x.reshape(-1, *image_shape)
        if augmentation is not None:
            x = augment(x, augmentation)
        if x.ndim == 4 and not self.is_dataset:  # those of a Dataset too
            self._check_image_type(x.dtype == torch.uint8, caller)
        if x.dtype == torch.uint8:
            x = self._standardised(x)
        elif x.is_floating_point() and x.dtype != self.float_dtype:
            x = x.to(self.float_dtype)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _standardised(self, x: Tensor) -> Tensor:
        if self.shape is None:
            raise ValueError(
                "uint8 images are standardised with statistics of the training images, "
                "which are not among saved weights. Save whole estimators with `save` "
                "or joblib, or train on float images."
            )
        x = x.to(self.float_dtype)
        if self._scaling is None:  # a Dataset's images, whose statistics nobody took
            return x / 255
        mean, std = self._scaling
        return (x - mean) / std

    def _check_image_type(self, is_uint8: bool, caller: str) -> None:
        if is_uint8 != self.is_uint8:
            types = ("float", "uint8")
            raise ValueError(
                f"X holds {types[is_uint8]} images, but {caller} was fitted on "
                f"{types[self.is_uint8]} images, whose scale is another. Pass images "
                "of the same type."
            )

    def __getstate__(self):
        # The scaling is made again, on the device that is there.
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "_scaling": None
        }

    def __setstate__(self, state):
        for name, value in state.items():
            object.__setattr__(self, name, value)


def sample_shape(X: Any, image_shape: Any) -> tuple[int, ...]:
    """Return the shape of a sample as the network sees it."""
    if image_shape is not None:
        return tuple(image_shape)
    if is_dataset(X):
        return tuple(getattr(X[0][0], "shape", ()))
    return tuple(X.shape[1:])


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
    """Return "float64" where it costs little and makes `fit` exact.

    That is for a table in one batch on the CPU, where network and precision were
    `chosen` here.
    """
    one_batch = batch_size == -1 or n_samples <= batch_size
    is_exact = chosen and one_batch and len(shape) == 1 and device.type == "cpu"
    return "float64" if is_exact else "float32"


def augment(x: Tensor, augmentation: Any, arguments: tuple = ()) -> Tensor:
    """Apply an augmentation, by name or callable, and check what it returns."""
    function = augmentation
    if isinstance(function, str):  # others need not be hashable
        function = AUGMENTATIONS[function]
    out = function(x, *arguments)
    kind, shape = getattr(out, "dtype", type(out)), getattr(out, "shape", None)
    if kind != x.dtype or shape != x.shape:
        raise ValueError(
            f"augmentation={augmentation!r} turned a batch of {x.dtype} and shape "
            f"{tuple(x.shape)} into {kind} and shape {shape}; expected the same type "
            "and shape."
        )
    return out
