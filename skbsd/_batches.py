"""Batches that know which training samples they hold."""

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
    x : Tensor of shape (n, ...), or a dict or list of such
        Inputs.
    y : Tensor of shape (n,)
        Class indices.
    rows : Tensor of shape (n,)
        Rows of X that the samples are.
    weight : Tensor of shape (n,) or None
        Sample weights.
    unique : bool
        Whether `rows` are known to differ.

    Examples
    --------
    One made by hand, to try an objective's loss on:

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
    """Copy a batch to a device, without waiting where CUDA can: of pinned memory.

    A copy that waits for nothing may read memory after it was freed and used anew;
    CUDA's allocator keeps pinned memory until it was read, others do not.

    Parameters
    ----------
    x : Tensor, or whatever holds tensors that :func:`skorch.utils.to_device` knows
    device : torch.device
    """
    if isinstance(x, Tensor):
        if x.device == device:
            return x
        return x.to(device, non_blocking=device.type == "cuda" and x.is_pinned())
    if isinstance(x, Mapping):
        kind: Any = type(x)  # which may be a tokenizer's own
        return kind({key: move(value, device) for key, value in x.items()})
    return to_device(x, device)


class Share(NamedTuple):
    """The part of each batch that is this process's, where several train together.

    The samples are dealt out in turn, as cards are: of the batches, too, each process
    has as many as the others, or one more.

    Parameters
    ----------
    n : int
        Number of samples of all processes.
    rank, size : int
        Number of this process, and how many there are.
    mean_weight : float or None
        Of the samples of all processes; None is that of the samples at hand.
    """

    n: int
    rank: int = 0
    size: int = 1
    mean_weight: float | None = None

    def totals(self, batch_size: int) -> list[int]:
        """Return the sizes of the batches, all processes together.

        Samples that would be left in the last batch, fewer than two per process, join
        the batch before: batch normalisation has no variance for a single one.
        """
        whole, rest = divmod(self.n, batch_size)
        sizes = [batch_size] * whole + [rest] * (rest > 0)
        if len(sizes) > 1 and sizes[-1] < 2 * self.size:
            sizes[-2:] = [sizes[-2] + sizes[-1]]
        return sizes

    def sizes(self, batch_size: int) -> list[int]:
        """Return the sizes of this process's parts of the batches that it has."""
        ends = np.cumsum([0, *self.totals(batch_size)])
        dealt = (ends - self.rank + self.size - 1) // self.size
        return [size for size in np.diff(dealt).tolist() if size]


class ResidentBatches:
    """Batches gathered from tensors that are where they are needed.

    One gather per epoch, or per batch where a second copy of the inputs would take too
    much memory, instead of a fetch and a collation per sample.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...) or SparseRows, or a dict or list of such
    y : Tensor of shape (n_samples,)
        Class indices.
    weight : Tensor of shape (n_samples,) or None
    rows : Tensor of int
        Which rows take part.
    batch_size : int
        Of all processes together.
    shuffle : bool
        Draw a new order for each pass, from torch's generator of the device. A pass
        of one batch keeps its order.
    share : Share, optional
        Which part of each batch these rows are; by default the whole.
    mapped : MappedRows, optional
        The rows of `x` in a file, to be read ahead.

    Attributes
    ----------
    totals : list of int
        Sizes of the batches, with the parts of other processes.
    sizes : list of int
        Without them.
    transform : callable or None
        What is done to inputs that were gathered: called with some of them, and with
        their rows. Where all are gathered at once, in a few large parts.
    """

    is_resident = True
    # Bytes that a second copy of the inputs may take.
    COPY = COPY
    # Batches that are read ahead of a file.
    AHEAD = 2
    # Numbers that are transformed at once: a few arrays of as many are in use.
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
        """Whether there is room for all inputs once more."""
        return dense_bytes(self.x) <= self.COPY

    @property
    def whole(self) -> int:
        """How many batches are of full size."""
        return self.sizes.count(self.batch_size)

    def draw(self) -> Tensor:
        """Return the rows in the order of a pass."""
        if not self.shuffle:
            return self.rows
        drawn = torch.randperm(len(self.rows), device=self.rows.device)
        return self.rows.index_select(0, drawn)

    def batches(self, order: Tensor, sizes: list[int]) -> Iterator[Batch]:
        """Yield batches of these sizes, of the rows in an order."""
        rows = order.split(sizes)
        copied = self.is_copied
        x = split(self.inputs(order), sizes) if copied else self._gathered(rows)
        y = self.y.index_select(0, order).split(sizes)
        weight = repeat(None)
        if self.weight is not None:
            weight = self.weight.index_select(0, order).split(sizes)
        yield from map(Batch, x, y, rows, weight, repeat(True))

    def _gathered(self, rows: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Gather batch by batch; have those that follow be read meanwhile."""
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
    """The order of a pass over resident batches, always in the same memory.

    Parameters
    ----------
    batches : ResidentBatches

    Attributes
    ----------
    size, n : int
        Size of a whole batch, and how many there are.
    device : torch.device
    is_weighted : bool
    """

    def __init__(self, batches: ResidentBatches):
        self._batches = batches
        self._order = torch.empty_like(batches.rows)
        self._inputs: Tensor | None = None  # where they are transformed
        self.device = batches.rows.device
        self.is_weighted = batches.weight is not None
        self.size = batches.batch_size
        self.n = batches.whole

    def draw(self) -> None:
        """Draw the order of the next pass, and transform its inputs."""
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
        """Return the batch of the samples at some places of the order.

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
        """Yield the batches after the whole ones."""
        places = torch.arange(self.size * self.n, len(self._order), device=self.device)
        sizes = self._batches.sizes[self.n :]
        for part in places.split(sizes) if sizes else ():
            yield self.at(part)


class IndexedDataset(Dataset):
    """A Dataset whose items come with their class index and row.

    Parameters
    ----------
    dataset : Dataset
        Returns pairs (x, y), or what else :mod:`skbsd._items` knows.
    codes : ndarray of shape (n_samples,)
        Class index of each item, in place of its y.
    rows : ndarray of int, optional
        Which items take part; by default all.
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
        # Some return what is collated already, which this is not the place for.
        if type(items) is not list or len(items) != len(rows):
            return [self[i] for i in batch]
        return [
            (item, int(self.codes[row]), row)
            for item, row in zip(items, rows, strict=True)
        ]


class IndexedTensor(Dataset):
    """Inputs too large for the device, as :class:`IndexedDataset`, batch by batch.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...) or SparseRows, or a dict or list of such
    codes : ndarray of shape (n_samples,)
    rows : ndarray of int
        Which rows take part.
    mapped : MappedRows, optional
        The rows of `x` in a file, to be read ahead.
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
        # A loader fetches a batch at once from a Dataset with this method; there is
        # nothing left to collate.
        rows = self.rows[batch]
        if self.mapped is not None:
            self.mapped.read_ahead(rows)
        return self._inputs(rows), self.codes[rows], rows

    def __getstate__(self):
        # A process that is not forked has a copy in memory instead of a mapping.
        return {**vars(self), "mapped": None}

    def _inputs(self, rows: Tensor) -> Any:
        """Gather inputs; in a loader's process in shared memory, as torch collates.

        They are moved there otherwise, and what they leave behind stays in pieces.
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
    """Inputs as a Dataset of items (x,), for a loader with ways of its own.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...) or SparseRows, or a dict or list of such
    """

    def __init__(self, x: Any):
        self.x = x

    def __len__(self) -> int:
        return n_samples(self.x)

    def __getitem__(self, i: int):
        return (map_leaves(lambda leaf: leaf[0], take(self.x, torch.tensor([i]))),)


class IndexedCollate:
    """Collate (item, class index, row) with a user's function for items.

    Parameters
    ----------
    collate : callable
        From a list of items, with class indices in the place of their labels, to the
        batches of the same parts.
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
                f"collate_fn turned the class indices {codes.tolist()} into {y!r}; "
                "expected them unchanged, as a Tensor. Targets come from the samples' "
                "posteriors, so inputs of several samples cannot be mixed here."
            )
        return x, codes, rows


