"""Networks for tests, in a module so that they can be pickled."""

from types import SimpleNamespace

import torch
from torch import nn


class Linear(nn.Module):
    def __init__(self, in_features=4, out_features=3, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)
        self.scale = scale

    def forward(self, x):
        return self.scale * self.layer(x)


class ReturnsTuple(Linear):
    def forward(self, x):
        return super().forward(x), x


class ReturnsObject(Linear):
    def forward(self, x):
        return SimpleNamespace(logits=super().forward(x), hidden=x)


class ReturnsProbabilities(Linear):
    def forward(self, x):
        return super().forward(x).softmax(1)


class ReturnsNaN(Linear):
    def forward(self, x):
        return super().forward(x) * float("nan")


class ReturnsString(Linear):
    def forward(self, x):
        return "logits"


class Dropout(Linear):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


class Convolution(nn.Module):
    """Network for images of exactly 8 x 8 pixels."""

    def __init__(self, n_classes=10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 64, n_classes),
        )

    def forward(self, x):
        return self.layers(x)


class Interrupting(Linear):
    """Raises KeyboardInterrupt in its seventh training step."""

    steps = 0

    def forward(self, x):
        if self.training:
            self.steps += 1
            if self.steps == 7:
                raise KeyboardInterrupt
        return super().forward(x)


class Images(torch.utils.data.Dataset):
    """A Dataset of pairs without an attribute for its labels."""

    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i], self.y[i]


class InPlace(Linear):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


class Squeezed(Linear):
    def forward(self, x):
        return super().forward(x).squeeze()


class WithBody(nn.Module):
    def __init__(self, body=None):
        super().__init__()
        self.body = body
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Relabelled(torch.utils.data.TensorDataset):
    """Returns labels that differ from those that it stores."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x, (y + 1) % 3


class TableAndKind(nn.Module):
    """Takes a table of numbers and a category, by name."""

    def __init__(self, in_features=4, n_kinds=5, n_classes=3):
        super().__init__()
        self.kinds = nn.Embedding(n_kinds, 4)
        self.layer = nn.Linear(in_features + 4, n_classes)

    def forward(self, table, kind):
        return self.layer(torch.cat([table, self.kinds(kind)], dim=1))


class ListOfTableAndKind(TableAndKind):
    def forward(self, parts):
        table, kind = parts
        return super().forward(table, kind)


class ImageAndTable(nn.Module):
    def __init__(self, in_features=4, n_classes=10):
        super().__init__()
        self.image = nn.Linear(64, 8)
        self.table = nn.Linear(in_features, 8)
        self.out = nn.Linear(16, n_classes)

    def forward(self, image, table):
        self.seen = image.detach()
        hidden = [self.image(image.flatten(1)), self.table(table)]
        return self.out(torch.cat(hidden, dim=1))


class Words(nn.Module):
    """Embeds integers, and takes no floats."""

    def __init__(self, n_words=20, n_classes=3):
        super().__init__()
        self.words = nn.EmbeddingBag(n_words, 8)
        self.out = nn.Linear(8, n_classes)

    def forward(self, x):
        return self.out(self.words(x))


class Sequence(nn.Module):
    """Takes sequences of shape (n, length, n_features)."""

    def __init__(self, n_features=2, n_classes=3):
        super().__init__()
        self.lstm = nn.LSTM(n_features, 8, batch_first=True)
        self.out = nn.Linear(8, n_classes)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])
