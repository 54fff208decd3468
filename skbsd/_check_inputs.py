"""Checks and conversions of X."""

import datetime
import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import assert_all_finite, check_array
from torch.utils.data import DataLoader

from ._large import COPY
from ._sparse import as_csr
from ._structure import named_leaves

# Grey, colour, and colour with an alpha channel.
CHANNELS = (1, 3, 4)

# Largest number of values of an array that takes the fast path.
_SMALL = 2**14

_TIMES = (
    datetime.date,
    datetime.time,
    datetime.timedelta,
    np.datetime64,
    np.timedelta64,
)


def check_X(
    X,
    *,
    caller: str | None = None,
    image_shape=None,
    own_module: bool = False,
    needs_integers: Callable[[Any], bool] | None = None,
    is_several: bool | None = None,
    n_samples: int | None = None,
    name: str = "X",
):
    """Return X as finite numbers: one array, or several in a dict or a list.

    Parameters
    ----------
    X : array-like, DataFrame, Tensor, sparse matrix, or a dict or list of these
    caller : str, optional
        Name of the estimator, for advice about missing values.
    image_shape : tuple of (channels, height, width), optional
        If given, 2-D rows are reshaped to it.
    own_module : bool
        Whether the network is custom. A custom network may accept arrays with any
        number of dimensions, and several inputs.
    needs_integers : callable, optional
        Called with an array of integers; returns whether the network requires
        integers. By default, integers are converted to floats.
    is_several : bool, optional
        Whether a list of arrays contains several inputs. By default it does, unless the
        number of its entries is the number of samples.
    n_samples : int, optional
        Number of samples, if it is known.
    name : str
        Name of X in messages.

    Returns
    -------
    ndarray, Tensor or csr_array, or a dict or list of these
        float32 or float64; uint8 for 4-D images; int32 or int64 if the network requires
        integers. In a dict or list, integers are kept as int32 or int64, and bool too.
    """
    ready = _is_ready(X)
    if ready and X.ndim == 2 and X.dtype.kind == "f" and image_shape is None:
        return X
    if isinstance(X, DataLoader):
        raise TypeError(
            f"{name} is a {type(X).__name__}; expected an array, a DataFrame, a Tensor "
            "or a Dataset. Pass the `dataset` of a DataLoader, and its options as "
            "iterator_train__*."
        )
    if type(X).__module__.startswith("datasets."):
        # A dict of splits, as a single Dataset of that library is not checked here.
        raise TypeError(
            f"{name} is a {type(X).__name__} of Hugging Face; expected a Dataset with "
            f"a length, such as one of its splits, {name}['train']."
        )
    X = _no_dict_of_keys(X)
    if is_several is None:
        is_several = are_several(X, n_samples)
    if isinstance(X, Mapping) or (is_several and _may_be_several(X)):
        _check_can_be_several(X, own_module, image_shape, name)
        return _check_several(X, name, caller)
    if not ready:
        X = _check_array(X, name, caller)
    if X.ndim == 3 or X.ndim > 4:
        _check_dimensions(X, own_module, image_shape, name)
    elif image_shape is not None:
        X = _as_images(X, tuple(image_shape), name)
    elif X.ndim == 4:
        _check_channels_first(
            X, name, f"pass image_shape={tuple(X.shape[1:])} if this is meant"
        )
    keep = needs_integers is not None and holds_integers(X) and needs_integers(X)
    return as_numbers(X, keep_integers=keep)


def _no_dict_of_keys(X: Any) -> Any:
    """Convert SciPy's sparse DOK format, a subclass of dict, to CSR."""
    return X.tocsr() if sparse.issparse(X) and X.format == "dok" else X


def are_several(X: Any, n_samples: int | None = None) -> bool:
    """Whether X contains several inputs of a network.

    This holds for a dict, and for a list or tuple of arrays if at least one of them has
    two dimensions. A list of rows is a table. A list of images, one per sample, is a
    batch of images, as in scikit-learn.

    Parameters
    ----------
    X : object
    n_samples : int, optional
        Number of samples, if it is known.
    """
    if isinstance(X, Mapping):
        return True
    return _may_be_several(X) and (n_samples is None or len(X) != n_samples)


def _may_be_several(X: Any) -> bool:
    """Whether X is a dict, or a list of arrays that are not just rows of a table."""
    if isinstance(X, Mapping):
        return True
    if not isinstance(X, list | tuple) or not X:
        return False
    if not all(hasattr(part, "shape") or isinstance(part, Mapping) for part in X):
        return False
    return any(isinstance(part, Mapping) or len(part.shape) > 1 for part in X)


