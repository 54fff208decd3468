"""Counts of correct predictions do not depend on the number of pending batches."""

import pytest
import torch

from skbsd._accuracy import CorrectCounter
from skbsd._batches import Batch


def counts(counter):
    return tuple(tensor.item() for tensor in counter.sums())


def _batches(weighted):
    generator = torch.Generator().manual_seed(0)
    for n in (7, 5, 1):
        logits = torch.randn(n, 3, generator=generator)
        labels = torch.randint(3, (n,), generator=generator)
        weight = torch.rand(n, generator=generator) if weighted else None
        yield Batch(logits, labels, torch.arange(n), weight, True), logits


@pytest.mark.parametrize("waiting", [0, 20, 2**18])
@pytest.mark.parametrize("weighted", [False, True])
def test_counts_what_is_predicted(waiting, weighted):
    counter = CorrectCounter(waiting)
    right = total = 0.0
    for batch, logits in _batches(weighted):
        counter.add(batch, logits)
        for row, label, i in zip(logits, batch.y, range(len(logits)), strict=True):
            weight = batch.weight[i].item() if weighted else 1
            right += weight * (row.argmax() == label).item()
            total += weight
    assert counts(counter) == pytest.approx((right, total))


def test_does_not_wait_where_outputs_are_overwritten():
    """A compiled network may write its next output into the same memory."""
    counter, before = CorrectCounter(buffer=0), 0
    for batch, logits in _batches(weighted=False):
        expected = (logits.argmax(dim=1) == batch.y).sum().item()
        counter.add(batch, logits)
        logits.fill_(torch.nan)
        after, _ = counts(counter)
        assert after - before == expected
        before = after


def test_nothing_was_counted():
    assert counts(CorrectCounter()) == ()
