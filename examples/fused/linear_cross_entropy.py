"""The last layer of a language model and its loss in one op that never holds the logits.

    loss = mean over rows t of  log sum_v exp(l[t, v]) - l[t, target[t]]        l = x @ weight.T

x (T, D) are hidden states, weight (V, D) has one row a class (a word), and target (T,) says which
class is right. For 8,192 rows and 128,256 classes the logits l are 2.1 GB in bfloat16, and plain
ops keep them two or three times over, which is often more than all the rest of a training step.

Forward. A program owns BLOCK_T rows and walks over a stripe of classes. It forms a tile of logits
in registers and folds it into two numbers a row, the largest logit so far and the sum of
exp(l - largest), from which the logits' log-sum-exp follows in the end; the target's logit is
picked up in passing. A second, small kernel joins the stripes and averages the rows. What is kept
for backward is lse, one number a row.

Backward. With p = exp(l - lse), the softmax, and g the gradient of the loss,

    dl = (p - [v = target]) g / count           dx = dl @ weight           dweight = dl.T @ x

Each of the two products sums over an axis that the other one keeps. A kernel that formed them
straight from tiles of logits would need the logits, which cost D multiplications each, again for
every piece of D whose sums fit in registers. So the classes are taken in bounded chunks instead:
one kernel forms dl for a chunk, then trident's matrix product takes it twice. That gives rows of
dweight which are complete, and another term of dx. The logits are formed twice in all, and there
are no atomics: the same call gives the same bits. dl is rounded to x's dtype, as in plain ops.

Memory on the device, beside operands and gradients: dl of T x max(D, 1024) numbers (as large as x
for D >= 1024), 4 T D bytes more for a dx that is accumulated in float32 where x is of a half type,
and a few numbers a row. Where V is larger than that, nothing has T x V elements.

On the CPU the body does the same with BLOCK_ROWS rows of logits at a time: ``Rows`` keeps none
of them for backward but forms them again. Where a gradient is itself differentiated, the tape
records the logits of every block: second derivatives hold them all. ``--bench`` measures the peak.

Source: the running maximum is that of Milakov and Gimelshein, "Online normalizer calculation for
softmax" (2018); Wijmans and others, "Cut your losses in large-vocabulary language models" (2024),
do without logits altogether, and Liger-Kernel's fused linear cross entropy in chunks of rows.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
from _bench import bench, main

import trident
from trident import dtypes
from trident.errors import DTypeError, IndexBoundsError, wrong
from trident.kernels.cross_entropy import check_target
from trident.kernels.layout import copy
from trident.kernels.matmul import matmul
from trident.lang import cdiv, tl

BLOCK_ROWS = 128  # rows of logits that the CPU holds at a time
PROGRAMS = 264  # that share the tiles of logits in forward: two a multiprocessor of an H100
TILES = {  # bytes of a number: BLOCK_T, BLOCK_V, BLOCK_D, warps, stages
    2: (128, 128, 32, 8, 3),
    4: (64, 64, 16, 8, 2),
    8: (64, 64, 16, 8, 2),
}


@trident.jit
def logits_tile(
    x_rows,  # (BLOCK_T,) pointers to rows of x
    w_rows,  # (BLOCK_V,) pointers to rows of weight
    row_mask,  # (BLOCK_T,)
    class_mask,  # (BLOCK_V,)
    d,
    x_step,
    w_step,
    WIDEN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    """x @ weight.T for some rows and classes: (BLOCK_T, BLOCK_V), in the type ACC."""
    tile = tl.zeros((x_rows.shape[0], w_rows.shape[0]), ACC)
    for first in range(0, d, BLOCK_D):
        k = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        mask = row_mask[:, None] & (k < d)[None, :]
        x = tl.load(x_rows[:, None] + k[None, :] * x_step, mask=mask, other=0.0)
        mask = (k < d)[:, None] & class_mask[None, :]
        w = tl.load(w_rows[None, :] + k[:, None] * w_step, mask=mask, other=0.0)
        if WIDEN:  # Triton's interpreter multiplies the raw bits of half types
            x, w = x.to(ACC), w.to(ACC)
        tile = tl.dot(x, w, tile, input_precision="ieee", out_dtype=ACC)
    return tile


@trident.kernel(strided=("x_ptr", "weight_ptr", "target_ptr"))
def forward_kernel(
    x_ptr,  # (n_rows, d), any strides
    weight_ptr,  # (n_classes, d), any strides
    target_ptr,  # (n_rows,), any stride
    part_ptr,  # (stripes, n_rows): log-sum-exp over the classes of a stripe
    chosen_ptr,  # (n_rows,): the target's logit; not written where the target is no class
    n_rows,
    n_classes,
    d,
    width,  # classes of a stripe, a multiple of BLOCK_V
    x_row,
    x_step,
    w_row,
    w_step,
    target_step,
    WIDEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    ACC: tl.constexpr = part_ptr.dtype.element_ty
    stripe = tl.program_id(1).to(tl.int64)
    begin, end = stripe * width, tl.minimum((stripe + 1) * width, n_classes)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = rows < n_rows
    target = tl.load(target_ptr + rows * target_step, mask=inside, other=-1).to(tl.int64)
    top = tl.full((BLOCK_T,), -1e37, ACC)  # finite: -inf - top must not be NaN
    total = tl.zeros((BLOCK_T,), ACC)
    chosen = tl.zeros((BLOCK_T,), ACC)
    for first in range(begin, end, BLOCK_V):
        classes = first + tl.arange(0, BLOCK_V)
        real = classes < n_classes
        logits = logits_tile(
            x_ptr + rows * x_row, weight_ptr + classes * w_row, inside, real, d, x_step, w_step,
            WIDEN, BLOCK_D, ACC,
        )  # fmt: skip
        chosen += tl.sum(tl.where(classes[None, :] == target[:, None], logits, 0.0), 1)
        logits = tl.where(real[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        top = higher
    tl.store(part_ptr + stripe * n_rows + rows, top + tl.log(total), mask=inside)
    tl.store(chosen_ptr + rows, chosen, mask=inside & (target >= begin) & (target < end))


@trident.kernel(strided=("target_ptr",))
def mean_kernel(
    part_ptr,  # (stripes, n_rows)
    chosen_ptr,  # (n_rows,)
    target_ptr,  # (n_rows,), any stride
    out_ptr,  # (): the mean loss
    lse_ptr,  # (n_rows,): NaN where the target is neither a class nor ignored
    count_ptr,  # (): the number of targets that are not ignored
    n_rows,
    n_classes,
    stripes,
    target_step,
    ignore_index,
    BLOCK: tl.constexpr,
):
    losses = tl.zeros((BLOCK,), lse_ptr.dtype.element_ty)
    counts = tl.zeros_like(losses)
    for first in range(0, n_rows, BLOCK):
        rows = (first + tl.arange(0, BLOCK)).to(tl.int64)
        inside = rows < n_rows
        lse = tl.full((BLOCK,), -1e37, losses.dtype)
        for _stripe in range(stripes):
            part = tl.load(part_ptr + rows, mask=inside, other=0.0)
            top = tl.maximum(lse, part)
            lse = top + tl.log(tl.exp(lse - top) + tl.exp(part - top))
            rows += n_rows
        rows -= n_rows * stripes
        target = tl.load(target_ptr + rows * target_step, mask=inside, other=0).to(tl.int64)
        used = inside & (target != ignore_index)
        known = (target >= 0) & (target < n_classes)
        chosen = tl.load(chosen_ptr + rows, mask=used & known, other=0.0)
        lse = tl.where(used & (known == 0), float("nan"), lse)
        losses += tl.where(used, lse - chosen, 0.0)
        counts += tl.where(used, 1.0, 0.0)
        tl.store(lse_ptr + rows, lse, mask=inside)
    count = tl.sum(counts, 0)
    tl.store(count_ptr, count)
    tl.store(out_ptr, (tl.sum(losses, 0) / count).to(out_ptr.dtype.element_ty))


@trident.kernel(strided=("x_ptr", "weight_ptr", "target_ptr", "dlogits_ptr"))
def dlogits_kernel(
    g_ptr,  # (): the gradient of the loss
    x_ptr,  # (n_rows, d), any strides
    weight_ptr,  # (n_classes, d), any strides: the chunk's rows of weight
    target_ptr,  # (n_rows,), any stride
    lse_ptr,  # (n_rows,)
    count_ptr,  # ()
    dlogits_ptr,  # (n_rows, n_classes), rows dl_row apart
    n_rows,
    n_classes,
    d,
    first_class,  # of the chunk, among all classes
    x_row,
    x_step,
    w_row,
    w_step,
    target_step,
    dl_row,
    ignore_index,
    WIDEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    classes = tl.program_id(1).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside, real = rows < n_rows, classes < n_classes
    logits = logits_tile(
        x_ptr + rows * x_row, weight_ptr + classes * w_row, inside, real, d, x_step, w_step,
        WIDEN, BLOCK_D, ACC,
    )  # fmt: skip
    target = tl.load(target_ptr + rows * target_step, mask=inside, other=0).to(tl.int64)
    lse = tl.load(lse_ptr + rows, mask=inside, other=0.0)
    scale = tl.load(g_ptr).to(ACC) / tl.load(count_ptr)
    hit = (first_class + classes)[None, :] == target[:, None]
    dlogits = (tl.exp(logits - lse[:, None]) - tl.where(hit, 1.0, 0.0).to(ACC)) * scale
    dlogits = tl.where((target != ignore_index)[:, None], dlogits, 0.0)
    at = dlogits_ptr + rows[:, None] * dl_row + classes[None, :]
    mask = inside[:, None] & real[None, :]
    tl.store(at, dlogits.to(dlogits_ptr.dtype.element_ty), mask=mask)


def tile(x):
    """Block sizes and launch options for x's dtype."""
    block_t, block_v, block_d, warps, stages = TILES[x.dtype.itemsize]
    return {
        "BLOCK_T": block_t,
        "BLOCK_V": block_v,
        "BLOCK_D": block_d,
        "WIDEN": x.device.interpreted and x.dtype in dtypes.HALVES,
        "num_warps": warps,
        "num_stages": stages,
    }


