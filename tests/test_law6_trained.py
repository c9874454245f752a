"""Law 6 for a trained network: how the shipped map recalls its 64th world beside its first ones and a fresh memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tttstream import models
from tttstream.models.map import MapModel
from tttstream.models.map.model import Cells
from tttstream.sources.photographs import HELD_OUT
from tttstream.sources.places import Places

WORLDS, TOKENS, SIDE, FRAMES = 64, 1440, 12, 12  # 12 frames a world, each of 120 cells


@torch.no_grad()
def errors(model: MapModel, pool: torch.Tensor, worlds: Iterable[int] = range(WORLDS), seed: int = 3) -> list[float]:
    """Of every world of these numbers in one stream: the squared error of the codes of its 144 cells, over that of the
    mean code."""
    draw, state, found = torch.Generator().manual_seed(seed), None, []
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    middles = (torch.stack([column, row], -1).view(-1, 2).double() + 0.5) / model.config.side
    for world in worlds:
        codes = pool[torch.randint(len(pool), (SIDE * SIDE,), generator=draw)]
        points = torch.cat([middles, torch.full((len(middles), 1), float(world)).double()], 1)
        walk = torch.randint(SIDE * SIDE, (1, FRAMES, TOKENS // FRAMES), generator=draw)
        cells = Cells(codes[walk], points[walk], torch.ones(walk.shape))
        _, state = model.learned(cells, state)
        said = model.imagine(points[None], state).codes[0]
        found.append(float((said - codes).square().mean() / (codes - codes.mean(0)).square().mean()))
    return found


def test_the_last_worlds_are_recalled_as_the_first() -> None:
    torch.manual_seed(0)
    model = models.load("map")
    assert isinstance(model, MapModel)
    worlds = [Places(size=model.config.size, seed=seed, photographs=HELD_OUT) for seed in range(8)]
    frames = [torch.from_numpy(world.frame(300 * i).image.copy()) for world in worlds for i in range(8)]
    pool = model.codes.encode(model.pixels(torch.stack(frames).permute(0, 3, 1, 2))).flatten(0, 1)
    found = errors(model, pool)
    first, last = sum(found[:8]) / 8, sum(found[-8:]) / 8
    assert first < 0.003, found[:8]
    assert last < 1.15 * first, (first, last)
    fresh = sum(sum(errors(model, pool, [number], seed=number)) for number in range(WORLDS - 8, WORLDS)) / 8
    assert last < 1.15 * fresh, (fresh, last)


def test_an_untrained_map_does_not_age() -> None:
    torch.manual_seed(0)
    shipped = models.load("map")
    assert isinstance(shipped, MapModel)
    model = MapModel(shipped.config).eval()
    found = errors(model, torch.randn(4000, model.config.codes))
    first, last = sum(found[:8]) / 8, sum(found[-8:]) / 8
    assert max(first, last) < 0.001, (first, last)
