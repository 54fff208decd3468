"""Datasets of dicts, tuples, folders and ragged items; errors about others."""

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from modules import (
    Linear,
    ListOfTableAndKind,
    ReturnsObject,
    Sequence,
    TableAndKind,
    Words,
)
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from skbsd._items import inputs_of, label_of, n_inputs_of, relabelled


class Items(Dataset):
    """Items of a list."""

    def __init__(self, items):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.fixture(scope="module")
def parts(iris):
    X, y = iris
    kind = np.random.default_rng(0).integers(0, 5, 150)
    return torch.tensor(X, dtype=torch.float32), torch.tensor(kind), torch.tensor(y)


@pytest.fixture(scope="module")
def expected(parts):
    data = Items(({"table": a, "kind": b}, c) for a, b, c in zip(*parts, strict=True))
    return quick(module=TableAndKind).fit(data)


class TestDicts:
    @pytest.mark.parametrize("key", ["label", "labels"])
    def test_label_is_taken_out(self, parts, expected, key):
        data = Items(
            {"table": a, "kind": b, key: c} for a, b, c in zip(*parts, strict=True)
        )
        model = quick(module=TableAndKind).fit(data)
        assert same_weights(model, expected)
        without = Items({k: v for k, v in i.items() if k != key} for i in data.items)
        for X in (data, without, {"table": parts[0], "kind": parts[1]}):
            assert np.array_equal(
                model.predict_proba(X), expected.predict_proba(without)
            )
        assert model.score(data) == model.score(without, parts[2])
        # With y given, the label among the inputs is none of them.
        again = quick(module=TableAndKind).fit(data, parts[2])
        assert same_weights(again, expected)

    def test_calibration_and_partial_fit(self, parts):
        data = Items(
            {"table": a, "kind": b, "label": c} for a, b, c in zip(*parts, strict=True)
        )
        model = quick(module=TableAndKind, calibration="cross-fit", max_epochs=2)
        model.fit(data)
        assert model.calibration_.n_samples > 0
        assert (model.partial_fit(data).posterior_.visits == 4).all()

    def test_collator_of_dicts(self, parts):
        """As a tokenizer's, which calls the label "labels" and pads."""

        def pad(items):
            words = [item["words"] for item in items]
            out = {"x": nn.utils.rnn.pad_sequence(words, batch_first=True)}
            if "label" in items[0]:
                out["labels"] = torch.tensor([item["label"] for item in items])
            return out

        rng = np.random.default_rng(0)
        labels = ["no", "yes"] * 30
        items = [
            {"words": torch.tensor(rng.integers(1, 20, 2 + i % 3)), "label": label}
            for i, label in enumerate(labels)
        ]
        options = {
            "iterator_train__collate_fn": pad,
            "iterator_valid__collate_fn": pad,
        }
        model = quick(module=Words, module__n_classes=2, **options).fit(Items(items))
        assert model.classes_.tolist() == ["no", "yes"]
        assert model.predict(Items(items)).shape == (60,)


class TestHuggingFace:
    @pytest.fixture
    def rows(self, iris):
        datasets = pytest.importorskip("datasets")
        X, y = iris
        return datasets.Dataset.from_dict({"x": X.tolist(), "label": y.tolist()})

    def test_with_and_without_a_format(self, rows, iris):
        X, y = iris
        model = quick(module=Linear).fit(rows)
        for data in (rows, rows.with_format("torch"), {"x": X.astype(np.float32)}):
            assert model.predict_proba(data).shape == (150, 3)
        assert same_weights(quick(module=Linear).fit(rows.with_format("torch")), model)
        assert model.score(rows) == model.score(rows, y)
        with_y = quick(module=Linear).fit(rows.remove_columns("label"), y)
        assert same_weights(with_y, model)

    def test_checkpoint_is_of_the_contents(self, rows, tmp_path):
        quick(module=Linear, checkpoint=tmp_path).fit(rows)
        quick(module=Linear, checkpoint=tmp_path).fit(rows)
        assert len(list(tmp_path.iterdir())) == 1
        changed = rows.map(lambda row: {"x": [-v for v in row["x"]]})
        quick(module=Linear, checkpoint=tmp_path).fit(changed)
        assert len(list(tmp_path.iterdir())) == 2

    def test_dict_of_splits(self, rows):
        datasets = pytest.importorskip("datasets")
        with pytest.raises(TypeError, match=r"DatasetDict .*X\['train'\]"):
            quick(module=Linear).fit(datasets.DatasetDict(train=rows))

    def test_text_is_named(self, rows):
        data = rows.add_column("text", ["a"] * 150)
        with pytest.raises(TypeError, match=r"x\['text'\] = 'a'.*remove_columns"):
            quick(module=Linear).fit(data)

    def test_batch_encoding(self, iris):
        transformers = pytest.importorskip("transformers")
        y = iris[1]
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 20, (150, 5)).tolist()
        encoding = transformers.BatchEncoding({"x": ids})
        model = quick(module=Words).fit(encoding, y)
        assert same_weights(model, quick(module=Words).fit({"x": np.array(ids)}, y))
        assert model.predict(encoding).shape == (150,)
        ragged = transformers.BatchEncoding({"x": [*ids[:-1], [1]]})
        with pytest.raises(ValueError, match=r"X\['x'\] .*padding=True"):
            quick(module=Words).fit(ragged, y)


