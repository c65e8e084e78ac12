"""The numpy bodies of convolution and its two gradients, for any number of spatial axes.

All three are matrix products on unrolled windows, done for a few samples at a time so that the
windows stay in cache, the chunks split over the cores (numpy releases the GIL in copies and BLAS).

Where the first spatial axis has stride 1 it is not unrolled: the taps of that axis become rows of
the weight matrix, one product gives their images for every row of the padded input, and each image
is added to the output shifted by its tap. For a 5x5 kernel that copies 5 times less and lets BLAS
work on 5 times more rows. Measured on LeNet's layers, batch 64, 2 cores: 1.0 -> 0.8 ms forward,
1.1 -> 0.6 ms weight gradient, 2.4 (column scatter) -> 0.9 ms data gradient.
Source: the shift-and-add product is the idea of kn2row (Vasudevan et al., arXiv:1704.04428),
here along one axis only.

Depthwise convolution takes the same road, as a batch of small products: a multiply and add for each
tap was measured 2.2 to 3 times slower (16 x 64 x 28 x 28, 3x3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..lang import cdiv, next_power_of_2
from ..runtime import host_threads

Sizes = tuple[int, ...]

CHUNK_BYTES = 11 << 18  # scratch of one chunk: about one core's share of the caches
SERIAL_BYTES = 256 << 10  # less scratch than this in all: threads cost more than they give
BLAS_THREADS_FLOPS = 1 << 21  # a product this large is split by BLAS itself


def _in_chunks(task: Callable, n: int, sample_bytes: int, product: int) -> list:
    """``[task(start, stop), ...]`` over the samples, in order, on all cores where that pays.

    The chunks depend on the shapes alone, never on the number of cores, so sums over them keep
    their bits on every machine. ``product`` is M * N * K of one matrix product.
    """
    total = n * sample_bytes
    count = 1 if total <= SERIAL_BYTES else max(4, next_power_of_2(cdiv(total, CHUNK_BYTES)))
    step = max(1, cdiv(n, count))
    chunks = [(a, min(a + step, n)) for a in range(0, n, step)]
    workers = min(host_threads.get_num_threads(), len(chunks))
    if workers <= 1 or product >= BLAS_THREADS_FLOPS:
        return [task(a, b) for a, b in chunks]
    shares = host_threads.run(lambda i: [task(a, b) for a, b in chunks[i::workers]], workers)
    return [shares[i % workers][i // workers] for i in range(len(chunks))]


def _padded(x: np.ndarray, low: Sizes, high: Sizes) -> np.ndarray:
    """x (m, C, *size) with zeros around its spatial axes; a negative amount crops."""
    if not any(low) and not any(high):
        return x
    sizes = [s + a + b for s, a, b in zip(x.shape[2:], low, high)]
    out = np.zeros((*x.shape[:2], *sizes), x.dtype)
    keep = [slice(None)] * 2
    put = [slice(None)] * 2
    for s, a, b in zip(x.shape[2:], low, high):
        keep.append(slice(max(-a, 0), s + min(b, 0)))
        put.append(slice(max(a, 0), max(a, 0) + max(s + min(a, 0) + min(b, 0), 0)))
    out[tuple(put)] = x[tuple(keep)]
    return out


def windows(x: np.ndarray, taps: Sizes, rows: Sizes, stride: Sizes, dilation: Sizes) -> np.ndarray:
    """The view (m, C, *taps, *rows) of x (m, C, *size) with x[stride*r + dilation*t] at (t, r)."""
    spatial = x.strides[2:]
    return as_strided(
        x,
        (*x.shape[:2], *taps, *rows),
        (
            *x.strides[:2],
            *(st * d for st, d in zip(spatial, dilation)),
            *(st * s for st, s in zip(spatial, stride)),
        ),
        writeable=False,
    )


def _shifts(kernel: Sizes, stride: Sizes, padded: int, rows: int) -> bool:
    """Whether the first spatial axis is shifted instead of unrolled.

    The product then also covers the rows that no output needs: at most half as many again.
    """
    return len(kernel) > 1 and stride[0] == 1 and kernel[0] > 1 and 2 * padded <= 3 * rows


def _correlate(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    size: Sizes,
    low: Sizes,
    high: Sizes,
    stride: Sizes,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    """out[n, o, p] = bias[o] + sum over c, t of w[o, c, t] * padded_x[n, c, s*p + dilation*t]."""
    n = x.shape[0]
    kernel = w.shape[2:]
    out = np.empty((n, w.shape[0], *size), x.dtype)
    og, cg = w.shape[0] // groups, w.shape[1]
    padded = x.shape[2] + low[0] + high[0]
    shift = _shifts(kernel, stride, padded, size[0])
    k0, taps, rows = 1, kernel, size
    matrix = w.reshape(groups, og, -1)
    if shift:
        k0, taps, rows = kernel[0], (1, *kernel[1:]), (padded, *size[1:])
        split = w.reshape(groups, og, cg, k0, -1).transpose(0, 3, 1, 2, 4)
        matrix = np.ascontiguousarray(split).reshape(groups, k0 * og, -1)
    depth = cg * math.prod(taps)
    area, line, pixels = math.prod(rows), math.prod(size[1:]), math.prod(size)

    def task(a: int, b: int) -> None:
        m = b - a
        view = windows(_padded(x[a:b], low, high), taps, rows, stride, dilation)
        columns = np.ascontiguousarray(view).reshape(m, groups, depth, area)
        result = out[a:b].reshape(m, groups, og, pixels)
        if shift:
            image = np.matmul(matrix, columns).reshape(m, groups, k0, og, area)
            pieces = [
                image[:, :, i, :, i * dilation[0] * line : i * dilation[0] * line + pixels]
                for i in range(k0)
            ]
            np.add(pieces[0], pieces[1], out=result)
            for piece in pieces[2:]:
                result += piece
        else:
            np.matmul(matrix, columns, out=result)
        if bias is not None:
            result += bias.reshape(groups, og, 1)

    scratch = (groups * (depth + (k0 * og if shift else 0)) * area) * x.itemsize
    _in_chunks(task, n, scratch, k0 * og * depth * area)
    return out


def convolution(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    """x (n, groups*c, *in), w (groups*o, c, *kernel) -> (n, groups*o, *size)."""
    return _correlate(x, w, bias, size, padding, padding, stride, dilation, groups)


def conv_data_grad(
    g: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    input_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    """g (n, groups*o, *out), w (groups*o, c, *kernel) -> (n, groups*c, *input_size).

    With stride 1 it is the correlation of the padded gradient with the mirrored weight; otherwise
    the columns w^T g are added to the places that they were read from.
    """
    n, kernel, size = g.shape[0], w.shape[2:], g.shape[2:]
    og, cg = w.shape[0] // groups, w.shape[1]
    if all(s == 1 for s in stride):
        split = w.reshape(groups, og, cg, *kernel).swapaxes(1, 2)
        backwards: tuple[Any, ...] = (..., *(slice(None, None, -1) for _ in kernel))
        mirrored = split[backwards]
        reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel))
        low = tuple(r - p for r, p in zip(reach, padding))
        high = tuple(i + r - lo - o for i, r, lo, o in zip(input_size, reach, low, size))
        mirrored = np.ascontiguousarray(mirrored).reshape(groups * cg, og, *kernel)
        return _correlate(g, mirrored, bias, input_size, low, high, stride, dilation, groups)

    taps, pixels = math.prod(kernel), math.prod(size)
    channels = groups * cg
    out = np.empty((n, channels, *input_size), g.dtype)
    matrix = w.reshape(groups, og, cg * taps).swapaxes(1, 2)
    padded = tuple(i + 2 * p for i, p in zip(input_size, padding))
    inside = tuple(slice(p, p + i) for p, i in zip(padding, input_size))

    def task(a: int, b: int) -> None:
        m = b - a
        gradient = np.ascontiguousarray(g[a:b]).reshape(m, groups, og, pixels)
        columns = np.matmul(matrix, gradient).reshape(m, channels, *kernel, *size)
        total = np.zeros((m, channels, *padded), g.dtype)
        for tap in np.ndindex(*kernel):
            place = tuple(
                slice(t * d, t * d + (o - 1) * s + 1, s)
                for t, d, o, s in zip(tap, dilation, size, stride)
            )
            target = total[(slice(None), slice(None), *place)]
            target += columns[(slice(None), slice(None), *tap)]
        if bias is not None:
            total += bias.reshape(channels, *(1 for _ in kernel))
        out[a:b] = total[(slice(None), slice(None), *inside)]

    scratch = channels * (taps * pixels + math.prod(padded)) * g.itemsize
    _in_chunks(task, n, scratch, og * cg * taps * pixels)
    return out


def conv_weight_grad(
    g: np.ndarray,
    x: np.ndarray,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    """g (n, groups*o, *out), x (n, groups*c, *in) -> (groups*o, c, *kernel)."""
    n, size = g.shape[0], g.shape[2:]
    og, cg = g.shape[1] // groups, x.shape[1] // groups
    padded = x.shape[2] + 2 * padding[0]
    shift = _shifts(kernel, stride, padded, size[0])
    k0, taps, rows = 1, kernel, size
    if shift:
        k0, taps, rows = kernel[0], (1, *kernel[1:]), (padded, *size[1:])
    depth = cg * math.prod(taps)
    area, line, pixels = math.prod(rows), math.prod(size[1:]), math.prod(size)
    item = x.itemsize

    def task(a: int, b: int) -> np.ndarray:
        m = b - a
        view = windows(_padded(x[a:b], padding, padding), taps, rows, stride, dilation)
        columns = np.ascontiguousarray(view).reshape(m, groups, depth, area)
        # tap i of the first axis reads the same columns, i rows further down
        shifted = as_strided(
            columns,
            (m, groups, k0, depth, pixels),
            (*columns.strides[:2], dilation[0] * line * item, area * item, item),
            writeable=False,
        )
        gradient = np.ascontiguousarray(g[a:b]).reshape(m, groups, 1, og, pixels)
        return np.matmul(shifted, gradient.swapaxes(-1, -2)).sum(0)

    scratch = groups * depth * (area + k0 * og) * item
    parts = _in_chunks(task, n, scratch, og * depth * pixels)
    total = sum(parts[1:], parts[0]) if parts else np.zeros((groups, k0, depth, og), x.dtype)
    spread = total.reshape(groups, k0, cg, -1, og).transpose(0, 4, 2, 1, 3)
    return np.ascontiguousarray(spread).reshape(groups * og, cg, *kernel)


def im2col(
    x: np.ndarray, kernel: Sizes, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> np.ndarray:
    """x (n, C, *in) -> (n, C * taps, pixels): every window as a column."""
    view = windows(_padded(x, padding, padding), kernel, size, stride, dilation)
    columns = np.array(view, order="C")
    return columns.reshape(x.shape[0], x.shape[1] * math.prod(kernel), math.prod(size))


def col2im(
    columns: np.ndarray,
    input_size: Sizes,
    kernel: Sizes,
    size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> np.ndarray:
    """The adjoint of ``im2col``: (n, C * taps, pixels) -> (n, C, *input_size), overlaps added."""
    n, channels = columns.shape[0], columns.shape[1] // math.prod(kernel)
    split = columns.reshape(n, channels, *kernel, *size)
    total = np.zeros(
        (n, channels, *(i + 2 * p for i, p in zip(input_size, padding))), columns.dtype
    )
    for tap in itertools.product(*(range(k) for k in kernel)):
        place = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, o, s in zip(tap, dilation, size, stride)
        )
        column: tuple[Any, ...] = (slice(None), slice(None), *tap)
        total[(slice(None), slice(None), *place)] += split[column]
    inside = tuple(slice(p, p + i) for p, i in zip(padding, input_size))
    return np.ascontiguousarray(total[(slice(None), slice(None), *inside)])
