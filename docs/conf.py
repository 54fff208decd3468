"""Configuration of Sphinx; run `make docs` in the parent folder."""

import os
import sys
from pathlib import Path

import skbsd

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "skbsd"
author = "The skbsd developers"
copyright = author
version = release = skbsd.__version__

extensions = [
    "doctest_blocks",
    "mathml",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

# Links to other projects' pages need their inventories, which come from the network.
if os.environ.get("SKBSD_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "matplotlib": ("https://matplotlib.org/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "skorch": ("https://skorch.readthedocs.io/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

# Inherited docstrings refer to sections and terms of scikit-learn's documentation.
suppress_warnings = ["ref.ref", "ref.term"]

extlinks = {"arxiv": ("https://arxiv.org/abs/%s", "arXiv:%s")}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# Methods that users of the estimator call. It inherits others from skorch, for changes
# of the training loop. Some exist in certain versions of scikit-learn only.
_OF_BSD_CLASSIFIER = [
    "fit",
    "partial_fit",
    "predict",
    "predict_proba",
    "predict_log_proba",
    "decision_function",
    "score_samples",
    "score",
    "save",
    "load",
    "export",
    "make_objective",
    "get_params",
    "set_params",
    "get_metadata_routing",
    "set_fit_request",
    "set_partial_fit_request",
    "set_score_request",
    "set_callbacks",
    "initialize",
    "save_params",
    "load_params",
    "forward",
    "forward_iter",
]
_THERE = [name for name in _OF_BSD_CLASSIFIER if hasattr(skbsd.BSDClassifier, name)]
autosummary_context = {
    "interface": {"BSDClassifier": _THERE},
    "properties": {
        name: ["n_classes", "device", "dtype", "nbytes", *more]
        for name, more in (("DirichletPosterior", []), ("CompactPosterior", ["n_kept"]))
    },
}
autosummary_imported_members = True
autodoc_preserve_defaults = True
autodoc_typehints = "none"
default_role = "literal"
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    # Scripts that are run by `make demo` or manually, not in the gallery.
    "ignore_pattern": r"(quickstart|cifar10|comparison|search_on_cluster)\.py$",
    "within_subsection_order": "gallery_order.by_interest",
    "backreferences_dir": "api/backreferences",
    "doc_module": ("skbsd",),
    "reference_url": {"skbsd": None},
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "thumbnail_size": (800, 560),  # drawn by thumbnails/; skbsd.css shows them larger
    "show_signature": False,
    "write_computation_times": False,
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "skbsd"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["skbsd.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
        "text": "skbsd",
        "alt_text": "skbsd, front page",
    },
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "icon_links": [
        {
            "name": "The paper, arXiv:2512.24162",
            "url": "https://arxiv.org/abs/2512.24162",
            "icon": "fa-solid fa-file-lines",
        }
    ],
}
html_sidebars = {
    "index": [],
    "getting_started": [],
    "faq": [],
    "changelog": [],
    "contributing": [],
}
