"""The step of the compact store on a GPU: a kernel and operations on a few columns.

Like the kernel of the dense store, the kernel reads the logits and writes their
gradient. It also finds the largest evidence in each of some hundred groups of classes.
PyTorch's operations then select the classes to keep from the groups with the largest
maxima. Nothing synchronises with the device.
"""

import functools
import warnings

import torch
from torch import Tensor

from ._compact import (
    CompactPrior,
    CompactRows,
    Evidence,
    index_dtype,
    keep_best,
    read,
    write,
)
from ._kernels import CHUNK, LONGEST_ROW, TILE, interpreted, numbers_of
from ._rules import UpdateRule

try:
    import triton
    import triton.language as tl
except ImportError:  # The CPU builds of PyTorch do not include Triton.
    triton = None

# Number of adjacent classes that form a group with one maximum.
GROUP = 8

if triton is not None:

    @triton.jit
    def _beliefs(classes, held, column, each, floor, label, M: tl.constexpr):
        """Return the beliefs before the update, and whether each class is kept."""
        before = tl.zeros_like(column).to(tl.float32) + each
        kept = column < 0
        for j in range(M):
            found = column == tl.load(classes + j)
            value = tl.load(held + j) + floor
            if j == 0:
                value += label
            before = tl.where(found, value, before)
            kept = kept | found
        return before, kept

    @triton.jit(
        do_not_specialize=["n"], do_not_specialize_on_alignment=["index", "weight"]
    )
    def _step(
        logits,
        classes,
        held,
        each,
        floor,
        label,
        mass,
        weight,
        losses,
        gradient,
        maxima,
        stats,
        numbers,
        n,
        STRIDE: tl.constexpr,
        SHARPEN: tl.constexpr,
        K: tl.constexpr,
        M: tl.constexpr,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
        GROUP: tl.constexpr,
    ):
        """Perform the step for ROWS samples, BLOCK classes at a time."""
        evidence_sum = tl.load(numbers)
        sharpness = tl.load(numbers + 1)
        smoothing = tl.load(numbers + 2)
        sample = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        lane = tl.max_contiguous(tl.arange(0, BLOCK), 4)[None, :]
        in_batch = sample < n
        # Samples past the end repeat the work of the last one, and store nothing.
        row = tl.minimum(sample, n - 1)
        scale = 1.0 / n
        if weight is not None:
            scale *= tl.load(weight + row).to(tl.float32)
        logits += row * STRIDE
        gradient += row * K
        classes += row * M
        held += row * M
        each = tl.load(each + row)
        floor = tl.load(floor + row)
        label = tl.load(label + row)
        mass = tl.load(mass + row)

        # As in the dense kernel, each lane computes its own sums of both softmaxes.
        high = tl.full([ROWS, BLOCK], -3.4028234663852886e38, tl.float32)
        lowest = tl.full([ROWS, BLOCK], float("inf"), tl.float32)
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        sharp_total = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, K, BLOCK):
            column = start + lane
            inside = column < K
            z = tl.load(logits + column, inside, other=-float("inf")).to(tl.float32)
            lowest = tl.minimum(lowest, tl.where(inside, z, float("inf")))
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
        else:
            sharp_total = total
        log_total = tl.log(total)
        finite = (lowest - highest - log_total > -float("inf")) & (mass < float("inf"))

        # The reciprocal of the number for an infinite prior is not a normal number.
        unit = 2.3283064365386963e-10
        share = (1 - smoothing) / (mass * unit)
        uniform = smoothing / K
        sharp_weight = evidence_sum / sharp_total
        terms = tl.zeros([ROWS, BLOCK], tl.float32)
        best = tl.full([ROWS, BLOCK], -1.0, tl.float32)
        for start in range(0, K, BLOCK):
            column = start + lane
            inside = column < K
            z = tl.load(logits + column, inside, other=-float("inf")).to(tl.float32)
            before, kept = _beliefs(
                classes,
                held,
                column + tl.zeros_like(row).to(tl.int32),
                each + floor,
                floor,
                label,
                M,
            )
            log_proba = z - highest - log_total
            proba = tl.exp(log_proba)
            if SHARPEN:
                evidence = sharp_weight * tl.exp(sharpness * (z - highest))
            else:
                evidence = evidence_sum * proba
            target = ((before + evidence) * unit) * share + uniform
            slope = (proba - target) * scale
            terms += tl.where(inside, target * log_proba, 0.0)
            best = tl.maximum(best, tl.where(inside & (kept == 0), evidence, -1.0))
            tl.store(
                gradient + column,
                slope.to(gradient.dtype.element_ty),
                mask=inside & in_batch,
            )
        loss = -scale * tl.sum(terms, axis=1, keep_dims=True)
        tl.store(losses + row, loss, mask=in_batch)
        groups: tl.constexpr = BLOCK // GROUP
        best = tl.max(tl.reshape(best, [ROWS, groups, GROUP]), axis=2)
        group = tl.arange(0, groups)[None, :]
        tl.store(maxima + row * groups + group, best, mask=in_batch)
        tl.store(stats + row * 3, highest, mask=in_batch)
        tl.store(stats + row * 3 + 1, sharp_weight, mask=in_batch)
        tl.store(stats + row * 3 + 2, tl.where(finite, 1.0, 0.0), mask=in_batch)


