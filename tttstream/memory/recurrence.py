"""Linear recurrences of a matrix state, token by token and in chunks: what the delta kinds, SSD and RWKV-7 share.

Letters: B rows, T tokens, H heads, Dk width of keys, Dv width of values, C tokens of a chunk, n = chunks * H.

For row vectors k, v, c, a and a decay w in (0, 1] (a number a head, or one a key channel), one token does

    S' = diag(w) S                    decay
    S  = S' - a^T (c S') + k^T v      what is read at c is removed at a; v is added at k
    o  = q S                          read

A chunk does the same for C tokens at once, exactly. With G_i the sum of log w up to token i, u_i = c_i S'_i and
M^xy_ij = sum_d x_id y_jd exp(G_id - G_jd), the removed values solve a triangular system, (I + M^ca) U =
(c exp G) S_0 + M^ck V with M below the diagonal (the WY or UT transform; Yang et al., arXiv 2406.06484, equations 8 to
11, with decay arXiv 2412.06464, section 3.3). U is affine in S_0, so a chunk is S_C = A S_0 + B: the loop over chunks
is one product each, and everything else is computed for all chunks side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.plan import Ragged, Uniform, plan
from tttstream_kernels.precision import cast, full_precision

CHUNK = 32  # tokens of a chunk on one CPU core, the fastest of 16, 32 and 64 at head widths of 32 to 64
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
) -> tuple[Tensor, Tensor]:
    """Outputs o [B, T, H, Dv] (zero beyond a row's length) and the state [B, H, Dk, Dv] after the call.

    state: [B, H, Dk, Dv], whose type everything is computed in. reset [B, T], lengths [B]: see `Memory`. before: gives
    the state that the call begins with, for tokens that follow those of other ranks; without lengths.
    """
    token = token.each(lambda part: cast(state.dtype, part)[0])
    rows, tokens = token.q.shape[:2]
    with full_precision(state.device.type):
        if tokens == 1 and lengths is None and before is None:
            if reset is not None:
                state = torch.where(reset[..., None, None], 0.0, state)
            o, state = step(token.each(lambda part: part[:, 0]), state)
            return o[:, None], state
        wide = token.decay is not None and token.decay.shape[-1] > 1
        size = min(tokens, CHANNEL_CHUNK if wide else CHUNK)
        cut = plan(rows, tokens, size, None, reset, lengths, state.device)
        if isinstance(cut, Ragged) and not cut.active:
            return torch.zeros_like(token.v), state
        chunks = prepare(token.each(cut.pack))
        if before is not None:
            state = before(*effect(cut, state, chunks.transition, chunks.addition), state)
        starts, state = walk(cut, state, chunks.transition, chunks.addition)
        return cut.unpack(chunks.read(starts)), state


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
    """Chunks side by side, as far as they do not depend on the state before them: o = own + reads S_0 [n, C, Dv], and
    S_C = transition S_0 + addition [n, Dk, Dv]. transition [n, Dk, Dk], or [n, 1 or Dk, 1] for a factor a channel;
    None for 1."""

    own: Tensor
    reads: Tensor
    transition: Tensor | None
    addition: Tensor

    def read(self, starts: Tensor) -> Tensor:
        """o [n, C, Dv] for the states [n, Dk, Dv] that the chunks start from."""
        return torch.baddbmm(self.own, self.reads, starts)


def prepare(packed: Token) -> Chunks:
    """The chunks of tokens [n, C, ...]."""
    q, k, v, log, read, erase = packed
    decays = Decays(log)
    reads, inside = decays.since(q), decays.products(q, k, 0)
    if read is None:
        return Chunks(inside @ v, reads, decays.whole(), decays.until(k).mT @ v)

    same = erase is None
    away = k if erase is None else erase
    system = decays.products(read, away, 1)
    known = v if same else -(decays.products(read, k, 1) @ v)
    solved = torch.linalg.solve_triangular(
        system, torch.cat([decays.since(read), known], -1), upper=False, unitriangular=True
    )
    onto, written = solved.split((k.shape[-1], v.shape[-1]), -1)  # written at `away`: written - onto @ S_0

    leaving = decays.until(away).mT
    whole = decays.whole()
    kept = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) * (1.0 if whole is None else whole)
    addition = leaving @ written
    if same:
        o, outside = inside @ written, inside
    else:
        outside = decays.products(q, away, 0)
        o = torch.baddbmm(inside @ v, outside, written)
        addition = torch.baddbmm(addition, decays.until(k).mT, v)
    return Chunks(o, reads - outside @ onto, kept - leaving @ onto, addition)


def walk(cut: Uniform | Ragged, state: Tensor, transition: Tensor | None, addition: Tensor) -> tuple[Tensor, Tensor]:
    """From chunk to chunk, S <- transition S + addition; see `Chunks`. state [B, H, Dk, Dv].

    Returns what every chunk starts from, [n, Dk, Dv], and the state of the rows after the call.
    """
    heads = state.shape[1]
    current = pieces_of(cut, state).flatten(0, 1)
    starts, ends = [], []
    for move, more in zip(*moves(cut, heads, transition, addition), strict=True):
        if len(current) > len(more):
            ends.append(current[len(more) :])
            current = current[: len(more)]
        starts.append(current)
        current = moved(current, move, more)
    ends.append(current)
    whole = starts[0] if len(starts) == 1 else torch.cat(starts)
    return whole, rows_of(cut, torch.cat(ends[::-1]).unflatten(0, (-1, heads)), state)


def effect(cut: Uniform | Ragged, state: Tensor, transition: Tensor | None, addition: Tensor) -> tuple[Tensor, Tensor]:
    """The effect of a call on the states of its rows: S -> A S + B for any S, with A [B, H, Dk, Dk], or [B, H, Dk, 1]
    for a factor a channel, and B [B, H, Dk, Dv].

    state: [B, H, Dk, Dv], for its sizes. transition, addition: of the chunks, see `Chunks`; they turn [1 | 0] into
    [A | B].
    """
    keys = state.shape[2]
    full = transition is not None and transition.shape[-1] > 1
    unit = torch.eye(keys, dtype=state.dtype, device=state.device) if full else state.new_ones(keys, 1)
    start = torch.cat([unit.expand(*state.shape[:2], -1, -1), torch.zeros_like(state)], -1)
    _, end = walk(cut, start, transition, torch.nn.functional.pad(addition, (unit.shape[1], 0)))
    whole, rest = end.split((unit.shape[1], state.shape[-1]), -1)
    return whole, rest


def moves(
    cut: Uniform | Ragged, heads: int, transition: Tensor | None, addition: Tensor
) -> tuple[Sequence[Tensor | None], Sequence[Tensor]]:
    """Transitions and additions of each wave."""
    sizes = [pieces * heads for pieces in cut.waves]
    return [None] * len(sizes) if transition is None else transition.split(sizes), addition.split(sizes)


def moved(state: Tensor, transition: Tensor | None, addition: Tensor) -> Tensor:
    """transition S + addition."""
    if transition is None:
        return state + addition
    if transition.shape[-1] > 1:
        return torch.baddbmm(addition, transition, state)
    return torch.addcmul(addition, transition, state)


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
