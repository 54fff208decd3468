"""Losses of the rivals in `baselines.py`, as objectives of `skbsd`.

Each loss is a pure function, which is tested in `tests/benchmarks/test_baselines.py`.
The objective calls it, and stores the state that a method keeps for each sample. The
authors' hyperparameters are parameters here, and defaults of the estimators in
`baselines.py`.

Sample weights, class weights, and optimizers that evaluate the loss several times in a
step are not supported, and raise an error.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F

from skbsd.objectives import Batch, Objective, TrainingRun, to_float32
from skbsd.posterior import soft_cross_entropy


def moving_average(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    """Return ``momentum * old + (1 - momentum) * new``."""
    return momentum * old + (1 - momentum) * new


def label_smoothing_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy, with target 1 - a for the label, a / (K - 1) for each other."""
    n_classes = logits.shape[1]
    # torch spreads its mass over all K classes, the label included.
    spread = smoothing * n_classes / (n_classes - 1)
    return F.cross_entropy(logits, labels, label_smoothing=spread)


def mixup_loss(logits: Tensor, labels: Tensor, others: Tensor, share: float) -> Tensor:
    """Cross-entropy with the labels of both samples, weighted as their inputs."""
    first, second = F.cross_entropy(logits, labels), F.cross_entropy(logits, others)
    return share * first + (1 - share) * second


def ramp_up(epoch: int, length: float) -> float:
    """exp(-5 (1 - t / length)^2) in epoch t, counted from 0, and then 1."""
    return math.exp(-5 * (1 - epoch / length) ** 2) if epoch < length else 1.0


def unbiased(average: Tensor, momentum: float, visits: int) -> Tensor:
    """Correct the bias of an average of `visits` values that started at zero."""
    return average / (1 - momentum**visits)


def clamped_softmax(logits: Tensor) -> Tensor:
    """Probabilities clamped to [1e-4, 1 - 1e-4], as in ELR."""
    return logits.softmax(dim=1).clamp(1e-4, 1 - 1e-4)


def elr_penalty(proba: Tensor, target: Tensor) -> Tensor:
    """Mean of log(1 - <p, t>)."""
    return torch.log1p(-(proba * target).sum(dim=1)).mean()


def progressive_target(labels: Tensor, last: Tensor, share: float) -> Tensor:
    """Mix one-hot labels with the last predictions, which have the weight `share`."""
    return moving_average(last, F.one_hot(labels, last.shape[1]), share)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), a mean over samples."""
    student = (logits / temperature).log_softmax(dim=1)
    known = (teacher.detach() / temperature).log_softmax(dim=1)
    divergence = F.kl_div(student, known, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def same_class(labels: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """Draw a row of the same class for each label; it may be the sample itself.

    `rows` are the rows of the training samples, sorted by class, and `classes` are the
    numbers of samples per class.
    """
    first = classes.cumsum(0) - classes
    draw = torch.randint(2**48, labels.shape, device=labels.device) % classes[labels]
    return rows[first[labels] + draw]


class CrossEntropy(Objective):
    """Cross-entropy with the labels."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the cross-entropy."""
        return F.cross_entropy(logits, batch.y)


class LabelSmoothing(Objective):
    """Target 1 - a for the label and a / (K - 1) for each other class.

    The authors give a / K to every class, including the label.

    Source: C. Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", CVPR 2016, arXiv:1512.00567.
    """

    def __init__(self, smoothing: float):
        self.smoothing = smoothing

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute cross-entropy with the smoothed labels."""
        return label_smoothing_loss(logits, batch.y, self.smoothing)


class Mixup(Objective):
    """Convex combinations of pairs of samples, and of their labels.

    As in the authors' code, a batch has one weight from Beta(a, a), and partners are a
    permutation of the batch, mixed after augmentation and standardisation.

    Source: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    arXiv:1710.09412; facebookresearch/mixup-cifar10.
    """

    def __init__(self, mixup_alpha: float):
        self.mixup_alpha = mixup_alpha

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Mix the inputs, and weight the cross-entropies of both labels alike."""
        x = self.run.prepare(batch.x)
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            raise TypeError("mixup needs inputs that are a Tensor of floats or pixels.")
        share, other = self.draw(x)
        logits = self.run.infer(share * x + (1 - share) * x[other])
        loss = mixup_loss(to_float32(logits), batch.y, batch.y[other], share)
        loss.backward()
        return {"loss": loss.detach(), "y_pred": logits}

    def draw(self, x: Tensor) -> tuple[float, Tensor]:
        """Draw the weight of the samples themselves, and the partner of each."""
        share = Beta(self.mixup_alpha, self.mixup_alpha).sample().item()
        return share, torch.randperm(len(x), device=x.device)


