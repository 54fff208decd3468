"""
A search with Optuna that stops poor trials early
=================================================

`Optuna <https://optuna.org>`_ proposes parameters from the results of earlier trials.
It prunes, that is stops, a trial that is worse than earlier ones were in the same
epoch. A skorch callback of ten lines reports each epoch to Optuna. Run it with
`pip install optuna`.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/optuna_pruning.png'

# %%
# The training data are 300 digits. `ValidSplit` holds out a fifth of them to compute
# `valid_loss`.
import matplotlib.pyplot as plt
import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from skbsd import BSDClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, y, train_size=300, random_state=0, stratify=y
)


class Pruning(Callback):
    """Report each epoch to a trial, and stop the fit if the trial is pruned."""

    def __init__(self, trial, monitor="valid_loss"):
        self.trial = trial
        self.monitor = monitor

    def on_epoch_end(self, net, **kwargs):
        epoch = net.history[-1]
        self.trial.report(epoch[self.monitor], step=epoch["epoch"])
        if self.trial.should_prune():
            raise optuna.TrialPruned


# %%
# All trials have the same `max_epochs`, so their learning rates follow the same
# schedule and their epochs can be compared. The trials need no calibration, because
# `valid_loss` is always the log loss of uncalibrated predictions.
curves = {}


def objective(trial):
    model = BSDClassifier(
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1.0, log=True),
        module__hidden=(trial.suggest_int("width", 16, 256, log=True),) * 2,
        max_epochs=20,
        calibration=None,
        train_split=ValidSplit(5, stratified=True),
        callbacks=[Pruning(trial)],
        random_state=0,
    )
    try:
        model.fit(X_train, y_train)
    finally:
        curves[trial.number] = model.history_[:, "valid_loss"]
    return model.history_[-1, "valid_loss"]


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(
    sampler=optuna.samplers.TPESampler(seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
)
study.optimize(objective, n_trials=30)

pruned = [t.number for t in study.trials if t.state == optuna.trial.TrialState.PRUNED]
epochs = sum(map(len, curves.values()))
print(f"{len(pruned)} of 30 trials pruned, {epochs} of 600 epochs trained")
print(f"best: {study.best_params}, validation loss {study.best_value:.3f}")

# %%
# Pruned trials are grey. The pruner compares a trial with the median of the earlier
# trials in the same epoch. It never prunes the first five trials. It may also prune a
# trial that would have become good later. In the first epochs the learning rate is
# still low and the losses say little, so `n_warmup_steps` prevents pruning there.
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for number, losses in curves.items():
    best = number == study.best_trial.number
    color = "#D55E00" if best else "0.6" if number in pruned else "#0072B2"
    ax.plot(
        range(1, len(losses) + 1),
        losses,
        color=color,
        linewidth=3 if best else 1,
        zorder=3 if best else 1 if number in pruned else 2,
    )
ax.plot([], [], color="0.6", label="pruned")
ax.plot([], [], color="#0072B2", label="trained to the end")
ax.plot([], [], color="#D55E00", linewidth=3, label="best")
ax.set(xlabel="epoch", ylabel="validation loss", xticks=range(0, 21, 5))
ax.legend()
plt.show()

# %%
# The best parameters are used to train a calibrated network on all 300 digits. A single
# split and seed cannot show whether the search was worthwhile.
best = study.best_params
winner = BSDClassifier(
    lr=best["lr"],
    weight_decay=best["weight_decay"],
    module__hidden=(best["width"],) * 2,
    max_epochs=20,
    random_state=0,
).fit(X_train, y_train)
default = BSDClassifier(max_epochs=20, random_state=0).fit(X_train, y_train)
print(f"accuracy on test data: {winner.score(X_test, y_test):.1%}")
print(f"without a search: {default.score(X_test, y_test):.1%}")
