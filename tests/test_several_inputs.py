"""X may be several arrays in a dict or a list, for networks with several inputs."""

import pickle
from collections import UserDict

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick, same_weights
from modules import (
    ImageAndTable,
    Linear,
    ListOfTableAndKind,
    TableAndKind,
)
from scipy import sparse
from sklearn.model_selection import GridSearchCV, cross_val_score
from skorch.dataset import ValidSplit
from skorch.helper import SliceDict
from torch.utils.data import TensorDataset

from skbsd import BSDClassifier, report
from skbsd._batches import ResidentBatches
from skbsd._loading import TrainingData, on_device


@pytest.fixture(scope="module")
def kind():
    return np.random.default_rng(0).integers(0, 5, 150)


@pytest.fixture(scope="module")
def pair(iris, kind):
    X, y = iris
    return {"table": X, "kind": kind}, y


class TestDict:
    def test_entries_are_arguments_and_integers_stay(self, pair):
        X, y = pair
        model = quick(module=TableAndKind, max_epochs=20, batch_size=16).fit(X, y)
        assert model.score(X, y) > 0.8
        assert model.data_loading_ == "resident"
        assert not hasattr(model, "n_features_in_")
        assert model.predict_proba(X).shape == (150, 3)
        assert model.decision_function(X).shape == (150, 3)

    def test_same_as_one_array(self, iris):
        class Named(Linear):
            def forward(self, table):
                return super().forward(table)

        X, y = iris
        one = quick(module=Linear).fit(X, y)
        other = quick(module=Named).fit({"table": X}, y)
        assert same_weights(one, other)
        assert np.array_equal(one.predict_proba(X), other.predict_proba({"table": X}))

    @pytest.mark.parametrize(
        "convert",
        [
            lambda X: {k: torch.as_tensor(v) for k, v in X.items()},
            lambda X: {"table": pd.DataFrame(X["table"]), "kind": pd.Series(X["kind"])},
            lambda X: {k: v.tolist() for k, v in X.items()},
            lambda X: {"table": sparse.csr_array(X["table"]), "kind": X["kind"]},
            lambda X: SliceDict(**X),
            UserDict,
        ],
        ids=["tensors", "pandas", "lists", "sparse", "SliceDict", "UserDict"],
    )
    def test_what_the_entries_may_be(self, pair, convert):
        X, y = pair
        expected = quick(module=TableAndKind).fit(X, y)
        model = quick(module=TableAndKind).fit(convert(X), y)
        assert same_weights(model, expected)
        found = model.predict_proba(convert(X))
        np.testing.assert_allclose(found, expected.predict_proba(X), atol=1e-6)

    @pytest.mark.parametrize("calibration", ["cross-fit", "hold-out"])
    def test_calibration(self, pair, calibration):
        X, y = pair
        model = quick(module=TableAndKind, calibration=calibration, max_epochs=10)
        model.fit(X, y)
        assert model.calibration_.n_samples > 0
        seen = ~np.isnan(model.out_of_fold_proba_).any(axis=1)
        assert seen.any()

    def test_weights_and_train_split(self, pair):
        X, y = pair
        weight = np.r_[np.zeros(20), np.ones(130)]
        model = quick(module=TableAndKind, train_split=ValidSplit(3, stratified=True))
        model.fit(X, y, sample_weight=weight)
        assert "valid_acc" in model.history_[-1]
        assert not model.posterior_.visits[:20].any()

    def test_images_of_bytes_are_standardised(self, uint8_digits):
        images, y = (a[:100] for a in uint8_digits)
        X = {"image": images, "table": np.zeros((100, 4), dtype=int)}
        # The integers are meant as floats here, and the network says so.
        with pytest.raises(RuntimeError, match="dtype"):
            quick(module=ImageAndTable).fit(X, y)
        X["table"] = X["table"].astype(float)
        model = quick(module=ImageAndTable).fit(X, y)
        model.predict(X)
        assert model.module_.seen.mean().abs() < 1e-5
        assert (model.module_.seen.std() - 1).abs() < 1e-2
        floats = X | {"image": images.astype(np.float32)}
        with pytest.raises(ValueError, match=r"float images, but .* uint8"):
            model.predict(floats)
        copied = pickle.loads(pickle.dumps(model))
        assert np.array_equal(copied.predict_proba(X), model.predict_proba(X))

    def test_partial_fit_keeps_beliefs_of_the_same_data(self, pair):
        X, y = pair
        model = quick(module=TableAndKind, max_epochs=1).partial_fit(X, y)
        model.partial_fit({k: v.copy() for k, v in X.items()}, y)
        assert (model.posterior_.visits == 2).all()
        other = X | {"kind": np.roll(X["kind"], 1)}
        model.partial_fit(other, y)
        assert (model.posterior_.visits == 1).all()

    def test_order_of_the_entries_changes_nothing(self, pair, tmp_path):
        X, y = pair
        reverse = dict(reversed(X.items()))
        options = {"module": TableAndKind, "calibration": "cross-fit"}
        one, other = quick(**options), quick(**options, checkpoint=tmp_path)
        one.fit(X, y), other.fit(reverse, y)
        assert np.array_equal(one.predict_proba(X), other.predict_proba(reverse))
        n = len(list(tmp_path.iterdir()))
        quick(**options, checkpoint=tmp_path).fit(X, y)
        assert len(list(tmp_path.iterdir())) == n
        visits = other.posterior_.visits.clone()
        other.partial_fit(X, y)
        assert torch.equal(other.posterior_.visits, visits + 3)

    def test_checkpoint_is_of_all_entries(self, pair, tmp_path):
        X, y = pair
        model = quick(module=TableAndKind, checkpoint=tmp_path)
        model.fit(X, y)
        quick(module=TableAndKind, checkpoint=tmp_path).fit(X, y)
        assert len(list(tmp_path.iterdir())) == 1
        other = X | {"kind": np.roll(X["kind"], 1)}
        quick(module=TableAndKind, checkpoint=tmp_path).fit(other, y)
        assert len(list(tmp_path.iterdir())) == 2

    def test_save_and_load(self, pair, tmp_path):
        X, y = pair
        model = quick(module=TableAndKind).fit(X, y)
        model.save(tmp_path / "model", posterior=True)
        loaded = BSDClassifier.load(tmp_path / "model", module=TableAndKind)
        assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
        with pytest.raises(ValueError, match=r"X has the inputs \['table'\]"):
            loaded.predict({"table": X["table"]})

    def test_folds_follow_the_contents_of_all_entries(self, pair):
        X, y = pair
        order = np.random.default_rng(1).permutation(150)
        model = quick(module=TableAndKind, calibration="cross-fit", max_epochs=2)
        first = model.fit(X, y).out_of_fold_proba_
        shuffled = {k: v[order] for k, v in X.items()}
        again = model.fit(shuffled, y[order]).out_of_fold_proba_
        assert np.array_equal(np.isnan(first)[order], np.isnan(again))

    @pytest.mark.parametrize(
        "options",
        [
            {"iterator_train__num_workers": 2},
            {"iterator_train__collate_fn": torch.utils.data.default_collate},
        ],
    )
    def test_through_a_loader(self, pair, options):
        X, y = pair
        X = X | {"table": sparse.csr_array(X["table"])}
        model = quick(module=TableAndKind, **options).fit(X, y)
        assert model.data_loading_ == "loader"
        assert np.isfinite(model.history_[-1, "train_loss"])

    def test_larger_than_what_may_be_copied(self, pair, monkeypatch):
        X, y = pair
        expected = quick(module=TableAndKind).fit(X, y)
        monkeypatch.setattr(ResidentBatches, "COPY", 0)
        assert same_weights(quick(module=TableAndKind).fit(X, y), expected)

    def test_augmentation_gets_the_dict(self, pair):
        X, y = pair
        seen = []

        def augment(batch):
            seen.append(set(batch))
            return batch | {"table": batch["table"] + 1}

        model = quick(module=TableAndKind, augmentation=augment).fit(X, y)
        assert seen[0] == {"table", "kind"}
        plain = quick(module=TableAndKind).fit(X, y)
        assert not same_weights(model, plain)
        with pytest.raises(ValueError, match="requires a single array of images"):
            quick(module=TableAndKind, augmentation="flip-crop").fit(X, y)
        with pytest.raises(ValueError, match="expected the same type and shape"):
            quick(module=TableAndKind, augmentation=lambda batch: {}).fit(X, y)

    def test_contrastive_says_what_it_takes(self, pair):
        with pytest.raises(ValueError, match="dict; pass contrastive=None"):
            quick(module=TableAndKind, contrastive=0.2).fit(*pair)


