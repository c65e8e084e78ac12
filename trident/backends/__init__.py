"""Backends run an op on arrays: ``numpy`` on ndarrays, ``triton`` on DeviceArrays, same
functions.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from . import numpy as numpy_backend


def of(array: Any) -> ModuleType:
    """The backend module of an array."""
    if isinstance(array, np.ndarray):
        return numpy_backend
    from . import triton as triton_backend

    return triton_backend
