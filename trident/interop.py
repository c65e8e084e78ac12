"""Memory shared with other libraries: DLPack, and the CUDA array interface.

Neither copies. On a GPU both sides queue work on streams of their own, so one must wait for the
other: the producer of the memory makes the consumer's stream wait for what it has queued. What a
tensor is told of writes ends at trident: a write through the other library is seen in the values,
but not by the check that a saved tensor was overwritten.

Source: the data interchange protocol of the Python array API; the CUDA array interface, version 3,
of numba.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from . import devices, dtypes, runtime, shapes
from .errors import CudaError, DeviceError, DTypeError, wrong
from .ops.registry import ops
from .runtime import dlpack
from .runtime.libcuda import on_device
from .runtime.stream import handle_of
from .tensor import Tensor, tensor_of

if TYPE_CHECKING:
    from .runtime.cuda_device import CudaDevice

_LEGACY, _PER_THREAD = 1, 2  # stream handles that mean a default stream, in CUDA and DLPack alike


def dlpack_device(x: Tensor) -> tuple[int, int]:
    """(kind, index) of ``x``'s device, as DLPack numbers them."""
    if isinstance(x._data, np.ndarray):
        return (dlpack.CPU, 0)
    if not _on_gpu(x):
        raise wrong(
            "__dlpack__", "the tensor is on 'cuda' in Triton's interpreter: on the host, at the "
            "place of a GPU", error=BufferError, hint="export x.cpu()",
        )  # fmt: skip
    return (dlpack.CUDA, x._data.device.index)


