"""From a list of samples to a batch of tensors.

It happens in two steps: ``stack`` makes numpy arrays (in a worker, where it may run beside others
or in another process) and ``to_tensors`` turns them into tensors (in the thread that runs the
loop).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import trident

from ...dtypes import FROM_NUMPY
from ...errors import DTypeError, ShapeError, wrong


def default_collate(batch: list) -> Any:
    """Stack the samples of ``batch`` along a new first axis, field by field.

    Tensors and numpy arrays (...) become tensors (N, ...); numbers become a tensor (N,), int64 for
    ints, float64 for floats; strings and bytes stay a list. Dicts, lists, tuples and named tuples
    are taken apart and put together again (a tuple gives a list). Raises ShapeError where shapes
    differ.

    >>> trident.utils.data.default_collate([(np.zeros(2), 0), (np.ones(2), 1)])[1]
    tensor([0, 1])
    """
    return to_tensors(stack(batch))


def default_convert(sample: Any) -> Any:
    """The numpy arrays and numpy numbers of one sample as tensors; everything else as it is."""
    return map_tree(sample, _convert_leaf)


def _convert_leaf(x: Any) -> Any:
    if isinstance(x, np.ndarray | np.generic) and x.dtype in FROM_NUMPY:
        return trident.from_numpy(np.asarray(x))
    return x


def stack(batch: list, where: str = "") -> Any:
    """``default_collate`` as far as numpy goes. ``where`` names the field in errors."""
    first = batch[0]
    if isinstance(first, np.ndarray | np.generic):
        return _stack_arrays([np.asarray(b) for b in batch], where)
    if isinstance(first, trident.Tensor):
        if first.device.type == "cpu":
            return _stack_arrays([b.detach().numpy() for b in batch], where)
        return trident.stack(batch)
    if isinstance(first, bool | int | float):
        dtype = np.bool_ if isinstance(first, bool) else np.int64
        if any(isinstance(b, float) for b in batch):
            dtype = np.float64
        return np.array(batch, dtype=dtype)
    if isinstance(first, str | bytes):
        return list(batch)
    if isinstance(first, Mapping):
        for i, b in enumerate(batch):
            if b.keys() != first.keys():
                raise wrong(
                    "default_collate",
                    f"samples must have the same keys{where}; sample 0 of the batch has "
                    f"{list(first)}",
                    got=f"{list(b)} in sample {i}",
                    error=ShapeError,
                )
        fields = {k: stack([b[k] for b in batch], f"{where}[{k!r}]") for k in first}
        return fields
    if isinstance(first, list | tuple):
        for i, b in enumerate(batch):
            if len(b) != len(first):
                raise wrong(
                    "default_collate",
                    f"samples must have the same length{where}; sample 0 of the batch has "
                    f"{len(first)} fields",
                    got=f"{len(b)} in sample {i}",
                )
        columns = [stack(list(c), f"{where}[{i}]") for i, c in enumerate(zip(*batch))]
        return type(first)(*columns) if hasattr(first, "_fields") else columns
    hint = "pass a collate_fn, or a transform that gives arrays, tensors, numbers or strings"
    if type(first).__module__.startswith("PIL."):
        hint = "images need a transform that ends in transforms.ToTensor()"
    raise wrong(
        "default_collate",
        f"samples must hold tensors, arrays, numbers, strings, dicts or lists{where}",
        got=_type_name(first),
        hint=hint,
        error=DTypeError,
    )


def _stack_arrays(arrays: list[np.ndarray], where: str) -> Any:
    shape = arrays[0].shape
    for i, a in enumerate(arrays):
        if a.shape != shape:
            raise wrong(
                "default_collate",
                f"samples must have equal shapes to be stacked{where}; sample 0 of the batch has "
                f"{shape}",
                got=f"{a.shape} in sample {i}",
                hint="crop, resize or pad them alike, or pass a collate_fn",
            )
    if arrays[0].dtype.kind in "US":
        return [a.item() if a.ndim == 0 else a for a in arrays]
    return np.stack(arrays)


def to_tensors(tree: Any) -> Any:
    """The arrays in a tree of dicts, lists and tuples as tensors (memory is shared)."""
    return map_tree(tree, lambda x: trident.from_numpy(x) if isinstance(x, np.ndarray) else x)


def map_tree(tree: Any, fn: Callable[[Any], Any]) -> Any:
    """``fn`` of every leaf of a tree of dicts, lists, tuples and named tuples."""
    if isinstance(tree, Mapping):
        return {k: map_tree(v, fn) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [map_tree(v, fn) for v in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return fn(tree)


def _type_name(value: Any) -> str:
    t = type(value)
    return t.__qualname__ if t.__module__ == "builtins" else f"{t.__module__}.{t.__qualname__}"
