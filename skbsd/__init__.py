"""Bayesian self-distillation as a scikit-learn classifier."""

from ._report import report
from .classifier import BSDClassifier

__all__ = ["BSDClassifier", "report"]

__version__ = "0.1.0"
