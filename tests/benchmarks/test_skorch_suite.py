"""The comparison with skorch's own tests."""

from textwrap import dedent

from _skorch_differences import reason_for
from skorch_suite import outcomes, verdicts

_NET = "skorch/tests/test_net.py::TestNeuralNet::"


def test_verdicts_are_of_tests_that_pass_with_skorch():
    theirs = {
        f"{_NET}test_a": "passed",
        f"{_NET}test_b": "passed",
        f"{_NET}test_repr_fitted_works": "passed",
        f"{_NET}test_c": "failed",
        f"{_NET}test_d": "skipped",
    }
    ours = dict.fromkeys(theirs, "failed") | {f"{_NET}test_a": "passed"}
    assert verdicts(theirs, ours) == {
        f"{_NET}test_a": "pass",
        f"{_NET}test_b": "unexpected",
        f"{_NET}test_repr_fitted_works": "by design",
    }


def test_reasons_are_of_single_tests():
    named = f"{_NET}test_reinitializing_module_optimizer_message"
    assert "set_params" in reason_for(f"{named}[kwargs2-expected2]")
    assert reason_for(f"{named}[kwargs0-]") is None
    assert reason_for(f"{_NET}test_fit") is None


def test_only_tests_of_the_classifier_run(tmp_path, monkeypatch):
    for package in ("skorch", "skorch/tests"):
        (tmp_path / package).mkdir()
    (tmp_path / "skorch" / "tests" / "test_net.py").write_text(
        dedent("""
            import pytest

            @pytest.fixture
            def net_cls():
                from skorch import NeuralNetClassifier
                return NeuralNetClassifier

            def test_of_another_class():
                assert False

            def test_fit(net_cls):
                assert issubclass(net_cls, object)

            def test_own(net_cls):
                assert net_cls.__module__ == "skorch.classifier"
        """)
    )
    monkeypatch.setattr("skorch_suite._OPTIONS", ())  # of plugins that may be missing
    runs = [outcomes(tmp_path, 0, stand_in=stand_in) for stand_in in (False, True)]
    theirs, ours = ({t.rpartition(":")[2]: o for t, o in r.items()} for r in runs)
    assert theirs == {"test_fit": "passed", "test_own": "passed"}
    assert ours == {"test_fit": "passed", "test_own": "failed"}
