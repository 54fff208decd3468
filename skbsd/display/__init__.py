"""Pictures of calibration, beliefs, label noise, training and searches.

They follow scikit-learn's displays: a classmethod computes and plots, the object keeps
what was computed, and :meth:`plot` draws it again. matplotlib is imported when the
first picture is drawn.
"""

from ._calibration_effect import CalibrationEffectDisplay
from ._noise_rates import NoiseRateDisplay
from ._posterior import PosteriorDisplay
from ._reliability import ReliabilityDisplay
from ._search_time import SearchTimeDisplay
from ._tradeoff import CalibrationTradeoffDisplay
from ._training import TrainingDisplay

__all__ = [
    "CalibrationEffectDisplay",
    "CalibrationTradeoffDisplay",
    "NoiseRateDisplay",
    "PosteriorDisplay",
    "ReliabilityDisplay",
    "SearchTimeDisplay",
    "TrainingDisplay",
]
