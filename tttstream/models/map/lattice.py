"""The lattice of a world: fixed square cells, onto which views are laid, and from which views are drawn.

A cell is as large as a patch of a view at zoom 1, and it is the same piece of the world whatever the pose. So a memory
has to know as many places as there are cells, and not one for every pose that a camera may take.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ShapeError

ALONG = 9  # pixels of a border between cells over which a step is a mean
MOST = 8.0  # a view that is larger than at zoom 1 by more than that has more cells than it has pixels to show them


class Block(NamedTuple):
    """Cells that lie around views. corner: column and row of the first, whole numbers in float64 [..., 2]. rows,
    columns: how many there are."""

    corner: Tensor
    rows: int
    columns: int


def around(poses: Tensor, side: int) -> Block:
    """The cells that views from poses [..., 5] touch, for side cells a view. Raises ShapeError for views more than MOST
    times as large as at zoom 1."""
    reach = reached(poses)
    most = 2 * float(reach.max())
    if not most <= MOST:
        raise ShapeError(f"map: a view is {most:.3g} times as large as at zoom 1, expected {MOST:g} times at most")
    count = math.ceil(most * side) + 1
    return Block(((poses[..., :2] - reach[..., None]) * side).floor(), count, count)


def reached(poses: Tensor) -> Tensor:
    """How far views from poses [..., 5] reach from their middles along x and y, in sides of a view [...]."""
    return poses[..., 2].exp() * (poses[..., 3].cos().abs() + poses[..., 3].sin().abs()) / 2


def cell_points(block: Block, world: Tensor, side: int) -> Tensor:
    """The middles of the cells of blocks in worlds [...]: x, y and world [..., rows * columns, 3], in reading order."""
    columns = torch.arange(block.columns, dtype=world.dtype, device=world.device) + 0.5
    rows = torch.arange(block.rows, dtype=world.dtype, device=world.device) + 0.5
    down, right = torch.meshgrid(rows, columns, indexing="ij")
    x = (block.corner[..., :1] + right.flatten()) / side
    y = (block.corner[..., 1:] + down.flatten()) / side
    return torch.stack([x, y, world[..., None].expand_as(x)], dim=-1)


def laid(frames: Tensor, poses: Tensor, block: Block, side: int, patch: int) -> tuple[Tensor, Tensor]:
    """Views as they lie in the world: frames [N, C, S, S] from poses [N, 5] -> pictures of their blocks
    [N, C, rows * patch, columns * patch], and which of their pixels are in view, bool [N, rows * patch, columns *
    patch]. Beyond the border of the view its outermost pixels are repeated."""
    step = 1.0 / patch
    right = (torch.arange(block.columns * patch, dtype=poses.dtype, device=poses.device) + 0.5) * step
    down = (torch.arange(block.rows * patch, dtype=poses.dtype, device=poses.device) + 0.5) * step
    x = (block.corner[:, :1] + right) / side - poses[:, :1]
    y = (block.corner[:, 1:] + down) / side - poses[:, 1:2]
    c, s = (turn(poses[:, 3]) / poses[:, 2].exp() for turn in (torch.cos, torch.sin))
    x, y, c, s = x[:, None, :], y[:, :, None], c[:, None, None], s[:, None, None]
    at = torch.stack([c * x + s * y, c * y - s * x], dim=-1).to(frames.dtype)  # in the view, -0.5 to 0.5 [N, h, w, 2]
    pictures = F.grid_sample(frames, 2 * at, "bilinear", "border", align_corners=False)
    return pictures, at.abs().amax(-1) <= 0.5


def evened(pictures: Tensor, known: Tensor) -> Tensor:
    """Pictures of cells side by side [B, C, rows * patch, columns * patch] without the steps at the borders between
    cells that are known, bool [B, rows, columns]: half of each step, a mean along the border, is taken from either
    cell and falls to nothing at its middle. What is drawn of a world is continuous, as the world is."""
    pictures = _evened_rows(pictures, known)
    return _evened_rows(pictures.mT, known.mT).mT


def _evened_rows(pictures: Tensor, known: Tensor) -> Tensor:
    """The same at the borders between columns of cells alone."""
    rows, columns = known.shape[-2:]
    if columns == 1:
        return pictures
    patch = pictures.shape[-1] // columns
    cells = pictures.unflatten(-1, (columns, patch))  # [B, C, h, columns, patch]
    step = cells[..., 1:, 0] - cells[..., :-1, -1]
    both = (known[..., 1:] & known[..., :-1]).repeat_interleave(pictures.shape[-2] // rows, -2)
    step = torch.where(both[:, None], step, 0.0).mT
    step = F.avg_pool1d(step.flatten(0, 1), ALONG, 1, ALONG // 2, count_include_pad=False).view_as(step).mT
    ramp = (1 - (torch.arange(patch, dtype=step.dtype, device=step.device) + 0.5) * 2 / patch).clamp(min=0) / 2
    here = F.pad(step, (0, 1))[..., None] * ramp.flip(0) - F.pad(step, (1, 0))[..., None] * ramp
    return (cells + here).flatten(-2)


def drawn(pictures: Tensor, poses: Tensor, block: Block, side: int, size: int, mode: str = "bilinear") -> Tensor:
    """Views of size × size pixels from poses [N, 5] of pictures of their blocks [N, C, h, w] -> [N, C, size, size]."""
    steps = (torch.arange(size, dtype=poses.dtype, device=poses.device) + 0.5) / size - 0.5
    right, down = steps[None, None, :], steps[None, :, None]
    c, s = (poses[:, 2].exp() * turn(poses[:, 3]) for turn in (torch.cos, torch.sin))
    c, s = c[:, None, None], s[:, None, None]
    x = poses[:, 0, None, None] + c * right - s * down
    y = poses[:, 1, None, None] + s * right + c * down
    column = (x * side - block.corner[:, 0, None, None]) / block.columns
    row = (y * side - block.corner[:, 1, None, None]) / block.rows
    at = (2 * torch.stack([column, row], dim=-1) - 1).to(pictures.dtype)
    return F.grid_sample(pictures, at, mode, "border", align_corners=False)
