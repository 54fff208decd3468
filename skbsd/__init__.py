"""Bayesian self-distillation as a scikit-learn classifier."""

__version__ = "0.1.0"
