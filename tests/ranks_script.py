"""What each of several processes does for test_ranks.py, started as by torchrun.

A scenario returns what the tests look at. It is called in all processes.
"""

import os
import pickle
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import quick
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset

from skbsd._batches import ResidentBatches
from skbsd.callbacks import ProgressBar
from skbsd.contrastive import Contrastive
from skbsd.label_noise import find_label_issues

N_DIGITS = 501  # neither a multiple of the batch size nor of the number of processes


def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def digits():
    X, y = load_digits(return_X_y=True)
    return X[:N_DIGITS].astype(np.float32) / 16, y[:N_DIGITS]


def images():
    X, y = digits()
    return X[:200].reshape(-1, 1, 8, 8), y[:200]


def some_weights():
    weight = np.linspace(0.5, 2, N_DIGITS)
    weight[:50] = 0
    return weight


class Unused(nn.Module):
    """Has a head that no step goes through."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(64, 10)
        self.unused = nn.Linear(64, 3)

    def forward(self, x):
        return self.used(x)


class Stop(ProgressBar):
    """Ends a call with an error after two epochs; checkpoints ignore such callbacks."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise RuntimeError("stopped by a callback")


class InterruptSecond(nn.Module):
    """Sends an interrupt to the second process, in the middle of an epoch."""

    n_calls = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        InterruptSecond.n_calls += self.training
        if os.environ.get("RANK") == "1" and InterruptSecond.n_calls == 150:
            os.kill(os.getpid(), signal.SIGINT)
        return self.layer(x)


