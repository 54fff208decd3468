"""Checks of a Dataset, and its labels."""

from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from ._items import HuggingFaceItems, has_label, inputs_of, label_key, label_of
from ._structure import named_leaves

_TO_TENSOR = (
    "torchvision.transforms.ToTensor(), or v2.Compose([v2.ToImage(), "
    "v2.ToDtype(torch.float32, scale=True)]) of torchvision.transforms"
)


def check_dataset(dataset: Dataset, *, has_y: bool, collates: bool) -> Any:
    """Return the first item; raise if length, label or tensors are missing.

    Parameters
    ----------
    dataset : Dataset
    has_y : bool
        Whether labels were given separately.
    collates : bool
        Whether the user has set a `collate_fn`.
    """
    name = type(dataset).__name__
    if not isinstance(dataset, Sized):
        raise ValueError(
            f"the Dataset {name} has no length. BSD keeps a belief for each training "
            "sample, so it needs a map-style Dataset with __len__, and with "
            "__getitem__ that returns (x, y)."
        )
    if len(dataset) == 0:
        raise ValueError("the Dataset is empty; at least two samples are required.")
    item = dataset[0]
    if not has_y and not has_label(item):
        raise ValueError(
            f"the Dataset {name} must return pairs (x, y), longer tuples that end with "
            f"the label, or dicts with 'labels' or 'label', got {_describe(item)}. "
            "Alternatively, pass the labels as y."
        )
    if not collates:
        _check_inputs(inputs_of(item), name)
    return item


def _check_inputs(x: Any, name: str) -> None:
    """Raise for inputs that torch cannot collate into a batch."""
    for which, leaf in named_leaves(x, "x"):
        if type(leaf).__module__.partition(".")[0] == "PIL":
            raise TypeError(
                f"the Dataset {name} returns images of PIL ({which} is a "
                f"{type(leaf).__name__}), but a network requires tensors. Give it a "
                f"transform that converts images to tensors: {_TO_TENSOR}."
            )
        if leaf is None or isinstance(leaf, str | bytes):
            raise TypeError(
                f"the Dataset {name} returns {which} = {leaf!r}, but a network "
                "requires numbers. Remove such entries (remove_columns of a Hugging "
                "Face Dataset), encode them, or pass a collate_fn that encodes them."
            )


def _describe(item: Any) -> str:
    kind = type(item).__name__
    if isinstance(item, Mapping):
        return f"{kind} of {list(item)}"
    return f"{kind} of {len(item)}" if isinstance(item, tuple | list) else kind


def dataset_labels(dataset: Dataset) -> np.ndarray:
    """Return the label of every sample, without loading inputs if possible.

    The labels of torchvision's ImageFolder and DatasetFolder are names of folders.

    Parameters
    ----------
    dataset : Dataset
    """
    # Exact types only, as a subclass may return other labels than it stores.
    if type(dataset) is TensorDataset:
        return as_numpy(dataset.tensors[-1])
    if type(dataset) is Subset:
        return dataset_labels(dataset.dataset)[np.asarray(dataset.indices)]
    if type(dataset) is ConcatDataset:
        return np.concatenate([dataset_labels(part) for part in dataset.datasets])
    if isinstance(dataset, HuggingFaceItems):
        key = label_key(dataset[0])
        assert key is not None
        return np.asarray(dataset.column(key))
    of_torchvision = type(dataset).__module__.startswith("torchvision.datasets.")
    targets = getattr(dataset, "targets", None) if of_torchvision else None
    if targets is not None and getattr(dataset, "target_transform", None) is None:
        targets = as_numpy(targets)
        if targets.shape == (len(dataset),):  # type: ignore[arg-type]
            names = folder_names(dataset)
            return targets if names is None else names[targets]
    labels = [label_of(dataset[i]) for i in range(len(dataset))]  # type: ignore[arg-type]
    is_tensor = [isinstance(label, torch.Tensor) for label in labels]
    return np.asarray(list(map(as_numpy, labels)) if all(is_tensor) else labels)


def folder_names(dataset: Any) -> np.ndarray | None:
    """Return the class names of a folder Dataset, in the order of its indices.

    Other Datasets have none: the labels that they return are used unchanged.

    Parameters
    ----------
    dataset : Dataset
    """
    if type(dataset) is Subset:
        return folder_names(dataset.dataset)
    is_folder = type(dataset).__module__ == "torchvision.datasets.folder"
    if not is_folder or getattr(dataset, "target_transform", None) is not None:
        return None
    return np.asarray(dataset.classes)


def true_labels(dataset: Any, y: Any, classes: np.ndarray) -> np.ndarray:
    """Return labels to compare with predictions.

    Parameters
    ----------
    dataset : Dataset
    y : array-like or None
        Separately given labels. For a folder Dataset, they may be class indices, or
        class names if the model was fitted on indices.
    classes : ndarray
        Classes of the model. Labels are converted to the kind of these.

    Raises
    ------
    ValueError
        Without labels, and for indices that do not belong to a folder.
    """
    if y is None:
        check_dataset(dataset, has_y=False, collates=True)
        y = dataset_labels(dataset)
    y, names = as_numpy(y), folder_names(dataset)
    if names is None or (y.dtype.kind in "iu") == (classes.dtype.kind in "iu"):
        return y
    if y.dtype.kind not in "iu":  # the model was fitted on indices
        indices = {name: i for i, name in enumerate(names.tolist())}
        return np.asarray([indices.get(name, name) for name in y.tolist()])
    if len(y) and not 0 <= y.min() <= y.max() < len(names):
        raise ValueError(
            f"y holds integers from {y.min()} to {y.max()}; expected indices of the "
            f"{len(names)} folders, from 0 to {len(names) - 1}, or their names."
        )
    return names[y]


def as_numpy(values: Any) -> np.ndarray:
    """Return labels or weights as an array.

    Parameters
    ----------
    values : Tensor or array-like
    """
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)