def forward(out, lse, count, x, weight, target, *, ignore_index):
    (n_rows, d), n_classes = x.shape, weight.shape[0]
    check_target("linear_cross_entropy", target, n_classes, ignore_index)
    options = tile(x)
    row_tiles = cdiv(n_rows, options["BLOCK_T"])
    class_tiles = cdiv(n_classes, options["BLOCK_V"])
    width = max(2, cdiv(row_tiles * class_tiles, PROGRAMS)) * options["BLOCK_V"]
    stripes = cdiv(n_classes, width)
    part = x.device.empty((stripes, n_rows), lse.dtype)
    chosen = x.device.empty((n_rows,), lse.dtype)
    forward_kernel[(row_tiles, stripes)](
        x, weight, target, part, chosen, n_rows, n_classes, d, width,
        *x.strides, *weight.strides, *target.strides, **options,
    )  # fmt: skip
    mean_kernel[(1,)](
        part, chosen, target, out, lse, count, n_rows, n_classes, stripes, *target.strides,
        ignore_index, BLOCK=512,
    )  # fmt: skip


def backward(dx, dweight, g, x, weight, target, lse, count, *, ignore_index):
    (n_rows, d), n_classes = x.shape, weight.shape[0]
    # small in the interpreter, so that the small arrays of tests are several chunks too
    chunk = min(n_classes, max(64 if x.device.interpreted else 1024, d))
    scratch = x.device.empty((n_rows, chunk), x.dtype)
    total = dx  # where terms of dx are added up: float32 where dx is of a half type
    if dx is not None and dx.dtype is not lse.dtype:
        total = x.device.empty(dx.shape, lse.dtype)
    options = tile(x)
    for first in range(0, n_classes, chunk):
        w = weight[first : first + chunk]
        n = w.shape[0]
        dlogits = scratch[:, :n]
        dlogits_kernel[(cdiv(n_rows, options["BLOCK_T"]), cdiv(n, options["BLOCK_V"]))](
            g, x, w, target, lse, count, dlogits, n_rows, n, d, first,
            *x.strides, *w.strides, *target.strides, chunk, ignore_index, **options,
        )  # fmt: skip
        if dx is not None:  # added where it is read: one program has both
            matmul(total, dlogits, w, c=total if first else None)
        if dweight is not None:
            matmul(dweight[first : first + n], dlogits.swapaxes(0, 1), x)
    if total is not dx:
        copy(dx, total)


