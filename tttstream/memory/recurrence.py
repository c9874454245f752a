"""Linear recurrences of a matrix state, token by token and in chunks: what the delta kinds, SSD and RWKV-7 share.

Letters: B rows, T tokens, H heads, Dk width of keys, Dv width of values, C tokens of a chunk, n = chunks * H.

For row vectors k, v, c, a and a decay w in (0, 1] (a number a head, or one a key channel), one token does

    S' = diag(w) S                    decay
    S  = S' - a^T (c S') + k^T v      what is read at c is removed at a; v is added at k
    o  = q S                          read

A chunk does the same for C tokens at once, exactly. With G_i the sum of log w up to token i, u_i = c_i S'_i and
M^xy_ij = sum_d x_id y_jd exp(G_id - G_jd), the removed values solve a triangular system, (I + M^ca) U =
(c exp G) S_0 + M^ck V with M below the diagonal (the WY or UT transform; Yang et al., arXiv 2406.06484, equations 8 to
11, with decay arXiv 2412.06464, section 3.3). The loop over chunks is three products with S_0 and U; everything that
does not depend on S_0, the inverse of the triangle too, is computed for all chunks side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tttstream_kernels.plan import Ragged, Uniform, plan
from tttstream_kernels.precision import cast, full_precision

CHUNK = 32  # tokens of a chunk on one CPU core, the fastest of 16, 32 and 64 at head widths of 32 to 64
ASKED_CHUNK = 16  # with queries: as fast as 32, and twice as fast where episodes last 8 tokens
CHANNEL_CHUNK = 16  # of a decay a channel, whose products are taken apart into factors up to exp(8 * LEAST)
LEAST = -5.0  # the smallest logarithm of a decay a channel, so that no factor leaves the range of float32


class Token(NamedTuple):
    """The update of the state by the tokens of a call. q, k: [B, T, H, Dk]. v: [B, T, H, Dv]. decay: log w, [B, T, H,
    1], or [B, T, H, Dk] of at least LEAST; None for no decay. read, erase: c and a, [B, T, H, Dk]. No `read`: nothing
    is removed. A `read` without `erase`: a is k, which is the delta rule (k = beta * c) and takes half of the products.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None = None
    read: Tensor | None = None
    erase: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Token:
        """The same with `function` applied to every tensor."""
        return Token(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]


Before = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(A, B, S) -> the state before a call whose tokens follow those of other ranks. A, B: the effect of the call, see
`effect`. S: the state that the call is given."""


def recurrence(
    token: Token,
    state: Tensor,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    before: Before | None = None,
    lift: Callable[[Token], Token] | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs o [B, T, H, Dv] (zero beyond a row's length) and the state [B, H, Dk, Dv] after the call.

    state: [B, H, Dk, Dv], whose type everything is computed in. reset [B, T], lengths [B]: see `Memory`. before: gives
    the state that the call begins with, for tokens that follow those of other ranks; without lengths. lift: makes
    keys and queries of width Dk from narrower ones, for tokens [n, C, ...] in chunks.
    """
    token = token.each(lambda part: cast(state.dtype, part)[0])
    rows, tokens = token.q.shape[:2]
    with full_precision(state.device.type):
        if tokens == 1 and lengths is None and before is None:
            if reset is not None:
                state = torch.where(reset[..., None, None], 0.0, state)
            now = token.each(lambda part: part[:, 0])
            if lift is not None:
                lifted = lift(now.each(lambda part: part.flatten(0, 1)[:, None]))
                now = lifted.each(lambda part: part[:, 0].unflatten(0, (rows, -1)))
            o, state = step(now, state)
            return o[:, None], state
        wide = token.decay is not None and token.decay.shape[-1] > 1
        size = min(tokens, CHANNEL_CHUNK if wide else CHUNK)
        cut = plan(rows, tokens, size, None, reset, lengths, state.device)
        if isinstance(cut, Ragged) and not cut.active:
            return torch.zeros_like(token.v), state
        packed = token.each(cut.pack)
        chunks = prepare(packed if lift is None else lift(packed))
        if before is not None:
            state = before(*effect(cut, state, chunks), state)
        *found, state = walk(cut, state, chunks)
        return cut.unpack(chunks.read(*found)), state


