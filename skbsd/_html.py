"""The HTML representation of an estimator in notebooks."""

from typing import Any

from sklearn.base import BaseEstimator
from skorch.history import History

from ._history import NAMES, outcome

# By default, scikit-learn lists all attributes that end in an underscore, which include
# skorch's internal state.
_ATTRIBUTES = (
    "device_",
    "n_iter_",
    "classes_",
    "n_features_in_",
    "feature_names_in_",
    "prior_strength_",
    "discount_",
    "posterior_",
    "module_",
    "data_loading_",
)


class HTMLRepresentation:
    """scikit-learn's diagram with a summary of the training, for BSDClassifier."""

    history_: History | None
    device_: Any

    def _sk_visual_block_(self):
        """Return the block that scikit-learn draws, alone or as a Pipeline's step."""
        # Imported here: if a later scikit-learn removes it, a plain block is drawn.
        from sklearn.utils._repr_html.estimator import _VisualBlock

        return _VisualBlock(
            "single",
            self,
            names=type(self).__name__,
            name_details=str(self),
            name_caption=self._training_summary(),
        )

    def _training_summary(self) -> str | None:
        """Return a summary of the training in one line, or None if not trained."""
        found = outcome(self.history_)
        if found is None:
            return None
        epochs = "1 epoch" if found.n_epochs == 1 else f"{found.n_epochs} epochs"
        time = "" if found.seconds is None else f" in {found.seconds:.3g} s"
        last = [f"{NAMES[key]} {value:.3g}" for key, value in found.last.items()]
        return f"{epochs} on {self.device_}{time}; {', '.join(last)}"

    def _get_fitted_attr_html(self, doc_link=""):
        """Return the table of fitted attributes that scikit-learn 1.9 shows."""
        table: Any = BaseEstimator._get_fitted_attr_html(self, doc_link)
        found = outcome(self.history_)
        table.data = {
            name: table.data[name] for name in _ATTRIBUTES if name in table.data
        } | {
            name: {"type_name": "float", "value": value}
            for name, value in (found.last if found else {}).items()
        }
        return table