class Halve(Callback):
    """Halves the learning rate, a callback of a user's."""

    def on_epoch_end(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group["lr"] /= 2


def facts(model):
    """Return what is learnt, in NumPy."""
    return {
        "weights": [t.numpy().copy() for t in model.module_.state_dict().values()],
        "posterior": model.posterior_.concentration().numpy(),
        "visits": model.posterior_.visits.numpy().copy(),
        "agreement": model.posterior_.agreement,
        "losses": list(model.history_[:, "train_loss"]),
        "sizes": model.history_[0, "batches", :, "train_batch_size"],
        "epochs": model.n_iter_,
        "rates": [group["lr"] for group in model.optimizer_.param_groups],
        "callbacks": [name for name, _ in model.callbacks_],
        "generators": model._generators.states["cpu"].numpy(),
    }


def one_batch(**options):
    return quick(batch_size=-1, max_epochs=8, **options)


def double():
    return facts(one_batch().fit(*iris()))


def lbfgs():
    model = one_batch(optimizer=torch.optim.LBFGS, lr=0.1, lr_schedule="constant")
    return facts(model.fit(*iris()))


def table():
    return facts(quick().fit(*digits()))


def weighted():
    return facts(quick().fit(*digits(), sample_weight=some_weights()))


def noisy():
    return facts(quick(prior_strength="noisy").fit(*digits()))


def uneven():
    """Batches whose size is no multiple of the number of processes."""
    return facts(quick(batch_size=33).fit(*digits()))


def network():
    model = quick(augmentation="flip-crop", averaging="ema").fit(*images())
    return facts(model) | {"proba": model.predict_proba(images()[0])}


def two_views():
    setting = Contrastive(weight=0.2, augmentation="strong")
    model = quick(contrastive=setting).fit(*images())
    head = [t.numpy() for t in model._projection.head.state_dict().values()]
    return facts(model) | {
        "head": head,
        "contrast": list(model.history_[:, "contrastive_loss"]),
    }


def validation():
    X, y = digits()
    callbacks = [
        EpochScoring("neg_log_loss", name="valid_nll"),
        EarlyStopping("valid_nll", 1, 10.0, "abs", lower_is_better=False),
        LRScheduler(ReduceLROnPlateau, monitor="train_loss", patience=0, threshold=9.0),
    ]
    model = quick(max_epochs=6, callbacks=callbacks, train_split=ValidSplit(5)).fit(
        X, y
    )
    _, valid = ValidSplit(5)(TensorDataset(*map(torch.tensor, (X, y))))
    rows = valid.indices
    return facts(model) | {
        "accuracy": float((model.predict(X[rows]) == y[rows]).mean()),
        "valid_acc": model.history_[-1, "valid_acc"],
        "valid_loss": list(model.history_[:, "valid_loss"]),
        "n_valid": sum(model.history_[-1, "batches", :, "valid_batch_size"]),
    }


def few_to_validate():
    """One sample to validate on, which a single process has."""

    def split(dataset, y, **_):
        subset = torch.utils.data.Subset
        return subset(dataset, range(1, len(y))), subset(dataset, [0])

    model = quick(train_split=split).fit(*digits())
    return facts(model) | {"valid_loss": list(model.history_[:, "valid_loss"])}


def users_callback():
    model = quick(callbacks=[Halve()], lr=0.01, lr_schedule="constant")
    return facts(model.fit(*digits()))


def calibrated():
    model = quick(calibration="auto").fit(*digits())
    return facts(model) | {
        "temperature": model.temperature_,
        "proba": model.out_of_fold_proba_,
    }


def further():
    X, y = digits()
    model = quick().fit(X, y)
    return facts(model.partial_fit(X, y))


def kept_in_parts():
    X, y = digits()
    model = quick(gather_posterior=False).fit(X, y)
    model.partial_fit(X, y)
    with pytest.raises(ValueError, match="a process's part of them"):
        find_label_issues(model)
    return facts(model) | {"rows": model.posterior_rows_}


def few_samples():
    """Too few for two processes."""
    X, y = digits()
    model = quick().fit(X[:3], y[:3])
    again = quick().fit(X[:3], y[:3])
    return facts(model) | {"again": facts(again), "callbacks": None}


def dataset():
    X, y = digits()
    model = quick(iterator_train__num_workers=1)
    return facts(model.fit(TensorDataset(torch.tensor(X), torch.tensor(y)), None))


def unused():
    return facts(quick(module=Unused).fit(*digits()))


def resumed():
    """Goes on where one process was stopped."""
    return facts(quick(max_epochs=4, checkpoint="of-one").fit(*digits()))


def interrupted():
    X, y = digits()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = quick(module=InterruptSecond, batch_size=4).fit(X, y)
    return facts(model) | {"warnings": [str(w.message) for w in caught]}


def refused():
    X, y = digits()
    texts = []
    for model, given in (
        (quick(iterator_train__drop_last=True), X),
        (quick(sync_batch_norm=True), X),
        (quick(), X + dist.get_rank() if dist.is_initialized() else X),
    ):
        try:
            model.fit(given, y)
        except ValueError as error:
            texts.append(str(error))
    # What all were refused alike leaves them together.
    return {"texts": texts, **facts(quick(max_epochs=1).fit(X, y))}


def failing():
    """Ends what the processes have in common."""
    try:
        quick(max_epochs=4, checkpoint="of-two", callbacks=[Stop()]).fit(*digits())
    except RuntimeError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


SCENARIOS = {
    function.__name__: function
    for function in (
        double,
        lbfgs,
        table,
        weighted,
        noisy,
        uneven,
        network,
        two_views,
        validation,
        few_to_validate,
        users_callback,
        calibrated,
        further,
        kept_in_parts,
        few_samples,
        dataset,
        unused,
        resumed,
        interrupted,
        refused,
        failing,
    )
}


def main(folder):
    """Call all scenarios, and note the order in which samples were drawn."""
    os.chdir(folder)
    orders = []
    draw = ResidentBatches.draw

    def noted(self):
        order = draw(self)
        orders.append(order.numpy().copy())
        return order

    ResidentBatches.draw = noted
    outcomes = {}
    for name, scenario in SCENARIOS.items():
        orders.clear()
        outcomes[name] = scenario() | {"orders": list(orders)}
    path = Path(f"outcomes-{os.environ['RANK']}.pkl")
    path.write_bytes(pickle.dumps(outcomes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
