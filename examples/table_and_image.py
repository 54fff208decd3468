"""
A table and an image together
=============================

This network has two inputs. X is a dict with an image and a row of a table for each
sample. skorch's `SliceDict` makes such a dict usable in searches and cross-validation.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/table_and_image.png'

# %%
# The image shows only the upper half of each digit. The table has four measurements:
# the amount of ink in the left, middle and right part of the lower half, and in the
# whole digit.
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler
from skorch.helper import SliceDict
from torch import nn

from skbsd import BSDClassifier

digits = load_digits()
image = (digits.images[:, None] * 15).astype(np.uint8)
image[:, :, 4:] = 0
lower = digits.images[:, 4:]
table = np.column_stack(
    [
        lower[:, :, :3].sum(axis=(1, 2)),
        lower[:, :, 3:5].sum(axis=(1, 2)),
        lower[:, :, 5:].sum(axis=(1, 2)),
        digits.images.sum(axis=(1, 2)),
    ]
)
train, test = train_test_split(
    np.arange(len(image)), random_state=0, stratify=digits.target
)
table = StandardScaler().fit(table[train]).transform(table)
X = SliceDict(image=image, table=table.astype(np.float32))
y = digits.target
X_train, X_test, y_train, y_test = X[train], X[test], y[train], y[test]


# %%
# The keys of the dict are the arguments of ``forward``. uint8 images are standardised
# automatically; a table of floats is passed unchanged, so it is scaled above.
class Both(nn.Module):
    """Joins the features of an image with a table.

    Parameters
    ----------
    width : int
        Number of features of each input.
    uses : {"both", "image", "table"}
        Which inputs are used.
    """

    def __init__(self, width=64, uses="both"):
        super().__init__()
        self.uses = uses
        self.image = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, width),
            nn.ReLU(),
        )
        self.table = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        self.classify = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, image, table):
        """Compute logits from images of (n, 1, 8, 8) and rows of (n, 4)."""
        features = {"image": self.image(image), "table": self.table(table)}
        for name, values in features.items():
            if self.uses not in ("both", name):
                features[name] = torch.zeros_like(values)
        return self.classify(torch.cat([features["image"], features["table"]], dim=1))


# %%
# Accuracy with each input alone, and with both:
accuracy = {}
for uses in ("table", "image", "both"):
    model = BSDClassifier(Both, module__uses=uses, max_epochs=20, random_state=0)
    accuracy[uses] = model.fit(X_train, y_train).score(X_test, y_test)
    print(f"{uses:5s} accuracy {accuracy[uses]:.1%}")

# %%
# A grid search chooses the width by cross-validation. scikit-learn splits X into folds
# by ``X[rows]``. A plain dict would look for a key; a `SliceDict` returns these rows.
search = GridSearchCV(
    BSDClassifier(Both, max_epochs=10, calibration=None, random_state=0),
    {"module__width": [16, 64]},
    scoring="neg_log_loss",
    cv=2,
).fit(X_train, y_train)
for params, score in zip(
    search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
):
    print(f"{params}: log loss {-score:.3f}")

# %%
# Predictions for new samples need the same keys. A misspelt key or arrays of different
# lengths raise an error that names them.
single = {"image": image[:1], "table": table[:1]}
print("one sample:", search.predict(single))
try:
    search.predict({"image": image[:2], "table": table[:1]})
except ValueError as error:
    print(error)

# %%
# Both inputs together are more accurate than either of them.
_, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
ax.barh(list(accuracy), list(accuracy.values()), color="#0072B2", height=0.6)
ax.bar_label(ax.containers[0], fmt="{:.0%}", padding=4)
ax.set(xlabel="test accuracy", xlim=(0, 1.1))
plt.show()
