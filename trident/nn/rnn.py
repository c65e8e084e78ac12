"""Recurrent layers, as the loops they are.

The products with the inputs of all time steps are one matrix product before the loop; the loop
multiplies the hidden state and applies the cell's formula. Packed sequences run padded, with the
state of a sequence held still beyond its end.
"""

from __future__ import annotations

import math
from typing import Any

import trident

from .. import Tensor, ops
from ..errors import wrong
from . import functional as F
from . import init
from .module import Module
from .parameter import Parameter
from .utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

# ---- one step: gi, gh are the products of input and hidden state, (N, gates * H) -----------------


def _tanh_step(gi: Tensor, gh: Tensor, state: tuple) -> tuple:
    return (ops.tanh(gi + gh),)


def _relu_step(gi: Tensor, gh: Tensor, state: tuple) -> tuple:
    return (ops.relu(gi + gh),)


def _lstm_step(gi: Tensor, gh: Tensor, state: tuple) -> tuple:
    i, f, g, o = (gi + gh).chunk(4, -1)
    c = ops.sigmoid(f) * state[1] + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def _gru_step(gi: Tensor, gh: Tensor, state: tuple) -> tuple:
    ir, iz, inew = gi.chunk(3, -1)
    hr, hz, hnew = gh.chunk(3, -1)
    z = ops.sigmoid(iz + hz)
    new = ops.tanh(inew + ops.sigmoid(ir + hr) * hnew)
    return (new + z * (state[0] - new),)


_STEPS = {"tanh": _tanh_step, "relu": _relu_step, "lstm": _lstm_step, "gru": _gru_step}
_GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}


