"""Products with weights in int8: the scale is one multiplication at the end, in registers.

    int8_matmul    y = (x @ qweight^T) scale + bias            x (M, K) floating
    w8a8_matmul    y = (qx @ qweight^T) x_scale scale + bias   qx (M, K) int8, x_scale (M,)

qweight (N, K) is int8 and scale (N,) has one number for each output channel, so that the weight is
about qweight[n] scale[n] (``quantize`` makes both). The scale does not depend on k and leaves the
sum: the kernel multiplies by integers, and only then column n by scale[n]. The weight is read at a
quarter of float32's bytes, half of bfloat16's, and no dequantised copy of it is ever in memory.
That is what a layer waits for at few rows.

In ``int8_matmul`` an int8 tile is widened to x's dtype in registers, which loses nothing: bfloat16
has 8 bits of precision, float16 11. In ``w8a8_matmul`` the activations are int8 too, quantised row
by row, and the tensor cores sum in int32; the epilogue then has a number for each row and one for
each column. Both round once, when y is written.

Backward of ``int8_matmul`` is the same kernel: in dx = g (qweight scale) the sum runs over the
output channels, so that there the scale belongs to the rows of the int8 tile and is the third of
the kernel's optional scales. That is the gradient which adapters on a frozen quantised model need.
dscale, which is seldom wanted, is the column sum of g (x @ qweight^T); qweight is an integer and
has none. ``w8a8_matmul`` is for inference: its gradients are those of its body.

On the CPU the body widens the weight in each call: what int8 saves there is memory, not time.

Source: Dettmers et al., "LLM.int8(): 8-bit matrix multiplication for transformers at scale",
arXiv:2208.07339, for scales by row of x and by row of the weight.
"""

from __future__ import annotations

from _bench import bench, main

import trident
from trident.errors import wrong
from trident.kernels.reduce import SUM, reduce
from trident.lang import cdiv, next_power_of_2, tl

STRIDED = ("a_ptr", "w_ptr", "k_scale_ptr", "m_scale_ptr", "n_scale_ptr", "bias_ptr", "times_ptr")


@trident.kernel(strided=STRIDED)
def product_kernel(
    a_ptr,  # (m, k), any strides: floating, or int8
    w_ptr,  # (k, n), any strides: int8
    k_scale_ptr,  # (k,), any stride, or None: one number a row of w
    m_scale_ptr,  # (m,), any stride, or None: one number a row of the result
    n_scale_ptr,  # (n,), any stride, or None: one number a column
    bias_ptr,  # (n,), any stride, or None
    times_ptr,  # (m, n), any strides, or None: a factor for each element
    out_ptr,  # (m, n) contiguous
    m,
    n,
    k,
    a_m,
    a_k,
    w_k,
    w_n,
    k_step,
    m_step,
    n_step,
    bias_n,
    times_m,
    times_n,
    TYPE: tl.constexpr,  # what the tensor cores multiply
    ACC: tl.constexpr,  # what they sum in
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    col = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    step = tl.arange(0, BLOCK_K)
    in_m, in_n = row < m, col < n
    a_ptrs = a_ptr + row[:, None] * a_m + step[None, :] * a_k
    w_ptrs = w_ptr + step[:, None] * w_k + col[None, :] * w_n
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(0, k, BLOCK_K):
        in_k = step < k - start
        a = tl.load(a_ptrs, mask=in_m[:, None] & in_k[None, :], other=0)
        w = tl.load(w_ptrs, mask=in_k[:, None] & in_n[None, :], other=0)
        if k_scale_ptr is not None:
            scale = tl.load(k_scale_ptr + (start + step) * k_step, mask=in_k, other=0)
            w = (w.to(ACC) * scale[:, None]).to(a.dtype)
        acc = tl.dot(a.to(TYPE), w.to(TYPE), acc, input_precision="ieee", out_dtype=ACC)
        a_ptrs += BLOCK_K * a_k
        w_ptrs += BLOCK_K * w_k
    y = acc
    if m_scale_ptr is not None:
        y = y * tl.load(m_scale_ptr + row * m_step, mask=in_m, other=0)[:, None]
    if n_scale_ptr is not None:
        y = y * tl.load(n_scale_ptr + col * n_step, mask=in_n, other=0)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + col * bias_n, mask=in_n, other=0).to(y.dtype)[None, :]
    mask = in_m[:, None] & in_n[None, :]
    if times_ptr is not None:
        times = tl.load(times_ptr + row[:, None] * times_m + col[None, :] * times_n, mask, other=0)
        y *= times.to(y.dtype)
    tl.store(out_ptr + row[:, None] * n + col[None, :], y.to(out_ptr.dtype.element_ty), mask)


