"""The rivals of a fair comparison: everything as in `BSDClassifier` but the loss.

`METHODS` maps a name to a callable that takes `BSDClassifier`'s arguments and returns
an unfitted classifier. Network, optimizer, schedule, batches, augmentation and seed
follow from these arguments alone. What a method has beside them is set as its authors
do (on CIFAR-10, where they have several settings), and the epoch at which something
happens is scaled to the share of the budget that it has in their runs.

    from baselines import METHODS
    model = METHODS["ELR"](max_epochs=40, random_state=0).fit(X, y)

A new method is a subclass of `Rival` with a `batch_loss`, and an entry in `METHODS`:

    class Confident(Rival):
        '''Cross-entropy less 0.1 times the entropy of the prediction.'''

        def __init__(self, module=None, *, strength=0.1, **kwargs):
            super().__init__(module, **kwargs)
            self.strength = strength

        def batch_loss(self, logits, batch):
            entropy = F.cross_entropy(logits, logits.softmax(dim=1))
            return F.cross_entropy(logits, batch.y) - self.strength * entropy

If it remembers something, `begin` returns it as it is before the first step; the loss
finds it in `self._memory`, rows of which belong to `batch.rows`. The epochs done so far
are `self._epochs_run`, of `self.max_epochs`. Mathematics goes into a pure function,
with a test of its own in `tests/test_baselines.py`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F

from skbsd import BSDClassifier
from skbsd._batches import ResidentBatches
from skbsd.posterior import soft_cross_entropy


def moving_average(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    """Return ``momentum * old + (1 - momentum) * new``."""
    return momentum * old + (1 - momentum) * new


def label_smoothing_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with 1 - a on the label and a / (K - 1) on each other class."""
    n_classes = logits.shape[1]
    # torch spreads its mass over all K classes, the label included.
    spread = smoothing * n_classes / (n_classes - 1)
    return F.cross_entropy(logits, labels, label_smoothing=spread)


def mixup_loss(logits: Tensor, labels: Tensor, others: Tensor, share: float) -> Tensor:
    """Cross-entropy with the labels of both samples, in the shares of their inputs."""
    first, second = F.cross_entropy(logits, labels), F.cross_entropy(logits, others)
    return share * first + (1 - share) * second


def ramp_up(epoch: int, length: float) -> float:
    """exp(-5 (1 - t / length)^2) in epoch t, counted from 0, and then 1."""
    return math.exp(-5 * (1 - epoch / length) ** 2) if epoch < length else 1.0


def unbiased(average: Tensor, momentum: float, visits: int) -> Tensor:
    """Correct an average that started at zero, and has seen `visits` values, for it."""
    return average / (1 - momentum**visits)


def clamped_softmax(logits: Tensor) -> Tensor:
    """Probabilities between 1e-4 and 1 - 1e-4, as ELR takes them."""
    return logits.softmax(dim=1).clamp(1e-4, 1 - 1e-4)


def elr_penalty(proba: Tensor, target: Tensor) -> Tensor:
    """Mean of log(1 - <p, t>)."""
    return torch.log1p(-(proba * target).sum(dim=1)).mean()


