"""Running sums, products, extrema and linear recurrences along one axis.

A program owns ROWS lines of the array and walks the axis in blocks of COLS: each block is scanned
in parallel and then joined with the carry of the blocks before it. ``reverse`` walks the axis
backwards by strides alone.
"""

from __future__ import annotations

from .. import dtypes, shapes
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .rows import Layout, acc_type, accumulator, interpreted_block, layout, offset_of


@jit
def linear_step(a, b, a_next, b_next):
    """The composition of h -> a h + b with h -> a_next h + b_next."""
    return a * a_next, b * a_next + b_next


@jit
def larger(v, i, v_next, i_next):
    """The pair that a running maximum keeps: the later of equals, and a NaN once there is one."""
    take = (v_next >= v) & (v == v) | (v_next != v_next)
    return tl.where(take, v_next, v), tl.where(take, i_next, i)


@jit
def smaller(v, i, v_next, i_next):
    take = (v_next <= v) & (v == v) | (v_next != v_next)
    return tl.where(take, v_next, v), tl.where(take, i_next, i)


@jit
def last(x, cols, COLS: tl.constexpr):
    """The last column of a tile, as a vector over its rows."""
    return tl.sum(tl.where(cols[None, :] == COLS - 1, x, tl.zeros_like(x)), 1)


