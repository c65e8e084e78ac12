"""``Tensor``: an array with a history.

The data is an ``ndarray`` (cpu) or a ``DeviceArray`` (cuda). Nearly every method is an op from the
registry, bound at import; what is written out here is what belongs to the object itself:
attributes, conversion, Python's protocols, indexing and writing in place.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends, devices, dtypes, printing, shapes
from .devices import device as Device
from .dtypes import FROM_NUMPY
from .dtypes import dtype as DType
from .errors import AutogradError, DeviceError, DTypeError, ShapeError, wrong
from .memory_formats import check as check_format
from .memory_formats import contiguous_format, preserve_format
from .memory_formats import memory_format as MemoryFormat
from .ops import operators
from .ops.registry import FUNCTIONS, ops
from .shapes import Size
from .tape import engine, node
from .tape.node import Node, RemovableHandle, Version


class Tensor(operators.Operators):
    """An n-dimensional array that records how it was computed.

    Make one with ``trident.tensor(data)`` and its siblings (``zeros``, ``randn``, ``from_numpy``);
    ``trident.Tensor(2, 3)`` is an uninitialised float32 tensor of that shape, as in torch.

    >>> x = trident.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    tensor([[2., 4.],
            [6., 8.]])
    """

    __array_priority__ = 1000  # so that ndarray + Tensor asks the Tensor

    # every instance has _data; the rest is set where it differs from these
    _data: Any
    _requires_grad = False
    _node: Node | None = None
    _version: Version | None = None
    _seen = 0  # the storage version that _node describes
    _base: Tensor | None = None
    _hooks: list[Callable] | None = None
    _accumulate_hooks: list[Callable] | None = None
    grad: Tensor | None = None

    if TYPE_CHECKING:  # the methods that install_methods() binds

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, *data: Any) -> None:
        if len(data) == 1 and not isinstance(data[0], int):
            source = data[0]
            if isinstance(source, Tensor):
                self._share(source)
                return
            self._data = np.array(source, dtype=dtypes.get_default_dtype().np)
            return
        self._data = np.empty(data if data else (0,), dtypes.get_default_dtype().np)

    # ---- attributes -----------------------------------------------------------------------------

    @property
    def shape(self) -> Size:
        """Sizes of the axes: a tuple that prints as ``trident.Size([2, 3])``."""
        return Size(self._data.shape)

    @property
    def dtype(self) -> DType:
        data = self._data
        return FROM_NUMPY[data.dtype] if data.__class__ is np.ndarray else data.dtype

    @property
    def device(self) -> Device:
        return devices.of(self._data)

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not self.is_floating_point():
            raise DTypeError(
                f"requires_grad: only floating tensors can have gradients; this one is "
                f"{self.dtype.name}. Convert it first: x.float()"
            )
        if not value and self._node is not None:
            raise AutogradError(
                "requires_grad: a computed tensor cannot be told not to require grad; "
                "use x.detach()"
            )
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set ``requires_grad`` and return self."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad_fn(self) -> Node | None:
        """The node that made this tensor, or None for a leaf."""
        return self._node

    @property
    def is_leaf(self) -> bool:
        return self._node is None

    @property
    def is_cuda(self) -> bool:
        return not isinstance(self._data, np.ndarray)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.numel() * self.itemsize

    @property
    def data(self) -> Tensor:
        """The same memory without history. Assigning replaces the values (same shape and dtype not
        required, as in torch)."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        source = value._data if isinstance(value, Tensor) else None
        if source is None:
            raise TypeError(f"data: expected a Tensor; got {type(value).__name__}")
        if source is self._data:  # p.data -= x wrote in place already
            return
        self._share(value)
        assert self._version is not None
        self._version.bump(".data =")  # graphs that saved this tensor must not use the new values
        self._seen = value._seen = self._version.n

    @property
    def T(self) -> Tensor:
        """The axes in reverse order; a view."""
        return ops.permute(self, dims=tuple(range(self.ndim))[::-1])

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged; a view."""
        if self.ndim < 2:
            raise wrong("mT", "x must have at least 2 axes", got=tuple(self.shape))
        return ops.transpose(self, -1, -2)

    @property
    def is_sparse(self) -> bool:
        return False

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def dim(self) -> int:
        return self._data.ndim

    ndimension = dim

    def numel(self) -> int:
        """The number of elements."""
        return self._data.size

    nelement = numel

    def element_size(self) -> int:
        return self.itemsize

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one axis."""
        if dim is None:
            return self.shape
        return self._data.shape[shapes.axis("size", dim, self.ndim)]

    def stride(self, dim: int | None = None) -> Any:
        """Steps between neighbours along each axis, in elements."""
        from .ops.view import element_strides

        strides = element_strides(self._data)
        return strides if dim is None else strides[dim]

    def is_contiguous(self, memory_format: MemoryFormat = contiguous_format) -> bool:
        """Whether the elements lie in row-major order, or in the order of ``memory_format``."""
        check_format("is_contiguous", memory_format)
        return memory_format.holds("is_contiguous", self._data.shape, self.stride())

    def data_ptr(self) -> int:
        """Address of the first element."""
        data = self._data
        return data.ctypes.data if isinstance(data, np.ndarray) else data.ptr

    def get_device(self) -> int:
        return -1 if self.device.type == "cpu" else self.device.index or 0

    # ---- autograd -------------------------------------------------------------------------------

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Compute gradients of this tensor and add them to ``grad`` of the leaves.

        gradient: weights of this tensor's shape; implied 1 for a tensor of one element.
        retain_graph: keep saved tensors for another walk. create_graph: record the walk itself, for
        higher derivatives. inputs: only these get gradients.
        """
        engine.backward(self, gradient, retain_graph, create_graph, inputs)

    def detach(self) -> Tensor:
        """The same memory without history."""
        out = Tensor.__new__(Tensor)
        out._share(self)
        return out

    def _share(self, source: Tensor) -> None:
        """Lie on ``source``'s memory, and count writes to it together."""
        if source._version is None:
            source._version = Version()
            source._seen = 0
        self._data = source._data
        self._version = source._version
        self._seen = source._version.n

    def detach_(self) -> Tensor:
        """Forget this tensor's history."""
        self._node = None
        self._requires_grad = False
        return self

    def retain_grad(self) -> None:
        """Keep the gradient of a computed tensor in ``grad``."""
        if not self._requires_grad:
            raise AutogradError("retain_grad: the tensor does not require grad")
        if self._node is not None:
            self._node.retain = weakref.ref(self)

    @property
    def retains_grad(self) -> bool:
        return self._node is not None and self._node.retain is not None

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call ``hook(grad)`` when this tensor's gradient is known; a returned Tensor replaces
        it.
        """
        if not self._requires_grad:
            raise AutogradError("register_hook: the tensor does not require grad")
        if self._node is not None:
            return self._node.register_prehook(hook)
        if self._hooks is None:
            self._hooks = []
        return RemovableHandle(self._hooks, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call ``hook(tensor)`` after a gradient was added to a leaf's ``grad``."""
        if self._node is not None:
            raise AutogradError(
                "register_post_accumulate_grad_hook: only leaves accumulate gradients"
            )
        if self._accumulate_hooks is None:
            self._accumulate_hooks = []
        return RemovableHandle(self._accumulate_hooks, hook)

    # ---- conversion -----------------------------------------------------------------------------

    def item(self) -> Any:
        """The value of a tensor of one element as a Python number."""
        if self._data.size != 1:
            raise ShapeError(
                f"item: only a tensor of one element is a number; this one has shape "
                f"{tuple(self.shape)}. Use tolist(), or reduce it first"
            )
        value = self._host().reshape(()).item()
        return float(value) if self.is_floating_point() else value

    def _host(self) -> np.ndarray:
        return backends.of(self._data).to_host(self._data)

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The ndarray that holds this tensor (shared memory). Raises for cuda tensors and tensors
        that require grad, unless ``force``."""
        if self._requires_grad and not force:
            raise AutogradError("numpy: the tensor requires grad; use x.detach().numpy()")
        if self.is_cuda and not force:
            raise TypeError("numpy: the tensor is on cuda; copy it first with x.cpu().numpy()")
        return self._host()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        host = self._host()
        if self.dtype is dtypes.bfloat16:
            host = host.astype(np.float32)
        return host.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        if copy is None and (dtype is None or array.dtype == dtype):
            return array
        return np.array(array, dtype=dtype, copy=copy)

    def __dlpack__(
        self,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule on this tensor's memory, for another library's ``from_dlpack``.

        stream: the consumer's; it waits for what ours has queued (None: the default stream, -1: no
        waiting; None on the CPU). max_version: (1, 0) or later gives the form that knows read-only
        memory, else the old one. dl_device: (1, 0) copies a cuda tensor to the CPU. copy: True
        gives the consumer memory of its own, False forbids it. A consumer that works on a
        non-blocking stream must be done there before it lets the memory go. Raises BufferError for
        a tensor that requires grad, and for 'cuda' in the interpreter.

        >>> x = trident.ones(2, dtype=trident.bfloat16)
        >>> y = trident.from_dlpack(x.__dlpack__(max_version=(1, 0)))
        >>> y.zero_(), x
        (tensor([0., 0.], dtype=trident.bfloat16), tensor([0., 0.], dtype=trident.bfloat16))
        """
        from . import interop

        return interop.to_dlpack(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0) on the CPU, (2, index) on a GPU."""
        from . import interop

        return interop.dlpack_device(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface, with our stream; on a GPU alone.

        >>> hasattr(trident.ones(2), "__cuda_array_interface__")
        False
        """
        from . import interop

        return interop.cuda_array_interface(self)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """This tensor with another dtype, device, or both: ``to(dtype)``, ``to(device)``,
        ``to(device, dtype)``, ``to(other)``; ``memory_format=trident.channels_last`` lays it out
        anew; ``copy=True`` copies even where nothing changes.

        ``non_blocking=True``: a copy to a GPU from page-locked memory (``pin_memory``) is only
        started; do not write to the source before ``cuda.synchronize()`` or an event says that it
        is done. A copy to the CPU gives a page-locked tensor whose values are there after that.
        Other copies are done when this returns.
        """
        dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
        copy = kwargs.pop("copy", False)
        wait = not kwargs.pop("non_blocking", False)
        flags = 0
        order = kwargs.pop("memory_format", None)
        if kwargs:
            raise TypeError(f"to: unknown arguments {sorted(kwargs)}")
        for a in args:
            if isinstance(a, Tensor):
                dtype, device = a.dtype, a.device
            elif isinstance(a, (Device, str)) and str(a).partition(":")[0] in ("cpu", "cuda"):
                device = a
            elif isinstance(a, bool):  # non_blocking, then copy, positionally
                if flags:
                    copy = a
                else:
                    wait = not a
                flags += 1
            elif a is not None:
                dtype = a
        out = self
        if device is not None and not devices.is_on(self._data, devices.as_device(device)):
            out = _to_device(out, devices.as_device(device), wait)
        if dtype is not None and dtypes.as_dtype(dtype) is not out.dtype:
            dtype = dtypes.as_dtype(dtype)
            if not dtype.is_floating_point and out._requires_grad:
                out = out.detach()
            out = ops.to_dtype(out, dtype=dtype)
        if order is not None and check_format("to", order) is not preserve_format:
            out = out.contiguous(order)
        return ops.clone(out) if copy and out is self else out

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def cuda(self, device: Any = None, non_blocking: bool = False) -> Tensor:
        """This tensor on the current GPU, or on ``device``; ``non_blocking`` as in ``to``."""
        where = "cuda" if device is None else devices.as_device(device)
        return self.to(where, non_blocking=non_blocking)

    def pin_memory(self, device: Any = None) -> Tensor:
        """This CPU tensor on page-locked memory, from which copies to a GPU run while Python goes
        on (``to("cuda", non_blocking=True)``): itself where it is, or a copy.

        In the interpreter, where the GPU is the host, the tensor itself. Raises DeviceError where
        there is no GPU, and for tensors on one.
        """
        from .runtime import device as gpus
        from .runtime import pinned

        if self.is_cuda:
            raise wrong(
                "pin_memory", "only CPU tensors can be on page-locked memory",
                got=f"a tensor on {self.device}", error=DeviceError,
            )  # fmt: skip
        if gpus.interpreting() or pinned.is_pinned(self._data):
            return self
        target = tensor_of(pinned.empty(self._data.shape, self._data.dtype))
        return target.copy_(self)

    def is_pinned(self, device: Any = None) -> bool:
        """Whether this tensor is on page-locked memory of the host."""
        from .runtime import pinned

        return not self.is_cuda and pinned.is_pinned(self._data)

    def record_stream(self, stream: Any) -> None:
        """Work on ``stream`` uses this tensor: once dropped, its memory is not given to others
        before that work is done. Needed where a tensor made on one stream is used on another."""
        from .runtime.stream import handle_of

        data = self._data
        if not self.is_cuda:
            raise wrong(
                "record_stream", "only tensors on a GPU belong to streams", got="a CPU tensor",
                error=DeviceError,
            )  # fmt: skip
        data.device.allocator.record_stream(data.buffer, handle_of(stream))

    def type(self, dtype: Any = None, **_: Any) -> Any:
        """Without argument the type's name ('trident.FloatTensor'); else this tensor as
        ``dtype``.
        """
        from . import legacy

        if dtype is None:
            return legacy.type_name(self)
        return self.to(*legacy.type_arguments(dtype))

    def type_as(self, other: Tensor) -> Tensor:
        return self.to(other)

    def contiguous(self, memory_format: MemoryFormat = contiguous_format) -> Tensor:
        """This tensor in row-major order, or in that of ``memory_format``: itself, or a copy."""
        if self.is_contiguous(memory_format):
            return self
        return ops.clone(self, memory_format=memory_format)

    def clone(self, *, memory_format: MemoryFormat | None = None) -> Tensor:
        """A copy that gradients flow through, in the order of this tensor or in
        ``memory_format``."""
        if memory_format is not None:
            check_format("clone", memory_format)
        return ops.clone(self, memory_format=memory_format)

    # ---- views whose arguments may be spread ----------------------------------------------------

    def reshape(self, *shape: Any) -> Tensor:
        return ops.reshape(self, shape=_spread(shape))

    def view(self, *shape: Any) -> Tensor:
        """As ``reshape``, but raises where a copy would be needed."""
        wanted = shapes.infer_reshape("view", tuple(self.shape), _spread(shape))
        from .ops.view import can_view

        if not can_view(self._data, wanted):
            raise wrong(
                "view", f"shape {tuple(self.shape)} with strides {self.stride()} cannot be viewed "
                f"as {wanted} without a copy", hint="use reshape(), or contiguous() first",
            )  # fmt: skip
        return ops.reshape(self, shape=wanted)

    def view_as(self, other: Tensor) -> Tensor:
        return self.view(other.shape)

    def reshape_as(self, other: Tensor) -> Tensor:
        return self.reshape(other.shape)

    def permute(self, *dims: Any) -> Tensor:
        return ops.permute(self, dims=_spread(dims))

    def expand(self, *shape: Any) -> Tensor:
        return ops.expand(self, shape=_spread(shape))

    def expand_as(self, other: Tensor) -> Tensor:
        return ops.expand(self, shape=tuple(other.shape))

    def repeat(self, *sizes: Any) -> Tensor:
        return ops.repeat(self, _spread(sizes))

    def tile(self, *sizes: Any) -> Tensor:
        return ops.tile(self, _spread(sizes))

    def diagonal(self, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
        """The diagonal of the axes dim1 and dim2 as the last axis; a view."""
        return ops.diagonal(self, offset=offset, dim1=dim1, dim2=dim2)

    def flip(self, *dims: Any) -> Tensor:
        return ops.flip(self, dims=_spread(dims))

    # ---- Python's protocols ---------------------------------------------------------------------

    def __len__(self) -> int:
        if not self._data.ndim:
            raise TypeError("len: a 0-d tensor has no length")
        return self._data.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self._data.ndim:
            raise TypeError("iteration over a 0-d tensor; use x.item()")
        return iter([self[i] for i in range(len(self))])

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise ShapeError(
                f"bool: the truth of a tensor of shape {tuple(self.shape)} is not defined; use "
                "x.any() or x.all()"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.is_floating_point() or self._data.size != 1:
            raise TypeError("only an integer tensor of one element can be an index")
        return int(self.item())

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __format__(self, spec: str) -> str:
        """A 0-d tensor formats as its number: ``f"{loss}"``, ``f"{loss:.3f}"``."""
        if not self._data.ndim or (spec and self._data.size == 1):
            return format(self.item(), spec)
        return format(repr(self), spec)

    def __repr__(self) -> str:
        return printing.format_tensor(
            self._host(),
            dtype=self.dtype,
            device=str(self.device),
            requires_grad=self._requires_grad,
            grad_fn=self._node.name() if self._node is not None else None,
        )

    def __hash__(self) -> int:
        return id(self)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        if self._node is not None:
            raise AutogradError(
                "pickle: a computed tensor carries its graph, which cannot be pickled; "
                "use x.detach()"
            )
        state = (self._host(), self.dtype.name, str(self.device), self._requires_grad)
        return (_unpickle, (type(self), *state, _user_attributes(self)))

    def __copy__(self) -> Tensor:
        """Another object with the same memory, history and attributes."""
        out = object.__new__(type(self))
        out._share(self)
        out._requires_grad, out._node, out.grad = self._requires_grad, self._node, self.grad
        out.__dict__.update(_user_attributes(self))
        return out

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self._node is not None:
            raise AutogradError("deepcopy: only leaves can be deep-copied; use x.detach().clone()")
        out = object.__new__(type(self))
        out._data = backends.of(self._data).copy(self._data)
        out._requires_grad = self._requires_grad
        if self.grad is not None:
            out.grad = self.grad.clone()
        memo[id(self)] = out
        out.__dict__.update(copy.deepcopy(_user_attributes(self), memo))
        return out

    # ---- indexing -------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Tensor:
        from . import indexing

        return indexing.get(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        from . import indexing

        indexing.put(self, index, value)

    # ---- writing --------------------------------------------------------------------------------

    def copy_(self, source: Any, non_blocking: bool = False) -> Tensor:
        """Write ``source`` (broadcast, converted, from any device) into this tensor.

        ``non_blocking=True``: a copy between a GPU and page-locked memory of this dtype and shape
        is only started (see ``to``); others are done when this returns.
        """
        from . import dispatch

        if not isinstance(source, Tensor):
            source = tensor_of(np.asarray(source))
        dispatch.check_writable("copy_", self, (source,))
        if non_blocking and self._start_copy(source):
            result = _to_device(source, self.device, data=self._data)
            return dispatch.rebind("copy_", self, result)
        result = ops.expand(source.to(self.device), shape=tuple(self.shape)).to(self.dtype)
        backends.of(self._data).assign(self._data, result._data)
        if result is source:
            result = dispatch.shallow(source)
        return dispatch.rebind("copy_", self, result)

    def _start_copy(self, source: Tensor) -> bool:
        """Start a copy between a GPU and page-locked memory where it is one of bytes; whether it
        is."""
        from .runtime import pinned

        a, b = self._data, source._data
        if self.is_cuda == source.is_cuda or a.shape != b.shape or self.dtype is not source.dtype:
            return False
        device = (a if self.is_cuda else b).device
        host = b if self.is_cuda else a
        if device.interpreted or not host.flags.c_contiguous or not pinned.is_pinned(host):
            return False
        if self.is_cuda:
            device.copy_in(a, b, wait=False)
            return True
        if not b.is_contiguous():
            return False
        device.read_into(a, b, wait=False)
        return True

    def fill_(self, value: Any) -> Tensor:
        """Write one value everywhere."""
        if isinstance(value, Tensor):
            return self.copy_(value)
        return self._overwrite("fill_", value)

    def zero_(self) -> Tensor:
        """Write zeros everywhere."""
        return self._overwrite("zero_", 0)

    def _overwrite(self, name: str, value: Any) -> Tensor:
        """Write values that do not depend on this tensor: its history ends here."""
        from . import dispatch

        dispatch.check_writable(name, self, ())
        backends.of(self._data).assign(self._data, value)
        kept = self._requires_grad
        out = dispatch.rebind(name, self, tensor_of(self._data))
        if not dispatch.is_grad_enabled():
            out._requires_grad = kept
        return out

    def set_(self, source: Tensor) -> Tensor:
        """Share ``source``'s memory from now on."""
        self.data = source
        return self

    def resize_as_(self, other: Tensor) -> Tensor:
        """Take ``other``'s shape, with fresh uninitialised memory."""
        self.data = new_empty(self, tuple(other.shape))
        return self

    def __ipow__(self, other: Any) -> Tensor:
        return self.pow_(other)  # type: ignore[attr-defined]

    # ---- tensors like this one ------------------------------------------------------------------

    def new_zeros(self, *shape: Any, **kwargs: Any) -> Tensor:
        return self._new(0, shape, kwargs)

    def new_ones(self, *shape: Any, **kwargs: Any) -> Tensor:
        return self._new(1, shape, kwargs)

    def new_full(self, shape: Any, fill_value: Any, **kwargs: Any) -> Tensor:
        return self._new(fill_value, (shape,), kwargs)

    def new_empty(self, *shape: Any, **kwargs: Any) -> Tensor:
        return self._new(0, shape, kwargs)

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        """``data`` as a tensor with this one's dtype and device."""
        from .creation import tensor

        return tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})

    def _new(self, value: Any, shape: tuple, kwargs: dict[str, Any]) -> Tensor:
        from .creation import full

        return full(_spread(shape), value, **{"dtype": self.dtype, "device": self.device, **kwargs})


def tensor_of(data: Any, node: Node | None = None) -> Tensor:
    """Wrap an array (no copy); with ``node``, as its output."""
    out = Tensor.__new__(Tensor)
    out._data = data
    if node is not None:
        out._node = node
        out._requires_grad = True
    return out


def _user_attributes(x: Tensor) -> dict[str, Any]:
    """What users hung on the object; the runtime's own fields start with an underscore."""
    return {k: v for k, v in x.__dict__.items() if not k.startswith("_") and k != "grad"}


def new_empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_empty(shape)


node.tensor_of = tensor_of
node.alias = lambda x: ops.alias(x)


def _spread(args: tuple) -> tuple[int, ...]:
    """``f(2, 3)`` and ``f((2, 3))`` mean the same."""
    if len(args) == 1 and isinstance(args[0], (tuple, list)):
        args = tuple(args[0])
    return tuple([a if a.__class__ is int else int(a) for a in args])


class _DeviceCopy(Node):
    """A copy to another device: the gradient goes back."""

    def __init__(self, x: Tensor, data: Any) -> None:
        super().__init__()
        self.home = x.device
        self.edges = node.rule_edges((x,))
        self._shape, self._dtype = data.shape, data.dtype

    def name(self) -> str:
        return "ToDeviceBackward"

    def pull(self, g: Any, graph: bool) -> tuple:
        return (g.to(self.home),) if graph else (devices.move(g, self.home),)


def _to_device(x: Tensor, target: Device, wait: bool = True, data: Any = None) -> Tensor:
    """A copy of ``x`` on another device; ``data``: the copy, where it was made already."""
    from .dispatch import is_grad_enabled

    out = tensor_of(devices.move(x._data, target, wait) if data is None else data)
    if x._requires_grad and is_grad_enabled():
        out._node = _DeviceCopy(x, out._data)
        out._requires_grad = True
    return out


def _unpickle(
    cls: type[Tensor], host: np.ndarray, dtype: str, device: str, requires_grad: bool, extra: dict
) -> Tensor:
    out = object.__new__(cls)
    out._data = devices.move(host.astype(dtypes.by_name(dtype).np, copy=False), Device(device))
    out._requires_grad = requires_grad
    out.__dict__.update(extra)
    return out


# ---- methods from the registry ------------------------------------------------------------------


def _in_place(name: str, function: Callable) -> Callable:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        from . import dispatch

        return dispatch.update(f"{name}_", self, function, args, kwargs)

    method.__name__ = method.__qualname__ = f"{name}_"
    method.__doc__ = f"As ``{name}``, written into this tensor."
    return method


_ALSO_IN_PLACE = {
    "add",
    "sub",
    "div",
    "subtract",
    "multiply",
    "divide",
    "true_divide",
    "pow",
    "clamp",
    "clip",
    "nan_to_num",
    "masked_fill",
    "masked_scatter",
    "scatter",
    "scatter_add",
    "index_add",
    "index_copy",
    "index_fill",
    "index_put",
    "tril",
    "triu",
    "cumsum",
    "cumprod",
    "absolute",
    "negative",
    "arcsin",
    "arccos",
    "arctan",
}
_I_METHODS = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "truediv": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
}


