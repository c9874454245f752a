"""Codes of pictures and places of poses for demos/doom.py, and training on stored views."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from doom_walks import HEIGHT, STEP, WIDTH, Patrol, World
from numpy.typing import NDArray
from revisit import Network, build
from tile_walks import CODES
from torch import Tensor, nn
from tqdm import tqdm

SIDE = 8  # steps a side of the largest worlds
ROWS, LENGTH, RATE = 8, 512, 3e-4
ANEW, ANOTHER = 0.02, 0.2  # probabilities in a training step: a stream is reset; it enters another world


class Codes(NamedTuple):
    """mean [P] and basis [P, CODES] of pictures, scale [CODES]: of the components."""

    mean: Tensor
    basis: Tensor
    scale: Tensor

    @classmethod
    def of(cls, pictures: NDArray[np.uint8]) -> Codes:
        """Fitted to pictures [N, H, W, 3]."""
        torch.manual_seed(0)
        flat = torch.from_numpy(pictures).flatten(1).float() / 255
        mean = flat.mean(0)
        basis = torch.svd_lowrank(flat - mean, q=CODES + 16, niter=4)[2][:, :CODES]
        return cls(mean, basis, ((flat - mean) @ basis).std(0))

    def code(self, pictures: NDArray[np.uint8]) -> Tensor:
        """[..., H, W, 3] -> [..., CODES]."""
        return (torch.from_numpy(pictures).flatten(-3).float() / 255 - self.mean) @ self.basis / self.scale

    def picture(self, code: Tensor) -> NDArray[np.uint8]:
        """[CODES] -> [H, W, 3]."""
        flat = self.mean + self.basis @ (code * self.scale)
        return (flat.clamp(0, 1) * 255).byte().view(HEIGHT, WIDTH, 3).numpy()


def cells(poses: NDArray[np.float64], origin: NDArray[np.float64]) -> Tensor:
    """Places [..., 2] of poses [..., 3] in map units and degrees, as in the worlds of demos/revisit.py: each
    heading has a square of the plane of its own, SIDE steps a side. origin: x, y of the world's corner."""
    quarter = np.rint(poses[..., 2] / 90) % 4
    beside = SIDE * np.stack([quarter % 2, quarter // 2], -1)
    return torch.from_numpy(np.rint((poses[..., :2] - origin) / STEP + beside)).float()


class Album(NamedTuple):
    """A map in codes [N, 4, CODES]."""

    world: World
    codes: Tensor


class Walks:
    """Training patrols through parts of maps, one per row; each call continues them. Every world has its own signs of
    the components, so no two worlds share a code."""

    def __init__(self, albums: list[Album], seed: int) -> None:
        self.albums, self.rng, self.time = albums, np.random.default_rng(seed), 0
        self.rows: list[Any] = [None] * ROWS
        for row in range(ROWS):
            self.exchange(row)

    def exchange(self, row: int) -> None:
        """Replace the world of a row."""
        rng = self.rng
        album = self.albums[rng.integers(len(self.albums))]
        part = album.world.part(rng, int(rng.integers(SIDE // 2, SIDE + 1)))
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], CODES)).float()
        walk = Patrol(album.world, part, rng)
        self.rows[row] = album, part, walk, signs, np.full((len(part), 4), -1), next(walk)

    def walk(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(code, place, queried place, its code, age) [B, count, …]. The age is -1 for a view that was never seen.
        Half of the queries are about the next view, half about a view that was seen."""
        found = []
        for row in range(ROWS):
            album, part, walk, signs, last, at = self.rows[row]
            seen, asked, ages = [], [], []
            for t in range(self.time, self.time + count):
                last[at] = t
                seen.append(at)
                at = ask = next(walk)
                if self.rng.random() < 0.5:
                    known = np.argwhere(last >= 0)
                    ask = tuple(known[self.rng.integers(len(known))])
                ages.append(t + 1 - last[ask] if last[ask] >= 0 else -1)
                asked.append(ask)
            self.rows[row] = album, part, walk, signs, last, at
            both = []
            for views in (np.array(seen), np.array(asked)):
                waypoints, headings = part[views[:, 0]], views[:, 1]
                places = album.world.places[waypoints]
                poses = np.concatenate([places, 90.0 * headings[:, None]], 1)
                both += [album.codes[waypoints, headings] * signs, cells(poses, album.world.places[part].min(0))]
            found.append((both[0], both[1], both[3], both[2], torch.tensor(ages)))
        self.time += count
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def train(weights: Path, albums: list[Album], steps: int, file: Path, end: float) -> Network | None:
    """Train the network further from these weights, or from its checkpoint if there is one; None if the time is up."""
    torch.manual_seed(0)
    model = build("ttt_mlp_longer")
    model.load_state_dict(torch.load(weights))
    if not steps:
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))
    begun = 0
    if file.exists():
        kept = torch.load(file)
        model.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        begun = kept["step"]
    walks, rng, state = Walks(albums, begun), np.random.default_rng(1000 + begun), None
    for step in tqdm(range(begun, steps), "training", initial=begun, total=steps, disable=None):
        begins = (rng.random(ROWS) < ANEW) | (step == begun)
        for row in np.flatnonzero(begins | (rng.random(ROWS) < ANOTHER)):
            walks.exchange(int(row))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / 10) * (0.475 * (1 + math.cos(math.pi * step / steps)) + 0.05)
        what, where, ask, target, age = walks.walk(LENGTH)
        reset = torch.zeros(what.shape[:2], dtype=torch.bool)
        reset[:, 0] = torch.from_numpy(begins)
        answer, after = model(what, where, ask, state, reset)
        state = after.detach()
        loss = (answer[..., :CODES] - target).square().mean(-1)[age > 0].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        late = time.monotonic() > end
        if (step + 1) % 10 == 0 or step + 1 == steps or late:
            part = file.with_suffix(".part")
            numbers = {"network": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(numbers | {"step": step + 1}, part)
            part.replace(file)
        if late and step + 1 < steps:
            return None
    return model.eval()
