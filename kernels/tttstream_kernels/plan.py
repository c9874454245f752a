"""How a call's ragged rows are cut into mini-batches: packed blocks of K slots, in waves that can run side by side.

A piece is what a row holds between two resets. It starts at a phase (how many tokens its first mini-batch already
holds) and fills blocks of K slots, the first and last of them perhaps in part. Wave n is the n-th block of every piece
that has one; pieces are sorted longest first, so the pieces of a wave are always a prefix. Blocks lie wave by wave:
148 tokens with many resets need a few more slots than tokens, not a padding of every piece to the longest.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tttstream_kernels.inner import with_one


@dataclass(frozen=True)
class Uniform:
    """All rows at one phase, no reset, no length: blocks are a plain reshaping of the padded tokens."""

    rows: int
    tokens: int
    mini_batch: int
    phase: int

    @property
    def waves(self) -> list[int]:
        """How many pieces each wave has."""
        return [self.rows] * -(-(self.phase + self.tokens) // self.mini_batch)

    @property
    def seeded(self) -> bool:
        """Whether a piece starts inside a mini-batch, with pending sums."""
        return self.phase > 0

    @property
    def end_phase(self) -> int:
        """Tokens in the unfinished mini-batch after the call."""
        return (self.phase + self.tokens) % self.mini_batch

    def complete(self, wave: int) -> bool | Tensor:
        """Whether the mini-batches of the pieces that end with this wave are complete."""
        return self.end_phase == 0

    def blocks(self, x: Tensor) -> Tensor:
        """[B, T, H, D] -> [waves, B, H, K, D], empty slots zero."""
        slots = len(self.waves) * self.mini_batch
        if slots != self.tokens:
            x = F.pad(x, (0, 0, 0, 0, self.phase, slots - self.phase - self.tokens))
        return x.unflatten(1, (-1, self.mini_batch)).permute(1, 0, 3, 2, 4)

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, H, D] -> [blocks * H, K, D], empty slots zero."""
        return self.blocks(x).flatten(0, 2)

    def pack_with_one(self, x: Tensor) -> Tensor:
        """[B, T, H, D] -> [blocks * H, K, D + 1], the last number of each token a one."""
        return with_one(self.blocks(x)).flatten(0, 2)

    def unpack(self, x: Tensor) -> Tensor:
        """[blocks * H, K, D] -> [B, T, H, D]."""
        return self._rows(x).flatten(1, 2)[:, self.phase : self.phase + self.tokens]

    def _rows(self, x: Tensor) -> Tensor:
        """[blocks * H, K, D] -> [B, waves, K, H, D], a view."""
        return x.unflatten(0, (len(self.waves), self.rows, -1)).permute(1, 0, 3, 2, 4)

    def addcmul(self, y: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        """y + scale * unpack(x): y [B, T, H, D], scale [H, D]. Where no slot is empty x need not be laid out again."""
        if self.phase or self.end_phase:
            return torch.addcmul(y, scale, self.unpack(x))
        return torch.addcmul(y.unflatten(1, (-1, self.mini_batch)), scale, self._rows(x)).flatten(1, 2)

    def masked(self, x: Tensor) -> Tensor:
        """[B, T, H, D] as it is: every token counts."""
        return x


@dataclass(frozen=True)
class Ragged:
    """Rows at different phases, with resets inside or with lengths.

    active: pieces of each wave. slots: [blocks, K] token (row * T + t) in each slot, -1 for none.
    places: [B, T] slot of each token, -1 beyond a row's length. row, fresh: [pieces] the row of a piece, whether it
    starts from the learned weights. full: each wave's answer to `complete`. last: [B] the piece that ends each row, -1
    for a row of length 0. end_phase: [B].
    """

    active: list[int]
    slots: Tensor
    places: Tensor
    row: Tensor
    fresh: Tensor
    full: list[bool | Tensor]
    last: Tensor
    end_phase: Tensor
    seeded: bool

    @property
    def waves(self) -> list[int]:
        """How many pieces each wave has."""
        return self.active

    def complete(self, wave: int) -> bool | Tensor:
        """Whether the mini-batches of the pieces that end with this wave are complete: one answer for all, or [pieces]
        (then with no meaning for those that go on)."""
        return self.full[wave]

    def blocks(self, x: Tensor) -> Tensor:
        """[B, T, H, D] -> [blocks, H, K, D], empty slots zero."""
        taken = x.flatten(0, 1)[self.slots.clamp(min=0)]
        return taken.where(self.slots[..., None, None] >= 0, 0.0).transpose(1, 2)

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, H, D] -> [blocks * H, K, D], empty slots zero."""
        return self.blocks(x).flatten(0, 1)

    def pack_with_one(self, x: Tensor) -> Tensor:
        """[B, T, H, D] -> [blocks * H, K, D + 1], the last number of each token a one."""
        return with_one(self.blocks(x)).flatten(0, 1)

    def unpack(self, x: Tensor) -> Tensor:
        """[blocks * H, K, D] -> [B, T, H, D], zero beyond a row's length."""
        x = x.unflatten(0, (len(self.slots), -1)).transpose(1, 2).flatten(0, 1)
        return self.masked(x[self.places.clamp(min=0)])

    def addcmul(self, y: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        """y + scale * unpack(x): y [B, T, H, D], scale [H, D]."""
        return torch.addcmul(y, scale, self.unpack(x))

    def masked(self, x: Tensor) -> Tensor:
        """[B, T, H, D], zero beyond a row's length."""
        return torch.where(self.places[..., None, None] >= 0, x, 0.0)


def plan(
    rows: int,
    tokens: int,
    mini_batch: int,
    phase: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
    device: torch.device,
) -> Uniform | Ragged:
    """Cut a call into pieces and blocks. phase [B] (None: all zero), reset [B, T], lengths [B]; read on the host."""
    if phase is None and reset is None and lengths is None:
        return Uniform(rows, tokens, mini_batch, 0)
    phases = np.zeros(rows, dtype=np.int64)
    if phase is not None:
        phases = phase.detach().nan_to_num(0, 0, 0).cpu().numpy().astype(np.int64)
    resets = None if reset is None else reset.detach().cpu().numpy()
    if lengths is None and (resets is None or not resets.any()) and (phases == phases[0]).all():
        return Uniform(rows, tokens, mini_batch, int(phases[0]))
    counts = np.full(rows, tokens) if lengths is None else lengths.detach().cpu().numpy().astype(np.int64)
    starts = np.zeros((rows, tokens), dtype=bool) if resets is None else resets.copy()
    fresh_start = starts[:, 0].copy()
    starts[:, 0] = True
    starts &= np.arange(tokens) < counts[:, None]
    return _ragged(tokens, mini_batch, phases, fresh_start, starts, counts, device)


def _ragged(
    tokens: int,
    mini_batch: int,
    phases: NDArray[np.int64],
    fresh_start: NDArray[np.bool_],
    starts: NDArray[np.bool_],
    counts: NDArray[np.int64],
    device: torch.device,
) -> Ragged:
    row: NDArray[np.int64]
    begin: NDArray[np.int64]
    row, begin = np.nonzero(starts)
    same_row = np.append(row[1:] == row[:-1], False) if len(row) else np.zeros(0, dtype=bool)
    end = np.where(same_row, np.append(begin[1:], 0), counts[row])
    fresh = (begin > 0) | fresh_start[row]
    first = np.where(fresh, 0, phases[row])
    blocks = -(-(first + end - begin) // mini_batch)
    order = np.argsort(-blocks, kind="stable")
    row, begin, end = row[order], begin[order], end[order]
    fresh, first, blocks = fresh[order], first[order], blocks[order]

    active = [int((blocks > wave).sum()) for wave in range(int(blocks.max(initial=0)))]
    piece = np.concatenate([np.arange(count) for count in active]) if active else np.zeros(0, dtype=np.int64)
    wave = np.repeat(np.arange(len(active)), active)
    offset = (wave * mini_batch - first[piece])[:, None] + np.arange(mini_batch)
    token = begin[piece][:, None] + offset
    filled = (offset >= 0) & (token < end[piece][:, None])
    slots = np.where(filled, row[piece][:, None] * tokens + token, -1)

    places = np.full(len(phases) * tokens, -1)
    places[slots[filled]] = np.flatnonzero(filled)
    last = np.full(len(phases), -1)
    ends_row = end == counts[row]
    last[row[ends_row]] = np.flatnonzero(ends_row)
    end_phase = phases.copy()
    end_phase[row[ends_row]] = (first + end - begin)[ends_row] % mini_batch

    def tensor(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    full = (first + end - begin) % mini_batch == 0
    complete: list[bool | Tensor] = []
    for pieces, going_on in pairwise([*active, 0]):
        ending = full[going_on:pieces]
        complete.append(True if ending.all() else False if not ending.any() else tensor(full[:pieces]))

    return Ragged(
        active=active,
        slots=tensor(slots),
        places=tensor(places.reshape(len(phases), tokens)),
        row=tensor(row),
        fresh=tensor(fresh),
        full=complete,
        last=tensor(last),
        end_phase=tensor(end_phase),
        seeded=bool((first > 0).any()),
    )
