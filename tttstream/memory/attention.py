"""Softmax attention as a memory: a key-value cache that grows, and one that slides and stays the same size.

Letters: B rows, T tokens of this call, C tokens in the cache, H heads, D head width, W window.

The cache is aligned to the right (its newest token stands last) and says slot by slot whether it holds a token, so
that rows of different ages stand side by side, zeros are a fresh cache, and no counter runs over. A token sees the
tokens of its own piece (since the last reset) up to itself. Positions are rotary (Su et al., arXiv 2104.09864): only
differences count. A token with a NaN or an infinity has a NaN as its output and is remembered as a token of zeros.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.memory.base import Memory
from tttstream.state import State

QUERY_BLOCK = 512  # queries per mask of the growing cache, which bounds the mask to QUERY_BLOCK x (C + T)


class _Cache(NamedTuple):
    keys: Tensor
    values: Tensor
    valid: Tensor


class WindowState(State, _Cache):
    """keys [B, W-1, H, D] before rotation, values [B, W-1, H, D], valid [B, W-1]: 1 where a slot holds a token."""

    __slots__ = ()


class CacheState(State, _Cache):
    """keys [B, C, H, D] after rotation, values [B, C, H, D], valid [B, C]: 1 where a slot holds a token.

    C is the age of the oldest row. Taking rows, or choosing between two states, keeps that so.
    """

    __slots__ = ()

    def widen(self, slots: int) -> CacheState:
        """The same cache with empty slots added in front, `slots` in all."""
        missing = slots - self.valid.shape[1]
        return self.map(lambda leaf: F.pad(leaf, (0, 0) * (leaf.dim() - 2) + (missing, 0)))

    def shrink(self) -> CacheState:
        """The same cache without the slots in front that no row uses."""
        used = int(_count(self.valid).max()) if self.rows else 0
        return self.map(lambda leaf: leaf[:, leaf.shape[1] - used :])

    def __getitem__(self, rows: Any) -> Any:
        return super().__getitem__(rows).shrink()

    def where(self, mask: Tensor, other: CacheState) -> CacheState:
        """As for every state; the two may differ in C."""
        slots = max(self.valid.shape[1], other.valid.shape[1])
        return super(CacheState, self.widen(slots)).where(mask, other.widen(slots)).shrink()


def _count(valid: Tensor) -> Tensor:
    return (valid > 0).sum(1)


def rotate(x: Tensor, position: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions: x [B, T, H, D], position [B, T] or [T] (whole numbers); the halves of D are the pairs.

    The angles are taken in float64 (where the device has it), so that far positions stay exact, and the rotation in
    float32 or better; the result has the type of x.
    """
    half = x.shape[-1] // 2
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    rates = base ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angle = (position.to(wide)[..., None] * rates)[..., None, :]
    work = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(work), angle.sin().to(work)
    left, right = x.to(work).chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1).to(x.dtype)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """q [B, T, H, D], k, v [B, S, H, D], visible [B, T, S] (None: causal) -> [B, T, H, D] in q's type."""
    q, k, v = (z.to(q.dtype).transpose(1, 2) for z in (q, k, v))
    mask = None if visible is None else visible[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


class _Attention(Memory):
    """Shared by both attentions: projections, the mask, and the part of the cache that is kept."""

    state_type: type[WindowState] | type[CacheState]

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__()
        if dim < 1 or heads < 1 or dim % (2 * heads):
            raise ConfigError(f"expected dim to be a multiple of twice the heads, got {dim = } and {heads = }")
        self.dim, self.heads = dim, heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    @property
    def views(self) -> nn.Linear | None:
        return self.qkv

    def _empty(self, batch: int, slots: int) -> Any:
        """A cache of `slots` empty slots."""
        shape = (batch, slots, self.heads, self.dim // self.heads)
        return self.state_type(self.zeros(*shape), self.zeros(*shape), self.zeros(batch, slots))

    def forward(
        self, x: Tensor, state: Any = None, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """x [B, T, dim] -> y [B, T, dim] and the state after it; see `Memory`."""
        state = self.check(x, state, reset, lengths)
        rows, tokens, _ = x.shape
        finite = x.isfinite().all(-1)
        counted = torch.ones_like(finite)
        if lengths is not None:
            counted = torch.arange(tokens, device=x.device) < lengths[:, None]
        cuts = torch.zeros_like(finite) if reset is None else reset & counted
        piece = cuts.cumsum(1)

        projected = self.qkv(torch.where((finite & counted)[..., None], x, 0))
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = self._place(q, k, state, cuts, piece)
        keys = torch.cat([state.keys.nan_to_num(0, 0, 0), k.to(state.keys.dtype)], 1)
        values = torch.cat([state.values.nan_to_num(0, 0, 0), v.to(state.values.dtype)], 1)
        owner = torch.cat([torch.where(state.valid > 0, 0, -1), torch.where(counted, piece, -1)], 1)

        uncut = reset is None and lengths is None
        seen = self._attend(q, keys, values, piece, owner, causal=uncut and state.valid.shape[1] == 0)
        y = self.out(seen.flatten(2).to(projected.dtype))
        y = torch.where(counted[..., None], torch.where(finite[..., None], y, torch.nan), 0)

        kept = owner == piece[:, -1:]
        slots = self._slots(kept, uncut)
        end = owner.shape[1] - tokens + counted.sum(1)
        index = end[:, None] - slots + torch.arange(slots, device=x.device)
        row = torch.arange(rows, device=x.device)[:, None]

        def newest(z: Tensor) -> Tensor:
            return z[:, z.shape[1] - slots :] if lengths is None else z[row, index.clamp(min=0)]

        kept = newest(kept) & (index >= 0)
        keys, values = (torch.where(kept[..., None, None], newest(z), 0) for z in (keys, values))
        return y, self.state_type(keys, values, kept.to(keys.dtype))

    def _place(self, q: Tensor, k: Tensor, state: Any, cuts: Tensor, piece: Tensor) -> tuple[Tensor, Tensor]:
        """Give new queries and keys [B, T, H, D] a position before they enter the cache (here: none)."""
        return q, k

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, piece: Tensor, owner: Tensor, causal: bool) -> Tensor:
        """q [B, T, H, D] over keys, values [B, C+T, H, D] -> [B, T, H, D].

        piece [B, T] and owner [B, C+T] (-1: empty): a query sees the earlier slots of its own piece. causal: all
        earlier slots are of its piece.
        """
        raise NotImplementedError

    def _slots(self, kept: Tensor, uncut: bool) -> int:
        """The number of slots of the next cache. kept [B, C+T]; uncut: without resets and lengths."""
        raise NotImplementedError


class Window(_Attention):
    """Attention over the last `window` tokens, itself included: constant memory, and work linear in T.

    Keys are kept without a position and get one relative to the window whenever they are used, so a stream may continue
    for ever. Queries run in blocks of W against the 2W - 1 keys before and beside them.
    """

    state_type = WindowState

    def __init__(self, dim: int, heads: int = 1, window: int = 128) -> None:
        super().__init__(dim, heads)
        if window < 2:
            raise ConfigError(f"expected a window of at least 2 tokens, got {window}")
        self.window = window

    def init_state(self, batch: int) -> WindowState:
        """An empty window."""
        return self._empty(batch, self.window - 1)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, piece: Tensor, owner: Tensor, causal: bool) -> Tensor:
        rows, tokens = piece.shape
        past = self.window - 1
        block = min(tokens, self.window)
        blocks = -(-tokens // block)
        padding = blocks * block - tokens
        position = torch.arange(past + tokens, device=q.device)
        q, keys = rotate(q, position[past:]), rotate(keys, position)
        q, keys, values = (F.pad(z, (0, 0, 0, 0, 0, padding)) for z in (q, keys, values))
        piece, owner = F.pad(piece, (0, padding)), F.pad(owner, (0, padding), value=-1)

        def windows(z: Tensor) -> Tensor:
            """[B, past + blocks * block, ...] -> [B * blocks, past + block, ...], overlapping."""
            return z.unfold(1, past + block, block).movedim(-1, 2).flatten(0, 1)

        ahead = position[: past + block] - position[:block, None]
        near = (ahead >= 0) & (ahead <= past)
        visible = near & (piece.reshape(-1, block, 1) == windows(owner)[:, None]) | (ahead == past)
        out = _softmax_attention(q.reshape(-1, block, *q.shape[2:]), windows(keys), windows(values), visible)
        return out.reshape(rows, -1, *q.shape[2:])[:, :tokens]

    def _slots(self, kept: Tensor, uncut: bool) -> int:
        return self.window - 1


class Attention(_Attention):
    """Attention over all tokens since the last reset: the Transformer's layer, whose cache grows with the stream.

    Keys are stored after rotation by their row's age, so that a step only reads the cache. With resets or lengths a
    call reads the age of the oldest row from the device, which is the size of the next cache.
    """

    state_type = CacheState
    bounded = False

    def init_state(self, batch: int) -> CacheState:
        """An empty cache, C = 0."""
        return self._empty(batch, 0)

    def _place(self, q: Tensor, k: Tensor, state: Any, cuts: Tensor, piece: Tensor) -> tuple[Tensor, Tensor]:
        token = torch.arange(cuts.shape[1], device=cuts.device)
        start = torch.where(cuts, token, 0).cummax(1).values
        age = token - start + torch.where(piece == 0, _count(state.valid)[:, None], 0)
        return rotate(q, age), rotate(k.to(state.keys.dtype), age)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, piece: Tensor, owner: Tensor, causal: bool) -> Tensor:
        if causal:
            return _softmax_attention(q, keys, values, None)
        cached = owner.shape[1] - piece.shape[1]
        slot = torch.arange(owner.shape[1], device=q.device)
        out = []
        for start in range(0, piece.shape[1], QUERY_BLOCK):
            queries = slice(start, start + QUERY_BLOCK)
            place = slot[cached:][queries, None]
            end = cached + start + place.shape[0]
            before = slot[:end] <= place
            visible = before & (piece[:, queries, None] == owner[:, None, :end]) | (slot[:end] == place)
            out.append(_softmax_attention(q[:, queries], keys[:, :end], values[:, :end], visible))
        return torch.cat(out, 1)

    def _slots(self, kept: Tensor, uncut: bool) -> int:
        return kept.shape[1] if uncut else int(kept.sum(1).max())
