"""A report on a fitted classifier, in one HTML file."""

from ._report import report

__all__ = ["report"]
