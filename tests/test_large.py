"""Data that are larger than memory: arrays in files, and Datasets that read files."""

import mmap
import os
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from numpy.testing import assert_allclose, assert_array_equal
from torch.utils.data import Dataset

from skbsd import BSDClassifier, _large, _loading, _mapped
from skbsd._batches import ResidentBatches
from skbsd._mapped import MappedRows

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory is limited in Linux's way"
)


def in_file(X, path, mode="r"):
    np.save(path, X)
    return np.load(path, mmap_mode=mode)


@pytest.fixture
def nothing_is_copied(monkeypatch):
    """Let arrays of a kilobyte count as too large to copy."""
    for module in (_large, _loading):
        monkeypatch.setattr(module, "COPY", 1000)
    monkeypatch.setattr(_large, "PART", 1000)
    monkeypatch.setattr(ResidentBatches, "COPY", 1000)


class Items(Dataset):
    """Reads single samples of a file, which each process maps for itself."""

    def __init__(self, path, y):
        self.path, self.y = path, y
        self.X = None

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        if self.X is None:
            self.X = np.load(self.path, mmap_mode="r")
        return torch.tensor(self.X[i]), self.y[i]

    def __getstate__(self):
        return {**vars(self), "X": None}


class TestArraysInFiles:
    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    @pytest.mark.parametrize("calibration", [None, "auto", "hold-out"])
    def test_same_as_in_memory(self, digits, tmp_path, mode, calibration):
        X, y = digits[0][:400].reshape(400, -1) / 16, digits[1][:400]
        mapped = in_file(X, tmp_path / "X.npy", mode)
        model = quick(calibration=calibration)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one = quick(calibration=calibration).fit(mapped, y)
        assert same_weights(one, model.fit(X, y))
        assert_array_equal(one.predict_proba(mapped), model.predict_proba(X))
        assert_array_equal(np.load(tmp_path / "X.npy"), X)

    def test_images(self, uint8_digits, tmp_path):
        X, y = uint8_digits[0][:300], uint8_digits[1][:300]
        mapped = in_file(X, tmp_path / "X.npy")
        kwargs = {"augmentation": "flip-crop"}
        one = quick(**kwargs).fit(mapped, y)
        assert same_weights(one, quick(**kwargs).fit(X, y))
        assert_array_equal(np.load(tmp_path / "X.npy"), X)

    @pytest.mark.usefixtures("nothing_is_copied")
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("calibration", [None, "auto"])
    def test_in_parts(self, digits, tmp_path, monkeypatch, dtype, calibration):
        X = (digits[0][:600].reshape(600, -1) / 16).astype(dtype)
        y = digits[1][:600]
        mapped = in_file(X, tmp_path / "X.npy")
        one = quick(calibration=calibration).fit(mapped, y)
        monkeypatch.undo()
        other = quick(calibration=calibration).fit(X, y)
        assert same_weights(one, other)
        assert_array_equal(one.predict_proba(mapped), other.predict_proba(X))

    @pytest.mark.usefixtures("nothing_is_copied")
    def test_a_device_holds_what_the_network_takes(self, iris):
        """Not twice as much in double precision, which some devices do not support."""
        X, y = iris[0].astype(np.float64), iris[1]
        options = {"class_weight": None, "classes": None, "image_shape": None}
        data = _loading.checked_data(X, y, None, caller="", **options)
        meta = torch.device("meta")
        found = _loading.on_device(data, meta, torch.float32, by_loader=False).X
        assert (found.device, found.dtype) == (meta, torch.float32)
        tensor = torch.from_numpy(X)
        converted = _loading._converted(tensor, torch.device("cpu"), torch.float32)
        assert torch.equal(converted, tensor.float())

    def test_a_view_that_nobody_writes_to(self):
        X = np.arange(12.0).reshape(3, 4)
        X.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensor = _large.shared(X)
        assert tensor.data_ptr() == X.ctypes.data
        assert_array_equal(tensor, X)
        del X
        assert tensor.sum() == 66

    @pytest.mark.usefixtures("nothing_is_copied")
    def test_values_that_are_too_large(self, iris):
        X, y = iris[0].copy(), iris[1]
        X[140, 2] = 1e100
        with pytest.raises(ValueError, match="X contains values as large as 1e\\+100"):
            quick().fit(X, y)

    def test_standard_deviations(self, monkeypatch):
        X = np.random.default_rng(0).normal(1e4, 1.0, size=(5000, 3))
        X = X.astype(np.float32)
        expected = X.astype(np.float64).std(axis=0)
        monkeypatch.setattr(_large, "COPY", 1000)
        monkeypatch.setattr(_large, "PART", 1000)
        assert_allclose(_large.standard_deviations(X), expected, rtol=1e-3)

    @pytest.mark.usefixtures("nothing_is_copied")
    def test_columns_of_different_scales(self):
        X = np.random.default_rng(0).normal(size=(300, 3)) * [1.0, 1.0, 1e4]
        with pytest.warns(UserWarning, match="column 2 of X has a standard deviation"):
            quick().fit(X, np.arange(300) % 2)

    def test_rows_are_predicted_in_batches_of_some_bytes(self, monkeypatch, iris):
        X, y = iris
        model = quick().fit(X, y)
        expected = model.predict_proba(X)
        sizes = []
        model.module_.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
        monkeypatch.setattr(_loading, "_LARGEST_BATCH", 32 * 140)
        assert_allclose(model.predict_proba(X), expected, atol=1e-6)
        assert sizes == [140, 10]


