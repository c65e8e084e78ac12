"""Transforms that change values: colour, blur, erasing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import trident

from ...errors import wrong
from ...utils.data import item_rng
from ..images import channels_of, is_pil, size_of
from . import functional as F
from .basic import Transform, probability

Range = float | tuple[float, float]


class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue at random, in random order.

    A number x draws a factor from [max(0, 1 - x), 1 + x], hue from [-x, x]; a range is taken as it
    is. 0 leaves the property alone.

    >>> from trident.vision import transforms
    >>> jitter = transforms.ColorJitter(brightness=0.4, hue=0.1)
    >>> jitter(np.zeros((2, 2, 3), np.uint8)).max()
    np.uint8(0)
    """

    def __init__(
        self, brightness: Range = 0, contrast: Range = 0, saturation: Range = 0, hue: Range = 0
    ) -> None:
        self.brightness = _range("brightness", brightness)
        self.contrast = _range("contrast", contrast)
        self.saturation = _range("saturation", saturation)
        self.hue = _range("hue", hue, middle=0.0, low=-0.5, high=0.5)

    def __call__(self, image: Any) -> Any:
        steps = [
            (F.adjust_brightness, self.brightness),
            (F.adjust_contrast, self.contrast),
            (F.adjust_saturation, self.saturation),
            (F.adjust_hue, self.hue),
        ]
        rng = item_rng()
        for i in rng.permutation(len(steps)):
            adjust, bounds = steps[i]
            if bounds is not None:
                image = adjust(image, rng.uniform(*bounds))
        return image


def _range(
    name: str, value: Any, middle: float = 1.0, low: float = 0.0, high: float = math.inf
) -> tuple[float, float] | None:
    if isinstance(value, int | float):
        if value < 0:
            raise wrong("ColorJitter", f"{name} must be >= 0", got=value, error=ValueError)
        bounds = (max(middle - value, 0.0 if middle else -value), middle + value)
    else:
        bounds = (float(value[0]), float(value[1]))
    if not low <= bounds[0] <= bounds[1] <= high:
        raise wrong(
            "ColorJitter", f"{name} must lie in [{low}, {high}]", got=value, error=ValueError
        )
    return None if bounds == (middle, middle) else bounds


class Grayscale(Transform):
    """The luma of an RGB image, in 1 or 3 equal channels."""

    def __init__(self, num_output_channels: int = 1) -> None:
        self.num_output_channels = num_output_channels

    def __call__(self, image: Any) -> Any:
        return F.rgb_to_grayscale(image, self.num_output_channels)


class RandomGrayscale(Transform):
    """With probability ``p`` the luma, in as many channels as the image has."""

    def __init__(self, p: float = 0.1) -> None:
        self.p = probability("RandomGrayscale", p)

    def __call__(self, image: Any) -> Any:
        if item_rng().random() < self.p:
            return F.rgb_to_grayscale(image, channels_of(image))
        return image


class GaussianBlur(Transform):
    """Blur by a Gaussian of ``kernel_size`` odd pixels whose sigma is uniform in ``sigma``."""

    def __init__(
        self, kernel_size: int | Sequence[int], sigma: float | tuple[float, float] = (0.1, 2.0)
    ) -> None:
        self.kernel_size = F.pair(kernel_size)
        self.sigma = (sigma, sigma) if isinstance(sigma, int | float) else sigma
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise wrong("GaussianBlur", "sigma must be above 0", got=sigma, error=ValueError)

    def __call__(self, image: Any) -> Any:
        return F.gaussian_blur(image, self.kernel_size, float(item_rng().uniform(*self.sigma)))


class RandomErasing(Transform):
    """With probability ``p`` overwrite a random rectangle with ``value`` (or "random": normal
    noise).

    Its share of the area is uniform in ``scale``, the logarithm of its height / width in ``ratio``.
    Source: Zhong et al., "Random erasing data augmentation", 2017.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: Any = 0,
        inplace: bool = False,
    ) -> None:
        self.p, self.scale, self.ratio = probability("RandomErasing", p), scale, ratio
        if isinstance(value, str) and value != "random":
            raise wrong(
                "RandomErasing",
                "value must be a number, a sequence or 'random'",
                got=repr(value),
                error=ValueError,
            )
        self.value, self.inplace = value, inplace

    def __call__(self, image: Any) -> Any:
        rng = item_rng()
        if rng.random() >= self.p:
            return image
        if is_pil(image):
            raise wrong(
                "RandomErasing",
                "image must be a Tensor or an array",
                got="a PIL image",
                hint="put transforms.ToTensor() before it",
                error=TypeError,
            )
        height, width = size_of("RandomErasing", image)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                i, j = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                value = self._value(rng, image, h, w)
                return F.erase(image, i, j, h, w, value, self.inplace)
        return image

    def _value(self, rng: np.random.Generator, image: Any, h: int, w: int) -> Any:
        if self.value != "random":
            return self.value
        # noise for each channel; the last axis is the channel of the (H, W, C) view
        lead = image.shape[:-3] if isinstance(image, trident.Tensor) else ()
        channels = (channels_of(image),) if image.ndim > 2 else ()
        noise = rng.standard_normal((h, w, *lead, *channels))
        return noise if isinstance(image, np.ndarray) else noise.astype(np.float32)
