"""Transforms that chain others, and those that change the kind or the dtype of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trident

from ...dtypes import as_dtype
from ...errors import wrong
from ...utils.data import item_rng
from . import functional as F


class Transform:
    """Base of transforms: a callable that prints with its arguments."""

    def __call__(self, image: Any) -> Any:
        raise TypeError(f"{type(self).__name__} must define __call__(self, image)")

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({given})"


class Compose(Transform):
    """Apply ``transforms`` one after the other.

    >>> from trident.vision import transforms
    >>> t = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
    >>> t(np.full((1, 1), 255, np.uint8))
    tensor([[[1.]]])
    """

    def __init__(self, transforms: Sequence[Callable]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for t in self.transforms:
            image = t(image)
        return image

    def __repr__(self) -> str:
        return "Compose([\n" + "".join(f"    {t!r},\n" for t in self.transforms) + "])"


class ToTensor(Transform):
    """A PIL image or array (H, W[, C]) as Tensor (C, H, W); uint8 becomes float32 in [0, 1]."""

    def __call__(self, image: Any) -> Any:
        return F.to_tensor(image)


class PILToTensor(Transform):
    """A PIL image or array as Tensor (C, H, W) with the same dtype and values."""

    def __call__(self, image: Any) -> Any:
        return F.pil_to_tensor(image)


class ToPILImage(Transform):
    """A Tensor (C, H, W) or array (H, W[, C]) as PIL image; floats are taken to be in [0, 1]."""

    def __init__(self, mode: str | None = None) -> None:
        self.mode = mode

    def __call__(self, image: Any) -> Any:
        return F.to_pil_image(image, self.mode)


class Normalize(Transform):
    """(x - mean) / std for each channel of a float image."""

    def __init__(
        self, mean: float | Sequence[float], std: float | Sequence[float], inplace: bool = False
    ) -> None:
        self.mean, self.std, self.inplace = mean, std, inplace

    def __call__(self, image: Any) -> Any:
        return F.normalize(image, self.mean, self.std, self.inplace)  # type: ignore[arg-type]


class ConvertImageDtype(Transform):
    """Change the dtype and scale the values to its range: uint8 0..255 <-> float 0..1."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def __call__(self, image: Any) -> Any:
        return F.convert_image_dtype(image, self.dtype)


class ToDtype(Transform):
    """Change the dtype; with ``scale`` also the values, as ``ConvertImageDtype`` does."""

    def __init__(self, dtype: Any, scale: bool = False) -> None:
        self.dtype, self.scale = dtype, scale

    def __call__(self, image: Any) -> Any:
        if self.scale:
            return F.convert_image_dtype(image, self.dtype)
        if isinstance(image, trident.Tensor):
            return image.to(dtype=as_dtype(self.dtype))
        array, rebuild = F.unwrap("ToDtype", image)
        return rebuild(array.astype(as_dtype(self.dtype).np))


class Lambda(Transform):
    """Any function as a transform."""

    def __init__(self, lambd: Callable) -> None:
        if not callable(lambd):
            raise wrong("Lambda", "lambd must be callable", got=repr(lambd), error=TypeError)
        self.lambd = lambd

    def __call__(self, image: Any) -> Any:
        return self.lambd(image)


class RandomApply(Transform):
    """Apply ``transforms``, all of them with probability ``p``, else none."""

    def __init__(self, transforms: Sequence[Callable], p: float = 0.5) -> None:
        self.transforms, self.p = list(transforms), probability("RandomApply", p)

    def __call__(self, image: Any) -> Any:
        if item_rng().random() < self.p:
            for t in self.transforms:
                image = t(image)
        return image


class RandomChoice(Transform):
    """Apply one of ``transforms``, taken with the odds ``p`` (None: equal)."""

    def __init__(self, transforms: Sequence[Callable], p: Sequence[float] | None = None) -> None:
        if p is not None and (len(p) != len(transforms) or min(p) < 0 or not sum(p) > 0):
            raise wrong(
                "RandomChoice",
                "p must have one number >= 0 for each transform",
                got=p,
                error=ValueError,
            )
        self.transforms = list(transforms)
        self.p = None if p is None else [x / sum(p) for x in p]

    def __call__(self, image: Any) -> Any:
        return self.transforms[int(item_rng().choice(len(self.transforms), p=self.p))](image)


def probability(op: str, p: float) -> float:
    """``p``, if it lies in [0, 1]."""
    if not 0 <= p <= 1:
        raise wrong(op, "p must lie in [0, 1]", got=p, error=ValueError)
    return p
