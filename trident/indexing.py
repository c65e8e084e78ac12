"""``x[index]`` and ``x[index] = value``: ints, slices, Ellipsis, None, int tensors, boolean masks.

Basic parts become one view. What is left are integer index tensors on some axes of that view (a
mask counts as the ``nonzero`` of itself); those axes are moved to the front and handed to
``index_get`` or ``index_put``. The axes of the result stand where the indexed axes stood if those
were neighbours, else in front, as in numpy and torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import backends, dispatch, dtypes, shapes
from .errors import DTypeError, IndexBoundsError, wrong
from .ops.registry import ops
from .ops.view import check_index
from .tape import storage
from .tape.node import Version
from .tensor import Tensor, legacy_index, tensor_of


def get(x: Tensor, index: Any) -> Tensor:
    """``x[index]``: a view for basic indexing, a copy where there are index tensors."""
    old = legacy_index(x, index)
    if old is not None:
        return old
    basic, advanced = parse(x, index)
    if not advanced:
        return ops.slice_view(x, index=basic)
    y, order, tensors, back = _arrange(x, basic, advanced)
    picked = ops.index_get(ops.permute(y, dims=order), *tensors)
    return ops.permute(picked, dims=back)


def put(x: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``, recorded when the tape is on."""
    if isinstance(value, np.ndarray):
        value = tensor_of(np.asarray(value))
    elif not isinstance(value, (Tensor, bool, int, float)):
        value = x.new_tensor(value)
    if isinstance(value, Tensor):
        value = value.to(x.device)
    recorded = dispatch.is_grad_enabled() and (
        x._requires_grad or (isinstance(value, Tensor) and value._requires_grad)
    )
    if not recorded and _is_plain_mask(x, index, value):
        dispatch.check_writable("setitem", x, (value,))
        mask = _expand_mask(index, x.ndim)
        data = ops.where(mask, value, x.detach()).to(x.dtype)._data
        backends.of(x._data).assign(x._data, data)
        dispatch.rebind("setitem", x, tensor_of(x._data))
        return
    basic, advanced = parse(x, index)
    dispatch.check_writable("setitem", x, (value,))
    base = x if x._base is None else x._base
    written = isinstance(value, Tensor) and value._base is base and not advanced
    if written and storage.same_window(value._data, ops.slice_view(x.detach(), index=basic)._data):
        return  # the end of x[i] += y: the view has been written, and x knows
    if x._version is None:
        x._version = Version()
        x._seen = 0
    before = dispatch.shallow(x)
    with dispatch.recording(recorded):
        if advanced:
            y, order, tensors, back = _arrange(before, basic, advanced)
            moved = ops.permute(y, dims=order)
            shape = tuple(ops.permute(_shape_probe(moved, tensors), dims=back).shape)
            v = _value(value, x, shape)
            v = ops.permute(v, dims=tuple(np.argsort(back).tolist()))
            done = ops.index_put(moved, v, *tensors, accumulate=False)
            value = ops.permute(done, dims=tuple(np.argsort(order).tolist()))
        target = ops.slice_view(before.detach(), index=basic)._data
        v = _value(value, x, tuple(target.shape))
        result = tensor_of(x._data)
        if recorded:
            result = storage.recorded(ops.slice_put.op, (before, v), {"index": basic}, x._data)
        backends.of(target).assign(target, v._data)
    dispatch.rebind("setitem", x, result)


