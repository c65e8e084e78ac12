"""Transforms that move pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...errors import wrong
from ...utils.data import item_rng
from ..images import size_of
from . import functional as F
from .basic import Transform, probability


class Resize(Transform):
    """Resize to (height, width), or the shorter side to one number, keeping the shape.

    ``interpolation``: "nearest", "bilinear", "bicubic". ``max_size`` bounds the longer side.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        interpolation: str = F.InterpolationMode.BILINEAR,
        max_size: int | None = None,
        antialias: bool = True,
    ) -> None:
        F.pair(size)
        self.size, self.interpolation = size, interpolation
        self.max_size, self.antialias = max_size, antialias

    def __call__(self, image: Any) -> Any:
        return F.resize(image, self.size, self.interpolation, self.max_size, self.antialias)


class CenterCrop(Transform):
    """The middle of the image, of ``size``; a smaller image is padded with 0."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = F.pair(size)

    def __call__(self, image: Any) -> Any:
        return F.center_crop(image, self.size)


class Pad(Transform):
    """Add a border of ``padding``: one number, (x, y) or (left, top, right, bottom)."""

    def __init__(
        self, padding: int | Sequence[int], fill: Any = 0, padding_mode: str = "constant"
    ) -> None:
        self.padding, self.fill, self.padding_mode = padding, fill, padding_mode

    def __call__(self, image: Any) -> Any:
        return F.pad(image, self.padding, self.fill, self.padding_mode)


class RandomCrop(Transform):
    """A part of ``size`` at a random place, after padding by ``padding``.

    ``pad_if_needed`` pads an image smaller than ``size``; without it that raises.

    >>> from trident.vision import transforms
    >>> transforms.RandomCrop(32, padding=4)(np.zeros((32, 32, 3), np.uint8)).shape
    (32, 32, 3)
    """

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int | Sequence[int] | None = None,
        pad_if_needed: bool = False,
        fill: Any = 0,
        padding_mode: str = "constant",
    ) -> None:
        self.size, self.padding, self.pad_if_needed = F.pair(size), padding, pad_if_needed
        self.fill, self.padding_mode = fill, padding_mode

    def __call__(self, image: Any) -> Any:
        if self.padding is not None:
            image = F.pad(image, self.padding, self.fill, self.padding_mode)
        height, width = self.size
        h, w = size_of("RandomCrop", image)
        if self.pad_if_needed and (h < height or w < width):
            by = [max(width - w, 0), max(height - h, 0)]
            image = F.pad(image, by, self.fill, self.padding_mode)
            h, w = size_of("RandomCrop", image)
        if h < height or w < width:
            raise wrong(
                "RandomCrop",
                f"the (padded) image must be at least {self.size}",
                got=(h, w),
                hint="set pad_if_needed=True",
            )
        rng = item_rng()
        top, left = int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1))
        return F.crop(image, top, left, height, width)


class RandomHorizontalFlip(Transform):
    """Mirror left and right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = probability("RandomHorizontalFlip", p)

    def __call__(self, image: Any) -> Any:
        return F.hflip(image) if item_rng().random() < self.p else image


class RandomVerticalFlip(Transform):
    """Mirror up and down with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = probability("RandomVerticalFlip", p)

    def __call__(self, image: Any) -> Any:
        return F.vflip(image) if item_rng().random() < self.p else image


class RandomResizedCrop(Transform):
    """A random part, resized to ``size``.

    Its share of the area is uniform in ``scale``, the logarithm of its width / height uniform in
    ``ratio``. Source: Szegedy et al., "Going deeper with convolutions", 2015.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = F.InterpolationMode.BILINEAR,
        antialias: bool = True,
    ) -> None:
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            if not 0 < low <= high:
                raise wrong(
                    "RandomResizedCrop",
                    f"{name} must be (low, high) with 0 < low <= high",
                    got=(low, high),
                    error=ValueError,
                )
        self.size, self.scale, self.ratio = F.pair(size), scale, ratio
        self.interpolation, self.antialias = interpolation, antialias

    def part(self, h: int, w: int) -> tuple[int, int, int, int]:
        """A random (top, left, height, width) of an image (h, w)."""
        rng = item_rng()
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = h * w * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(low, high))
            width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < width <= w and 0 < height <= h:
                top, left = rng.integers(h - height + 1), rng.integers(w - width + 1)
                return int(top), int(left), height, width
        # a very long or tall image: the largest middle part whose shape is allowed
        aspect = min(max(w / h, self.ratio[0]), self.ratio[1])
        width, height = min(w, round(h * aspect)), min(h, round(w / aspect))
        return (h - height) // 2, (w - width) // 2, height, width

    def __call__(self, image: Any) -> Any:
        part = self.part(*size_of("RandomResizedCrop", image))
        return F.resized_crop(image, *part, self.size, self.interpolation, self.antialias)


class RandomRotation(Transform):
    """Turn by a random angle in (-degrees, degrees), or in the range ``degrees``."""

    def __init__(
        self,
        degrees: float | tuple[float, float],
        interpolation: str = F.InterpolationMode.NEAREST,
        expand: bool = False,
        center: Sequence[float] | None = None,
        fill: Any = 0,
    ) -> None:
        if isinstance(degrees, int | float):
            if degrees < 0:
                raise wrong(
                    "RandomRotation",
                    "degrees must be >= 0, or a range (low, high)",
                    got=degrees,
                    error=ValueError,
                )
            degrees = (-degrees, degrees)
        self.degrees, self.interpolation, self.expand = degrees, interpolation, expand
        self.center, self.fill = center, fill

    def __call__(self, image: Any) -> Any:
        angle = item_rng().uniform(*self.degrees)
        return F.rotate(image, angle, self.interpolation, self.expand, self.center, self.fill)
