"""Images: data sets, transforms and grids, on numpy. Pillow is needed only to decode and save
files.
"""

from __future__ import annotations

from . import datasets, transforms, utils

__all__ = ["datasets", "transforms", "utils"]