class TestTuples:
    def test_label_is_last(self, parts, expected):
        flat = TensorDataset(*parts)
        nested = Items(((a, b), c) for a, b, c in zip(*parts, strict=True))
        without = TensorDataset(*parts[:2])
        proba = expected.predict_proba({"table": parts[0], "kind": parts[1]})
        for data in (flat, nested):
            model = quick(module=ListOfTableAndKind).fit(data)
            assert same_weights(model, expected)
            assert np.array_equal(model.predict_proba(data), proba)
            found = model.predict_proba([parts[0], parts[1]])
            assert np.array_equal(found, proba)
        model = quick(module=ListOfTableAndKind).fit(flat)
        assert np.array_equal(model.predict_proba(without), proba)

    def test_no_label_where_y_is_given(self, parts):
        X, _, y = parts
        expected = quick(module=Linear).fit(TensorDataset(X, y))
        for data in (TensorDataset(X), Items(X)):
            model = quick(module=Linear).fit(data, y.numpy())
            assert same_weights(model, expected)
            assert model.predict(data).shape == (150,)
            with pytest.raises(ValueError, match="must return pairs"):
                quick(module=Linear).fit(data)
            with pytest.raises(ValueError, match="must return pairs"):
                model.score(data)

    @pytest.mark.parametrize(
        ("item", "x", "label", "again"),
        [
            ((1, 2), 1, 2, (1, 9)),
            ((1, 2, 3), [1, 2], 3, (1, 2, 9)),
            (((1, 2), 3), (1, 2), 3, ((1, 2), 9)),
            ({"a": 1, "label": 2}, {"a": 1}, 2, {"a": 1, "label": 9}),
        ],
    )
    def test_parts(self, item, x, label, again):
        assert inputs_of(item) == x
        assert label_of(item) == label
        assert relabelled(item, 9) == again

    def test_batches_of_predictions(self):
        assert n_inputs_of((1, 2, 3)) == 2
        assert inputs_of([1, 2], 2) == [1, 2]
        assert inputs_of([1, 2, 3], 2) == [1, 2]
        assert inputs_of([1, 2], 1) == 1