class Rows(trident.autograd.Function):
    """The sum of the rows' losses, from BLOCK_ROWS rows of logits at a time.

    Backward forms the logits again, so that none are kept. It is written in ops: the tape can
    differentiate it once more.
    """

    @staticmethod
    def forward(ctx, x, weight, target, ignore_index):
        if any(ctx.needs_input_grad):  # False for the symbols that the op's shape is asked with
            ctx.save_for_backward(x, weight, target)
        ctx.ignore_index = ignore_index
        loss = 0.0
        for rows, classes in blocks(x, target):
            logits = trident.linear(rows, weight)
            loss = loss + trident.cross_entropy(
                logits, classes, ignore_index=ignore_index, reduction="sum"
            )
        return loss

    @staticmethod
    def backward(ctx, g):
        x, weight, target = ctx.saved_tensors
        every = trident.arange(weight.shape[0], device=weight.device)
        dx, dweight = [], 0.0
        for rows, classes in blocks(x, target):
            classes = trident.unsqueeze(classes, 1)
            p = trident.softmax(trident.linear(rows, weight), -1)
            dlogits = g * (p - (every == classes))
            dlogits = trident.where(classes == ctx.ignore_index, 0.0, dlogits)
            dx.append(dlogits @ weight)
            dweight = dweight + dlogits.T @ rows
        return trident.cat(dx), dweight, None, None


