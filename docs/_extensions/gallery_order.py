"""Order of the gallery: the most popular examples first, unlisted ones last."""

from sphinx_gallery.sorting import ExplicitOrder

by_interest = ExplicitOrder(
    [
        "reliability.py",
        "what_it_believes.py",
        "find_wrong_labels.py",
        "calibration_methods.py",
        "search_prior_strength.py",
        "table_pipeline.py",
        "own_module.py",
        "*",
    ]
)
