"""
A network of your own
=====================

`BSDClassifier` trains any `torch.nn.Module` that returns logits. The module's arguments
become parameters of the estimator. Optimizers are torch's, and callbacks are skorch's.
Use this when the default networks do not suit your data.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/own_module.png'

# %%
# A small recurrent network that reads the rows of an image one after the other.
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
    """Read an image row by row, in both directions.

    Parameters
    ----------
    width : int
        Number of features in each direction.
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
# holds out a fifth of the images for validation. `EarlyStopping` ends a training whose
# validation loss has not fallen for 15 epochs; here it never has to.
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
# The training loss is the cross-entropy with soft targets. It cannot fall below the
# entropy of these targets, so it does not approach zero. The validation loss is the
# cross-entropy with the labels; judge the training by that.
TrainingDisplay.from_estimator(model)
plt.show()

# %%
# The trained network is the torch module `module_`.
print(f"accuracy {model.score(X_test, y_test):.1%} after {model.n_iter_} epochs")
print(sum(p.numel() for p in model.module_.parameters()), "parameters")