class PerSample(Objective):
    """Base class of objectives that store a value per sample and class.

    Attributes
    ----------
    memory : Tensor of shape (n_samples, n_classes)
        One row per row of X, including rows without training, on the device.
    """

    memory: Tensor

    def begin(self, run: TrainingRun) -> None:
        """Start at zero."""
        super().begin(run)
        self.memory = torch.zeros_like(self.one_hot_labels())

    def one_hot_labels(self) -> Tensor:
        """Return one-hot labels, an initial value for `memory`."""
        labels = self.run.posterior.labels
        return F.one_hot(labels, self.run.n_classes).to(self.run.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return the memory."""
        return {"memory": self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the memory."""
        self.memory.copy_(state["memory"])


class TemporalEnsembling(PerSample):
    """Cross-entropy plus squared error to the average of past predictions.

    Z <- a Z + (1 - a) p, and the target is Z / (1 - a^t) after the previous epoch. Its
    weight is zero in the first epoch, and rises to w_max over a fraction of the epochs.
    The squared error is a mean over samples and classes.

    Source: S. Laine, T. Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR
    2017, arXiv:1610.02242; smlaine2/tempens.
    """

    def __init__(self, momentum: float, weight: float, ramp: float):
        self.momentum = momentum
        self.weight = weight
        self.ramp = ramp

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss with the previous average, then update the average."""
        loss, proba = F.cross_entropy(logits, batch.y), logits.softmax(dim=1)
        epoch, past = self.run.epoch, self.memory[batch.rows]
        self.memory[batch.rows] = moving_average(past, proba.detach(), self.momentum)
        if epoch == 0:
            return loss
        weight = self.weight * ramp_up(epoch, self.ramp * self.run.max_epochs)
        target = unbiased(past, self.momentum, epoch)
        return loss + weight * F.mse_loss(proba, target)


class ELR(PerSample):
    """Early-learning regularization: CE + lam log(1 - <p, t>).

    t <- b t + (1 - b) p starts at zero and is updated before it is used; p is clamped
    to [1e-4, 1 - 1e-4], and scaled to sum to one for t alone, as in the authors' code.

    Source: S. Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy
    Labels", NeurIPS 2020, arXiv:2007.00151; shengliu66/ELR.
    """

    def __init__(self, momentum: float, strength: float):
        self.momentum = momentum
        self.strength = strength

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Update the targets and reward agreement with them."""
        proba = clamped_softmax(logits)
        new = proba.detach() / proba.detach().sum(dim=1, keepdim=True)
        target = moving_average(self.memory[batch.rows], new, self.momentum)
        self.memory[batch.rows] = target
        penalty = elr_penalty(proba, target)
        return F.cross_entropy(logits, batch.y) + self.strength * penalty


class SELC(PerSample):
    """Self-ensemble label correction: y <- b y + (1 - b) p, and cross-entropy to y.

    Until the end of the warm-up the loss is plain cross-entropy. y is updated before it
    is used.

    Source: Y. Lu, W. He, "SELC: Self-Ensemble Label Correction Improves Learning with
    Noisy Labels", IJCAI 2022, arXiv:2205.01156; MacLLL/SELC.
    """

    def __init__(self, momentum: float, warm_up: float):
        self.momentum = momentum
        self.warm_up = warm_up

    def begin(self, run: TrainingRun) -> None:
        """Start at the labels."""
        super().begin(run)
        self.memory = self.one_hot_labels()

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Correct the labels, after the warm-up."""
        if self.run.epoch < self.warm_up * self.run.max_epochs:
            return F.cross_entropy(logits, batch.y)
        proba = logits.detach().softmax(dim=1)
        target = moving_average(self.memory[batch.rows], proba, self.momentum)
        self.memory[batch.rows] = target
        return soft_cross_entropy(logits, target)


class PSKD(PerSample):
    """Progressive self-knowledge distillation from the last epoch's prediction.

    The target is (1 - a_t) one-hot + a_t p of the last epoch, a_t = a t / T in epoch
    t of T, counted from 1. As in the authors' code, p is the prediction in the training
    step of the augmented sample, and the label in the first epoch.

    Source: K. Kim et al., "Self-Knowledge Distillation with Progressive Refinement of
    Targets", ICCV 2021, arXiv:2006.12000; lgcnsai/PS-KD-Pytorch.
    """

    def __init__(self, final_share: float):
        self.final_share = final_share

    def begin(self, run: TrainingRun) -> None:
        """Start at the labels."""
        super().begin(run)
        self.memory = self.one_hot_labels()

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss with the last prediction, then store the new one."""
        share = self.final_share * (self.run.epoch + 1) / self.run.max_epochs
        target = progressive_target(batch.y, self.memory[batch.rows], share)
        self.memory[batch.rows] = logits.detach().softmax(dim=1)
        return soft_cross_entropy(logits, target)


class CSKD(Objective):
    """Class-wise self-knowledge distillation: CE + lam T^2 KL(p(x') || p(x)).

    In each step, x' is drawn for each x from all training samples of its class,
    including x. It is augmented separately, and predicted in training mode without
    gradients, as in the authors' code. This is a second forward pass. The training data
    must fit on the device.

    Source: S. Yun et al., "Regularizing Class-wise Predictions via Self-knowledge
    Distillation", CVPR 2020, arXiv:2003.13964; alinlab/cs-kd.

    Attributes
    ----------
    rows : Tensor of shape (n,)
        Rows of the training samples, sorted by class.
    classes : Tensor of shape (n_classes,)
        Number of training samples per class.
    """

    rows: Tensor
    classes: Tensor

    def __init__(self, temperature: float, strength: float):
        self.temperature = temperature
        self.strength = strength

    def begin(self, run: TrainingRun) -> None:
        """Sort the training samples by class."""
        super().begin(run)
        batches = run.batches
        if not batches.is_resident:
            raise ValueError(
                "CSKD draws partners from an array on the device; pass arrays that fit."
            )
        labels = batches.y[batches.rows]
        self.rows = batches.rows[labels.argsort(stable=True)]
        self.classes = labels.bincount(minlength=run.n_classes)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss, with another sample of the class as teacher."""
        partners = same_class(batch.y, self.rows, self.classes)
        with torch.no_grad():
            teacher = to_float32(self.run.logits(self.run.batches.x[partners]))
        distilled = distillation_loss(logits, teacher, self.temperature)
        return F.cross_entropy(logits, batch.y) + self.strength * distilled


class DLB(Objective):
    """Self-distillation from the last mini-batch: CE + a tau^2 KL to its logits.

    Each step uses a new batch and the previous one, augmented again, also across
    epochs: 2 `batch_size` samples, each of which is used twice in an epoch. The
    cross-entropy is a mean over both batches, the divergence over the previous one. As
    in the authors' code, the network processes them one after the other, so that batch
    normalisation has batches of the same size as with the other methods.

    Source: Y. Shen et al., "Self-Distillation from the Last Mini-Batch for Consistency
    Regularization", CVPR 2022, arXiv:2203.16172; Meta-knowledge-Lab/DLB.
    """

    def __init__(self, temperature: float, strength: float):
        self.temperature = temperature
        self.strength = strength

    def begin(self, run: TrainingRun) -> None:
        """Start without a previous batch."""
        super().begin(run)
        self.last: dict[str, Any] = {}  # inputs, labels and logits

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss, with the previous step's predictions as teacher."""
        last = self.last
        self.last = {"x": batch.x, "y": batch.y, "logits": logits.detach()}
        if not last:
            return F.cross_entropy(logits, batch.y)
        again = to_float32(self.run.logits(last["x"]))
        both, labels = torch.cat([again, logits]), torch.cat([last["y"], batch.y])
        distilled = distillation_loss(again, last["logits"], self.temperature)
        return F.cross_entropy(both, labels) + self.strength * distilled

    def state_dict(self) -> dict[str, Any]:
        """Return the previous batch."""
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the previous batch."""
        self.last = state["last"]