def product(out, a, w, *, k_scale=None, m_scale=None, n_scale=None, bias=None, times=None):
    """out = ((a @ (w k_scale)) m_scale n_scale + bias) times, with any of the five left out."""
    (m, k), n = a.shape, w.shape[1]
    integer, half = a.dtype is trident.int8, a.dtype.itemsize == 2
    # the interpreter would multiply the raw bits of half types
    kind = a.dtype.compute if half and a.device.interpreted else a.dtype
    # without tensor cores (float32 in full precision, float64) both operands are in registers
    rows = min(max(next_power_of_2(m), 16), 64)
    cols, depth = (128, 64) if half or integer else (64, 16)
    product_kernel[cdiv(m, rows), cdiv(n, cols)](
        a, w, k_scale, m_scale, n_scale, bias, times, out, m, n, k, *a.strides, *w.strides,
        *(s.strides[0] if s is not None else 0 for s in (k_scale, m_scale, n_scale, bias)),
        *(times.strides if times is not None else (0, 0)),
        TYPE=kind, ACC=trident.int32 if integer else a.dtype.compute,
        BLOCK_M=rows, BLOCK_N=cols, BLOCK_K=depth, num_warps=8 if rows == 64 else 4,
    )  # fmt: skip


def forward(out, x, qweight, scale, bias):
    product(out, x, qweight.transpose((1, 0)), n_scale=scale, bias=bias)


def backward(dx, dscale, dbias, g, x, qweight, scale):
    if dx is not None:
        product(dx, g, qweight, k_scale=scale)
    if dscale is not None:
        terms = g.device.empty(g.shape, scale.dtype)
        product(terms, x, qweight.transpose((1, 0)), times=g)
        reduce(dscale, terms, over=(0,), kind=SUM)
    if dbias is not None:
        reduce(dbias, g, over=(0,), kind=SUM)


def check_shapes(op, K, qweight, scale, bias, compute):
    """Raise the user's error unless qweight (N, K), scale (N,) and bias (N,) fit together."""
    if qweight.ndim != 2 or qweight.shape[1] != K or qweight.dtype is not trident.int8:
        expected = f"qweight must have shape (N, {K}) and dtype int8"
        got = f"{tuple(qweight.shape)} {qweight.dtype.name}"
        raise wrong(op, expected, got=got, hint="make both with quantize(weight)")
    wanted = (qweight.shape[0],)
    if tuple(scale.shape) != wanted or scale.dtype is not compute:
        expected = f"scale must have shape {wanted}, the rows of qweight, and dtype {compute.name}"
        raise wrong(op, expected, got=f"{tuple(scale.shape)} {scale.dtype.name}")
    if bias is not None and tuple(bias.shape) != wanted:
        expected = f"bias must have shape {wanted}, the rows of qweight {tuple(qweight.shape)}"
        raise wrong(op, expected, got=tuple(bias.shape))


@trident.fused(forward=forward, backward=backward)
def int8_matmul(x, qweight, scale, bias=None):
    """(x @ qweight^T) scale + bias, a linear layer with an int8 weight.

    x (M, K), any floating dtype; qweight (N, K) int8; scale (N,) float32, or float64 for a float64
    x; bias (N,) or None. The result is (M, N) in x's dtype.

    >>> qweight, scale = quantize(trident.tensor([[1.0, -2.0], [0.5, 0.25]]))
    >>> int8_matmul(trident.tensor([[1.0, 1.0]]), qweight, scale)
    tensor([[-0.9921,  0.7520]])
    """
    # integers of up to 127 K: in float16 the sum could overflow before the scale makes it small
    wide = trident.to_dtype(x, dtype=x.dtype.compute)
    y = wide @ trident.t(trident.to_dtype(qweight, dtype=wide.dtype)) * scale
    y = y if bias is None else y + bias
    return trident.to_dtype(y, dtype=x.dtype)


@int8_matmul.check
def _(x, qweight, scale, bias):
    if x.ndim != 2 or not x.dtype.is_floating_point:
        raise wrong(
            "int8_matmul",
            "x must have shape (M, K) and a floating dtype",
            got=f"{tuple(x.shape)} {x.dtype.name}",
            hint="flatten other axes with x.reshape(-1, x.shape[-1])",
        )
    check_shapes("int8_matmul", x.shape[1], qweight, scale, bias, x.dtype.compute)
    if bias is not None and bias.dtype not in (x.dtype, x.dtype.compute):
        raise wrong("int8_matmul", f"bias must have dtype {x.dtype.name}", got=bias.dtype.name)


SIZES = [(3, 7, 5), (1, 130, 5), (70, 1, 6), (66, 9, 70), (0, 7, 5), (3, 0, 5), (3, 7, 0)]
"""(M, N, K) of the tests: partial and several blocks along every axis, and none."""


@int8_matmul.samples
def _(draw):
    M, N, K = draw.choice(SIZES)
    bias = draw.tensor((N,)) if draw.boolean() else None
    scale = draw.tensor((N,), draw.dtype.compute, 0.001, 0.02)
    return (draw.tensor((M, K)), draw.ints((N, K), -128, 128, trident.int8), scale, bias), {}


