"""The fitted classifier that a display is about."""

from typing import Any

from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted


def fitted_classifier(estimator: Any, attribute: str) -> Any:
    """Return a fitted BSDClassifier, or the one that a pipeline ends in.

    Parameters
    ----------
    estimator : BSDClassifier or Pipeline
    attribute : str
        What it has to have been fitted to have.

    Raises
    ------
    ValueError
        For another estimator.
    NotFittedError
        If it has not been fitted.
    """
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    if not hasattr(last, "prior_strength"):
        where = " as last step" if last is not estimator else ""
        raise ValueError(
            f"expected a fitted BSDClassifier or a Pipeline that ends in one, got "
            f"{type(last).__name__}{where}; pass a search's best_estimator_."
        )
    check_is_fitted(last, attribute)
    return last
