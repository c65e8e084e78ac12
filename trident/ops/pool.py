"""Pooling: maximum and average over windows, over one to three axes, fixed and adaptive.

Two adjoint pairs carry the family: ``avg_pool`` and ``avg_pool_backward``; ``max_pool_take`` (the
elements that a choice names) and ``max_pool_backward``. Each is the other's gradient. A choice is
kept as one small integer per window, the element of the window that won; torch's flat indices are
computed from it when they are asked for.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import dtypes, shapes
from ..errors import DTypeError, wrong
from ..kernels import pool as kernels
from ..kernels.pool import Window, Windows
from . import pool_numpy
from .pool_numpy import _choice_dtype, _lead, _lowest, _outs, _sizes
from .registry import Spec, composite, ops, primitive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..shapes import Shape
    from ..tensor import Tensor

    Sizes = int | Sequence[int]


def _check_planes(op: str, x: Any, shape: Shape) -> None:
    lead = x.ndim - len(shape)
    if lead not in (0, 1, 2) or tuple(x.shape[lead:]) != shape:
        raise wrong(op, f"the windows are for planes of shape {shape}", got=tuple(x.shape))


def _layout(
    shape: Shape, operands: Sequence[tuple[Shape, Shape]], *, windows: Windows, **_: Any
) -> Shape:
    """Channels-last images (N, C, ...) give channels-last results."""
    if len(shape) == len(windows) + 2:
        return shapes.kept_strides(shape, operands)
    return shapes.contiguous_strides(shape)


def _draw_windows(draw: Any) -> tuple[Windows, Shape]:
    """Random windows over one or two axes and the planes they are for (for ``samples``)."""
    size = tuple(draw.integer(3, 6) for _ in range(draw.integer(1, 3)))
    if draw.boolean():
        return adaptive_windows("pool", size, tuple(draw.integer(1, s) for s in size)), size
    kernel = tuple(draw.integer(1, 3) for _ in size)
    stride = tuple(draw.integer(1, 3) for _ in size)
    padding = tuple(draw.integer(0, k // 2) for k in kernel)
    # up to windows that see nothing but padding
    dilation = tuple(
        draw.integer(1, max((s + 2 * p - 1) // (k - 1), 1)) if k > 1 else 1
        for s, k, p in zip(size, kernel, padding)
    )
    return fixed_windows("pool", size, kernel, stride, padding, dilation, draw.boolean()), size


def _some_planes(draw: Any) -> Shape:
    """Leading axes; now and then so many planes that several programs share them."""
    return (3, 40) if draw.blocks == "gpu" and draw.boolean() else draw.shape(0, 2, 3)


@primitive(method=False)
class max_pool:
    """Largest element of every window of the last axes, and which one it was: x (..., *sizes).

    Returns (values, which): ``which`` (uint8, or int32 for windows of over 256) counts the elements
    of the window in row-major order; the first of equal ones wins, a NaN wins over everything.
    """

    def infer(x, *, windows):
        _check_planes("max_pool", x, _sizes(windows))
        if x.dtype.kind == "bool":
            raise wrong("max_pool", "x must hold numbers", got="bool", error=DTypeError)
        shape = _lead(x, windows) + _outs(windows)
        return Spec(shape, x.dtype), Spec(shape, _choice_dtype(windows))

    layout = _layout

    def numpy(x, *, windows):
        return pool_numpy.max_pool(x, windows)

    def launch(outs, x, *, windows):
        lowest = _lowest(x.dtype.np if x.dtype.kind == "int" else np.dtype(np.float32))
        kernels.max_pool(*outs, x, windows=windows, lowest=lowest)

    def vjp(g, out, windows):
        return None if g[0] is None else ops.max_pool_backward(g[0], out[1], windows=windows)

    def samples(draw):
        windows, size = _draw_windows(draw)
        return (draw.tensor((*_some_planes(draw), *size)),), {"windows": windows}


@primitive(method=False)
class max_pool_take:
    """The elements of x (..., *sizes) that ``which`` (..., *outs) names, one for each window."""

    def infer(x, which, *, windows):
        _check_planes("max_pool_take", x, _sizes(windows))
        _check_planes("max_pool_take", which, _outs(windows))
        return Spec(which.shape, x.dtype)

    layout = _layout

    def numpy(x, which, *, windows):
        return pool_numpy.max_pool_take(x, which, windows)

    def launch(out, x, which, *, windows):
        kernels.max_pool_take(out, x, which, windows=windows)

    def vjp(g, which, windows):
        return ops.max_pool_backward(g, which, windows=windows), None

    def samples(draw):
        windows, size = _draw_windows(draw)
        lead = _some_planes(draw)
        which = draw.ints((*lead, *_outs(windows)), 0, _least(windows), dtype=dtypes.uint8)
        return (draw.tensor((*lead, *size)), which), {"windows": windows}


@primitive(method=False)
class max_pool_backward:
    """Transpose of ``max_pool_take``: an element adds the g (..., *outs) of the windows it won."""

    def infer(g, which, *, windows):
        _check_planes("max_pool_backward", g, _outs(windows))
        return Spec(_lead(g, windows) + _sizes(windows), g.dtype)

    layout = _layout

    def numpy(g, which, *, windows):
        return pool_numpy.max_pool_backward(g, which, windows)

    def launch(out, g, which, *, windows):
        kernels.max_pool_backward(out, g, which, windows=windows)

    def vjp(g, which, windows):
        return ops.max_pool_take(g, which, windows=windows), None

    def samples(draw):
        windows, _ = _draw_windows(draw)
        shape = (*_some_planes(draw), *_outs(windows))
        which = draw.ints(shape, 0, _least(windows), dtype=dtypes.uint8)
        return (draw.tensor(shape), which), {"windows": windows}


def _least(windows: Windows) -> int:
    return math.prod(w.kernel for w in windows) - 1


@primitive(method=False)
class max_pool_indices:
    """Flat positions, within a plane of the input, of the elements that ``which`` names: int64."""

    def infer(which, *, windows):
        _check_planes("max_pool_indices", which, _outs(windows))
        return Spec(which.shape, dtypes.int64)

    layout = _layout

    def numpy(which, *, windows):
        return pool_numpy.max_pool_indices(which, windows)

    def launch(out, which, *, windows):
        kernels.max_pool_indices(out, which, windows=windows)

    def samples(draw):
        windows, _ = _draw_windows(draw)
        shape = (*_some_planes(draw), *_outs(windows))
        which = draw.ints(shape, 0, _least(windows), dtype=dtypes.uint8)
        return (which,), {"windows": windows}


@primitive(method=False)
class avg_pool:
    """Average of every window of the last axes: x (..., *sizes), a floating dtype.

    A sum is divided by ``divisor`` where given, else by the length of the window, which counts its
    padding where ``with_padding``.
    """

    def infer(x, *, windows, with_padding=True, divisor=None):
        _check_planes("avg_pool", x, _sizes(windows))
        if not x.dtype.is_floating_point:
            raise wrong(
                "avg_pool", "x must have a floating dtype", got=x.dtype.name, error=DTypeError,
                hint="convert it with x.float()",
            )  # fmt: skip
        return Spec(_lead(x, windows) + _outs(windows), x.dtype)

    layout = _layout

    def numpy(x, *, windows, with_padding=True, divisor=None):
        return pool_numpy.avg_pool(x, windows, with_padding, divisor)

    def launch(out, x, *, windows, with_padding=True, divisor=None):
        kernels.avg_pool(out, x, windows=windows, with_padding=with_padding, divisor=divisor)

    def vjp(g, windows, with_padding, divisor):
        return ops.avg_pool_backward(g, windows=windows, with_padding=with_padding, divisor=divisor)

    def samples(draw):
        windows, size = _draw_windows(draw)
        attrs = {"windows": windows, "with_padding": draw.boolean()}
        attrs["divisor"] = draw.choice([None, None, 5])
        return (draw.tensor((*_some_planes(draw), *size)),), attrs


@primitive(method=False)
class avg_pool_backward:
    """Transpose of ``avg_pool``: an element adds its share of the g (..., *outs) of its windows."""

    def infer(g, *, windows, with_padding=True, divisor=None):
        _check_planes("avg_pool_backward", g, _outs(windows))
        return Spec(_lead(g, windows) + _sizes(windows), g.dtype)

    layout = _layout

    def numpy(g, *, windows, with_padding=True, divisor=None):
        return pool_numpy.avg_pool_backward(g, windows, with_padding, divisor)

    def launch(out, g, *, windows, with_padding=True, divisor=None):
        kernels.avg_pool_backward(
            out, g, windows=windows, with_padding=with_padding, divisor=divisor
        )

    def vjp(g, windows, with_padding, divisor):
        return ops.avg_pool(g, windows=windows, with_padding=with_padding, divisor=divisor)

    def samples(draw):
        windows, _ = _draw_windows(draw)
        attrs = {"windows": windows, "with_padding": draw.boolean()}
        attrs["divisor"] = draw.choice([None, None, 5])
        return (draw.tensor((*_some_planes(draw), *_outs(windows))),), attrs


def _tuple(op: str, name: str, value: Any, n: int, least: int) -> Shape:
    """``value`` once for each of ``n`` axes."""
    many = (value,) * n if isinstance(value, int) else tuple(int(v) for v in value)
    if len(many) == 1:
        many *= n
    if len(many) != n or any(v < least for v in many):
        text = f"an int or {n} ints, none below {least}" if n > 1 else f"an int of at least {least}"
        raise wrong(op, f"{name} must be {text}", got=value)
    return many


@functools.lru_cache(maxsize=1024)
def fixed_windows(
    op: str,
    sizes: Shape,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    ceil_mode: bool,
) -> Windows:
    """The windows of a plane of shape ``sizes``; raises where a kernel does not fit."""
    found = []
    for axis, (n, k, s, p, d) in enumerate(
        zip(sizes, kernel, stride, padding, dilation), -len(sizes)
    ):
        span = (k - 1) * d + 1
        if p > span // 2:
            raise wrong(
                op, f"padding must be at most half of the {span} positions that kernel_size {k} "
                f"with dilation {d} spans, {span // 2}, along axis {axis}", got=p,
                hint="pad the input itself with trident.nn.functional.pad",
            )  # fmt: skip
        out = (n + 2 * p - span + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (out - 1) * s >= n + p:  # the last window must begin within the input
            out -= 1
        if out < 1:
            raise wrong(
                op, f"the window spans {span} positions along axis {axis}, the input has "
                f"{n} + 2 * {p} of padding", hint="use a smaller kernel_size or more padding",
            )  # fmt: skip
        found.append(Window(n, out, k, s, p, d))
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def adaptive_windows(op: str, sizes: Shape, outs: Shape) -> Windows:
    """Windows that split a plane of shape ``sizes`` into ``outs`` parts, as equal as can be."""
    if 0 in sizes:
        raise wrong(op, "the pooled axes must not be empty", got=sizes)
    if all(n % out == 0 for n, out in zip(sizes, outs)):
        return tuple(Window(n, out, n // out, n // out) for n, out in zip(sizes, outs))
    found = []
    for n, out in zip(sizes, outs):
        w = Window(n, out, 1, adaptive=True)
        longest = max(stop - start for start, stop in map(w.bounds, range(out)))
        found.append(w._replace(kernel=longest))
    return tuple(found)


def _planes(op: str, x: Tensor, n: int) -> Shape:
    """The sizes of the last n axes of x (C, *sizes) or (N, C, *sizes)."""
    if x.ndim not in (n + 1, n + 2):
        axes = ", ".join("DHW"[3 - n :]) if n > 1 else "L"
        raise wrong(
            op, f"input must have shape (N, C, {axes}) or (C, {axes})", got=tuple(x.shape),
            hint="add the missing axis with unsqueeze(0)" if x.ndim == n else None,
        )  # fmt: skip
    return tuple(x.shape[-n:])


def _max(
    op: str, x: Tensor, n: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes,
    dilation: Sizes, ceil_mode: bool, return_indices: bool,
) -> Any:  # fmt: skip
    kernel = _tuple(op, "kernel_size", kernel_size, n, 1)
    step = kernel if stride is None or stride == () else _tuple(op, "stride", stride, n, 1)
    pad = _tuple(op, "padding", padding, n, 0)
    spread = _tuple(op, "dilation", dilation, n, 1)
    windows = fixed_windows(op, _planes(op, x, n), kernel, step, pad, spread, ceil_mode)
    return _max_result(x, windows, return_indices)


def _max_result(x: Tensor, windows: Windows, return_indices: bool) -> Any:
    values, which = ops.max_pool(x, windows=windows)
    return (values, ops.max_pool_indices(which, windows=windows)) if return_indices else values


@composite(method=False)
def max_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Largest element of every window: (N, C, L) or (C, L). See ``max_pool2d``.

    >>> trident.max_pool1d(trident.tensor([[1.0, 3.0, 2.0, 0.0]]), 2).tolist()
    [[3.0, 2.0]]
    """
    return _max(
        "max_pool1d", input, 1, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


@composite(method=False)
def max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Largest element of every window: (N, C, H, W) or (C, H, W). NaN wins, padding never does.

    ``stride`` is ``kernel_size`` unless given; ``ceil_mode`` keeps a last window that begins within
    the input. With ``return_indices`` also where the elements lie in their plane, as int64. Raises
    ShapeError where the window does not fit or the padding is over half of it.

    >>> x = trident.tensor([[[1.0, 2.0], [4.0, 3.0]]])
    >>> trident.max_pool2d(x, 2, return_indices=True)[1].item()
    2
    """
    return _max(
        "max_pool2d", input, 2, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


@composite(method=False)
def max_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Largest element of every window: (N, C, D, H, W) or (C, D, H, W). See ``max_pool2d``.

    >>> trident.max_pool3d(trident.ones(1, 2, 4, 4, 4), 2).shape
    trident.Size([1, 2, 2, 2, 2])
    """
    return _max(
        "max_pool3d", input, 3, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def _avg(
    op: str, x: Tensor, n: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes,
    ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    kernel = _tuple(op, "kernel_size", kernel_size, n, 1)
    step = kernel if stride is None or stride == () else _tuple(op, "stride", stride, n, 1)
    pad = _tuple(op, "padding", padding, n, 0)
    if divisor_override == 0:
        raise wrong(op, "divisor_override must not be 0")
    windows = fixed_windows(op, _planes(op, x, n), kernel, step, pad, (1,) * n, ceil_mode)
    return ops.avg_pool(
        x, windows=windows, with_padding=count_include_pad, divisor=divisor_override
    )


@composite(method=False)
def avg_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Average of every window: (N, C, L) or (C, L). See ``avg_pool2d``.

    >>> trident.avg_pool1d(trident.tensor([[1.0, 3.0, 2.0, 0.0]]), 2).tolist()
    [[2.0, 1.0]]
    """
    return _avg(
        "avg_pool1d", input, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None
    )


@composite(method=False)
def avg_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average of every window: (N, C, H, W) or (C, H, W), a floating dtype. The sum is divided by
    ``divisor_override`` where given, else by the length of the window, padding counted or not.

    >>> trident.avg_pool2d(trident.tensor([[[1.0, 2.0], [4.0, 3.0]]]), 2).item()
    2.5
    """
    return _avg(
        "avg_pool2d", input, 2, kernel_size, stride, padding, ceil_mode, count_include_pad,
        divisor_override,
    )  # fmt: skip


@composite(method=False)
def avg_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average of every window: (N, C, D, H, W) or (C, D, H, W). See ``avg_pool2d``.

    >>> trident.avg_pool3d(trident.ones(1, 2, 4, 4, 4), 4).shape
    trident.Size([1, 2, 1, 1, 1])
    """
    return _avg(
        "avg_pool3d", input, 3, kernel_size, stride, padding, ceil_mode, count_include_pad,
        divisor_override,
    )  # fmt: skip


def _adaptive(op: str, x: Tensor, n: int, output_size: Any) -> Windows:
    """The windows of an adaptive pool; None in ``output_size`` keeps the size of that axis."""
    sizes = _planes(op, x, n)
    wanted = tuple(output_size) if isinstance(output_size, (list, tuple)) else (output_size,) * n
    if len(wanted) == n:
        wanted = tuple(s if o is None else o for s, o in zip(sizes, wanted))
    return adaptive_windows(op, sizes, _tuple(op, "output_size", wanted, n, 1))


def _adaptive_avg(op: str, x: Tensor, n: int, output_size: Any) -> Tensor:
    windows = _adaptive(op, x, n, output_size)
    if all(w.out == 1 for w in windows):
        return ops.mean(x, tuple(range(-n, 0)), keepdim=True)  # the reduction kernels are wider
    return ops.avg_pool(x, windows=windows)


@composite(method=False)
def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Averages of ``output_size`` parts of the last axis: (N, C, L) or (C, L).

    >>> trident.adaptive_avg_pool1d(trident.tensor([[1.0, 2.0, 3.0]]), 2).tolist()
    [[1.5, 2.5]]
    """
    return _adaptive_avg("adaptive_avg_pool1d", input, 1, output_size)


@composite(method=False)
def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Averages of ``output_size`` parts of a plane, an int or two: (N, C, H, W) or (C, H, W).

    None keeps the size of its axis. Parts overlap by one where the sizes do not divide.

    >>> trident.adaptive_avg_pool2d(trident.ones(1, 2, 5, 7), (3, None)).shape
    trident.Size([1, 2, 3, 7])
    """
    return _adaptive_avg("adaptive_avg_pool2d", input, 2, output_size)


@composite(method=False)
def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Averages of ``output_size`` parts of a volume: (N, C, D, H, W) or (C, D, H, W).

    >>> trident.adaptive_avg_pool3d(trident.ones(1, 2, 4, 5, 6), 2).shape
    trident.Size([1, 2, 2, 2, 2])
    """
    return _adaptive_avg("adaptive_avg_pool3d", input, 3, output_size)


@composite(method=False)
def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Largest elements of ``output_size`` parts of the last axis: (N, C, L) or (C, L).

    >>> trident.adaptive_max_pool1d(trident.tensor([[1.0, 3.0, 2.0]]), 1).tolist()
    [[3.0]]
    """
    windows = _adaptive("adaptive_max_pool1d", input, 1, output_size)
    return _max_result(input, windows, return_indices)


@composite(method=False)
def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Largest elements of ``output_size`` parts of a plane: (N, C, H, W) or (C, H, W).

    >>> trident.adaptive_max_pool2d(trident.ones(1, 2, 5, 7), 3).shape
    trident.Size([1, 2, 3, 3])
    """
    windows = _adaptive("adaptive_max_pool2d", input, 2, output_size)
    return _max_result(input, windows, return_indices)


@composite(method=False)
def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Largest elements of ``output_size`` parts of a volume: (N, C, D, H, W) or (C, D, H, W).

    >>> trident.adaptive_max_pool3d(trident.ones(1, 2, 4, 5, 6), 2).shape
    trident.Size([1, 2, 2, 2, 2])
    """
    windows = _adaptive("adaptive_max_pool3d", input, 3, output_size)
    return _max_result(input, windows, return_indices)
