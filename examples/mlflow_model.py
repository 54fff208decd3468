"""
Models in MLflow
================

`MLflow <https://mlflow.org>`_ records the parameters and the results of a run, and
stores the model for others to load. `mlflow.sklearn` accepts a fitted `BSDClassifier`,
also one that was fitted on images. Run it with `pip install mlflow`; no server is
needed.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/mlflow_model.png'

# %%
# MLflow stores the runs in a SQLite database and the models in a folder. This example
# puts both into a temporary folder.
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import skops.io
from mlflow.models import infer_signature
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import skbsd
from skbsd import BSDClassifier
from skbsd.metrics import expected_calibration_error

folder = Path(tempfile.mkdtemp())
mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
mlflow.create_experiment("digits", artifact_location=(folder / "models").as_uri())
mlflow.set_experiment("digits")

X, y = load_digits(return_X_y=True)
images = (X * 15).astype(np.uint8).reshape(-1, 1, 8, 8)
X_train, X_test, y_train, y_test = train_test_split(
    images, y, random_state=0, stratify=y
)
model = BSDClassifier(max_epochs=10, random_state=0).fit(X_train, y_train)

# %%
# Set these three arguments of `log_model`:
#
# - `skops_trusted_types`: MLflow writes models with skops, which refuses types that it
#   does not know. `skops.io.get_untrusted_types` lists those of a `BSDClassifier`. Read
#   the list before you trust it: if it contains `skbsd._state.PickledComponents`, the
#   file contains a pickled network, and loading it can run arbitrary code.
# - `pip_requirements`: without it, MLflow starts a second process that loads the model,
#   and lists the packages that are imported there. This takes time, and the list may
#   contain packages that are not needed.
# - `signature` is inferred from examples of inputs and outputs. It fixes the type and
#   shape of the inputs of the served model; the number of samples stays free.
untrusted = skops.io.get_untrusted_types(data=skops.io.dumps(model))
print("\n".join(untrusted))

with mlflow.start_run() as run:
    changed = ("max_epochs", "random_state", "prior_strength", "lr", "calibration")
    mlflow.log_params({name: model.get_params()[name] for name in changed})
    for row in model.history_:
        mlflow.log_metric("train_loss", row["train_loss"], step=row["epoch"])
    proba = model.predict_proba(X_test)
    mlflow.log_metrics(
        {
            "accuracy": model.score(X_test, y_test),
            "calibration error": expected_calibration_error(y_test, proba),
            "temperature": model.temperature_,
            "noise_rate": model.noise_rate_,
        }
    )
    info = mlflow.sklearn.log_model(
        model,
        name="digits",
        skops_trusted_types=untrusted,
        pip_requirements=[f"skbsd=={skbsd.__version__}", "skops"],
        signature=infer_signature(X_test[:5], model.predict(X_test[:5])),
    )
print(info.signature)

# %%
# `mlflow.sklearn.load_model` returns the estimator with all its methods.
# `mlflow.pyfunc.load_model` returns a wrapper, which checks its input and calls
# `predict`. The predictions of both are identical to those of the model.
loaded = mlflow.sklearn.load_model(info.model_uri)
print(type(loaded).__name__, bool((loaded.predict_proba(X_test) == proba).all()))
served = mlflow.pyfunc.load_model(info.model_uri)
print(bool((served.predict(X_test) == model.predict(X_test)).all()))

# %%
# The wrapper refuses images whose shape or type does not match the signature.
try:
    served.predict(X_test[:, :, :4].astype(np.float32))
except mlflow.exceptions.MlflowException as error:
    print(str(error).partition("Error: ")[2] or error)

# %%
# What was logged:
found = mlflow.get_run(run.info.run_id).data
print(found.params)
print({name: round(value, 3) for name, value in found.metrics.items()})
