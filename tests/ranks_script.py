"""The script of the processes of test_ranks.py, started as by torchrun.

A scenario returns what the tests look at. It is called in all processes.
"""

import logging
import os
import pickle
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import quick
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    Freezer,
    LRScheduler,
    Unfreezer,
)
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset

from skbsd import _ranks
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
    """A network with a head that no step uses."""

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
    """A custom callback that halves the learning rate."""

    def on_epoch_end(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group["lr"] /= 2


class Scale(Callback):
    """A custom callback that changes gradients."""

    def on_grad_computed(self, net, named_parameters, **kwargs):
        for _, parameter in named_parameters:
            parameter.grad *= 0.3


class Memory(nn.Module):
    """Stores its largest sum in a buffer; diverges after some steps."""

    def __init__(self, n_steps=1000):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.bool))
        self.n_steps = n_steps

    def forward(self, x):
        if self.training:
            self.n_steps -= 1
            self.largest.copy_(torch.maximum(self.largest, x.sum(dim=1).max()))
        out = self.layer(x)
        return out if self.n_steps > 0 else out * float("nan")


def facts(model):
    """Return the results of training as NumPy arrays."""
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
        "valid_nll": list(model.history_[:, "valid_nll"]),
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
    with pytest.raises(ValueError, match="the part of one process"):
        find_label_issues(model)
    return facts(model) | {"rows": model.posterior_rows_}


def few_samples():
    """Too few samples for two processes."""
    X, y = digits()
    model = quick().fit(X[:3], y[:3])
    again = quick().fit(X[:3], y[:3])
    return facts(model) | {"again": facts(again), "callbacks": None}


def alone():
    """An independent fit in each process, with different data."""
    X, y = digits()
    rank = int(os.environ.get("RANK", 0))
    return facts(quick(devices=1).fit(X[rank:], y[rank:]))


def late():
    """The second process is late, and the first one warns about it."""
    texts = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = logging.getLogger("skbsd")
    logger.addHandler(handler)
    patience, _ranks._LONG = _ranks._LONG, 0.1
    try:
        if os.environ.get("RANK") == "1":
            time.sleep(1)
        return facts(quick(max_epochs=1).fit(*digits())) | {"said": texts}
    finally:
        _ranks._LONG = patience
        logger.removeHandler(handler)


def dataset():
    X, y = digits()
    model = quick(iterator_train__num_workers=1)
    return facts(model.fit(TensorDataset(torch.tensor(X), torch.tensor(y)), None))


def unused():
    return facts(quick(module=Unused).fit(*digits()))


def frozen():
    """Other parameters are trained in each epoch."""
    callbacks = [Freezer("layers.0*"), Unfreezer("layers.0*", at=3)]
    return facts(quick(callbacks=callbacks).fit(*digits()))


def gradients():
    return facts(quick(callbacks=[Scale()], optimizer=torch.optim.SGD).fit(*digits()))


def buffers():
    return facts(quick(module=Memory).fit(*digits()))


def drawn_split():
    """Each process would draw another split."""
    return facts(quick(train_split=ValidSplit(0.2)).fit(*digits()))


def diverging():
    model = quick(module=Memory, module__n_steps=6)
    with pytest.raises(ValueError, match="NaN or infinite in epoch 2"):
        model.fit(*digits())
    return facts(model) | {"has_rows": hasattr(model, "posterior_rows_")}


def resumed():
    """Continue from the checkpoint of one process."""
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
    rank = dist.get_rank() if dist.is_initialized() else 0
    for model, given in (
        (quick(iterator_train__drop_last=True), X),
        (quick(sync_batch_norm=True), X),
        (quick(), X + rank),
        (quick(lr=0.01 * (1 + rank)), X),
    ):
        try:
            model.fit(given, y)
        except ValueError as error:
            texts.append(str(error))
    # An error that is raised in all processes leaves them synchronised.
    return {"texts": texts, **facts(quick(max_epochs=1).fit(X, y))}


def failing():
    """Destroy the process group, and try again."""
    errors = []
    for model in (
        quick(max_epochs=4, checkpoint="of-two", callbacks=[Stop()]),
        quick(),
    ):
        try:
            model.fit(*digits())
        except RuntimeError as error:
            errors.append(f"{type(error).__name__}: {error}")
    return {"error": errors[0], "again": errors[1]}


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
        alone,
        late,
        dataset,
        unused,
        frozen,
        gradients,
        buffers,
        drawn_split,
        diverging,
        resumed,
        interrupted,
        refused,
        failing,
    )
}


def main(folder):
    """Call all scenarios, and record the order in which samples were drawn."""
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
