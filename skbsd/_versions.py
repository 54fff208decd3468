"""The versions that wrote a model, and a warning where others read it."""

import platform
import warnings
from typing import Any

import numpy
import sklearn
import skorch
import torch
from sklearn.exceptions import InconsistentVersionWarning

from ._version import __version__

# Where a difference may change what a model does. A saved file depends on the others
# as little as weights do.
_COMPARED = ("skbsd", "scikit-learn")


class SavedVersionWarning(InconsistentVersionWarning):
    """scikit-learn's warning, that says which library it is about.

    Parameters
    ----------
    library : str
    **versions : str
        As of scikit-learn's warning; the versions are those of the library.
    """

    def __init__(self, *, library: str, **versions: str):
        super().__init__(**versions)
        self.library = library

    def __str__(self):
        return (
            f"this {self.estimator_name} was saved with {self.library} "
            f"{self.original_sklearn_version} and is loaded with "
            f"{self.current_sklearn_version}. It may fail or predict something else; "
            "compare its predictions, or train it anew."
        )


def current() -> dict[str, str]:
    """Return the versions of what an estimator depends on."""
    return {
        "python": platform.python_version(),
        "skbsd": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
        "skorch": skorch.__version__,
    }


def compare(found: dict[str, Any], estimator: str, stacklevel: int) -> None:
    """Warn where versions differ from those that are here.

    Parameters
    ----------
    found : dict of str to str
        As from :func:`current`; of what lacks, the version is not known.
    estimator : str
        Name of its class.
    stacklevel : int
        Of the warning, as counted from here.
    """
    here = current()
    for library in _COMPARED:
        original = str(found.get(library) or "(unknown)")
        if original != here[library]:
            warnings.warn(
                SavedVersionWarning(
                    library=library,
                    estimator_name=estimator,
                    current_sklearn_version=here[library],
                    original_sklearn_version=original,
                ),
                stacklevel=stacklevel,
            )