def answers(asked: Tensor, token: Token, state: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Read a matrix memory with K queries before each token, then learn the token.

    Returns q S [B, T, H, K, Dv] for all queries q, where S is the state before the token, and the state after the last
    token.

    asked: the queries [B, T, H, K, Dk]. token: without a decay; its q is not used. state, reset: see `recurrence`.
    """
    token = token.each(lambda part: cast(state.dtype, part)[0])
    asked = cast(state.dtype, asked)[0]
    rows, tokens, _, queries, _ = asked.shape
    with full_precision(state.device.type):
        if tokens == 1:
            if reset is not None:
                state = torch.where(reset[..., None, None], 0.0, state)
            return (asked[:, 0] @ state)[:, None], step(token.each(lambda part: part[:, 0]), state)[1]
        cut = plan(rows, tokens, min(tokens, ASKED_CHUNK), None, reset, None, state.device)
        chunks = prepare(token.each(cut.pack))
        starts, written, state = walk(cut, state, chunks)
        packed = cut.pack(asked.flatten(3)).unflatten(2, (queries, -1)).transpose(1, 2)  # [n, K, C, Dk]
        earlier = (packed @ chunks.away[:, None]).tril(-1)
        found = earlier @ written[:, None] + packed @ starts[:, None]
        return cut.unpack(found.transpose(1, 2).flatten(2)).unflatten(3, (queries, -1)), state


def step(token: Token, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row: tokens [B, H, Dk] and [B, H, Dv], state [B, H, Dk, Dv] -> (o [B, H, Dv], the next state)."""
    q, k, v, decay, read, erase = token
    if decay is not None:
        state = state * decay.exp()[..., None]
    if read is not None:
        removed = (read[..., None, :] @ state)[..., 0, :]
        if erase is None:
            v = v - removed
        else:
            state = state - erase[..., None] * removed[..., None, :]
    state = torch.addcmul(state, k[..., None], v[..., None, :])
    return (q[..., None, :] @ state)[..., 0, :], state


class Decays:
    """Products of decays inside chunks. log [n, C, 1 or Dk], None for no decay."""

    def __init__(self, log: Tensor | None) -> None:
        self.wide = log is not None and log.shape[-1] > 1
        self.sums = None if log is None else log.cumsum(1)
        self.pairs: Tensor | None = None
        if self.sums is not None and not self.wide:
            apart = self.sums - self.sums.mT
            later = torch.ones(apart.shape[1:], dtype=torch.bool, device=apart.device).triu(1)
            self.pairs = apart.masked_fill(later, -torch.inf).exp()
        elif self.sums is not None:
            shifted = self.sums - self.sums[:, self.sums.shape[1] // 2, None]
            self.up, self.down = shifted.exp(), shifted.neg().exp()

    def since(self, x: Tensor) -> Tensor:
        """x [n, C, Dk] with what has decayed since the chunk began."""
        return x if self.sums is None else x * self.sums.exp()

    def until(self, x: Tensor) -> Tensor:
        """x [n, C, Dk] with what will have decayed when the chunk ends."""
        return x if self.sums is None else x * (self.sums[:, -1:] - self.sums).exp()

    def whole(self) -> Tensor | None:
        """The decay of the state over a chunk, [n, 1 or Dk, 1]."""
        return None if self.sums is None else self.sums[:, -1, :, None].exp()

    def products(self, x: Tensor, y: Tensor, below: int) -> Tensor:
        """M^xy [n, C, C]: zero above the diagonal, for below=1 on it too."""
        if self.wide:
            return ((x * self.up) @ (y * self.down).mT).tril(-below)
        raw = x @ y.mT
        return (raw if self.pairs is None else raw * self.pairs).tril(-below)


class Chunks(NamedTuple):
    """Chunks side by side, as far as they do not depend on the state S_0 before them [n, Dk, Dv].

    What a chunk writes at its tokens is U = solve (known - onto S_0) [n, C, Dv], v where nothing is removed. Then
    o = own + reads S_0 + inside U and S_C = kept S_0 + away U + more. solve, inside: [n, C, C]. reads, onto:
    [n, C, Dk]. away: [n, Dk, C]. kept: [n, 1 or Dk, 1], None for 1. own, more: of values that are added beside U, or
    None.
    """

    reads: Tensor
    inside: Tensor
    known: Tensor
    onto: Tensor | None
    solve: Tensor | None
    away: Tensor
    kept: Tensor | None
    own: Tensor | None = None
    more: Tensor | None = None

    def split(self, sizes: list[int]) -> list[Chunks]:
        """The chunks of each wave."""
        parts = ([None] * len(sizes) if part is None else part.split(sizes) for part in self)
        return [Chunks(*wave) for wave in zip(*parts, strict=True)]

    def padded(self, columns: int) -> Chunks:
        """The chunks of states with further columns on the left, to which nothing is added."""
        known, more = (None if z is None else pad(z, (columns, 0)) for z in (self.known, self.more))
        assert known is not None
        return self._replace(known=known, more=more)

    def written(self, state: Tensor) -> Tensor:
        """U [n, C, Dv] for states [n, Dk, Dv]."""
        if self.onto is None:
            return self.known
        assert self.solve is not None
        return self.solve @ torch.baddbmm(self.known, self.onto, state, alpha=-1)

    def after(self, state: Tensor, written: Tensor) -> Tensor:
        """The states after the chunks."""
        kept = state if self.kept is None else self.kept * state
        return torch.baddbmm(kept if self.more is None else kept + self.more, self.away, written)

    def read(self, starts: Tensor, written: Tensor) -> Tensor:
        """o [n, C, Dv] for the states [n, Dk, Dv] that the chunks start from and what they write."""
        o = self.inside @ written
        return torch.baddbmm(o if self.own is None else o + self.own, self.reads, starts)


def prepare(packed: Token) -> Chunks:
    """The chunks of tokens [n, C, ...]."""
    q, k, v, log, read, erase = packed
    decays = Decays(log)
    reads, kept = decays.since(q), decays.whole()
    if read is None:
        return Chunks(reads, decays.products(q, k, 0), v, None, None, decays.until(k).mT, kept)
    away = k if erase is None else erase
    unit = torch.eye(k.shape[1], dtype=k.dtype, device=k.device)
    solve = torch.linalg.solve_triangular(
        decays.products(read, away, 1), unit.expand(len(k), -1, -1), upper=False, unitriangular=True
    )
    chunks = Chunks(reads, decays.products(q, away, 0), v, decays.since(read), solve, decays.until(away).mT, kept)
    if erase is None:
        return chunks
    return chunks._replace(
        known=-(decays.products(read, k, 1) @ v), own=decays.products(q, k, 0) @ v, more=decays.until(k).mT @ v
    )


def walk(cut: Uniform | Ragged, state: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor, Tensor]:
    """Chunk after chunk. state: [B, H, Dk, Dv].

    Returns what every chunk starts from [n, Dk, Dv], what it writes [n, C, Dv], and the state of the rows after it.
    """
    heads = state.shape[1]
    current = pieces_of(cut, state).flatten(0, 1)
    starts, writes, ends = [], [], []
    for wave in chunks.split([pieces * heads for pieces in cut.waves]):
        if len(current) > len(wave.known):
            ends.append(current[len(wave.known) :])
            current = current[: len(wave.known)]
        starts.append(current)
        writes.append(wave.written(current))
        current = wave.after(current, writes[-1])
    ends.append(current)
    last = rows_of(cut, torch.cat(ends[::-1]).unflatten(0, (-1, heads)), state)
    return torch.cat(starts), torch.cat(writes), last


def effect(cut: Uniform | Ragged, state: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """The effect of a call on the states of its rows: S -> A S + B for any S, with A [B, H, Dk, Dk], or [B, H, Dk, 1]
    for a factor a channel, and B [B, H, Dk, Dv].

    state: [B, H, Dk, Dv], for its sizes. The chunks turn [1 | 0] into [A | B].
    """
    keys = state.shape[2]
    full = chunks.onto is not None
    unit = torch.eye(keys, dtype=state.dtype, device=state.device) if full else state.new_ones(keys, 1)
    start = torch.cat([unit.expand(*state.shape[:2], -1, -1), torch.zeros_like(state)], -1)
    _, _, end = walk(cut, start, chunks.padded(unit.shape[1]))
    whole, rest = end.split((unit.shape[1], state.shape[-1]), -1)
    return whole, rest


def pieces_of(cut: Uniform | Ragged, state: Tensor) -> Tensor:
    """The state with which each piece between two resets starts [pieces, ...], for the state of the rows [B, ...]."""
    if not isinstance(cut, Ragged):
        return state
    return torch.where(cut.fresh.view(-1, *[1] * (state.dim() - 1)), 0.0, state[cut.row])


def rows_of(cut: Uniform | Ragged, pieces: Tensor, state: Tensor) -> Tensor:
    """The state of the rows after a call [B, ...], for what the pieces end with; state: before the call."""
    if not isinstance(cut, Ragged):
        return pieces
    some = (cut.last >= 0).view(-1, *[1] * (state.dim() - 1))
    return torch.where(some, pieces[cut.last.clamp(min=0)], state)
