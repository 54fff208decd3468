"""The order of the gallery: what most people come for first, new ones last."""

from sphinx_gallery.sorting import ExplicitOrder

by_interest = ExplicitOrder(
    [
        "reliability.py",
        "what_it_believes.py",
        "find_wrong_labels.py",
        "calibration_methods.py",
        "calibration_before_after.py",
        "search_prior_strength.py",
        "table_pipeline.py",
        "own_module.py",
        "prediction_sets.py",
        "optuna_pruning.py",
        "mlflow_model.py",
        "*",
    ]
)
