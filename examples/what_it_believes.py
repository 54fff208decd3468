"""
How training targets change
===========================

Every training image has a Dirichlet belief about its class, and the mean of that belief
is its training target. The belief starts at the label and takes in the network's
predictions during training. This example records the targets of a few digits, some of
which have a wrong label. Use the same callback to inspect your own data.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/what_it_believes.png'

# %%
# A skorch callback records the targets of all images after every epoch.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from skorch.callbacks import Callback

from skbsd import BSDClassifier
from skbsd.display import PosteriorDisplay
from skbsd.label_noise import flip_labels


class Recorder(Callback):
    """Record the targets of all training images."""

    def on_train_begin(self, net, **kwargs):
        self.pages_ = [net.posterior_.mean().cpu().numpy()]

    def on_epoch_end(self, net, **kwargs):
        self.pages_.append(net.posterior_.mean().cpu().numpy())


X, y = load_digits(return_X_y=True)
given, wrong = flip_labels(y, 0.1, random_state=0)
model = BSDClassifier(
    image_shape=(1, 8, 8),
    prior_strength="noisy",
    callbacks=[("recorder", Recorder())],
    random_state=0,
)
model.fit(X, given)
beliefs = np.stack(dict(model.callbacks_)["recorder"].pages_)  # epochs, images, classes
print(f"{beliefs.shape[0] - 1} epochs, {beliefs.shape[1]:,} images")

# %%
# The figure shows two typical images with a correct label, two unusually written ones,
# and two with a wrong label. Beside each image is its target over the epochs: the mass
# of the given label (solid) and of the strongest other class (dashed).
own = beliefs[-1][np.arange(len(given)), given]
right = np.flatnonzero(~wrong)
typical = right[np.argsort(-own[right])[:2]]
odd = right[np.argsort(own[right])[:2]]
flipped = np.flatnonzero(wrong)[[0, 3]]

figure, axes = plt.subplots(
    3, 4, figsize=(10, 7), width_ratios=[1, 2, 1, 2], layout="constrained"
)
kinds = [("typical", typical), ("unusual", odd), ("wrong label", flipped)]
for row, (kind, images) in enumerate(kinds):
    for column, image in enumerate(images):
        picture, curves = axes[row, 2 * column : 2 * column + 2]
        picture.imshow(X[image].reshape(8, 8), cmap="gray_r")
        picture.set(xticks=[], yticks=[], title=f"labelled {given[image]}")
        belief = beliefs[:, image]
        other = np.argsort(np.where(np.arange(10) == given[image], 0, belief[-1]))[-1]
        curves.plot(belief[:, given[image]], "-", color="#0072B2", label="its label")
        curves.plot(belief[:, other], "--", color="#D55E00", label=f"a {other}")
        curves.set(ylim=(-0.03, 1.03), title=kind)
        curves.legend(loc="center right", fontsize="small")
for ax in axes[-1, 1::2]:
    ax.set_xlabel("epoch")
for ax in axes[:, 1::2].flat:
    ax.set_ylabel("mass in the target")
figure.suptitle("Targets during training")
plt.show()

# %%
# `PosteriorDisplay` shows the final targets with all classes. The hatched bar is the
# given label.
PosteriorDisplay.from_estimator(model, np.r_[typical, odd, flipped], X)
plt.show()

# %%
# The mean mass of the given label in the targets, for correct and for wrong labels. The
# targets forget wrong labels and keep correct ones.
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
kept = beliefs[:, np.arange(len(given)), given]
ax.plot(kept[:, ~wrong].mean(axis=1), "-", color="#0072B2", label="correct labels")
ax.plot(kept[:, wrong].mean(axis=1), "--", color="#D55E00", label="wrong labels")
ax.set(xlabel="epoch", ylabel="label's mass in the target", ylim=(0, 1.03))
ax.set_title("Targets forget wrong labels")
ax.legend()
plt.show()
