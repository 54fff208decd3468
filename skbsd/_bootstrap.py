"""Bootstrap confidence intervals."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state


def bootstrap(
    statistic: Callable[[NDArray], object],
    weight: NDArray,
    *,
    n_resamples: int = 200,
    confidence_level: float = 0.95,
    random_state=None,
) -> NDArray[np.float64]:
    """Return the basic bootstrap interval of a statistic of weighted samples.

    A resample multiplies each sample's weight by the number of times it was drawn.

    Parameters
    ----------
    statistic : callable
        Takes weights of shape (n_samples,), and returns a number or an array. Values
        that are NaN, because the statistic is undefined, are ignored.
    weight : ndarray of shape (n_samples,)
        The samples' own weights.
    n_resamples : int, default=200
    confidence_level : float, default=0.95
        In (0, 1).
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    ndarray of shape (2, ...)
        Lower and upper limits, each in the shape of the statistic. NaN if the statistic
        is undefined for all resamples.

    Notes
    -----
    The limits of the basic interval are 2 t - q, for the statistic t of the samples and
    quantiles q of the resamples' statistics. This corrects their bias: the calibration
    error of a resample is larger than that of the sample, just as the latter is larger
    than the classifier's.

    References
    ----------
    A. C. Davison, D. V. Hinkley, "Bootstrap Methods and their Application", 1997,
    equation 2.10.
    """
    rng = check_random_state(random_state)
    n = len(weight)
    found = np.array(statistic(weight), dtype=float)
    resampled = np.array(
        [
            statistic(weight * np.bincount(rng.randint(n, size=n), minlength=n))
            for _ in range(n_resamples)
        ],
        dtype=float,
    )
    # Replaced by 0 below, because `nanquantile` warns if all values are NaN.
    unknown = np.isnan(resampled).all(axis=0)
    tails = [(1 + confidence_level) / 2, (1 - confidence_level) / 2]
    quantiles = np.nanquantile(np.where(unknown, 0, resampled), tails, axis=0)
    return np.where(unknown, np.nan, 2 * found - quantiles)