def install_methods() -> None:
    """Bind every listed function as a method, and the in-place forms (called once, at import)."""
    operators.install()
    for name, function in list(FUNCTIONS.items()):
        op = getattr(function, "op", None)
        is_method = op.method if op is not None else getattr(function, "is_method", False)
        if is_method and name not in Tensor.__dict__:
            setattr(Tensor, name, function)
        elementwise = op is not None and op.kind == "elementwise" and is_method
        if (elementwise or name in _ALSO_IN_PLACE) and f"{name}_" not in Tensor.__dict__:
            setattr(Tensor, f"{name}_", _in_place(name, function))
    for dunder, name in _I_METHODS.items():
        setattr(Tensor, f"__i{dunder}__", getattr(Tensor, f"{name}_"))


for _name, _d in {
    "bool": dtypes.bool_, "byte": dtypes.uint8, "char": dtypes.int8, "short": dtypes.int16,
    "int": dtypes.int32, "long": dtypes.int64, "half": dtypes.float16, "bfloat16": dtypes.bfloat16,
    "float": dtypes.float32, "double": dtypes.float64,
}.items():  # fmt: skip

    def _convert(self: Tensor, _d: DType = _d) -> Tensor:
        return self.to(_d)

    _convert.__name__ = _convert.__qualname__ = _name
    _convert.__doc__ = f"This tensor as {_d.name}."
    setattr(Tensor, _name, _convert)


def legacy_index(x: Tensor, index: Any) -> Tensor | None:
    """``loss.data[0]`` of 2018 on a 0-d tensor: the tensor itself, with a DeprecationWarning."""
    if x.ndim == 0 and index.__class__ is int and index in (0, -1):
        warnings.warn(
            "indexing a 0-d tensor with [0] is the spelling of 2018; use x.item()",
            DeprecationWarning, stacklevel=4,
        )  # fmt: skip
        return x
    return None
