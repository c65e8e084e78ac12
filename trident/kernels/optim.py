"""Optimizer steps over lists of tensors, one launch for all of them.

The kernels read a table of addresses, (arrays per tensor, tensors) int64, and a table of chunks,
one row (tensor, chunk) a program. Addresses become pointers inside the kernel; ``tl.multiple_of``
and an unmasked branch for full chunks let the loads and stores be vector instructions (without
either, none is). The tables are built once and kept: the chunks for lists of these layouts, the
addresses for these addresses, which an allocator hands out again in every step.

Parameters, gradients and state are read in their own dtypes and computed in float32 (float64 for
float64). Arrays that are not contiguous are staged through contiguous copies.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from .. import shapes
from ..lang import Jit, cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from ..runtime.array import Layout
from .layout import contiguous, copy

CHUNK = 2048
KEPT = 64
"""Lists of tensors, and sets of addresses, whose tables are kept."""


class Group(NamedTuple):
    """Tensors of a list that have the same dtypes: what one launch updates."""

    members: list[int]  # their places in the list
    names: tuple[str, ...]  # dtypes of the parameter, the gradient and the state
    whole: bool  # these are all tensors of the list, and none has to be copied first
    aligned: bool  # every array begins at a multiple of 16 bytes
    sizes: DeviceArray  # (tensors,) int64
    chunks: DeviceArray  # (programs, 2) int64: tensor, number of the chunk in it
    chunk: int


_groups: OrderedDict[tuple, list[Group]] = OrderedDict()
_addresses: OrderedDict[tuple, DeviceArray] = OrderedDict()
_layout, _ptr = attrgetter("layout"), attrgetter("ptr")


def _keep(table: OrderedDict, key: tuple, value: Any) -> Any:
    table[key] = value
    if len(table) > KEPT:
        table.popitem(last=False)
    return value


def _grouped(arrays: Sequence[Sequence[DeviceArray]]) -> list[Group]:
    """The groups of tensors given as rows. A step looks them up by the arrays' layouts, which are
    one object where they are equal."""
    known = []
    for row in arrays:
        layouts = tuple(map(_layout, row))
        if None in layouts:
            layouts = tuple([Layout.of(a) for a in row])
        known.append(layouts)
    key = tuple(known)
    found = _groups.get(key)
    if found is not None:
        _groups.move_to_end(key)
        return found
    device = arrays[0][0].device
    by_dtypes: dict[tuple[str, ...], list[int]] = {}
    for i, column in enumerate(zip(*arrays)):
        if column[0].size:
            by_dtypes.setdefault(tuple(a.dtype.name for a in column), []).append(i)
    groups = []
    for names, members in by_dtypes.items():
        sizes = [arrays[0][i].size for i in members]
        chunk = CHUNK
        if device.interpreted:
            chunk = min(max(next_power_of_2(max(sizes)), 16), 32768)
        rows = [(t, c) for t, n in enumerate(sizes) for c in range(cdiv(n, chunk))]
        used = [row[i] for row in arrays for i in members]
        groups.append(
            Group(
                members,
                names,
                len(members) == len(arrays[0])
                and all(_side_by_side([row[i] for row in arrays]) for i in members),
                all(a.ptr % 16 == 0 for a in used),
                device.from_host(np.array(sizes, np.int64)),
                device.from_host(np.array(rows, np.int64).reshape(-1, 2)),
                chunk,
            )
        )
    return _keep(_groups, key, groups)


def _side_by_side(arrays: Sequence[DeviceArray]) -> bool:
    """Whether the i-th elements in memory of all arrays belong together: all of them are row-major,
    or all have one other order without gaps (channels-last weights)."""
    first = arrays[0]
    return all(a.is_contiguous() for a in arrays) or (
        shapes.is_dense(first.shape, first.strides)
        and all(a.strides == first.strides for a in arrays)
    )


def _table(arrays: Sequence[Sequence[DeviceArray]]) -> DeviceArray:
    """The addresses of ``arrays`` as (rows, tensors) int64 on their device."""
    device = arrays[0][0].device
    key = (id(device), *[tuple(map(_ptr, row)) for row in arrays])
    found = _addresses.get(key)
    if found is not None:
        _addresses.move_to_end(key)
        return found
    return _keep(_addresses, key, device.from_host(np.array(key[1:], np.int64)))


def _run(kernel: Jit, arrays: list[list[DeviceArray]], numbers: list[float], **flags: Any) -> None:
    """Launch ``kernel`` on tensors given as rows: parameters, gradients, then state."""
    for group in _grouped(arrays):
        staged = arrays
        aligned = group.aligned
        if not group.whole:
            staged = [[contiguous(row[i]) for i in group.members] for row in arrays]
            aligned = all(a.ptr % 16 == 0 for row in staged for a in row)
        wide = group.names[0] == "float64"
        values = [
            struct.unpack("<q", struct.pack("<d", v))[0] if wide else float(v) for v in numbers
        ]
        p_type, g_type, s_type = (getattr(tl, group.names[i]) for i in (0, 1, -1))
        launch(
            kernel, (group.chunks.shape[0],), _table(staged), group.sizes, group.chunks,
            len(group.members), *values, P_TYPE=p_type, G_TYPE=g_type, S_TYPE=s_type,
            ACC=tl.float64 if wide else tl.float32, ALIGNED=aligned, BLOCK=group.chunk,
            num_warps=8, **flags,
        )  # fmt: skip
        if staged is not arrays:
            for r, row in enumerate(arrays):
                if r != 1:  # gradients are only read
                    for i, done in zip(group.members, staged[r]):
                        if done is not row[i]:
                            copy(row[i], done)


@jit
def number(x, ACC: tl.constexpr):
    """A scalar argument: float32, or a float64 that came as its bits."""
    if tl.float64 == ACC:
        value = tl.cast(x, tl.int64).to(tl.float64, bitcast=True)
    else:
        value = tl.cast(x, tl.float32)
    return value


@jit
def address(table_ptr, row, n_tensors, tensor, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer to one array of one tensor."""
    pointer = tl.load(table_ptr + row * n_tensors + tensor).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@jit
