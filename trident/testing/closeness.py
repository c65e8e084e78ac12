"""How close is close: one table, by dtype and by how many numbers were accumulated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import dtypes
from ..dtypes import dtype as DType

_ULPS = {
    # result dtype: units in the last place that one rounding and a few float32 steps may cost
    dtypes.float16: 2.0,
    dtypes.bfloat16: 2.0,
    dtypes.float32: 32.0,
    dtypes.float64: 4096.0,  # polynomials of the kernels, and the oracle itself is float64
}


def tolerance(dtype: DType, length: int = 1) -> tuple[float, float]:
    """(rtol, atol) for results of ``dtype`` that accumulate ``length`` terms of order one.

    >>> rtol, atol = trident.testing.tolerance(trident.float32)
    >>> 1e-6 < rtol < 1e-5
    True
    """
    if not dtype.is_floating_point:
        return 0.0, 0.0
    eps = dtypes.finfo(dtype).eps
    steps = dtypes.finfo(dtype.compute).eps * 8 * math.sqrt(length)
    rtol = _ULPS[dtype] * eps + steps
    return rtol, rtol * 0.5 * max(1.0, math.sqrt(length))


def _host(x: Any) -> np.ndarray:
    if hasattr(x, "_host"):
        x = x._host()
    return np.asarray(x)


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    length: int = 1,
    equal_nan: bool = True,
    msg: str = "",
) -> None:
    """Raise AssertionError unless ``actual`` is within tolerance of ``expected``.

    Tolerances default to the table's, from ``actual``'s dtype and the number of accumulated terms.
    The message names the worst element, its index and its distance in units in the last place.

    >>> trident.testing.assert_close(trident.tensor([1.0]), np.array([1.0 + 1e-7], np.float32))
    """
    a, b = _host(actual), _host(expected)
    head = f"{msg}: " if msg else ""
    if a.shape != b.shape:
        raise AssertionError(f"{head}shape {a.shape}, expected {b.shape}")
    d = dtypes.FROM_NUMPY.get(a.dtype, dtypes.float64)
    r, t = tolerance(d, length)
    r, t = (r if rtol is None else rtol), (t if atol is None else atol)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y) & equal_nan)
        limit = t + r * np.abs(y)
        bad = ~(same | (np.abs(x - y) <= limit)) | (np.isinf(y) & ~same)
    if not bad.any():
        return
    with np.errstate(all="ignore"):
        excess = np.where(bad, np.abs(x - y) / np.maximum(limit, 1e-300), -1.0)
    excess = np.where(np.isnan(excess), np.inf, excess)
    worst = np.unravel_index(int(np.argmax(excess)), a.shape) if a.shape else ()
    text = (
        f"{head}{int(bad.sum())} of {a.size} elements differ; the worst is at index "
        f"{tuple(int(i) for i in worst)}: got {x[worst]!r}, expected {y[worst]!r} "
        f"(rtol {r:.3g}, atol {t:.3g})"
    )
    if d.is_floating_point and np.isfinite(x[worst]) and np.isfinite(y[worst]):
        unit = float(dtypes.finfo(d).eps) * max(abs(y[worst]), dtypes.finfo(d).tiny)
        text += f", {abs(x[worst] - y[worst]) / unit:.1f} ulp"
    raise AssertionError(text)
