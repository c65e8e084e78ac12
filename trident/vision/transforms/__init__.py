"""Image transforms, with torchvision's names and arguments.

They take numpy arrays (H, W) or (H, W, C), PIL images and Tensors (..., C, H, W). Random ones draw
from ``trident.utils.data.item_rng()``, so inside a DataLoader they are a function of (seed, epoch,
index) alone.
"""

from __future__ import annotations

from . import functional
from .basic import (
    Compose,
    ConvertImageDtype,
    Lambda,
    Normalize,
    PILToTensor,
    RandomApply,
    RandomChoice,
    ToDtype,
    ToPILImage,
    ToTensor,
    Transform,
)
from .color import ColorJitter, GaussianBlur, Grayscale, RandomErasing, RandomGrayscale
from .functional import InterpolationMode
from .geometry import (
    CenterCrop,
    Pad,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    Resize,
)

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "ConvertImageDtype",
    "GaussianBlur",
    "Grayscale",
    "InterpolationMode",
    "Lambda",
    "Normalize",
    "PILToTensor",
    "Pad",
    "RandomApply",
    "RandomChoice",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "Resize",
    "ToDtype",
    "ToPILImage",
    "ToTensor",
    "Transform",
    "functional",
]
