import numpy as np
import torch
from torch.utils.data import TensorDataset

from skbsd._folds import are_alike, deal
from skbsd._folds import row_keys as keys_of
from skbsd._loading import TrainingData

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3)).astype(np.float32)
Y = np.repeat([0, 1, 2], [150, 40, 10])


def row_keys(X, n_rows, groups=None):
    data = TrainingData(X, X, None, None, None, None, None)
    return keys_of(data, np.arange(n_rows), groups)


def test_rows_of_the_same_contents_have_one_key():
    keys = row_keys(np.concatenate([X, X[:5]]), 205)
    assert (keys[200:] == keys[:5]).all()
    assert len(np.unique(keys)) == 200


def test_kinds_of_data():
    images = X.reshape(50, 3, 2, 2)
    assert (row_keys(images, 50) == row_keys(torch.from_numpy(images), 50)).all()
    dataset = TensorDataset(torch.from_numpy(X))
    assert len(np.unique(row_keys(dataset, 200))) == 200


def test_each_class_is_dealt_out_evenly():
    fold = deal(row_keys(X, 200), Y, 4)
    counts = np.array([np.bincount(fold[k == Y], minlength=4) for k in range(3)])
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
    assert np.ptp(np.bincount(fold)) <= 1


def test_order_does_not_matter():
    order = RNG.permutation(200)
    keys = row_keys(X, 200)
    assert (deal(keys, Y, 2)[order] == deal(keys[order], Y[order], 2)).all()


def test_repeated_rows_do_not_matter():
    rows = np.concatenate([np.arange(200), np.arange(50)])
    keys = row_keys(X, 200)
    assert (deal(keys[rows], Y[rows], 2)[:200] == deal(keys, Y, 2)).all()


def test_rows_with_one_key_stay_together():
    keys = np.arange(200) // 10
    fold = deal(keys, Y, 3)
    assert all(len(set(fold[keys == k])) == 1 for k in range(20))


def test_groups_are_their_own_keys():
    groups = np.array(list("abcd"))[np.arange(200) % 4]
    assert (row_keys(X, 200, groups) == np.arange(200) % 4).all()


def test_rows_that_differ_in_their_labels_only():
    assert are_alike(row_keys(X, 200), Y)
    assert are_alike(row_keys(np.repeat(X, 2, axis=0), 400), np.repeat(Y, 2))
    assert not are_alike(row_keys(np.repeat(X, 2, axis=0), 400), np.tile([0, 1], 200))
