"""The rows of a batch: which samples it holds."""

from torch import Tensor


def check_rows(index: Tensor, n_rows: int) -> None:
    """Raise for rows that are not there, or occur twice.

    Parameters
    ----------
    index : Tensor of int of shape (n,)
        Where it is on a GPU, this waits for it.
    n_rows : int
        How many rows there are.

    Raises
    ------
    ValueError
    """
    rows, counts = index.unique(return_counts=True)
    if len(rows) and not (rows[0] >= 0 and rows[-1] < n_rows):
        raise ValueError(
            f"rows must lie in [0, {n_rows}), got values from {rows[0].item()} "
            f"to {rows[-1].item()}."
        )
    if len(rows) < len(index):
        raise ValueError(
            f"row {rows[counts > 1][0].item()} occurs more than once in the batch. "
            "Each row may be updated once per step; draw batches without "
            "replacement."
        )
