"""Running the network: its memory format, and errors about what it cannot take."""

import numpy as np
import pytest
import torch
from helpers import quick
from modules import TableAndKind
from torch import nn

from skbsd._forward import wants_channels_last
from skbsd._preparation import Preparation
from skbsd.networks import SmallResNet

CPU = torch.device("cpu")


def pointwise(before, after):
    return nn.Sequential(nn.Conv2d(3, before, 3), nn.Conv2d(before, after, 1))


class Lookup(nn.Module):
    """Embeds integers, with a layer that raises IndexError for others."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 3)

    def forward(self, x):
        return self.words(x).mean(1)


class TestChannelsLast:
    @staticmethod
    def wants(module, setting="auto", shape=(3, 16, 16)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        facts = Preparation(shape, is_dataset=False)
        return wants_channels_last(
            setting, module, optimizer, facts, CPU, trusted=False
        )

    @pytest.mark.parametrize("channels", [(4, 8), (8, 4), (4, 4), (3, 16)])
    def test_not_where_convolutions_write_beyond_memory(self, channels):
        module = pointwise(*channels)
        assert not self.wants(module)
        assert self.wants(module, setting=True)  # the user's choice

    @pytest.mark.parametrize("channels", [(8, 8), (8, 16), (32, 64)])
    def test_multiples_of_the_width_of_a_vector(self, channels):
        assert self.wants(pointwise(*channels))

    def test_default_network(self):
        assert self.wants(SmallResNet(3, 10))
        assert not self.wants(SmallResNet(3, 10, widths=(4, 8)))

    def test_images_and_convolutions_alone(self):
        assert not self.wants(pointwise(8, 8), shape=(3,))
        assert not self.wants(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)))


class TestIndices:
    @pytest.fixture
    def words(self):
        return np.random.default_rng(0).integers(0, 20, (60, 5))

    @pytest.mark.parametrize(("change", "shown"), [(-30, "-30 to"), (30, "to 49")])
    def test_out_of_range(self, change, shown, words):
        y = np.arange(60) % 3
        words[0, :2] = 0, 19
        message = rf"module Lookup was given integers from .*{shown}.*0 to n - 1"
        with pytest.raises(ValueError, match=message):
            quick(module=Lookup).fit(words + change, y)
        model = quick(module=Lookup).fit(words, y)
        with pytest.raises(ValueError, match=message):
            model.predict(words + change)

    def test_one_of_several_inputs(self, iris):
        X = {"table": iris[0], "kind": np.arange(150) % 5}
        model = quick(module=TableAndKind).fit(X, iris[1])
        with pytest.raises(ValueError, match="integers from 5 to 9"):
            model.predict(X | {"kind": X["kind"] + 5})

    def test_other_errors_stay(self, iris):
        class Wrong(nn.Linear):
            def forward(self, x):
                return [super().forward(x)][1]

        with pytest.raises(IndexError, match="list index"):
            quick(module=Wrong, module__in_features=4, module__out_features=3).fit(
                *iris
            )
