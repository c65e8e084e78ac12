"""Pictures of batches: ``make_grid`` and ``save_image``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import trident

from ..errors import wrong
from .images import cast_like, pillow


def make_grid(
    tensor: Any,
    nrow: int = 8,
    padding: int = 2,
    normalize: bool = False,
    value_range: tuple[float, float] | None = None,
    scale_each: bool = False,
    pad_value: float = 0.0,
) -> Any:
    """Lay images out as one picture (3, H, W), ``nrow`` in a row with ``padding`` pixels between.

    ``tensor``: Tensor or array (N, C, H, W) with 1 or 3 channels, (C, H, W), (H, W), or a list of
    (C, H, W). ``normalize`` shifts and scales the values from ``value_range`` (None: their own
    range) to [0, 1]; ``scale_each`` does that image by image.

    >>> from trident.vision.utils import make_grid
    >>> make_grid(trident.ones(4, 1, 3, 3), nrow=2, padding=1).shape
    trident.Size([3, 9, 9])
    """
    if isinstance(tensor, list | tuple):
        images = np.stack([_array(t) for t in tensor])
    else:
        images = _array(tensor)
    if images.ndim == 2:
        images = images[None]
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise wrong(
            "make_grid",
            "images must have shape (N, C, H, W) with 1 or 3 channels",
            got=images.shape,
        )
    if images.shape[1] == 1:
        images = np.repeat(images, 3, axis=1)
    if normalize and images.size:
        images = images.astype(np.float32 if images.dtype != np.float64 else np.float64)
        groups = images[:, None] if scale_each else images[None]
        images = np.concatenate([_to_unit(g, value_range) for g in groups])
    n, _, h, w = images.shape
    if n == 1:
        return trident.from_numpy(np.ascontiguousarray(images[0]))
    columns = min(nrow, n) or 1
    rows = math.ceil(n / columns)
    step_y, step_x = h + padding, w + padding
    grid = np.full(
        (3, rows * step_y + padding, columns * step_x + padding), pad_value, images.dtype
    )
    for i, image in enumerate(images):
        y, x = (i // columns) * step_y + padding, (i % columns) * step_x + padding
        grid[:, y : y + h, x : x + w] = image
    return trident.from_numpy(grid)


def save_image(tensor: Any, fp: Any, format: str | None = None, **grid: Any) -> None:
    """Write images with values in [0, 1] (or uint8) to a picture file, several as a grid.

    ``fp``: a path or a binary file object (then ``format``, "png" for example, is needed).
    ``grid``: arguments of ``make_grid``. Needs Pillow.
    """
    image_module = pillow("Image", "save_image")
    picture = make_grid(tensor, **grid).numpy()
    if picture.dtype != np.uint8:
        picture = np.clip(picture.astype(np.float32), 0, 1) * 255
        picture = cast_like(picture, np.dtype(np.uint8))
    image_module.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(fp, format=format)


def _array(t: Any) -> np.ndarray:
    if isinstance(t, trident.Tensor):
        return t.detach().cpu().numpy()
    if isinstance(t, np.ndarray):
        return t
    raise wrong(
        "make_grid",
        "images must be a Tensor, an array or a list of them",
        got=type(t).__name__,
        error=TypeError,
    )


def _to_unit(images: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    low, high = value_range if value_range is not None else (images.min(), images.max())
    return (np.clip(images, low, high) - low) / max(float(high - low), 1e-5)
