"""
A network of your own
=====================

Any `torch.nn.Module` that returns logits can be trained. Its arguments are parameters
of the estimator, its optimizer and callbacks are torch's and skorch's.
"""

# %%
# A small network that looks at the rows of an image one after the other, as one reads.
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch.callbacks import EarlyStopping
from skorch.dataset import ValidSplit
from torch import nn

from skbsd import BSDClassifier
from skbsd.display import TrainingDisplay


class Reader(nn.Module):
    """Reads an image row by row, both ways.

    Parameters
    ----------
    width : int
        Number of its features in each direction.
    dropout : float
    """

    def __init__(self, width=32, dropout=0.2):
        super().__init__()
        self.read = nn.GRU(8, width, batch_first=True, bidirectional=True)
        self.classify = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Dropout(dropout), nn.Linear(2 * width, 10)
        )

    def forward(self, images):
        """Compute logits of shape (n, 10) from images of shape (n, 1, 8, 8)."""
        read, _ = self.read(images.squeeze(1))
        return self.classify(read.mean(dim=1))


# %%
# ``module__width`` reaches the module, ``optimizer__*`` the optimizer. `train_split`
# keeps a fifth of the images to watch. `EarlyStopping` would end a training whose
# validation loss has not fallen for 15 epochs; this one goes through.
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, y, random_state=0, stratify=y
)
model = BSDClassifier(
    Reader,
    module__width=48,
    image_shape=(1, 8, 8),
    max_epochs=60,
    optimizer=torch.optim.NAdam,
    optimizer__decoupled_weight_decay=True,
    lr=3e-3,
    train_split=ValidSplit(0.2, stratified=True, random_state=0),
    callbacks=[EarlyStopping(patience=15)],
    random_state=0,
)
model.fit(X_train, y_train)

# %%
# The training loss is measured against targets that are soft, so it does not fall to
# zero where the network has learnt them: what it cannot fall below is their entropy.
# The validation loss is plain cross-entropy with labels, and what to watch.
TrainingDisplay.from_estimator(model)
plt.show()

# %%
# The network is in `module_`, trained, and is torch's own.
print(f"accuracy {model.score(X_test, y_test):.1%} after {model.n_iter_} epochs")
print(sum(p.numel() for p in model.module_.parameters()), "parameters")