def blocks(x, target):
    """(rows of x, their targets), BLOCK_ROWS at a time; one empty block where x has no rows."""
    return zip(trident.split(x, BLOCK_ROWS), trident.split(target, BLOCK_ROWS))


@trident.fused(
    forward=forward,
    backward=backward,
    residuals={
        "lse": lambda x, *_, **__: x.shape[:1],
        "count": lambda *_, **__: (),
    },
    method=False,
)
def linear_cross_entropy(x, weight, target, *, ignore_index=-100):
    """Mean of -log softmax(x @ weight.T)[target] over the targets that are not ``ignore_index``.

    x (T, D) and weight (V, D) of one floating dtype, target (T,) int64 -> scalar of x's dtype. Half
    types are computed in float32 and rounded once. Without a target to average over the loss is
    NaN, as in ``cross_entropy``. Raises ShapeError, DTypeError, and IndexBoundsError for a target
    outside of [0, V).

    >>> x, weight = trident.tensor([[1.0, 2.0], [0.0, 1.0]]), trident.eye(2)
    >>> linear_cross_entropy(x, weight, trident.tensor([1, 0]))
    tensor(0.8133)
    """
    wide = x.dtype.compute
    wide_x, wide_weight = trident.to_dtype(x, dtype=wide), trident.to_dtype(weight, dtype=wide)
    loss = Rows.apply(wide_x, wide_weight, target, ignore_index)
    count = trident.sum(trident.to_dtype(target != ignore_index, dtype=wide))
    return trident.to_dtype(loss / count, dtype=x.dtype)


