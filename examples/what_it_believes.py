"""
What the network comes to believe
=================================

Every training image has a belief about its class. It starts at the label, takes in what
the network predicts as it learns, and is what the network is trained towards. Here we
watch it for a few digits, some of which have a wrong label.
"""

# %%
# A callback, as skorch has them, notes the beliefs of some images after every epoch.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from skorch.callbacks import Callback

from skbsd import BSDClassifier
from skbsd.display import PosteriorDisplay
from skbsd.label_noise import flip_labels


class Notebook(Callback):
    """Notes what is believed of all training images."""

    def on_train_begin(self, net, **kwargs):
        self.pages_ = [net.posterior_.mean().cpu().numpy()]

    def on_epoch_end(self, net, **kwargs):
        self.pages_.append(net.posterior_.mean().cpu().numpy())


X, y = load_digits(return_X_y=True)
given, wrong = flip_labels(y, 0.1, random_state=0)
model = BSDClassifier(
    image_shape=(1, 8, 8),
    prior_strength="noisy",
    callbacks=[("notes", Notebook())],
    random_state=0,
)
model.fit(X, given)
beliefs = np.stack(dict(model.callbacks_)["notes"].pages_)  # epochs, images, classes
print(f"{beliefs.shape[0] - 1} epochs, {beliefs.shape[1]:,} images")

# %%
# Two images whose label is right and that look like it, two that are written oddly, two
# whose label is wrong. Left, what each looks like; right, how the mass in its target
# moves from the given label (solid) to whatever else the network sees in it (dashed).
own = beliefs[-1][np.arange(len(given)), given]
right = np.flatnonzero(~wrong)
typical = right[np.argsort(-own[right])[:2]]
odd = right[np.argsort(own[right])[:2]]
flipped = np.flatnonzero(wrong)[[0, 3]]

figure, axes = plt.subplots(
    3, 4, figsize=(10, 7), width_ratios=[1, 2, 1, 2], layout="constrained"
)
kinds = [("typical", typical), ("written oddly", odd), ("wrong label", flipped)]
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
figure.suptitle("How targets move while the network learns")
plt.show()

# %%
# `PosteriorDisplay` shows where they have arrived, with all classes: the hatched bar is
# the given label's.
PosteriorDisplay.from_estimator(model, np.r_[typical, odd, flipped], X)
plt.show()

# %%
# How soft the targets have become: the mass of the label in the mean image's target, by
# whether the label is right.
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
kept = beliefs[:, np.arange(len(given)), given]
ax.plot(kept[:, ~wrong].mean(axis=1), "-", color="#0072B2", label="label right")
ax.plot(kept[:, wrong].mean(axis=1), "--", color="#D55E00", label="label wrong")
ax.set(xlabel="epoch", ylabel="label's mass in the target", ylim=(0, 1.03))
ax.set_title("Wrong labels lose their hold")
ax.legend()
plt.show()