class TestTypes:
    def test_integers(self, iris):
        X = torch.tensor(iris[0] * 10).long()
        data = TensorDataset(X, torch.tensor(iris[1]))
        floats = TensorDataset(X.float(), torch.tensor(iris[1]))
        for options in ({}, {"module": Linear}):
            model = quick(**options).fit(data)
            assert same_weights(model, quick(**options).fit(floats))
            assert np.array_equal(
                model.predict_proba(X.numpy()), model.predict_proba(floats)
            )

    def test_embedded_integers(self, iris):
        X = torch.randint(0, 20, (150, 5), generator=torch.Generator().manual_seed(0))
        data = TensorDataset(X, torch.tensor(iris[1]))
        model = quick(module=Words).fit(data)
        assert same_weights(
            model, quick(module=Words).fit(TensorDataset(X.byte(), data.tensors[1]))
        )
        assert np.array_equal(model.predict(X.numpy()), model.predict(data))

    def test_bfloat16(self, iris):
        X = torch.tensor(iris[0]).bfloat16()
        y = torch.tensor(iris[1])
        model = quick().fit(TensorDataset(X, y))
        assert same_weights(model, quick().fit(TensorDataset(X.float(), y)))

    def test_arrays_after_a_dataset(self, iris, uint8_digits):
        X, y = iris
        model = quick().fit(TensorDataset(torch.tensor(X).float(), torch.tensor(y)))
        assert model.score(X, y) == model.score(
            TensorDataset(torch.tensor(X).float(), torch.tensor(y))
        )
        images, y = (a[:60] for a in uint8_digits)
        data = TensorDataset(torch.tensor(images), torch.tensor(y))
        model = quick().fit(data)
        assert np.array_equal(model.predict_proba(images), model.predict_proba(data))


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        datasets = pytest.importorskip("torchvision.datasets")
        rng = np.random.default_rng(0)
        for name, level in [("cat", 60), ("dog", 180)]:
            (tmp_path / name).mkdir()
            for i in range(20):
                noise = rng.integers(-40, 40, (8, 8, 3))
                pixels = np.clip(level + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        return lambda **options: datasets.ImageFolder(tmp_path, **options)

    def test_classes_are_names(self, folder):
        from torchvision.transforms import ToTensor

        data = folder(transform=ToTensor())
        model = quick(max_epochs=8, batch_size=8).fit(data)
        assert model.classes_.tolist() == ["cat", "dog"]
        assert set(model.predict(data)) <= {"cat", "dog"}
        names = np.array(data.classes)[data.targets]
        expected = (model.predict(data) == names).mean()
        for y in (None, names, data.targets):
            assert model.score(data, y) == expected
        part = Subset(data, [0, 5, 20, 25, 39])
        assert model.score(part) == model.score(part, [0, 0, 1, 1, 1])
        both = quick(max_epochs=1).fit(ConcatDataset([data, part]))
        assert both.classes_.tolist() == ["cat", "dog"]

    @pytest.mark.parametrize("index", [-1, 2])
    def test_indices_of_no_folder(self, index, folder):
        from torchvision.transforms import ToTensor

        data = folder(transform=ToTensor())
        model = quick(max_epochs=1).fit(data)
        with pytest.raises(ValueError, match=rf"{index}.*2 folders, from 0 to 1"):
            model.score(data, [index] * len(data))

    def test_y_and_target_transforms_are_taken_as_they_are(self, folder):
        from torchvision.transforms import ToTensor

        data = folder(transform=ToTensor())
        model = quick(max_epochs=1).fit(data, data.targets)
        assert model.classes_.tolist() == [0, 1]
        expected = (model.predict(data) == data.targets).mean()
        for y in (None, data.targets, np.array(data.classes)[data.targets]):
            assert model.score(data, y) == expected
        changed = folder(transform=ToTensor(), target_transform=lambda k: k + 5)
        assert quick(max_epochs=1).fit(changed).classes_.tolist() == [5, 6]

    def test_pictures_without_a_transform(self, folder):
        with pytest.raises(TypeError, match=r"images of PIL.*ToTensor\(\).*ToDtype"):
            quick().fit(folder())


class TestShapes:
    @pytest.fixture
    def ragged(self, iris):
        rng = np.random.default_rng(0)
        return Items(
            (torch.tensor(rng.normal(y, 1, (3 + i % 3, 2))).float(), int(y))
            for i, y in enumerate(iris[1])
        )

    def test_without_a_collate_fn(self, ragged, iris):
        message = r"x has the shapes \(3, 2\) and \(4, 2\).*iterator_valid__collate_fn"
        with pytest.raises(ValueError, match=message):
            quick(module=Sequence).fit(ragged)
        model = quick(module=Sequence).fit(np.zeros((150, 3, 2)), iris[1])
        with pytest.raises(ValueError, match=message):
            model.predict(ragged)

    def test_padding(self, ragged):
        def pad(items):
            x = nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True)
            return x, torch.tensor([y for _, y in items])

        options = {
            "iterator_train__collate_fn": pad,
            "iterator_valid__collate_fn": pad,
        }
        model = quick(module=Sequence, calibration="cross-fit", **options).fit(ragged)
        assert model.predict(ragged).shape == (150,)
        assert np.isfinite(model.out_of_fold_proba_).all()


class TestNotFinite:
    def test_rows_are_named(self, iris):
        X, y = torch.tensor(iris[0]).float(), torch.tensor(iris[1])
        X[7, 2] = torch.nan
        X[11, 0] = torch.inf
        with pytest.raises(
            ValueError, match=r"items \[7, 11\] of the Dataset contain NaN"
        ):
            quick().fit(TensorDataset(X, y))

    def test_in_folds_and_dicts(self, parts):
        X, kind, y = (part.clone() for part in parts)
        X[140, 0] = torch.nan
        items = [
            {"table": a, "kind": b, "label": c}
            for a, b, c in zip(X, kind, y, strict=True)
        ]
        model = quick(module=TableAndKind, calibration="cross-fit")
        message = r"items \[140\] of the Dataset"
        with (
            pytest.warns(ConvergenceWarning, match=message),
            pytest.raises(ValueError, match=message),
        ):
            model.fit(Items(items))

    def test_other_divergence_is_about_the_learning_rate(self, iris):
        data = TensorDataset(torch.tensor(iris[0]).float(), torch.tensor(iris[1]))
        options = {"lr": 1e30, "lr_schedule": "constant", "optimizer": torch.optim.SGD}
        with pytest.raises(ValueError, match="Lower lr"):
            quick(**options).fit(data)


def test_entries_that_are_none(iris):
    with pytest.raises(TypeError, match=r"x = None, but a network requires numbers"):
        quick().fit(Items([(None, 0), (None, 1)]))


def test_random_items_are_drawn_as_before(iris):
    """Looking at the first item takes nothing from the generators of a fit."""

    class Noisy(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + torch.randn(4) / 10, y

    data = Noisy(torch.tensor(iris[0]).float(), torch.tensor(iris[1]))
    first = quick(module=ReturnsObject).fit(data)
    assert same_weights(first, quick(module=ReturnsObject).fit(data))