class TestSearches:
    def test_sliceable(self, pair):
        X, y = pair
        scores = cross_val_score(
            quick(module=TableAndKind, max_epochs=20, batch_size=16),
            SliceDict(**X),
            y,
            cv=2,
        )
        assert (scores > 0.7).all()
        search = GridSearchCV(quick(module=TableAndKind), {"lr": [1e-3, 1e-2]}, cv=2)
        assert search.fit(SliceDict(**X), y).predict(SliceDict(**X)).shape == (150,)

    def test_plain_dict_is_refused_by_scikit_learn(self, pair):
        X, y = pair
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            cross_val_score(quick(module=TableAndKind), X, y, cv=2)


class TestList:
    def test_list_is_one_argument(self, pair):
        X, y = pair
        expected = quick(module=TableAndKind).fit(X, y)
        for several in ([X["table"], X["kind"]], (X["table"], X["kind"])):
            model = quick(module=ListOfTableAndKind).fit(several, y)
            assert same_weights(model, expected)
            found = model.predict_proba(several)
            assert np.array_equal(found, expected.predict_proba(X))

    @pytest.mark.parametrize(
        "kind", [list, tuple, lambda X: list(map(torch.tensor, X))]
    )
    def test_rows_are_a_table(self, iris, kind):
        X, y = iris
        model = quick().fit(kind(X), y)
        assert model.n_features_in_ == 4
        assert same_weights(model, quick().fit(X, y))

    def test_images_are_one_batch(self, uint8_digits):
        X, y = (a[:100] for a in uint8_digits)
        model = quick().fit(list(X), y)
        assert same_weights(model, quick().fit(X, y))
        assert model.predict(list(X[:3])).shape == (3,)

    def test_images_of_several_sizes(self):
        images = [np.zeros((1, 4 + i % 2, 4)) for i in range(20)]
        message = r"different shapes, such as \(1, 4, 4\) and \(1, 5, 4\).*collate_fn"
        with pytest.raises(ValueError, match=message):
            quick().fit(images, np.arange(20) % 2)

    def test_dataset_after_a_list(self, pair):
        X, y = pair
        table, kind = torch.tensor(X["table"]), torch.tensor(X["kind"])
        model = quick(module=ListOfTableAndKind).fit([table, kind], y)
        for data in (TensorDataset(table, kind, kind), TensorDataset(table, kind)):
            np.testing.assert_allclose(
                model.predict_proba(data), model.predict_proba([table, kind]), atol=1e-6
            )

    def test_nested(self, pair):
        class Nested(TableAndKind):
            def forward(self, both, scale):
                return super().forward(*both) * scale[:, None]

        X, y = pair
        nested = {"both": [X["table"], X["kind"]], "scale": np.ones(150)}
        expected = quick(module=TableAndKind).fit(X, y)
        assert same_weights(quick(module=Nested).fit(nested, y), expected)


