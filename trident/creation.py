"""Making tensors: from data, filled, in sequence, at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backends, devices, dtypes, interop, shapes
from .dtypes import dtype as DType
from .errors import DeviceError, DTypeError, wrong
from .memory_formats import check as check_format
from .memory_formats import preserve_format
from .ops.registry import ops
from .runtime import pinned
from .runtime.device import interpreting
from .runtime.random import Generator, default_generator
from .tensor import Tensor, _spread, tensor_of


def _place(array: np.ndarray, device: Any, requires_grad: bool, pin: bool = False) -> Tensor:
    where = devices.as_device(device)
    if pin:
        _pinnable(where)
        array = pinned.copy(array) if not interpreting() else array
    out = tensor_of(devices.move(array, where))
    if requires_grad:
        out.requires_grad = True
    return out


def _pinnable(where: Any) -> None:
    if where.type != "cpu":
        raise wrong(
            "pin_memory", "only CPU tensors can be on page-locked memory", got=f"device={where}",
            error=DeviceError,
        )  # fmt: skip


def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """A tensor that holds a copy of ``data``: numbers, nested lists, arrays or tensors.

    Python floats become the default dtype (float32), ints int64; arrays keep their dtype.
    ``pin_memory``: on page-locked memory of the host (``Tensor.pin_memory``); so for ``empty``,
    ``zeros``, ``ones`` and ``full``.

    >>> trident.tensor([[1, 2], [3, 4]])
    tensor([[1, 2],
            [3, 4]])
    """
    if isinstance(data, Tensor):
        if device is None:
            device = data.device
        array = data._host()
    elif hasattr(data, "__cuda_array_interface__"):  # memory of a GPU
        x = interop.from_cuda_array(data)
        copy = x.to(device=device, dtype=dtype, copy=True)
        return copy.requires_grad_() if requires_grad else copy
    else:
        array = _array(data)
    wanted = dtypes.as_dtype(dtype).np if dtype is not None else array.dtype
    return _place(np.array(array, dtype=wanted, order="C"), device, requires_grad, pin_memory)


def _array(data: Any) -> np.ndarray:
    if isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data)
        dtypes.from_numpy(array.dtype)
        return array
    if isinstance(data, (list, tuple)) and _holds_tensors(data):
        data = _to_lists(data)
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise wrong(
            "tensor", "nested lists must have equal lengths at each level", hint=str(error)
        ) from None
    if array.dtype == np.float64:  # Python floats
        if not hasattr(data, "__array__") and not _holds_arrays(data):
            array = array.astype(dtypes.get_default_dtype().np)
    elif array.dtype == object or array.dtype.kind in "USc":
        raise wrong(
            "tensor", "expected numbers, nested lists of numbers, arrays or tensors",
            got=type(data).__name__, error=DTypeError,
        )  # fmt: skip
    dtypes.from_numpy(array.dtype)
    if array.size == 0 and isinstance(data, (list, tuple)):
        array = array.astype(dtypes.get_default_dtype().np)
    return array


def _holds_tensors(data: Any) -> bool:
    return any(
        isinstance(d, Tensor) or (isinstance(d, (list, tuple)) and _holds_tensors(d)) for d in data
    )


def _holds_arrays(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return bool(data) and _holds_arrays(data[0])
    return isinstance(data, (np.ndarray, np.generic))


def _to_lists(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.tolist()
    return [_to_lists(d) for d in data] if isinstance(data, (list, tuple)) else data


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """``data`` as a tensor, sharing memory where it is an array that fits already: a tensor, an
    ndarray, or another library's with ``__cuda_array_interface__`` or ``__dlpack__``.

    >>> a = np.zeros(2)
    >>> trident.as_tensor(a)[0] = 3
    >>> a
    array([3., 0.])
    """
    if isinstance(data, Tensor):
        return data.to(device=device, dtype=dtype)
    if isinstance(data, np.ndarray):
        return from_numpy(data).to(device=device, dtype=dtype)
    if not isinstance(data, np.generic):
        if hasattr(data, "__cuda_array_interface__"):
            return interop.from_cuda_array(data).to(device=device, dtype=dtype)
        if hasattr(data, "__dlpack__"):
            return interop.from_dlpack(data).to(device=device, dtype=dtype)
    return tensor(data, dtype=dtype, device=device)


asarray = as_tensor


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the memory of ``array``: writing to one changes the other.

    >>> a = np.zeros(2, np.float32)
    >>> trident.from_numpy(a).add_(1)
    tensor([1., 1.])
    >>> a
    array([1., 1.], dtype=float32)
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected an ndarray; got {type(array).__name__}")
    dtypes.from_numpy(array.dtype)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return tensor_of(array)


def full(
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """A tensor of shape ``size`` holding ``fill_value`` everywhere.

    >>> trident.full((2, 2), 7)
    tensor([[7, 7],
            [7, 7]])
    """
    if isinstance(fill_value, Tensor):
        fill_value = fill_value.item()
    d = dtypes.as_dtype(dtype) if dtype is not None else dtypes.scalar_dtype(fill_value)
    shape = _shape("full", (size,))
    return _place(_filled(shape, fill_value, d), device, requires_grad, pin_memory)


def _filled(shape: tuple[int, ...], value: Any, d: DType) -> np.ndarray:
    zero = value == 0 and math.copysign(1.0, value) > 0
    return np.zeros(shape, d.np) if zero else np.full(shape, value, d.np)


def _shape(name: str, size: tuple) -> tuple[int, ...]:
    """The shape that ``zeros(2, 3)`` or ``zeros((2, 3))`` names."""
    shape = _spread(size)
    if any(s < 0 for s in shape):
        raise wrong(name, "sizes must not be negative", got=shape)
    return shape


def _float(dtype: Any) -> DType:
    return dtypes.as_dtype(dtype) if dtype is not None else dtypes.get_default_dtype()


def zeros(
    *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """Zeros: ``zeros(2, 3)`` or ``zeros((2, 3))``.

    >>> trident.zeros(2)
    tensor([0., 0.])
    """
    data = _filled(_shape("zeros", size), 0, _float(dtype))
    return _place(data, device, requires_grad, pin_memory)


def ones(
    *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """Ones.

    >>> trident.ones(2)
    tensor([1., 1.])
    """
    data = _filled(_shape("ones", size), 1, _float(dtype))
    return _place(data, device, requires_grad, pin_memory)


def empty(
    *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """Uninitialised memory: what it holds is arbitrary."""
    shape = _shape("empty", size)
    where = devices.as_device(device)
    if pin_memory:
        _pinnable(where)
    if pin_memory and not interpreting():
        data: Any = pinned.empty(shape, _float(dtype).np)
    elif where.type == "cpu":
        data = np.empty(shape, _float(dtype).np)
    else:
        data = devices.runtime_device(where).empty(shape, _float(dtype))
    out = tensor_of(data)
    if requires_grad:
        out.requires_grad = True
    return out


def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, ... below end; int64 where all three are ints.

    >>> trident.arange(2, 10, 3)
    tensor([2, 5, 8])
    """
    if end is None:
        start, end = 0, start
    if step == 0:
        raise wrong("arange", "step must not be zero", got=step)
    d = dtypes.as_dtype(dtype) if dtype is not None else None
    if d is None:
        ints = all(isinstance(v, int) for v in (start, end, step))
        d = dtypes.int64 if ints else dtypes.get_default_dtype()
    return _place(np.arange(start, end, step).astype(d.np), device, requires_grad)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """``steps`` evenly spaced values from start to end, both included.

    >>> trident.linspace(0, 1, 5)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
    """
    return _place(np.linspace(start, end, steps).astype(_float(dtype).np), device, requires_grad)