def _check_can_be_several(X: Any, own_module: bool, image_shape: Any, name: str):
    """Raise if the parameters do not allow several inputs."""
    kind = type(X).__name__
    if not own_module:
        raise TypeError(
            f"{name} is a {kind} of several inputs, but the networks of module=None "
            "have one input; pass a custom module whose forward accepts the entries of "
            "a dict as keyword arguments, or a list of arrays as one argument. Convert "
            "a dict of columns to a table with pandas.DataFrame."
        )
    if image_shape is not None:
        raise ValueError(
            f"image_shape={tuple(image_shape)} is the shape of the rows of one array, "
            f"but {name} is a {kind} of several arrays; omit image_shape, and pass "
            "images as arrays of 4 dimensions."
        )
    if not len(X):
        raise ValueError(f"{name} is an empty {kind}; expected at least one input.")


def _check_several(X: Any, name: str, caller: str | None) -> Any:
    """Check each input, and that all inputs have the same number of samples."""
    if isinstance(X, Mapping):
        for key in X:
            if not isinstance(key, str):
                raise TypeError(
                    f"{name} has the key {key!r}; expected strings that are names of "
                    "arguments of the network."
                )
        checked: Any = {
            key: _check_part(part, f"{name}[{key!r}]", caller)
            # Sorted: nothing may depend on the order in which they were written.
            for key, part in sorted(X.items(), key=itemgetter(0))
        }
    else:
        checked = [
            _check_part(part, f"{name}[{i}]", caller) for i, part in enumerate(X)
        ]
    lengths = {which: leaf.shape[0] for which, leaf in named_leaves(checked, name)}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{which} has {n}" for which, n in lengths.items())
        raise ValueError(
            f"the inputs differ in their number of samples: {shown}. The first "
            "dimension of each input must be the samples."
        )
    return checked


def _check_part(X: Any, name: str, caller: str | None) -> Any:
    """Check a single one of several inputs."""
    X = _no_dict_of_keys(X)
    if isinstance(X, Mapping) or (isinstance(X, list | tuple) and _may_be_several(X)):
        return _check_several(X, name, caller)
    if isinstance(X, list | tuple):
        X = _stacked(X, name)
    if not hasattr(X, "shape") or not len(X.shape):
        raise ValueError(f"{name} is {X!r}; expected an array with a row per sample.")
    try:
        X = _check_array(X, name, caller, ensure_2d=False)
    except ValueError as error:
        if name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error
    if is_bytes_of_images(X):
        _check_channels_first(X, name, "pass floats if this is meant")
    return as_numbers(X, keep_integers=True, keep_bool=True)


def _stacked(X: Any, name: str) -> np.ndarray:
    """Convert a list of rows to an array."""
    try:
        return np.asarray(X)
    except ValueError as error:
        raise ValueError(
            f"{name} contains rows of different lengths or shapes; expected the same "
            "shape for all rows. Pad them, for example with padding=True of a "
            "tokenizer, or pass a Dataset with a collate_fn that pads."
        ) from error


def _check_array(X, name: str, caller: str | None, *, ensure_2d: bool = True):
    """Return one array of finite numbers, a Tensor or a sparse matrix."""
    if isinstance(X, torch.Tensor) and X.layout != torch.strided:
        X = _as_csr(X, name)
    if isinstance(X, torch.Tensor):
        return _check_tensor(X, name, least=2 if ensure_2d else 1)
    options: dict[str, Any] = {"input_name": name, "estimator": caller}
    if sparse.issparse(X):
        return _check_sparse(X, name, options)
    convert = _check_columns(X, name, caller)
    options |= {"allow_nd": True, "ensure_2d": ensure_2d}
    if isinstance(X, np.ndarray):
        _refuse_times(X, name)  # before objects are converted
    elif isinstance(X, list | tuple):
        _refuse_texts(X, name)
        _check_same_shapes(X, name)
    # A list of tensors, or of anything with __array__, becomes one array here.
    X = check_array(X, dtype=np.float64 if convert else "numeric", **options)
    _refuse_times(X, name)
    if X.dtype.kind == "O":
        # check_array neither converts a list of lists of objects nor checks infinity.
        X = check_array(X, dtype=np.float64, **options)
    return X


def _refuse_texts(X: Any, name: str) -> None:
    """Raise an error for a list of texts, which scikit-learn would have reshaped."""
    if X and all(isinstance(x, str) for x in X):
        raise ValueError(
            f"{name} is a list of texts, such as {X[0][:40]!r}; expected numbers. Put "
            "a TfidfVectorizer before the classifier in a Pipeline, or pass the "
            "integers of a tokenizer to a module with an embedding."
        )