def to_dlpack(
    x: Tensor,
    stream: int | None = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[Any, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """The capsule that ``Tensor.__dlpack__`` returns; see there."""
    if x._requires_grad:
        raise wrong(
            "__dlpack__", "the tensor requires grad, and a capsule cannot carry its history",
            hint="export x.detach()", error=BufferError,
        )  # fmt: skip
    own = dlpack_device(x)
    wanted = own if dl_device is None else (int(getattr(dl_device[0], "value", dl_device[0])),
                                            int(dl_device[1]))  # fmt: skip
    if wanted not in (own, (dlpack.CPU, 0)):
        raise wrong(
            "__dlpack__", f"dl_device must be {own}, where the tensor is, or {(dlpack.CPU, 0)}, "
            "the CPU", got=wanted, error=BufferError,
            hint="move the tensor first, with x.to(device)",
        )  # fmt: skip
    moves = wanted != own
    if moves and copy is False:
        raise wrong(
            "__dlpack__", "a tensor on cuda reaches the CPU by a copy, and copy=False forbids one",
            error=BufferError, hint="leave copy out",
        )  # fmt: skip
    copied = moves or bool(copy)
    if moves:
        x = x.cpu()
    elif copied:
        x = ops.clone(x)
    versioned = max_version is not None and max_version[0] >= 1
    data = x._data
    if isinstance(data, np.ndarray):
        if stream not in (None, -1):
            raise wrong(
                "__dlpack__", "stream must be None for memory of the CPU", got=repr(stream),
                error=ValueError,
            )  # fmt: skip
        return dlpack.export(data, versioned, wanted, copied=copied)
    device = data.device
    after = _handle("__dlpack__", stream)
    if after is not None:
        device.order(device.current_stream.get(), after)
    # whoever takes it works on that stream; of one that may be gone by then, the default stream
    # (which waits for all but non-blocking ones) has to do
    device.allocator.record_stream(data.buffer, after if after == _PER_THREAD else _LEGACY)
    return dlpack.export(data, versioned, wanted, copied=copied)


def from_dlpack(source: Any, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor on the memory of ``source``: any object with ``__dlpack__``, or a DLPack capsule.

    Nothing is copied: a write on either side is seen on the other. Memory that the other side calls
    read-only gives a tensor that raises when it is written in place. ``device``: where the result
    shall be; another than the memory's takes a copy. ``copy``: True always copies, False never does
    and raises BufferError where that is needed. On a GPU our stream waits for the producer's.

    Raises DTypeError for a dtype without a counterpart, DeviceError for memory of a device that is
    not there, BufferError for a capsule that was consumed before.

    >>> a = np.arange(3.0)
    >>> x = trident.from_dlpack(a)
    >>> a[0] = 7
    >>> x
    tensor([7., 1., 2.], dtype=trident.float64)
    >>> np.from_dlpack(x * 2)
    array([14.,  2.,  4.])
    """
    if isinstance(source, Tensor):
        if source._requires_grad:
            to_dlpack(source)  # raises
        out = source.detach()  # so that both count the writes to their memory
    else:
        out = _imported(source)
    if device is not None:
        target = devices.as_device(device)
        if target != out.device:
            if copy is False:
                raise wrong(
                    "from_dlpack", f"the memory is on {out.device}, and copy=False forbids a copy "
                    f"to {target}", error=BufferError, hint="leave copy or device out",
                )  # fmt: skip
            return out.to(target)
    return ops.clone(out) if copy else out


def _imported(source: Any) -> Tensor:
    if not hasattr(source, "__dlpack__"):
        return _tensor(dlpack.consume(source))
    kind, index = source.__dlpack_device__()
    kind = int(getattr(kind, "value", kind))
    arguments: dict[str, Any] = {}
    if kind in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        arguments["stream"] = _our_stream(_gpu("from_dlpack", kind, index))
    elif kind not in (dlpack.CPU, dlpack.CUDA_HOST):
        raise _unknown_device(kind, index)
    try:
        capsule = source.__dlpack__(max_version=dlpack.VERSION, **arguments)
    except TypeError:  # from before DLPack 1.0
        capsule = source.__dlpack__(**arguments)
    return _tensor(dlpack.consume(capsule))


def _tensor(foreign: dlpack.Foreign) -> Tensor:
    kind, index = foreign.device
    if kind in (dlpack.CPU, dlpack.CUDA_HOST):
        return tensor_of(foreign.ndarray())
    if kind not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        raise _unknown_device(kind, index)
    device = _gpu("from_dlpack", kind, index)
    foreign.owner.before = functools.partial(_hand_back, device)
    return tensor_of(foreign.device_array(device))


def _unknown_device(kind: int, index: int) -> Exception:
    return wrong(
        "from_dlpack", "expected memory of the CPU or of a CUDA device",
        got=f"DLPack's device type {kind}, number {index}", error=DeviceError,
        hint="move the array to one of them first",
    )  # fmt: skip


# ---- devices and streams -------------------------------------------------------------------------


def _gpu(name: str, kind: int, index: int) -> CudaDevice:
    """The GPU that foreign memory lies on."""
    if not isinstance(runtime.device.current(), _cuda_class()):
        raise wrong(
            name, "memory of a GPU cannot be used where 'cuda' means Triton's interpreter",
            hint="copy it to the CPU first, or leave TRITON_INTERPRET=1 and interpret() out",
            error=DeviceError,
        )  # fmt: skip
    if kind == dlpack.CUDA_MANAGED:  # every GPU reaches it
        return runtime.device.current_cuda()
    return runtime.device.cuda_device(index)


def _cuda_class() -> type:
    from .runtime.cuda_device import CudaDevice

    return CudaDevice


def _on_gpu(x: Tensor) -> bool:
    return not isinstance(x._data, np.ndarray) and isinstance(x._data.device, _cuda_class())


def _our_stream(device: CudaDevice) -> int:
    """The stream we queue work on, as the protocols write it."""
    return device.current_stream.get() or _LEGACY


def _handle(name: str, stream: Any) -> int | None:
    """A consumer's or producer's stream; None where nothing is to wait."""
    if stream is None:
        return _LEGACY
    handle = handle_of(stream)
    if handle == 0 or handle < -1:
        raise wrong(
            name, "stream must be None, -1 (do not wait), 1 (the legacy default stream), 2 (the "
            "per-thread one) or a handle", got=handle, error=ValueError,
            hint="0 could mean either default stream" if handle == 0 else None,
        )  # fmt: skip
    return None if handle == -1 else handle


def _hand_back(device: CudaDevice) -> None:
    """Before another library may use its memory again: its default stream waits for ours.

    Run by finalisers. Where it cannot be done (a graph is being captured, Python ends), the memory
    goes back all the same.
    """
    if not sys.is_finalizing():
        with contextlib.suppress(CudaError):
            device.order(device.current_stream.get(), _LEGACY)


# ---- the CUDA array interface --------------------------------------------------------------------


def cuda_array_interface(x: Tensor) -> dict[str, Any]:
    """What ``Tensor.__cuda_array_interface__`` returns; AttributeError where it has none."""
    if not _on_gpu(x):
        where = "the CPU" if isinstance(x._data, np.ndarray) else "host memory (the interpreter)"
        raise AttributeError(
            f"__cuda_array_interface__: the tensor is on {where}, not on a CUDA device"
        )
    if x._requires_grad:
        raise wrong(
            "__cuda_array_interface__", "the tensor requires grad, and the interface cannot carry "
            "its history", hint="use x.detach()", error=BufferError,
        )  # fmt: skip
    data = x._data
    item = data.dtype.itemsize
    strides = None if data.is_contiguous() else tuple(s * item for s in data.strides)
    return {
        "shape": tuple(data.shape),
        "typestr": data.dtype.np.str,
        "data": (data.ptr if data.size else 0, False),
        "strides": strides,
        "stream": _our_stream(data.device),
        "version": 3,
    }


def from_cuda_array(source: Any) -> Tensor:
    """A tensor on the memory of an object with ``__cuda_array_interface__``; nothing is copied.

    Our stream waits for the one that the interface names. Raises DTypeError for a dtype without a
    counterpart, and ValueError for masked arrays and strides that are no whole elements.
    """
    name = "as_tensor"
    facts = source.__cuda_array_interface__
    if facts.get("mask") is not None:
        raise wrong(name, "a masked array has no counterpart", hint="fill it first",
                    error=ValueError)  # fmt: skip
    shape = tuple(int(n) for n in facts["shape"])
    d = _from_typestr(name, facts["typestr"])
    ptr, readonly = facts["data"]
    strides = facts.get("strides")
    if strides is None:
        steps = shapes.contiguous_strides(shape)
    elif any(s % d.itemsize for s in strides):
        raise wrong(name, f"strides must be multiples of the item size, {d.itemsize} bytes",
                    got=tuple(strides), error=ValueError, hint="copy the array first")  # fmt: skip
    else:
        steps = tuple(int(s) // d.itemsize for s in strides)
    device = _device_at(name, ptr, shape)
    # before version 3 the interface names no stream: then it is the default one
    before = _handle(name, facts["stream"]) if facts.get("stream") is not None else None
    if "stream" not in facts:
        before = _LEGACY
    if before is not None:
        device.order(before, device.current_stream.get())
    return tensor_of(
        dlpack.foreign_array(device, ptr, shape, steps, d, _Guest(device, source, readonly))
    )


def _device_at(name: str, ptr: int, shape: tuple[int, ...]) -> CudaDevice:
    device = _gpu(name, dlpack.CUDA_MANAGED, 0)
    if 0 in shape:
        return device
    device.activate()
    index = on_device(ptr)
    if index is None:
        raise wrong(name, "the interface must point to memory of a GPU", got=f"{ptr:#x}",
                    error=ValueError)  # fmt: skip
    return runtime.device.cuda_device(index)


class _Guest:
    """Keeps the object that memory belongs to."""

    def __init__(self, device: CudaDevice, source: Any, readonly: bool) -> None:
        self.device = device
        self.source = source
        self.readonly = bool(readonly)

    def __del__(self) -> None:
        _hand_back(self.device)


def _from_typestr(name: str, text: str) -> dtypes.dtype:
    if text[1:] == "V2":  # what ml_dtypes and torch call bfloat16
        return dtypes.bfloat16
    found = None if text[0] == ">" else dtypes.FROM_NUMPY.get(np.dtype(text))
    if found is None:
        raise wrong(name, "expected one of " + ", ".join(d.name for d in dtypes.ALL),
                    got=f"typestr {text!r}", error=DTypeError, hint="convert it first")  # fmt: skip
    return found
