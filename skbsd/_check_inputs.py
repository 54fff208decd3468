"""What is accepted as X, and what is said about anything else."""

import datetime
import math

import numpy as np
import torch
from sklearn.utils import assert_all_finite, check_array
from torch.utils.data import DataLoader

# Grey, colour, and colour with an alpha channel.
CHANNELS = (1, 3, 4)

# Values of an array that is looked at here first.
_SMALL = 2**14

_TIMES = (
    datetime.date,
    datetime.time,
    datetime.timedelta,
    np.datetime64,
    np.timedelta64,
)


def check_X(X, *, caller: str | None = None, image_shape=None, name: str = "X"):
    """Return X as a finite 2-D table or 4-D batch of images.

    Parameters
    ----------
    X : array-like, DataFrame or Tensor
    caller : str, optional
        Name of the estimator, for advice about missing values.
    image_shape : tuple of (channels, height, width), optional
        Where given, 2-D rows are reshaped to it.
    name : str
        For messages.

    Returns
    -------
    ndarray or Tensor
        uint8 (images only), float32 or float64.
    """
    ready = _is_ready(X)
    if ready and X.ndim == 2 and X.dtype.kind == "f" and image_shape is None:
        return X
    if isinstance(X, DataLoader) or type(X) is dict:
        raise TypeError(
            f"{name} is a {type(X).__name__}; expected an array, a DataFrame, a Tensor "
            "or a Dataset. Pass a DataLoader's `dataset`, and parameters of loading as "
            "iterator_train__*."
        )
    if isinstance(X, torch.Tensor):
        X = _check_tensor(X, name)
    elif not ready:
        convert = _check_columns(X, name, caller)
        options = {"allow_nd": True, "input_name": name, "estimator": caller}
        if isinstance(X, np.ndarray):
            _refuse_times(X, name)  # before objects are converted
        # A list of tensors, or of anything with __array__, becomes one array here.
        X = check_array(X, dtype=np.float64 if convert else "numeric", **options)
        _refuse_times(X, name)
        if X.dtype.kind == "O":
            # A list of lists of objects: unconverted, and not checked for infinity.
            X = check_array(X, dtype=np.float64, **options)
    if X.ndim == 3 or X.ndim > 4:
        raise ValueError(
            f"{name} has {X.ndim} dimensions, shape {tuple(X.shape)}; expected a table "
            "(n_samples, n_features) or images (n_samples, channels, height, width). "
            "Give grey images a channel axis with X[:, None], or flatten other data "
            "to 2-D."
        )
    if image_shape is not None:
        X = _as_images(X, tuple(image_shape), name)
    elif X.ndim == 4 and _looks_channels_last(*X.shape[1:]):
        raise ValueError(
            f"{name} has shape {tuple(X.shape)}, which looks like images with the "
            "channels last; expected (n_samples, channels, height, width). Convert "
            "with np.moveaxis(X, -1, 1), or pass "
            f"image_shape={tuple(X.shape[1:])} if this is meant."
        )
    X = _as_uint8_or_float(X)
    if isinstance(X, torch.Tensor):
        return X
    # torch knows neither negative strides nor foreign byte orders.
    return np.ascontiguousarray(X, dtype=X.dtype.newbyteorder("="))


def _is_ready(X) -> bool:
    """Whether X is a small array that passes scikit-learn's checks as it is.

    Those take longer than a small network does for a row; where there is anything to
    convert or to refuse, they have to say so.
    """
    return (
        type(X) is np.ndarray
        and X.dtype.char in "fdB"
        and X.dtype.isnative
        and X.ndim >= 2
        and X.flags.c_contiguous
        and 0 < X.size <= _SMALL
        and (X.dtype.char == "B" or bool(np.isfinite(X).all()))
    )


def _looks_channels_last(first: int, second: int, last: int) -> bool:
    """Whether samples of this shape are probably (height, width, channels).

    As (channels, height, width) they would be images that are far narrower than they
    have channels, which is rare; most of all where there are as many rows as channels.
    """
    smaller, larger = sorted((first, second))
    if first <= max(CHANNELS):
        return False
    if last in CHANNELS:
        return True
    if first == second:
        return 2 * last <= first
    # Photographs that are not square are at most twice as wide as high, or as high as
    # wide. This leaves out signals, which are many times longer than they have
    # channels, and features, which have many times more channels than rows.
    return larger <= 2 * smaller and 4 * last <= smaller


