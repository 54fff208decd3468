"""Pickles and files of other versions."""

import copy
import pickle
import warnings

import pytest
import sklearn
from helpers import quick
from sklearn.base import clone
from sklearn.exceptions import InconsistentVersionWarning

import skbsd
from skbsd import BSDClassifier, _versions


def pretend(monkeypatch, **versions):
    """Simulate models that were written by other versions."""
    others = _versions.current() | versions
    monkeypatch.setattr(_versions, "current", lambda: others)


@pytest.fixture
def model(iris):
    return quick().fit(*iris)


def test_the_same_versions_are_silent(model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(model))
        copy.deepcopy(model)
        clone(model)
        model.save(tmp_path / "model.skbsd")
        BSDClassifier.load(tmp_path / "model.skbsd")


@pytest.mark.parametrize("library", ["scikit-learn", "skbsd"])
@pytest.mark.parametrize("fitted", [True, False])
def test_pickles(iris, model, monkeypatch, library, fitted):
    model = model if fitted else quick()
    with monkeypatch.context() as patch:
        pretend(patch, **{library: "0.0.1"})
        data = pickle.dumps(model)
    with pytest.warns(InconsistentVersionWarning, match=f"with {library} 0.0.1") as w:
        other = pickle.loads(data)
    assert len(w) == 1
    assert w[0].message.estimator_name == "BSDClassifier"
    assert w[0].message.original_sklearn_version == "0.0.1"
    here = {"scikit-learn": sklearn.__version__, "skbsd": skbsd.__version__}
    assert w[0].message.current_sklearn_version == here[library]
    if fitted:
        assert (other.predict(iris[0]) == model.predict(iris[0])).all()


def test_versions_are_no_attributes(model):
    state = model.__getstate__()
    assert state["_sklearn_version"] == sklearn.__version__
    assert state["_skbsd_version"] == skbsd.__version__
    other = pickle.loads(pickle.dumps(model))
    names = vars(other).keys() | vars(model).keys()
    assert not names & {"_sklearn_version", "_skbsd_version", "_components"}
    assert vars(other).keys() >= vars(model).keys() - {"_projection"}


def test_a_state_without_versions(model):
    state = model.__getstate__()
    del state["_skbsd_version"]
    with pytest.warns(InconsistentVersionWarning, match=r"skbsd \(unknown\)"):
        quick().__setstate__(state)


def test_files(model, tmp_path, monkeypatch):
    path = tmp_path / "model.skbsd"
    with monkeypatch.context() as patch:
        pretend(patch, skbsd="99.0", torch="1.0")
        model.save(path)
    with pytest.warns(InconsistentVersionWarning, match=r"skbsd 99\.0") as caught:
        BSDClassifier.load(path)
    assert len(caught) == 1  # torch's does not matter
    assert caught[0].filename == __file__


def test_a_state_from_before_some_parameters(model):
    state = model.__getstate__()
    for name in ("averaging", "cuda_graph", "prediction_views"):
        del state[name]
    older = quick()
    vars(older).clear()
    older.__setstate__(state)
    assert older.get_params() == model.get_params()