@pytest.mark.skipif(
    not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no advice"
)
class TestReadingAhead:
    """For a file that is larger than memory; the size of memory is set to zero here."""

    @pytest.fixture
    def advised(self, monkeypatch):
        """Return the rows that were asked for, batch by batch."""
        batches = []
        read_ahead = MappedRows.read_ahead

        def watched(self, rows):
            batches.append(np.sort(np.asarray(rows)))
            read_ahead(self, rows)

        monkeypatch.setattr(_mapped, "memory", lambda: 1)
        monkeypatch.setattr(MappedRows, "read_ahead", watched)
        return batches

    @pytest.mark.usefixtures("nothing_is_copied")
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_each_batch_once(self, digits, tmp_path, advised, dtype):
        X = digits[0][:300].reshape(300, -1).astype(dtype) / 16
        y = digits[1][:300]
        one = quick(max_epochs=2, batch_size=50)
        one.fit(in_file(X, tmp_path / "X.npy"), y)
        assert same_weights(one, quick(max_epochs=2, batch_size=50).fit(X, y))
        for epoch in (advised[-12:-6], advised[-6:]):
            assert list(map(len, epoch)) == [50] * 6
            assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(300))

    def test_of_held_out_samples(self, digits, tmp_path, advised):
        X, y = digits[0][:300].reshape(300, -1) / 16, digits[1][:300]
        model = quick(calibration="hold-out")
        model.fit(in_file(X, tmp_path / "X.npy"), y)
        assert len(advised[-1]) == model.calibration_.n_samples

    def test_what_is_advised(self, tmp_path):
        X = np.arange(4000.0).reshape(40, 100)
        mapped = in_file(X, tmp_path / "X.npy")[10:]
        calls = []

        class Mapping:
            def madvise(self, option, start, length):
                assert option == mmap.MADV_WILLNEED
                assert start % mmap.PAGESIZE == 0
                calls.append((start, start + length))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_mapped, "memory", lambda: 1)
            rows = MappedRows.of(mapped)
        rows.read_ahead(np.array([29, 0]))
        rows._mapping, real = Mapping(), rows._mapping
        rows.read_ahead(np.array([29, 0]))
        for row, (start, end) in zip((10, 39), calls, strict=True):
            offset = (row * 800 + 128) - start
            found = np.frombuffer(real[start:end], np.uint8)[offset:]
            assert_array_equal(found.view(np.float64), X[row])

    def test_what_stays_in_memory_needs_no_advice(self, tmp_path, monkeypatch):
        X = np.zeros((10, 10))
        mapped = in_file(X, tmp_path / "X.npy")
        assert MappedRows.of(mapped) is None
        assert _mapped.memory() > 2**26
        monkeypatch.setattr(_mapped, "memory", lambda: 1)
        assert MappedRows.of(mapped) is not None
        for other in (X, mapped[:, ::2], mapped.T, torch.zeros(3), None):
            assert MappedRows.of(other) is None


