"""Columns of the results of a search."""

import numpy as np
from numpy.typing import NDArray


def check_cv_results(cv_results) -> None:
    """Raise a TypeError if the search is passed in place of its results."""
    if hasattr(cv_results, "cv_results_"):
        raise TypeError(
            f"expected cv_results_, got the {type(cv_results).__name__} itself; "
            "pass search.cv_results_."
        )


def metrics(cv_results) -> list[str]:
    """Return the names of the metrics that a search was scored by."""
    prefix = "mean_test_"
    return [key.removeprefix(prefix) for key in cv_results if key.startswith(prefix)]


def n_splits(cv_results, metric: str) -> int:
    """Return the number of splits that a metric was computed on."""
    return sum(
        key.startswith("split") and key.endswith(f"_test_{metric}")
        for key in cv_results
    )


def column(cv_results, prefix: str, metric: str) -> NDArray[np.float64]:
    """Return the column of a metric, such as its means."""
    if f"{prefix}{metric}" not in cv_results:
        raise ValueError(
            f"the search has no metric {metric!r}; expected one of "
            f"{metrics(cv_results)}. Several are computed with "
            "scoring={'ece': ..., 'accuracy': ...}."
        )
    return np.asarray(cv_results[f"{prefix}{metric}"], dtype=float)
