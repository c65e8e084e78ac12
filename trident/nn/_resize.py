"""``interpolate``: resizing as a weighted sum of a few shifted lookups along each axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import trident

from .. import Tensor, ops
from ..errors import wrong

_AXES = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
_CUBIC = -0.75  # the free parameter of cubic convolution, as torch and OpenCV have it


def _source(n: int, m: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """The coordinate in an axis of ``n`` elements that each of ``m`` new ones looks at."""
    at = np.arange(m, dtype=np.float64)
    if align_corners:
        return at * ((n - 1) / (m - 1)) if m > 1 else at * 0.0
    return (at + 0.5) * (1.0 / scale if scale else n / m) - 0.5


def _taps(
    mode: str, n: int, m: int, scale: float | None, align_corners: bool
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """(indices, weights) of the terms of one axis; weights None are all 1."""
    if mode in ("nearest", "nearest-exact"):
        step = 1.0 / scale if scale else n / m
        half = 0.5 if mode == "nearest-exact" else 0.0
        # float32, as torch: at 3 / 7 and the like the rounding decides which pixel is nearest
        at = np.floor((np.arange(m, dtype=np.float32) + np.float32(half)) * np.float32(step))
        return [(np.clip(at.astype(np.int64), 0, n - 1), None)]
    x = _source(n, m, scale, align_corners)
    if mode == "bicubic":
        left = np.floor(x)
        t = x - left
        a = _CUBIC
        near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
        far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
        weights = [far[0], near[0], near[1], far[1]]
        shifts = [left.astype(np.int64) + k for k in (-1, 0, 1, 2)]
        return [(np.clip(i, 0, n - 1), w) for i, w in zip(shifts, weights)]
    x = np.maximum(x, 0.0)
    low = np.minimum(np.floor(x).astype(np.int64), n - 1)
    t = np.clip(x - low, 0.0, 1.0)
    return [(low, 1.0 - t), (np.minimum(low + 1, n - 1), t)]


def _along(x: Tensor, axis: int, taps: list[tuple[np.ndarray, np.ndarray | None]]) -> Tensor:
    """The sum over ``taps`` of weights times the elements at the indices, along ``axis``."""
    out = None
    for index, weights in taps:
        part = ops.index_select(x, axis, trident.tensor(index, device=x.device))
        if weights is not None:
            shape = [1] * x.ndim
            shape[axis] = len(weights)
            w = trident.tensor(weights.reshape(shape), dtype=x.dtype, device=x.device)
            part = part * w
        out = part if out is None else out + part
    assert out is not None
    return out


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resize the spatial axes of input (N, C, ...) to ``size``, or by ``scale_factor``.

    ``mode``: "nearest", "nearest-exact", "linear" (3 axes in all), "bilinear", "bicubic" (4),
    "trilinear" (5) or "area" (means). ``align_corners`` puts the outermost pixels' centres, not
    their edges, on each other. Differentiable.

    >>> x = trident.tensor([[[1.0, 3.0]]])
    >>> trident.nn.functional.interpolate(x, size=4, mode="linear").tolist()
    [[[1.0, 1.5, 2.5, 3.0]]]
    """
    known = ("nearest", "nearest-exact", "area", *_AXES)
    if mode not in known:
        raise wrong(
            "interpolate", f"mode must be one of {', '.join(known)}", got=mode, error=ValueError
        )
    if antialias:
        raise ValueError("interpolate: antialias=True is not available; use mode='area' to shrink")
    n_axes = input.ndim - 2
    if n_axes < 1 or (mode in _AXES and n_axes != _AXES[mode]):
        wanted = f"{_AXES[mode] + 2} axes" if mode in _AXES else "at least 3 axes (N, C, ...)"
        raise wrong(
            "interpolate", f"mode {mode!r} needs {wanted}", got=f"shape {tuple(input.shape)}"
        )
    if align_corners is not None and mode not in _AXES:
        raise ValueError(f"interpolate: align_corners has no meaning for mode {mode!r}")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    old = tuple(input.shape[2:])
    scales: list[float | None] = [None] * n_axes
    if size is not None:
        new = (int(size),) * n_axes if isinstance(size, int) else tuple(int(s) for s in size)
    else:
        many = isinstance(scale_factor, (tuple, list))
        factors = [float(s) for s in scale_factor] if many else [float(scale_factor)] * n_axes
        new = tuple(math.floor(n * f) for n, f in zip(old, factors))
        if not recompute_scale_factor:
            scales = list(factors)
    if len(new) != n_axes or min(new) < 1:
        raise wrong(
            "interpolate", f"the new size must hold {n_axes} numbers, each at least 1", got=new
        )
    if mode == "area":
        return getattr(ops, f"adaptive_avg_pool{n_axes}d")(input, new)
    out = input
    for i, (n, m, scale) in enumerate(zip(old, new, scales)):
        out = _along(out, i + 2, _taps(mode, n, m, scale, bool(align_corners)))
    return out


def upsample(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """The old name of ``interpolate``."""
    return interpolate(input, size, scale_factor, mode, align_corners)
