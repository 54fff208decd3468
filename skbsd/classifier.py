"""Bayesian self-distillation as a scikit-learn classifier."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    _routing_enabled,
    process_routing,
)
from skorch.callbacks import EpochTimer
from skorch.utils import is_dataset
from torch.utils.data import DataLoader

from . import _advice, _checks, _export, _persistence
from ._cross_fit import checked_groups, cross_fit, method_for
from ._default_callbacks import EpochLog, EpochLoss, ValidationAccuracy
from ._familiarity import top_log_odds
from ._fitting import Fitting, Trainings, one_by_one
from ._held_out import HoldOut, Outcome, with_base_rates, with_own_scale
from ._html import HTMLRepresentation
from ._items import as_dataset
from ._launch import fit_in_processes, n_processes
from ._learning_rate import SCHEDULES
from ._loading import Split, TrainingData, checked_data, split_rows
from ._net import Net
from ._parts import agreed_split
from ._preparation import sample_shape
from ._ranks import current
from ._sklearn_tasks import CallbackSupportMixin, with_callbacks
from ._structure import is_nested
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

    Each training sample has a Dirichlet posterior over the classes. It starts
    concentrated on the label and accumulates the network's own predictions as training
    proceeds. The mean of the posterior is the sample's target [1]_. Before the final
    network is trained, `fit` trains networks on parts of the data and predicts the
    remaining samples. From these held-out predictions it chooses the learning rate and
    how fast labels are forgotten, and calibrates the probabilities.

    Parameters
    ----------
    module : torch.nn.Module (class or instance), default=None
        A network that returns logits of shape (n, n_classes). A network may also return
        a tuple, whose first entry is used, or an object with an attribute `logits`. An
        instance is copied and trained from its current weights; with ``module__*``, its
        class is instantiated anew. None chooses from the shape of X:
        :class:`skbsd.networks.MLP` for tables and
        :class:`skbsd.networks.SmallResNet` for images.
    prior_strength : float or {"auto", "noisy"}, default="auto"
        The prior concentration c of a sample's label. A larger value makes the label
        withstand the network's predictions for longer. A number in (0, inf] is the
        paper's method: without discount, the label still contributes c / (c + T) of the
        target after T epochs. `inf` is training with cross-entropy. "auto" is the
        paper's method with c = max(60, 2 T / 3), and switches to the rule of "noisy" if
        more than 12 % of the labels are estimated to be wrong. "noisy" is for data with
        many wrong labels. See Notes.
    discount : float or "auto", default="auto"
        The factor gamma in (0, 1] by which each epoch multiplies the accumulated
        evidence. Below 1 the label is forgotten exponentially; keep
        `prior_strength >= 1 / (1 - discount)`. "auto" is 1, or 0.015^(1 / T) with the
        rule for wrong labels.
    prior_floor : float or "auto", default="auto"
        The prior concentration eps of each class other than the label, in (0, c).
        "auto" is 1e-3 for up to K = 100 classes and 0.1 / K for more, so that the
        floors of many classes do not outweigh the label. With
        ``posterior_dtype="float16"`` it is at least 6.1e-5.
    evidence : {"auto", "plain", "weighted"}, default="auto"
        The weight of a prediction in the posterior update: 1 ("plain", as in the
        paper), or a weight that grows with the reliability of the predictions
        ("weighted", see Notes). "auto" is "weighted" with the rule for wrong labels. It
        is also "weighted" for every named `prior_strength` with ``calibration=None``,
        where it compensates for logits of the wrong scale.
    calibration : {"auto", "cross-fit", "hold-out"} or None, default="auto"
        How `fit` obtains the held-out predictions that calibrate the probabilities.

        - "cross-fit" trains two networks, each on half of the data and for half of the
          epochs, before the final network is trained on all data. A third network is
          trained if the learning rate or the rule changes. Tables of fewer than 450
          samples use four networks of each kind, trained on three quarters of the data
          for all epochs. If training is brief (fewer than 10 epochs, or too few steps;
          see the guide on calibration), nothing is chosen: the final network is that of
          ``calibration=None``, and two other networks with as many steps calibrate it.
        - "hold-out" leaves out a fifth of the data, at most 2,000 samples, or uses the
          validation data of `train_split`.
        - "auto" is "hold-out" above 20,000 samples or with a `train_split`, and
          "cross-fit" otherwise. With fewer than 20 samples nothing is calibrated.
        - None trains once and predicts the softmax of the logits.

        :meth:`partial_fit` and warm starts keep the existing calibration. Skorch
        callbacks that change training run in the folds as well; other callbacks do not.
    label_noise : {"auto", "errors", "inherent"}, default="auto"
        How to interpret labels that contradict otherwise reliable predictions. With
        "errors", the given labels are wrong and the predictions are of the true labels.
        With "inherent", labels are random by nature, including those of new samples,
        and the predicted probabilities include this randomness. The data cannot
        distinguish the two. "auto" assumes errors for images, and for tables whose
        classes are otherwise well separated.
    max_epochs : int, default=40
        Number of passes over the data in each call of `fit` or `partial_fit`. With 0,
        the network is built but neither trained nor calibrated.
    batch_size : int, default=128
        Number of samples per step; -1 uses all samples in one batch.
    lr : float or "auto", default="auto"
        The peak learning rate of the schedule. "auto" is 1e-2. It is lowered if the
        held-out loss in the folds begins to rise before training ends, so that the
        network learns about as much as it had learnt by that point. Without folds it is
        1e-2.
    optimizer : torch.optim.Optimizer class, default=torch.optim.AdamW
        Further arguments are given as ``optimizer__*``.
    lr_schedule : {"one-cycle", "cosine", "constant"}, default="one-cycle"
        The learning-rate schedule of one call of `fit`. "one-cycle" increases the rate
        during the first quarter and then decreases it along a cosine; "cosine"
        decreases it along a cosine; "constant" keeps it. A skorch `LRScheduler` among
        the callbacks replaces the schedule.
    schedule_epochs : int, default=None
        The number of epochs that the learning-rate schedule spans, if that is more than
        `max_epochs`; values that "auto" and "noisy" derive from the number of epochs
        use it too. Such a call performs the first `max_epochs` epochs of a call with
        ``max_epochs=schedule_epochs``. It is meant for searches that train candidates
        in rounds, such as :class:`sklearn.model_selection.HalvingGridSearchCV`. None is
        `max_epochs`.
    weight_decay : float, default=1e-2
        Passed to the optimizer, if it has such an argument.
    averaging : {"ema"} or None, default=None
        "ema" predicts with an exponential moving average of the weights over roughly
        the last 5 % of the steps. The average is used in validation, by callbacks at
        the end of an epoch, and after `fit`. The running statistics of batch
        normalisation are averaged too. :meth:`partial_fit` continues training from the
        average and starts a new one.
    augmentation : {"flip-crop", "strong"} or callable, default=None
        Applied to every training batch on the device. "flip-crop" is
        :func:`skbsd.augmentation.flip_crop`, "strong"
        :func:`skbsd.augmentation.strong`. A callable receives the batch as it was given
        to `fit` (uint8 images as uint8, several inputs as a dict or list of tensors)
        and returns a batch of the same shape. A callable with a true attribute
        `by_row`, such as an alternating :class:`skbsd.augmentation.FlipCrop`, is called
        as ``augmentation(images, rows, epoch)`` with the rows of the images and the
        number of finished epochs, for many batches at once. Where rows and epoch are
        unknown, with a DataLoader or `contrastive`, it receives the images only.
    contrastive : float or Contrastive, default=None
        Weight of an additional contrastive loss, for images with many wrong labels.
        Each batch is augmented twice, and the embeddings of the two views of an image
        are pulled together. A :class:`skbsd.contrastive.Contrastive` sets further
        options. Training takes twice as long, and `train_loss` in the history is the
        sum of both losses. The architecture of the network does not change.
    image_shape : tuple of (channels, height, width), default=None
        Interpret each row of a 2-D X as a flattened image of this shape.
    prediction_views : {"flip", "flip-shift"} or None, default=None
        Test-time augmentation: average the logits over several views of each image.
        "flip" uses the image and its mirror image, and takes twice as long.
        "flip-shift" adds both shifted by one pixel up and left, and down and right,
        with reflected borders; it takes six times as long, and the two unshifted views
        have half the weight. The calibration is that of the averaged logits. Validation
        during training uses single images.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        "bfloat16" runs the network under autocast. "auto" uses bfloat16 on GPUs that
        support it, for networks with convolutions or with layers of at least 512 inputs
        and outputs. Elsewhere it uses float32, except that the default network uses
        float64 on the CPU if a whole table fits into one batch: such a fit is
        deterministic and does not depend on the order of the rows.
    posterior_dtype : str, default="float32"
        How the posteriors are stored. "float16" halves the memory of 4 bytes per sample
        and class. Arithmetic remains in float32, but stored values are rounded to 11
        bits, up or down in turn so that rounding errors do not accumulate;
        `prior_strength` may be 1,024 at most. "compact" stores the 32 classes with the
        most evidence per sample in 148 bytes, whatever the number of classes, and
        treats the remaining classes as equally probable; "compact-64" stores 64. With
        no more classes than that, it is "float32". See
        :class:`skbsd.posterior.CompactPosterior`.
    posterior_folder : str or path-like, default=None
        Store the posteriors in a temporary file in this folder rather than in memory.
        The file is deleted together with the estimator; use `save` to keep the
        posteriors. Pickles contain the posteriors themselves and load them into memory,
        and so does the result that the processes of `devices` return.
    channels_last : {"auto"} or bool, default="auto"
        Use the channels-last memory format for images, in which convolutions are
        faster. "auto" uses it on the CPU and on CUDA if the network has convolutions
        and supports it.
    compile : bool, default=False
        Compile the network with :func:`torch.compile` for training. Each batch shape is
        compiled once, so a smaller last batch causes a second compilation.
        ``compile__*`` are passed on. Prediction runs the network uncompiled.
    cuda_graph : bool or "auto", default="auto"
        On a CUDA device, record a training step as a CUDA graph and replay it, so that
        launch overhead does not limit the speed of small networks. This requires arrays
        on the device, SGD, Adam or AdamW, and no callback that looks at single batches.
        "auto" does so for networks, objectives and augmentations of this library. True
        does so for others too, whose Python code then runs during the first steps only;
        if recording is not possible, a warning gives the reason and training proceeds
        without a graph. Without a CUDA device the parameter has no effect.
    device : str or torch.device, default="auto"
        "auto" is the first available of cuda, mps and cpu.
    devices : int, "all" or None, default=None
        The number of GPUs that train one network together, with one process each, or
        the number of processes on the CPU. Each call of `fit` starts and ends these
        processes. "all" is the number of GPUs, or one process on the CPU. In a script
        started by torchrun, the existing processes train together; with 1, each process
        trains its own estimator.
    sync_batch_norm : bool, default=False
        When several GPUs train together, compute the statistics of batch normalisation
        over the whole batch instead of each process's part of it.
    gather_posterior : bool, default=True
        After several processes have trained together, collect all posteriors in
        `posterior_`. With False, each process of a torchrun script keeps its part, and
        `posterior_rows_` holds the corresponding rows of X; with `devices`, the part of
        the first process remains.
    train_split : callable, default=None
        For example :class:`skorch.dataset.ValidSplit`, which holds out validation data.
        Callbacks that monitor `valid_loss` need it. None trains on all of X.
    class_weight : dict or "balanced", default=None
        Weights of the classes, as in scikit-learn; multiplied with `sample_weight`.
    callbacks : list of skorch callbacks, "disable" or None, default=None
        Added to skorch's default callbacks.
    iterator_train, iterator_valid : callable, default=torch.utils.data.DataLoader
        How a Dataset is loaded, with options ``iterator_train__*`` such as
        `num_workers`. Arrays are gathered on the device instead, unless one of these
        options (other than the batch size) is set. A sampler must draw without
        replacement: a step visits each sample at most once. `iterator_valid` also loads
        the data of predictions. Predictions come in the order in which it yields the
        samples, so it must not shuffle.
    checkpoint : str or path-like, default=None
        A folder in which each call of `fit` writes a checkpoint after every epoch. An
        identical call resumes from the checkpoint, and returns at once if that call was
        finished. A file's name is a digest of parameters and data, so the fits of a
        search can share the folder, and an interrupted search is resumed by starting it
        again. This also works without a `random_state`. See the guide on saving.
    warm_start : bool, default=False
        Let `fit` continue from the network of the previous call.
    verbose : int, default=0
        1 prints a line per epoch.
    random_state : int, RandomState instance or None, default=None
        Determines initialisation, order and augmentation. On the CPU, the same seed
        gives the same model bit for bit. torch's global generators are not changed.
    **kwargs : dict
        Parameters with the prefixes ``module__``, ``optimizer__``, ``callbacks__``,
        ``iterator_train__``, ``iterator_valid__`` and ``compile__``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    n_features_in_ : int
        Number of columns of a table, or of values of an image. Not set for a Dataset.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if X has them.
    module_ : torch.nn.Module
        The trained network.
    prior_strength_, discount_, prior_floor_ : float
        The values of c, gamma and eps that were used.
    lr_ : float
        The learning rate that was used.
    choice_ : Choice
        The learning rate, rule and discount that replaced "auto".
    calibration_ : Calibration
        The map from logits to calibrated logits and facts about it: folds, samples,
        time, log loss before and after. Not set with ``calibration=None``. `forward`
        returns the logits without this map. See
        :class:`skbsd.calibration.Calibration`.
    temperature_ : float
        The temperature that divides the logits; 1 with ``calibration=None``.
    noise_rate_ : float
        Estimated fraction of wrong labels in the training data. `calibration_` has its
        interval. 0 with ``calibration=None``.
    out_of_fold_proba_ : ndarray of shape (n_samples, n_classes)
        Prediction of each sample's true class by a network that was not trained on the
        sample; NaN for samples without one. None if samples were held out and the
        posteriors are compact or in a file, as it would be as large as dense
        posteriors.
    posterior_ : DirichletPosterior or CompactPosterior
        The posterior of each training sample; row i belongs to row i of X.
    history_ : skorch.history.History
        Losses and times of every epoch.
    n_iter_ : int
        Number of epochs trained.
    device_ : torch.device
        The device of the network.
    data_loading_ : {"resident", "loader"}
        Whether the training data were on the device ("resident") or were loaded by a
        DataLoader, as for a Dataset, for arrays too large for the device, and with
        ``iterator_train__*``.
    cuda_graph_ : bool
        Whether the last call replayed training steps from a CUDA graph.
    compile_time_ : float
        Total duration in seconds of the first training step of each input shape, in
        which the network is compiled; 0 without `compile`.
    image_mean_, image_std_ : ndarray of shape (channels,)
        Statistics of the training images, with which uint8 images are standardised.

    See Also
    --------
    skbsd.posterior.DirichletPosterior : The posteriors and their mathematics.
    skbsd.metrics.expected_calibration_error : Measures the calibration.
    sklearn.neural_network.MLPClassifier : Trained with cross-entropy.
    sklearn.calibration.CalibratedClassifierCV : Calibration after training.

    Notes
    -----
    In the paper's symbols, a visit of sample i with predicted probabilities p performs
    the update

    .. math:: \alpha_i \leftarrow \gamma \alpha_i + p, \qquad
              q_i = \alpha_i / \textstyle\sum_k \alpha_i[k],

    and the loss is the cross-entropy of q with p. Its gradient with respect to the
    logits is p - q. Samples of weight zero are left out. The losses of the others are
    averaged with weights that are scaled to mean 1.

    Calibration, the rule for wrong labels and weighted evidence go beyond the paper.
    "noisy" is c = max(15, T / 5) over T epochs with weighted evidence. With
    ``calibration=None``, "auto" is c = max(60, 2 T / 3) with weighted evidence. In
    epoch t, weighted evidence replaces p in the first formula by
    :math:`w_t \, \mathrm{softmax}(z / \tau_t)` for the logits z, with

    .. math:: w_t = \min\Bigl(5, \frac{a_{t-1}}{1 - \bar a}\Bigr), \qquad
              \frac{1}{\tau_t} = \min\Bigl(10,
              s + 0.1 \, \frac{\bar a}{1 - \bar a}\Bigr).

    Here :math:`a_{t-1}` is the weighted fraction of the training samples whose
    prediction agreed with the label in the previous epoch, :math:`\bar a` is its mean
    over the epochs so far, and s is 1, or 1.4 with "noisy". Poor early predictions thus
    have little weight, and predictions of a network that learns the labels easily are
    sharpened. With "auto", unless evidence is plain, the target for K classes is
    :math:`(1 - \lambda) q + \lambda / K` with
    :math:`\lambda = 0.3 (1 - \bar a)^2`: labels that are hard to learn are smoothed.

    A table is not scaled: put a `StandardScaler` before the classifier. uint8 images
    are standardised by channel on the device. Float images are used unchanged.

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
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
            A dense or sparse table of shape (n_samples, n_features); images of shape
            (n_samples, channels, height, width); or a `torch.utils.data.Dataset` of
            pairs (x, y), of longer tuples that end with the label, or of dicts with
            "label" or "labels". A custom `module` also accepts arrays with any other
            number of dimensions, and several inputs: the entries of a dict of arrays
            are passed as keyword arguments, a list or tuple of arrays as one list.
            Integers are converted to floats if the module accepts floats. They stay
            integers if it does not, as with an embedding, and in a dict or list. See
            the guide on inputs.
        y : array-like of shape (n_samples,), default=None
            Labels of any kind: integers, strings, booleans. None with a Dataset, which
            contains the labels; those of torchvision's ImageFolder are the names of the
            folders.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a sample of weight zero is left out.
        **split_params : dict
            Passed to `train_split`, such as `groups`. Without a `train_split`, samples
            with the same `groups` stay in one fold of the calibration.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            For invalid parameters or data, before anything is changed. Also if the loss
            becomes NaN or infinite; the weights of the last epoch with finite loss are
            kept.

        Warns
        -----
        ConvergenceWarning
            If an interrupt (Ctrl-C) ends training, which leaves a usable model; if
            held-out predictions are no better than the class frequencies; if the
            validation accuracy falls to half of an earlier value; and if the
            calibration finds a temperature below 0.02 or above 50.
        UserWarning
            For columns of very different scales, and for a `prior_strength` with which
            the label contributes less than a tenth of the target.

        Notes
        -----
        An interrupt in the first epoch, or in the folds before it, is raised and leaves
        the model unchanged. In a search, or in another scikit-learn loop over fits, an
        interrupt in any epoch is raised, and stops the loop.
        """
        keep = self.warm_start and self.initialized_
        classes = self.classes_ if keep and self._has_classes() else None
        with one_thread_after_fork():
            data = self._check_training_data(X, y, sample_weight, classes, keep=keep)
            arguments = {"y": y, "sample_weight": sample_weight, **split_params}
            if self._fits_in_processes("fit", X, arguments):
                return self
            return self._train(data, "fit", split_params, keep=keep)

    def partial_fit(
        self,
        X,
        y=None,
        classes=None,
        sample_weight=None,
        *,
        epochs=None,
        **split_params,
    ):
        """Train the network further, for `epochs` or `max_epochs` more epochs.

        With the X, y and prior of the last call, the samples keep their posteriors;
        otherwise, new posteriors are created. A Dataset is considered the same if its
        type and labels are equal. A c that depends on the number of epochs is computed
        from the `max_epochs` of the call that created the posterior. With weighted
        evidence, predictions in the first epoch with new data have weight zero.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
            As in :meth:`fit`.
        y : array-like of shape (n_samples,), default=None
            Labels, all of them among the known classes. None with a Dataset.
        classes : array-like of shape (n_classes,), default=None
            All labels that may occur in this and later calls, for the first call. By
            default, the labels in y.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a sample of weight zero is left out.
        epochs : int, default=None
            Number of epochs of this call, in place of `max_epochs`. The learning-rate
            schedule and the progress that callbacks show span this number. None is
            `max_epochs`.
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
        _checks.check_epochs(epochs)
        with one_thread_after_fork(), self._for_epochs(epochs):
            data = self._check_training_data(X, y, sample_weight, expected, keep=keep)
            arguments = {"y": y, "sample_weight": sample_weight, **split_params}
            arguments["classes"] = classes
            if self._fits_in_processes("partial_fit", X, arguments):
                return self
            return self._train(data, "partial_fit", split_params, keep=keep)

    @contextmanager
    def _for_epochs(self, epochs: int | None):
        """Set `max_epochs` within the context, as schedules and callbacks read it.

        Other processes receive the estimator with this value.
        """
        usual = self.max_epochs
        self.max_epochs = usual if epochs is None else epochs
        try:
            yield
        finally:
            self.max_epochs = usual

    def _fits_in_processes(self, method: str, X, arguments: dict) -> bool:
        """Run the call in several processes if `devices` demands it; return if so."""
        if current(self.devices).size > 1:
            return False
        n = n_processes(self.devices, _checks.check_device(self.device))
        if n == 1:
            return False
        fit_in_processes(self, n, method, X, arguments)
        return True

    def make_objective(self) -> Objective:
        """Return the objective that a call of `fit` minimises.

        Override it for a custom loss. Network, optimizer and posterior exist when it is
        called.

        Returns
        -------
        skbsd.objectives.Objective
            A new objective: :class:`skbsd.objectives.SelfDistillation`, unless
            `contrastive` is set.
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
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
            As in :meth:`fit`; the labels of a Dataset are ignored. Images may have
            another height and width if the network supports it.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Calibrated probabilities; columns in the order of `classes_`.

        Raises
        ------
        NotInitializedError
            If the network does not exist yet. This error of skorch is a NotFittedError.
        ValueError
            If X is empty, or differs in kind from the training data.
        """
        return self._calibrated(X, lambda z: z.softmax(dim=1)).numpy()

    def predict_log_proba(self, X):
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
            As in :meth:`fit`; the labels of a Dataset are ignored.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Calibrated log-probabilities, finite even if the probability is too small
            for a float; columns in the order of `classes_`.

        Raises
        ------
        NotInitializedError
            If the network does not exist yet. This error of skorch is a NotFittedError.
        ValueError
            If X is empty, or differs in kind from the training data.
        """
        return self._calibrated(X, lambda z: z.log_softmax(dim=1)).numpy()

    def decision_function(self, X):
        """Compute the calibrated logits, whose softmax is `predict_proba`.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
            As in :meth:`fit`; the labels of a Dataset are ignored.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            Columns in the order of `classes_`. For two classes, the logit of the second
            class minus that of the first.

        Raises
        ------
        NotInitializedError
            If the network does not exist yet. This error of skorch is a NotFittedError.
        ValueError
            If X is empty, or differs in kind from the training data.
        """

        def scores(logits):
            if logits.shape[1] == 2:
                return logits[:, 1] - logits[:, 0]
            return logits.clone()  # the network may reuse their memory

        return self._calibrated(X, scores).numpy()

    def score_samples(self, X):
        r"""Compute a familiarity score: the log-odds of the predicted class.

        The score is :math:`\log p / (1 - p)` of the largest probability p that
        :meth:`predict_proba` returns. Samples of a kind that the network has not learnt
        tend to have lower scores, but nothing guarantees that: see Notes.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor or Dataset
            A table or images, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n_samples,)
            Scores in float64; higher is more familiar. The least possible score is
            -log(n_classes - 1), for equal probabilities. Scores have no upper limit,
            even if the probability rounds to 1.

        Raises
        ------
        NotFittedError
            If the network does not exist yet.
        ValueError
            If X is empty, or differs in kind from the training data.

        See Also
        --------
        predict_proba : The largest probability orders samples in the same way.

        Notes
        -----
        A score is not the probability that a sample is familiar, and no threshold fits
        all data: choose one from the scores of samples that were not trained on. A low
        score may also mean a familiar sample between two classes. Far from the training
        data, a network may be confident about samples unlike any it has seen. The guide
        on unfamiliar inputs reports measurements.

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
        return self._calibrated(X, top_log_odds).numpy()

    def predict(self, X):
        """Predict the label of each sample.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
            As in :meth:`fit`; the labels of a Dataset are ignored.

        Returns
        -------
        ndarray of shape (n_samples,)
            Values of `classes_`. An estimator that was never fitted, but only
            initialized or given weights by `load_params`, has no `classes_`. It returns
            indices of the columns of :meth:`predict_proba`, as skorch does.

        Raises
        ------
        NotInitializedError
            If the network does not exist yet. This error of skorch is a NotFittedError.
        ValueError
            If X is empty, or differs in kind from the training data.

        Warns
        -----
        UserWarning
            If the estimator has no `classes_`.
        """
        codes = self._calibrated(X, lambda z: z.argmax(dim=1)).numpy()
        if self._has_classes():
            return self.classes_[codes]
        name = type(self).__name__
        warnings.warn(
            f"this {name} has weights, but was never fitted and has no classes_: "
            "predict returns indices of the columns of predict_proba. To keep the "
            f"labels, store whole estimators with `save` and `{name}.load`, or with "
            "joblib.",
            UserWarning,
            stacklevel=2,
        )
        return codes

    def score(self, X, y=None, sample_weight=None):
        """Compute the accuracy of predictions.

        Parameters
        ----------
        X : array-like, DataFrame, Tensor, sparse matrix, dict or list of these, Dataset
            As in :meth:`fit`.
        y : array-like of shape (n_samples,), default=None
            True labels. None with a Dataset, which contains the labels. For an
            ImageFolder, they may also be its `targets`, the indices of its classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.

        Returns
        -------
        float
            The weighted fraction of correct predictions.

        Raises
        ------
        NotFittedError
            If the network does not exist yet.
        ValueError
            If X is empty or differs in kind from the training data, or without labels.
        """
        X = as_dataset(X)
        if is_dataset(X) and self._has_classes():
            y = _checks.true_labels(X, y, self.classes_)
        return super().score(X, y, sample_weight)

    def save(self, path, posterior=False):
        """Write the fitted estimator to a single file that cannot run code when loaded.

        The file contains the network, its calibration, the parameters and the history,
        in the safetensors format. It is written completely or not at all: if writing
        fails, an existing file stays unchanged.

        Parameters
        ----------
        path : str or path-like
            Path of the file, in an existing folder.
        posterior : bool, default=False
            Whether to also write the beliefs, the state of the optimizer and a
            fingerprint of the training data. After loading, :meth:`partial_fit` with
            the same X and y then continues as in this process, on the CPU bit for bit,
            except that a contrastive projection starts anew. This adds the size of the
            beliefs, by default 4 bytes per training sample and class, and two to three
            times the size of the network.

        Raises
        ------
        NotFittedError
            If the estimator has not been fitted.
        ValueError
            For a network or an optimizer whose state contains more than tensors, and
            with `posterior` if the estimator has no beliefs.
        OSError
            If the file cannot be written.

        See Also
        --------
        BSDClassifier.load : Reads the file.
        BSDClassifier.export : Writes a model that runs without this library.

        Notes
        -----
        The file contains plain data, and names of PyTorch's optimizers and of classes
        of :mod:`skbsd.networks`. Other parameters, such as callbacks and transforms,
        are not saved; loading warns about them.

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
            Path of the file.
        module : torch.nn.Module (class or instance) or callable, default=None
            The network, if the file contains a custom network. As in the constructor, a
            class or another callable is called with the ``module__*`` of the file, and
            an instance is copied. The networks of :mod:`skbsd.networks` are built from
            the file.

        Returns
        -------
        BSDClassifier
            An instance of the class that `load` is called on, in evaluation mode, with
            the same predictions. With ``device="auto"``, it is on the best device of
            this machine.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If the file is damaged, from a newer version or not written by :meth:`save`;
            if `module` is required, or its weights do not match those of the file.

        Warns
        -----
        UserWarning
            Once, about parameters that were not saved.
        InconsistentVersionWarning
            If another version of this library or of scikit-learn wrote the file.

        See Also
        --------
        BSDClassifier.save : Writes the file.

        Notes
        -----
        Nothing in the file can run code. It contains numbers, texts, tensors, and names
        that are looked up in a table of this library.

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

    def export(self, path, X=None):
        """Export the calibrated model to a file that runs without skbsd.

        The exported model accepts the X of :meth:`predict_proba` and returns the same
        probabilities. It contains the standardisation of uint8 images, the network,
        `prediction_views`, the calibration and the softmax. The file is written
        completely or not at all.

        Parameters
        ----------
        path : str or path-like
            Path of the file, in an existing folder. The format is ONNX for the suffix
            ``.onnx``, and a program of :func:`torch.export.export` for ``.pt2``.
        X : array-like, DataFrame, Tensor or Dataset, default=None
            A few samples as for :meth:`predict_proba`. Only the names, shapes and types
            of the inputs are used. They are required for a model that was fitted on a
            Dataset.

        Raises
        ------
        NotFittedError
            If the estimator has not been fitted, or has only loaded weights.
        ImportError
            If the packages for ONNX are missing; they are in the extra
            ``skbsd[export]``.
        ValueError
            For another suffix; if samples are required; if torch cannot trace the
            network, or translate it to ONNX.
        TypeError
            If the inputs of the network are not tensors, or a dict or tuple of them.
        OSError
            If the file cannot be written.

        See Also
        --------
        BSDClassifier.save : Saves the whole estimator.

        Notes
        -----
        Batches may be of any size; the other dimensions are those of training, or of X.
        The type of a table is that of the network: float64 for the default network on
        a small table (see `precision`), and float32 otherwise. With `image_shape`, the
        exported model accepts flattened rows, unless X contains images. Sparse rows
        become dense ones, and integers that the network requires become int64. It
        computes on the CPU in the same type, even if `precision` is "bfloat16".

        The file also contains metadata such as the classes; the guide on serving shows
        how to read them.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> import onnxruntime
        >>> from sklearn.datasets import load_iris
        >>> from skbsd import BSDClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> model = BSDClassifier(random_state=0).fit(X, y)
        >>> path = Path(tempfile.mkdtemp()) / "iris.onnx"
        >>> model.export(path)
        >>> served = onnxruntime.InferenceSession(path)
        >>> (proba,) = served.run(None, {"X": X.astype(np.float32)})
        >>> bool(abs(proba - model.predict_proba(X)).max() < 1e-6)
        True
        """
        _export.export(self, path, X)

    def _check_training_data(self, X, y, sample_weight, classes, *, keep):
        """Check parameters and data, before anything is changed.

        `classes` are those of a network that is kept, or of the first `partial_fit`.
        """
        self.check_training_readiness()
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
        # Selects the GPU of this process, before anything is allocated on another one.
        current(self.devices)
        _checks.check_device(self.device)
        X = as_dataset(X)
        # A network that is kept accepts the same kind of inputs as before.
        knows = keep and self._has_classes()
        data = checked_data(
            X,
            y,
            sample_weight,
            class_weight=self.class_weight,
            classes=classes,
            image_shape=self.image_shape,
            caller=caller,
            **self._ways_of_inputs(knows=knows),
            collates="collate_fn" in self.get_params_for("iterator_train"),
        )
        if self.prediction_views is not None:
            shape = sample_shape(data.X, self.image_shape)
            check_shows_images(shape, self.prediction_views)
        if is_dataset(X):
            return data
        if knows:
            self._check_like_training(X, data.X)
        if isinstance(self.augmentation, str) and is_nested(data.X):
            raise ValueError(
                f"augmentation={self.augmentation!r} requires a single array of "
                f"images, but X is a {type(X).__name__} of several inputs; pass a "
                "function that receives a batch of them and returns one."
            )
        if isinstance(self.augmentation, str) and data.X.ndim != 4:
            raise ValueError(
                f"augmentation={self.augmentation!r} needs images, but X has shape "
                f"{tuple(data.X.shape)}; pass 4-D X or image_shape."
            )
        return data

    @with_callbacks
    def _train(self, data: TrainingData, caller: str, split_params, *, keep: bool):
        ranks = current(self.devices)
        ranks.meet()
        if not keep:
            # If warnings are turned into errors, all processes raise them.
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
                f"{self.max_epochs}. The current model can be used; {further}.",
                ConvergenceWarning,
                stacklevel=4,  # fit's caller
            )
        return self

    def _trainings(
        self, data: TrainingData, caller: str, split_params, *, keep: bool
    ) -> Trainings[tuple[Outcome | None, int | None]]:
        """Yield the trainings of a call one after the other, and calibrate.

        Returns the outcome of the held-out predictions, and the epoch in which the last
        training was interrupted; each is None if it does not exist.
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
        """Adapt the calibration to the scale and base rates of the final network."""
        outcome = with_own_scale(self, outcome, data, rows)
        return outcome, with_base_rates(self, outcome, data, rows)

    def _split(self, data: TrainingData, caller: str, split_params: dict) -> Split:
        """Split off validation data."""
        if split_params and self.train_split is None:
            raise TypeError(
                f"{caller} got unexpected arguments {sorted(split_params)}: they would "
                "be passed to train_split, which is None. The number of epochs is the "
                "parameter max_epochs; partial_fit(X, y, epochs=...) overrides it."
            )
        # skorch routes from 1.4 on.
        routes = isinstance(self.get_metadata_routing(), MetadataRouter)
        if split_params and _routing_enabled() and routes:
            routed = process_routing(self, caller, **split_params)
            split_params = routed["splitter"]["split"]
        whole = self.get_dataset(data.X, data.y)  # X itself if it is a Dataset
        split = split_rows(data, whole, self.train_split, split_params)
        return agreed_split(split, data, current(self.devices))

    def _calibrated(
        self, X, of: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Apply a function to the calibrated logits and return the results."""
        calibration = getattr(self, "calibration_", None)
        if calibration is None:
            return self._predictions(X, of)
        return self._predictions(X, lambda logits: of(calibration(logits)))

    def _build_projection_optimizer(self, head: torch.nn.Module):
        """Build the optimizer of a projection, without the user's parameter groups."""
        return self._build_optimizer(head.named_parameters(), grouped=False)

    @property
    def temperature_(self) -> float:
        """Temperature that divides the logits; 1 without calibration."""
        return self._calibration().temperature

    @property
    def noise_rate_(self) -> float:
        """Estimated fraction of wrong labels in the training data."""
        return self._calibration().noise_rate

    def _calibration(self) -> Calibration:
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"this {type(self).__name__} is not fitted yet.")
        return getattr(self, "calibration_", None) or Calibration()

    @property
    def lr_(self) -> float:
        """Peak learning rate that was used."""
        return self._resolved_lr()

    @property
    def prior_strength_(self) -> float:
        """Prior concentration c of the labels that was used."""
        return self._used_prior("prior_strength")

    @property
    def discount_(self) -> float:
        """Discount gamma that was used."""
        return self._used_prior("discount")

    @property
    def prior_floor_(self) -> float:
        """Prior concentration eps of each class other than the label that was used."""
        return self._used_prior("prior_floor")

    def _used_prior(self, name: str) -> float:
        if "posterior_" not in vars(self) and self._saved_prior is not None:
            return self._saved_prior[name]
        return getattr(self.posterior_, name)
