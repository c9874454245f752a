"""A small mask model off its initial values, and a disk that moves over noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream.masks import MixtureConfig, MixtureModel

SMALL = MixtureConfig(width=16, heads=2, head_width=8, placed=1, contour=8, slots=40, size=32)


@pytest.fixture
def make_model() -> Callable[..., MixtureModel]:
    """Makes a small model, every parameter moved a little; options are those of MixtureConfig."""

    def make(dtype: torch.dtype = torch.float64, **options: Any) -> MixtureModel:
        torch.manual_seed(0)
        model = MixtureModel(replace(SMALL, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.to(dtype).eval()

    return make


@pytest.fixture
def clip() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes frames [B, T, 3, 32, 48] and masks [B, T, O, 32, 48] of bright disks that move over noise."""

    def make(rows: int = 2, count: int = 5, objects: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
        frames = 0.3 * torch.rand(rows, count, 3, 32, 48, generator=generator, dtype=torch.float64)
        masks = torch.zeros(rows, count, objects, 32, 48, dtype=torch.float64)
        for row in range(rows):
            for number in range(objects):
                at = 10 + torch.rand(2, generator=generator) * torch.tensor([12.0, 20.0])
                colour = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator, dtype=torch.float64)
                for t in range(count):
                    inside = (y - at[0] - t) ** 2 + (x - at[1] - 2 * t * (1 - 2 * number)) ** 2 < 36
                    inside &= ~masks[row, t].any(0).bool()
                    masks[row, t, number] = inside
                    frames[row, t] = torch.where(inside, colour, frames[row, t])
        return frames, masks

    return make
