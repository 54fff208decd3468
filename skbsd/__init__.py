"""Bayesian self-distillation as a scikit-learn classifier."""

from .classifier import BSDClassifier

__all__ = ["BSDClassifier"]

__version__ = "0.1.0"
