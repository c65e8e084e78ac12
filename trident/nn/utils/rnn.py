"""Sequences of unequal length: padded into one tensor, or packed without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import trident

from ... import Tensor
from ...errors import wrong


class PackedSequence(NamedTuple):
    """Steps of several sequences without padding, all first steps first.

    ``batch_sizes[t]`` sequences have a step t; the longest comes first. ``sorted_indices`` is the
    order they were put in, ``unsorted_indices`` its inverse (None: they came in order).
    """

    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The same sequences on another device or in another dtype."""
        data = self.data.to(*args, **kwargs)
        moved = [None if i is None else i.to(data.device) for i in self[2:]]
        return PackedSequence(data, self.batch_sizes, *moved)


def pad_sequence(
    sequences: Sequence[Tensor],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Stack sequences (L_i, ...) as (max L, N, ...), or (N, max L, ...) with ``batch_first``.

    >>> rows = [trident.ones(2), trident.ones(3)]
    >>> trident.nn.utils.rnn.pad_sequence(rows, batch_first=True).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if padding_side not in ("left", "right"):
        raise ValueError(
            f"pad_sequence: padding_side must be 'left' or 'right'; got {padding_side!r}"
        )
    sequences = list(sequences)
    if not sequences:
        raise ValueError("pad_sequence: sequences must hold at least one tensor; got none")
    longest = max(len(s) for s in sequences)
    rows = []
    for s in sequences:
        missing = longest - len(s)
        if missing:
            fill = trident.full(
                (missing, *s.shape[1:]), padding_value, dtype=s.dtype, device=s.device
            )
            s = trident.cat([fill, s] if padding_side == "left" else [s, fill])
        rows.append(s)
    return trident.stack(rows, 0 if batch_first else 1)


def unpad_sequence(padded: Tensor, lengths: Any, batch_first: bool = False) -> list[Tensor]:
    """The inverse of ``pad_sequence``: a list of sequences of the given lengths."""
    rows = padded if batch_first else padded.transpose(0, 1)
    return [row[:n] for row, n in zip(rows, _numbers(lengths))]


def _numbers(lengths: Any) -> list[int]:
    return [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Drop the padding of input (L, N, ...), whose sequences have the given ``lengths``.

    With ``enforce_sorted`` the lengths must not increase; without, the sequences are sorted.
    """
    sizes = _numbers(lengths)
    x = input.transpose(0, 1) if batch_first else input
    if len(sizes) != x.shape[1] or min(sizes) < 1 or max(sizes) > x.shape[0]:
        raise wrong(
            "pack_padded_sequence",
            f"lengths must hold {x.shape[1]} numbers between 1 and {x.shape[0]}",
            got=sizes,
        )
    order = inverse = None
    if not enforce_sorted:
        ranks = sorted(range(len(sizes)), key=lambda i: -sizes[i])
        order = trident.tensor(ranks, device=x.device)
        inverse = trident.tensor([ranks.index(i) for i in range(len(ranks))], device=x.device)
        x, sizes = x.index_select(1, order), [sizes[i] for i in ranks]
    elif sizes != sorted(sizes, reverse=True):
        raise wrong(
            "pack_padded_sequence", "lengths must not increase with enforce_sorted=True", got=sizes
        )
    live = [sum(n > t for n in sizes) for t in range(max(sizes))]
    data = trident.cat([x[t, :n] for t, n in enumerate(live)])
    return PackedSequence(data, trident.tensor(live), order, inverse)


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The padded tensor (L, N, ...) of a PackedSequence, and the lengths."""
    live = _numbers(sequence.batch_sizes)
    steps = list(sequence.data.split(live))
    width = live[0]
    if total_length is not None and total_length < len(live):
        raise ValueError(
            f"pad_packed_sequence: total_length must be at least {len(live)}; got {total_length}"
        )
    like: dict[str, Any] = {"dtype": sequence.data.dtype, "device": sequence.data.device}
    rest = tuple(sequence.data.shape[1:])
    for t, n in enumerate(live):
        if n < width:
            steps[t] = trident.cat(
                [steps[t], trident.full((width - n, *rest), padding_value, **like)]
            )
    for _ in range((total_length or 0) - len(live)):
        steps.append(trident.full((width, *rest), padding_value, **like))
    padded = trident.stack(steps)
    lengths = trident.tensor([sum(n > i for n in live) for i in range(width)])
    if sequence.unsorted_indices is not None:
        padded = padded.index_select(1, sequence.unsorted_indices)
        lengths = lengths.index_select(0, sequence.unsorted_indices.cpu())
    return (padded.transpose(0, 1) if batch_first else padded), lengths


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Pack a list of sequences (L_i, ...)."""
    lengths = [len(s) for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)
