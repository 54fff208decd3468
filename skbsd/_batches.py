"""Batches that record which training samples they contain."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch.utils import to_device
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from ._items import has_label, inputs_of, label_of, relabelled
from ._large import COPY, PART
from ._mapped import MappedRows
from ._rows import check_rows
from ._structure import (
    dense_bytes,
    leaves,
    map_leaves,
    n_samples,
    named_leaves,
    split,
    take,
)


class Batch(NamedTuple):
    """A batch and the identity of its samples.

    Parameters
    ----------
    x : Tensor of shape (n, ...), or a dict or list of Tensors
        Inputs.
    y : Tensor of shape (n,)
        Class indices.
    rows : Tensor of shape (n,)
        Indices of the samples in X.
    weight : Tensor of shape (n,) or None
        Sample weights.
    unique : bool
        Whether `rows` are known to be distinct.

    Examples
    --------
    Create a batch by hand to try the loss of an objective:

    >>> import torch
    >>> from skbsd.objectives import Batch
    >>> batch = Batch(
    ...     x=torch.zeros(2, 4),
    ...     y=torch.tensor([0, 1]),
    ...     rows=torch.tensor([7, 3]),
    ...     weight=None,
    ...     unique=True,
    ... )
    >>> batch.rows
    tensor([7, 3])
    """

    x: Any
    y: Tensor
    rows: Tensor
    weight: Tensor | None
    unique: bool


def move(x, device: torch.device):
    """Copy a batch to a device; from pinned memory to CUDA without synchronisation.

    An asynchronous copy may read memory after it has been freed and reused. CUDA's
    allocator keeps pinned memory until it has been read; other allocators do not.

    Parameters
    ----------
    x : Tensor, or a container that :func:`skorch.utils.to_device` supports
    device : torch.device
    """
    if isinstance(x, Tensor):
        if x.device == device:
            return x
        return x.to(device, non_blocking=device.type == "cuda" and x.is_pinned())
    if isinstance(x, Mapping):
        kind: Any = type(x)  # e.g. BatchEncoding of a tokenizer
        return kind({key: move(value, device) for key, value in x.items()})
    return to_device(x, device)


class Share(NamedTuple):
    """The part of each batch for this process, if several train together.

    The samples are assigned to the processes in turn. Therefore the numbers of samples
    per process differ by at most one, in total and in each batch.

    Parameters
    ----------
    n : int
        Number of samples of all processes.
    rank, size : int
        Rank of this process, and number of processes.
    mean_weight : float or None
        Mean weight of the samples of all processes; None is the mean weight of the
        samples of this process.
    """

    n: int
    rank: int = 0
    size: int = 1
    mean_weight: float | None = None

    def totals(self, batch_size: int) -> list[int]:
        """Return the sizes of the batches, summed over all processes.

        A last batch with fewer than two samples per process is merged into the previous
        one, as batch normalisation has no variance for a single sample.
        """
        whole, rest = divmod(self.n, batch_size)
        sizes = [batch_size] * whole + [rest] * (rest > 0)
        if len(sizes) > 1 and sizes[-1] < 2 * self.size:
            sizes[-2:] = [sizes[-2] + sizes[-1]]
        return sizes

    def sizes(self, batch_size: int) -> list[int]:
        """Return the sizes of this process's parts of the batches, if not empty."""
        ends = np.cumsum([0, *self.totals(batch_size)])
        dealt = (ends - self.rank + self.size - 1) // self.size
        return [size for size in np.diff(dealt).tolist() if size]


