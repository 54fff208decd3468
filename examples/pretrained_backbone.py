"""
A pretrained backbone
=====================

This example fine-tunes a network that was trained for another task. Its weights come
from a file, a part of it is frozen, and its new last layer has a higher learning rate.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/pretrained_backbone.png'

# %%
# To avoid a download, this example pretrains the network itself: a small residual
# network learns the ten digits from half of the images, and its weights are written to
# a file. In practice, use the weights of a published model, for example from
# torchvision or timm.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from torch import nn

from skbsd import BSDClassifier
from skbsd.networks import SmallResNet

digits = load_digits()
images = digits.images[:, None].astype(np.float32) / 16
X_source, X, y_source, digit = train_test_split(
    images, digits.target, train_size=0.5, random_state=0, stratify=digits.target
)
WIDTHS = (16, 32, 64)
source = BSDClassifier(
    SmallResNet,
    module__in_channels=1,
    module__n_classes=10,
    module__widths=WIDTHS,
    max_epochs=20,
    random_state=0,
).fit(X_source, y_source)
path = Path(tempfile.mkdtemp()) / "backbone.pt"
torch.save(source.module_.state_dict(), path)

# %%
# The new task is to tell odd from even digits. It has 30 labelled images from the other
# half; the rest of that half is the test set.
y = np.where(digit % 2, "odd", "even")
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=30, random_state=0, stratify=digit
)


# %%
# ``requires_grad_(False)`` freezes the weights. Batch normalisation would still update
# its running statistics in training mode, so `train` keeps the frozen part in
# evaluation mode.
class FineTuned(nn.Module):
    """A pretrained network with a new last layer.

    Parameters
    ----------
    weights : path-like or None
        File of the pretrained weights; None starts from random ones.
    n_frozen : int
        How many of the three blocks are frozen, together with the layers before them.
    """

    def __init__(self, weights=None, n_frozen=0):
        super().__init__()
        self.body = SmallResNet(1, 10, WIDTHS)
        if weights is not None:
            self.body.load_state_dict(torch.load(weights, weights_only=True))
        self.body.head = nn.Identity()
        self.frozen = nn.ModuleList()
        if n_frozen:
            self.frozen.extend([self.body.stem, *self.body.blocks[:n_frozen]])
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(WIDTHS[-1], 2)

    def train(self, mode=True):
        """Set the mode; the frozen part stays in evaluation mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        """Compute logits of shape (n, 2) from images of shape (n, 1, 8, 8)."""
        return self.head(self.body(x))


# %%
# ``optimizer__param_groups`` gives the new layer ten times the learning rate of the
# pretrained layers.
settings = {"max_epochs": 40, "batch_size": 10, "random_state": 0}
fine_tuned = BSDClassifier(
    FineTuned,
    module__weights=path,
    module__n_frozen=2,
    lr=1e-3,
    optimizer__param_groups=[("head.*", {"lr": 1e-2})],
    **settings,
)
from_scratch = BSDClassifier(FineTuned, **settings)
models = {"from scratch": from_scratch, "pretrained": fine_tuned}
scores = {}
for name, model in models.items():
    proba = model.fit(X_train, y_train).predict_proba(X_test)
    scores[name] = model.score(X_test, y_test)
    print(
        f"{name}: accuracy {scores[name]:.1%}, log loss {log_loss(y_test, proba):.2f}"
    )

# %%
# The frozen part still equals the file, including the running statistics.
saved = torch.load(path, weights_only=True)
kept = {
    name: torch.equal(value, saved[name])
    for name, value in fine_tuned.module_.body.state_dict().items()
}
for part in ("stem", "blocks.0", "blocks.1", "blocks.2"):
    own = [same for name, same in kept.items() if name.startswith(part)]
    print(f"{part}: {sum(own)} of {len(own)} tensors unchanged")

# %%
# The number of frozen blocks is a parameter like any other, so a search can choose it.
# The plot shows the test accuracy of each choice. Here all of them are better than
# training from scratch, and they differ little from each other.
reached = [
    fine_tuned.set_params(module__n_frozen=n)
    .fit(X_train, y_train)
    .score(X_test, y_test)
    for n in range(4)
]
_, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.bar(["none", "1", "2", "all 3"], reached, color="#0072B2", width=0.6)
ax.axhline(scores["from scratch"], color="0.4", linestyle=":")
ax.text(3.4, scores["from scratch"], "from scratch", va="bottom", color="0.4")
ax.set(xlabel="frozen blocks", ylabel="test accuracy", xlim=(-0.5, 4.3), ylim=(0.5, 1))
plt.show()