def _value(value: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``value`` as a tensor of x's dtype, broadcast to ``shape``."""
    if not isinstance(value, Tensor):
        if isinstance(value, float) and x.dtype.kind != "float" and value != int(value):
            raise wrong(
                "setitem", f"{value} does not fit into a {x.dtype.name} tensor", error=DTypeError,
                hint="convert the tensor with .to(dtype) first",
            )  # fmt: skip
        value = x.new_full((), value)
    while value.ndim > len(shape) and value.shape[0] == 1:
        value = value.squeeze(0)
    try:
        shapes.broadcast_strides("setitem", tuple(value.shape), (1,) * value.ndim, shape)
    except ValueError:
        raise wrong(
            "setitem",
            f"a value of shape {tuple(value.shape)} does not broadcast to the selection {shape}",
        ) from None
    return ops.expand(value.to(x.dtype), shape=shape)


def _shape_probe(moved: Tensor, tensors: list[Tensor]) -> Tensor:
    lead = shapes.broadcast("setitem", *[tuple(t.shape) for t in tensors])
    shape = (*lead, *moved.shape[len(tensors) :])
    return tensor_of(np.broadcast_to(np.empty((), np.bool_), shape))


def _is_plain_mask(x: Tensor, index: Any, value: Any) -> bool:
    return (
        isinstance(index, Tensor)
        and index.dtype is dtypes.bool_
        and (not isinstance(value, Tensor) or value.ndim == 0)
        and tuple(index.shape) == tuple(x.shape[: index.ndim])
        and not (isinstance(value, float) and x.dtype.kind != "float")
        and x.device == index.device
    )


def _expand_mask(mask: Tensor, ndim: int) -> Tensor:
    return ops.reshape(mask, shape=(*mask.shape, *(1,) * (ndim - mask.ndim)))


def parse(x: Tensor, index: Any) -> tuple[tuple, dict[int, Tensor]]:
    """Split an index into its basic part and {axis of the basic view: int64 index tensor}.

    An axis that an index tensor takes is a full slice in the basic part.
    """
    items = index if isinstance(index, tuple) else (index,)
    if isinstance(index, list):
        items = (index,)
    flat: list[Any] = []
    for item in items:
        item = _normalise(x, item)
        if isinstance(item, Tensor) and item.dtype in (dtypes.bool_, dtypes.uint8):
            if item.dtype is dtypes.uint8:
                item = item != 0
            flat.append(_Mask(item))
        else:
            flat.append(item)
    if sum(i is Ellipsis for i in flat) > 1:
        raise wrong("getitem", "an index may hold one Ellipsis (...)", error=IndexBoundsError)
    used = sum(
        i.mask.ndim if isinstance(i, _Mask) else i is not None and i is not Ellipsis for i in flat
    )
    if used > x.ndim:
        raise wrong(
            "getitem", f"{used} indices for the {x.ndim} axes of shape {tuple(x.shape)}",
            error=IndexBoundsError,
        )  # fmt: skip
    if not any(i is Ellipsis for i in flat):
        flat.append(Ellipsis)
    basic: list[Any] = []
    advanced: dict[int, Tensor] = {}
    axis = out_axis = 0
    for item in flat:
        if item is Ellipsis:
            fill = x.ndim - used
            basic += [slice(None)] * fill
            axis += fill
            out_axis += fill
        elif item is None:
            basic.append(None)
            out_axis += 1
        elif isinstance(item, _Mask):
            item.check(x, axis)
            for t in ops.nonzero(item.mask, as_tuple=True):
                basic.append(slice(None))
                advanced[out_axis] = t
                axis += 1
                out_axis += 1
        elif isinstance(item, Tensor):
            basic.append(slice(None))
            advanced[out_axis] = item
            axis += 1
            out_axis += 1
        else:
            basic.append(item)
            axis += 1
            out_axis += isinstance(item, slice)
    check_index(x._data.shape, tuple(basic))
    return tuple(basic), advanced


class _Mask:
    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def check(self, x: Tensor, axis: int) -> None:
        wanted = tuple(x.shape[axis : axis + self.mask.ndim])
        if tuple(self.mask.shape) != wanted:
            raise wrong(
                "getitem", f"a mask must have the shape {wanted} of the axes it selects from",
                got=tuple(self.mask.shape), error=IndexBoundsError,
            )  # fmt: skip


def _normalise(x: Tensor, item: Any) -> Any:
    if item is None or item is Ellipsis:
        return item
    if isinstance(item, slice):
        parts = [p if p is None else int(p) for p in (item.start, item.stop, item.step)]
        return slice(*parts)
    if isinstance(item, (bool, np.bool_)):
        raise TypeError(
            "getitem: a Python bool is no index; use a boolean tensor, or None for a new axis"
        )
    if isinstance(item, (int, np.integer)):
        return int(item)
    if isinstance(item, range):
        item = list(item)
    if isinstance(item, (list, np.ndarray)):
        array = np.asarray([int(i) if isinstance(i, Tensor) else i for i in item])
        item = tensor_of(array.astype(np.int64) if array.size == 0 else array).to(x.device)
    if isinstance(item, Tensor):
        if item.is_floating_point():
            raise wrong(
                "getitem", "an index tensor must be integer or bool", got=item.dtype.name,
                error=DTypeError, hint="convert it with .long()",
            )  # fmt: skip
        if item.dtype in (dtypes.bool_, dtypes.uint8):
            return item.to(x.device)
        if item.ndim == 0 and not item.is_cuda:
            return int(item.item())
        return item.to(x.device).to(dtypes.int64)
    raise TypeError(
        f"getitem: expected ints, slices, None, ... or tensors; got {type(item).__name__}"
    )


def _arrange(x: Tensor, basic: tuple, advanced: dict[int, Tensor]) -> tuple:
    """The basic view, the order that brings its indexed axes to the front, the index tensors, and
    the order that puts the axes of the result where they belong."""
    y = ops.slice_view(x, index=basic)
    taken = sorted(advanced)
    rest = [a for a in range(y.ndim) if a not in advanced]
    tensors = [advanced[a] for a in taken]
    lead = len(shapes.broadcast("getitem", *[tuple(t.shape) for t in tensors]))
    neighbours = taken == list(range(taken[0], taken[0] + len(taken)))
    back = list(range(lead + len(rest)))
    if neighbours:
        before = sum(a < taken[0] for a in rest)
        back = [*range(lead, lead + before), *range(lead), *range(lead + before, lead + len(rest))]
    return y, tuple(taken + rest), tensors, tuple(back)
