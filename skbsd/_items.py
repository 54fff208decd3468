"""The items of a Dataset, separated into inputs and label."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

# Keys of the label in an item, as in Hugging Face's libraries.
LABELS = ("labels", "label")


class HuggingFaceItems(Dataset):
    """A Hugging Face Dataset as a torch Dataset, whose items contain tensors.

    Parameters
    ----------
    rows : datasets.Dataset
        A Dataset without a format is set to the format of torch.

    Attributes
    ----------
    fingerprint : str
        Fingerprint of the contents, as computed by that library.
    """

    def __init__(self, rows: Any):
        self.rows = rows if rows.format["type"] else rows.with_format("torch")
        self.fingerprint = rows._fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]

    def __getitems__(self, rows: list[int]) -> Any:
        return self.rows.__getitems__(rows)

    def column(self, name: str) -> Any:
        """Return one entry of each item, as an array over all items.

        Parameters
        ----------
        name : str
        """
        return self.rows.with_format("numpy")[name][:]


def as_dataset(X: Any) -> Any:
    """Return X; a Hugging Face Dataset is converted to a torch Dataset.

    Parameters
    ----------
    X : object
    """
    known = hasattr(X, "with_format") and hasattr(X, "__getitems__")
    if isinstance(X, Dataset) or not known:
        return X
    return HuggingFaceItems(X)


def label_key(item: Mapping) -> str | None:
    """Return the key of the label of an item, or None.

    Parameters
    ----------
    item : mapping
    """
    return next((key for key in LABELS if key in item), None)


def has_label(item: Any) -> bool:
    """Whether an item has a label: under a key of a dict, or at the end of a tuple.

    Parameters
    ----------
    item : object
    """
    if isinstance(item, Mapping):
        return label_key(item) is not None
    return isinstance(item, list | tuple) and len(item) > 1


def label_of(item: Any) -> Any:
    """Return the label of an item that has one.

    Parameters
    ----------
    item : mapping or tuple
    """
    return item[label_key(item)] if isinstance(item, Mapping) else item[-1]


def relabelled(item: Any, label: int) -> Any:
    """Return an item with its label replaced, or added if it has none.

    Parameters
    ----------
    item : object
    label : int
    """
    if isinstance(item, Mapping):
        return {**item, label_key(item) or LABELS[0]: label}
    if not isinstance(item, list | tuple):
        return item, label
    return (*(item[:-1] if len(item) > 1 else item), label)


def n_inputs_of(item: Any) -> int | None:
    """Return the number of inputs in an item, or None if it is not a tuple or list.

    Parameters
    ----------
    item : object
    """
    if isinstance(item, Mapping) or not isinstance(item, list | tuple):
        return None
    return max(1, len(item) - 1)


def inputs_of(item: Any, n_inputs: int | None = None) -> Any:
    """Return the input of an item, or of a batch of items.

    Parameters
    ----------
    item : object
        A dict with or without a label, a tuple that ends with a label, or an input.
    n_inputs : int, optional
        Number of entries of a tuple that are inputs; by default all but the last.

    Returns
    -------
    object
        A dict without the label, the only input of a tuple, or a list of its inputs.

    Examples
    --------
    >>> from skbsd._items import inputs_of
    >>> inputs_of({"words": [3, 1], "label": 0})
    {'words': [3, 1]}
    >>> inputs_of(("image", "table", 0))
    ['image', 'table']
    >>> inputs_of(("image",))
    'image'
    """
    if isinstance(item, Mapping):
        if label_key(item) is None:
            return item
        kept = {key: value for key, value in item.items() if key not in LABELS}
        kind: Any = type(item)
        return kind(kept) if hasattr(item, "convert_to_tensors") else kept
    n = n_inputs_of(item) if n_inputs is None else n_inputs
    if n is None or not isinstance(item, list | tuple):
        return item
    return item[0] if n == 1 else list(item[:n])