class PredictionCollate:
    """Collate the inputs of items, whose labels do not matter in predictions.

    Parameters
    ----------
    collate : callable
        The user's, for items as they are but for dicts, which come without their label;
        or torch's own.
    n_inputs : int or None
        How many entries of a tuple are inputs.
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
    """Collate as torch does, and say so where samples differ in their shapes."""
    try:
        return default_collate(samples)
    except RuntimeError as error:
        for (which, *_), *parts in zip(
            named_leaves(samples[0], "x"), *map(leaves, samples), strict=True
        ):
            found = sorted({tuple(getattr(part, "shape", ())) for part in parts})
            if len(found) > 1:
                raise ValueError(
                    f"the Dataset's items differ in shape, so that they make no batch: "
                    f"{which} has the shapes {found[0]} and {found[1]}. Resize or pad "
                    "them in the Dataset, or pass iterator_train__collate_fn and "
                    "iterator_valid__collate_fn that pad the items of a batch."
                ) from error
        raise


class WholeBatches(Sampler):
    """Batches of a Dataset's items, of the sizes that :class:`ResidentBatches` has.

    Parameters
    ----------
    n : int
        Number of items.
    batch_size : int
        Of all processes together.
    shuffle : bool
    share : Share, optional
        Which part of each batch the items are; by default the whole.
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
        Where batches are wanted.
    n_rows : int
        Number of rows of X.
    unique : bool
        Whether a batch is known to hold no sample twice.
    totals : list of int, optional
        Sizes of the batches with the parts of other processes, where there are such.
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
                check_rows(index, self.n_rows)  # here, where nothing has to wait for it
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
    """Mean and standard deviation of each channel of uint8 images.

    Parameters
    ----------
    images : Tensor of shape (n_samples, channels, height, width)
    rows : ndarray of int
        Which images count.
    weight : ndarray of shape (n_samples,) or None

    Returns
    -------
    mean, std : ndarray of shape (channels,)
        A constant channel has standard deviation 1, to divide by.
    """
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    total = 0.0
    size = max(1, min(1024, PART // max(1, images[0].numel())))
    for chunk in torch.from_numpy(rows).split(size):
        x = images[chunk.to(images.device)].flatten(2).int()
        # Whole numbers are exact; double precision, which not every device has, comes
        # in on the CPU.
        moments = torch.stack([x.sum(dim=2), x.square().sum(dim=2)]).cpu().double()
        w = torch.ones(len(x)) if weight is None else torch.from_numpy(weight)[chunk]
        w = w.double()
        sums += torch.einsum("n,mnc->mc", w, moments)
        total += w.sum().item() * x.shape[2]
    mean = sums[0] / total
    std = (sums[1] / total - mean.square()).clamp(min=0).sqrt()
    return mean.numpy(), torch.where(std > 0, std, 1.0).numpy()