def w8a8_forward(out, qx, x_scale, qweight, scale, bias):
    product(out, qx, qweight.transpose((1, 0)), m_scale=x_scale, n_scale=scale, bias=bias)


@trident.fused(forward=w8a8_forward)
def w8a8_matmul(qx, x_scale, qweight, scale, bias=None, *, dtype=trident.float32):
    """(qx @ qweight^T) x_scale scale + bias, a linear layer in int8 throughout.

    qx (M, K) int8, K <= 131071; x_scale (M,); qweight (N, K) int8; scale (N,); bias (N,) or None.
    The scales are float32 (float64 where both are). The result is (M, N) in ``dtype``.

    >>> qx, x_scale = quantize(trident.tensor([[1.0, 1.0]]))
    >>> qweight, scale = quantize(trident.tensor([[1.0, -2.0], [0.5, 0.25]]))
    >>> w8a8_matmul(qx, x_scale, qweight, scale)
    tensor([[-0.9921,  0.7520]])
    """
    wide, whole = (trident.to_dtype(q, dtype=scale.dtype) for q in (qx, qweight))
    y = wide @ trident.t(whole) * trident.unsqueeze(x_scale, 1) * scale
    return trident.to_dtype(y if bias is None else y + bias, dtype=dtype)


@w8a8_matmul.check
def _(qx, x_scale, qweight, scale, bias, *, dtype):
    got = f"{tuple(qx.shape)} {qx.dtype.name}"
    if qx.ndim != 2 or qx.dtype is not trident.int8:
        hint = "make both with qx, x_scale = quantize(x)"
        raise wrong("w8a8_matmul", "qx must have shape (M, K) and dtype int8", got=got, hint=hint)
    if qx.shape[1] >= 2**31 // 128**2:
        raise wrong("w8a8_matmul", "K must be below 131072, or int32 sums may overflow", got=got)
    kind = x_scale.dtype
    if tuple(x_scale.shape) != (qx.shape[0],) or kind not in (trident.float32, trident.float64):
        expected = f"x_scale must have shape {(qx.shape[0],)}, the rows of qx, and dtype float32"
        raise wrong("w8a8_matmul", expected, got=f"{tuple(x_scale.shape)} {kind.name}")
    check_shapes("w8a8_matmul", qx.shape[1], qweight, scale, bias, kind)


@w8a8_matmul.samples
def _(draw):
    M, N, K = draw.choice(SIZES)
    qx, qweight = (draw.ints(shape, -128, 128, trident.int8) for shape in ((M, K), (N, K)))
    x_scale, scale = (draw.tensor((n,), draw.dtype.compute, 0.001, 0.02) for n in (M, N))
    bias = draw.tensor((N,)) if draw.boolean() else None
    return (qx, x_scale, qweight, scale, bias), {"dtype": draw.dtype}


def quantize(x):
    """(qx, scale): x (M, K) in int8, every row by the scale that takes its largest number to 127.

    qx[m, k] scale[m] differs from x[m, k] by at most half a scale. Rows are output channels of a
    weight (N, K), or the rows of activations. No gradient flows through it.

    >>> quantize(trident.tensor([[1.0, -2.0]]))[0]
    tensor([[  64, -127]], dtype=trident.int8)
    """
    wide = x.detach().to(x.dtype.compute)
    scale = wide.abs().amax(1) / 127
    whole = (wide / trident.where(scale > 0, scale, 1.0)[:, None]).round()
    return whole.clamp(-127, 127).to(trident.int8), scale  # the clamp is for subnormal scales


def bench_variants(device):
    K, N = 2048, 2048
    weight = trident.randn(N, K, device=device) / K**0.5
    qweight, scale = quantize(weight)
    for M in (1, 64):
        x = trident.randn(M, K, device=device)
        bench(
            f"{M} x {K} times {K} x {N}, {x.dtype.name}, {device}",
            {
                "float weight": lambda x=x: x @ weight.T,
                "int8_matmul": lambda x=x: int8_matmul(x, qweight, scale),
                "dequantise, then multiply": lambda x=x: x @ (qweight * scale[:, None]).T,
                "quantize, w8a8_matmul": lambda x=x: w8a8_matmul(*quantize(x), qweight, scale),
            },
            flops=2 * M * N * K,
        )


def example():
    """How much a layer's output changes when its weight, and its input too, become int8."""
    x, weight = trident.randn(64, 256), trident.randn(128, 256) / 16
    exact = x @ weight.T
    qweight, scale = quantize(weight)
    for name, y in (
        ("int8_matmul", int8_matmul(x, qweight, scale)),
        ("w8a8_matmul", w8a8_matmul(*quantize(x), qweight, scale)),
    ):
        print(f"{name}: relative error {((y - exact).norm() / exact.norm()).item():.2%}")


if __name__ == "__main__":
    main([int8_matmul, w8a8_matmul], bench_variants, example)
