"""
A search in one loop
====================

`StackedGridSearchCV` works like scikit-learn's `GridSearchCV`, but trains the networks
of all candidates and folds at once. Use it to search with many small networks. Here it
searches the prior strength, learning rate and weight decay, and is timed against
`GridSearchCV`.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/stacked_search.png'

# %%
# Twelve candidates and five folds make sixty networks. In a Pipeline each fold has its
# own scaler, so each network has its own inputs.
import math
import time

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbsd import BSDClassifier
from skbsd.model_selection import StackedGridSearchCV

X, y = load_breast_cancer(return_X_y=True)
model = make_pipeline(
    StandardScaler(),
    BSDClassifier(
        module__hidden=(32,),
        calibration=None,
        max_epochs=20,
        batch_size=64,
        random_state=0,
    ),
)
grid = {
    "bsdclassifier__prior_strength": [20, 60, math.inf],
    "bsdclassifier__lr": [3e-3, 1e-2],
    "bsdclassifier__weight_decay": [1e-2, 1e-1],
}
options = {"scoring": "neg_log_loss", "cv": 5, "refit": False}

# %%
# Both train the same networks. Each search runs once with a single epoch first, so that
# loading libraries is not part of the timing.
seconds, searches = {}, {}
short = model.set_params(bsdclassifier__max_epochs=1)
for search in (GridSearchCV, StackedGridSearchCV):
    search(short, grid, **options).fit(X, y)
model.set_params(bsdclassifier__max_epochs=20)
for search in (GridSearchCV, StackedGridSearchCV):
    began = time.perf_counter()
    searches[search] = search(model, grid, **options).fit(X, y)
    seconds[search] = time.perf_counter() - began
    print(f"{search.__name__}: {seconds[search]:.1f} s")

stacked = searches[StackedGridSearchCV]
print(f"{stacked.n_stacked_} fits were stacked")

# %%
# The log losses agree within rounding, and so does the choice.
one, other = (s.cv_results_["mean_test_score"] for s in searches.values())
print(f"largest difference of a mean log loss: {np.abs(one - other).max():.1e}")
best = stacked.cv_results_["params"][stacked.cv_results_["rank_test_score"].argmin()]
for name, value in best.items():
    print(f"{name.removeprefix('bsdclassifier__')}: {value}")
