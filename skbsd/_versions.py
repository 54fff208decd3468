"""Package versions in saved models, and a warning if they differ on loading."""

import platform
import warnings
from typing import Any

import numpy
import sklearn
import skorch
import torch
from sklearn.exceptions import InconsistentVersionWarning

from ._version import __version__

# Packages whose versions may affect a model's behaviour. A saved file depends on the
# other packages only as much as bare weights do.
_COMPARED = ("skbsd", "scikit-learn")


class SavedVersionWarning(InconsistentVersionWarning):
    """scikit-learn's warning about versions, extended by the name of the library.

    Parameters
    ----------
    library : str
        Name of the library.
    **versions : str
        Parameters of scikit-learn's warning, with the versions of the library.
    """

    def __init__(self, *, library: str, **versions: str):
        super().__init__(**versions)
        self.library = library

    def __str__(self):
        return (
            f"this {self.estimator_name} was saved with {self.library} "
            f"{self.original_sklearn_version} and is loaded with "
            f"{self.current_sklearn_version}. It may fail or return other predictions; "
            "compare its predictions, or train it again."
        )


def current() -> dict[str, str]:
    """Return the versions of the packages that an estimator depends on."""
    return {
        "python": platform.python_version(),
        "skbsd": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
        "skorch": skorch.__version__,
    }


def compare(found: dict[str, Any], estimator: str, stacklevel: int) -> None:
    """Warn if versions differ from the installed ones.

    Parameters
    ----------
    found : dict of str to str
        From :func:`current`. The versions of missing packages are unknown.
    estimator : str
        Name of the estimator's class.
    stacklevel : int
        Stack level of the warning, relative to this function.
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
