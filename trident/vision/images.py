"""One view of the three kinds of image: numpy (H, W) or (H, W, C), PIL, Tensor (..., C, H, W).

The transforms compute on numpy arrays whose first two axes are height and width and whose last
axis, from three axes on, is the channel. ``unwrap`` gives that view and the way back to the kind it
was.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import trident

from ..errors import wrong


def pillow(module: str, purpose: str) -> Any:
    """Pillow's ``PIL.<module>``, imported now; ImportError says what needs it and how to get it."""
    try:
        return importlib.import_module(f"PIL.{module}")
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs Pillow, which is not installed: pip install pillow"
        ) from error


def is_pil(image: Any) -> bool:
    """Whether this is a PIL image; Pillow is not imported to find out."""
    # a PIL image can only exist where PIL.Image was imported
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def unwrap(op: str, image: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """The array (H, W, ...) of ``image``, and what turns such an array into that kind of image."""
    if isinstance(image, np.ndarray):
        if image.ndim < 2:
            raise wrong(op, "an array image must have shape (H, W) or (H, W, C)", got=image.shape)
        return image, lambda a: a
    if isinstance(image, trident.Tensor):
        if image.ndim < 2:
            raise wrong(op, "a tensor image must have shape (..., C, H, W)", got=tuple(image.shape))
        device = image.device
        n = image.ndim
        array = image.detach().cpu().numpy().transpose(n - 2, n - 1, *range(n - 2))

        def to_tensor(a: np.ndarray) -> Any:
            t = trident.from_numpy(np.ascontiguousarray(a.transpose(*range(2, a.ndim), 0, 1)))
            return t if device.type == "cpu" else t.to(device)

        return array, to_tensor
    if is_pil(image):
        if image.mode in ("1", "P"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        return np.asarray(image), pillow("Image", op).fromarray
    raise wrong(
        op,
        "image must be a numpy array, a PIL image or a Tensor",
        got=type(image).__name__,
        error=TypeError,
    )


def size_of(op: str, image: Any) -> tuple[int, int]:
    """(height, width)."""
    if is_pil(image):
        return image.height, image.width
    shape = tuple(image.shape)
    if len(shape) < 2:
        raise wrong(op, "an image has at least two axes", got=shape)
    return shape[-2:] if isinstance(image, trident.Tensor) else shape[:2]


def channels_of(image: Any) -> int:
    """1 for an image without a channel axis."""
    if is_pil(image):
        return len(image.getbands())
    if image.ndim == 2:
        return 1
    return image.shape[-3 if isinstance(image, trident.Tensor) else -1]


def cast_like(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Computed values in an image's dtype: integers are rounded and clipped to their range."""
    if values.dtype == dtype:
        return values
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.clip(np.rint(values), info.min, info.max).astype(dtype)
    return values.astype(dtype)


def top_of(dtype: np.dtype) -> float:
    """The value of white: 1 for floats, 255 for uint8."""
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