def test_report(pair, tmp_path):
    X, y = pair
    page = report(quick(module=TableAndKind).fit(X, y), X, y, tmp_path / "r.html")
    assert "Balanced accuracy" in page.read_text()


class TestErrors:
    def test_keys_that_forward_does_not_have(self, pair):
        X, y = pair
        with pytest.raises(TypeError, match=r"\['colour', 'table'\].*TableAndKind"):
            quick(module=TableAndKind).fit(
                {"table": X["table"], "colour": X["kind"]}, y
            )

    def test_no_module(self, pair):
        for X in (pair[0], list(pair[0].values())):
            with pytest.raises(TypeError, match="pass a custom module"):
                quick().fit(X, pair[1])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"table": np.full((150, 4), np.nan)}, r"X\['table'\] contains NaN"),
            (
                {"table": torch.full((150, 4), torch.inf)},
                r"X\['table'\] contains infin",
            ),
            ({"table": [["red"] * 4] * 150}, r"X\['table'\].*strings"),
            ({"kind": np.arange(149)}, r"X\['kind'\] has 149, X\['table'\] has 150"),
            ({"kind": [[1], [1, 2]]}, r"X\['kind'\] contains rows of different"),
            ({"kind": 3}, r"X\['kind'\] is 3; expected an array"),
            ({"image": np.zeros((150, 9, 9, 3), np.uint8)}, r"X\['image'\].*moveaxis"),
        ],
    )
    def test_entry_is_named(self, pair, change, message):
        X, y = pair
        with pytest.raises(ValueError, match=message):
            quick(module=TableAndKind).fit(X | change, y)

    def test_keys(self, pair):
        with pytest.raises(TypeError, match="key 0; expected strings"):
            quick(module=TableAndKind).fit({0: pair[0]["table"]}, pair[1])
        with pytest.raises(ValueError, match="empty dict"):
            quick(module=TableAndKind).fit({}, pair[1])

    def test_prediction_of_another_kind(self, pair, iris):
        X, y = pair
        model = quick(module=TableAndKind).fit(X, y)
        with pytest.raises(ValueError, match=r"fitted on a dict with the inputs"):
            model.predict(X["table"])
        with pytest.raises(ValueError, match=r"fitted on a dict with the inputs"):
            model.predict(list(X.values()))
        with pytest.raises(ValueError, match=r"X\['kind'\] has type float64.*int64"):
            model.predict(X | {"kind": X["kind"].astype(float)})
        with pytest.raises(ValueError, match=r"X\['table'\] has samples of shape"):
            model.predict(X | {"table": X["kind"]})
        other = quick(module=Linear).fit(*iris)
        with pytest.raises(ValueError, match=r"several inputs, but .* on one array"):
            other.predict(X)

    def test_image_shape(self, pair):
        with pytest.raises(ValueError, match="of one array"):
            quick(module=TableAndKind, image_shape=(1, 2, 2)).fit(*pair)

    def test_lengths_of_y(self, pair):
        with pytest.raises(ValueError, match=r"inconsistent.*\[150, 149\]"):
            quick(module=TableAndKind).fit(pair[0], pair[1][:-1])


def test_each_entry_is_moved_once(pair):
    X, y = pair
    data = TrainingData(X, X, y, np.unique(y), y, None, None)
    moved = on_device(data, torch.device("cpu"), torch.float64, by_loader=False)
    assert moved.X["table"].data_ptr() == X["table"].ctypes.data
    assert moved.X["kind"].dtype == torch.int64


def test_several_processes_have_parts_of_each_entry(pair):
    X, y = pair
    X = {"table": sparse.csr_array(X["table"]), "kind": X["kind"]}
    split = ValidSplit(3, stratified=True)
    options = {"module": TableAndKind, "train_split": split, "batch_size": 100}
    alone = quick(**options).fit(X, y)
    together = quick(**options, device="cpu", devices=2).fit(X, y)
    np.testing.assert_allclose(
        together.predict_proba(X), alone.predict_proba(X), atol=0.02
    )
    assert torch.equal(together.posterior_.visits, alone.posterior_.visits)
    assert together.history_[-1, "valid_loss"] == pytest.approx(
        alone.history_[-1, "valid_loss"], abs=0.02
    )
