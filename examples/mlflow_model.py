"""
Models in MLflow
================

`MLflow <https://mlflow.org>`_ records what a run was given and what came of it, and
keeps the model for others to load. `mlflow.sklearn` takes a fitted `BSDClassifier`, of
images too. Run it with `pip install mlflow`; no server is needed.
"""

# %%
# The runs are kept in a SQLite database, and models in a folder beside it. In a folder
# of its own this leaves nothing behind.
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
# Three arguments save trouble:
#
# - `skops_trusted_types`: MLflow writes models with skops, and stops at types that it
#   does not know. Those of a `BSDClassifier` are listed by skops itself. Read the list
#   before you trust it: if `skbsd._state.PickledComponents` is in it, then the network
#   is pickled within the file, and loading it runs code.
# - `pip_requirements`: without it, MLflow starts a second process that loads the model,
#   and lists the packages that were imported there. That takes as long as the imports,
#   and the list may hold what is not needed.
# - `signature`, from examples of inputs and outputs. It fixes type and shape of what
#   the served model takes; the number of samples stays free.
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
# Load it as the estimator that it is, with all its methods, or as a function of MLflow,
# which checks what it is given and calls `predict`. Predictions are the same bit for
# bit.
loaded = mlflow.sklearn.load_model(info.model_uri)
print(type(loaded).__name__, bool((loaded.predict_proba(X_test) == proba).all()))
served = mlflow.pyfunc.load_model(info.model_uri)
print(bool((served.predict(X_test) == model.predict(X_test)).all()))

# %%
# The signature refuses images of another shape, or of another type.
try:
    served.predict(X_test[:, :, :4].astype(np.float32))
except mlflow.exceptions.MlflowException as error:
    print(str(error).partition("Error: ")[2] or error)

# %%
# What was logged:
found = mlflow.get_run(run.info.run_id).data
print(found.params)
print({name: round(value, 3) for name, value in found.metrics.items()})