def read(pointer, i, n, FULL: tl.constexpr, ACC: tl.constexpr):
    if FULL:
        x = tl.load(pointer + i)
    else:
        x = tl.load(pointer + i, mask=i < n, other=0.0)
    return x.to(ACC)


@jit
def write(pointer, i, n, x, FULL: tl.constexpr):
    if FULL:
        tl.store(pointer + i, x.to(pointer.dtype.element_ty))
    else:
        tl.store(pointer + i, x.to(pointer.dtype.element_ty), mask=i < n)


@jit
def sgd_block(
    p_ptr, g_ptr, b_ptr, i, n, lr, momentum, dampening, weight_decay,
    MOMENTUM: tl.constexpr, FIRST: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr,
    FULL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    p = read(p_ptr, i, n, FULL, ACC)
    g = read(g_ptr, i, n, FULL, ACC)
    if MAXIMIZE:
        g = -g
    g += weight_decay * p
    if MOMENTUM:
        if FIRST:
            b = g
        else:
            b = momentum * read(b_ptr, i, n, FULL, ACC) + (1.0 - dampening) * g
        write(b_ptr, i, n, b, FULL)
        g = g + momentum * b if NESTEROV else b
    write(p_ptr, i, n, p - lr * g, FULL)


@jit
def sgd_kernel(
    table_ptr,  # (2 or 3, tensors): parameters, gradients, momentum buffers
    sizes_ptr,
    chunks_ptr,
    n_tensors,
    lr,
    momentum,
    dampening,
    weight_decay,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    S_TYPE: tl.constexpr,
    ACC: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    MOMENTUM: tl.constexpr,
    FIRST: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    tensor = tl.load(chunks_ptr + tl.program_id(0) * 2)
    start = tl.load(chunks_ptr + tl.program_id(0) * 2 + 1) * BLOCK
    n = tl.load(sizes_ptr + tensor) - start
    p_ptr = address(table_ptr, 0, n_tensors, tensor, P_TYPE, ALIGNED) + start
    g_ptr = address(table_ptr, 1, n_tensors, tensor, G_TYPE, ALIGNED) + start
    b_ptr = p_ptr
    if MOMENTUM:
        b_ptr = address(table_ptr, 2, n_tensors, tensor, S_TYPE, ALIGNED) + start
    i = tl.arange(0, BLOCK)
    lr, momentum = number(lr, ACC), number(momentum, ACC)
    dampening, weight_decay = number(dampening, ACC), number(weight_decay, ACC)
    if n >= BLOCK:
        sgd_block(
            p_ptr, g_ptr, b_ptr, i, n, lr, momentum, dampening, weight_decay,
            MOMENTUM, FIRST, NESTEROV, MAXIMIZE, True, ACC,
        )  # fmt: skip
    else:
        sgd_block(
            p_ptr, g_ptr, b_ptr, i, n, lr, momentum, dampening, weight_decay,
            MOMENTUM, FIRST, NESTEROV, MAXIMIZE, False, ACC,
        )  # fmt: skip


def sgd(
    params: list[DeviceArray], grads: list[DeviceArray], buffers: list[DeviceArray], *, lr: float,
    momentum: float, dampening: float, weight_decay: float, nesterov: bool, maximize: bool,
    first: bool,
) -> None:  # fmt: skip
    """One step of SGD; ``buffers`` is empty without momentum."""
    arrays = [params, grads, buffers] if buffers else [params, grads]
    _run(
        sgd_kernel, arrays, [lr, momentum, dampening, weight_decay], MOMENTUM=bool(buffers),
        FIRST=first, NESTEROV=nesterov, MAXIMIZE=maximize,
    )  # fmt: skip


@jit
def adam_block(
    p_ptr, g_ptr, m_ptr, v_ptr, top_ptr, i, n, step_size, share1, share2, root, eps, weight_decay,
    shrink, AMSGRAD: tl.constexpr, DECOUPLED: tl.constexpr, MAXIMIZE: tl.constexpr,
    FULL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    p = read(p_ptr, i, n, FULL, ACC)
    g = read(g_ptr, i, n, FULL, ACC)
    m = read(m_ptr, i, n, FULL, ACC)
    v = read(v_ptr, i, n, FULL, ACC)
    if MAXIMIZE:
        g = -g
    if DECOUPLED:
        p *= shrink
    else:
        g += weight_decay * p
    m += share1 * (g - m)
    v = (1.0 - share2) * v + share2 * (g * g)
    write(m_ptr, i, n, m, FULL)
    write(v_ptr, i, n, v, FULL)
    if AMSGRAD:
        v = tl.maximum(v, read(top_ptr, i, n, FULL, ACC), propagate_nan=tl.PropagateNan.ALL)
        write(top_ptr, i, n, v, FULL)
    write(p_ptr, i, n, p - step_size * (m / (tl.sqrt(v) * root + eps)), FULL)


@jit
def adam_kernel(
    table_ptr,  # (4 or 5, tensors): parameters, gradients, exp_avgs, exp_avg_sqs, their maxima
    sizes_ptr,
    chunks_ptr,
    n_tensors,
    step_size,  # lr / (1 - beta1**t)
    share1,  # 1 - beta1
    share2,  # 1 - beta2
    root,  # 1 / sqrt(1 - beta2**t)
    eps,
    weight_decay,
    shrink,  # 1 - lr * weight_decay
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    S_TYPE: tl.constexpr,
    ACC: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    AMSGRAD: tl.constexpr,
    DECOUPLED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    tensor = tl.load(chunks_ptr + tl.program_id(0) * 2)
    start = tl.load(chunks_ptr + tl.program_id(0) * 2 + 1) * BLOCK
    n = tl.load(sizes_ptr + tensor) - start
    p_ptr = address(table_ptr, 0, n_tensors, tensor, P_TYPE, ALIGNED) + start
    g_ptr = address(table_ptr, 1, n_tensors, tensor, G_TYPE, ALIGNED) + start
    m_ptr = address(table_ptr, 2, n_tensors, tensor, S_TYPE, ALIGNED) + start
    v_ptr = address(table_ptr, 3, n_tensors, tensor, S_TYPE, ALIGNED) + start
    top_ptr = v_ptr
    if AMSGRAD:
        top_ptr = address(table_ptr, 4, n_tensors, tensor, S_TYPE, ALIGNED) + start
    i = tl.arange(0, BLOCK)
    step_size, root, eps = number(step_size, ACC), number(root, ACC), number(eps, ACC)
    share1, share2 = number(share1, ACC), number(share2, ACC)
    weight_decay, shrink = number(weight_decay, ACC), number(shrink, ACC)
    if n >= BLOCK:
        adam_block(
            p_ptr, g_ptr, m_ptr, v_ptr, top_ptr, i, n, step_size, share1, share2, root, eps,
            weight_decay, shrink, AMSGRAD, DECOUPLED, MAXIMIZE, True, ACC,
        )  # fmt: skip
    else:
        adam_block(
            p_ptr, g_ptr, m_ptr, v_ptr, top_ptr, i, n, step_size, share1, share2, root, eps,
            weight_decay, shrink, AMSGRAD, DECOUPLED, MAXIMIZE, False, ACC,
        )  # fmt: skip


def adam(
    params: list[DeviceArray], grads: list[DeviceArray], exp_avgs: list[DeviceArray],
    exp_avg_sqs: list[DeviceArray], max_exp_avg_sqs: list[DeviceArray], *, step: int, lr: float,
    beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool, maximize: bool,
) -> None:  # fmt: skip
    """Step ``step`` (from 1) of Adam or AdamW; ``max_exp_avg_sqs`` is empty without amsgrad."""
    arrays = [params, grads, exp_avgs, exp_avg_sqs]
    if max_exp_avg_sqs:
        arrays.append(max_exp_avg_sqs)
    numbers = [
        lr / (1 - beta1**step), 1 - beta1, 1 - beta2, (1 - beta2**step) ** -0.5, eps, weight_decay,
        1 - lr * weight_decay,
    ]  # fmt: skip
    _run(
        adam_kernel, arrays, numbers, AMSGRAD=bool(max_exp_avg_sqs), DECOUPLED=decoupled,
        MAXIMIZE=maximize,
    )  # fmt: skip


@jit
def rmsprop_block(
    p_ptr, g_ptr, v_ptr, a_ptr, b_ptr, i, n, lr, alpha, eps, weight_decay, momentum,
    CENTERED: tl.constexpr, MOMENTUM: tl.constexpr, MAXIMIZE: tl.constexpr,
    FULL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    p = read(p_ptr, i, n, FULL, ACC)
    g = read(g_ptr, i, n, FULL, ACC)
    if MAXIMIZE:
        g = -g
    g += weight_decay * p
    v = read(v_ptr, i, n, FULL, ACC)
    v += (1.0 - alpha) * (g * g - v)
    write(v_ptr, i, n, v, FULL)
    if CENTERED:
        a = read(a_ptr, i, n, FULL, ACC)
        a += (1.0 - alpha) * (g - a)
        write(a_ptr, i, n, a, FULL)
        v = tl.maximum(v - a * a, 0.0, propagate_nan=tl.PropagateNan.ALL)
    g = g / (tl.sqrt(v) + eps)
    if MOMENTUM:
        g += momentum * read(b_ptr, i, n, FULL, ACC)
        write(b_ptr, i, n, g, FULL)
    write(p_ptr, i, n, p - lr * g, FULL)


@jit
def rmsprop_kernel(
    table_ptr,  # (3 to 5, tensors): parameters, gradients, square_avgs, [grad_avgs], [buffers]
    sizes_ptr,
    chunks_ptr,
    n_tensors,
    lr,
    alpha,
    eps,
    weight_decay,
    momentum,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    S_TYPE: tl.constexpr,
    ACC: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTERED: tl.constexpr,
    MOMENTUM: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    tensor = tl.load(chunks_ptr + tl.program_id(0) * 2)
    start = tl.load(chunks_ptr + tl.program_id(0) * 2 + 1) * BLOCK
    n = tl.load(sizes_ptr + tensor) - start
    p_ptr = address(table_ptr, 0, n_tensors, tensor, P_TYPE, ALIGNED) + start
    g_ptr = address(table_ptr, 1, n_tensors, tensor, G_TYPE, ALIGNED) + start
    v_ptr = address(table_ptr, 2, n_tensors, tensor, S_TYPE, ALIGNED) + start
    a_ptr = v_ptr
    b_ptr = v_ptr
    if CENTERED:
        a_ptr = address(table_ptr, 3, n_tensors, tensor, S_TYPE, ALIGNED) + start
    if MOMENTUM:
        b_ptr = address(table_ptr, 4 if CENTERED else 3, n_tensors, tensor, S_TYPE, ALIGNED) + start
    i = tl.arange(0, BLOCK)
    lr, alpha, eps = number(lr, ACC), number(alpha, ACC), number(eps, ACC)
    weight_decay, momentum = number(weight_decay, ACC), number(momentum, ACC)
    if n >= BLOCK:
        rmsprop_block(
            p_ptr, g_ptr, v_ptr, a_ptr, b_ptr, i, n, lr, alpha, eps, weight_decay, momentum,
            CENTERED, MOMENTUM, MAXIMIZE, True, ACC,
        )  # fmt: skip
    else:
        rmsprop_block(
            p_ptr, g_ptr, v_ptr, a_ptr, b_ptr, i, n, lr, alpha, eps, weight_decay, momentum,
            CENTERED, MOMENTUM, MAXIMIZE, False, ACC,
        )  # fmt: skip


def rmsprop(
    params: list[DeviceArray], grads: list[DeviceArray], square_avgs: list[DeviceArray],
    grad_avgs: list[DeviceArray], buffers: list[DeviceArray], *, lr: float, alpha: float,
    eps: float, weight_decay: float, momentum: float, maximize: bool,
) -> None:  # fmt: skip
    """One step of RMSprop; ``grad_avgs`` is empty unless centered, ``buffers`` without momentum."""
    arrays = [row for row in (params, grads, square_avgs, grad_avgs, buffers) if row]
    _run(
        rmsprop_kernel, arrays, [lr, alpha, eps, weight_decay, momentum],
        CENTERED=bool(grad_avgs), MOMENTUM=bool(buffers), MAXIMIZE=maximize,
    )  # fmt: skip


@jit
def adagrad_block(
    p_ptr, g_ptr, s_ptr, i, n, lr, eps, weight_decay, MAXIMIZE: tl.constexpr,
    FULL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    p = read(p_ptr, i, n, FULL, ACC)
    g = read(g_ptr, i, n, FULL, ACC)
    if MAXIMIZE:
        g = -g
    g += weight_decay * p
    s = read(s_ptr, i, n, FULL, ACC) + g * g
    write(s_ptr, i, n, s, FULL)
    write(p_ptr, i, n, p - lr * (g / (tl.sqrt(s) + eps)), FULL)


@jit
def adagrad_kernel(
    table_ptr,  # (3, tensors): parameters, gradients, state_sums
    sizes_ptr,
    chunks_ptr,
    n_tensors,
    lr,
    eps,
    weight_decay,
    P_TYPE: tl.constexpr,
    G_TYPE: tl.constexpr,
    S_TYPE: tl.constexpr,
    ACC: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    tensor = tl.load(chunks_ptr + tl.program_id(0) * 2)
    start = tl.load(chunks_ptr + tl.program_id(0) * 2 + 1) * BLOCK
    n = tl.load(sizes_ptr + tensor) - start
    p_ptr = address(table_ptr, 0, n_tensors, tensor, P_TYPE, ALIGNED) + start
    g_ptr = address(table_ptr, 1, n_tensors, tensor, G_TYPE, ALIGNED) + start
    s_ptr = address(table_ptr, 2, n_tensors, tensor, S_TYPE, ALIGNED) + start
    i = tl.arange(0, BLOCK)
    lr, eps, weight_decay = number(lr, ACC), number(eps, ACC), number(weight_decay, ACC)
    if n >= BLOCK:
        adagrad_block(p_ptr, g_ptr, s_ptr, i, n, lr, eps, weight_decay, MAXIMIZE, True, ACC)
    else:
        adagrad_block(p_ptr, g_ptr, s_ptr, i, n, lr, eps, weight_decay, MAXIMIZE, False, ACC)


def adagrad(
    params: list[DeviceArray], grads: list[DeviceArray], state_sums: list[DeviceArray], *, lr:
    float, eps: float, weight_decay: float, maximize: bool, ) -> None:  # fmt: skip
    """One step of Adagrad with learning rate ``lr`` (already decayed)."""
    _run(adagrad_kernel, [params, grads, state_sums], [lr, eps, weight_decay], MAXIMIZE=maximize)