def progressive_target(labels: Tensor, last: Tensor, share: float) -> Tensor:
    """Mix one-hot labels with the last predictions, of which it takes `share`."""
    return moving_average(last, F.one_hot(labels, last.shape[1]), share)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), a mean over samples."""
    student = (logits / temperature).log_softmax(dim=1)
    known = (teacher.detach() / temperature).log_softmax(dim=1)
    divergence = F.kl_div(student, known, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def same_class(labels: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """Draw a row of the same class for each label; it may be the sample itself.

    `rows` are the training samples' in the order of their classes, and `classes` says
    how many there are of each.
    """
    first = classes.cumsum(0) - classes
    draw = torch.randint(2**48, labels.shape, device=labels.device) % classes[labels]
    return rows[first[labels] + draw]


class Rival(BSDClassifier):
    """Cross-entropy, and the base of methods that have another loss.

    The posterior is there, but unused. What a method remembers lies on the device
    while it is trained, and starts afresh with each call of `fit` or `partial_fit`.
    Sample and class weights are refused, and optimizers that evaluate the loss
    repeatedly. Other hyperparameters are not checked.
    """

    _memory: Any = None

    def __init__(self, module=None, *, prior_strength=math.inf, **kwargs):
        super().__init__(module, prior_strength=prior_strength, **kwargs)

    def begin(self, batches) -> Any:
        """Return what `_memory` is before the first step; `batches` are to come."""

    def batch_loss(self, logits: Tensor, batch) -> Tensor:
        """Compute the loss of a batch, from logits in float32 at least."""
        return F.cross_entropy(logits, batch.y)

    def train_step_single(self, batch, **fit_params) -> dict:
        """Compute loss and gradients, without a posterior."""
        logits = self._logits(batch.x, self.augmentation)
        if not self._step_checked:  # as the parent does
            self._check_output(logits)
            self._first_logits = logits.detach().clone()
            self._step_checked = True
        loss = self.batch_loss(_wide(logits), batch)
        loss.backward()
        return {"loss": loss.detach(), "y_pred": logits}

    def _one_hot_labels(self) -> Tensor:
        """One row per row of X, trained on or not."""
        labels, n_classes = self.posterior_.labels, len(self.classes_)
        return F.one_hot(labels, n_classes).to(self._float_dtype)

    def _run_epochs(self, epochs, batches, *args):
        self._memory = self.begin(batches)
        try:
            super()._run_epochs(epochs, batches, *args)
        finally:
            self._memory = None  # it may hold the training data

    def _check_training_data(self, *args, **kwargs):
        data = super()._check_training_data(*args, **kwargs)
        if data.weight is not None:
            raise ValueError(f"{type(self).__name__} takes no sample or class weights.")
        return data

    def _evaluate(self, batch, first):
        raise ValueError(
            f"{type(self).__name__} would update what it remembers several times in a "
            f"step of {self.optimizer.__name__}; use an optimizer without a closure."
        )


def _wide(logits: Tensor) -> Tensor:
    """Convert what autocast returns to float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class LabelSmoothing(Rival):
    """1 - a on the label and a / (K - 1) on each other class; a = 0.1.

    Its authors give a / K to every class, the label included, with a = 0.1 and
    K = 1000; for ten classes theirs is a = 0.09 here.

    Source: C. Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", CVPR 2016, arXiv:1512.00567.
    """

    def __init__(self, module=None, *, smoothing=0.1, **kwargs):
        super().__init__(module, **kwargs)
        self.smoothing = smoothing

    def batch_loss(self, logits, batch):
        """Compute cross-entropy with the smoothed labels."""
        return label_smoothing_loss(logits, batch.y, self.smoothing)


class Mixup(Rival):
    """Convex combinations of pairs of samples, and of their labels.

    As in the authors' code: one share from Beta(1, 1) for all of a batch, whose
    partners are a permutation of it, after augmentation and standardisation. They
    train on CIFAR-10 with alpha = 1 for 200 epochs.

    Source: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    arXiv:1710.09412; facebookresearch/mixup-cifar10.
    """

    def __init__(self, module=None, *, mixup_alpha=1.0, **kwargs):
        super().__init__(module, **kwargs)
        self.mixup_alpha = mixup_alpha

    def _prepare(self, x, augmentation=None):
        x = super()._prepare(x, augmentation)
        if not self.module_.training:
            return x
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            raise TypeError("mixup needs inputs that are a Tensor of floats or pixels.")
        share = Beta(self.mixup_alpha, self.mixup_alpha).sample().item()
        other = torch.randperm(len(x), device=x.device)
        self._memory = share, other
        return share * x + (1 - share) * x[other]

    def batch_loss(self, logits, batch):
        """Weight two cross-entropies as the inputs were mixed."""
        share, other = self._memory
        return mixup_loss(logits, batch.y, batch.y[other], share)


