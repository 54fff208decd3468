"""Sparse X stays sparse; batches of it are dense."""

import tracemalloc

import numpy as np
import pytest
import torch
from helpers import quick, same_weights
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from skorch.dataset import ValidSplit

from skbsd._batches import ResidentBatches
from skbsd._fingerprint import fingerprint
from skbsd._sparse import SparseRows

KINDS = "csr_array csr_matrix csc_array coo_array lil_matrix dok_array"


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    X = sparse.random_array((200, 30), density=0.1, rng=rng, format="lil")
    X[np.arange(200), y] = 2.0
    return X.tocsr(), y


class TestSparseRows:
    def test_gathers_dense_rows(self, matrix):
        X, _ = matrix
        rows = torch.tensor([5, 0, 199, 5])
        found = SparseRows.of(X).index_select(0, rows)
        assert torch.equal(found, torch.from_numpy(X[rows.numpy()].toarray()))

    def test_empty_rows(self):
        X = sparse.csr_array((4, 3))
        assert not SparseRows.of(X).index_select(0, torch.tensor([0, 3])).any()

    def test_shares_memory(self, matrix):
        X, _ = matrix
        rows = SparseRows.of(X)
        assert rows._values.data_ptr() == X.data.ctypes.data
        assert rows.nbytes == X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
        assert rows.with_values(Tensor32).dtype == torch.float32


def Tensor32(values):
    return values.float()


class TestFit:
    @pytest.mark.parametrize("kind", KINDS.split())
    def test_same_as_dense(self, matrix, kind):
        X, y = matrix
        dense = quick(max_epochs=10).fit(X.toarray(), y)
        given = getattr(sparse, kind)(X)
        model = quick(max_epochs=10).fit(given, y)
        assert same_weights(model, dense)
        assert model.n_features_in_ == 30
        expected = dense.predict_proba(X.toarray())
        for part in (given, X.toarray()):
            np.testing.assert_allclose(model.predict_proba(part), expected, atol=1e-6)

    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
    def test_torch(self, matrix):
        X, y = matrix
        dense = torch.tensor(X.toarray())
        expected = quick().fit(X, y)
        for given in (dense.to_sparse(), dense.to_sparse_csr()):
            model = quick().fit(given, y)
            assert same_weights(model, expected)
            assert model.predict(given).shape == (200,)
        with pytest.raises(ValueError, match=r"sparse Tensor of torch.complex128"):
            quick().fit((dense * 1j).to_sparse(), y)

    @pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float32])
    def test_types(self, matrix, dtype):
        X, y = matrix
        X = X.astype(dtype)
        model = quick().fit(X, y)
        assert same_weights(model, quick().fit(X.toarray().astype(float), y))

    def test_duplicates_are_added_up_and_X_stays(self, matrix):
        X, y = matrix
        coo = X.tocoo()
        twice = sparse.csr_array(
            (
                np.tile(coo.data / 2, 2),
                (np.tile(coo.coords[0], 2), np.tile(coo.coords[1], 2)),
            ),
            shape=X.shape,
        )
        raw = sparse.csr_array(
            (np.r_[1.0, 1.0], np.r_[0, 0], np.r_[0, 2]), shape=(1, 30)
        )
        assert np.array_equal(twice.toarray(), X.toarray())
        model = quick().fit(X, y)
        once = model.predict_proba(sparse.csr_array(([2.0], ([0], [0])), shape=(1, 30)))
        assert np.array_equal(model.predict_proba(raw), once)
        assert raw.nnz == 2

    @pytest.mark.parametrize("calibration", ["cross-fit", "hold-out"])
    def test_calibration(self, matrix, calibration):
        X, y = matrix
        model = quick(calibration=calibration, max_epochs=20).fit(X, y)
        assert model.calibration_.n_samples > 0
        assert model.score(X, y) > 0.9

    def test_folds_do_not_depend_on_order_or_type_of_indices(self, matrix):
        X, y = matrix
        order = np.random.default_rng(1).permutation(200)
        model = quick(calibration="cross-fit", max_epochs=2)
        first = model.fit(X, y).out_of_fold_proba_
        shuffled = X[order]
        shuffled.indices = shuffled.indices.astype(np.int64)
        shuffled.indptr = shuffled.indptr.astype(np.int64)
        again = model.fit(shuffled, y[order]).out_of_fold_proba_
        assert np.array_equal(np.isnan(first)[order], np.isnan(again))

    def test_weights_and_train_split(self, matrix):
        X, y = matrix
        model = quick(train_split=ValidSplit(4, stratified=True))
        model.fit(X, y, sample_weight=np.r_[np.zeros(50), np.ones(150)])
        assert not model.posterior_.visits[:50].any()
        assert "valid_loss" in model.history_[-1]

    def test_partial_fit(self, matrix):
        X, y = matrix
        model = quick(max_epochs=1).partial_fit(X, y).partial_fit(X.copy(), y)
        assert (model.posterior_.visits == 2).all()
        other = X.copy()
        other.data[0] += 1
        assert (model.partial_fit(other, y).posterior_.visits == 1).all()

    def test_through_a_loader(self, matrix):
        X, y = matrix
        model = quick(iterator_train__num_workers=1).fit(X, y)
        assert model.data_loading_ == "loader"

    def test_image_shape(self, uint8_digits):
        images, y = (a[:100] for a in uint8_digits)
        rows = images.reshape(100, 64) / 240
        model = quick(image_shape=(1, 8, 8)).fit(sparse.csr_array(rows), y)
        dense = quick(image_shape=(1, 8, 8)).fit(rows, y)
        assert same_weights(model, dense)
        found = model.predict_proba(sparse.csr_array(rows))
        assert np.array_equal(found, dense.predict_proba(rows))
        model.partial_fit(sparse.csr_array(rows), y)
        assert (model.posterior_.visits == 6).all()
        with pytest.raises(ValueError, match="has 63 features"):
            model.predict(sparse.csr_array(rows[:, 1:]))
        with pytest.raises(ValueError, match="has 192 values"):
            quick(image_shape=(3, 8, 8)).fit(sparse.csr_array(rows), y)

    def test_checkpoint(self, matrix, tmp_path):
        X, y = matrix
        quick(checkpoint=tmp_path).fit(X, y)
        assert X.has_sorted_indices  # which SciPy takes note of
        quick(checkpoint=tmp_path).fit(X.copy(), y)
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (np.inf, "infin")])
    def test_not_finite(self, matrix, value, message):
        X, y = matrix
        X = X.copy()
        X.data[3] = value
        with pytest.raises(ValueError, match=f"Input X contains {message}"):
            quick().fit(X, y)

    def test_too_large_for_float32(self, matrix):
        X, y = matrix
        with pytest.raises(ValueError, match=r"too large for torch.float32"):
            quick().fit(X * 1e60, y)

    def test_other_number_of_features(self, matrix):
        X, y = matrix
        with pytest.raises(ValueError, match="29 features"):
            quick().fit(X, y).predict(X[:, :29])


