"""Windows of a frame: their positions, and the means of feature maps inside them."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tttstream.errors import ShapeError

SIDES = (0.14, 0.22, 0.36, 0.6, 1.0)
"""Sides of the windows, as shares of the frame's short side."""

SHAPES = (1.0, 0.5, 2.0)
"""Aspect ratios of the windows of one area, width over height."""

STEP = 0.5
"""The distance between neighbours of one size, as a share of their sides."""

MIDDLE, AROUND = 0.6, 1.6
"""The sides of the inner part of a window and of its surroundings, divided by those of the window."""

PARTS = 3
"""The number of means of each map in the result of `seen`."""


Edges = list[tuple[float, float]]
"""The first and last edges of windows along one side of the frame, as shares of it."""


@lru_cache(maxsize=16)
def lattices(height: int, width: int) -> tuple[tuple[Edges, Edges], ...]:
    """Windows all over a frame of that size, as (rows, columns) of each size and shape: every row with every column
    makes a window. The first one is the whole frame."""
    found: list[tuple[Edges, Edges]] = [([(0.0, 1.0)], [(0.0, 1.0)])]
    short = min(height, width)
    for side in SIDES:
        for shape in SHAPES:
            wide, tall = short * side * shape**0.5 / width, short * side / shape**0.5 / height
            if max(wide, tall) <= 1:
                found.append(([(y, y + tall) for y in _starts(tall)], [(x, x + wide) for x in _starts(wide)]))
    return tuple(found)


@lru_cache(maxsize=16)
def windows(height: int, width: int) -> Tensor:
    """All windows of `lattices` [n, 4]: left, top, right, bottom as shares of the frame's sides."""
    return torch.tensor(
        [
            (left, top, right, bottom)
            for rows, columns in lattices(height, width)
            for top, bottom in rows
            for left, right in columns
        ]
    )


def _starts(side: float) -> list[float]:
    """The starts of windows of this side, evenly spaced from edge to edge."""
    count = 1 + max(0, -int(-(1 - side) // (STEP * side)))
    return torch.linspace(0, 1 - side, count).tolist() if count > 1 else [(1 - side) / 2]


def means(maps: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
    """The mean of each map [1, C, h, w] in each box [n, 4] (as of `windows`), exact to parts of a cell: [n, C] a map.

    Raises ShapeError for boxes without an area.
    """
    left, top, right, bottom = boxes.to(maps[0]).unbind(-1)
    solid = torch.compiler.is_compiling() or bool(((right > left) & (bottom > top)).all())
    if boxes.dim() != 2 or not solid:
        raise ShapeError("windows: expected boxes [n, 4] of left < right and top < bottom")
    found = []
    for features in maps:
        rows, columns = (
            _weights(torch.stack(edges, -1), features.shape[axis])
            for axis, edges in ((-2, (top, bottom)), (-1, (left, right)))
        )
        found.append(((features[0] @ columns.mT) * rows.mT).sum(1).mT)
    return found


def seen(maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What is seen in each box [n, 4], from maps [1, C, h, w]: [n, PARTS * sum of C]. The mean of every map in the box,
    then in its middle, where a thing hides the background, then in the box less that around it (cut off at the edges of
    the frame)."""
    boxes = boxes.to(maps[0].device)
    grown = [torch.stack([_grown(boxes[:, axis::2], by) for axis in (0, 1)], 2).flatten(1) for by in (MIDDLE, AROUND)]
    whole, middle, around = torch.cat(means(maps, torch.cat([boxes, *grown])), -1).chunk(3)
    return torch.cat([whole, middle, whole - around], -1)


def everywhere(maps: Sequence[Tensor], height: int, width: int) -> Tensor:
    """`seen` for all `windows(height, width)`, by rows of windows first, then by columns."""
    lattice = lattices(height, width)
    (rows, tall), (columns, wide) = (
        (
            torch.tensor([pair for edges in sides for pair in edges], device=maps[0].device),
            [len(edges) for edges in sides],
        )
        for sides in zip(*lattice, strict=True)
    )
    parts = []
    for by in (1.0, MIDDLE, AROUND):
        found = []
        for features in maps:
            high, across = features.shape[-2:]
            lines = features[0].permute(1, 2, 0).reshape(high, -1)
            bands = (_weights(_grown(rows, by), high) @ lines).unflatten(1, (across, -1)).split(tall)
            weights = _weights(_grown(columns, by), across).split(wide)
            found.append(torch.cat([(w @ band).flatten(0, 1) for band, w in zip(bands, weights, strict=True)]))
        parts.append(torch.cat(found, 1))
    whole, middle, around = parts
    return torch.cat([whole, middle, whole - around], 1)


def _grown(edges: Tensor, by: float) -> Tensor:
    """Scale intervals [n, 2] by the factor `by` around their middles, and clip them to the frame."""
    centre, half = edges.mean(1, keepdim=True), (edges[:, 1:] - edges[:, :1]) / 2
    return torch.cat([centre - by * half, centre + by * half], 1).clamp(0, 1)


def _weights(edges: Tensor, cells: int) -> Tensor:
    """Weights [n, cells] for means over intervals [n, 2] of one side of the frame, which is divided into equal
    cells."""
    at = torch.arange(cells, dtype=edges.dtype, device=edges.device) / cells
    inside = torch.minimum(edges[:, 1:], at + 1 / cells) - torch.maximum(edges[:, :1], at)
    return inside.clamp(min=0) / (edges[:, 1:] - edges[:, :1])
