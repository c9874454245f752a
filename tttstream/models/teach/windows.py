"""Windows of a frame: where they lie, and the mean of feature maps inside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ShapeError

SIDES = (0.14, 0.22, 0.36, 0.6, 1.0)
"""Sides of the windows that are looked at, as shares of the frame's short side."""

SHAPES = (1.0, 0.5, 2.0)
"""Their widths over their heights, at the same area."""

STEP = 0.5
"""The distance of neighbours of one size, as a share of their sides."""

MIDDLE, AROUND = 0.6, 1.6
"""Sides of the middle of a window, and of what lies around it, over the window's own."""

PARTS = 3
"""Means that `seen` gives of each map."""


@lru_cache(maxsize=16)
def windows(height: int, width: int) -> Tensor:
    """Windows all over a frame of that size, [n, 4]: left, top, right, bottom as shares of the frame's sides. The first
    one is the whole frame."""
    found = [(0.0, 0.0, 1.0, 1.0)]
    short = min(height, width)
    for side in SIDES:
        for shape in SHAPES:
            wide, tall = short * side * shape**0.5 / width, short * side / shape**0.5 / height
            if max(wide, tall) <= 1:
                found += [(x, y, x + wide, y + tall) for y in _starts(tall) for x in _starts(wide)]
    return torch.tensor(found, dtype=torch.float32)


def _starts(side: float) -> list[float]:
    """The first pixels of windows of that side, evenly spaced from edge to edge."""
    count = 1 + max(0, -int(-(1 - side) // (STEP * side)))
    return torch.linspace(0, 1 - side, count).tolist() if count > 1 else [(1 - side) / 2]


def means(maps: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
    """The mean of each map [1, C, h, w] in each box [n, 4] (as of `windows`), exact to parts of a cell: [n, C] a map.

    By sums over everything left of and above a corner, which are linear between the corners of cells, so that the cost
    does not depend on the boxes' size. Raises ShapeError for boxes without an area.
    """
    boxes = boxes.to(maps[0].device, torch.float64)
    left, top, right, bottom = boxes.unbind(-1)
    solid = torch.compiler.is_compiling() or bool(((right > left) & (bottom > top)).all())
    if boxes.dim() != 2 or not solid:
        raise ShapeError("windows: expected boxes [n, 4] of left < right and top < bottom")
    corners = torch.stack(
        [torch.stack(corner, -1) for corner in ((left, top), (right, top), (left, bottom), (right, bottom))]
    )
    area = (right - left) * (bottom - top)
    found = []
    for features in maps:
        sums = F.pad(features.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
        at = F.grid_sample(sums, 2 * corners[None] - 1, align_corners=True, padding_mode="border")[0]
        cells = features.shape[-1] * features.shape[-2]
        found.append(((at[:, 3] - at[:, 1] - at[:, 2] + at[:, 0]) / (area * cells)).T.to(features.dtype))
    return found


def seen(maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What is seen in each box [n, 4], from maps [1, C, h, w]: [n, PARTS * sum of C]. The mean of every map in the box,
    then in its middle, where a thing hides the background, then in the box less that around it (cut off at the edges of
    the frame)."""
    boxes = boxes.to(maps[0].device)
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    grown = [torch.cat([centre - by * half, centre + by * half], -1).clamp(0, 1) for by in (MIDDLE, AROUND)]
    whole, middle, around = torch.cat(means(maps, torch.cat([boxes, *grown])), -1).chunk(3)
    return torch.cat([whole, middle, whole - around], -1)
