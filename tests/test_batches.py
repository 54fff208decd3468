"""Resident batches: images that are augmented as they are gathered."""

import numpy as np
import pytest
from helpers import quick, same_weights

from skbsd import _batches


class Seen:
    """An augmentation that takes rows and epochs, and stores them."""

    by_row = True

    def __init__(self):
        self.rows = []

    def __call__(self, images, rows=None, epoch=None):
        self.rows.append((epoch, *([] if rows is None else rows.tolist())))
        return images


class TestAugmentationByRow:
    def test_knows_rows_and_epochs(self, uint8_digits):
        X, y = (part[:50] for part in uint8_digits)
        seen = Seen()
        model = quick(augmentation=seen, max_epochs=2, batch_size=20)
        model.fit(X, y)
        model.partial_fit(X, y)
        for epoch in range(4):
            rows = [row for e, *rows in seen.rows if e == epoch for row in rows]
            assert sorted(rows) == list(range(50))
            assert rows != list(range(50))

    def test_gets_the_images_of_its_rows(self, uint8_digits):
        X, y = (part[:50] for part in uint8_digits)

        class Compares(Seen):
            def __call__(self, images, rows=None, epoch=None):
                assert np.array_equal(images.numpy(), X[rows])
                return super().__call__(images, rows, epoch)

        for kwargs in ({}, {"image_shape": (1, 8, 8)}):
            seen = Compares()
            data = X.reshape(50, -1) if kwargs else X
            quick(augmentation=seen, max_epochs=1, **kwargs).fit(data, y)
            assert seen.rows

    @pytest.mark.parametrize(
        "kwargs", [{"contrastive": 0.2}, {"iterator_train__shuffle": True}]
    )
    def test_does_without_where_they_are_not_known(self, uint8_digits, kwargs):
        X, y = (part[:50] for part in uint8_digits)
        seen = Seen()
        quick(augmentation=seen, max_epochs=1, **kwargs).fit(X, y)
        assert set(seen.rows) == {(None,)}

    def test_augments_ahead_of_the_batches_where_launches_count(
        self, uint8_digits, monkeypatch
    ):
        """The same images, a few large parts at a time."""
        X, y = (part[:50] for part in uint8_digits)
        one, other = Seen(), Seen()
        first = quick(augmentation=one, max_epochs=2, batch_size=20).fit(X, y)
        monkeypatch.setattr(_batches.ResidentBatches, "COPY", 0)
        second = quick(augmentation=other, max_epochs=2, batch_size=20).fit(X, y)
        assert [len(rows) - 1 for rows in one.rows] == [50, 50]
        assert [len(rows) - 1 for rows in other.rows] == [20, 20, 10] * 2
        assert same_weights(first, second)
