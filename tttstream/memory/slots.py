"""A nested inner model: attention over a bounded set of slots, whose keys and values are learned from the stream.

Letters: B rows, T tokens, H heads, D head width, M slots, N tokens of a block, C of a part of it, n = pieces * H.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.memory.matrix import Delta, Seen, unit
from tttstream.memory.recurrence import Before, Token, pieces_of, prepare, rows_of, step
from tttstream.state import State
from tttstream_kernels.plan import Ragged, Uniform, plan
from tttstream_kernels.precision import full_precision


class _Slots(NamedTuple):
    matrix: Tensor
    keys: Tensor
    sums: Tensor
    phase: Tensor
    window: Tensor


class SlotState(State, _Slots):
    """matrix [B, H, M, D]: the values of the slots. keys [B, H, M, D]: the difference of their keys from the learned
    ones. sums [B, H, M, D + 1]: of the unfinished block, the weighted keys for each slot and their weight. phase [B]:
    tokens of that block. window: see `MatrixState`."""

    __slots__ = ()


class Slots(Delta):
    """Attention over M slots as an inner model that is itself learned, one answer to the last question of the TTT paper
    (arXiv 2407.04620, section 5): what if the inner model is a sequence learner?

        a(x) = softmax(s x K^T),  f(x) = a / |a|,  o = f(q) V

    K are the keys of the slots, V their values, s a learned sharpness of each head. Both learn from every token:

        V = V + beta f(k)^T (v - f(k) V)                                  at once, the delta rule on f
        K = K + rho A / (1 + A) (C / A - K)                               at the end of a block

    with A = sum_t w_t a(k_t) and C = sum_t w_t a(k_t)^T k_t over the N tokens of the block, and w = beta / reach: every
    slot moves towards the mean of the keys that attend to it, as in online k-means. The values are those of bounded
    attention (Peng et al., arXiv 2110.02488) with the delta rule in place of sums; moving keys are those of Slot
    Attention (Locatello et al., arXiv 2006.15055), with one step a block. Since V has M rows where a matrix memory has
    D, and a(x) is not linear in x, more keys can be kept apart than D.

    Args:
        dim, heads, conv: see `Additive`. reach: see `Delta`.
        slots: M. block: N.
    """

    state_type = SlotState
    linear = False

    def __init__(
        self, dim: int, heads: int = 1, conv: int = 4, reach: float = 2.0, slots: int = 64, block: int = 32
    ) -> None:
        super().__init__(dim, heads, conv, reach)
        if slots < 1 or block < 1:
            raise ConfigError(f"Slots: expected at least 1 slot and 1 token of a block, got {slots=} and {block=}")
        self.slots, self.block, width = slots, block, dim // heads
        self._matrix = (heads, slots, width)
        self.start = nn.Parameter(F.normalize(torch.randn(heads, slots, width), dim=-1))
        self.sharp = nn.Parameter(torch.full((heads,), 8.0).log())
        self.outer = nn.Parameter(torch.zeros(heads))

    def init_state(self, batch: int) -> SlotState:
        """Zeros."""
        matrix, window = super().init_state(batch)
        sums = self.zeros(batch, self.heads, self.slots, matrix.shape[-1] + 1)
        return SlotState(matrix, torch.zeros_like(matrix), sums, self.zeros(batch), window)

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        """See `MatrixMemory`. In place of what the delta rule reads, `read` is beta [B, T, H, 1]."""
        q, k, v, window = self.projected(seen)
        return Token(q, k, v, read=self.step_size(seen.x)), None, window

    def run(
        self, token: Token, state: Any, reset: Tensor | None, lengths: Tensor | None, before: Before | None = None
    ) -> tuple[Tensor, ...]:
        parts: Any = (state.matrix, state.keys, state.sums)
        phase = state.phase.detach()
        token = token.each(lambda part: part.to(phase.dtype))
        rows, tokens = token.q.shape[:2]
        with full_precision(phase.device.type):
            if tokens == 1 and lengths is None:
                if reset is not None:
                    parts = tuple(torch.where(reset[..., None, None], 0.0, z) for z in parts)
                    phase = torch.where(reset[:, 0], 0.0, phase)
                phase = torch.where(phase.isfinite(), (phase + 1) % self.block, 0.0)
                cells = [z.flatten(0, 1) for z in parts]
                o, *cells = self._part(token.each(lambda part: part.transpose(1, 2).flatten(0, 1)), *cells)
                ended = (phase == 0).repeat_interleave(self.heads)[:, None, None]
                matrix, keys, sums = (z.unflatten(0, (rows, -1)) for z in self._ended(ended, *cells))
                return o.view(rows, 1, self.heads, -1), matrix, keys, sums, phase
            cut = plan(rows, tokens, self.block, phase, reset, lengths, phase.device)
            if isinstance(cut, Ragged) and not cut.active:
                return torch.zeros_like(token.v), *parts, phase
            o, *parts = self._walk(cut, token.each(cut.pack), parts)
            after = torch.full_like(phase, cut.end_phase) if isinstance(cut, Uniform) else cut.end_phase.to(phase)
            return cut.unpack(o), *parts, after

    def _walk(self, cut: Uniform | Ragged, packed: Token, parts: Any) -> tuple[Tensor, ...]:
        """Block by block: (outputs [blocks * H, N, D], then matrix, keys and sums of the rows after the call)."""
        cells = [pieces_of(cut, z).flatten(0, 1) for z in parts]
        sizes = [pieces * self.heads for pieces in cut.waves]
        outputs, ends, begin = [], [], 0
        for wave, size in enumerate(sizes):
            if len(cells[0]) > size:
                ends.append([z[size:] for z in cells])
                cells = [z[:size] for z in cells]
            here = slice(begin, begin + size)
            begin += size
            o, *cells = self._part(packed.each(lambda part: part[here]), *cells)  # noqa: B023
            outputs.append(o)
            going, full = (*sizes, 0)[wave + 1], cut.complete(wave)
            ended = torch.ones(size, dtype=torch.bool, device=o.device)
            ended[going:] = full if isinstance(full, bool) else full.repeat_interleave(self.heads)[going:]
            cells = list(self._ended(ended[:, None, None], *cells))
        ends.append(cells)
        pieces = [torch.cat(part).unflatten(0, (-1, self.heads)) for part in zip(*ends[::-1], strict=True)]
        return torch.cat(outputs), *(rows_of(cut, piece, z) for piece, z in zip(pieces, parts, strict=True))

    def _part(self, token: Token, matrix: Tensor, keys: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [n, C, ...] of one block: (o [n, C, D], matrix, keys, sums)."""
        q, k, v, _, size, _ = token
        assert size is not None
        copies = keys.shape[0] // self.heads
        slots = self.start.to(keys.dtype).repeat(copies, 1, 1) + keys
        sharp = self.sharp.to(keys.dtype).exp().repeat(copies)[:, None, None]
        asked, told = (torch.softmax(sharp * torch.bmm(x, slots.mT), -1) for x in (q, k))
        read = unit(told)
        sums = torch.baddbmm(sums, (size / self.reach * told).mT, F.pad(k, (0, 1), value=1.0))
        inner = Token(unit(asked), size * read, v, read=read)
        if q.shape[1] == 1:
            o, matrix = step(inner.each(lambda part: part[:, 0]), matrix)
            return o[:, None], matrix, keys, sums
        chunks = prepare(inner)
        written = chunks.written(matrix)
        return chunks.read(matrix, written), chunks.after(matrix, written), keys, sums

    def _ended(self, ended: Tensor, matrix: Tensor, keys: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same after the end of the block where `ended` [n, 1, 1]."""
        copies = keys.shape[0] // self.heads
        rho = torch.sigmoid(self.outer.to(keys.dtype)).repeat(copies)[:, None, None]
        slots = self.start.to(keys.dtype).repeat(copies, 1, 1) + keys
        total, weight = sums.split((keys.shape[-1], 1), -1)
        moved = keys + rho * (total - weight * slots) / (1.0 + weight)
        return matrix, torch.where(ended, moved, keys), torch.where(ended, 0.0, sums)
