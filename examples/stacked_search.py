"""
A search in one loop
====================

`StackedGridSearchCV` is scikit-learn's `GridSearchCV` with the networks of all
candidates and folds trained at once. Here it finds a prior strength, a learning rate
and a weight decay for a small network, and is timed beside the original.
"""

# %%
# Twelve candidates on five folds are sixty networks. In a Pipeline each fold has its
# own scaler, and each network its own inputs.
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
# Both train the same networks. The first search of a program pays for what is loaded
# then, so each is run once before, with a single epoch.
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
# The log losses are the same within rounding, and so is the choice.
one, other = (s.cv_results_["mean_test_score"] for s in searches.values())
print(f"largest difference of a mean log loss: {np.abs(one - other).max():.1e}")
best = stacked.cv_results_["params"][stacked.cv_results_["rank_test_score"].argmin()]
for name, value in best.items():
    print(f"{name.removeprefix('bsdclassifier__')}: {value}")
