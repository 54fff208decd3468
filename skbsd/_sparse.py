"""Sparse matrices on a device, of which batches are made dense."""

from collections.abc import Callable

import torch
from scipy import sparse
from torch import Tensor

from ._large import shared


class SparseRows:
    """The rows of a sparse matrix, to be gathered as dense ones.

    Parameters
    ----------
    starts : Tensor of int of shape (n_samples + 1,)
        Where the numbers of each row begin.
    columns : Tensor of int of shape (n_numbers,)
    values : Tensor of shape (n_numbers,)
        At most one for each row and column.
    n_columns : int

    Examples
    --------
    >>> import torch
    >>> from scipy import sparse
    >>> from skbsd._sparse import SparseRows
    >>> rows = SparseRows.of(sparse.eye_array(3, format="csr"))
    >>> rows.index_select(0, torch.tensor([2, 0]))
    tensor([[0., 0., 1.],
            [1., 0., 0.]], dtype=torch.float64)
    """

    def __init__(self, starts: Tensor, columns: Tensor, values: Tensor, n_columns: int):
        self._starts = starts
        self._columns = columns
        self._values = values
        self.shape = (len(starts) - 1, n_columns)

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> "SparseRows":
        """Share the memory of a matrix.

        Parameters
        ----------
        matrix : sparse matrix or array of shape (n_samples, n_columns)
            In CSR format, without duplicates.
        """
        starts, columns, values = map(
            shared, (matrix.indptr, matrix.indices, matrix.data)
        )
        return cls(starts, columns, values, matrix.shape[1])

    def with_values(self, function: Callable[[Tensor], Tensor]) -> "SparseRows":
        """Return the same of other numbers.

        Parameters
        ----------
        function : callable
            From the numbers to others, in their order.
        """
        values = function(self._values)
        return SparseRows(self._starts, self._columns, values, self.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    ndim = 2

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers."""
        return self._values.dtype

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self._values.device

    @property
    def nbytes(self) -> int:
        """How much memory they take."""
        parts = self._starts, self._columns, self._values
        return sum(part.nbytes for part in parts)

    def to(self, device: torch.device) -> "SparseRows":
        """Return the same on a device.

        Parameters
        ----------
        device : torch.device
        """
        return SparseRows(
            self._starts.to(device),
            self._columns.to(device),
            self._values.to(device),
            self.shape[1],
        )

    def cpu(self) -> "SparseRows":
        """Return the same on the CPU."""
        return self.to(torch.device("cpu"))

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Return some rows as a dense matrix.

        Parameters
        ----------
        dim : int
            0, as of a Tensor's method of this name.
        rows : Tensor of int of shape (n,)

        Returns
        -------
        Tensor of shape (n, n_columns)
        """
        assert dim == 0
        begins = self._starts[rows].long()
        lengths = self._starts[rows + 1].long() - begins
        row = torch.repeat_interleave(lengths)
        # The numbers of a row follow each other, here and there.
        shift = begins - (lengths.cumsum(0) - lengths)
        place = torch.arange(len(row), device=self.device) + shift[row]
        out = self._values.new_zeros(len(rows), self.shape[1])
        out[row, self._columns[place].long()] = self._values[place]
        return out


def as_csr(X: Tensor) -> sparse.csr_array:
    """Return a sparse tensor as SciPy's.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_columns)
        Of any sparse layout.
    """
    found = X.detach().cpu().to_sparse_coo().coalesce()
    row, column = found.indices().numpy()
    values = found.values().numpy()
    return sparse.coo_array((values, (row, column)), shape=tuple(X.shape)).tocsr()
