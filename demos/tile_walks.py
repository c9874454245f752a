"""Worlds of photograph tiles and walks in them, for demos/revisit.py and the demos beside it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.sources.photographs import HELD_OUT, NAMES, photograph

TILE, CODES = 16, 32  # pixels, components


def tiles() -> tuple[Tensor, Tensor, Tensor]:
    """Returns the codes [N, 32] of the tiles of the training photographs, those of the held-out ones, and the matrix
    [32, 768] that turns a code into pixels less their mean."""
    found: dict[bool, list[Tensor]] = {False: [], True: []}
    for name in NAMES:
        image = torch.from_numpy(np.ascontiguousarray(photograph(name))).permute(2, 0, 1).float()[None] / 255
        small = F.interpolate(image, scale_factor=0.5, mode="area")[0]
        cut = small.unfold(1, TILE, TILE // 2).unfold(2, TILE, TILE // 2).permute(1, 2, 0, 3, 4)
        found[name in HELD_OUT].append(cut.reshape(-1, 3 * TILE * TILE))
    train, held = torch.cat(found[False]), torch.cat(found[True])
    mean = train.mean(0)
    basis = torch.linalg.eigh((train - mean).mT @ (train - mean))[1].flip(1)[:, :CODES]
    scale = ((train - mean) @ basis).std(0)
    return (train - mean) @ basis / scale, (held - mean) @ basis / scale, scale[:, None] * basis.mT


class Walks:
    """Walks in worlds of tiles that continue from call to call, a row each.

    pool: codes [N, 32]. sides: of the worlds [B]. spans: steps for which a row stays in one half of its world, 0 for no
    halves. visited: the cells of the next views of the latest call [B, count].
    """

    def __init__(self, pool: Tensor, sides: list[int], seed: int, spans: list[int] | None = None) -> None:
        self.pool, self.sides, self.rng = pool, np.array(sides), np.random.default_rng(seed)
        self.spans = np.zeros(len(sides), int) if spans is None else np.array(spans)
        rows, cells = len(sides), max(sides) ** 2
        self.worlds = torch.zeros(rows, cells, CODES)
        self.last = np.full((rows, cells), -1)
        self.at = np.zeros((rows, 2), int)
        self.way = self.rng.integers(0, 4, rows)
        self.time, self.visited = 0, np.zeros((rows, 0), int)
        for row in range(rows):
            self.exchange(row)

    def exchange(self, row: int, side: int | None = None) -> None:
        """Give a row a new world. side: by default the same as before."""
        if side is not None:
            self.sides[row] = side
        cells = self.worlds.shape[1]
        self.worlds[row] = self.pool[torch.from_numpy(self.rng.integers(0, len(self.pool), cells))]
        self.last[row] = -1
        self.at[row] = self.rng.integers(0, self.sides[row], 2)

    def walk(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Walk so many steps. Returns, each [B, count, …]: the codes of the views, their places in cells, the next
        places, the codes of the next views, and the number of steps since the next place was last seen (-1: never)."""
        moves, rows = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]), np.arange(len(self.sides))
        path, age = np.zeros((len(rows), count + 1, 2), int), np.zeros((len(rows), count + 1), int)
        for t in range(count + 1):
            cell = self.at[:, 0] * self.sides + self.at[:, 1]
            path[:, t] = self.at
            age[:, t] = np.where(self.last[rows, cell] < 0, -1, self.time + t - self.last[rows, cell])
            self.last[rows, cell] = self.time + t
            if t == count:
                break  # the last view is the first of the next call
            turn = self.rng.random(len(rows)) < 0.3
            self.way = np.where(turn, self.rng.integers(0, 4, len(rows)), self.way)
            self.at = (self.at + moves[self.way]) % self.sides[:, None]
            half = self.sides // 2
            there = (self.time + t) // np.maximum(self.spans, 1) % 2 * half
            inside = there + self.at[:, 1] % np.maximum(half, 1)
            self.at[:, 1] = np.where(self.spans > 0, inside, self.at[:, 1])
        self.time += count
        self.visited = path[:, 1:, 0] * self.sides[:, None] + path[:, 1:, 1]
        cells = torch.from_numpy(path[..., 0] * self.sides[:, None] + path[..., 1])
        codes = self.worlds.gather(1, cells[..., None].expand(-1, -1, CODES))
        places = torch.from_numpy(path).float()
        return codes[:, :-1], places[:, :-1], places[:, 1:], codes[:, 1:], torch.from_numpy(age[:, 1:])