@linear_cross_entropy.check
def _(x, weight, target, *, ignore_index):
    name, got = "linear_cross_entropy", f"{tuple(x.shape)} and {tuple(weight.shape)}"
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or not weight.shape[0]:
        expected = "x must have shape (T, D) and weight (V, D), V > 0"
        raise wrong(name, expected, got=got, hint="join batch and time with x.reshape(-1, D)")
    if x.dtype is not weight.dtype or not x.dtype.is_floating_point:
        got = f"{x.dtype.name} and {weight.dtype.name}"
        expected = "x and weight must have one floating dtype"
        raise wrong(name, expected, got=got, error=DTypeError, hint="convert one with .to(dtype)")
    if target.dtype is not trident.int64:
        expected = "target must hold class indices (int64)"
        raise wrong(
            name, expected, got=target.dtype.name, error=DTypeError, hint="convert with .long()"
        )
    if tuple(target.shape) != tuple(x.shape[:1]):
        expected = f"target must have shape {tuple(x.shape[:1])}, one class for each row of x"
        raise wrong(name, expected, got=tuple(target.shape))
    if not target.is_cuda:  # on cuda the launcher looks
        classes, seen = weight.shape[0], target.numpy()
        bad = seen[(seen != ignore_index) & ((seen < 0) | (seen >= classes))]
        if bad.size:
            expected = f"target must lie in [0, {classes}) or be ignore_index={ignore_index}"
            raise wrong(name, expected, got=int(bad[0]), error=IndexBoundsError)


@linear_cross_entropy.samples
def _(draw):
    """Partial blocks, several programs and stripes; the CPU's blocks of rows."""
    t = draw.choice([1, draw.integer(2, 20), BLOCK_ROWS + draw.integer(1, 30)])
    v = draw.choice([1, draw.integer(2, 30), draw.integer(129, 200)])
    d = draw.choice([0, 1, draw.integer(2, 20), draw.integer(33, 40)])
    ignore_index = draw.choice([-100, 0]) if v > 1 else -100
    target = np.array(draw.ints((t,), 0, v))
    target[1::3] = ignore_index
    target[0] = v - 1  # a mean over no target is NaN
    operands = draw.tensor((t, d)), draw.tensor((v, d)), draw.layout(target)
    return operands, {"ignore_index": ignore_index}


def example():
    x = trident.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]], requires_grad=True)
    weight = trident.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = linear_cross_entropy(x, weight, trident.tensor([1, 0, -100]))
    loss.backward()
    print(loss, x.grad, weight.grad, sep="\n")


def bench_variants(device):
    t, d, v = 1024, 256, 16384
    x = trident.randn(t, d, device=device, requires_grad=True)
    weight = (trident.randn(v, d, device=device) * d**-0.5).requires_grad_()
    target = trident.randint(0, v, (t,), device=device)

    def step(loss_of):
        return lambda: trident.autograd.grad(loss_of(x, weight, target), (x, weight))

    variants = {
        "linear_cross_entropy": step(linear_cross_entropy),
        "linear, cross_entropy": step(lambda x, w, t: trident.cross_entropy(x @ w.T, t)),
    }
    title = f"loss and both gradients, T {t}, D {d}, V {v}, float32 on {device}"
    bench(title, variants, flops=6 * t * d * v, rounds=5)
    if device == "cpu":  # gradients included, 18 MB here
        for name, call in variants.items():
            print(f"  {name:<28}{peak_bytes(call) / 1e6:>7.1f} MB at the peak")
        print(f"  {'the logits alone':<28}{4e-6 * t * v:>7.1f} MB")


def peak_bytes(call):
    """The most bytes that numpy holds during a call, above what it held before."""
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main(linear_cross_entropy, bench_variants, example)