def _check_tensor(X: torch.Tensor, name: str) -> torch.Tensor:
    if X.layout != torch.strided:
        raise TypeError(
            f"Sparse data was passed for {name} ({X.layout}), but dense data is "
            "required. Use X.to_dense()."
        )
    if X.is_complex():
        raise ValueError(f"Complex data not supported: {name} is {X.dtype}.")
    if X.ndim < 2:
        raise ValueError(
            f"Expected 2D array, got {X.ndim}D tensor instead for {name}. Reshape your "
            "data with X.reshape(-1, 1) or X.reshape(1, -1)."
        )
    if not len(X):
        raise ValueError(f"{name} holds 0 samples; at least 1 is required.")
    if not X.isfinite().all():
        kind = "NaN" if X.isnan().any() else "infinity"
        raise ValueError(f"Input {name} contains {kind}. Remove or impute such rows.")
    return X.detach()


def _check_columns(X, name: str, caller: str | None) -> bool:
    """Raise for columns of a DataFrame that are not numbers.

    Returns
    -------
    bool
        Whether columns have to be converted: numbers stored as objects or categories.
    """
    dtypes = getattr(X, "dtypes", None)
    columns = getattr(X, "columns", None)
    if dtypes is None or columns is None:
        return False
    # pandas' types have a kind; where there is none, the values decide.
    unclear = [i for i, t in enumerate(dtypes) if getattr(t, "kind", "f") not in "biuf"]
    times, strange = [], []
    for i in unclear:
        values = X.iloc[:, i].dropna().to_numpy()
        described = f"{columns[i]!r} ({dtypes.iloc[i]})"
        if _holds_times(values):
            times.append(described)
        elif not _is_numeric(values):
            strange.append(described)
    if times:
        raise ValueError(_about_times(f"{name} has columns of", ", ".join(times)))
    if strange:
        raise ValueError(
            f"{name} has columns that are not numeric: {', '.join(strange)}. Encode "
            "them first, for example with a ColumnTransformer of OneHotEncoder and "
            "StandardScaler in a Pipeline."
        )
    if any(X.iloc[:, i].isna().any() for i in unclear):
        # scikit-learn's error about missing values; pandas' NA, which it cannot
        # convert, would get another.
        assert_all_finite(np.array([np.nan]), estimator_name=caller, input_name=name)
    return bool(unclear)


def _is_numeric(values: np.ndarray) -> bool:
    """Whether the values of a column convert to numbers."""
    if values.dtype.kind not in "biufOU":
        return False  # numpy would drop imaginary parts
    try:
        values.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _refuse_times(X: np.ndarray, name: str) -> None:
    """Raise for dates, times and durations, which numpy makes numbers of."""
    if _holds_times(X):
        raise ValueError(_about_times(f"{name} holds", f"dtype {X.dtype}"))


def _holds_times(values: np.ndarray) -> bool:
    """Whether there are dates, times or durations among the values."""
    if values.dtype.kind != "O":
        return values.dtype.kind in "mM"
    kinds = set(map(type, values.flat))
    # pandas' Timestamp and Timedelta are datetime's too, but its Period is not.
    return any(issubclass(k, _TIMES) or k.__name__ == "Period" for k in kinds)


def _about_times(holds: str, which: str) -> str:
    return (
        f"{holds} dates, times or durations ({which}); expected numbers, and as such "
        "these would depend on their unit and origin. Extract features from them, such "
        "as the year and the day of the week, or the seconds since a date; pandas has "
        "these as .dt.year, .dt.dayofweek and .dt.total_seconds()."
    )


def _as_images(X, image_shape: tuple[int, int, int], name: str):
    if X.ndim == 4:
        if tuple(X.shape[1:]) != image_shape:
            raise ValueError(
                f"{name} holds images of shape {tuple(X.shape[1:])}, but image_shape "
                f"is {image_shape}; leave image_shape out or make them agree."
            )
        return X
    if X.shape[1] != math.prod(image_shape):
        raise ValueError(
            f"{name} has {X.shape[1]} features, but image_shape={image_shape} "
            f"multiplies out to {math.prod(image_shape)}; expected (channels, height, "
            "width) of one flattened image."
        )
    return X.reshape(len(X), *image_shape)


def _as_uint8_or_float(X):
    """Keep uint8 images, float32 and float64; widen or narrow the rest to these."""
    is_tensor = isinstance(X, torch.Tensor)
    if X.dtype in (np.uint8, torch.uint8) and X.ndim == 4:
        return X
    if X.dtype in (np.float32, np.float64, torch.float32, torch.float64):
        return X
    # Every 16-bit type fits in float32 without loss.
    if is_tensor:
        return X.to(torch.float32 if X.dtype.itemsize <= 2 else torch.float64)
    return X.astype(np.float32 if X.dtype.itemsize <= 2 else np.float64)
