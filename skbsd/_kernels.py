"""The posterior step as one kernel, for NVIDIA and AMD GPUs.

PyTorch needs a dozen kernels for the step, and each moves the rows of the batch through
memory. This kernel reads them once and writes them once. The arithmetic is that of
:meth:`skbsd.posterior.DirichletPosterior.step`, in float32.
"""

import functools
import warnings

import torch
from torch import Tensor

from ._formulas import dither_steps
from ._rules import UpdateRule

try:
    import triton
    import triton.language as tl
except ImportError:  # The CPU builds of PyTorch do not include Triton.
    triton = None

# Rows of up to this number of classes stay in registers; rows of twice the length would
# not fit. Longer rows are read twice, in chunks. The second read hits the cache, as few
# programs run at the same time: their many threads occupy a whole multiprocessor.
LONGEST_ROW = 16384
CHUNK = 8192
# Short rows share a program, up to this many numbers.
TILE = 1024

if triton is not None:

    @triton.jit
    def _read(logits, alpha, inside, in_store, POLICY: tl.constexpr):
        """Read logits and beliefs in float32, and neutral values if not `inside`."""
        z = tl.load(logits, inside, other=-float("inf"), eviction_policy=POLICY)
        before = tl.load(alpha, inside & in_store, other=0.0, eviction_policy=POLICY)
        return z.to(tl.float32), before.to(tl.float32)

    # K and STRIDE are constants, so that the compiler knows the alignment of rows and
    # vectorises memory access. Values that vary between batches are not specialised, as
    # each would require a new compilation.
    @triton.jit(
        do_not_specialize=["n", "n_rows"],
        do_not_specialize_on_alignment=["index", "weight"],
    )
    def _step(
        logits,
        alpha,
        visits,
        index,
        weight,
        losses,
        gradient,
        numbers,
        n,
        n_rows,
        STRIDE: tl.constexpr,
        SHARPEN: tl.constexpr,
        HALF: tl.constexpr,
        BY_UPDATE: tl.constexpr,
        BY_ROW: tl.constexpr,
        BY_CLASS: tl.constexpr,
        K: tl.constexpr,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Perform the step for ROWS samples, BLOCK classes at a time.

        It is a single function, as the kernel reads and writes each row once.

        The evidence is evidence_sum * softmax(sharpness * logits) if SHARPEN, and
        evidence_sum times the predicted probabilities otherwise. If HALF, the store is
        in float16, and beliefs are rounded as by :func:`skbsd._formulas.rounded`.
        """
        # Read from memory, as a CUDA graph would keep the values of arguments.
        evidence_sum = tl.load(numbers)
        sharpness = tl.load(numbers + 1)
        smoothing = tl.load(numbers + 2)
        discount = tl.load(numbers + 3)
        # In 64 bits, as logits and alpha may have more than 2**31 elements.
        sample = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        # A thread processes four values at once, and not eight of a shorter type. With
        # mixed types, values would have to move between threads.
        lane = tl.max_contiguous(tl.arange(0, BLOCK), 4)[None, :]
        in_batch = sample < n
        row = tl.load(index + sample, mask=in_batch, other=-1).to(tl.int64)
        in_store = (row >= 0) & (row < n_rows)
        visited = tl.load(visits + row, mask=in_store, other=0)
        scale = 1.0 / n
        if weight is not None:
            scale *= tl.load(weight + sample, mask=in_batch, other=0.0).to(tl.float32)
        logits += sample * STRIDE
        alpha += row * K
        gradient += sample * K

        if BLOCK >= K:
            inside = in_batch & (lane < K)
            z, before = _read(logits + lane, alpha + lane, inside, in_store, "")
            highest = tl.max(z, axis=1, keep_dims=True)
            lowest = tl.min(tl.where(inside, z, float("inf")), axis=1, keep_dims=True)
            powers = tl.exp(z - highest)
            total = tl.sum(powers, axis=1, keep_dims=True)
            if SHARPEN:
                sharp = tl.exp(sharpness * (z - highest))
                sharp_total = tl.sum(sharp, axis=1, keep_dims=True)
            mass = tl.sum(before, axis=1, keep_dims=True)
        else:
            # Each lane computes the sum of the softmax relative to its highest logit so
            # far, which starts at the lowest finite number, as -inf - -inf is NaN.
            high = tl.full([ROWS, BLOCK], -3.4028234663852886e38, tl.float32)
            lowest = tl.full([ROWS, BLOCK], float("inf"), tl.float32)
            total = tl.zeros([ROWS, BLOCK], tl.float32)
            sharp_total = tl.zeros([ROWS, BLOCK], tl.float32)
            mass = tl.zeros([ROWS, BLOCK], tl.float32)
            for start in range(0, K, BLOCK):
                column = start + lane
                inside = in_batch & (column < K)
                z, before = _read(
                    logits + column, alpha + column, inside, in_store, "evict_last"
                )
                mass += before
                lowest = tl.minimum(lowest, tl.where(inside, z, float("inf")))
                # The higher of z and high has exp(0), so one exponential is enough.
                rise = z - high
                ratio = tl.exp(-tl.abs(rise))
                total = tl.where(rise > 0, total * ratio + 1, total + ratio)
                if SHARPEN:
                    ratio = tl.exp(-sharpness * tl.abs(rise))
                    sharp_total = tl.where(
                        rise > 0, sharp_total * ratio + 1, sharp_total + ratio
                    )
                high = tl.maximum(high, z)
            highest = tl.max(high, axis=1, keep_dims=True)
            lowest = tl.min(lowest, axis=1, keep_dims=True)
            total = tl.sum(total * tl.exp(high - highest), axis=1, keep_dims=True)
            if SHARPEN:
                sharp_total *= tl.exp(sharpness * (high - highest))
                sharp_total = tl.sum(sharp_total, axis=1, keep_dims=True)
            mass = tl.sum(mass, axis=1, keep_dims=True)

        log_total = tl.log(total)
        # Mass of the row after the step, where the evidence sums to its weight. A row
        # outside the store is neither read nor written; its NaN propagates to loss and
        # gradient.
        mass = tl.where(in_store, discount * mass + evidence_sum, float("nan"))
        # Whether the loss is finite; every class has a positive target in it.
        finite = (lowest - highest - log_total > -float("inf")) & (mass < float("inf"))

        # Factors of the row, to avoid divisions. The reciprocal of the number for an
        # infinite prior is not a normal number; with masses in units of 2**32, it is.
        unit = 2.3283064365386963e-10
        share = (1 - smoothing) / (mass * unit)
        uniform = smoothing / K
        one_over_total = 1 / total
        if SHARPEN:
            sharp_weight = evidence_sum / sharp_total
        if HALF:
            phase = (BY_UPDATE * visited.to(tl.int64) + BY_ROW * row) & 0x1FFF
            phase = phase.to(tl.int32)
        terms = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, K, BLOCK):
            column = start + lane
            inside = in_batch & (column < K)
            if BLOCK < K:
                z, before = _read(
                    logits + column, alpha + column, inside, in_store, "evict_first"
                )
            log_proba = z - highest - log_total
            # For the longest rows, the registers cannot store the powers.
            if BLOCK >= K and BLOCK <= 8192:
                proba = powers * one_over_total
            else:
                proba = tl.exp(log_proba)
            if SHARPEN:
                evidence = sharp_weight * tl.exp(sharpness * (z - highest))
            else:
                evidence = evidence_sum * proba
            after = discount * before + evidence
            target = (after * unit) * share + uniform
            slope = (proba - target) * scale
            # Past the last class the product is 0 * -inf.
            terms += tl.where(inside, target * log_proba, 0.0)
            if HALF:
                bits = after.to(tl.int32, bitcast=True)
                bits = (bits + ((phase + BY_CLASS * column) & 0x1FFF)) & -0x2000
                after = bits.to(tl.float32, bitcast=True)
            tl.store(
                alpha + column, after.to(alpha.dtype.element_ty), mask=inside & finite
            )
            tl.store(
                gradient + column, slope.to(gradient.dtype.element_ty), mask=inside
            )
        loss = -scale * tl.sum(terms, axis=1, keep_dims=True)
        tl.store(losses + sample, loss, mask=in_batch)
        tl.store(visits + row, visited + 1, mask=finite)


# With TRITON_INTERPRET=1, the kernel runs on any device, line by line.
interpreted = triton is not None and not isinstance(_step, triton.JITFunction)


def launch(
    logits: Tensor,
    alpha: Tensor,
    visits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    numbers: Tensor,
    sharpen: bool,
) -> tuple[Tensor, Tensor]:
    """Update beliefs with a batch of predictions; return losses and their gradient.

    The rows `index` of `alpha` and `visits` are updated in place if their loss is
    finite. The loss of a row outside `alpha` is NaN. Nothing synchronises with the
    device or is copied to it. The function is long because the kernel has many
    arguments.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Logits of type float32, float16 or bfloat16.
    alpha : Tensor of shape (n_samples, n_classes)
        Concentrations, contiguous, of type float32 or float16.
    visits : Tensor of shape (n_samples,)
        Numbers of updates, contiguous, of type int32.
    index : Tensor of shape (n,)
        Distinct row number of each sample of the batch, of type int64.
    weight : Tensor of shape (n,) or None
        Weight of each sample in the loss.
    numbers : Tensor of shape (4,)
        The fields of an :class:`UpdateRule`, in their order and in float32. The first
        is the weight, which is the sum of the evidence.
    sharpen : bool
        Whether to apply the sharpness, which must be 1 otherwise.

    Returns
    -------
    losses : Tensor of shape (n,)
        Each sample's contribution to the mean, weight * loss / n, in float32.
    gradient : Tensor of shape (n, n_classes)
        Gradient of their sum with respect to the logits, (p - q) * weight / n, in the
        logits' type.
    """
    n, n_classes = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    losses = logits.new_empty(n, dtype=torch.float32)
    gradient = logits.new_empty(n, n_classes)
    whole = triton.next_power_of_2(n_classes)
    block = whole if whole <= LONGEST_ROW else CHUNK
    rows = max(1, TILE // block)
    # Eight values per thread, and at most 1024 threads; AMD's warps may have 64.
    warps = min(rows * block // 256, 16 if torch.version.hip else 32)
    by_update, by_row, by_class = dither_steps(13)
    with torch.cuda.device_of(logits):
        _step[(triton.cdiv(n, rows),)](
            logits,
            alpha,
            visits,
            index.contiguous(),
            None if weight is None else weight.contiguous(),
            losses,
            gradient,
            numbers,
            n,
            len(alpha),
            STRIDE=logits.stride(0),
            SHARPEN=sharpen,
            HALF=alpha.dtype == torch.float16,
            BY_UPDATE=by_update,
            BY_ROW=by_row,
            BY_CLASS=by_class,
            K=n_classes,
            ROWS=rows,
            BLOCK=block,
            num_warps=warps,
            # Triton's current default; Triton warns that it will change.
            enable_fp_fusion=True,
        )
    return losses, gradient


# An operator that is opaque to compilers, unlike `torch.library.triton_op`: it contains
# nothing to fuse with other operations, and Triton's interpreter can run it in every
# version of PyTorch.
operator = torch.library.custom_op(
    "skbsd::posterior_step", launch, mutates_args=("alpha", "visits")
)


@operator.register_fake
def _(logits, alpha, visits, index, weight, numbers, sharpen):
    losses = logits.new_empty(logits.shape[0], dtype=torch.float32)
    return losses, logits.new_empty(logits.shape)


def posterior_step(
    logits: Tensor,
    alpha: Tensor,
    visits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    rule: UpdateRule,
    numbers: Tensor | None = None,
    sharpen: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel with a rule.

    Other parameters and results are those of :func:`skbsd._cpu.posterior_step`.

    Parameters
    ----------
    numbers : Tensor of shape (4,), optional
        The fields of the rule on the device; by default they are copied there. A CUDA
        graph reads their current values when it is replayed.
    sharpen : bool, optional
        Whether to apply the sharpness; by default, if it is not 1. It is constant in a
        CUDA graph.
    """
    # Without a compiler, the operator's dispatch would take longer than the launch.
    step = operator if torch.compiler.is_compiling() else launch
    if numbers is None:
        numbers = numbers_of(rule, logits.device)
    if sharpen is None:
        sharpen = rule.sharpness != 1
    losses, gradient = step(logits, alpha, visits, index, weight, numbers, sharpen)
    return losses.sum(), gradient


def numbers_of(rule: UpdateRule, device: torch.device) -> Tensor:
    """Return the fields of a rule as the kernel reads them.

    Parameters
    ----------
    rule : UpdateRule
    device : torch.device

    Returns
    -------
    Tensor of shape (4,)
        In float32.
    """
    fields = [rule.weight, rule.sharpness, rule.smoothing, rule.discount]
    return torch.tensor(fields, dtype=torch.float32, device=device)


def usable(logits: Tensor, alpha: Tensor) -> bool:
    """Whether :func:`posterior_step` can take these tensors.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    alpha : Tensor of shape (n_samples, n_classes)

    Returns
    -------
    bool
        False for unsupported types and layouts, on devices other than GPUs (except
        under Triton's interpreter), and if Triton is missing or does not work.
    """
    if not (logits.is_cuda or interpreted) or triton is None:
        return False
    return (
        logits.device == alpha.device
        and logits.dtype in {torch.float32, torch.float16, torch.bfloat16}
        and alpha.dtype in {torch.float32, torch.float16}
        and alpha.is_contiguous()
        and (
            interpreted
            or _compiles(logits.device, logits.dtype, alpha.dtype, alpha.shape[1])
        )
    )


@functools.cache
def _compiles(
    device: torch.device, dtype: torch.dtype, store: torch.dtype, n_classes: int
) -> bool:
    """Whether a step succeeds, which requires a C compiler and a recent enough GPU.

    The kernels that are compiled for a single sample without weight serve other batches
    too. One kernel is compiled with sharpening, and one without.
    """
    logits = torch.zeros(1, n_classes, dtype=dtype, device=device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    try:
        for sharpness in (1.0, 2.0):
            rule = UpdateRule(sharpness=sharpness)
            posterior_step(logits, logits.to(store) + 1, index.int(), index, None, rule)
    except Exception as error:  # no common type: a compiler or file may be missing
        warnings.warn(
            f"the kernel of the posterior step does not run on {device} ({error!r}); "
            "PyTorch's operations are used instead, which are slower.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
