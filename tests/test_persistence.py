"""`save` and `load`: restored estimators, and safety of files."""

import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from modules import Convolution, Images, Linear
from sklearn.exceptions import NotFittedError
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit
from skorch.exceptions import DeviceWarning
from torch import nn

from skbsd import BSDClassifier, _files
from skbsd._files import FileFormatError
from skbsd.contrastive import Contrastive
from skbsd.networks import MLP, SmallResNet


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.skbsd"


def loaded(model, path, *, posterior=False, module=None):
    model.save(path, posterior=posterior)
    return type(model).load(path, module=module)


def assert_same(model, other, X):
    for method in ("predict", "predict_proba", "decision_function"):
        one, two = getattr(model, method)(X), getattr(other, method)(X)
        assert one.dtype == two.dtype
        assert np.array_equal(one, two), method


def tampered(path, change):
    """Write a file with a modified header and modified tensors."""
    header, tensors = _files.read(path)
    change(header, tensors)
    _files.write_atomically(path, tensors, header)


class Sub(BSDClassifier):
    def __init__(self, module=None, *, shade="blue", **kwargs):
        super().__init__(module, **kwargs)
        self.shade = shade

    def fit(self, X, y=None, sample_weight=None, **split_params):
        super().fit(X, y, sample_weight, **split_params)
        self.offset_ = np.float32(0.5)
        return self


class Wide(MLP):
    pass


