"""The transforms as plain functions, without randomness.

Images are numpy arrays (H, W) or (H, W, C), PIL images, or Tensors (..., C, H, W); each function
gives back the kind it was given. Gradients do not flow through them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np

import trident

from ...dtypes import as_dtype
from ...errors import wrong
from .. import resample
from ..images import cast_like, channels_of, is_pil, pillow, size_of, top_of, unwrap

GRAY_WEIGHTS = (0.299, 0.587, 0.114)
"""Luma of red, green and blue. Source: ITU-R BT.601."""


class InterpolationMode(enum.StrEnum):
    """How pixels between pixels are made."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


# ---- kinds and dtypes ---------------------------------------------------------------------------


def to_tensor(image: Any) -> Any:
    """A PIL image or array (H, W) or (H, W, C) as a Tensor (C, H, W); uint8 becomes float32 in [0,
    1].

    >>> trident.vision.transforms.functional.to_tensor(np.full((1, 2, 3), 255, np.uint8)).shape
    trident.Size([3, 1, 2])
    """
    if isinstance(image, trident.Tensor):
        return image
    array, _ = unwrap("to_tensor", image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise wrong("to_tensor", "image must have shape (H, W) or (H, W, C)", got=array.shape)
    array = array.transpose(2, 0, 1)
    if array.dtype == np.uint8:
        return trident.from_numpy(np.divide(array, np.float32(255), order="C", dtype=np.float32))
    return trident.from_numpy(np.array(array, order="C"))


def pil_to_tensor(image: Any) -> Any:
    """A PIL image or array as a Tensor (C, H, W) of the same dtype and values."""
    array, _ = unwrap("pil_to_tensor", image)
    array = array[..., None] if array.ndim == 2 else array
    return trident.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))


def to_pil_image(image: Any, mode: str | None = None) -> Any:
    """A Tensor (C, H, W) or (H, W), or an array, as a PIL image. Floats lie in [0, 1]."""
    if is_pil(image):
        return image
    array, _ = unwrap("to_pil_image", image)
    if array.dtype.kind != "u" and array.dtype != np.int32:
        array = cast_like(np.clip(array.astype(np.float32), 0, 1) * 255, np.dtype(np.uint8))
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    picture = pillow("Image", "to_pil_image").fromarray(np.ascontiguousarray(array))
    return picture if mode is None else picture.convert(mode)


def convert_image_dtype(image: Any, dtype: Any = None) -> Any:
    """Change the dtype and scale the values to its range: uint8 0..255 <-> float 0..1."""
    target = as_dtype(float if dtype is None else dtype).np
    array, rebuild = unwrap("convert_image_dtype", image)
    if array.dtype == target:
        return image
    work: Any = array.astype(np.float64 if array.itemsize > 2 else np.float32)
    return rebuild(cast_like(work * (top_of(target) / top_of(array.dtype)), target))


def normalize(
    tensor: Any, mean: Sequence[float], std: Sequence[float], inplace: bool = False
) -> Any:
    """(x - mean) / std for each channel of a float Tensor (..., C, H, W) or array (H, W, C)."""
    array, rebuild = unwrap("normalize", tensor)
    if array.dtype.kind in "iub":
        raise wrong(
            "normalize",
            "tensor must have a floating dtype",
            got=array.dtype,
            error=TypeError,
            hint="put transforms.ToTensor() before it",
        )
    m, s = (np.asarray(v, np.float32).reshape(-1) for v in (mean, std))
    if (s == 0).any():
        raise wrong("normalize", "std must not be 0", got=std, error=ValueError)
    channels = channels_of(tensor)
    if m.size not in (1, channels) or s.size not in (1, channels):
        raise wrong(
            "normalize",
            f"mean and std must have 1 or {channels} values, one for each channel",
            got=f"{m.size} and {s.size}",
        )
    if inplace:
        np.subtract(array, m.astype(array.dtype), out=array)
        np.divide(array, s.astype(array.dtype), out=array)
        return _written(tensor, array, rebuild)
    return rebuild((array - m.astype(array.dtype)) / s.astype(array.dtype))