class TestPipeline:
    def test_text(self):
        texts = ["the cat sat", "a dog ran", "the cat ran", "a dog sat"] * 15
        y = ["cat", "dog", "cat", "dog"] * 15
        model = make_pipeline(TfidfVectorizer(), quick(max_epochs=20))
        assert model.fit(texts, y).score(texts, y) == 1
        assert cross_val_score(model, texts, y, cv=2).min() == 1

    def test_one_hot(self, matrix):
        _, y = matrix
        towns = np.array(["Bergen", "Turku", "Vejle"])[y][:, None]
        model = make_pipeline(OneHotEncoder(), quick(max_epochs=20))
        assert model.fit(towns, y).score(towns, y) == 1


def test_memory_is_that_of_the_matrix_and_batches():
    rng = np.random.default_rng(0)
    X = sparse.random_array((20_000, 5_000), density=1e-3, rng=rng, format="csr")
    y = rng.integers(0, 2, 20_000)
    dense = X.shape[0] * X.shape[1] * 4
    before = torch.get_num_threads()
    batches = []
    gathered = SparseRows.index_select

    def watched(self, dim, rows):
        batches.append(len(rows))
        return gathered(self, dim, rows)

    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseRows, "index_select", watched)
        model = quick(max_epochs=1, batch_size=500, module__hidden=(4,)).fit(X, y)
    model.predict(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(batches) == 500
    assert peak < dense / 10  # of NumPy, whose arrays predictions are made of
    assert before == torch.get_num_threads()


def test_batches_are_never_all_made_dense(matrix):
    X, _ = matrix
    rows = torch.arange(200)
    batches = ResidentBatches(SparseRows.of(X), rows, None, rows, 50, shuffle=False)
    assert not batches.is_copied
    parts = [batch.x for batch in batches]
    assert [len(x) for x in parts] == [50] * 4
    assert torch.equal(torch.cat(parts), torch.from_numpy(X.toarray()))


def test_fingerprint(matrix):
    X, y = matrix
    same = X.copy()
    same.indices = same.indices.astype(np.int64)
    assert fingerprint(X, y) == fingerprint(same, y)
    same.data[-1] += 1
    assert fingerprint(X, y) != fingerprint(same, y)
    assert fingerprint(X, y) != fingerprint(X.toarray(), y)