class Renamed(nn.Module):
    """A Linear with another class name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


class TestPredictions:
    @pytest.mark.parametrize("batch_size", [32, -1])  # float32 and float64
    def test_tables(self, iris, path, batch_size):
        model = quick(batch_size=batch_size).fit(*iris)
        assert_same(model, loaded(model, path), iris[0])

    def test_uint8_images(self, uint8_digits, path):
        model = quick(max_epochs=1).fit(*uint8_digits)
        other = loaded(model, path)
        assert_same(model, other, uint8_digits[0])
        assert np.array_equal(other.image_mean_, model.image_mean_)
        with pytest.raises(ValueError, match="float images"):
            other.predict(uint8_digits[0].astype(np.float32))

    def test_float_images(self, digits, path):
        model = quick(max_epochs=1).fit(*digits)
        assert_same(model, loaded(model, path), digits[0])

    def test_rows_that_are_images(self, digits, path):
        X = digits[0].reshape(-1, 64)
        model = quick(max_epochs=1, image_shape=(1, 8, 8)).fit(X, digits[1])
        assert_same(model, loaded(model, path), X)

    def test_a_dataset(self, iris, path):
        data = Images(iris[0].astype(np.float32), iris[1])
        model = quick(module=MLP, module__in_features=4, module__n_classes=3)
        model.fit(data)
        other = loaded(model, path)
        assert_same(model, other, data)
        assert not hasattr(other, "n_features_in_")

    def test_data_frames(self, iris, path):
        pd = pytest.importorskip("pandas")
        X = pd.DataFrame(iris[0], columns=list("abcd"))
        model = quick().fit(X, iris[1])
        other = loaded(model, path)
        assert_same(model, other, X)
        assert other.feature_names_in_.tolist() == list("abcd")
        with pytest.raises(ValueError, match="feature names"):
            other.predict(X[list("dcba")])

    def test_evaluation_mode_and_generators_left_alone(self, iris, path):
        model = quick().fit(*iris)
        model.save(path)
        before = torch.get_rng_state()
        other = BSDClassifier.load(path)
        assert not other.module_.training
        assert torch.equal(before, torch.get_rng_state())
        assert other.device == "auto"


@pytest.mark.parametrize(
    "names",
    [
        np.array([3, 5, 8], dtype=np.int8),
        np.array([3, 5, 8], dtype=np.uint16),
        np.array([3, 5, 8], dtype=np.int64),
        np.array([1.0, 2.0, 3.0], dtype=np.float32),
        np.array(["a", "é", "long name"]),
        np.array(["a", "é", "long name"], dtype=object),
    ],
    ids=lambda names: f"{names.dtype.str}-{type(names[0]).__name__}",
)
def test_labels_of_every_kind(iris, path, names):
    model = quick().fit(iris[0], names[iris[1]])
    other = loaded(model, path)
    assert other.classes_.dtype == model.classes_.dtype
    assert_same(model, other, iris[0])


def test_labels_that_are_booleans(iris, path):
    model = quick().fit(iris[0], iris[1] == 1)
    other = loaded(model, path)
    assert other.predict(iris[0]).dtype == bool
    assert_same(model, other, iris[0])


class TestWhatComesBack:
    def test_attributes_and_history(self, iris, path):
        model = quick(train_split=None, callbacks__print_log=None).fit(*iris)
        other = loaded(model, path)
        for name in (
            "n_features_in_",
            "n_iter_",
            "data_loading_",
            "compile_time_",
            "prior_strength_",
            "discount_",
            "prior_floor_",
        ):
            assert getattr(other, name) == getattr(model, name), name
        assert other.history_ == model.history_
        assert type(other.history_) is type(model.history_)
        assert (
            other.history[:, "batches", :, "train_loss"]
            == (model.history[:, "batches", :, "train_loss"])
        )
        assert not hasattr(other, "posterior_")
        assert repr(other) == repr(model)

    def test_parameters(self, iris, path):
        given = {
            "optimizer": torch.optim.SGD,
            "optimizer__momentum": 0.9,
            "module__hidden": (8, 4),
            "class_weight": {0: 1.0, 1: 2.0, 2: np.float32(1)},
            "prior_strength": float("inf"),
            "device": torch.device("cpu"),
            "contrastive": Contrastive(weight=0.5),
            "augmentation": None,
        }
        model = quick(**given)
        model.set_params(contrastive=None).fit(*iris).set_params(
            contrastive=given["contrastive"]
        )
        found = loaded(model, path).get_params()
        expected = model.get_params()
        assert found.pop("device") == "cpu"
        expected.pop("device")
        assert found == expected

    def test_it_can_be_saved_and_loaded_again(self, iris, path):
        model = quick().fit(*iris)
        other = loaded(loaded(model, path), path)
        assert_same(model, other, iris[0])
        assert other.prior_strength_ == model.prior_strength_

    def test_what_is_not_plain_is_named_in_one_warning(self, iris, path):
        model = quick(
            train_split=ValidSplit(3),
            callbacks=[("score", EpochScoring("accuracy"))],
            callbacks__score__lower_is_better=False,
        ).fit(*iris)
        model.save(path)
        with pytest.warns(UserWarning, match="not plain data") as caught:
            other = BSDClassifier.load(path)
        (message,) = [str(w.message) for w in caught]
        assert "train_split (ValidSplit)" in message
        assert "callbacks (list)" in message
        assert "callbacks__score__lower_is_better" in message
        assert other.train_split is None
        assert other.callbacks is None
        assert_same(model, other, iris[0])
        other.partial_fit(*iris)

    def test_subclasses(self, iris, path):
        model = Sub(shade="red", max_epochs=2, random_state=0).fit(*iris)
        other = loaded(model, path)
        assert type(other) is Sub
        assert other.shade == "red"
        assert other.offset_ == np.float32(0.5)
        assert_same(model, other, iris[0])
        with pytest.raises(ValueError, match="saved by a Sub"):
            BSDClassifier.load(path)

    def test_the_class_matters(self, iris, path):
        quick().fit(*iris).save(path)
        with pytest.warns(UserWarning, match=r"BSDClassifier\.load"):
            Sub.load(path)

    def test_size(self, uint8_digits, path):
        model = quick().fit(*uint8_digits)
        model.save(path)
        network = sum(t.nbytes for t in model.module_.state_dict().values())
        assert path.stat().st_size < network + 32_000


class TestNetworks:
    def test_of_this_library_by_class_and_instance(self, digits, path):
        X, y = digits
        arguments = {"module__in_channels": 1, "module__n_classes": 10}
        by_class = quick(
            module=SmallResNet, module__widths=(4, 8), max_epochs=1, **arguments
        )
        assert_same(by_class.fit(X, y), loaded(by_class, path), X)
        instance = SmallResNet(1, 10, widths=(4, 8))
        model = quick(module=instance, max_epochs=1).fit(X, y)
        other = loaded(model, path)
        assert_same(model, other, X)
        # The initial weights are restored too, for the next fit.
        assert same_weights(model.fit(X, y), other.fit(X, y))

    @pytest.mark.parametrize("given", [Linear, Linear(), lambda **kw: Linear(**kw)])
    def test_of_the_user(self, iris, path, given):
        model = quick(module=Linear).fit(*iris)
        other = loaded(model, path, module=given)
        assert_same(model, other, iris[0])
        assert other.module is given

    def test_with_arguments_in_the_file(self, iris, path):
        model = quick(module=Linear, module__scale=3.0).fit(*iris)
        other = loaded(model, path, module=Linear)
        assert other.module_.scale == 3.0
        assert_same(model, other, iris[0])

    def test_a_missing_one(self, iris, path):
        quick(module=Linear).fit(*iris).save(path)
        with pytest.raises(ValueError, match=r"weights of a Linear.*module=Linear"):
            BSDClassifier.load(path)

    def test_a_wrong_one(self, iris, path):
        quick(module=Linear).fit(*iris).save(path)
        with pytest.raises(ValueError, match="weights of a Linear, which do not fit"):
            BSDClassifier.load(path, module=Convolution)
        with pytest.raises(ValueError, match=r"layer\.weight has shape \(3, 4\)"):
            BSDClassifier.load(path, module=Linear(5, 3))
        with pytest.raises(ValueError, match="cannot be built"):
            BSDClassifier.load(path, module=MLP)

    def test_another_whose_weights_fit(self, iris, path):
        model = quick(module=Linear).fit(*iris)
        model.save(path)
        with pytest.warns(UserWarning, match="a Linear, and fit the Renamed"):
            other = BSDClassifier.load(path, module=Renamed)
        assert_same(model, other, iris[0])

    @pytest.mark.parametrize("change", ["hook", "activation"])
    def test_one_that_was_changed_is_the_users(self, iris, path, change):
        network = MLP(4, 3, hidden=(8,))
        if change == "hook":
            network.register_forward_hook(double)
        else:
            network.layers[1] = nn.GELU()
        model = quick(module=network).fit(*iris)
        model.save(path)
        with pytest.raises(ValueError, match="weights of a MLP"):
            BSDClassifier.load(path)
        # The class alone would predict differently, but the instance does not.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = BSDClassifier.load(path, module=network)
        assert_same(model, other, iris[0])

    def test_a_subclass_of_ours_is_the_users(self, iris, path):
        arguments = {"module__in_features": 4, "module__n_classes": 3}
        model = quick(module=Wide, **arguments).fit(*iris)
        assert_same(model, loaded(model, path, module=Wide), iris[0])

    def test_state_that_is_no_tensor(self, iris, path):
        model = quick(module=WithExtraState).fit(*iris)
        with pytest.raises(ValueError, match="save takes tensors"):
            model.save(path)


def double(module, args, output):
    return 2 * output


class WithExtraState(Linear):
    def get_extra_state(self):
        return {"x": 1}

    def set_extra_state(self, state):
        pass


class TestGoingOn:
    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"batch_size": -1},
            {"posterior_dtype": "float16"},
            {"posterior_dtype": "compact-2"},
            {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
            {"optimizer": torch.optim.Adagrad},
            {"prior_strength": float("inf")},
            {"prior_strength": "noisy", "lr_schedule": "constant"},
        ],
    )
    def test_exactly_with_the_posterior(self, iris, path, given):
        model = quick(**given).fit(*iris)
        other = loaded(model, path, posterior=True)
        for one in (model, other):
            one.partial_fit(*iris)
        assert same_weights(model, other)
        mine, theirs = model.posterior_.state_dict(), other.posterior_.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert other.n_iter_ == model.n_iter_ == 6

    def test_images_stored_pixel_by_pixel(self, uint8_digits, path):
        X, y = uint8_digits[0][:300], uint8_digits[1][:300]
        model = quick(channels_last=True).fit(X, y)
        other = loaded(model, path, posterior=True)
        assert same_weights(model.partial_fit(X, y), other.partial_fit(X, y))

    def test_with_fresh_beliefs_without_it(self, iris, path):
        model = quick().fit(*iris)
        other = loaded(model, path).partial_fit(*iris)
        assert other.n_iter_ == 6
        assert (other.posterior_.visits == 3).all()

    def test_beliefs_that_are_not_there(self, iris, path):
        other = loaded(quick().fit(*iris), path)
        with pytest.raises(ValueError, match="has none"):
            other.save(path, posterior=True)
        with pytest.raises(AttributeError, match="posterior_"):
            other.posterior_  # noqa: B018


class TestErrors:
    def test_before_fit(self, path):
        with pytest.raises(NotFittedError):
            BSDClassifier().save(path)
        with pytest.raises(NotFittedError):
            BSDClassifier(Linear).initialize().save(path)
        assert not path.exists()

    def test_no_such_file_or_folder(self, iris, path, tmp_path):
        with pytest.raises(FileNotFoundError):
            BSDClassifier.load(path)
        with pytest.raises(FileNotFoundError):
            quick().fit(*iris).save(tmp_path / "none" / "model.skbsd")

    def test_a_full_disk_leaves_the_old_file(self, iris, path, monkeypatch):
        model = quick().fit(*iris)
        model.save(path)
        before = path.read_bytes()

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            model.save(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_a_newer_format(self, iris, path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(_files, "FORMAT", 7)
            quick().fit(*iris).save(path)
        with pytest.raises(ValueError, match=r"format 7.*Update skbsd"):
            BSDClassifier.load(path)

    def test_another_kind_of_file(self, path):
        _files.write_atomically(path, {}, {"kind": "something"})
        with pytest.raises(ValueError, match="'something'"):
            BSDClassifier.load(path)

    def test_cut_short(self, iris, path):
        quick().fit(*iris).save(path)
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ValueError, match="truncated"):
            BSDClassifier.load(path)


class Bomb:
    def __reduce__(self):
        return (eval, ("1 / 0",))


def _set(*keys, to):
    def change(header, tensors):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = to

    return change


def _widths(header, tensors):
    header["network"]["arguments"]["hidden"] = [10**9, 10**9]


def _other_dtype(header, tensors):
    tensors["module.layers.0.weight"] = tensors["module.layers.0.weight"].double()


def _fewer_weights(header, tensors):
    del tensors["module.layers.0.weight"]


def _short_moment(header, tensors):
    header["training"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)


class TestMaliciousFiles:
    @pytest.fixture
    def no_commands(self, monkeypatch):
        def refuse(*args):
            raise AssertionError("a command was run")

        monkeypatch.setattr(os, "system", refuse)

    def test_a_pickle(self, path, no_commands):
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(FileFormatError):
            BSDClassifier.load(path)

    @pytest.mark.parametrize(
        "change",
        [
            _set("parameters", "augmentation", to=("name", "os.system")),
            _set("parameters", "module", to=("name", "antigravity.Network")),
            _set("parameters", "module", to=("import", "antigravity")),
            _set("parameters", "__class__", to=("plain", "x")),
            _set("parameters", "predict", to=("plain", "x")),
            _set("parameters", to=None),
            _set("network", "name", to="os.system"),
            _set("network", "arguments", to={"in_features": -1, "n_classes": 3}),
            _set("network", "arguments", to={"in_features": 10**30, "n_classes": 3}),
            _set("fitted", "predict", to=("plain", 1)),
            _set("fitted", "__dict__", to=("plain", {})),
            _set("fitted", "module_", to=("plain", 1)),
            _set("fitted", "classes_inferred_", to=("plain", [1, 2, 3])),
            _set("preparation", "dtype", to="load"),
            _set("preparation", "unknown", to=1),
            _set("generators", to={"cpu": torch.zeros(3, dtype=torch.uint8)}),
            _set("generators", to={}),
            _set("history", to=[{}]),
            _set("prior", to={}),
            _set("training", "posterior", "visits", to=torch.zeros(3)),
            _set("training", "posterior", "labels", to=torch.full((150,), 9)),
            _set("training", "optimizer", "param_groups", to=[]),
            _widths,
            _other_dtype,
            _fewer_weights,
            _short_moment,
        ],
    )
    def test_a_changed_file(self, iris, path, no_commands, change):
        quick().fit(*iris).save(path, posterior=True)
        tampered(path, change)
        with pytest.raises(FileFormatError, match=r"model\.skbsd is damaged"):
            BSDClassifier.load(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_from_a_gpu(uint8_digits, path):
    X, y = uint8_digits
    model = quick(max_epochs=1).fit(X, y)
    other = loaded(model, path, posterior=True)
    assert other.device_.type == "cuda"
    assert np.allclose(model.predict_proba(X), other.predict_proba(X))
    header, _ = _files.read(path)
    assert header["parameters"]["device"] == ("plain", "auto")


def test_from_a_device_that_is_not_here(iris, path):
    model = quick().fit(*iris)
    model.save(path)
    tampered(path, _set("parameters", "device", to=("plain", "cuda:0")))
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.warns(DeviceWarning):
        other = BSDClassifier.load(path)
    assert other.device == "cpu"
    assert_same(model, other, iris[0])
