"""
The effect of calibration, and the certainty of the noise rate
==============================================================

`fit` calibrates the probabilities of a `BSDClassifier`, and estimates how many training
labels are wrong. Three displays show what the calibration changed, how certain this
estimate is, and whether a longer search for parameters would be worthwhile.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/calibration_before_after.png'

# %%
# The network is trained on 900 digits. First a fifth of the eights are labelled 3. Then
# a tenth of all labels are changed to a random other class.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skbsd import BSDClassifier
from skbsd.display import (
    CalibrationEffectDisplay,
    NoiseRateDisplay,
    SearchTimeDisplay,
)
from skbsd.label_noise import flip_labels
from skbsd.model_selection import StackedGridSearchCV

X, y = load_digits(return_X_y=True)
X_train, X_test, true, y_test = train_test_split(
    X / 16, y, train_size=900, random_state=0, stratify=y
)
given, _ = flip_labels(true, 0.2, {8: 3}, random_state=1)
given, _ = flip_labels(given, 0.1, random_state=2)
model = BSDClassifier(max_epochs=40, random_state=0).fit(X_train, given)

# %%
# Both curves belong to the same network, tested on true labels. Before calibration it
# is underconfident, because it was trained on targets that contain wrong labels. The
# calibration estimates the label errors and the temperature together, so the calibrated
# probabilities refer to true labels.
effect = CalibrationEffectDisplay.from_estimator(
    model, X_test, y_test, n_bins=10, n_bootstraps=200, random_state=0
)
plt.show()

# %%
# The next picture shows the estimated fraction of wrong labels, among all samples and
# among those with each given label, with 95 % bootstrap intervals. The label 3 has the
# highest rate: it includes the mislabelled eights.
display = NoiseRateDisplay.from_estimator(model, n_bootstraps=100, random_state=0)
plt.show()

rates = display.noise_rates
low, high = rates.interval
print(f"estimated: {rates.rate:.1%} ({low:.1%} to {high:.1%})")
print(f"true:      {np.mean(given != true):.1%}")

# %%
# The same estimate by pairs of true class and given label shows the most frequent
# error: an eight that is labelled 3.
display.plot(by="pair", max_rows=8)
plt.show()

# %%
# Finally, a grid search tries several learning rates and prior strengths. The steps
# show the best score so far against the time that the fits took. Where they stay level,
# further candidates did not improve the score.
search = StackedGridSearchCV(
    BSDClassifier(calibration=None, max_epochs=20, random_state=0),
    {"lr": [0.0003, 0.001, 0.003, 0.01, 0.03], "prior_strength": [10, 30, 100]},
    scoring="neg_log_loss",
    cv=3,
).fit(X_train, given)
SearchTimeDisplay.from_estimator(search)
plt.show()
