"""Sparse matrices on a device, from which dense batches are gathered."""

from collections.abc import Callable

import torch
from scipy import sparse
from torch import Tensor

from ._large import shared


class SparseRows:
    """The rows of a sparse matrix, which can be gathered as dense rows.

    Parameters
    ----------
    starts : Tensor of int of shape (n_samples + 1,)
        Index of the first value of each row.
    columns : Tensor of int of shape (n_values,)
        Column of each value.
    values : Tensor of shape (n_values,)
        At most one value for each row and column.
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
        """Create an instance that shares the memory of a matrix.

        Parameters
        ----------
        matrix : sparse matrix or array of shape (n_samples, n_columns)
            Matrix in CSR format, without duplicates.
        """
        starts, columns, values = map(
            shared, (matrix.indptr, matrix.indices, matrix.data)
        )
        return cls(starts, columns, values, matrix.shape[1])

    def with_values(self, function: Callable[[Tensor], Tensor]) -> "SparseRows":
        """Return the same matrix with its values mapped by a function.

        Parameters
        ----------
        function : callable
            Maps the tensor of values to another one of the same shape.
        """
        values = function(self._values)
        return SparseRows(self._starts, self._columns, values, self.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    ndim = 2

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values."""
        return self._values.dtype

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self._values.device

    @property
    def nbytes(self) -> int:
        """The memory of all tensors in bytes."""
        parts = self._starts, self._columns, self._values
        return sum(part.nbytes for part in parts)

    def to(self, device: torch.device) -> "SparseRows":
        """Return the same matrix on a device.

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
        """Return the same matrix on the CPU."""
        return self.to(torch.device("cpu"))

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Return some rows as a dense matrix.

        Parameters
        ----------
        dim : int
            Must be 0; the signature is that of :meth:`torch.Tensor.index_select`.
        rows : Tensor of int of shape (n,)

        Returns
        -------
        Tensor of shape (n, n_columns)
        """
        assert dim == 0
        begins = self._starts[rows].long()
        lengths = self._starts[rows + 1].long() - begins
        row = torch.repeat_interleave(lengths)
        # The values of a row are consecutive in the source and in the selection.
        shift = begins - (lengths.cumsum(0) - lengths)
        place = torch.arange(len(row), device=self.device) + shift[row]
        out = self._values.new_zeros(len(rows), self.shape[1])
        out[row, self._columns[place].long()] = self._values[place]
        return out


def as_csr(X: Tensor) -> sparse.csr_array:
    """Convert a sparse tensor to SciPy's CSR format.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_columns)
        Tensor of any sparse layout.
    """
    found = X.detach().cpu().to_sparse_coo().coalesce()
    row, column = found.indices().numpy()
    values = found.values().numpy()
    return sparse.coo_array((values, (row, column)), shape=tuple(X.shape)).tocsr()
