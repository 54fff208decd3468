"""Bayesian self-distillation as a scikit-learn classifier."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    _routing_enabled,
    process_routing,
)
from skorch.callbacks import EpochTimer
from skorch.utils import is_dataset
from torch.utils.data import DataLoader

from . import _advice, _checks, _persistence
from ._cross_fit import checked_groups, cross_fit, method_for
from ._default_callbacks import EpochLog, EpochLoss, ValidationAccuracy
from ._familiarity import top_log_odds
from ._fitting import Fitting, Trainings, one_by_one
from ._held_out import HoldOut, Outcome, with_base_rates, with_own_scale
from ._html import HTMLRepresentation
from ._launch import fit_in_processes, n_processes
from ._learning_rate import SCHEDULES
from ._loading import Split, TrainingData, checked_data, split_rows
from ._net import Net
from ._parts import agreed_split
from ._preparation import sample_shape
from ._ranks import current
from ._sklearn_tasks import CallbackSupportMixin, with_callbacks
from ._two_views import TwoViews
from ._views import check_shows_images
from ._workers import one_thread_after_fork
from .augmentation import AUGMENTATIONS
from .calibration import Calibration
from .contrastive import Contrastive
from .objectives import Objective, SelfDistillation

__all__ = ["BSDClassifier"]

# Where the caller of `fit` is, as seen from a function that `_train` calls.
_USER = 5


class BSDClassifier(HTMLRepresentation, CallbackSupportMixin, Net):
    r"""Neural network classifier trained by Bayesian self-distillation.

    Each training sample has a Dirichlet belief about its class. It starts at the
    label, takes in the network's own predictions as training goes on, and its mean
    is the target that the network is trained towards [1]_. Before that, networks that
    are trained on parts of the data predict the rest: the scale of the probabilities,
    the learning rate and how long labels hold follow from these predictions.

    Parameters
    ----------
    module : torch.nn.Module (class or instance), default=None
        A network that returns logits of shape (n, n_classes); the first entry of a
        tuple, or the `logits` of an object, count too. An instance is copied and
        trained from the weights that it has (with ``module__*``, its class is
        instantiated anew). None chooses from the shape of X:
        :class:`skbsd.networks.MLP` for tables and
        :class:`skbsd.networks.SmallResNet` for images.
    prior_strength : float or {"auto", "noisy"}, default="auto"
        The prior concentration c of a sample's label. The larger, the longer the label
        holds against the network's predictions. A number in (0, inf] is the paper's
        method, in which c / (c + T) of the target still comes from the label after T
        epochs without discount; `inf` is training with cross-entropy. "auto" is the
        paper's method with c = max(60, 2 T / 3), and the rule of "noisy" where more
        than 12 % of the labels are found to be wrong. "noisy" is for data of which many
        labels are wrong. See Notes.
    discount : float or "auto", default="auto"
        What each epoch leaves of the evidence so far: gamma, in (0, 1]. With less
        than 1 the label is forgotten exponentially; keep
        `prior_strength >= 1 / (1 - discount)`. "auto" is 1, and 0.015^(1 / T) with the
        rule for wrong labels.
    prior_floor : float or "auto", default="auto"
        The prior concentration eps of each other class, in (0, c). "auto" is 1e-3 for
        up to K = 100 classes and 0.1 / K for more, so that the floors of many classes
        do not outweigh the label; in a float16 store it is at least 6.1e-5.
    evidence : {"auto", "plain", "weighted"}, default="auto"
        What a prediction counts: 1 ("plain", as in the paper), or according to how
        reliable predictions are ("weighted", see Notes). "auto" is "weighted" with the
        rule for wrong labels, and for every name of `prior_strength` with
        ``calibration=None``, where it makes up for logits of the wrong scale.
    calibration : {"auto", "cross-fit", "hold-out"} or None, default="auto"
        Where predictions of unseen samples come from, which calibrate the
        probabilities. "cross-fit" trains two networks on half of the data for half of
        the epochs before the final one learns from all of them, and a third where the
        learning rate or the rule changes; for tables of fewer than 450 samples it is
        four of each kind, trained on three quarters for all epochs. Where training is
        brief, with fewer than 10 epochs or too few steps (see the guide on
        calibration), nothing is chosen: the network is that of ``calibration=None``,
        and two others, of as many steps each, calibrate it. "hold-out" leaves a fifth
        of the data out, 2,000 samples at most, or takes the validation data of
        `train_split`. "auto" is "hold-out" above 20,000 samples or with a
        `train_split`, and "cross-fit" otherwise; nothing is done with fewer than 20
        samples. None trains once, and predicts the softmax of the logits.
        :meth:`partial_fit` and warm starts keep the calibration that is there. Of the
        callbacks, those of skorch that change training also run in the folds.
    label_noise : {"auto", "errors", "inherent"}, default="auto"
        What it means where labels contradict predictions that hold otherwise. "errors":
        the labels given are wrong, and predictions are of the true ones. "inherent":
        labels are random by nature, those of new samples too, and predictions say so.
        No data can tell the one from the other. "auto" takes them for errors in images,
        and in tables whose classes could be told apart well otherwise.
    max_epochs : int, default=40
        Passes over the data in each call of `fit` or `partial_fit`.
    batch_size : int, default=128
        Samples per step; -1 for all of them.
    lr : float or "auto", default="auto"
        Learning rate, the highest of the schedule. "auto" is 1e-2, or less where the
        held-out loss in the folds begins to rise before training ends: so much less
        that the network learns as much as it did until then. Without folds it is 1e-2.
    optimizer : torch.optim.Optimizer class, default=torch.optim.AdamW
        Further arguments are given as ``optimizer__*``.
    lr_schedule : {"one-cycle", "cosine", "constant"}, default="one-cycle"
        How the learning rate moves over one call of `fit`: up for a quarter of it and
        down along a cosine; down along a cosine; not at all. A skorch `LRScheduler`
        among the callbacks takes its place.
    schedule_epochs : int, default=None
        How many epochs the learning rate's schedule is for, where that is more than
        `max_epochs`; what "auto" and "noisy" stand for is then that of so many epochs
        too. Such a call is the beginning of one with ``max_epochs=schedule_epochs``,
        for example in the first rounds of
        :class:`sklearn.model_selection.HalvingGridSearchCV`. None is `max_epochs`.
    weight_decay : float, default=1e-2
        Passed to the optimizer, where it has such an argument.
    averaging : {"ema"} or None, default=None
        "ema" averages the weights exponentially over the last steps, about 5 % of the
        call's, and predicts with the average: in validation, to callbacks at the end of
        an epoch, and after `fit`. The running statistics of batch normalisation are
        averaged too. :meth:`partial_fit` trains on from the average, and begins a new
        one.
    augmentation : {"flip-crop", "strong"} or callable, default=None
        Applied to every training batch on the device. "flip-crop" is
        :func:`skbsd.augmentation.flip_crop`, "strong"
        :func:`skbsd.augmentation.strong`. A callable gets the batch as it was
        given to `fit` (uint8 images as uint8) and returns one of the same shape; with
        an attribute `by_row` that is true, as of
        :class:`skbsd.augmentation.FlipCrop` where it alternates, it gets the rows of
        the images and the number of finished epochs too, ``augmentation(images, rows,
        epoch)``, for many batches at once. Where these are not known, from a loader and
        with `contrastive`, it gets the images alone.
    contrastive : float or Contrastive, default=None
        Weight of a contrastive loss, for images of which many labels are wrong: each
        batch is seen in two views, whose embeddings are drawn together. A
        :class:`skbsd.contrastive.Contrastive` sets the rest. It takes twice the time,
        and `train_loss` in the history is the sum of both losses; the network stays
        the same.
    image_shape : tuple of (channels, height, width), default=None
        Take each row of a 2-D X as a flattened image.
    prediction_views : {"flip", "flip-shift"} or None, default=None
        Average the logits of predictions over views of each image: the image and its
        mirror image ("flip", which takes twice the time), and both moved by a pixel up
        and left and down and right with reflected borders as well ("flip-shift", six
        times; the two that are not moved count half). The calibration is that of the
        averages. Validation while training is of single images.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        "bfloat16" runs the network under autocast. "auto" does so on GPUs that have
        it, for networks that convolve or have layers of at least 512 inputs and
        outputs, and uses float32 elsewhere, but float64 for the default network on the
        CPU where all of a table fits in one batch: such a fit is deterministic, and
        does not depend on the order of the rows.
    posterior_dtype : str, default="float32"
        How new beliefs are stored: "float16" halves their memory, 4 bytes per sample
        and class. Arithmetic is in float32, but what is stored is rounded to 11 bits,
        up or down in turn so that errors do not add up. `prior_strength` may be 1,024
        at most: above, beliefs are stored in steps of 1 and more. "compact" keeps the
        32 classes with most evidence of each sample, in 148 bytes whatever the number
        of classes, and takes the others to be equally probable; "compact-64" keeps 64.
        With as many classes or fewer it is "float32". See
        :class:`skbsd.posterior.CompactPosterior`.
    posterior_folder : str or path-like, default=None
        Have new beliefs lie in a file in this folder, rather than in memory. It goes
        when the estimator does: to keep beliefs, save them with `save`. Pickles hold
        the beliefs themselves, and are loaded into memory; so is what the processes of
        `devices` hand back when they are done.
    channels_last : {"auto"} or bool, default="auto"
        Store images pixel by pixel, which convolutions are faster with. "auto" does so
        on the CPU and on CUDA where the network convolves and can take it.
    compile : bool, default=False
        Train the network compiled with :func:`torch.compile`, once per shape of a
        batch: a last batch of another size makes it twice. ``compile__*`` are passed
        on. Prediction runs it as it is.
    cuda_graph : bool or "auto", default="auto"
        On a CUDA device, record a training step once as a CUDA graph and replay it,
        so that the host does not limit how fast small networks are trained. This is
        for arrays on the device, SGD, Adam and AdamW, and where no callback looks at
        single batches. "auto" does so for networks, objectives and augmentations of
        this library. With True it is done for others too, whose code in Python is then
        run for the first steps only; where it is not possible, a warning says why, and
        operations are launched one by one. Without a CUDA device it has no effect.
    device : str or torch.device, default="auto"
        "auto" is cuda, then mps, then cpu, what there is first.
    devices : int, "all" or None, default=None
        How many GPUs train one network together, in a process each, or how many
        processes on the CPU. Each call of `fit` starts them and ends them; "all" is as
        many as there are GPUs, and one on the CPU. In a script that torchrun has
        started, the processes that are there train together; with 1, each trains an
        estimator of its own.
    sync_batch_norm : bool, default=False
        Where several GPUs train together, have batch normalisation take its statistics
        over the whole batch, and not over each process's part of it.
    gather_posterior : bool, default=True
        Where several processes have trained together, put their beliefs together into
        `posterior_`. With False, each process of a torchrun script keeps its part, with
        the rows of X that it is about in `posterior_rows_`; with `devices`, the part
        of the first one is what is left.
    train_split : callable, default=None
        Such as :class:`skorch.dataset.ValidSplit`, to hold out validation data, which
        callbacks that monitor `valid_loss` need. None trains on all of X.
    class_weight : dict or "balanced", default=None
        Weights of the classes, as in scikit-learn; multiplied with `sample_weight`.
    callbacks : list of skorch callbacks, "disable" or None, default=None
        In addition to skorch's default ones.
    iterator_train, iterator_valid : callable, default=torch.utils.data.DataLoader
        How a Dataset is loaded, with ``iterator_train__*`` such as `num_workers`.
        Arrays are gathered on the device instead, unless one of these (other than the
        batch size) is set. A sampler must not draw with replacement: each sample is
        visited once per step at most. `iterator_valid` loads what is predicted too:
        the predictions for a Dataset come in the order in which it yields the samples,
        so it must not be shuffled.
    checkpoint : str or path-like, default=None
        A folder, in which each call of `fit` leaves a file after every epoch, and from
        which the same call goes on: one that was done returns at once. Files are named
        by a digest of parameters and data, so the fits of a search share the folder,
        and a search that was killed is simply started again. Without a `random_state`
        too, the same call is the one that was begun. See the guide on saving.
    warm_start : bool, default=False
        Let `fit` go on from the network of the last call.
    verbose : int, default=0
        1 prints a line per epoch.
    random_state : int, RandomState instance or None, default=None
        Fixes initialisation, order and augmentation; on the CPU the same seed gives
        the same model bit for bit. torch's global generators are left as they were.
    **kwargs : dict
        Parameters with the prefixes ``module__``, ``optimizer__``, ``callbacks__``,
        ``iterator_train__``, ``iterator_valid__`` and ``compile__``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    n_features_in_ : int
        Number of columns of a table, or values of an image. Not for a Dataset.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, where X has them.
    module_ : torch.nn.Module
        The trained network.
    prior_strength_, discount_, prior_floor_ : float
        c, gamma and eps, as used.
    lr_ : float
        The learning rate, as used.
    choice_ : Choice
        Learning rate, rule and discount that stand for "auto".
    calibration_ : Calibration
        How logits become probabilities, and what is known of it: folds, samples, time,
        log loss before and after. Not with ``calibration=None``. The logits themselves
        are what `forward` returns. See :class:`skbsd.calibration.Calibration`.
    temperature_ : float
        What logits are divided by; 1 with ``calibration=None``.
    noise_rate_ : float
        Estimated share of the training labels that are not the true ones; its interval
        is part of `calibration_`. 0 with ``calibration=None``.
    out_of_fold_proba_ : ndarray of shape (n_samples, n_classes)
        Prediction of each sample's true class by a network that has not seen it; NaN
        where there is none. None where samples are held out and beliefs are compact or
        in a file: it would be as large as dense ones.
    posterior_ : DirichletPosterior or CompactPosterior
        The belief about each training sample; row i belongs to row i of X.
    history_ : skorch.history.History
        Losses and times of every epoch.
    n_iter_ : int
        Number of epochs trained.
    device_ : torch.device
        Where the network is.
    data_loading_ : {"resident", "loader"}
        Whether the training data lay on the device, or came through a DataLoader:
        a Dataset, arrays too large for the device, or ``iterator_train__*`` set.
    cuda_graph_ : bool
        Whether training steps were replayed from a CUDA graph in the last call.
    compile_time_ : float
        Seconds that the first training step with each shape took, which compile the
        network; 0 without `compile`.
    image_mean_, image_std_ : ndarray of shape (channels,)
        Statistics of the training images that uint8 images are standardised with.

    See Also
    --------
    skbsd.posterior.DirichletPosterior : The beliefs and their mathematics.
    skbsd.metrics.expected_calibration_error : How wrong the confidence is.
    sklearn.neural_network.MLPClassifier : Trained with cross-entropy.
    sklearn.calibration.CalibratedClassifierCV : Calibration after training.

    Notes
    -----
    In the paper's symbols, a visit of sample i with predicted probabilities p does

    .. math:: \alpha_i \leftarrow \gamma \alpha_i + p, \qquad
              q_i = \alpha_i / \textstyle\sum_k \alpha_i[k],

    and the loss is the cross-entropy of q with p. Its gradient in the logits is
    p - q. Samples of weight zero are left out; the others' losses are averaged with
    weights scaled to mean 1.

    Calibration, the rule for wrong labels and weighted evidence go beyond the paper.
    "noisy" is c = max(15, T / 5) over T epochs, and with ``calibration=None`` "auto" is
    c = max(60, 2 T / 3), both with weighted evidence. In epoch t
    a sample's :math:`w_t \, \mathrm{softmax}(z / \tau_t)`, of its logits z, takes the
    place of p in the first formula, with

    .. math:: w_t = \min\Bigl(5, \frac{a_{t-1}}{1 - \bar a}\Bigr), \qquad
              \frac{1}{\tau_t} = \min\Bigl(10,
              s + 0.1 \, \frac{\bar a}{1 - \bar a}\Bigr),

    where :math:`a_{t-1}` is the share of the training samples (by weight) that were
    predicted as labelled in the epoch before, :math:`\bar a` its mean over the epochs
    so far, and s is 1, or 1.4 with "noisy". So poor early predictions count for little,
    and those of a network that finds the labels easy are taken at their word. With
    "auto", unless evidence is plain, the target is, for K classes and
    :math:`\lambda = 0.3 (1 - \bar a)^2`, :math:`(1 - \lambda) q + \lambda / K`: labels
    that are hard to learn are smoothed.

    A table is taken as it is: put a `StandardScaler` before. uint8 images are
    standardised by channel on the device; float images are taken as they are.

    References
    ----------
    .. [1] A. Adelöw, M. Gamba, A. Maki, "Bayesian Self-Distillation for Image
       Classification", arXiv:2512.24162.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import train_test_split
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skbsd import BSDClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> model = make_pipeline(StandardScaler(), BSDClassifier(random_state=0))
    >>> model.fit(X_train, y_train).score(X_test, y_test) > 0.9
    True
    >>> model[-1].posterior_
    DirichletPosterior(n_samples=133, n_classes=3, prior_strength=60, discount=1, ...)
    """

    def __init__(
        self,
        module=None,
        *,
        prior_strength="auto",
        discount="auto",
        prior_floor="auto",
        evidence="auto",
        calibration="auto",
        label_noise="auto",
        max_epochs=40,
        batch_size=128,
        lr="auto",
        optimizer=torch.optim.AdamW,
        lr_schedule="one-cycle",
        schedule_epochs=None,
        weight_decay=1e-2,
        averaging=None,
        augmentation=None,
        contrastive=None,
        image_shape=None,
        prediction_views=None,
        precision="auto",
        posterior_dtype="float32",
        posterior_folder=None,
        channels_last="auto",
        compile=False,
        cuda_graph="auto",
        device="auto",
        devices=None,
        sync_batch_norm=False,
        gather_posterior=True,
        train_split=None,
        class_weight=None,
        callbacks=None,
        iterator_train=DataLoader,
        iterator_valid=DataLoader,
        checkpoint=None,
        warm_start=False,
        verbose=0,
        random_state=None,
        **kwargs,
    ):
        self.module = module
        self.prior_strength = prior_strength
        self.discount = discount
        self.prior_floor = prior_floor
        self.evidence = evidence
        self.calibration = calibration
        self.label_noise = label_noise
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.schedule_epochs = schedule_epochs
        self.weight_decay = weight_decay
        self.averaging = averaging
        self.augmentation = augmentation
        self.contrastive = contrastive
        self.image_shape = image_shape
        self.prediction_views = prediction_views
        self.precision = precision
        self.posterior_dtype = posterior_dtype
        self.posterior_folder = posterior_folder
        self.channels_last = channels_last
        self.compile = compile
        self.cuda_graph = cuda_graph
        self.device = device
        self.devices = devices
        self.sync_batch_norm = sync_batch_norm
        self.gather_posterior = gather_posterior
        self.train_split = train_split
        self.class_weight = class_weight
        self.callbacks = callbacks
        self.iterator_train = iterator_train
        self.iterator_valid = iterator_valid
        self.checkpoint = checkpoint
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state
        self._params_to_validate = set(kwargs)
        self.__dict__.update(kwargs)

    @property
    def _default_callbacks(self):
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", EpochLoss("train_loss", on_train=True)),
            ("valid_loss", EpochLoss("valid_loss")),
            (
                "valid_acc",
                ValidationAccuracy("accuracy", name="valid_acc", lower_is_better=False),
            ),
            ("print_log", EpochLog()),
        ]

    def fit(self, X, y=None, sample_weight=None, **split_params):
        """Train a new network.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table of shape (n_samples, n_features), images of shape (n_samples,
            channels, height, width), or a `torch.utils.data.Dataset` of pairs (x, y).
        y : array-like of shape (n_samples,), default=None
            Labels of any kind: integers, strings, booleans. None with a Dataset, which
            has its own.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; zero leaves a sample out.
        **split_params : dict
            Passed to `train_split`, such as `groups`; without one, samples with the
            same `groups` stay in one fold of the calibration.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            For parameters or data that cannot be used, before anything is changed;
            and where the loss becomes NaN or infinite, with the weights kept from the
            last epoch in which it did not.

        Warns
        -----
        ConvergenceWarning
            Where an interrupt (Ctrl-C) ends training, which leaves a usable model;
            where predictions of unseen samples are no better than the frequencies of
            the classes, or the validation accuracy falls to half of what it was; where
            the calibration finds a temperature below 0.02 or above 50.
        UserWarning
            For columns of very different scales, and for a `prior_strength` that leaves
            the label less than a tenth of its target.

        Notes
        -----
        An interrupt in the first epoch, or in the folds before it, is raised, and
        leaves the model as it was; so is one in a search or another of scikit-learn's
        loops over fits, which it stops.
        """
        keep = self.warm_start and self.initialized_
        classes = self.classes_ if keep and self._has_classes() else None
        with one_thread_after_fork():
            data = self._check_training_data(X, y, sample_weight, classes, keep=keep)
            arguments = {"y": y, "sample_weight": sample_weight, **split_params}
            if self._fits_in_processes("fit", X, arguments):
                return self
            return self._train(data, "fit", split_params, keep=keep)

    def partial_fit(self, X, y=None, classes=None, sample_weight=None, **split_params):
        """Train the network further, for `max_epochs` more.

        With the X, y and prior of the last call the samples keep their posteriors;
        others get fresh ones. A Dataset counts as the same if its type and labels are.
        c follows from the `max_epochs` of the call that began a posterior. Where
        predictions count by how reliable they are, those of the first epoch with new
        data count nothing.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table, images, or a Dataset of pairs (x, y), as in :meth:`fit`.
        y : array-like of shape (n_samples,), default=None
            Labels, all among those known. None with a Dataset.
        classes : array-like of shape (n_classes,), default=None
            All labels there will be, for the first call; by default those in y.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; zero leaves a sample out.
        **split_params : dict
            Passed to `train_split`, such as `groups`.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            As in :meth:`fit`, and for labels that are not among the classes.
        """
        keep = self.initialized_
        expected = self.classes_ if keep and self._has_classes() else None
        if classes is not None:
            classes = _checks.find_classes(
                _checks.check_y(classes, type(self).__name__)
            )
            if expected is not None and not np.array_equal(classes, expected):
                raise ValueError(
                    f"classes={classes.tolist()} differ from those of the first call, "
                    f"{expected.tolist()}; call fit to start afresh."
                )
            expected = classes
        with one_thread_after_fork():
            data = self._check_training_data(X, y, sample_weight, expected, keep=keep)
            arguments = {"y": y, "sample_weight": sample_weight, **split_params}
            arguments["classes"] = classes
            if self._fits_in_processes("partial_fit", X, arguments):
                return self
            return self._train(data, "partial_fit", split_params, keep=keep)

    def _fits_in_processes(self, method: str, X, arguments: dict) -> bool:
        """Have several processes do the call, where the user wants that."""
        if current(self.devices).size > 1:
            return False
        n = n_processes(self.devices, _checks.check_device(self.device))
        if n == 1:
            return False
        fit_in_processes(self, n, method, X, arguments)
        return True

    def make_objective(self) -> Objective:
        """Return what the steps of a call of `fit` minimise.

        Override it for a loss of one's own. Network, optimizer and posterior are there
        when it is called.

        Returns
        -------
        skbsd.objectives.Objective
            A new one: :class:`skbsd.objectives.SelfDistillation`, unless `contrastive`
            asks for two views.
        """
        choice = self.choice_
        method = {"prior_strength": choice.prior_strength, "evidence": choice.evidence}
        if self.contrastive is None:
            return SelfDistillation(**method)
        setting = self.contrastive
        if not isinstance(setting, Contrastive):
            setting = Contrastive(weight=float(setting))
        return TwoViews(
            setting,
            images=self.image_shape is not None,
            build_optimizer=self._build_projection_optimizer,
            projection=self._projection,
            **method,
        )

    def predict_proba(self, X):
        """Predict the probability of each class.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table or images, as in :meth:`fit`. Images may have another height and
            width where the network can take them.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Calibrated; columns in the order of `classes_`.

        Raises
        ------
        NotFittedError
            If there is no network yet.
        ValueError
            If X is empty, or not of the kind that was fitted.
        """
        return self._calibrated_logits(X).softmax(dim=1).numpy()

    def predict_log_proba(self, X):
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table or images, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Finite also where the probability is too small for a float; columns in the
            order of `classes_`.

        Raises
        ------
        NotFittedError
            If there is no network yet.
        ValueError
            If X is empty, or not of the kind that was fitted.
        """
        return self._calibrated_logits(X).log_softmax(dim=1).numpy()

    def decision_function(self, X):
        """Compute the calibrated logits, whose softmax is `predict_proba`.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table or images, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            Columns in the order of `classes_`. For two classes the logit of the second
            minus that of the first.

        Raises
        ------
        NotFittedError
            If there is no network yet.
        ValueError
            If X is empty, or not of the kind that was fitted.
        """
        logits = self._calibrated_logits(X)
        if logits.shape[1] == 2:
            return (logits[:, 1] - logits[:, 0]).numpy()
        return logits.numpy()

    def score_samples(self, X):
        r"""Compute how familiar each sample looks: the log-odds of the predicted class.

        The score is :math:`\log p / (1 - p)` of the largest probability p that
        :meth:`predict_proba` gives. Samples of a kind that the network has not learnt
        tend to have lower scores, but nothing guarantees that: see Notes.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table or images, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n_samples,)
            Of float64; higher is more familiar. The least possible score is
            -log(n_classes - 1), that of equal probabilities. Scores have no upper
            limit, also where the probability rounds to 1.

        Raises
        ------
        NotFittedError
            If there is no network yet.
        ValueError
            If X is empty, or not of the kind that was fitted.

        See Also
        --------
        predict_proba : The probabilities, whose largest one has the same order.

        Notes
        -----
        A score is no probability that a sample is familiar, and there is no threshold
        that fits all data: choose one by scores of samples that were not trained on. A
        low score may also mean a familiar sample between two classes. Far from the
        training data, a network may be sure of what it has never seen. The guide on
        unfamiliar inputs has figures.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_digits
        >>> from skbsd import BSDClassifier
        >>> X, y = load_digits(return_X_y=True)
        >>> X, known = X / 16, y < 6
        >>> X_known, y_known = X[known], y[known]
        >>> model = BSDClassifier(random_state=0).fit(X_known[:500], y_known[:500])
        >>> learnt, new = map(model.score_samples, (X_known[500:], X[~known]))
        >>> bool(np.median(new) < np.quantile(learnt, 0.1))
        True
        """
        return top_log_odds(self._calibrated_logits(X)).numpy()

    def predict(self, X):
        """Predict the label of each sample.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table or images, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n_samples,)
            Values of `classes_`.

        Raises
        ------
        NotFittedError
            If there is no network yet, or one of loaded weights, which come without
            classes.
        ValueError
            If X is empty, or not of the kind that was fitted.
        """
        codes = self._calibrated_logits(X).argmax(dim=1).numpy()
        if not self._has_classes():
            raise NotFittedError(
                f"this {type(self).__name__} has weights, but was never fitted and so "
                "knows no classes. Use predict_proba, or save whole estimators with "
                "`save` or joblib."
            )
        return self.classes_[codes]

    def save(self, path, posterior=False):
        """Write the fitted estimator into one file, from which no code runs.

        The file holds what prediction needs, the parameters and the history; it is in
        the format of safetensors. It is written whole or not at all: whatever goes
        wrong, a file that was there before stays as it was.

        Parameters
        ----------
        path : str or path-like
            Of the file, in a folder that exists.
        posterior : bool, default=False
            Write the beliefs, the state of the optimizer and what tells the training
            data too: :meth:`partial_fit` with the same X and y then goes on as it
            would have here, on the CPU bit for bit. (A contrastive projection begins
            anew.) They take what the beliefs take in memory, by default 4 bytes per
            training sample and class, and two to three times that of the network.

        Raises
        ------
        NotFittedError
            If it has not been fitted.
        ValueError
            For a network or an optimizer whose state is more than tensors, and with
            `posterior` where there are no beliefs.
        OSError
            If the file cannot be written.

        See Also
        --------
        BSDClassifier.load : Reads it.

        Notes
        -----
        What is neither plain data nor a class of PyTorch's optimizers or of
        :mod:`skbsd.networks` stays behind, such as callbacks and transforms; loading
        says so.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sklearn.datasets import load_iris
        >>> from skbsd import BSDClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> model = BSDClassifier(random_state=0).fit(X, y)
        >>> path = Path(tempfile.mkdtemp()) / "iris.skbsd"
        >>> model.save(path)
        >>> bool((BSDClassifier.load(path).predict(X) == model.predict(X)).all())
        True
        """
        _persistence.save(self, path, posterior=posterior)

    @classmethod
    def load(cls, path, module=None):
        """Read an estimator that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
            Of the file.
        module : torch.nn.Module (class or instance) or callable, default=None
            The network, for a file of a network of your own. As in the constructor: a
            class or another callable is called with the ``module__*`` of the file, an
            instance is copied. The networks of :mod:`skbsd.networks` are built from the
            file.

        Returns
        -------
        BSDClassifier
            Of the class that `load` is called on, in evaluation mode, with the same
            predictions. One with ``device="auto"`` is on the device that is there.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, from a newer version or of something else; if
            `module` is needed, or is not the network whose weights the file holds.

        Warns
        -----
        UserWarning
            Once, of parameters that were not saved.
        InconsistentVersionWarning
            If other versions of this library or of scikit-learn wrote the file.

        See Also
        --------
        BSDClassifier.save : Writes it.

        Notes
        -----
        Nothing in the file can make code run: there are numbers, texts and tensors in
        it, and names that are looked up in a table of this library's.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sklearn.datasets import load_iris
        >>> from skbsd import BSDClassifier
        >>> from skbsd.networks import MLP
        >>> class Wide(MLP):
        ...     pass
        >>> X, y = load_iris(return_X_y=True)
        >>> arguments = {"module__in_features": 4, "module__n_classes": 3}
        >>> model = BSDClassifier(Wide, **arguments, random_state=0).fit(X, y)
        >>> path = Path(tempfile.mkdtemp()) / "iris.skbsd"
        >>> model.save(path)
        >>> BSDClassifier.load(path, module=Wide).module_
        Wide(...)
        """
        return _persistence.load(cls, path, module)

    def _check_training_data(self, X, y, sample_weight, classes, *, keep):
        """Check parameters and data, before anything is changed.

        `classes` are those of a network that is kept, or those that were announced.
        """
        caller = type(self).__name__
        _checks.check_parameters(
            self.get_params(deep=False),
            caller,
            augmentations=AUGMENTATIONS,
            schedules=SCHEDULES,
        )
        self._validate_params()
        _checks.check_monitors(self, reset=not keep)
        _checks.check_order(self.get_params_for("iterator_valid"))
        # Gives this process its GPU, before anything is put on another.
        current(self.devices)
        _checks.check_device(self.device)
        data = checked_data(
            X,
            y,
            sample_weight,
            class_weight=self.class_weight,
            classes=classes,
            image_shape=self.image_shape,
            caller=caller,
        )
        if self.prediction_views is not None:
            shape = sample_shape(data.X, self.image_shape)
            check_shows_images(shape, self.prediction_views)
        if is_dataset(X):
            return data
        if keep and self._has_classes():
            self._check_like_training(X, data.X)
        if isinstance(self.augmentation, str) and data.X.ndim != 4:
            raise ValueError(
                f"augmentation={self.augmentation!r} needs images, X has shape "
                f"{tuple(data.X.shape)}; pass 4-D X or image_shape."
            )
        return data

    @with_callbacks
    def _train(self, data: TrainingData, caller: str, split_params, *, keep: bool):
        ranks = current(self.devices)
        ranks.meet()
        if not keep:
            # Where warnings are errors, they are so in all processes.
            ranks.first_does(
                lambda: _advice.of_settings(self, data.X, stacklevel=_USER + 2)
            )
        trainings = self._trainings(data, caller, split_params, keep=keep)
        outcome, interrupted = one_by_one(trainings)
        if interrupted is None:
            ranks.first_does(
                lambda: _advice.of_result(self, outcome, stacklevel=_USER + 2)
            )
            if ranks.is_first:
                _advice.say_errors_of_labels(self)
        elif ranks.is_first:
            further = "partial_fit trains it further"
            if self.checkpoint is not None:
                further = "the same call again trains the remaining epochs"
            warnings.warn(
                f"training was interrupted in epoch {interrupted} of "
                f"{self.max_epochs}. The model of that moment can be used; {further}.",
                ConvergenceWarning,
                stacklevel=4,  # fit's caller
            )
        return self

    def _trainings(
        self, data: TrainingData, caller: str, split_params, *, keep: bool
    ) -> Trainings[tuple[Outcome | None, int | None]]:
        """Yield what a call trains, one after the other, and calibrate.

        Returns what predictions of unseen samples have told, and the epoch in which the
        last training was interrupted.
        """
        ranks = current(self.devices)
        keeps = keep or caller == "partial_fit"
        method = method_for(self, data, keep=keeps)
        groups = None
        if self.train_split is None and self.calibration is not None:
            groups = checked_groups(data, split_params.pop("groups", None))
        split = self._split(data, caller, split_params)
        outcome = held_out = None
        if method == "cross-fit":
            outcome = yield from cross_fit(self, data, split, groups)
        elif method == "hold-out":
            held_out = HoldOut(self, data, split, groups)
            split = held_out.split
        about = outcome or held_out
        interrupted = yield Fitting(
            self,
            data,
            split,
            keep=keep,
            choice=None if about is None else about.choice,
            calibration=None if outcome is None else outcome.calibration,
        )
        if held_out is not None:
            outcome = ranks.first_does(held_out.outcome)
        if outcome is not None:
            outcome, self.calibration_ = ranks.first_does(
                lambda: self._scaled(outcome, data, split.rows)
            )
            self.out_of_fold_proba_ = outcome.proba
        return outcome, interrupted

    def _scaled(self, outcome: Outcome, data: TrainingData, rows: np.ndarray):
        """Fit what was found to the final network."""
        outcome = with_own_scale(self, outcome, data, rows)
        return outcome, with_base_rates(self, outcome, data, rows)

    def _split(self, data: TrainingData, caller: str, split_params: dict) -> Split:
        """Split off validation data."""
        if split_params and self.train_split is None:
            raise TypeError(
                f"{caller} got unexpected arguments {sorted(split_params)}: they are "
                "passed to train_split, which is None."
            )
        # skorch routes from 1.4 on.
        routes = isinstance(self.get_metadata_routing(), MetadataRouter)
        if split_params and _routing_enabled() and routes:
            routed = process_routing(self, caller, **split_params)
            split_params = routed["splitter"]["split"]
        whole = self.get_dataset(data.X, data.y)  # itself, where X is a Dataset
        split = split_rows(data, whole, self.train_split, split_params)
        return agreed_split(split, data, current(self.devices))

    def _calibrated_logits(self, X) -> torch.Tensor:
        calibration = getattr(self, "calibration_", None)
        logits = self._all_logits(X)
        return logits if calibration is None else calibration(logits)

    def _build_projection_optimizer(self, head: torch.nn.Module):
        """Build the optimizer of a projection, without the user's patterns."""
        return self._build_optimizer(head.named_parameters(), grouped=False)

    @property
    def temperature_(self) -> float:
        """Temperature that logits are divided by; 1 where they are not calibrated."""
        return self._calibration().temperature

    @property
    def noise_rate_(self) -> float:
        """Share of the training labels that are estimated to be wrong."""
        return self._calibration().noise_rate

    def _calibration(self) -> Calibration:
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"this {type(self).__name__} is not fitted yet.")
        return getattr(self, "calibration_", None) or Calibration()

    @property
    def lr_(self) -> float:
        """Highest learning rate, as used."""
        return self._resolved_lr()

    @property
    def prior_strength_(self) -> float:
        """Prior concentration c of the labels, as used."""
        return self._used_prior("prior_strength")

    @property
    def discount_(self) -> float:
        """Discount gamma, as used."""
        return self._used_prior("discount")

    @property
    def prior_floor_(self) -> float:
        """Prior concentration eps of each class that is not the label's, as used."""
        return self._used_prior("prior_floor")

    def _used_prior(self, name: str) -> float:
        if "posterior_" not in vars(self) and self._saved_prior is not None:
            return self._saved_prior[name]
        return getattr(self.posterior_, name)
