"""What notebooks show of an estimator."""

from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils._repr_html.estimator import _VisualBlock
from skorch.history import History

# As skorch calls them, and as people do.
_FIGURES = {
    "train_loss": "training loss",
    "valid_loss": "validation loss",
    "valid_acc": "validation accuracy",
}
# scikit-learn would list whatever ends in an underscore, skorch's inner state too.
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
    """scikit-learn's diagram with the outcome of the training, for BSDClassifier."""

    history_: History | None
    device_: Any

    def _sk_visual_block_(self):
        """Return what scikit-learn draws, on its own and as a step of a Pipeline."""
        return _VisualBlock(
            "single",
            self,
            names=type(self).__name__,
            name_details=str(self),
            name_caption=self._training_summary(),
        )

    def _training_summary(self) -> str | None:
        """Say in a line how training went."""
        figures = self._final_figures()
        if not figures:
            return None
        n_epochs, seconds = figures.pop("epochs"), figures.pop("seconds")
        losses = [f"{_FIGURES[key]} {value:.3g}" for key, value in figures.items()]
        epochs = "epoch" if n_epochs == 1 else "epochs"
        return (
            f"{n_epochs} {epochs} on {self.device_} in {seconds:.3g} s; "
            f"{', '.join(losses)}"
        )

    def _final_figures(self) -> dict[str, float]:
        """Return number and time of the epochs, and the last one's losses."""
        epochs = [e for e in self.history_ or () if "train_loss" in e]
        if not epochs:
            return {}
        figures = {"epochs": len(epochs), "seconds": sum(e["dur"] for e in epochs)}
        return figures | {key: epochs[-1][key] for key in _FIGURES if key in epochs[-1]}

    def _get_fitted_attr_html(self, doc_link=""):
        """Return the table of fitted attributes, of scikit-learn 1.9."""
        table: Any = BaseEstimator._get_fitted_attr_html(self, doc_link)
        figures = self._final_figures()
        rows = {
            key: {"type_name": "float", "value": float(value)}
            for key, value in figures.items()
            if key in _FIGURES
        }
        table.data = {
            **{name: table.data[name] for name in _ATTRIBUTES if name in table.data},
            **rows,
        }
        return table