class TemporalEnsembling(Rival):
    """Cross-entropy, and squared error to the average of past predictions.

    Z <- a Z + (1 - a) p with a = 0.6; the target is Z / (1 - a^t) of the epochs
    before; its weight rises to w_max over the first 80 of 300 epochs, none in the
    first one. The squared error is a mean over samples and classes. w_max is 30 times
    the labelled share, here 1, for CIFAR-10 and SVHN; 100 for CIFAR-100.

    Theirs is semi-supervised. They move Adam's rate and beta_1 too, which here are the
    estimator's.

    Source: S. Laine, T. Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR
    2017, arXiv:1610.02242; smlaine2/tempens.
    """

    def __init__(
        self, module=None, *, momentum=0.6, weight=30.0, ramp=80 / 300, **kwargs
    ):
        super().__init__(module, **kwargs)
        self.momentum = momentum
        self.weight = weight
        self.ramp = ramp

    def begin(self, batches):
        """Start the averages at zero."""
        return torch.zeros_like(self._one_hot_labels())

    def batch_loss(self, logits, batch):
        """Compare with the epochs before, then remember this one."""
        loss, proba = F.cross_entropy(logits, batch.y), logits.softmax(dim=1)
        epoch, past = self._epochs_run, self._memory[batch.rows]
        self._memory[batch.rows] = moving_average(past, proba.detach(), self.momentum)
        if epoch == 0:
            return loss
        weight = self.weight * ramp_up(epoch, self.ramp * self.max_epochs)
        target = unbiased(past, self.momentum, epoch)
        return loss + weight * F.mse_loss(proba, target)


class ELR(Rival):
    """Early-learning regularization: CE + lam log(1 - <p, t>).

    t <- b t + (1 - b) p starts at zero and is updated before it is used; p is clamped
    to [1e-4, 1 - 1e-4], and scaled to sum to one for t alone, as in the authors' code.
    They use b = 0.7, lam = 3 on CIFAR-10 with symmetric noise, 0.9 and 1 with
    asymmetric noise, 0.9 and 7 on CIFAR-100; SGD with cosine restarts or steps, 120 to
    150 epochs.

    Source: S. Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy
    Labels", NeurIPS 2020, arXiv:2007.00151; shengliu66/ELR.
    """

    def __init__(self, module=None, *, momentum=0.7, strength=3.0, **kwargs):
        super().__init__(module, **kwargs)
        self.momentum = momentum
        self.strength = strength

    def begin(self, batches):
        """Start the targets at zero."""
        return torch.zeros_like(self._one_hot_labels())

    def batch_loss(self, logits, batch):
        """Update the targets and reward agreement with them."""
        proba = clamped_softmax(logits)
        new = proba.detach() / proba.detach().sum(dim=1, keepdim=True)
        target = moving_average(self._memory[batch.rows], new, self.momentum)
        self._memory[batch.rows] = target
        penalty = elr_penalty(proba, target)
        return F.cross_entropy(logits, batch.y) + self.strength * penalty


class SELC(Rival):
    """Self-ensemble label correction: y <- 0.9 y + 0.1 p, and cross-entropy to y.

    Plain cross-entropy until 40 of 200 epochs are over (20 to 40, depending on data
    and noise, in the authors' code). y is updated before it is used.

    Source: Y. Lu, W. He, "SELC: Self-Ensemble Label Correction Improves Learning with
    Noisy Labels", IJCAI 2022, arXiv:2205.01156; MacLLL/SELC.
    """

    def __init__(self, module=None, *, momentum=0.9, warm_up=40 / 200, **kwargs):
        super().__init__(module, **kwargs)
        self.momentum = momentum
        self.warm_up = warm_up

    def begin(self, batches):
        """Start at the labels."""
        return self._one_hot_labels()

    def batch_loss(self, logits, batch):
        """Correct the labels, once the warm-up is over."""
        if self._epochs_run < self.warm_up * self.max_epochs:
            return F.cross_entropy(logits, batch.y)
        proba = logits.detach().softmax(dim=1)
        target = moving_average(self._memory[batch.rows], proba, self.momentum)
        self._memory[batch.rows] = target
        return soft_cross_entropy(logits, target)


class PSKD(Rival):
    """Progressive self-knowledge distillation: the last epoch's prediction.

    The target is (1 - a_t) one-hot + a_t p of the last epoch, a_t = 0.8 t / T in epoch
    t of T, counted from 1. p is what the network said when it was trained on the
    sample, augmented, and the label in the first epoch: as in the authors' code. They
    use SGD for 300 epochs.

    Source: K. Kim et al., "Self-Knowledge Distillation with Progressive Refinement of
    Targets", ICCV 2021, arXiv:2006.12000; lgcnsai/PS-KD-Pytorch.
    """

    def __init__(self, module=None, *, final_share=0.8, **kwargs):
        super().__init__(module, **kwargs)
        self.final_share = final_share

    def begin(self, batches):
        """Start at the labels."""
        return self._one_hot_labels()

    def batch_loss(self, logits, batch):
        """Learn from the last epoch, and remember this one."""
        share = self.final_share * (self._epochs_run + 1) / self.max_epochs
        target = progressive_target(batch.y, self._memory[batch.rows], share)
        self._memory[batch.rows] = logits.detach().softmax(dim=1)
        return soft_cross_entropy(logits, target)