class _Recurrent(Module):
    """Parameters and arguments of the recurrent layers."""

    kind = "tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if hidden_size <= 0 or num_layers <= 0:
            raise ValueError(
                f"{name}: hidden_size and num_layers must be > 0; got {hidden_size}, {num_layers}"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"{name}: dropout must lie in [0, 1]; got {dropout}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self._suffixes = ["", "_reverse"] if bidirectional else [""]
        rows = _GATES[self.kind] * hidden_size
        like = {"device": device, "dtype": dtype}
        for layer in range(num_layers):
            features = input_size if layer == 0 else hidden_size * len(self._suffixes)
            for suffix in self._suffixes:
                end = f"l{layer}{suffix}"
                setattr(self, f"weight_ih_{end}", Parameter(trident.empty(rows, features, **like)))
                setattr(
                    self, f"weight_hh_{end}", Parameter(trident.empty(rows, hidden_size, **like))
                )
                if bias:
                    setattr(self, f"bias_ih_{end}", Parameter(trident.empty(rows, **like)))
                    setattr(self, f"bias_hh_{end}", Parameter(trident.empty(rows, **like)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh initial values, uniform on ±1 / sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do; present for programs that call it."""

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        for name, default in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
        ):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text

    def _direction(
        self, x: Tensor, state: tuple, end: str, mask: list[Tensor] | None, backwards: bool
    ) -> tuple[Tensor, tuple]:
        """Run one direction of one layer over x (L, N, F) from ``state``, a tuple of (N, H)."""
        step = _STEPS[self.kind]
        w_hh, b_hh = getattr(self, f"weight_hh_{end}"), getattr(self, f"bias_hh_{end}", None)
        products = F.linear(
            x, getattr(self, f"weight_ih_{end}"), getattr(self, f"bias_ih_{end}", None)
        )
        inputs = products.unbind(0)
        outputs: list[Any] = [None] * len(inputs)
        order = range(len(inputs))
        for t in reversed(order) if backwards else order:
            new = step(inputs[t], F.linear(state[0], w_hh, b_hh), state)
            if mask is not None:
                new = tuple(ops.where(mask[t], n, s) for n, s in zip(new, state))
            state = new
            outputs[t] = state[0]
        return trident.stack(outputs), state

    def _run(self, input: Any, states: tuple | None, n_states: int) -> tuple[Any, tuple]:
        packed = input if isinstance(input, PackedSequence) else None
        mask = None
        if packed is not None:
            x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
            live = trident.arange(x.shape[0], device=x.device).reshape(-1, 1) < lengths.to(x.device)
            mask = list(live.unsqueeze(-1).unbind(0))
            single = False
        else:
            if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
                raise wrong(
                    type(self).__name__,
                    f"input must be (L, N, {self.input_size})"
                    + (", batch first" if self.batch_first else "")
                    + f", or (L, {self.input_size})",
                    got=tuple(input.shape),
                )
            single = input.ndim == 2
            x = (
                input.unsqueeze(1)
                if single
                else input.transpose(0, 1)
                if self.batch_first
                else input
            )
        n, directions = x.shape[1], len(self._suffixes)
        shape = (self.num_layers * directions, n, self.hidden_size)
        if states is None:
            zero = trident.zeros(*shape, dtype=x.dtype, device=x.device)
            states = (zero,) * n_states
        else:
            states = tuple(s.unsqueeze(1) if single else s for s in states)
            if packed is not None and packed.sorted_indices is not None:
                states = tuple(s.index_select(1, packed.sorted_indices) for s in states)
            for s in states:
                if tuple(s.shape) != shape:
                    raise wrong(
                        type(self).__name__, f"the initial state must have shape {shape}",
                        got=tuple(s.shape),
                    )  # fmt: skip
        last: list[tuple] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = F.dropout(x, self.dropout, True)
            both = []
            for d, suffix in enumerate(self._suffixes):
                start = tuple(s[layer * directions + d] for s in states)
                y, end = self._direction(x, start, f"l{layer}{suffix}", mask, bool(d))
                both.append(y)
                last.append(end)
            x = both[0] if directions == 1 else trident.cat(both, -1)
        final = tuple(trident.stack([s[k] for s in last]) for k in range(n_states))
        if packed is not None:
            out = pack_padded_sequence(x, lengths)
            out = PackedSequence(
                out.data, out.batch_sizes, packed.sorted_indices, packed.unsorted_indices
            )
            if packed.unsorted_indices is not None:
                final = tuple(s.index_select(1, packed.unsorted_indices) for s in final)
            return out, final
        if single:
            return x.squeeze(1), tuple(s.squeeze(1) for s in final)
        return (x.transpose(0, 1) if self.batch_first else x), final

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        output, (h,) = self._run(input, None if hx is None else (hx,), 1)
        return output, h


class RNN(_Recurrent):
    """``h = tanh(W_ih x + b_ih + W_hh h + b_hh)``: x (L, N, input_size) -> (L, N, H), h_n (layers,
    N, H).

    ``batch_first`` takes and gives (N, L, ...); unbatched input (L, input_size) is fine too;
    ``bidirectional`` doubles the last axis. Input may be a PackedSequence.
    """

    def __init__(self, *args: Any, nonlinearity: str = "tanh", **kwargs: Any) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu'; got {nonlinearity!r}")
        if len(args) > 3 and isinstance(args[3], str):  # torch's position of nonlinearity
            nonlinearity, args = args[3], (*args[:3], *args[4:])
        self.__dict__["kind"] = self.__dict__["nonlinearity"] = nonlinearity
        super().__init__(*args, **kwargs)


class LSTM(_Recurrent):
    """Long short-term memory: x (L, N, input_size) -> output (L, N, H), (h_n, c_n).

    ``c = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h = sigmoid(o) tanh(c)``, where i, f, g, o are the
    quarters of ``W_ih x + b_ih + W_hh h + b_hh``. Source: Hochreiter, Schmidhuber 1997.

    >>> layer = trident.nn.LSTM(3, 5, batch_first=True)
    >>> output, (h, c) = layer(trident.zeros(2, 4, 3))
    >>> output.shape, h.shape
    (trident.Size([2, 4, 5]), trident.Size([1, 2, 5]))
    """

    kind = "lstm"

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Any, Any]:
        return self._run(input, hx, 2)


class GRU(_Recurrent):
    """Gated recurrent unit: x (L, N, input_size) -> output (L, N, H), h_n (layers, N, H).

    ``h = (1 - z) n + z h`` with gates r, z and ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``.
    Source: Cho et al. 2014, arXiv:1406.1078.
    """

    kind = "gru"


class _Cell(Module):
    """One step of a recurrent layer, called by the user's own loop."""

    kind = "tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = _GATES[self.kind] * hidden_size
        like = {"device": device, "dtype": dtype}
        self.weight_ih = Parameter(trident.empty(rows, input_size, **like))
        self.weight_hh = Parameter(trident.empty(rows, hidden_size, **like))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, Parameter(trident.empty(rows, **like)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh initial values, uniform on ±1 / sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        return text if self.bias else f"{text}, bias={self.bias}"

    def _advance(self, input: Tensor, state: tuple | None, n_states: int) -> tuple:
        if input.ndim not in (1, 2) or input.shape[-1] != self.input_size:
            raise wrong(
                type(self).__name__,
                f"input must be (N, {self.input_size}) or ({self.input_size},)",
                got=tuple(input.shape),
            )  # fmt: skip
        if state is None:
            shape = (*input.shape[:-1], self.hidden_size)
            state = (trident.zeros(*shape, dtype=input.dtype, device=input.device),) * n_states
        gi = F.linear(input, self.weight_ih, self.bias_ih)
        gh = F.linear(state[0], self.weight_hh, self.bias_hh)
        return _STEPS[self.kind](gi, gh, state)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return self._advance(input, None if hx is None else (hx,), 1)[0]


class RNNCell(_Cell):
    """One step of RNN: x (N, input_size), h (N, H) -> h (N, H)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"RNNCell: nonlinearity must be 'tanh' or 'relu'; got {nonlinearity!r}"
            )
        self.__dict__["kind"] = self.__dict__["nonlinearity"] = nonlinearity
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.kind == "tanh" else f"{text}, nonlinearity={self.kind}"


class LSTMCell(_Cell):
    """One step of LSTM: x (N, input_size), (h, c) each (N, H) -> (h, c)."""

    kind = "lstm"

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        return self._advance(input, hx, 2)


class GRUCell(_Cell):
    """One step of GRU: x (N, input_size), h (N, H) -> h (N, H)."""

    kind = "gru"
