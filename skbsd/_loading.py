"""Checked training data, splits and the batches made from them."""

import math
from collections.abc import Callable, Iterator
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import check_consistent_length
from skorch.utils import is_dataset
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    default_collate,
)

from . import _checks
from ._batches import (
    Batches,
    IndexedCollate,
    IndexedDataset,
    IndexedTensor,
    LoaderBatches,
    PredictionCollate,
    ResidentBatches,
    RowsOf,
    Share,
    WholeBatches,
    move,
)
from ._check_inputs import holds_integers
from ._items import inputs_of, n_inputs_of
from ._large import COPY, parts, shared
from ._mapped import MappedRows
from ._memory import free_memory
from ._sparse import SparseRows
from ._structure import (
    is_nested,
    leaves,
    map_leaves,
    n_samples,
    part_of_leaves,
    row_bytes,
)

_MOST_REPEATS = 10.0
# Most bytes of a table in one batch of predictions.
_LARGEST_BATCH = 2**23


class TrainingData(NamedTuple):
    """The checked arguments of `fit`."""

    given: Any  # X before checks, for its feature names
    X: Any  # a Dataset, an array or sparse matrix, or a dict or list of these
    y: np.ndarray
    classes: np.ndarray
    codes: np.ndarray
    weight: np.ndarray | None
    sample_weight: Any  # before checks
    keeps_integers: bool | None = False  # whether the network receives integers
    n_inputs: int | None = None  # number of inputs in a Dataset's tuples

    @property
    def n_used(self) -> int:
        """Number of samples with positive weight."""
        return len(self.y if self.weight is None else self.weight.nonzero()[0])

    @property
    def mapped(self) -> MappedRows | None:
        """The rows of X if it is memory-mapped and larger than memory, else None."""
        rows = MappedRows.of(self.given)
        if rows is None or is_dataset(self.X) or is_nested(self.X):
            return None
        X = self.X
        place = X.data_ptr() if isinstance(X, Tensor) else X.ctypes.data
        return rows if place == self.given.ctypes.data else None

    @property
    def identity(self) -> tuple:
        """Values that identify these data."""
        return self.X, self.codes, self.classes, self.weight

    def size(self, rows: np.ndarray) -> float:
        """Return the effective number of samples of some rows.

        A row of weight 2 counts as two samples. Weights below 1 on average are assumed
        to be relative, so the result is at least the number of rows. It is at most ten
        times this number.
        """
        n = float(len(rows))
        if self.sample_weight is None:
            return n
        given = self.sample_weight
        if isinstance(given, Tensor):
            given = given.detach().cpu().numpy()
        weight = np.broadcast_to(np.asarray(given, dtype=np.float64), len(self.y))
        return min(max(float(weight[rows].sum()), n), _MOST_REPEATS * n)

    def relative_weight(self, rows: np.ndarray, size: float) -> Tensor:
        """Return the weights of some rows, scaled so that they sum to `size`."""
        weight = np.ones(len(self.y)) if self.weight is None else self.weight
        part = torch.from_numpy(weight[rows].astype(np.float64))
        return part * (size / part.sum())

    def weighted(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows without those of weight zero."""
        return rows if self.weight is None else rows[self.weight[rows] > 0]


def checked_data(
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    class_weight: Any,
    classes: np.ndarray | None,
    image_shape: Any,
    caller: str,
    own_module: bool = False,
    needs_integers: Callable[[Any], bool] | None = None,
    is_several: bool | None = None,
    collates: bool = False,
) -> TrainingData:
    """Check the arguments of `fit`, and encode the labels.

    Parameters
    ----------
    X, y, sample_weight : object
        Arguments of `fit`.
    class_weight : dict, "balanced" or None
    classes : ndarray or None
        All classes, if they are already known.
    image_shape : tuple of int or None
    caller : str
        Name of the estimator, for messages.
    own_module, needs_integers, is_several : object
        As in `check_X`.
    collates : bool, default=False
        Whether the user has set a `collate_fn`.
    """
    given = X
    if is_dataset(X):
        first = _checks.check_dataset(X, has_y=y is not None, collates=collates)
        y = _checks.check_y(_checks.dataset_labels(X) if y is None else y, caller)
    else:
        X = _checks.check_X(
            X,
            caller=caller,
            image_shape=image_shape,
            own_module=own_module,
            needs_integers=needs_integers,
            is_several=is_several,
            n_samples=_checks.length_of(y),
        )
        y = _checks.check_y(y, caller)
    of_samples = leaves(X)[0]  # all have the same number of samples
    check_consistent_length(of_samples, y)
    several = classes is None
    if classes is None:
        classes = _checks.find_classes(y)
    codes = _checks.encode(y, classes)
    weight = _checks.check_weight(
        sample_weight, class_weight, of_samples, y, classes, several_classes=several
    )
    keeps: bool | None = None
    if is_dataset(X):
        keeps = _are_kept(inputs_of(first), needs_integers)
    elif not is_nested(X):
        keeps = holds_integers(X)
    n_inputs = n_inputs_of(first) if is_dataset(X) else None
    encoded = TrainingData(given, X, y, classes, codes, weight, sample_weight)
    return encoded._replace(keeps_integers=keeps, n_inputs=n_inputs)


def _are_kept(x: Any, needs_integers: Callable[[Any], bool] | None) -> bool | None:
    """Return whether a network receives the integers of a Dataset unchanged.

    The result is None for items that are not a single array; they are not converted.
    """
    if not isinstance(x, Tensor | np.ndarray | Number):
        return None
    batch = torch.as_tensor(x)[None]
    return bool(holds_integers(batch) and needs_integers and needs_integers(batch))


def part_of(X: Any, rows: np.ndarray) -> Any:
    """Return some rows of checked data.

    Parameters
    ----------
    X : Dataset, array or sparse matrix, or dict or list of these
    rows : ndarray of int
    """
    if is_dataset(X):
        return Subset(X, rows.tolist())
    return part_of_leaves(X, rows)


class Split(NamedTuple):
    """The samples for training and validation.

    Parameters
    ----------
    rows : ndarray of int
        Rows of X to train on.
    valid_rows : ndarray of int or None
        Rows to validate on, if any.
    valid_data : TrainingData or None
        The data that `valid_rows` refer to, if they are not rows of X.
    datasets : dict
        Both parts as Datasets, for callbacks.
    """

    rows: np.ndarray
    valid_rows: np.ndarray | None
    valid_data: TrainingData | None
    datasets: dict[str, Any]

    @property
    def identity(self) -> tuple:
        """Values that identify this split among others of the same data."""
        other = None if self.valid_data is None else self.valid_data.identity
        return self.rows, self.valid_rows, other


class Loader(NamedTuple):
    """The user's settings for loading a Dataset.

    Parameters
    ----------
    side : {"iterator_train", "iterator_valid"}
    iterator : callable
    options : dict
        Arguments of `iterator`.
    batch_size : int
        Number of samples per batch; -1 is all samples.
    n_inputs : int, optional
        Number of entries of a tuple that are inputs, in predictions.
    """

    side: str
    iterator: Callable[..., Any]
    options: dict[str, Any]
    batch_size: int
    n_inputs: int | None = None

    @property
    def is_set(self) -> bool:
        """Whether arrays are loaded by it too, not only Datasets."""
        options = self.options.keys() - {"batch_size"}
        return bool(options) or self.iterator is not DataLoader

    def resolved(self) -> tuple[int, dict[str, Any]]:
        """Return the batch size and a copy of the other options."""
        options = dict(self.options)
        return options.pop("batch_size", self.batch_size), options


def split_rows(
    data: TrainingData, whole: Dataset, train_split: Any, split_params: dict
) -> Split:
    """Split off validation data with `train_split`.

    Parameters
    ----------
    data : TrainingData
    whole : Dataset
        The Dataset of X and y that skorch creates.
    train_split : callable or None
    split_params : dict
        Passed to `train_split`.
    """
    rows = np.arange(len(data.y))
    datasets = {"dataset_train": whole, "dataset_valid": None}
    if train_split is None:
        return Split(data.weighted(rows), None, None, datasets)
    train, valid = train_split(whole, data.y, **split_params)
    datasets = {"dataset_train": train, "dataset_valid": valid}
    if isinstance(train, Subset) and train.dataset is whole:
        rows = np.asarray(train.indices)
    elif train is not whole:
        raise ValueError(
            f"train_split returned a {type(train).__name__} to train on; expected the "
            "Dataset that it received or a Subset of it, so that each sample keeps its "
            "row."
        )
    rows = data.weighted(rows)
    if valid is None:
        return Split(rows, None, None, datasets)
    if isinstance(valid, Subset) and valid.dataset is whole:
        valid_rows = data.weighted(np.asarray(valid.indices))
        return Split(rows, valid_rows, None, datasets)
    y = _checks.dataset_labels(valid)
    codes = _checks.encode(y, data.classes)
    other = data._replace(X=valid, y=y, codes=codes, weight=None, sample_weight=None)
    return Split(rows, np.arange(len(y)), other, datasets)


def on_device(
    data: TrainingData,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    by_loader: bool,
) -> TrainingData:
    """Move arrays to the device, or keep them on the CPU if they do not fit.

    Arrays for the workers of a loader stay on the CPU too. Floats are converted to
    `dtype`, or not converted with None.
    """
    if is_dataset(data.X):
        return data
    X = map_leaves(lambda leaf: _narrowed(_as_tensor(leaf), dtype), data.X)
    if by_loader:
        return data._replace(X=map_leaves(lambda leaf: leaf.cpu(), X))
    moves = [leaf for leaf in leaves(X) if leaf.device.type != device.type]
    if device.type == "cuda" and moves:
        size = sum(_bytes_as(leaf, dtype) for leaf in moves)
        if size > free_memory(device) / 2:
            return data._replace(X=X)
    return data._replace(X=map_leaves(lambda leaf: _moved(leaf, device, dtype), X))


def _as_tensor(X: Any) -> Any:
    """Return an array as Tensor, or a sparse matrix as SparseRows, sharing memory."""
    if isinstance(X, Tensor | SparseRows):
        return X
    return SparseRows.of(X) if sparse.issparse(X) else shared(X)


def _bytes_as(X: Any, dtype: torch.dtype | None) -> int:
    """Return the memory in bytes of inputs after conversion of floats to `dtype`."""
    if isinstance(X, SparseRows) or dtype is None or not X.is_floating_point():
        return X.nbytes
    return X.numel() * dtype.itemsize


def make_batches(
    data: TrainingData,
    rows: np.ndarray,
    loader: Loader,
    device: torch.device,
    dtype: torch.dtype,
    share: Share | None = None,
) -> Batches:
    """Return batches of arrays on the device, or of a loader for other data.

    A loader is also used for arrays if the user has set one.

    Parameters
    ----------
    data : TrainingData
    rows : ndarray of int
        Rows of the samples to use.
    loader : Loader
        Settings of training, with shuffling and weights, or of validation.
    device : torch.device
        Device of the batches.
    dtype : torch.dtype
        Type of the weights.
    share : Share, optional
        The part of each batch for this process, if several train together.
    """
    training = loader.side == "iterator_train"
    batch_size, options = loader.resolved()
    share = Share(len(rows)) if share is None else share
    if share.n == 0:
        raise ValueError(
            f"no samples are left to {'train' if training else 'validate'} on, of "
            f"{len(data.y)}; check train_split and sample_weight."
        )
    if batch_size == -1:
        batch_size = share.n
    weight = None
    if data.weight is not None and training:
        mean = share.mean_weight or data.weight[rows].mean()
        weight = torch.as_tensor(data.weight / mean, dtype=dtype, device=device)
    in_memory = not is_dataset(data.X)
    is_array = in_memory and not loader.is_set
    if is_array and all(x.device.type == device.type for x in leaves(data.X)):
        return ResidentBatches(
            data.X,
            torch.as_tensor(data.codes, device=device),
            weight,
            torch.as_tensor(rows, device=device),
            batch_size,
            shuffle=training,
            share=share,
            mapped=data.mapped,
        )
    dataset: Dataset
    # The workers of a loader, too, can fetch a whole batch of an array at once.
    is_plain = loader.iterator is DataLoader and "collate_fn" not in options
    if is_array or (is_plain and in_memory):
        dataset = IndexedTensor(data.X, data.codes, rows, data.mapped)
        options["collate_fn"] = _as_fetched
    else:
        items = RowsOf(data.X) if in_memory else data.X
        dataset = IndexedDataset(items, data.codes, rows)
        options["collate_fn"] = IndexedCollate(
            options.get("collate_fn", default_collate)
        )
    n_rows = len(data.y)
    return _load(dataset, loader, options, batch_size, weight, device, n_rows, share)


def _load(
    dataset: Any,
    loader: Loader,
    options: dict,
    batch_size: int,
    weight: Tensor | None,
    device: torch.device,
    n_rows: int,
    share: Share,
) -> LoaderBatches:
    """Set up the loader of an indexed dataset."""
    training = loader.side == "iterator_train"
    is_default = loader.iterator is DataLoader
    if is_default:
        options.setdefault("pin_memory", device.type == "cuda")
    own_order = is_default and not options.keys() & {
        "batch_sampler",
        "drop_last",
        "sampler",
        "shuffle",
    }
    if share.size > 1 and not own_order:
        raise ValueError(
            f"{loader.side} sets the order of the samples, but processes that train "
            "together must distribute each batch themselves. Omit batch_sampler, "
            "drop_last, sampler, shuffle and loaders other than DataLoader."
        )
    totals = None
    if own_order:
        options["batch_sampler"] = sampler = WholeBatches(
            len(dataset), batch_size, shuffle=training, share=share
        )
        totals = sampler.totals
    elif "batch_sampler" not in options:
        options["batch_size"] = batch_size
        if "sampler" not in options:
            options.setdefault("shuffle", training)
    batches = loader.iterator(dataset, **options)
    if len(batches) == 0 and share.n == len(dataset):
        raise ValueError(
            f"{loader.side} yields no batch of {len(dataset)} samples with "
            f"batch_size={batch_size}; drop_last drops an incomplete batch."
        )
    # Other samplers may draw with replacement.
    return LoaderBatches(
        batches, weight, device, n_rows, unique=own_order, totals=totals
    )


def prediction_batches(
    X: Any,
    loader: Loader,
    device: torch.device,
    dtype: torch.dtype,
    rows: np.ndarray | None = None,
) -> Iterator[Any]:
    """Yield the inputs of one batch after the other, on the device.

    Parameters
    ----------
    X : Dataset, array or sparse matrix, or dict or list of these
        Checked inputs.
    loader : Loader
        Settings of validation. Arrays are predicted in larger batches if these fit.
    device : torch.device
    dtype : torch.dtype
        Floating type of the inputs.
    rows : ndarray of int, optional
        Rows of the samples; by default all samples.
    """
    batch_size, options = loader.resolved()
    if is_dataset(X):
        if rows is not None:
            X = Subset(X, rows.tolist())
        size = len(X) if batch_size == -1 else batch_size
        # Other loaders may create batches in another way.
        collates = loader.iterator is DataLoader or "collate_fn" in options
        if collates:
            collate = options.get("collate_fn", default_collate)
            options["collate_fn"] = PredictionCollate(collate, loader.n_inputs)
        for item in loader.iterator(X, batch_size=size, **options):
            x = item if collates else inputs_of(item, loader.n_inputs)
            yield move(x, device)
        return
    size = max(batch_size, _rows_at_once(X, device))
    mapped = None if rows is None or is_nested(X) else MappedRows.of(X)
    n = n_samples(X) if rows is None else len(rows)
    for start in range(0, n, size):
        # Copied, as a network may work in place and must not change the user's X.
        part = slice(start, start + size)
        if rows is not None and mapped is not None:
            mapped.read_ahead(rows[part])
        which = part if rows is None else rows[part]
        yield map_leaves(lambda leaf, w=which: _copied(leaf, w, device, dtype), X)


def first_not_finite(
    X: Dataset, rows: np.ndarray, loader: Loader, dtype: torch.dtype
) -> np.ndarray:
    """Return the items with NaN or infinity in the first batch that has any.

    Parameters
    ----------
    X : Dataset
    rows : ndarray of int
        Items to check, until some are found.
    loader : Loader
        Settings of validation.
    dtype : torch.dtype
        Floating type of the inputs.
    """
    start = 0
    for x in prediction_batches(X, loader, torch.device("cpu"), dtype, rows):
        bad = [
            ~leaf.isfinite().view(len(leaf), -1).all(dim=1)
            for leaf in leaves(x)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        if not bad:
            break
        found = torch.stack(bad).any(dim=0)
        if found.any():
            return rows[start : start + len(found)][found.numpy()]
        start += len(found)
    return rows[:0]


def _rows_at_once(X: Any, device: torch.device) -> int:
    """Return the number of samples that may be predicted at once."""
    on_gpu = device.type == "cuda"
    most = 2**16 if on_gpu else 2**13
    images = [leaf for leaf in leaves(X) if leaf.ndim == 4]
    if images:
        pixels = max(math.prod(leaf.shape[2:]) for leaf in images)
        most = min(most, (2**20 if on_gpu else 2**18) // pixels)
        if not is_nested(X):
            return (2**20 if on_gpu else 2**18) // pixels
    return min(most, _LARGEST_BATCH // max(1, row_bytes(X)))


def _copied(
    X: Any, which: slice | np.ndarray, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return a copy of some rows on the device, in the type of the network."""
    if isinstance(X, SparseRows) and isinstance(which, slice):
        which = np.arange(len(X))[which]
    is_copy = isinstance(which, np.ndarray)
    if is_copy and isinstance(X, Tensor | SparseRows):
        x = X.index_select(0, torch.from_numpy(which).to(X.device))
    else:
        part = X[which]
        x = part if isinstance(part, Tensor) else shared(_dense(part))
    if x.is_floating_point() and x.dtype != dtype:
        x = _narrow(x, dtype)
    elif not is_copy:
        layout = torch.contiguous_format if x.ndim == 2 else torch.preserve_format
        x = x.clone(memory_format=layout)
    else:
        x = _row_by_row(x)
    pinned = device.type == "cuda" and x.is_cpu
    return move(x.pin_memory() if pinned else x, device)


def _dense(X: Any) -> np.ndarray:
    return X.toarray() if sparse.issparse(X) else X


def _as_fetched(batch):
    return batch


def _narrowed(X: Any, dtype: torch.dtype | None) -> Any:
    """Convert to `dtype`; of data too large to copy, only check the conversion."""
    if isinstance(X, SparseRows):
        return X if dtype is None else X.with_values(lambda v: _narrow(v, dtype))
    if not X.is_floating_point():
        return X
    if dtype is None:
        return _row_by_row(X) if X.nbytes <= COPY else X
    if X.nbytes <= COPY or not X.is_cpu or X.dtype == dtype:
        return _narrow(X, dtype)
    for part in parts(X):
        _narrow(part, dtype)
    return X


def _moved(X: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Move inputs to a device; convert there what was too large to convert here."""
    if isinstance(X, SparseRows) or dtype is None or not X.is_floating_point():
        return X.to(device)
    if X.device.type == device.type or X.dtype == dtype:
        return X.to(device)
    return _converted(X, device, dtype)


def _converted(X: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return inputs converted on another device, without a full copy on this one."""
    moved = torch.empty(X.shape, dtype=dtype, device=device)
    start = 0
    for part in parts(X):
        moved[start : start + len(part)] = part.to(dtype)
        start += len(part)
    return moved


def _row_by_row(X: Tensor) -> Tensor:
    """Return a table with the numbers of a row beside each other, to be gathered."""
    return X.contiguous() if X.ndim == 2 else X


def _narrow(X: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to `dtype`, and raise if a number becomes infinite.

    Tables are returned in row-major order.
    """
    if dtype == X.dtype:
        return _row_by_row(X) if X.nbytes <= COPY else X
    layout = torch.contiguous_format if X.ndim == 2 else torch.preserve_format
    narrow = X.to(dtype, memory_format=layout)
    # A finite sum proves that all numbers are finite, in a fraction of the time and
    # without memory. Only if it is not finite, each number is checked.
    if not math.isfinite(narrow.sum().item()) and not narrow.isfinite().all():
        raise ValueError(
            f"X contains values as large as {X.abs().max().item():g}, too large for "
            f"{dtype}; scale the features, for example with StandardScaler."
        )
    return narrow