class TestDatasets:
    @pytest.fixture
    def items(self, digits, tmp_path):
        X = (digits[0][:300].reshape(300, -1) / 16).astype(np.float32)
        np.save(tmp_path / "X.npy", X)
        return Items(tmp_path / "X.npy", digits[1][:300])

    @pytest.mark.parametrize("store", ["float32", "compact-4"])
    def test_through_workers(self, items, store):
        kwargs = {"posterior_dtype": store, "max_epochs": 2}
        one = quick(iterator_train__num_workers=2, **kwargs).fit(items, items.y)
        other = quick(**kwargs).fit(items, items.y)
        assert one.data_loading_ == "loader"
        assert same_weights(one, other)
        # Nothing was read here but the first item.
        assert items.X is not None

    def test_arrays_through_workers(self, items):
        X = np.load(items.path, mmap_mode="r")
        kwargs = {"max_epochs": 2}
        one = quick(iterator_train__num_workers=2, **kwargs).fit(X, items.y)
        assert one.data_loading_ == "loader"
        # Without processes, and sample by sample.
        collate = torch.utils.data.default_collate
        for other in ({"num_workers": 0}, {"collate_fn": collate}):
            options = {f"iterator_train__{k}": v for k, v in other.items()}
            assert same_weights(one, quick(**options, **kwargs).fit(X, items.y))

    def test_labels_that_are_given_are_not_read(self, items, monkeypatch):
        read = []
        fetch = Items.__getitem__

        def watched(self, i):
            read.append(i)
            return fetch(self, i)

        monkeypatch.setattr(Items, "__getitem__", watched)
        sampler = torch.utils.data.SubsetRandomSampler(range(10))
        quick(max_epochs=1, iterator_train__sampler=sampler).fit(items, items.y)
        assert set(read) <= {0, *range(10)}

    def test_image_folder(self, tmp_path):
        folders = pytest.importorskip("torchvision.datasets")
        transforms = pytest.importorskip("torchvision.transforms")
        image = pytest.importorskip("PIL.Image")
        rng = np.random.default_rng(0)
        for name, level in (("dark", 40), ("light", 200)):
            (tmp_path / name).mkdir()
            for i in range(20):
                pixels = rng.integers(level - 30, level + 30, (8, 8, 3), np.uint8)
                image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        data = folders.ImageFolder(tmp_path, transforms.PILToTensor())
        model = quick(iterator_train__num_workers=2, batch_size=8).fit(data)
        assert model.posterior_.labels.tolist() == data.targets
        assert model.score(data, data.targets) == 1.0

    def test_arrow_table(self, items):
        pa = pytest.importorskip("pyarrow")

        class Table(Dataset):
            def __init__(self, table, columns):
                self.table, self.columns = table, columns

            def __len__(self):
                return self.table.num_rows

            def __getitems__(self, rows):
                part = self.table.take(rows).select(self.columns)
                x = np.column_stack([c.to_numpy() for c in part.columns])
                return [(row, 0) for row in torch.from_numpy(x)]

            def __getitem__(self, i):
                return self.__getitems__([i])[0]

        X = np.load(items.path)
        names = [f"x{i}" for i in range(X.shape[1])]
        path = items.path.with_suffix(".arrow")
        table = pa.table(dict(zip(names, X.T, strict=True)))
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as out:
            out.write_table(table)
        mapped = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        model = quick(max_epochs=2).fit(Table(mapped, names), items.y)
        assert same_weights(model, quick(max_epochs=2).fit(items, items.y))


LIMITED = """
    import resource, sys
    import numpy as np, torch
    from skbsd import BSDClassifier

    torch.set_num_threads(1)
    path, store, dtype = sys.argv[1:]
    def model(**kwargs):
        return BSDClassifier(
            max_epochs=1, batch_size=256, random_state=0, posterior_dtype=store,
            **kwargs,
        )
    # Libraries are loaded, and their memory is taken, before it is limited.
    rng = np.random.default_rng(0)
    small = rng.normal(size=(22_000, 4)).astype(dtype)
    model().fit(small, np.arange(len(small)) % 40)

    with open("/proc/self/status") as status:
        used = next(int(l.split()[1]) for l in status if l.startswith("VmData"))
    limit = (used << 10) + (100 << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    X = np.load(path, mmap_mode="r")
    y = np.arange(len(X)) % 40
    assert X.nbytes >= 300 << 20
    try:
        np.array(X)
    except MemoryError:
        pass
    else:
        raise AssertionError("the limit does not hold")
    if dtype == "float64":
        fitted = model().fit(X, y)
        assert fitted.calibration_.method == "hold-out"
        assert fitted.predict(X[: len(X) // 2]).shape == (len(X) // 2,)
    else:
        fitted = model(calibration=None, iterator_train__num_workers=2).fit(X, y)
        assert fitted.data_loading_ == "loader"
"""


@linux
@pytest.mark.parametrize(
    ("store", "dtype"), [("float32", "float32"), ("compact-8", "float64")]
)
def test_a_table_three_times_as_large_as_the_memory_left(tmp_path, store, dtype):
    """Anonymous memory is limited to 100 MB more than without the table."""
    path = tmp_path / "X.npy"
    n_features = (300 << 20) // 22_000 // np.dtype(dtype).itemsize + 1
    X = np.lib.format.open_memmap(path, "w+", dtype, (22_000, n_features))
    # The rest of the file is a hole, which is read as zeros.
    X[:, 0] = np.arange(22_000) / 22_000
    X.flush()
    del X
    script = textwrap.dedent(LIMITED)
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(path), store, dtype],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]


def test_estimators_are_still_plain():
    assert BSDClassifier().get_params()["posterior_folder"] is None
