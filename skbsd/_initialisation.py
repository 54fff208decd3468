"""Weights that follow from the data, where a network has such."""

import math
from typing import Any

import numpy as np
import torch

from ._loading import TrainingData, part_of, prediction_batches

# Samples that a network is shown, and numbers that these may be at most.
_SAMPLES = 5_000
_VALUES = 2**25


def initialize_from_data(
    net: Any, data: TrainingData, rows: np.ndarray, device: torch.device
) -> None:
    """Show training samples to a new network with a method `initialize_from`.

    They are spread evenly over the rows, which may be sorted by class, and prepared as
    for a prediction: nothing is drawn at random. What items of a Dataset draw from
    torch's generators is as if they had not.

    Parameters
    ----------
    net : BSDClassifier
        With its network.
    data : TrainingData
        On the device, or too large for it.
    rows : ndarray of int
        What is trained on.
    device : torch.device
        Of the network.
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
