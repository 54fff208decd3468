"""scikit-learn's common checks, without exceptions."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from skbsd import BSDClassifier

# The one that MLPClassifier skips too, on machines that have not set this variable.
ENVIRONMENT = {"check_array_api_input": "SCIPY_ARRAY_API is not set"}

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.DataConversionWarning"
)


@parametrize_with_checks(
    [
        BSDClassifier(max_epochs=20),
        BSDClassifier(calibration="hold-out", random_state=0),
        BSDClassifier(calibration=None, random_state=0),
        BSDClassifier(
            prior_strength=20.0, discount=0.95, calibration=None, random_state=1
        ),
        BSDClassifier(prior_strength="noisy", calibration=None, random_state=1),
        BSDClassifier(
            prior_strength=np.inf,
            calibration=None,
            lr_schedule="constant",
            random_state=2,
        ),
    ]
)
def test_common_checks(estimator, check):
    check(estimator)


def test_none_fails_and_only_the_environment_skips():
    results = check_estimator(
        BSDClassifier(calibration=None), on_fail=None, on_skip=None
    )
    assert len(results) > 50
    failed = {r["check_name"] for r in results if r["status"] == "failed"}
    assert failed == set()
    skipped = {
        r["check_name"]: str(r["exception"])
        for r in results
        if r["status"] == "skipped"
    }
    assert skipped.keys() <= ENVIRONMENT.keys()
    for name, reason in skipped.items():
        assert ENVIRONMENT[name] in reason