class CSKD(Rival):
    """Class-wise self-knowledge distillation: CE + lam T^2 KL(p(x') || p(x)).

    T = 4, lam = 1. x' is drawn for each x and step from all training samples of its
    class (x among them), augmented on its own, and passed in training mode without
    gradients, as in the authors' code. That is a second forward pass. They use SGD for
    200 epochs. The training data must fit on the device.

    Source: S. Yun et al., "Regularizing Class-wise Predictions via Self-knowledge
    Distillation", CVPR 2020, arXiv:2003.13964; alinlab/cs-kd.
    """

    def __init__(self, module=None, *, temperature=4.0, strength=1.0, **kwargs):
        super().__init__(module, **kwargs)
        self.temperature = temperature
        self.strength = strength

    def begin(self, batches):
        """Sort the training samples by class."""
        if not isinstance(batches, ResidentBatches):
            raise ValueError("CSKD draws partners from an array that is on the device.")
        labels = batches.y[batches.rows]
        rows = batches.rows[labels.argsort(stable=True)]
        return batches.x, rows, labels.bincount(minlength=len(self.classes_))

    def batch_loss(self, logits, batch):
        """Learn from another sample of the class."""
        x, rows, classes = self._memory
        partners = x[same_class(batch.y, rows, classes)]
        with torch.no_grad():
            teacher = _wide(self._logits(partners, self.augmentation))
        distilled = distillation_loss(logits, teacher, self.temperature)
        return F.cross_entropy(logits, batch.y) + self.strength * distilled


class DLB(Rival):
    """Self-distillation from the last mini-batch: CE + a tau^2 KL to its logits.

    tau = 3, a = 1. Each step takes a new batch and, augmented anew, the one before,
    also across epochs: 2 `batch_size` samples, each of which is seen twice in an
    epoch. The cross-entropy is a mean over both, the divergence over the old. The two
    pass the network one after the other, as in the authors' code, so that batch
    normalisation sees batches as large as the other methods' are.

    Source: Y. Shen et al., "Self-Distillation from the Last Mini-Batch for Consistency
    Regularization", CVPR 2022, arXiv:2203.16172; Meta-knowledge-Lab/DLB.
    """

    def __init__(self, module=None, *, temperature=3.0, strength=1.0, **kwargs):
        super().__init__(module, **kwargs)
        self.temperature = temperature
        self.strength = strength

    def batch_loss(self, logits, batch):
        """Learn from what the network said one step ago."""
        last, self._memory = self._memory, (batch, logits.detach())
        if last is None:
            return F.cross_entropy(logits, batch.y)
        before, teacher = last
        again = _wide(self._logits(before.x, self.augmentation))
        both, labels = torch.cat([again, logits]), torch.cat([before.y, batch.y])
        distilled = distillation_loss(again, teacher, self.temperature)
        return F.cross_entropy(both, labels) + self.strength * distilled


def temperature_scaling(
    module=None, *, prior_strength=math.inf, **kwargs
) -> CalibratedClassifierCV:
    """Cross-entropy (or BSD), and one temperature for the logits from held-out samples.

    A tenth of the samples, drawn by class, is held out for the temperature alone, as
    are 5,000 of CIFAR's 50,000 in; the network learns from the rest, and its
    accuracy pays for that. The temperature minimises their log loss: scikit-learn 1.8
    or newer does it by a bounded search in one dimension, the authors by LBFGS.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    arXiv:1706.04599; gpleiss/temperature_scaling.
    """
    held_out = StratifiedShuffleSplit(
        1, test_size=0.1, random_state=kwargs.get("random_state")
    )
    network = BSDClassifier(module, prior_strength=prior_strength, **kwargs)
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
