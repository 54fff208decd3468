"""Initialises those weights of a network that depend on the training data."""

import math
from typing import Any

import numpy as np
import torch

from ._loading import TrainingData, part_of, prediction_batches

# Largest number of samples for the initialisation, and of values in these samples.
_SAMPLES = 5_000
_VALUES = 2**25


def initialize_from_data(
    net: Any, data: TrainingData, rows: np.ndarray, device: torch.device
) -> None:
    """Pass training samples to a new network's method `initialize_from`, if it exists.

    The samples are evenly spaced in the rows, which may be sorted by class. They are
    prepared as for prediction, without randomness. If the items of a Dataset draw from
    torch's generators, the states are restored afterwards.

    Parameters
    ----------
    net : BSDClassifier
        With an initialised network.
    data : TrainingData
        On the device, or too large for it.
    rows : ndarray of int
        Training rows.
    device : torch.device
        Device of the network.
    """
    initialize = getattr(net.module_, "initialize_from", None)
    if initialize is None or net._copies_module():
        return
    size = math.prod(net._preparation.shape or ())
    n = max(1, min(len(rows), _SAMPLES, _VALUES // max(1, size)))
    rows = rows[np.arange(n) * len(rows) // n]
    if data.mapped is not None:
        data.mapped.read_ahead(rows)
    part = part_of(data.X, rows)
    loader = net._loader("iterator_valid")
    options = {k: v for k, v in loader.options.items() if k != "batch_size"}
    loader = loader._replace(batch_size=n, options=options)
    dtype = net._preparation.float_dtype
    with net._generators.copy().borrowed(device), torch.no_grad():
        x = next(prediction_batches(part, loader, device, dtype))
        x = net._preparation(x, caller=type(net).__name__, image_shape=net.image_shape)
        initialize(x)
