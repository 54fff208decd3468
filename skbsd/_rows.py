"""Check of a batch's row numbers."""

from torch import Tensor


def check_rows(index: Tensor, n_rows: int) -> None:
    """Check that row numbers are valid and distinct.

    Parameters
    ----------
    index : Tensor of int of shape (n,)
        If it is on a GPU, the check synchronises with it.
    n_rows : int
        Number of rows in the store.

    Raises
    ------
    ValueError
        If a row number is out of range, or occurs more than once.
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