class ResidentBatches:
    """Batches gathered from tensors on the device.

    Inputs are gathered once per epoch, or once per batch if a second copy of them would
    take too much memory. This replaces a fetch and a collation per sample.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...) or SparseRows, or a dict or list of these
    y : Tensor of shape (n_samples,)
        Class indices.
    weight : Tensor of shape (n_samples,) or None
    rows : Tensor of int
        Rows of the samples to use.
    batch_size : int
        Batch size, summed over all processes.
    shuffle : bool
        Whether to draw a new order for each epoch, from torch's generator of the
        device. An epoch with a single batch keeps its order.
    share : Share, optional
        The part of each batch for this process; by default the whole batch.
    mapped : MappedRows, optional
        The rows of `x` in a memory-mapped file, to be read ahead.

    Attributes
    ----------
    totals : list of int
        Sizes of the batches, including the parts of other processes.
    sizes : list of int
        Sizes of the parts of this process.
    transform : callable or None
        Function that is applied to gathered inputs. It is called with inputs and their
        rows, in a few large parts if all inputs are gathered at once.
    """

    is_resident = True
    # Most bytes of a second copy of the inputs.
    COPY = COPY
    # Number of batches of a file that are read ahead.
    AHEAD = 2
    # Numbers that are transformed at once. Several arrays of this size are in memory.
    PART = 2**25

    def __init__(
        self,
        x,
        y,
        weight,
        rows,
        batch_size: int,
        *,
        shuffle: bool,
        share: Share | None = None,
        mapped: MappedRows | None = None,
    ):
        share = Share(len(rows)) if share is None else share
        self.x = x
        self.mapped = mapped
        self.y = y
        self.weight = weight
        self.rows = rows
        self.batch_size = batch_size
        self.totals = share.totals(batch_size)
        self.sizes = share.sizes(batch_size)
        self.shuffle = shuffle and len(self.sizes) > 1
        self.transform: Callable[[Tensor, Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.draw(), self.sizes)

    @property
    def is_copied(self) -> bool:
        """Whether all inputs are copied in each epoch, as they are small enough."""
        return dense_bytes(self.x) <= self.COPY

    @property
    def whole(self) -> int:
        """Number of batches of full size."""
        return self.sizes.count(self.batch_size)

    def draw(self) -> Tensor:
        """Return the rows in the order of an epoch."""
        if not self.shuffle:
            return self.rows
        drawn = torch.randperm(len(self.rows), device=self.rows.device)
        return self.rows.index_select(0, drawn)

    def batches(self, order: Tensor, sizes: list[int]) -> Iterator[Batch]:
        """Yield batches of these sizes from the rows in the given order."""
        rows = order.split(sizes)
        copied = self.is_copied
        x = split(self.inputs(order), sizes) if copied else self._gathered(rows)
        y = self.y.index_select(0, order).split(sizes)
        weight = repeat(None)
        if self.weight is not None:
            weight = self.weight.index_select(0, order).split(sizes)
        yield from map(Batch, x, y, rows, weight, repeat(True))

    def _gathered(self, rows: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Gather batch by batch, while the next batches are read from the file."""
        mapped = self.mapped
        if mapped is not None:
            for index in rows[: self.AHEAD]:
                mapped.read_ahead(index)
        for i, index in enumerate(rows):
            if mapped is not None and i + self.AHEAD < len(rows):
                mapped.read_ahead(rows[i + self.AHEAD])
            yield self.inputs(index)

    def inputs(self, rows: Tensor) -> Any:
        """Gather inputs, and transform them."""
        x = take(self.x, rows)
        if self.transform is None:
            return x
        size = max(self.batch_size, self.PART // max(1, x[0].numel()))
        parts = zip(x.split(size), rows.split(size), strict=True)
        return torch.cat([self.transform(*part) for part in parts])


class EpochInPlace:
    """The order of an epoch over resident batches, always in the same memory.

    Parameters
    ----------
    batches : ResidentBatches

    Attributes
    ----------
    size, n : int
        Size of a full batch, and the number of full batches.
    device : torch.device
    is_weighted : bool
    """

    def __init__(self, batches: ResidentBatches):
        self._batches = batches
        self._order = torch.empty_like(batches.rows)
        self._inputs: Tensor | None = None  # only if a transform is set
        self.device = batches.rows.device
        self.is_weighted = batches.weight is not None
        self.size = batches.batch_size
        self.n = batches.whole

    def draw(self) -> None:
        """Draw the order of the next epoch, and transform its inputs."""
        order = self._batches.draw()
        self._order.copy_(order)
        if self._batches.transform is None:
            return
        inputs = self._batches.inputs(order)
        if self._inputs is None:
            self._inputs = inputs
        else:
            self._inputs.copy_(inputs)

    def at(self, places: Tensor) -> Batch:
        """Return the batch of the samples at these positions of the order.

        Parameters
        ----------
        places : Tensor of int of shape (n,)
        """
        batches = self._batches
        rows = self._order.index_select(0, places)
        if self._inputs is None:
            x = take(batches.x, rows)
        else:
            x = self._inputs.index_select(0, places)
        y = batches.y.index_select(0, rows)
        weight = batches.weight
        if weight is not None:
            weight = weight.index_select(0, rows)
        return Batch(x, y, rows, weight, unique=True)

    def rest(self) -> Iterator[Batch]:
        """Yield the batches after the full ones."""
        places = torch.arange(self.size * self.n, len(self._order), device=self.device)
        sizes = self._batches.sizes[self.n :]
        for part in places.split(sizes) if sizes else ():
            yield self.at(part)


class IndexedDataset(Dataset):
    """A Dataset that returns each item together with its class index and row.

    Parameters
    ----------
    dataset : Dataset
        Returns pairs (x, y), or other items that :mod:`skbsd._items` supports.
    codes : ndarray of shape (n_samples,)
        Class index of each item, which replaces its y.
    rows : ndarray of int, optional
        Rows of the items to use; by default all items.
    """

    def __init__(self, dataset, codes: np.ndarray, rows: np.ndarray | None = None):
        self.dataset = dataset
        self.codes = codes
        self.rows = np.arange(len(dataset)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i):
        row = int(self.rows[i])
        item = self.dataset[row]
        return item, int(self.codes[row]), row

    def __getitems__(self, batch: list[int]):
        rows = self.rows[batch].tolist()
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(rows) if fetch else None
        # Some Datasets return a collated batch here, which cannot be indexed by item.
        if type(items) is not list or len(items) != len(rows):
            return [self[i] for i in batch]
        return [
            (item, int(self.codes[row]), row)
            for item, row in zip(items, rows, strict=True)
        ]


class IndexedTensor(Dataset):
    """Like :class:`IndexedDataset`, for arrays that a loader fetches by whole batches.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...) or SparseRows, or a dict or list of these
    codes : ndarray of shape (n_samples,)
    rows : ndarray of int
        Rows of the samples to use.
    mapped : MappedRows, optional
        The rows of `x` in a memory-mapped file, to be read ahead.
    """

    def __init__(
        self,
        x: Any,
        codes: np.ndarray,
        rows: np.ndarray,
        mapped: MappedRows | None = None,
    ):
        self.x = x
        self.mapped = mapped
        self.codes = torch.from_numpy(codes)
        self.rows = torch.from_numpy(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, batch: list[int]):
        # A loader fetches a whole batch from a Dataset with this method, so that
        # nothing remains to be collated.
        rows = self.rows[batch]
        if self.mapped is not None:
            self.mapped.read_ahead(rows)
        return self._inputs(rows), self.codes[rows], rows

    def __getstate__(self):
        # A worker that is not forked receives a copy in memory, which is not mapped.
        return {**vars(self), "mapped": None}

    def _inputs(self, rows: Tensor) -> Any:
        """Gather inputs; in a worker of a loader, into shared memory as torch does.

        Otherwise torch would copy them to shared memory, and the freed memory would be
        fragmented.
        """
        if get_worker_info() is None:
            return take(self.x, rows)
        return map_leaves(lambda leaf: _take_shared(leaf, rows), self.x)


def _take_shared(x: Any, rows: Tensor) -> Tensor:
    """Gather rows of a Tensor, or of SparseRows, in shared memory."""
    if not isinstance(x, Tensor):
        return x.index_select(0, rows).share_memory_()
    shape = len(rows), *x.shape[1:]
    size = math.prod(shape) * x.element_size()
    storage = torch.UntypedStorage._new_shared(size, device="cpu")
    out = torch.empty(0, dtype=x.dtype).set_(storage).view(shape)
    return torch.index_select(x, 0, rows, out=out)


class RowsOf(Dataset):
    """Inputs as a Dataset of items (x,), for a custom loader or `collate_fn`.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...) or SparseRows, or a dict or list of these
    """

    def __init__(self, x: Any):
        self.x = x

    def __len__(self) -> int:
        return n_samples(self.x)

    def __getitem__(self, i: int):
        return (map_leaves(lambda leaf: leaf[0], take(self.x, torch.tensor([i]))),)


class IndexedCollate:
    """Collate (item, class index, row) with the `collate_fn` of the user.

    Parameters
    ----------
    collate : callable
        Maps a list of items, with class indices in place of their labels, to batches of
        the same parts.
    """

    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, items):
        """Return x, y and rows as batches.

        Parameters
        ----------
        items : list of (item, class index, row)
        """
        codes = default_collate([code for _, code, _ in items])
        rows = default_collate([row for *_, row in items])
        if self.collate is default_collate:
            return _collated([inputs_of(item) for item, *_ in items]), codes, rows
        out = self.collate([relabelled(item, code) for item, code, _ in items])
        x, y = inputs_of(out), label_of(out) if has_label(out) else None
        if not (isinstance(y, Tensor) and torch.equal(y, codes)):
            raise ValueError(
                f"collate_fn changed the class indices {codes.tolist()} to {y!r}; "
                "expected them unchanged, as a Tensor. The targets are computed from "
                "the posteriors of the samples, so collate_fn cannot mix the inputs of "
                "several samples."
            )
        return x, codes, rows


class PredictionCollate:
    """Collate the inputs of items for predictions, which need no labels.

    Parameters
    ----------
    collate : callable
        The `collate_fn` of the user, or torch's default. The user's function receives
        unchanged items, but dicts without their label.
    n_inputs : int or None
        Number of entries of a tuple that are inputs.
    """

    def __init__(self, collate: Callable, n_inputs: int | None):
        self.collate = collate
        self.n_inputs = n_inputs

    def __call__(self, items):
        """Return a batch of inputs.

        Parameters
        ----------
        items : list
        """
        if self.collate is default_collate:
            return _collated([inputs_of(item, self.n_inputs) for item in items])
        if isinstance(items[0], Mapping):
            items = [inputs_of(item) for item in items]
        return inputs_of(self.collate(items), self.n_inputs)


def _collated(samples: list) -> Any:
    """Collate as torch does, with a clear error if samples differ in shape."""
    try:
        return default_collate(samples)
    except RuntimeError as error:
        for (which, *_), *parts in zip(
            named_leaves(samples[0], "x"), *map(leaves, samples), strict=True
        ):
            found = sorted({tuple(getattr(part, "shape", ())) for part in parts})
            if len(found) > 1:
                raise ValueError(
                    f"the items of the Dataset differ in shape and cannot be batched: "
                    f"{which} has the shapes {found[0]} and {found[1]}. Resize or pad "
                    "them in the Dataset, or pass iterator_train__collate_fn and "
                    "iterator_valid__collate_fn that pad the items of a batch."
                ) from error
        raise


class WholeBatches(Sampler):
    """Sampler of batches with the same sizes as in :class:`ResidentBatches`.

    Parameters
    ----------
    n : int
        Number of items.
    batch_size : int
        Batch size, summed over all processes.
    shuffle : bool
    share : Share, optional
        The part of each batch for this process; by default the whole batch.
    """

    def __init__(
        self, n: int, batch_size: int, *, shuffle: bool, share: Share | None = None
    ):
        share = Share(n) if share is None else share
        self.n = n
        self.totals = share.totals(batch_size)
        self.sizes = share.sizes(batch_size)
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.n) if self.shuffle else torch.arange(self.n)
        for batch in order.split(self.sizes):
            yield batch.tolist()


class LoaderBatches:
    """Batches from a DataLoader over an :class:`IndexedDataset`.

    Parameters
    ----------
    loader : DataLoader
    weight : Tensor of shape (n_samples,) or None
    device : torch.device
        Device of the batches.
    n_rows : int
        Number of rows of X.
    unique : bool
        Whether a batch is known to contain no sample twice.
    totals : list of int, optional
        Sizes of the batches including the parts of other processes, if they are known.
    """

    is_resident = False

    def __init__(
        self,
        loader,
        weight,
        device: torch.device,
        n_rows: int,
        *,
        unique: bool,
        totals: list[int] | None = None,
    ):
        self.loader = loader
        self.totals = totals
        self.weight = weight
        self.device = device
        self.n_rows = n_rows
        self.unique = unique

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for x, y, index in self.loader:
            if not self.unique:
                check_rows(index, self.n_rows)  # on the CPU, without synchronisation
            index = move(index, self.device)
            yield Batch(
                move(x, self.device),
                move(y, self.device),
                index,
                None if self.weight is None else self.weight.index_select(0, index),
                unique=True,
            )


Batches = ResidentBatches | LoaderBatches


def channel_statistics(images: Tensor, rows: np.ndarray, weight: np.ndarray | None):
    """Compute mean and standard deviation of each channel of uint8 images.

    Parameters
    ----------
    images : Tensor of shape (n_samples, channels, height, width)
    rows : ndarray of int
        Rows of the images to use.
    weight : ndarray of shape (n_samples,) or None

    Returns
    -------
    mean, std : ndarray of shape (channels,)
        The standard deviation of a constant channel is set to 1, so that it can be a
        divisor.
    """
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    total = 0.0
    size = max(1, min(1024, PART // max(1, images[0].numel())))
    for chunk in torch.from_numpy(rows).split(size):
        x = images[chunk.to(images.device)].flatten(2).int()
        # Sums of integers are exact. The conversion to double precision takes place on
        # the CPU, as some devices do not support it.
        moments = torch.stack([x.sum(dim=2), x.square().sum(dim=2)]).cpu().double()
        w = torch.ones(len(x)) if weight is None else torch.from_numpy(weight)[chunk]
        w = w.double()
        sums += torch.einsum("n,mnc->mc", w, moments)
        total += w.sum().item() * x.shape[2]
    mean = sums[0] / total
    std = (sums[1] / total - mean.square()).clamp(min=0).sqrt()
    return mean.numpy(), torch.where(std > 0, std, 1.0).numpy()
