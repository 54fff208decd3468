"""Order of the gallery: the most popular examples first, unlisted ones last."""

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
        "text.py",
        "image_folders.py",
        "pretrained_backbone.py",
        "table_and_image.py",
        "rare_class.py",
        "prediction_sets.py",
        "optuna_pruning.py",
        "mlflow_model.py",
        "*",
    ]
)
