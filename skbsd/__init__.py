"""Bayesian self-distillation as a scikit-learn classifier."""

from ._report import report
from ._version import __version__ as __version__
from .classifier import BSDClassifier

__all__ = ["BSDClassifier", "report"]
