"""The rivals of a fair comparison, which differ from `BSDClassifier` in the loss only.

`METHODS` maps a name to a callable that takes `BSDClassifier`'s arguments and returns
an unfitted classifier. Network, optimizer, schedule, batches, augmentation and seed
depend on these arguments alone. Further hyperparameters of a method have its authors'
values (for CIFAR-10, if there are several). Epochs at which a method changes are scaled
to the same fraction of the training as in the authors' runs.

    from baselines import METHODS
    model = METHODS["ELR"](max_epochs=40, random_state=0).fit(X, y)

A new method is an objective in `losses.py`, a subclass of `Rival` that names it, whose
constructor has a parameter for each of the objective's, and an entry in `METHODS`:

    class Confident(Objective):
        '''Cross-entropy minus a multiple of the entropy of the prediction.'''

        def __init__(self, strength):
            self.strength = strength

        def loss(self, logits, batch):
            entropy = F.cross_entropy(logits, logits.softmax(dim=1))
            return F.cross_entropy(logits, batch.y) - self.strength * entropy

    class Confident(Rival):
        '''Cross-entropy minus 0.1 times the entropy.'''

        objective = losses.Confident

        def __init__(self, module=None, *, strength=0.1, **kwargs):
            super().__init__(module, **kwargs)
            self.strength = strength
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import losses
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import StratifiedShuffleSplit

from skbsd import BSDClassifier
from skbsd.objectives import Objective


class Rival(BSDClassifier):
    """Cross-entropy, and the base class of methods with another loss.

    The posterior exists, but is not used. The state of a method is on the device during
    training, and is initialised by each call of `fit` or `partial_fit`. Hyperparameters
    of the objective are not checked.
    """

    objective: type[Objective] = losses.CrossEntropy

    def __init__(
        self, module=None, *, prior_strength=math.inf, calibration=None, **kwargs
    ):
        super().__init__(
            module, prior_strength=prior_strength, calibration=calibration, **kwargs
        )

    def make_objective(self) -> Objective:
        """Return the objective, with its parameters taken from the estimator's."""
        names = inspect.signature(self.objective).parameters
        return self.objective(**{name: getattr(self, name) for name in names})


class LabelSmoothing(Rival):
    """Target 1 - a for the label and a / (K - 1) for each other class; a = 0.1.

    The authors give 0.1 / K to every class, with K = 1000. For ten classes, this
    corresponds to a = 0.09 here.
    """

    objective = losses.LabelSmoothing

    def __init__(self, module=None, *, smoothing=0.1, **kwargs):
        super().__init__(module, **kwargs)
        self.smoothing = smoothing


class Mixup(Rival):
    """Pairs of samples mixed with weights from Beta(1, 1).

    The authors train on CIFAR-10 with alpha = 1 for 200 epochs.
    """

    objective = losses.Mixup

    def __init__(self, module=None, *, mixup_alpha=1.0, **kwargs):
        super().__init__(module, **kwargs)
        self.mixup_alpha = mixup_alpha


class TemporalEnsembling(Rival):
    """Squared error to the average of past predictions, with a = 0.6.

    Its weight rises over the first 80 of 300 epochs to w_max. This is 30 times the
    fraction of labelled samples, here 1, for CIFAR-10 and SVHN; 100 for CIFAR-100.

    The authors' setting is semi-supervised. They also change the learning rate and
    beta_1 of Adam during training, which here are those of the estimator.
    """

    objective = losses.TemporalEnsembling

    def __init__(
        self, module=None, *, momentum=0.6, weight=30.0, ramp=80 / 300, **kwargs
    ):
        super().__init__(module, **kwargs)
        self.momentum = momentum
        self.weight = weight
        self.ramp = ramp


class ELR(Rival):
    """Early-learning regularization, with b = 0.7 and lam = 3.

    These are the authors' values for CIFAR-10 with symmetric noise. They use 0.9 and 1
    with asymmetric noise, and 0.9 and 7 on CIFAR-100. They train by SGD with cosine
    restarts or steps, for 120 to 150 epochs.
    """

    objective = losses.ELR

    def __init__(self, module=None, *, momentum=0.7, strength=3.0, **kwargs):
        super().__init__(module, **kwargs)
        self.momentum = momentum
        self.strength = strength


class SELC(Rival):
    """Self-ensemble label correction, with b = 0.9 after 40 of 200 epochs.

    The warm-up takes 20 to 40 epochs in the authors' code, depending on data and noise.
    """

    objective = losses.SELC

    def __init__(self, module=None, *, momentum=0.9, warm_up=40 / 200, **kwargs):
        super().__init__(module, **kwargs)
        self.momentum = momentum
        self.warm_up = warm_up


class PSKD(Rival):
    """Progressive self-knowledge distillation, with a weight that rises to a = 0.8.

    The authors use SGD for 300 epochs.
    """

    objective = losses.PSKD

    def __init__(self, module=None, *, final_share=0.8, **kwargs):
        super().__init__(module, **kwargs)
        self.final_share = final_share


class CSKD(Rival):
    """Class-wise self-knowledge distillation, with T = 4 and lam = 1.

    The authors use SGD for 200 epochs.
    """

    objective = losses.CSKD

    def __init__(self, module=None, *, temperature=4.0, strength=1.0, **kwargs):
        super().__init__(module, **kwargs)
        self.temperature = temperature
        self.strength = strength


class DLB(Rival):
    """Self-distillation from the last mini-batch, with tau = 3 and a = 1."""

    objective = losses.DLB

    def __init__(self, module=None, *, temperature=3.0, strength=1.0, **kwargs):
        super().__init__(module, **kwargs)
        self.temperature = temperature
        self.strength = strength


def temperature_scaling(
    module=None, *, prior_strength=math.inf, **kwargs
) -> CalibratedClassifierCV:
    """Cross-entropy (or BSD), with the logits scaled by a held-out temperature.

    A stratified tenth of the samples is held out to fit the temperature, as the authors
    hold out 5,000 of CIFAR's 50,000. The network is trained on the rest, which lowers
    its accuracy. The temperature minimises the log loss of the held-out samples:
    scikit-learn 1.8 or newer uses a bounded search in one dimension, the authors LBFGS.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    arXiv:1706.04599; gpleiss/temperature_scaling.
    """
    held_out = StratifiedShuffleSplit(
        1, test_size=0.1, random_state=kwargs.get("random_state")
    )
    network = BSDClassifier(
        module, prior_strength=prior_strength, **({"calibration": None} | kwargs)
    )
    return CalibratedClassifierCV(
        network, method="temperature", cv=held_out, ensemble=True
    )


METHODS: dict[str, Callable[..., Any]] = {
    "CE": partial(BSDClassifier, prior_strength=math.inf),
    "label smoothing": LabelSmoothing,
    "mixup": Mixup,
    "temperature": temperature_scaling,
    "temporal ensembling": TemporalEnsembling,
    "ELR": ELR,
    "SELC": SELC,
    "PS-KD": PSKD,
    "CS-KD": CSKD,
    "DLB": DLB,
    "BSD": BSDClassifier,
    "BSD noisy": partial(BSDClassifier, prior_strength="noisy"),
    "BSD, c = 100": partial(BSDClassifier, prior_strength=100.0),
    "BSD temperature": partial(temperature_scaling, prior_strength="auto"),
}
