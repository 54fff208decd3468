"""`export`: files that predict what the estimator predicts, without it."""

import errno
import functools
import json
import pickle
import sys

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from helpers import quick
from modules import (
    Convolution,
    ImageAndTable,
    Images,
    InPlace,
    Linear,
    ListOfTableAndKind,
    ReturnsObject,
    ReturnsTuple,
    TableAndKind,
    Words,
)
from scipy import sparse
from sklearn.exceptions import NotFittedError
from torch import nn

from skbsd import BSDClassifier
from skbsd.calibration import Calibration

FORMATS = ["onnx", "pt2"]


@pytest.fixture(scope="module", autouse=True)
def one_registry_of_operators():
    """Keep torch's registry, which each export to ONNX builds anew in a second."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    built = functools.cache(ONNXRegistry.from_torchlib.__func__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", classmethod(built))
        yield


class Named(torch.utils.data.Dataset):
    """Two inputs of each sample, in a dict or a tuple."""

    def __init__(self, X, y, kind):
        self.X, self.y, self.kind = X.astype(np.float32), y, kind

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        # Names that torch has for operations too.
        x = {"linear": self.X[i], "add": self.X[i, :2]}
        return x if self.kind is dict else tuple(x.values()), self.y[i]


class TakesNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, linear, add):
        return self.one(linear) + self.other(add)


class TakesPair(TakesNames):
    def forward(self, pair):
        return super().forward(*pair)


class OptionalMask(ListOfTableAndKind):
    def forward(self, parts, mask=None):
        return super().forward(parts)


class NestedInputs(TableAndKind):
    def forward(self, both, keep):
        return super().forward(*both) * keep[:, None]


class ByLength(Linear):
    def forward(self, x):
        return super().forward(x.view(len(x), -1))


class BySign(Linear):
    def forward(self, x):
        return super().forward(-x if x.sum() > 0 else x)


class AlwaysDropout(Linear):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


class Bessel(Linear):
    """Has an operation that ONNX lacks."""

    def forward(self, x):
        return super().forward(torch.special.bessel_j0(x))


def numpy_type(session_input):
    name = session_input.type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def run(path, *arrays):
    """Run a file on arrays, converted as it says."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        inputs = session.get_inputs()
        feed = {
            i.name: a.astype(numpy_type(i)) for i, a in zip(inputs, arrays, strict=True)
        }
        (proba,) = session.run(None, feed)
        return proba
    inputs = json.loads(facts(path)["inputs"])
    tensors = [
        torch.tensor(a.astype(i["dtype"])) for i, a in zip(inputs, arrays, strict=True)
    ]
    (x,) = tensors
    return torch.export.load(path).module()(x).numpy()


