"""Device memory: ``Buffer`` owns bytes, ``DeviceArray`` is a strided, typed window on one.

``DeviceArray`` answers the view methods of ``numpy.ndarray`` (``transpose``, ``reshape``, basic
indexing), so that one body of a view op serves both devices. It does no arithmetic: that is
what kernels are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import shapes
from ..dtypes import dtype as DType
from ..shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from .device import Device


class Buffer:
    """Bytes on a device. Freed when the last ``DeviceArray`` on it goes."""

    __slots__ = ("__weakref__", "device", "memory", "nbytes", "ptr")

    def __init__(self, device: Device, ptr: int, nbytes: int, memory: Any) -> None:
        self.device = device
        self.ptr = ptr
        self.nbytes = nbytes
        self.memory = memory  # what keeps the bytes alive: a numpy array on the host device


class LastingBuffer(Buffer):
    """A buffer that lives as long as its device: a launch plan may keep its address."""

    __slots__ = ()


class DeviceArray:
    """(buffer, offset, shape, strides, dtype); offset and strides count elements.

    ``ptr`` is the address of the first element, ``layout`` the array's ``Layout`` once asked for.
    """

    __slots__ = ("buffer", "dtype", "layout", "offset", "ptr", "shape", "strides")

    contiguous: ClassVar[Callable[[DeviceArray], DeviceArray]]
    """Itself, or a contiguous copy. A copy takes a kernel, so ``custom`` fills this in."""

    assign: ClassVar[Callable[[DeviceArray, DeviceArray], None]]
    """Write another array of its shape into its memory. Takes a kernel, as ``contiguous`` does."""

    def __init__(
        self, buffer: Buffer, shape: Shape, strides: Shape, dtype: DType, offset: int = 0
    ) -> None:
        self.buffer = buffer
        self.shape = shape
        self.strides = strides
        self.dtype = dtype
        self.offset = offset
        self.ptr: int = buffer.ptr + offset * dtype.itemsize
        self.layout: Layout | None = None

    @property
    def device(self) -> Device:
        return self.buffer.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return shapes.numel(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def numel(self) -> int:
        """torch's word for ``size``."""
        return self.size

    def stride(self, dim: int | None = None) -> Any:
        """torch's word for ``strides``, or the stride of one axis."""
        if dim is None:
            return self.strides
        return self.strides[shapes.axis("stride", dim, self.ndim)]

    def is_contiguous(self) -> bool:
        return shapes.is_contiguous(self.shape, self.strides)

    def as_strided(self, shape: Shape, strides: Shape, offset: int = 0) -> DeviceArray:
        """Another window on the same buffer; ``offset`` counts from this window's first element."""
        return DeviceArray(self.buffer, shape, strides, self.dtype, self.offset + offset)

    def transpose(self, axes: Shape) -> DeviceArray:
        return self.as_strided(
            tuple(self.shape[a] for a in axes), tuple(self.strides[a] for a in axes)
        )

    def swapaxes(self, a: int, b: int) -> DeviceArray:
        order = list(range(self.ndim))
        order[a], order[b] = order[b], order[a]
        return self.transpose(tuple(order))

    def can_reshape(self, shape: Shape) -> bool:
        return shapes.reshape_strides(self.shape, self.strides, shape) is not None

    def reshape(self, shape: Shape) -> DeviceArray:
        """The same memory as ``shape``; the caller has made sure that no copy is needed."""
        strides = shapes.reshape_strides(self.shape, self.strides, shape)
        if strides is None:
            raise ValueError(f"cannot view shape {self.shape} strides {self.strides} as {shape}")
        return self.as_strided(shape, strides)

    def broadcast_to(self, shape: Shape) -> DeviceArray:
        return self.as_strided(
            shape, shapes.broadcast_strides("expand", self.shape, self.strides, shape)
        )

    def __getitem__(self, index: Any) -> DeviceArray:
        """Basic indexing: ints, slices with any step, None and one Ellipsis."""
        shape: list[int] = []
        strides: list[int] = []
        offset = 0
        source = 0
        if not isinstance(index, tuple):
            index = (index,)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            used = sum(i is not None and i is not Ellipsis for i in index)
            index = index[:at] + (slice(None),) * (self.ndim - used) + index[at + 1 :]
        for i in index:
            if i is None:
                shape.append(1)
                strides.append(0)
                continue
            n, st = self.shape[source], self.strides[source]
            source += 1
            if isinstance(i, slice):
                start, stop, step = i.indices(n)
                count = len(range(start, stop, step))
                offset += start * st if count else 0
                shape.append(count)
                strides.append(st * step)
            else:
                offset += (i + n if i < 0 else i) * st
        shape.extend(self.shape[source:])
        strides.extend(self.strides[source:])
        return self.as_strided(tuple(shape), tuple(strides), offset)

    def numpy(self) -> np.ndarray:
        """A copy on the host (the device is synchronised)."""
        return self.device.to_host(self)

    def __repr__(self) -> str:
        return (
            f"DeviceArray(shape={self.shape}, strides={self.strides}, dtype={self.dtype.name}, "
            f"device={self.device})"
        )


class Layout:
    """Everything a launcher sees of an array but its address: device, dtype, shape, strides, and
    whether the address is divisible by 16.

    Equal layouts are one object, so that looking a launch plan up compares identities.
    """

    __slots__ = ("aligned", "device", "dtype", "shape", "strides")

    def __init__(
        self, device: Device, dtype: DType, shape: Shape, strides: Shape, aligned: bool
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.aligned = aligned

    @staticmethod
    def of(array: DeviceArray) -> Layout:
        """The layout of ``array``, which keeps it.

        >>> from trident.runtime import host_window
        >>> from trident.runtime.array import Layout
        >>> a, b = host_window(np.zeros((2, 3))), host_window(np.ones((2, 3)))
        >>> Layout.of(a) is Layout.of(b), Layout.of(a) is Layout.of(b[0])
        (True, False)
        """
        layout = array.layout
        if layout is None:
            parts = (
                array.buffer.device, array.dtype, array.shape, array.strides, array.ptr % 16 == 0
            )  # fmt: skip
            layout = _layouts.get(parts)
            if layout is None:
                if len(_layouts) >= _LAYOUTS:  # plans of forgotten layouts are not found again
                    _layouts.clear()
                layout = _layouts[parts] = Layout(*parts)
            array.layout = layout
        return layout

    def array(self, buffer: Buffer, offset: int) -> DeviceArray:
        """An array of this layout; the caller knows that the address is as the layout says."""
        out = DeviceArray(buffer, self.shape, self.strides, self.dtype, offset)
        out.layout = self
        return out


_LAYOUTS = 1 << 16
_layouts: dict[tuple, Layout] = {}
