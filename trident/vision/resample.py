"""Resizing, rotation and blur of arrays (H, W, ...) in numpy.

Resizing multiplies by one matrix an axis, whose rows hold a filter around each output pixel; when
an image shrinks, the filter widens with the scale (antialias), as Pillow's does.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .images import cast_like


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5. Source: R. Keys, "Cubic convolution interpolation", 1981."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_FILTERS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}


@lru_cache(maxsize=64)
def _matrix(n_in: int, n_out: int, mode: str, antialias: bool) -> np.ndarray:
    """(n_out, n_in): row i holds the weights of the input pixels in output pixel i."""
    kernel, radius = _FILTERS[mode]
    scale = n_in / n_out
    width = max(scale, 1.0) if antialias else 1.0
    center = (np.arange(n_out) + 0.5) * scale
    pixels = np.arange(n_in) + 0.5
    if antialias:
        weights = kernel((pixels - center[:, None]) / width)
    else:  # what lies outside counts as the border pixel
        reach = math.ceil(radius)
        first = np.floor(center - 0.5).astype(int) - reach + 1
        weights = np.zeros((n_out, n_in))
        for k in range(2 * reach):
            at = first + k
            np.add.at(
                weights,
                (np.arange(n_out), np.clip(at, 0, n_in - 1)),
                kernel(at + 0.5 - center),
            )
    weights /= weights.sum(1, keepdims=True)
    return weights.astype(np.float32)


def resize(
    image: np.ndarray, height: int, width: int, mode: str = "bilinear", antialias: bool = True
) -> np.ndarray:
    """(H, W, ...) -> (height, width, ...), same dtype. ``mode``: nearest, bilinear, bicubic."""
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    if mode == "nearest":
        rows = np.minimum((np.arange(height) + 0.5) * (h / height), h - 1).astype(int)
        columns = np.minimum((np.arange(width) + 0.5) * (w / width), w - 1).astype(int)
        return image[rows[:, None], columns]
    work = image if image.dtype == np.float64 else image.astype(np.float32)
    rest = image.shape[2:]
    if w != width:
        across = _matrix(w, width, mode, antialias).astype(work.dtype, copy=False)
        work = np.matmul(across, work.reshape(h, w, -1)).reshape(h, width, *rest)
    if h != height:
        down = _matrix(h, height, mode, antialias).astype(work.dtype, copy=False)
        work = (down @ work.reshape(h, -1)).reshape(height, width, *rest)
    return cast_like(work, image.dtype)


def rotate(
    image: np.ndarray,
    angle: float,
    mode: str = "nearest",
    expand: bool = False,
    center: tuple[float, float] | None = None,
    fill: float | tuple[float, ...] = 0,
) -> np.ndarray:
    """Turn by ``angle`` degrees counter-clockwise around ``center`` (x, y), the middle by default.

    What lies outside of the image becomes ``fill``. ``expand`` grows the image to hold all of it.
    """
    h, w = image.shape[:2]
    turn = math.radians(angle % 360)
    cos, sin = round(math.cos(turn), 15), round(math.sin(turn), 15)
    cx, cy = center if center is not None else (w / 2, h / 2)
    out_h, out_w = h, w
    shift_x, shift_y = cx, cy
    if expand:
        corners = [(x - cx, y - cy) for x in (0, w) for y in (0, h)]
        xs = [cos * x + sin * y for x, y in corners]
        ys = [-sin * x + cos * y for x, y in corners]
        out_w = math.ceil(round(max(xs) - min(xs), 6))
        out_h = math.ceil(round(max(ys) - min(ys), 6))
        shift_x = out_w / 2 - (max(xs) + min(xs)) / 2
        shift_y = out_h / 2 - (max(ys) + min(ys)) / 2
    x = np.arange(out_w) + 0.5 - shift_x
    y = (np.arange(out_h) + 0.5 - shift_y)[:, None]
    source_x = cos * x - sin * y + cx  # where each output pixel's center comes from
    source_y = sin * x + cos * y + cy
    if mode == "nearest":
        return _pick(image, np.floor(source_y).astype(int), np.floor(source_x).astype(int), fill)
    left, top = np.floor(source_x - 0.5).astype(int), np.floor(source_y - 0.5).astype(int)
    extra = (1,) * (image.ndim - 2)
    fx = (source_x - 0.5 - left).astype(np.float32).reshape(out_h, out_w, *extra)
    fy = (source_y - 0.5 - top).astype(np.float32).reshape(out_h, out_w, *extra)
    work = image if image.dtype.kind == "f" else image.astype(np.float32)
    upper = _pick(work, top, left, fill) * (1 - fx) + _pick(work, top, left + 1, fill) * fx
    lower = _pick(work, top + 1, left, fill) * (1 - fx) + _pick(work, top + 1, left + 1, fill) * fx
    return cast_like(upper * (1 - fy) + lower * fy, image.dtype)


def _pick(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: object) -> np.ndarray:
    """``image[rows, columns]``, with ``fill`` where that is outside."""
    h, w = image.shape[:2]
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    out = image[np.clip(rows, 0, h - 1), np.clip(columns, 0, w - 1)]
    out[~inside] = np.asarray(fill, dtype=image.dtype)
    return out


def gaussian_blur(
    image: np.ndarray, kernel: tuple[int, int], sigma: tuple[float, float]
) -> np.ndarray:
    """Blur by a Gaussian; ``kernel`` and ``sigma`` are (x, y). Borders are mirrored."""
    work = image.astype(np.float64 if image.dtype == np.float64 else np.float32)
    for axis, size, s in ((1, kernel[0], sigma[0]), (0, kernel[1], sigma[1])):
        reach = size // 2
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / s) ** 2)
        weights = (weights / weights.sum()).astype(work.dtype)
        pad = [(reach, reach) if i == axis else (0, 0) for i in range(work.ndim)]
        padded = np.pad(work, pad, mode="reflect")
        n = work.shape[axis]
        moved = np.moveaxis(padded, axis, 0)
        work = np.moveaxis(sum(weights[k] * moved[k : k + n] for k in range(size)), 0, axis)
    return cast_like(work, image.dtype)
