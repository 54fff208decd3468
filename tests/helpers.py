"""Helpers that train, compare and inspect estimators."""

from collections import Counter
from html.parser import HTMLParser

import torch

from skbsd import BSDClassifier


def quick(**kwargs):
    """Return a classifier that trains one network for three epochs."""
    fast = {"max_epochs": 3, "random_state": 0, "calibration": None}
    return BSDClassifier(**(fast | kwargs))


def weights(model):
    return [t.clone() for t in model.module_.state_dict().values()]


def same_weights(one, other):
    return all(map(torch.equal, weights(one), weights(other)))


class Page(HTMLParser):
    """The content of an HTML page: counts of its tags, and its texts in order."""

    def __init__(self):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def parsed(html: str) -> Page:
    """Parse an HTML page."""
    page = Page()
    page.feed(html)
    page.close()
    return page
