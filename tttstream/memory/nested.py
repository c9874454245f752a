"""Nested learners: a delta rule that starts every block of tokens from weights that an outer rule learns.

Letters: B rows, H heads, D head width, N tokens of a block, n = blocks * H.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tttstream.errors import ConfigError
from tttstream.memory.matrix import Delta
from tttstream.memory.recurrence import Before, Chunks, Token, pieces_of, prepare, rows_of, step
from tttstream.state import State
from tttstream_kernels.plan import Ragged, Uniform, plan
from tttstream_kernels.precision import full_precision


class _Nested(NamedTuple):
    matrix: Tensor
    start: Tensor
    phase: Tensor
    window: Tensor


class NestedState(State, _Nested):
    """matrix [B, H, D, D]: the inner learner. start [B, H, D, D]: its value at the start of the block. phase [B]:
    tokens of the unfinished block. window: see `MatrixState`."""

    __slots__ = ()


class Nested(Delta):
    """Two nested learners. The inner one is a delta rule that learns from the N tokens of a block one by one, and
    begins every block at weights W. The outer one learns W: at the end of a block W = W + rho (S - W), where S is the
    state of the inner learner and rho in (0, 1) is a learned parameter of each head.

    The outer step is that of Reptile (Nichol et al., arXiv 1803.02999, algorithm 1; as an optimiser, Zhang et al.,
    arXiv 1907.08610). It is one answer to the last question of the TTT paper (arXiv 2407.04620, section 5): what if the
    inner model is a learner of sequences itself? W keeps the fraction rho of what a block adds.

    Args:
        dim, heads, conv: see `Additive`. reach: see `Delta`.
        block: N.
    """

    state_type = NestedState

    def __init__(self, dim: int, heads: int = 1, conv: int = 4, reach: float = 1.0, block: int = 32) -> None:
        super().__init__(dim, heads, conv, reach)
        if block < 1:
            raise ConfigError(f"Nested: a block has at least 1 token, got {block}")
        self.block = block
        self.outer = nn.Parameter(torch.zeros(heads))

    def init_state(self, batch: int) -> NestedState:
        """Zeros."""
        matrix, window = super().init_state(batch)
        return NestedState(matrix, torch.zeros_like(matrix), self.zeros(batch), window)

    def run(
        self, token: Token, state: Any, reset: Tensor | None, lengths: Tensor | None, before: Before | None = None
    ) -> tuple[Tensor, ...]:
        matrix, start, phase = state.matrix, state.start, state.phase.detach()
        token = token.each(lambda part: part.to(matrix.dtype))
        rows, tokens = token.q.shape[:2]
        rho = torch.sigmoid(self.outer.to(matrix.dtype))[:, None, None]
        with full_precision(matrix.device.type):
            if tokens == 1 and lengths is None and before is None:
                if reset is not None:
                    matrix, start = (torch.where(reset[..., None, None], 0.0, z) for z in (matrix, start))
                    phase = torch.where(reset[:, 0], 0.0, phase)
                o, matrix = step(token.each(lambda part: part[:, 0]), matrix)
                phase = torch.where(phase.isfinite(), (phase + 1) % self.block, 0.0)
                ends = (phase == 0)[:, None, None, None]
                start = torch.where(ends, torch.lerp(start, matrix, rho), start)
                return o[:, None], torch.where(ends, start, matrix), start, phase
            if before is not None:
                phase = before(*self._phases(phase, tokens, reset), phase[:, None, None, None]).flatten() % self.block
            cut = plan(rows, tokens, self.block, phase, reset, lengths, matrix.device)
            if isinstance(cut, Ragged) and not cut.active:
                return torch.zeros_like(token.v), matrix, start, phase
            chunks = prepare(token.each(cut.pack))
            rhos = rho.repeat(max(cut.waves), 1, 1)
            if before is not None:
                both = before(*_effect(cut, matrix, rhos, chunks), torch.cat([matrix, start], 2))
                matrix, start = both.chunk(2, 2)
            *found, matrix, start = _walk(cut, matrix, start, rhos, chunks)
            after = torch.full_like(phase, cut.end_phase) if isinstance(cut, Uniform) else cut.end_phase.to(phase)
            return cut.unpack(chunks.read(*found)), matrix, start, after

    def _phases(self, phase: Tensor, tokens: int, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """The effect of a call on the phases of its rows: p -> A p + B, both [B, 1, 1, 1]."""
        stays, since = torch.ones_like(phase), torch.full_like(phase, tokens)
        if reset is not None:
            places = torch.arange(tokens, device=phase.device)
            latest = torch.where(reset, places, -1).amax(1)
            stays, since = (latest < 0).to(phase), (tokens - latest.clamp(min=0)).to(phase)
        return stays[:, None, None, None], (since % self.block)[:, None, None, None]


def _effect(cut: Uniform | Ragged, matrix: Tensor, rho: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """The effect of a call on both learners, as `recurrence.effect`: on [S; W], [B, H, 2 D, D], which it maps linearly.

    The chunks are applied to the rows of the identity: [1 0 | 0] gives the upper half of [A | B], [0 1 | 0] the lower.
    """
    width = matrix.shape[2]
    unit = torch.eye(2 * width, 3 * width, dtype=matrix.dtype, device=matrix.device)
    upper, lower = (half.expand(*matrix.shape[:2], -1, -1) for half in unit.chunk(2))
    _, _, *ends = _walk(cut, upper, lower, rho, chunks.padded(2 * width))
    transition, rest = torch.cat(ends, 2).split((2 * width, width), -1)
    return transition, rest


def _walk(
    cut: Uniform | Ragged, matrix: Tensor, start: Tensor, rho: Tensor, chunks: Chunks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `recurrence.walk`, with the outer step wherever a block is complete. rho [pieces * H, 1, 1]."""
    heads = matrix.shape[1]
    inner, outer = (pieces_of(cut, z).flatten(0, 1) for z in (matrix, start))
    starts, writes, ends = [], [], []
    sizes = [pieces * heads for pieces in cut.waves]
    for wave, (size, chunk) in enumerate(zip(sizes, chunks.split(sizes), strict=True)):
        if len(inner) > size:
            ends.append((inner[size:], outer[size:]))
            inner, outer = inner[:size], outer[:size]
        starts.append(inner)
        writes.append(chunk.written(inner))
        inner = chunk.after(inner, writes[-1])
        learned = torch.lerp(outer, inner, rho[: len(outer)])
        going = (*sizes, 0)[wave + 1]
        full = cut.complete(wave)
        complete = torch.ones(len(inner), dtype=torch.bool, device=inner.device)
        complete[going:] = full if isinstance(full, bool) else full.repeat_interleave(heads)[going:]
        outer = torch.where(complete[:, None, None], learned, outer)
        inner = torch.where(complete[:, None, None], outer, inner)
    ends.append((inner, outer))
    pieces = [torch.cat(part).unflatten(0, (-1, heads)) for part in zip(*ends[::-1], strict=True)]
    last = rows_of(cut, pieces[0], matrix), rows_of(cut, pieces[1], start)
    return torch.cat(starts), torch.cat(writes), *last