def facts(path):
    """Return what a file tells of itself."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return session.get_modelmeta().custom_metadata_map
    found = {"classes": ""}
    torch.export.load(path, extra_files=found)
    return found


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"model.{request.param}"


@pytest.fixture
def pt2(tmp_path):
    """Return a path of the format that takes less time to write."""
    return tmp_path / "model.pt2"


def assert_same(model, path, X, given=None):
    """Compare batches of all, of one, and of a thousand."""
    given = X if given is None else given
    expected = model.predict_proba(given)
    for n in (len(X), 1):
        proba = run(path, X[:n])
        assert proba.dtype == expected.dtype
        np.testing.assert_allclose(proba, expected[:n], rtol=0, atol=1e-6)
    many = np.resize(X, (1000, *X.shape[1:]))
    np.testing.assert_allclose(
        run(path, many), np.resize(expected, (1000, expected.shape[1])), atol=1e-6
    )


class TestProbabilities:
    def test_table(self, iris, path):
        model = BSDClassifier(max_epochs=10, random_state=0).fit(*iris)
        assert model.temperature_ != 1
        model.export(path)
        assert facts(path)["inputs"] == json.dumps(
            [{"name": "X", "dtype": "float32", "shape": ["batch", 4]}]
        )
        assert_same(model, path, iris[0])

    def test_small_table_in_double_precision(self, iris, path):
        X, y = iris[0][50:], iris[1][50:]  # of two classes
        model = BSDClassifier(max_epochs=10, random_state=0).fit(X, y)
        model.export(path)
        assert json.loads(facts(path)["inputs"])[0]["dtype"] == "float64"
        assert_same(model, path, X)

    def test_uint8_images(self, uint8_digits, path):
        X, y = uint8_digits[0][:200], uint8_digits[1][:200]
        model = quick().fit(X, y)
        model.export(path)
        assert facts(path)["inputs"] == json.dumps(
            [{"name": "X", "dtype": "uint8", "shape": ["batch", 1, 8, 8]}]
        )
        assert_same(model, path, X)

    def test_float_images_in_views(self, digits, path):
        X, y = digits[0][:200] / 16, digits[1][:200]
        model = quick(module=Convolution, prediction_views="flip-shift").fit(X, y)
        model.export(path)
        assert_same(model, path, X)

    def test_rows_that_are_images(self, uint8_digits, path):
        X, y = uint8_digits[0][:200].reshape(200, -1), uint8_digits[1][:200]
        model = quick(module=Convolution, image_shape=(1, 8, 8)).fit(X, y)
        model.export(path)
        assert_same(model, path, X)

    def test_rows_that_are_images_given_as_such(self, digits, pt2):
        images, y = digits[0][:200], digits[1][:200]
        rows = images.reshape(200, -1)
        model = quick(module=Convolution, image_shape=(1, 8, 8)).fit(rows, y)
        model.export(pt2, images[:1])
        assert_same(model, pt2, images)
        model.export(pt2, rows[:1])
        assert_same(model, pt2, rows)

    @pytest.mark.parametrize("module", [ReturnsTuple, ReturnsObject, InPlace])
    def test_ones_own_network(self, module, iris, path):
        model = quick(module=module).fit(*iris)
        model.export(path)
        assert_same(model, path, iris[0])

    def test_the_whole_calibration(self, iris, path):
        model = quick(module=Linear).fit(*iris)
        model.calibration_ = Calibration(
            temperature=0.7,
            bias=np.array([0.5, -0.2, 0.1]),
            transition=np.array([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.0, 0.3, 0.7]]),
            applies_transition=True,
        )
        model.export(path)
        assert_same(model, path, iris[0])

    def test_what_a_subclass_infers(self, iris, pt2):
        class Doubled(BSDClassifier):
            def infer(self, x, **fit_params):
                return 2 * super().infer(x, **fit_params)

        model = Doubled(Linear, max_epochs=2, calibration=None).fit(*iris)
        model.export(pt2)
        assert_same(model, pt2, iris[0])

    def test_float32_where_training_is_in_bfloat16(self, iris, pt2):
        model = quick(module=Linear, precision="bfloat16").fit(*iris)
        model.export(pt2)
        model.set_params(precision="float32")
        assert_same(model, pt2, iris[0])

    def test_a_loaded_model(self, iris, tmp_path, pt2):
        model = quick().fit(*iris)
        model.save(tmp_path / "model.skbsd")
        BSDClassifier.load(tmp_path / "model.skbsd").export(pt2)
        assert_same(model, pt2, iris[0])


class TestInputs:
    def test_dataset_needs_samples(self, iris, pt2):
        X, y = iris[0].astype(np.float32), iris[1]
        model = quick(module=Linear).fit(Images(X, y))
        with pytest.raises(ValueError, match=r"fitted on a Dataset.*export"):
            model.export(pt2)
        model.export(pt2, Images(X[:1], y[:1]))
        assert_same(model, pt2, X, given=Images(X, y))

    def test_names_are_those_of_a_dict(self, iris, tmp_path):
        data = Named(*iris, dict)
        model = quick(module=TakesNames).fit(data)
        model.export(path := tmp_path / "model.onnx", data)
        assert [i["name"] for i in json.loads(facts(path)["inputs"])] == [
            "linear",
            "add",
        ]
        proba = run(path, data.X, data.X[:, :2])
        np.testing.assert_allclose(proba, model.predict_proba(data), atol=1e-6)
        model.export(path := tmp_path / "model.pt2", data)
        X = torch.tensor(data.X)
        proba = torch.export.load(path).module()({"linear": X, "add": X[:, :2]})
        np.testing.assert_allclose(proba, model.predict_proba(data), atol=1e-6)

    def test_those_of_a_tuple_are_numbered(self, iris, tmp_path):
        data = Named(*iris, tuple)
        model = quick(module=TakesPair).fit(data)
        model.export(path := tmp_path / "model.onnx", data)
        inputs = json.loads(facts(path)["inputs"])
        assert [(i["name"], i["shape"]) for i in inputs] == [
            ("X_0", ["batch", 4]),
            ("X_1", ["batch", 2]),
        ]
        proba = run(path, data.X, data.X[:, :2])
        np.testing.assert_allclose(proba, model.predict_proba(data), atol=1e-6)


class TestWithoutSamples:
    """The inputs of a model that was fitted on arrays are known."""

    @pytest.fixture
    def kind(self):
        return np.random.default_rng(0).integers(0, 5, 150)

    @staticmethod
    def assert_served(model, tmp_path, given, **inputs):
        model.export(path := tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(path)
        assert {i.name for i in session.get_inputs()} == inputs.keys()
        expected = model.predict_proba(given)
        for n in (len(expected), 1):
            feed = {
                i.name: inputs[i.name][:n].astype(numpy_type(i))
                for i in session.get_inputs()
            }
            (proba,) = session.run(None, feed)
            np.testing.assert_allclose(proba, expected[:n], rtol=0, atol=1e-6)
        return {i["name"]: i["dtype"] for i in json.loads(facts(path)["inputs"])}

    def test_dict(self, iris, kind, tmp_path):
        X = {"table": iris[0], "kind": kind}
        model = BSDClassifier(TableAndKind, max_epochs=3, random_state=0)
        model.fit(X, iris[1])
        dtypes = self.assert_served(model, tmp_path, X, **X)
        assert dtypes == {"table": "float32", "kind": "int64"}

    @pytest.mark.parametrize("module", [ListOfTableAndKind, OptionalMask])
    def test_tuple(self, module, iris, kind, tmp_path):
        X = (iris[0], kind)
        model = quick(module=module).fit(X, iris[1])
        self.assert_served(model, tmp_path, X, X_0=X[0], X_1=X[1])

    def test_nested(self, iris, kind, tmp_path):
        X = {"both": [iris[0], kind], "keep": kind > 2}
        model = quick(module=NestedInputs).fit(X, iris[1])
        dtypes = self.assert_served(
            model, tmp_path, X, both_0=iris[0], both_1=kind, keep=X["keep"]
        )
        assert dtypes["keep"] == "bool"

    @pytest.mark.filterwarnings("ignore:The tensor attribute self.network.seen")
    def test_images_beside_a_table(self, uint8_digits, tmp_path):
        images, y = (a[:100] for a in uint8_digits)
        X = {"image": images, "table": images.reshape(100, 64)[:, :4] / 16}
        model = quick(module=ImageAndTable).fit(X, y)
        dtypes = self.assert_served(model, tmp_path, X, **X)
        assert dtypes == {"image": "uint8", "table": "float32"}

    @pytest.mark.parametrize("dtype", ["int64", "int32"])
    def test_integers_of_an_embedding(self, dtype, iris, tmp_path):
        X = np.random.default_rng(0).integers(0, 20, (150, 6)).astype(dtype)
        model = quick(module=Words).fit(X, iris[1])
        assert self.assert_served(model, tmp_path, X, X=X) == {"X": "int64"}
        model.export(path := tmp_path / "given.onnx", X[:2])
        assert json.loads(facts(path)["inputs"])[0]["dtype"] == "int64"

    def test_sparse_rows_are_dense_in_the_file(self, iris, kind, tmp_path):
        X, y = sparse.csr_array(iris[0]), iris[1]
        model = quick(module=Linear).fit(X, y)
        assert self.assert_served(model, tmp_path, X, X=iris[0]) == {"X": "float32"}
        several = {"table": X, "kind": kind}
        model = quick(module=TableAndKind).fit(several, y)
        self.assert_served(model, tmp_path, several, table=iris[0], kind=kind)

    def test_pt2_takes_the_structure(self, iris, kind, pt2):
        X = torch.tensor(iris[0]).float(), torch.tensor(kind)
        model = quick(module=ListOfTableAndKind).fit(X, iris[1])
        model.export(pt2)
        proba = torch.export.load(pt2).module()(list(X))
        np.testing.assert_allclose(proba, model.predict_proba(X), rtol=0, atol=1e-6)


class TestFacts:
    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            (np.array(["röd", "grön", "blå"]), ["blå", "grön", "röd"]),
            (np.array(["c", "b", "a"], dtype=object), ["a", "b", "c"]),
            (np.array([30, 20, 10], dtype=np.int16), [10, 20, 30]),
        ],
        ids=["str", "object", "int16"],
    )
    def test_classes(self, labels, expected, iris, tmp_path):
        model = quick(module=Linear).fit(iris[0], labels[iris[1]])
        model.export(path := tmp_path / "model.pt2")
        found = facts(path)
        assert json.loads(found["classes"]) == expected
        classes = np.array(json.loads(found["classes"]), found["classes_dtype"])
        assert classes.dtype.kind == labels.dtype.kind
        assert classes.tolist() == model.classes_.tolist()

    def test_boolean_classes(self, iris, tmp_path):
        model = quick(module=Linear, module__out_features=2)
        model.fit(iris[0], iris[1] == 1).export(path := tmp_path / "model.pt2")
        assert facts(path)["classes"] == "[false, true]"

    def test_onnx(self, iris, tmp_path):
        columns = ["a", "b", "c", "d"]
        X = pd.DataFrame(iris[0], columns=columns)
        model = quick().fit(X, np.array(["x", "y", "z"])[iris[1]])
        model.export(tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        meta = session.get_modelmeta()
        assert meta.producer_name == "skbsd"
        found = meta.custom_metadata_map
        assert json.loads(found["classes"]) == ["x", "y", "z"]
        assert json.loads(found["feature_names"]) == columns
        versions = json.loads(found["versions"])
        assert versions["torch"] == str(torch.__version__)
        assert {"skbsd", "onnx", "onnxscript"} <= versions.keys()
        (given,), (output,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape) == ("X", ["batch", 4])
        assert (output.name, output.shape) == ("probabilities", ["batch", 3])

    def test_no_samples_and_no_paths(self, iris, path):
        X = iris[0] + 0.12345
        model = quick(module=Linear).fit(*iris)
        model.export(path, X)
        content = path.read_bytes()
        assert X[0].astype(np.float32).tobytes() not in content
        assert b"site-packages" not in content
        assert b"skbsd/" not in content


class TestModel:
    def test_is_as_it_was(self, uint8_digits, path):
        X, y = uint8_digits[0][:100], uint8_digits[1][:100]
        model = quick(prediction_views="flip").fit(X, y)
        attributes, state = dict(vars(model)), pickle.dumps(model)
        drawn = torch.get_rng_state()
        assert model.export(path) is None
        assert torch.equal(torch.get_rng_state(), drawn)
        assert vars(model).keys() == attributes.keys()
        assert all(vars(model)[name] is value for name, value in attributes.items())
        assert pickle.dumps(model) == state
        assert not model.module_.training
        assert all(p.requires_grad for p in model.module_.parameters())
        # In its memory format too.
        weight = model.module_.stem[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)

    def test_goes_on_training(self, iris, pt2):
        model, other = quick().fit(*iris), quick().fit(*iris)
        model.export(pt2)
        one, two = model.partial_fit(*iris), other.partial_fit(*iris)
        assert np.array_equal(one.predict_proba(iris[0]), two.predict_proba(iris[0]))


class TestErrors:
    @pytest.mark.parametrize("name", ["model.pth", "model", "model.onnx.zip"])
    def test_other_endings(self, name, iris, tmp_path):
        with pytest.raises(ValueError, match=rf"{name}.*\.onnx.*\.pt2"):
            quick(module=Linear).fit(*iris).export(tmp_path / name)

    def test_no_folder(self, iris, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            quick(module=Linear).fit(*iris).export(tmp_path / "nowhere" / "a.pt2")

    @pytest.mark.parametrize("package", ["onnx", "onnxscript"])
    def test_without_packages(self, package, iris, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        model = quick(module=Linear).fit(*iris)
        with pytest.raises(ImportError, match=r"skbsd\[export\]"):
            model.export(tmp_path / "model.onnx")
        model.export(path := tmp_path / "model.pt2")
        assert path.exists()

    def test_not_fitted(self, path):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            quick().export(path)

    def test_weights_alone(self, iris, tmp_path, path):
        model = quick(module=Linear).fit(*iris)
        model.save_params(f_params=tmp_path / "weights.pt")
        other = quick(module=Linear).initialize()
        other.load_params(f_params=tmp_path / "weights.pt")
        with pytest.raises(NotFittedError, match="classes"):
            other.export(path, iris[0])

    @pytest.mark.parametrize("module", [ByLength, BySign])
    def test_no_graph(self, module, iris, tmp_path):
        model = quick(module=module).fit(*iris)
        path = tmp_path / "model.pt2"
        with pytest.raises(
            ValueError, match=f"trace the module {module.__name__}"
        ) as e:
            model.export(path)
        assert e.value.__cause__ is not None
        assert "x.shape[0]" in str(e.value)
        assert list(tmp_path.iterdir()) == []

    def test_random_numbers(self, iris, tmp_path):
        model = quick(module=AlwaysDropout).fit(*iris)
        with pytest.raises(ValueError, match="draw random numbers"):
            model.export(tmp_path / "model.pt2")
        assert list(tmp_path.iterdir()) == []

    def test_what_onnx_lacks(self, iris, tmp_path):
        model = quick(module=Bessel).fit(*iris)
        with pytest.raises(ValueError, match=r"translated to ONNX.*\.pt2") as e:
            model.export(tmp_path / "model.onnx")
        assert e.value.__cause__ is not None
        assert list(tmp_path.iterdir()) == []
        model.export(path := tmp_path / "model.pt2")
        assert_same(model, path, iris[0])

    def test_samples_of_another_kind(self, iris, path):
        model = quick(module=Linear).fit(*iris)
        with pytest.raises(ValueError, match="3 features"):
            model.export(path, iris[0][:, :3])

    def test_too_large_for_onnx(self, iris, tmp_path, monkeypatch):
        monkeypatch.setattr("skbsd._export._LARGEST_ONNX", 10)
        with pytest.raises(ValueError, match=r"GiB.*\.pt2"):
            quick(module=Linear).fit(*iris).export(tmp_path / "model.onnx")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_leaves_what_was_there(self, iris, tmp_path, monkeypatch):
        def full(program, file, **kwargs):
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        (path := tmp_path / "model.pt2").write_bytes(b"before")
        model = quick(module=Linear).fit(*iris)
        monkeypatch.setattr(torch.export, "save", full)
        with pytest.raises(OSError, match="No space"):
            model.export(path)
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]