def _check_same_shapes(X: Any, name: str) -> None:
    """Raise if images or rows are arrays of different shapes."""
    found = sorted({x.shape for x in X if hasattr(x, "shape")}, key=tuple)
    if len(found) > 1:
        raise ValueError(
            f"{name} is a list of arrays of different shapes, such as "
            f"{tuple(found[0])} and {tuple(found[1])}; expected one shape. Resize or "
            "pad them, or pass a Dataset with a collate_fn that pads the items of a "
            "batch. If these are several inputs, each needs one row per label in y."
        )


def _check_sparse(X: Any, name: str, options: dict) -> sparse.csr_array:
    """Return a sparse matrix as CSR of floats, without duplicates."""
    X = check_array(X, accept_sparse="csr", dtype="numeric", **options)
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float32 if X.dtype.itemsize <= 2 else np.float64)
    if not X.has_canonical_format:
        X = X.copy()  # the user's matrix must not change
        X.sum_duplicates()
    return X


def _as_csr(X: torch.Tensor, name: str) -> sparse.csr_array:
    if X.ndim != 2 or X.is_complex():
        raise ValueError(
            f"{name} is a sparse Tensor of {X.dtype} and shape {tuple(X.shape)}; "
            "expected real numbers of shape (n_samples, n_features). Convert it with "
            "X.to_dense()."
        )
    return as_csr(X)


def _check_dimensions(X, own_module: bool, image_shape: Any, name: str) -> None:
    """Raise if X is neither a table nor images, unless the network is custom."""
    if own_module and image_shape is None:
        return
    raise ValueError(
        f"{name} has {X.ndim} dimensions, shape {tuple(X.shape)}; expected a table "
        "(n_samples, n_features) or images (n_samples, channels, height, width). "
        "Add a channel axis to grey images with X[:, None], or flatten other data "
        "to 2-D. A custom module accepts any number of dimensions, such as sequences "
        "of shape (n_samples, length, n_features), if image_shape is None."
    )


def _check_channels_first(X, name: str, way_out: str) -> None:
    if _looks_channels_last(*X.shape[1:]):
        raise ValueError(
            f"{name} has shape {tuple(X.shape)}, which looks like images with the "
            "channels last; expected (n_samples, channels, height, width). Convert "
            f"with np.moveaxis({name}, -1, 1), or {way_out}."
        )


def _is_ready(X) -> bool:
    """Whether X is a small array that would pass scikit-learn's checks unchanged.

    Those checks take longer than the prediction of a row by a small network. They are
    skipped only if nothing must be converted or rejected.
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

    Read as (channels, height, width), the width would be far less than the number of
    channels. This is rare, especially if height and number of channels are equal.
    """
    smaller, larger = sorted((first, second))
    if first <= max(CHANNELS):
        return False
    if last in CHANNELS:
        return True
    if first == second:
        return 2 * last <= first
    # The longer side of a photograph is at most twice the shorter one. This condition
    # excludes signals, which are much longer than their number of channels, and feature
    # maps, which have many more channels than rows.
    return larger <= 2 * smaller and 4 * last <= smaller


def _check_tensor(X: torch.Tensor, name: str, least: int) -> torch.Tensor:
    if X.is_complex():
        raise ValueError(f"Complex data not supported: {name} is {X.dtype}.")
    if X.ndim < least:
        raise ValueError(
            f"Expected {least}D array, got {X.ndim}D tensor instead for {name}. "
            "Reshape your data with X.reshape(-1, 1) or X.reshape(1, -1)."
        )
    if not len(X):
        raise ValueError(f"{name} has 0 samples; at least 1 is required.")
    if not X.isfinite().all():
        kind = "NaN" if X.isnan().any() else "infinity"
        raise ValueError(f"Input {name} contains {kind}. Remove or impute such rows.")
    return X.detach()


def _check_columns(X, name: str, caller: str | None) -> bool:
    """Raise for columns of a DataFrame that are not numbers.

    Returns
    -------
    bool
        Whether columns must be converted, as numbers are stored as objects or
        categories.
    """
    dtypes = getattr(X, "dtypes", None)
    columns = getattr(X, "columns", None)
    if dtypes is None or columns is None:
        return False
    # Types of pandas have a kind; columns of other types are judged by their values.
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
        # Raises scikit-learn's error about missing values. pandas' NA would otherwise
        # raise an error about its conversion.
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
    """Raise for dates, times and durations, which numpy would convert to numbers."""
    if _holds_times(X):
        raise ValueError(_about_times(f"{name} holds", f"dtype {X.dtype}"))


