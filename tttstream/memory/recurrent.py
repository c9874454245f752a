"""LSTM and GRU as memories: torch's own recurrent layers, with resets at any token and rows of any length.

Where a call has resets inside or lengths, its rows are cut into pieces, each piece runs as a row of its own in one
packed sequence (no padding, no loop over time in Python), and the outputs are put back.

Letters: B rows, T tokens, L layers, D width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tttstream.errors import ConfigError
from tttstream.memory.base import Memory
from tttstream.state import State
from tttstream_kernels.precision import full_precision


class _Hidden(NamedTuple):
    hidden: Tensor


class _HiddenCell(NamedTuple):
    hidden: Tensor
    cell: Tensor


class GRUState(State, _Hidden):
    """hidden [B, L, D]."""

    __slots__ = ()


class LSTMState(State, _HiddenCell):
    """hidden, cell [B, L, D]."""

    __slots__ = ()


class _Recurrent(Memory):
    """Shared by LSTM and GRU. The recurrence runs in the parameters' type, also under autocast."""

    layer: type[nn.LSTM] | type[nn.GRU]
    state_type: type[LSTMState] | type[GRUState]

    def __init__(self, dim: int, layers: int = 1) -> None:
        super().__init__()
        if dim < 1 or layers < 1:
            raise ConfigError(f"expected dim and layers of at least 1, got {dim = } and {layers = }")
        self.dim, self.layers = dim, layers
        self.core = self.layer(dim, dim, layers, batch_first=True)

    def init_state(self, batch: int) -> Any:
        """Hidden (and cell) values of zero."""
        return self.state_type(*(self.zeros(batch, self.layers, self.dim) for _ in self.state_type._fields))

    def forward(
        self, x: Tensor, state: Any = None, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """x [B, T, dim] -> y [B, T, dim] and the state after it; see `Memory`."""
        state = self.check(x, state, reset, lengths)
        rows, tokens, _ = x.shape
        cuts = x.new_zeros(rows, tokens, dtype=torch.bool) if reset is None else reset
        if lengths is not None:
            counted = torch.arange(tokens, device=x.device) < lengths[:, None]
            return self._run_pieces(x, state, cuts & counted, counted)
        if reset is not None and tokens > 1 and bool(reset[:, 1:].any()):
            return self._run_pieces(x, state, cuts, torch.ones_like(cuts))
        if reset is not None:
            state = self.init_state(rows).where(reset[:, 0], state)
        return self._run(x, state)

    def _run(self, x: Tensor | PackedSequence, state: Any) -> tuple[Any, Any]:
        dtype = next(self.core.parameters()).dtype
        narrow = state.map(lambda leaf: leaf.to(dtype).transpose(0, 1).contiguous())
        start = narrow.hidden if len(narrow) == 1 else tuple(narrow)
        with full_precision(state.hidden.device.type):
            y, end = self.core(x.to(dtype), start)
        leaves = (end,) if len(narrow) == 1 else end
        new = self.state_type(*leaves).map(lambda leaf: leaf.transpose(0, 1).to(self.state_dtype))
        return (y.to(x.dtype) if isinstance(x, Tensor) else y), new

    def _run_pieces(self, x: Tensor, state: Any, cuts: Tensor, counted: Tensor) -> tuple[Tensor, Any]:
        """cuts, counted bool [B, T]: where a token starts from nothing, and which tokens there are."""
        tokens = x.shape[1]
        starts = cuts | (counted & (torch.arange(tokens, device=x.device) == 0))
        token = counted.flatten().nonzero().squeeze(1)  # flat places of the tokens that count
        if token.numel() == 0:
            return torch.zeros_like(x), state
        piece = (starts.flatten().cumsum(0) - 1)[token]  # the piece of each
        first = starts.flatten().nonzero().squeeze(1)  # flat place where each piece starts
        offset = token - first[piece]
        longest_first = piece.bincount().argsort(descending=True, stable=True)
        rank = longest_first.argsort()
        order = token[(offset * len(first) + rank[piece]).argsort()]

        row = first // tokens
        fresh = self.init_state(len(first)).where(cuts.flatten()[first], state[row])
        packed = PackedSequence(x.flatten(0, 1)[order], offset.bincount().cpu())
        out, end = self._run(packed, fresh[longest_first])
        y = torch.zeros_like(x).flatten(0, 1).index_copy(0, order, out.data.to(x.dtype)).view_as(x)

        last = (starts.sum(1).cumsum(0) - 1).clamp(min=0)  # each row's last piece
        return y, end[rank[last]].where(counted.any(1), state)


class LSTM(_Recurrent):
    """torch.nn.LSTM of width `dim` with `layers` layers."""

    layer = nn.LSTM
    state_type = LSTMState


class GRU(_Recurrent):
    """torch.nn.GRU of width `dim` with `layers` layers."""

    layer = nn.GRU
    state_type = GRUState