# ---- geometry -----------------------------------------------------------------------------------


def crop(image: Any, top: int, left: int, height: int, width: int) -> Any:
    """The part with this upper left corner and size; what lies outside of the image is 0."""
    array, rebuild = unwrap("crop", image)
    inside = array[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inside.shape[:2] == (height, width):
        return rebuild(inside)
    out = np.zeros((height, width, *array.shape[2:]), array.dtype)
    y, x = max(-top, 0), max(-left, 0)
    if inside.size:
        out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return rebuild(out)


def center_crop(image: Any, output_size: int | Sequence[int]) -> Any:
    """The middle of the image; a smaller image is padded with 0."""
    height, width = pair(output_size)
    h, w = size_of("center_crop", image)
    if h < height or w < width:
        x, y = max(width - w, 0), max(height - h, 0)
        image = pad(image, [x // 2, y // 2, (x + 1) // 2, (y + 1) // 2])
        h, w = size_of("center_crop", image)
    return crop(image, round((h - height) / 2), round((w - width) / 2), height, width)


def pad(
    image: Any, padding: int | Sequence[int], fill: Any = 0, padding_mode: str = "constant"
) -> Any:
    """Add a border. ``padding``: one number, (x, y) or (left, top, right, bottom).

    ``padding_mode``: "constant" (``fill``: a number, or one for each channel), "edge", "reflect" or
    "symmetric".
    """
    array, rebuild = unwrap("pad", image)
    numbers = [padding] if isinstance(padding, int) else list(padding)
    if len(numbers) not in (1, 2, 4):
        raise wrong("pad", "padding must have 1, 2 or 4 numbers", got=padding, error=ValueError)
    left, top, right, bottom = numbers * (4 // len(numbers))
    widths = [(top, bottom), (left, right)] + [(0, 0)] * (array.ndim - 2)
    if padding_mode != "constant":
        if padding_mode not in ("edge", "reflect", "symmetric"):
            raise wrong(
                "pad",
                "padding_mode must be 'constant', 'edge', 'reflect' or 'symmetric'",
                got=repr(padding_mode),
                error=ValueError,
            )
        return rebuild(np.pad(array, widths, mode=padding_mode))  # type: ignore[call-overload]
    h, w = array.shape[:2]
    out = np.empty((h + top + bottom, w + left + right, *array.shape[2:]), array.dtype)
    out[:] = np.asarray(fill, dtype=array.dtype)
    out[top : top + h, left : left + w] = array
    return rebuild(out)


def resize(
    image: Any,
    size: int | Sequence[int],
    interpolation: str = InterpolationMode.BILINEAR,
    max_size: int | None = None,
    antialias: bool = True,
) -> Any:
    """Resize to (height, width); one number is the shorter side, and the shape is kept.

    ``max_size``: the longer side at most, with one number. PIL images are resized by Pillow.
    """
    mode = _mode("resize", interpolation)
    h, w = size_of("resize", image)
    if isinstance(size, int) or len(size) == 1:
        shorter = size if isinstance(size, int) else size[0]
        scale = shorter / min(h, w)
        height = shorter if h <= w else int(shorter * h / w)
        width = shorter if w <= h else int(shorter * w / h)
        if max_size is not None and max(height, width) > max_size:
            if max_size <= shorter:
                raise wrong(
                    "resize",
                    f"max_size must be above size {shorter}",
                    got=max_size,
                    error=ValueError,
                )
            scale = max_size / max(h, w)
            height, width = (max_size, int(w * scale)) if h > w else (int(h * scale), max_size)
    else:
        if max_size is not None:
            raise wrong(
                "resize", "max_size goes with one number as size", got=size, error=ValueError
            )
        height, width = size
    if min(height, width) < 1:
        raise wrong("resize", "size must be at least 1", got=(height, width), error=ValueError)
    if is_pil(image):
        filters = pillow("Image", "resize").Resampling
        return image.resize((width, height), getattr(filters, mode.upper()))
    array, rebuild = unwrap("resize", image)
    return rebuild(resample.resize(array, height, width, mode, antialias))


def resized_crop(
    image: Any,
    top: int,
    left: int,
    height: int,
    width: int,
    size: int | Sequence[int],
    interpolation: str = InterpolationMode.BILINEAR,
    antialias: bool = True,
) -> Any:
    """``resize(crop(image, top, left, height, width), size)``."""
    return resize(crop(image, top, left, height, width), pair(size), interpolation, None, antialias)


def hflip(image: Any) -> Any:
    """Mirror left and right."""
    array, rebuild = unwrap("hflip", image)
    return rebuild(np.ascontiguousarray(array[:, ::-1]))


def vflip(image: Any) -> Any:
    """Mirror up and down."""
    array, rebuild = unwrap("vflip", image)
    return rebuild(np.ascontiguousarray(array[::-1]))


def rotate(
    image: Any,
    angle: float,
    interpolation: str = InterpolationMode.NEAREST,
    expand: bool = False,
    center: Sequence[float] | None = None,
    fill: Any = 0,
) -> Any:
    """Turn by ``angle`` degrees counter-clockwise around ``center`` (x, y), or the middle."""
    mode = _mode("rotate", interpolation)
    if mode == "bicubic":
        raise wrong(
            "rotate", "interpolation must be nearest or bilinear", got=mode, error=ValueError
        )
    array, rebuild = unwrap("rotate", image)
    return rebuild(resample.rotate(array, angle, mode, expand, center, fill))  # type: ignore[arg-type]


def gaussian_blur(
    image: Any, kernel_size: int | Sequence[int], sigma: float | Sequence[float] | None = None
) -> Any:
    """Blur by a Gaussian of ``kernel_size`` odd pixels (x, y). ``sigma`` None: 0.15 kernel_size +
    0.35.
    """
    kernel = pair(kernel_size)
    if any(k < 1 or k % 2 == 0 for k in kernel):
        raise wrong(
            "gaussian_blur", "kernel_size must be odd and positive", got=kernel, error=ValueError
        )
    if sigma is None:
        sigma = [0.15 * k + 0.35 for k in kernel]
    sx, sy = (sigma, sigma) if isinstance(sigma, int | float) else (sigma[0], sigma[-1])
    array, rebuild = unwrap("gaussian_blur", image)
    return rebuild(resample.gaussian_blur(array, kernel, (sx, sy)))


# ---- colour -------------------------------------------------------------------------------------


def _colour(op: str, image: Any) -> tuple[np.ndarray, Any]:
    """The values of a gray or RGB image as floats, and the way back."""
    array, rebuild = unwrap(op, image)
    channels = channels_of(image)
    if channels not in (1, 3):
        raise wrong(op, "image must have 1 or 3 channels", got=channels)
    white = top_of(array.dtype)

    def back(values: np.ndarray) -> Any:
        return rebuild(cast_like(np.clip(values, 0, white), array.dtype))

    return array.astype(np.float64 if array.dtype == np.float64 else np.float32), back


def _gray(array: np.ndarray) -> np.ndarray:
    """(..., 3) -> (..., 1)."""
    return (array @ np.asarray(GRAY_WEIGHTS, array.dtype))[..., None]


def _is_rgb(image: Any) -> bool:
    return channels_of(image) == 3


def rgb_to_grayscale(image: Any, num_output_channels: int = 1) -> Any:
    """0.299 R + 0.587 G + 0.114 B, in 1 or 3 equal channels."""
    if num_output_channels not in (1, 3):
        raise wrong(
            "rgb_to_grayscale",
            "num_output_channels must be 1 or 3",
            got=num_output_channels,
            error=ValueError,
        )
    array, back = _colour("rgb_to_grayscale", image)
    gray = _gray(array) if _is_rgb(image) else (array[..., None] if array.ndim == 2 else array)
    gray = np.repeat(gray, num_output_channels, axis=-1)
    return back(gray[..., 0] if is_pil(image) and num_output_channels == 1 else gray)


to_grayscale = rgb_to_grayscale


def adjust_brightness(image: Any, factor: float) -> Any:
    """Blend with black: factor 0 is black, 1 the image, 2 twice as bright."""
    array, back = _colour("adjust_brightness", image)
    return back(array * _factor("adjust_brightness", factor))


def adjust_contrast(image: Any, factor: float) -> Any:
    """Blend with the mean gray: factor 0 is plain gray, 1 the image."""
    array, back = _colour("adjust_contrast", image)
    f = _factor("adjust_contrast", factor)
    gray = _gray(array) if _is_rgb(image) else array
    mean = gray.mean(axis=(0, 1, -1) if gray.ndim > 2 else (0, 1), keepdims=True)
    return back(array * f + mean.astype(array.dtype) * (1 - f))


def adjust_saturation(image: Any, factor: float) -> Any:
    """Blend with the gray image: factor 0 is gray, 1 the image."""
    array, back = _colour("adjust_saturation", image)
    f = _factor("adjust_saturation", factor)
    return back(array * f + _gray(array) * (1 - f)) if _is_rgb(image) else image


def adjust_hue(image: Any, factor: float) -> Any:
    """Turn the hue by ``factor`` in [-0.5, 0.5] of the colour circle."""
    if not -0.5 <= factor <= 0.5:
        raise wrong("adjust_hue", "factor must lie in [-0.5, 0.5]", got=factor, error=ValueError)
    array, back = _colour("adjust_hue", image)
    if not _is_rgb(image) or factor == 0:
        return image
    value = array.max(-1)
    chroma = value - array.min(-1)
    r, g, b = np.moveaxis(array, -1, 0)
    safe = np.where(chroma == 0, 1, chroma)
    sector = np.where(
        value == r, (g - b) / safe, np.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    sector = sector + 6 * factor
    # hue, chroma and value back to colours: each channel is one shifted triangle wave
    k = (np.asarray([5, 3, 1], array.dtype) + sector[..., None]) % 6
    wave = np.clip(np.minimum(k, 4 - k), 0, 1)
    return back(value[..., None] - chroma[..., None] * wave)


def _factor(op: str, factor: float) -> float:
    if factor < 0:
        raise wrong(op, "factor must be >= 0", got=factor, error=ValueError)
    return float(factor)


def erase(image: Any, i: int, j: int, h: int, w: int, v: Any = 0, inplace: bool = False) -> Any:
    """Set the (h, w) part at row ``i``, column ``j`` to ``v``: a number or what broadcasts."""
    array, rebuild = unwrap("erase", image)
    out = array if inplace else array.copy()
    if isinstance(v, trident.Tensor | np.ndarray) and v.ndim >= 2:
        v, _ = unwrap("erase", v)
    elif isinstance(v, trident.Tensor):
        v = v.numpy()
    out[i : i + h, j : j + w] = v
    return _written(image, out, rebuild) if inplace else rebuild(out)


def _written(image: Any, array: np.ndarray, rebuild: Any) -> Any:
    """``image`` after its ``array`` was written to: off the CPU that was a copy."""
    if isinstance(image, trident.Tensor) and image.device.type != "cpu":
        image.copy_(rebuild(array))
    return image


def get_image_size(image: Any) -> list[int]:
    """[width, height]."""
    return list(size_of("get_image_size", image)[::-1])


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or two."""
    if isinstance(size, int):
        return size, size
    if len(size) not in (1, 2) or not all(isinstance(s, int | np.integer) and s >= 0 for s in size):
        raise wrong(
            "transforms", "size must be an integer >= 0, or two", got=size, error=ValueError
        )
    return int(size[0]), int(size[-1])


def _mode(op: str, interpolation: Any) -> str:
    codes = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
    mode = (
        codes.get(interpolation, interpolation) if isinstance(interpolation, int) else interpolation
    )
    if mode not in tuple(InterpolationMode):
        raise wrong(
            op,
            "interpolation must be nearest, bilinear or bicubic",
            got=interpolation,
            error=ValueError,
        )
    return InterpolationMode(mode).value