def _holds_times(values: np.ndarray) -> bool:
    """Whether any of the values is a date, time or duration."""
    if values.dtype.kind != "O":
        return values.dtype.kind in "mM"
    kinds = set(map(type, values.flat))
    # Timestamp and Timedelta of pandas derive from datetime's types; Period does not.
    return any(issubclass(k, _TIMES) or k.__name__ == "Period" for k in kinds)


def _about_times(holds: str, which: str) -> str:
    return (
        f"{holds} dates, times or durations ({which}); expected numbers. Converted to "
        "numbers, they would depend on a unit and an origin. Extract features, such as "
        "the year and the day of the week, or the seconds since a date, with .dt.year, "
        ".dt.dayofweek and .dt.total_seconds() of pandas."
    )


def _as_images(X, image_shape: tuple[int, int, int], name: str):
    if X.ndim == 4:
        if tuple(X.shape[1:]) != image_shape:
            raise ValueError(
                f"{name} has images of shape {tuple(X.shape[1:])}, but image_shape "
                f"is {image_shape}; omit image_shape or make them agree."
            )
        return X
    if X.shape[1] != math.prod(image_shape):
        raise ValueError(
            f"{name} has {X.shape[1]} features, but image_shape={image_shape} "
            f"has {math.prod(image_shape)} values; expected (channels, height, width) "
            "of one flattened image."
        )
    # Batches of a sparse matrix are reshaped after they become dense.
    return X if sparse.issparse(X) else X.reshape(len(X), *image_shape)


def as_numbers(X, *, keep_integers: bool, keep_bool: bool = False):
    """Convert numbers to a type that networks accept.

    Parameters
    ----------
    X : ndarray, Tensor or sparse matrix
    keep_integers : bool
        Whether to convert integers to int32 or int64, instead of floats.
    keep_bool : bool, default=False
        Whether to keep booleans unchanged.

    Returns
    -------
    ndarray, Tensor or sparse matrix
        uint8 images, float32 and float64 keep their type. Arrays are C-contiguous,
        except for float tables in column-major order.
    """
    X = X if sparse.issparse(X) else _of_known_type(X, keep_integers, keep_bool)
    if isinstance(X, torch.Tensor) or sparse.issparse(X):
        return X
    if _is_column_by_column(X):
        return X
    # torch supports neither negative strides nor non-native byte orders.
    return np.ascontiguousarray(X, dtype=X.dtype.newbyteorder("="))


def _is_column_by_column(X: np.ndarray) -> bool:
    """Whether X is a table of floats as in a DataFrame, small enough to copy later.

    A copy here would be held beside that of another type that is trained on.
    """
    return (
        X.ndim == 2
        and X.dtype.kind == "f"
        and X.dtype.isnative
        and X.flags.f_contiguous
        and X.nbytes <= COPY
    )


def _of_known_type(X, keep_integers: bool, keep_bool: bool):
    is_tensor = isinstance(X, torch.Tensor)
    if is_bytes_of_images(X):
        return X
    if X.dtype in (np.float32, np.float64, torch.float32, torch.float64):
        return X
    if keep_bool and X.dtype in (np.bool_, torch.bool):
        return X
    if keep_integers and holds_integers(X):
        return _as_signed(X)
    # float32 represents the values of every 16-bit type exactly.
    if is_tensor:
        return X.to(torch.float32 if X.dtype.itemsize <= 2 else torch.float64)
    return X.astype(np.float32 if X.dtype.itemsize <= 2 else np.float64)


def is_bytes_of_images(X: Any) -> bool:
    """Whether an array contains uint8 images, which are standardised on the device.

    Parameters
    ----------
    X : ndarray, Tensor or sparse matrix
    """
    return X.ndim == 4 and X.dtype in (np.uint8, torch.uint8)


def holds_integers(X: Any) -> bool:
    """Whether an array contains integers or booleans, other than uint8 images.

    Parameters
    ----------
    X : ndarray, Tensor or sparse matrix
    """
    if is_bytes_of_images(X):
        return False
    if isinstance(X.dtype, torch.dtype):
        return not (X.dtype.is_floating_point or X.dtype.is_complex)
    return X.dtype.kind in "biu"


def _as_signed(X):
    """Return integers as int32 or int64, which torch can use as indices."""
    if X.dtype in (np.uint64, torch.uint64) and X.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"X contains integers as large as {X.max()}; expected the range of int64."
        )
    unsigned = X.dtype in (np.uint32, torch.uint32)
    size = "int64" if unsigned or X.dtype.itemsize > 4 else "int32"
    if isinstance(X, torch.Tensor):
        return X.to(getattr(torch, size))
    return X.astype(X.dtype if X.dtype.name == size else size, copy=False)