def posterior_step(
    logits: Tensor,
    rows: CompactRows,
    visits: Tensor,
    index: Tensor,
    weight: Tensor | None,
    rule: UpdateRule,
    prior: CompactPrior,
    numbers: Tensor | None = None,
    sharpen: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel with a rule, and keep the classes with the most evidence.

    Other parameters and results are those of :func:`skbsd._compact.posterior_step`.

    Parameters
    ----------
    numbers : Tensor of shape (4,), optional
        The fields of the rule on the device; by default they are copied there. A CUDA
        graph reads their current values when it is replayed.
    sharpen : bool, optional
        Whether to apply the sharpness; by default, if it is not 1.
    """
    if numbers is None:
        numbers = numbers_of(rule, logits.device)
    if sharpen is None:
        sharpen = rule.sharpness != 1
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    n_kept = rows.classes.shape[1]
    discount = numbers[3]
    before = read(rows, index, torch.float32)
    visited = visits.index_select(0, index)
    left = prior.left(visited + 1, torch.float32)
    held = discount * before.held
    each = discount * before.rest / max(1, prior.n_classes - n_kept)
    total = discount * before.total + numbers[0]
    losses, gradient, maxima, stats = _launch(
        logits,
        before.classes.int(),
        held,
        each,
        left * prior.floor,
        left * (prior.strength - prior.floor),
        left * prior.total + total,
        weight,
        numbers,
        sharpen,
    )
    highest, factor, finite = stats.unsqueeze(2).unbind(1)
    sharpness = numbers[1] if sharpen else 1.0

    def evidence(columns: Tensor) -> Tensor:
        z = logits.gather(1, columns).float()
        return factor * torch.exp(sharpness * (z - highest))

    held = held + evidence(before.classes)
    new = Evidence(before.classes, held, total, before.rest)
    if n_kept < prior.n_classes:
        columns = _columns(maxima, n_kept - 1, prior.n_classes)
        outside = columns >= prior.n_classes
        columns = columns.clamp(max=prior.n_classes - 1)
        found = evidence(columns) + each.unsqueeze(1)
        # A loop over kept classes, as comparing all at once would need much memory.
        for j in range(n_kept):
            outside = outside | (columns == before.classes[:, j : j + 1])
        new = keep_best(new, columns, found.masked_fill(outside, -1.0))
    chosen = finite.squeeze(1) > 0
    write(rows, index, new, visited, chosen)
    visits.index_add_(0, index, chosen.to(visits.dtype))
    return losses.sum(), gradient


def _launch(
    logits: Tensor,
    classes: Tensor,
    held: Tensor,
    each: Tensor,
    floor: Tensor,
    label: Tensor,
    mass: Tensor,
    weight: Tensor | None,
    numbers: Tensor,
    sharpen: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernel; return losses, gradient, maxima of groups and statistics.

    The statistics determine the evidence. The function is long because the kernel has
    many arguments.
    """
    n, n_classes = logits.shape
    whole = max(GROUP, triton.next_power_of_2(n_classes))
    block = whole if whole <= LONGEST_ROW else CHUNK
    tile = max(1, TILE // block)
    losses = logits.new_empty(n, dtype=torch.float32)
    gradient = logits.new_empty(n, n_classes)
    maxima = logits.new_empty(n, block // GROUP, dtype=torch.float32)
    stats = logits.new_empty(n, 3, dtype=torch.float32)
    with torch.cuda.device_of(logits):
        _step[(triton.cdiv(n, tile),)](
            logits,
            classes,
            held,
            each,
            floor,
            label,
            mass,
            None if weight is None else weight.contiguous(),
            losses,
            gradient,
            maxima,
            stats,
            numbers,
            n,
            STRIDE=logits.stride(0),
            SHARPEN=sharpen,
            K=n_classes,
            M=classes.shape[1],
            ROWS=tile,
            BLOCK=block,
            GROUP=GROUP,
            num_warps=max(1, min(tile * block // 256, 16 if torch.version.hip else 32)),
            enable_fp_fusion=True,
        )
    return losses, gradient, maxima, stats


def _columns(maxima: Tensor, n: int, n_classes: int) -> Tensor:
    """Return the classes of the groups with the largest maxima."""
    n_groups = maxima.shape[1]
    best = maxima.topk(min(n, n_groups), dim=1, sorted=False).indices
    block = n_groups * GROUP
    starts = torch.arange(0, n_classes, block, device=maxima.device)
    within = torch.arange(GROUP, device=maxima.device)
    offsets = (starts.unsqueeze(1) + within).view(-1)
    return (GROUP * best.unsqueeze(2) + offsets).flatten(1)


def usable(logits: Tensor, rows: CompactRows, n_classes: int) -> bool:
    """Whether :func:`posterior_step` can take these tensors.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
    rows : CompactRows
    n_classes : int

    Returns
    -------
    bool
        False for unsupported types, on devices other than GPUs (except under Triton's
        interpreter), and if Triton is missing or does not work.
    """
    if not (logits.is_cuda or interpreted) or triton is None:
        return False
    kinds = {torch.float32, torch.float16, torch.bfloat16}
    return (
        logits.device == rows.values.device
        and logits.dtype in kinds
        and rows.total.dtype == torch.float32
        and (
            interpreted
            or _compiles(logits.device, logits.dtype, rows.values.shape[1], n_classes)
        )
    )


@functools.cache
def _compiles(
    device: torch.device, dtype: torch.dtype, n_kept: int, n_classes: int
) -> bool:
    """Whether a step succeeds, with and without sharpening."""
    logits = torch.zeros(1, n_classes, dtype=dtype, device=device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    classes = torch.arange(n_kept, device=device, dtype=index_dtype(n_classes))
    zeros = torch.zeros(1, n_kept, device=device)
    prior = CompactPrior(1.0, 0.5, 1.0, n_classes)
    try:
        for sharpness in (1.0, 2.0):
            rows = CompactRows(classes[None], zeros, zeros[:, 0], zeros[:, 1])
            rule = UpdateRule(sharpness=sharpness)
            posterior_step(logits, rows, index.int(), index, None, rule, prior)
    except Exception as error:  # no common type: a compiler or file may be missing
        warnings.warn(
            f"the kernel of the compact store does not run on {device} ({error!r}); "
            "PyTorch's operations are used instead, which are slower.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
