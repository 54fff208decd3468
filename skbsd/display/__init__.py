"""Pictures of calibration, of beliefs and of training.

They follow scikit-learn's displays: a classmethod computes and plots, the object keeps
what was computed, and :meth:`plot` draws it again. matplotlib is imported when the
first is drawn.
"""

from ._posterior import PosteriorDisplay
from ._reliability import ReliabilityDisplay
from ._tradeoff import CalibrationTradeoffDisplay
from ._training import TrainingDisplay

__all__ = [
    "CalibrationTradeoffDisplay",
    "PosteriorDisplay",
    "ReliabilityDisplay",
    "TrainingDisplay",
]
