"""
Images in folders
=================

Many collections of images have one folder per class. torchvision's `ImageFolder` reads
them, `fit` accepts it as X, and the names of the folders become the classes.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/image_folders.png'

# %%
# For this example, scikit-learn's digits are written as PNG files into folders that are
# named after them.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from skbsd import BSDClassifier

NAMES = ["zero", "one", "two", "three", "four"]
NAMES += ["five", "six", "seven", "eight", "nine"]
digits = load_digits()
parts = train_test_split(
    digits.images, digits.target, test_size=0.7, random_state=0, stratify=digits.target
)
folder = Path(tempfile.mkdtemp())
for part, images, labels in (("train", *parts[::2]), ("test", *parts[1::2])):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / part / NAMES[label] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(path)
print(sorted(path.name for path in (folder / "train").iterdir()))

# %%
# The transform converts an image to a tensor. Photographs also need a ``v2.Resize`` or
# ``v2.RandomResizedCrop``, so that all images have the same size. The transform for
# training may be random, because item i of the dataset is always the same file.
to_tensor = [v2.ToImage(), v2.Grayscale(), v2.ToDtype(torch.float32, scale=True)]
shift = v2.RandomAffine(degrees=10, translate=(0.1, 0.1))
train = ImageFolder(folder / "train", transform=v2.Compose([*to_tensor, shift]))
test = ImageFolder(folder / "test", transform=v2.Compose(to_tensor))
model = BSDClassifier(max_epochs=10, random_state=0)
# BSDClassifier(iterator_train__num_workers=4) reads the files with several processes. A
# script then needs ``if __name__ == "__main__":`` around its code.
model.fit(train)
print("classes:", model.classes_.tolist())
print(f"accuracy {model.score(test):.1%}")

# %%
# Predictions are names. The attribute `targets` of an `ImageFolder` contains indices.
true = [test.classes[target] for target in test.targets]
predicted = model.predict(test)
_, ax = plt.subplots(figsize=(5.5, 5.5), layout="constrained")
ConfusionMatrixDisplay.from_predictions(
    true, predicted, labels=NAMES, colorbar=False, xticks_rotation=45, ax=ax
)
ax.set_title("How often each class was predicted")
plt.show()

# %%
# The files with the least certain predictions:
proba = model.predict_proba(test)
for i in proba.max(axis=1).argsort()[:5]:
    path = Path(test.samples[i][0]).relative_to(folder)
    print(f"{path}: {predicted[i]} ({proba[i].max():.0%})")

# %%
# Reading image files often takes longer than training on them. If the images fit into
# memory, it is faster to pass one uint8 array of shape (n, channels, height, width).
# The parameter `augmentation` then augments the images on the device.