def logspace(
    start: float,
    end: float,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """``base`` to evenly spaced exponents from start to end.

    >>> trident.logspace(0, 2, 3)
    tensor([  1.,  10., 100.])
    """
    values = np.logspace(start, end, steps, base=base).astype(_float(dtype).np)
    return _place(values, device, False)


def eye(
    n: int, m: int | None = None, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Ones on the diagonal of an (n, m) matrix of zeros.

    >>> trident.eye(2)
    tensor([[1., 0.],
            [0., 1.]])
    """
    return _place(np.eye(n, m, dtype=_float(dtype).np), device, requires_grad)


def _like(x: Tensor, dtype: Any, device: Any) -> tuple[DType, Any]:
    return (dtypes.as_dtype(dtype) if dtype is not None else x.dtype, device or x.device)


def _order_like(name: str, x: Tensor, wanted: Any) -> tuple[int, ...] | None:
    """The axes from the slowest to the fastest of a tensor like x, or in the format ``wanted``;
    None for row-major."""
    order = check_format(name, wanted).strides(name, tuple(x.shape), x.stride())
    return shapes.turned_order(tuple(x.shape), order)


def _turned(make: Callable[..., Tensor], x: Tensor, order: tuple[int, ...] | None) -> Tensor:
    """``make(shape)`` of x's shape, with its axes in memory in this order."""
    if order is None:
        return make(tuple(x.shape))
    out = make(tuple(x.shape[a] for a in order))
    out._data = out._data.transpose(shapes.inverse(order))
    return out


def full_like(
    x: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False, memory_format: Any = preserve_format,
) -> Tensor:  # fmt: skip
    """A tensor like x holding ``fill_value``, laid out as x is or in ``memory_format``.

    >>> trident.full_like(trident.zeros(2), 3.5)
    tensor([3.5000, 3.5000])
    """
    d, where = _like(x, dtype, device)
    order = _order_like("full_like", x, memory_format)
    out = _turned(lambda shape: full(shape, fill_value, dtype=d, device=where), x, order)
    return _grad(out, requires_grad)


def zeros_like(x: Tensor, **kwargs: Any) -> Tensor:
    """Zeros of x's shape, dtype and device."""
    return full_like(x, 0, **kwargs)


def ones_like(x: Tensor, **kwargs: Any) -> Tensor:
    """Ones of x's shape, dtype and device."""
    return full_like(x, 1, **kwargs)


def empty_like(
    x: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:  # fmt: skip
    """Uninitialised memory of x's shape, dtype and device, laid out as x is or in
    ``memory_format``."""
    d, where = _like(x, dtype, device)
    order = _order_like("empty_like", x, memory_format)
    out = _turned(lambda shape: empty(shape, dtype=d, device=where), x, order)
    return _grad(out, requires_grad)


# ---- random -------------------------------------------------------------------------------------


def _draw(
    name: str, shape: tuple, generator: Generator | None, d: DType, device: Any, **how: Any
) -> Tensor:
    seed, offset = (generator or default_generator).take(shapes.numel(shape))
    place = devices.runtime_device(devices.as_device(device))
    return getattr(ops, name)(shape=shape, seed=seed, offset=offset, dtype=d, device=place, **how)


def _grad(x: Tensor, requires_grad: bool) -> Tensor:
    if requires_grad:
        x.requires_grad = True
    return x


def rand(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Uniform numbers in [0, 1).

    >>> _ = trident.manual_seed(0)
    >>> x = trident.rand(1000)
    >>> bool((x >= 0).all() and (x < 1).all())
    True
    """
    x = _draw(
        "random_uniform", _shape("rand", size), generator, _float(dtype), device, low=0.0, high=1.0
    )
    return _grad(x, requires_grad)


def randn(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Standard normal numbers.

    >>> trident.randn(2, 3).shape
    trident.Size([2, 3])
    """
    x = _draw(
        "random_normal", _shape("randn", size), generator, _float(dtype), device, mean=0.0, std=1.0
    )
    return _grad(x, requires_grad)


def randint(
    low: int, high: Any = None, size: Any = None, *, generator: Generator | None = None,
    dtype: Any = None, device: Any = None,
) -> Tensor:  # fmt: skip
    """Integers uniform in [low, high): ``randint(high, size)`` or ``randint(low, high, size)``.

    >>> bool((trident.randint(3, (100,)) < 3).all())
    True
    """
    if size is None:
        low, high, size = 0, low, high
    if size is None or high is None:
        raise TypeError(
            "randint: missing size; call randint(high, size) or randint(low, high, size)"
        )
    if high <= low:
        raise wrong("randint", "high must be above low", got=(low, high))
    d = dtypes.as_dtype(dtype) if dtype is not None else dtypes.int64
    return _draw("random_int", _shape("randint", (size,)), generator, d, device, low=low, high=high)


def randperm(
    n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None
) -> Tensor:
    """0, 1, ..., n-1 in random order.

    >>> sorted(trident.randperm(4).tolist())
    [0, 1, 2, 3]
    """
    seed, offset = (generator or default_generator).take(n)
    place = devices.runtime_device(devices.as_device(device))
    order = ops.random_permutation(n=n, seed=seed, offset=offset, device=place)
    return order if dtype is None else order.to(dtypes.as_dtype(dtype))


def normal(
    mean: Any, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None,
    dtype: Any = None, device: Any = None,
) -> Tensor:  # fmt: skip
    """Normal numbers with this mean and standard deviation (numbers with ``size``, or tensors)."""
    if size is None:
        like = mean if isinstance(mean, Tensor) else std
        size = tuple(like.shape)
        device = device or like.device
    return randn(size, generator=generator, dtype=dtype, device=device) * std + mean


def _formatted(name: str, x: Tensor, out: Tensor, wanted: Any) -> Tensor:
    """``out``, which has x's shape, laid out as x is or in the format ``wanted``. The numbers do
    not depend on that."""
    if _order_like(name, x, wanted) is None:
        return out
    if wanted is preserve_format:
        return tensor_of(backends.of(out._data).copied_like(out._data, x._data))
    return out.contiguous(wanted)


def rand_like(
    x: Tensor, *, dtype: Any = None, device: Any = None, memory_format: Any = preserve_format
) -> Tensor:
    """Uniform numbers in [0, 1) of x's shape, dtype and device, laid out as x is or in
    ``memory_format``."""
    d, where = _like(x, dtype, device)
    out = rand(tuple(x.shape), dtype=d, device=where)
    return _formatted("rand_like", x, out, memory_format)


def randn_like(
    x: Tensor, *, dtype: Any = None, device: Any = None, memory_format: Any = preserve_format
) -> Tensor:
    """Standard normal numbers of x's shape, dtype and device, laid out as x is or in
    ``memory_format``."""
    d, where = _like(x, dtype, device)
    out = randn(tuple(x.shape), dtype=d, device=where)
    return _formatted("randn_like", x, out, memory_format)


def randint_like(x: Tensor, low: int, high: int | None = None, *, dtype: Any = None) -> Tensor:
    """Random integers of x's shape, dtype and device."""
    if high is None:
        low, high = 0, low
    return randint(low, high, tuple(x.shape), dtype=dtype or x.dtype, device=x.device)


def manual_seed(seed: int) -> Generator:
    """Seed the default generator: the same seed draws the same numbers, on every device."""
    return default_generator.manual_seed(int(seed))


def seed() -> int:
    """Seed the default generator from the system's entropy and return the seed."""
    value = int(np.random.SeedSequence().entropy) % 2**63  # type: ignore[arg-type, operator]
    default_generator.manual_seed(value)
    return value


def get_rng_state() -> Tensor:
    """The state of the default generator, as a uint8 tensor."""
    return tensor_of(np.array(default_generator.get_state(), np.uint8))


def set_rng_state(state: Tensor) -> None:
    """Put the default generator back into a state that ``get_rng_state`` gave.

    >>> state = trident.get_rng_state()
    >>> x = trident.rand(3)
    >>> trident.set_rng_state(state)
    >>> trident.equal(x, trident.rand(3))
    True
    """
    default_generator.set_state(state.numpy() if isinstance(state, Tensor) else state)


def initial_seed() -> int:
    """The seed of the default generator."""
    return default_generator.initial_seed()


def _fill_random(name: str, x: Tensor, draw: Any) -> Tensor:
    from . import dispatch

    dispatch.check_writable(name, x, ())
    backends.of(x._data).assign(x._data, draw._data)
    return dispatch.rebind(name, x, tensor_of(x._data) if x._node is not None else x)


def _uniform_(self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with uniform numbers in [a, b)."""
    d = self.dtype
    new = _draw(
        "random_uniform", tuple(self.shape), generator, d, self.device, low=float(a), high=float(b)
    )
    return _fill_random("uniform_", self, new)


def _normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with normal numbers."""
    new = _draw(
        "random_normal", tuple(self.shape), generator, self.dtype, self.device,
        mean=float(mean), std=float(std),
    )  # fmt: skip
    return _fill_random("normal_", self, new)


def _random_(
    self: Tensor, low: int = 0, high: int | None = None, *, generator: Any = None
) -> Tensor:
    """Fill with integers uniform in [low, high)."""
    if high is None:
        low, high = (0, low) if low else (0, 2**24)
    new = randint(
        low, high, tuple(self.shape), generator=generator, dtype=self.dtype, device=self.device
    )
    return _fill_random("random_", self, new)


def _bernoulli_(self: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    """Fill with ones of probability ``p``, else zeros."""
    new = rand(tuple(self.shape), generator=generator, device=self.device) < p
    return _fill_random("bernoulli_", self, new.to(self.dtype))


Tensor.uniform_ = _uniform_  # type: ignore[attr-defined]
Tensor.normal_ = _normal_  # type: ignore[attr-defined]
Tensor.random_ = _random_  # type: ignore[attr-defined]
Tensor.bernoulli_ = _bernoulli_  # type: ignore[attr-defined]


def is_tensor(obj: Any) -> bool:
    """Whether ``obj`` is a Tensor."""
    return isinstance(obj, Tensor)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple:
    """Grids of coordinates from 1-D tensors, one per axis.

    >>> a, b = trident.meshgrid(trident.arange(2), trident.arange(3))
    >>> b
    tensor([[0, 1, 2],
            [0, 1, 2]])
    """
    items: Sequence = (
        tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    )
    if indexing not in ("ij", "xy"):
        raise wrong("meshgrid", "indexing must be 'ij' or 'xy'", got=indexing)
    if indexing == "xy" and len(items) > 1:
        second, first, *rest = meshgrid(items[1], items[0], *items[2:])
        return (first, second, *rest)
    shape = tuple(t.numel() for t in items)
    return tuple(
        ops.expand(t.reshape(*[-1 if i == k else 1 for i in range(len(items))]), shape=shape)
        for k, t in enumerate(items)
    )