@jit
def cumulate_kernel(
    x_ptr,
    out_ptr,
    n_rows,
    n_cols,
    rn1,
    rn2,
    xs0,
    xs1,
    xs2,
    x_step,  # stride along the axis
    os0,
    os1,
    os2,
    out_step,
    PRODUCT: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if INT64:
        rows = rows.to(tl.int64)
    x_row = x_ptr + offset_of(rows, rn1, rn2, xs0, xs1, xs2)[:, None]
    out_row = out_ptr + offset_of(rows, rn1, rn2, os0, os1, os2)[:, None]
    carry = tl.full((ROWS,), 1 if PRODUCT else 0, ACC)
    for first in range(0, n_cols, COLS):
        in_block = tl.arange(0, COLS)
        cols = first + in_block
        if INT64:
            cols = cols.to(tl.int64)
        mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
        x = tl.load(x_row + cols[None, :] * x_step, mask=mask, other=1 if PRODUCT else 0).to(ACC)
        if PRODUCT:
            scanned = tl.cumprod(x, 1) * carry[:, None]
        else:
            scanned = tl.cumsum(x, 1) + carry[:, None]
        tl.store(
            out_row + cols[None, :] * out_step, scanned.to(out_ptr.dtype.element_ty), mask=mask
        )
        carry = last(scanned, in_block, COLS)


@jit
def linear_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    n_rows,
    n_cols,
    rn1,
    rn2,
    as0,
    as1,
    as2,
    a_step,
    bs0,
    bs1,
    bs2,
    b_step,
    os0,
    os1,
    os2,
    out_step,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if INT64:
        rows = rows.to(tl.int64)
    a_row = a_ptr + offset_of(rows, rn1, rn2, as0, as1, as2)[:, None]
    b_row = b_ptr + offset_of(rows, rn1, rn2, bs0, bs1, bs2)[:, None]
    out_row = out_ptr + offset_of(rows, rn1, rn2, os0, os1, os2)[:, None]
    carry = tl.zeros((ROWS,), ACC)
    for first in range(0, n_cols, COLS):
        in_block = tl.arange(0, COLS)
        cols = first + in_block
        if INT64:
            cols = cols.to(tl.int64)
        mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
        a = tl.load(a_row + cols[None, :] * a_step, mask=mask, other=1.0).to(ACC)
        b = tl.load(b_row + cols[None, :] * b_step, mask=mask, other=0.0).to(ACC)
        # h[0] = b[0]: the first factor has nothing to multiply, and must not (it may be inf)
        a = tl.where(cols[None, :] == 0, 1.0, a)
        factor, h = tl.associative_scan((a, b), 1, linear_step)
        h = factor * carry[:, None] + h
        tl.store(out_row + cols[None, :] * out_step, h.to(out_ptr.dtype.element_ty), mask=mask)
        carry = last(h, in_block, COLS)


@jit
def extremum_kernel(
    x_ptr,
    value_ptr,
    index_ptr,
    n_rows,
    n_cols,
    rn1,
    rn2,
    xs0,
    xs1,
    xs2,
    x_step,
    os0,
    os1,
    os2,
    out_step,
    LARGEST: tl.constexpr,
    IDENTITY: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if INT64:
        rows = rows.to(tl.int64)
    x_row = x_ptr + offset_of(rows, rn1, rn2, xs0, xs1, xs2)[:, None]
    out_row = offset_of(rows, rn1, rn2, os0, os1, os2)[:, None]
    best = tl.full((ROWS,), IDENTITY, ACC)
    where = tl.zeros((ROWS,), tl.int32)
    for first in range(0, n_cols, COLS):
        in_block = tl.arange(0, COLS)
        cols = first + in_block
        mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
        at = cols
        if INT64:
            at = at.to(tl.int64)
        x = tl.load(x_row + at[None, :] * x_step, mask=mask, other=0).to(ACC)
        x = tl.where(mask, x, IDENTITY)
        index = cols[None, :] + tl.zeros((ROWS, COLS), tl.int32)
        if LARGEST:
            v, i = tl.associative_scan((x, index), 1, larger)
            v, i = larger(best[:, None], where[:, None], v, i)
        else:
            v, i = tl.associative_scan((x, index), 1, smaller)
            v, i = smaller(best[:, None], where[:, None], v, i)
        to = out_row + at[None, :] * out_step
        tl.store(value_ptr + to, v.to(value_ptr.dtype.element_ty), mask=mask)
        tl.store(index_ptr + to, i.to(tl.int64), mask=mask)
        best = last(v, in_block, COLS)
        where = last(i, in_block, COLS)


def _tile(plan: Layout, interpreted: bool, elements: int, slow: bool = False) -> tuple[int, int]:
    """(ROWS, COLS); ``slow`` where the interpreter scans element by element in Python."""
    if interpreted:
        elements = min(interpreted_block(), 256) if slow else interpreted_block()
    if plan.wide:
        cols = min(next_power_of_2(plan.n_cols), elements)
        return min(next_power_of_2(plan.n_rows), max(1, elements // cols)), cols
    rows = min(next_power_of_2(plan.n_rows), 32)
    return rows, min(next_power_of_2(plan.n_cols), max(1, elements // rows))


def _walk(plan: Layout, i: int) -> tuple[int, ...]:
    """Row strides and the step along the axis of the i-th array."""
    return (*plan.row_strides[i], plan.col_strides[i][0])


def cumulate(out: DeviceArray, x: DeviceArray, *, dim: int, product: bool) -> None:
    """Running sum, or product, of ``x`` along the axis ``dim`` (counted from the front)."""
    if out.size == 0:
        return
    plan, (x,) = layout((dim,), x, out=out)
    acc = accumulator(out.dtype)
    rows, cols = _tile(plan, x.device.interpreted, 2048 if acc.itemsize == 4 else 1024)
    launch(
        cumulate_kernel,
        (cdiv(plan.n_rows, rows),),
        x,
        out,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *_walk(plan, 0),
        *_walk(plan, 1),
        PRODUCT=product,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x, out),
        ROWS=rows,
        COLS=cols,
    )


def linear(
    out: DeviceArray, a: DeviceArray, b: DeviceArray, *, dim: int, reverse: bool = False
) -> None:
    """h[t] = a[t] h[t-1] + b[t] along ``dim``, h[-1] = 0; ``reverse`` runs from the end."""
    if out.size == 0:
        return
    target = out
    if reverse:
        back = (slice(None),) * dim + (slice(None, None, -1),)
        a, b, target = a[back], b[back], target[back]
    plan, (a, b) = layout((dim,), a, b, out=target)
    acc = accumulator(out.dtype)
    rows, cols = _tile(plan, a.device.interpreted, 2048 if acc.itemsize == 4 else 1024, slow=True)
    launch(
        linear_kernel,
        (cdiv(plan.n_rows, rows),),
        a,
        b,
        target,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *_walk(plan, 0),
        *_walk(plan, 1),
        *_walk(plan, 2),
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(a, b, target),
        ROWS=rows,
        COLS=cols,
    )


def extremum(
    values: DeviceArray, indices: DeviceArray, x: DeviceArray, *, dim: int, largest: bool
) -> None:
    """Running maximum (minimum) along ``dim`` and where it was found; the later of equals."""
    if values.size == 0:
        return
    plan, (x,) = layout((dim,), x, out=values)
    acc = accumulator(x.dtype)
    if acc.is_floating_point:
        identity: float | int = float("-inf") if largest else float("inf")
    else:
        limits = dtypes.iinfo(acc)
        identity = limits.min if largest else limits.max
    rows, cols = _tile(plan, x.device.interpreted, 1024, slow=True)
    launch(
        extremum_kernel,
        (cdiv(plan.n_rows, rows),),
        x,
        values,
        indices,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *_walk(plan, 0),
        *_walk(plan, 1),
        LARGEST=largest,
        IDENTITY=identity,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x, values),
        ROWS=rows,
        COLS=cols,
    )
