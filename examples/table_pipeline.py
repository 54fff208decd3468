"""
A table with numeric and categorical columns
============================================

A `ColumnTransformer` fills in missing numbers, scales them and encodes categories, as
for any classifier of scikit-learn. Together with a `BSDClassifier` it forms a
`Pipeline` that can be cross-validated. This example compares it with other classifiers.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/table_pipeline.png'

# %%
# The diabetes study has 442 patients, ten measurements, and the progression of the
# disease within a year, which we cut into thirds. We make sex a categorical column, and
# remove every twelfth value of the cholesterol.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skbsd import BSDClassifier
from skbsd.metrics import get_scorer

X, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
X["sex"] = X["sex"].map({1: "female", 2: "male"})
X.loc[::12, "s1"] = np.nan
y = pd.qcut(progression, 3, labels=["slow", "medium", "fast"]).astype(str)
print(X.head())

# %%
# Missing numbers are filled in, and all numbers are standardised, which a network
# needs. Categories become columns of zeros and ones.
prepare = make_column_transformer(
    (
        make_pipeline(SimpleImputer(), StandardScaler()),
        make_column_selector(dtype_include="number"),
    ),
    (OneHotEncoder(), make_column_selector(dtype_exclude="number")),
)
models = {
    "logistic regression": LogisticRegression(),
    "gradient boosting": HistGradientBoostingClassifier(random_state=0),
    "MLPClassifier": MLPClassifier(max_iter=500, random_state=0),
    "BSD": BSDClassifier(random_state=0),
}
make_pipeline(prepare, models["BSD"])

# %%
# Five-fold cross-validation of accuracy, log loss and calibration error.
scoring = {
    "accuracy": "accuracy",
    "log loss": "neg_log_loss",
    "calibration error": get_scorer("neg_expected_calibration_error"),
}
folds = StratifiedKFold(5, shuffle=True, random_state=0)
results = {
    name: cross_validate(make_pipeline(prepare, model), X, y, scoring=scoring, cv=folds)
    for name, model in models.items()
}
table = pd.DataFrame(
    {
        metric: {
            name: abs(result[f"test_{metric}"]).mean()
            for name, result in results.items()
        }
        for metric in scoring
    }
)
table["seconds"] = [result["fit_time"].mean() for result in results.values()]
print(table.round(3))

# %%
# Every dot is a fold, and the line is their mean. Logistic regression has the lowest
# log loss and calibration error, as a linear model suits so small a table.
# `BSDClassifier` is close to it, and as accurate. `MLPClassifier` and the trees overfit
# and become overconfident; the log loss of the trees is worse than that of a uniform
# guess (log 3 = 1.10). So start with the simplest model, and measure. The last column
# of the table shows what a `BSDClassifier` costs: below 450 samples it trains four
# networks to calibrate the fifth.
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
markers = dict(zip(models, "s^Do", strict=True))
for ax, metric in zip(axes, scoring, strict=True):
    for row, (name, result) in enumerate(results.items()):
        values = abs(result[f"test_{metric}"])
        color = "#0072B2" if name == "BSD" else "0.5"
        ax.plot(
            values, np.full(len(values), row), markers[name], color=color, alpha=0.5
        )
        ax.vlines(values.mean(), row - 0.3, row + 0.3, color="black", linewidth=2)
    ax.set_xlabel(f"{metric} ({'more' if metric == 'accuracy' else 'less'} is better)")
axes[0].set_yticks(range(len(models)), list(models))
axes[0].invert_yaxis()
figure.suptitle("Diabetes: slow, medium or fast?")
plt.show()
