"""Registration: the shift between a frame and what a map expects, which is the error of the frame's pose."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.models.map.lattice import Block, laid
from tttstream.models.map.model import KNOWN, MapConfig, View

REACH = 8  # largest shift that is searched for, in pairs of pixels
SMOOTH = 15  # side of the square whose mean is subtracted from a pixel, so that light does not count
OVERLAP = 0.4  # least share of the pixels compared without a shift that a shift must leave
LEAST = 0.15  # share of the pixels of a picture that must be known
ALIKE = 0.4  # least correlation at the best shift
STEPS = 2  # Gauss-Newton steps after the search
EXACT, ERROR = 0.04, 0.0025  # square pixels: of usual shifts with exact poses, at most; of errors of a measurement
FAR = 4.0  # square pixels: a larger shift counts as this one for what is usual
LATEST = 200  # number of shifts whose size is usual


class Measured(NamedTuple):
    """The error of a pose in pixels. x, y: at zoom 1. zoom, roll: the displacement that they cause
    at a quarter of a view from the centre."""

    x: float
    y: float
    zoom: float
    roll: float


class Shifts(NamedTuple):
    """The errors of the poses of a stream so far.

    x, y, zoom, roll: of the latest frame, as in `Measured`. moved, turned: mean logarithm of the squared lengths of
    measured (x, y) and of (zoom, roll); a few large errors hardly change it. number: of measurements, at most LATEST; a
    stream begins as if it had some of exact poses.
    """

    x: float = 0.0
    y: float = 0.0
    zoom: float = 0.0
    roll: float = 0.0
    moved: float = math.log(EXACT / 8)
    turned: float = math.log(EXACT / 8)
    number: int = 5

    def after(self, measured: Measured | None) -> "Shifts":
        """The errors after one more frame. measured: its measured error, None if it could not be measured. The new
        error is the most probable one, given the measured one and the usual size of errors. It is exactly 0 in a stream
        of exact poses."""
        if measured is None:
            return Shifts(0.0, 0.0, 0.0, 0.0, *self[4:])
        x, y, zoom, roll = measured
        number = min(self.number + 1, LATEST)
        levels = self.moved, self.turned
        moved, turned = (
            level + (math.log(min(length, FAR) + ERROR) - level) / number
            for level, length in zip(levels, (x * x + y * y, zoom * zoom + roll * roll), strict=True)
        )
        by, of = _share(moved), _share(turned)
        return Shifts(by * x, by * y, of * zoom, of * roll, moved, turned, number)

    def pose(self, size: int) -> tuple[float, float, float, float, float]:
        """The latest error in the numbers of a pose: x, y, log zoom, roll, world. size: of a picture, in pixels."""
        return self.x / size, self.y / size, 4 * self.zoom / size, 4 * self.roll / size, 0.0


def _share(level: float) -> float:
    """The share of a measured error that counts, 0 to 1."""
    usual = max(0.0, math.exp(level) - EXACT)
    return usual / (usual + ERROR)


def measured(picture: Tensor, pose: Tensor, view: View, config: MapConfig) -> Measured | None:
    """Measure the error of the pose [1, 5] of a picture [3, S, S]: the shift, zoom and roll with which the picture fits
    the expected view best. None if too little of the view is known, or if the picture fits nowhere.

    A search over whole pixels finds the shift with the largest correlation of contours, and Gauss-Newton steps with
    robust weights refine it, with zoom and roll (Lucas and Kanade, 1981). The weights reduce the influence of things
    that have changed.
    """
    familiar = (view.said.familiar[0] > KNOWN).to(picture.dtype).view(view.block.rows, view.block.columns)
    known = familiar.repeat_interleave(config.patch, 0).repeat_interleave(config.patch, 1)

    def seen_at(pose: Tensor) -> tuple[Tensor, Tensor]:
        pictures, inside = laid(picture[None], pose, view.block, config.side, config.patch)
        return _contours(pictures[0], inside[0].to(picture)), inside[0].to(picture)

    seen, inside = seen_at(pose)
    if float((known * inside).sum()) < LEAST * config.size**2:
        return None
    expected = _contours(view.laid[0], known)
    found, alike = _search(expected, known, seen, inside)
    if not alike >= ALIKE:
        return None
    unit = pose.new_tensor([1.0, 1.0, 4.0, 4.0]) / config.size
    error = pose.new_tensor([*found, 0.0, 0.0])
    right = F.pad((expected[..., 2:] - expected[..., :-2]) / 2, (1, 1))
    down = F.pad((expected[..., 2:, :] - expected[..., :-2, :]) / 2, (0, 0, 1, 1))
    doubt = torch.ones_like(known)
    for _ in range(STEPS):
        at = torch.cat([pose[:, :4] + error * unit, pose[:, 4:]], 1)
        seen, inside = seen_at(at)
        x, y = ((middle * 4).to(picture) for middle in _offsets(view.block, at, config))
        slopes = torch.stack([expected, right, down, x * right + y * down, x * down - y * right]).flatten(1)
        weights = known * inside * doubt
        weighted = slopes * weights.flatten().repeat(3)
        normal = weighted @ slopes.mT + 1e-6 * torch.eye(len(slopes)).to(slopes)
        fitted = torch.linalg.solve(normal, weighted @ seen.flatten())  # contrast, and contrast times steps
        rest = (seen.flatten() - fitted @ slopes).view_as(seen).square().mean(0)
        usual = (rest * weights).sum() / weights.sum().clamp(min=1)
        doubt = 1 / (1 + F.avg_pool2d(rest[None], 5, 1, 2)[0] / (2 * usual + 1e-9))
        error = error + (fitted[1:] / fitted[0].clamp(min=0.3)).clamp(-2, 2).to(error)
    return Measured(*error.tolist())


def _offsets(block: Block, pose: Tensor, config: MapConfig) -> tuple[Tensor, Tensor]:
    """The distances of the pixels of a block from the centre of the view at a pose [1, 5], in sides of a view: [w] to
    the right and [h, 1] down."""
    right, down = (
        (block.corner[0, axis] + (torch.arange(count * config.patch).to(pose) + 0.5) / config.patch) / config.side
        - pose[0, axis]
        for axis, count in ((0, block.columns), (1, block.rows))
    )
    return right, down[:, None]


def _contours(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture [3, h, w] less its local mean, where the mask [h, w] is 1; 0 elsewhere."""
    down, right = (torch.ones(side, side).tril(SMOOTH // 2).triu(-(SMOOTH // 2)).to(picture) for side in mask.shape)
    sums = down @ torch.cat([picture * mask, mask[None]]) @ right
    return (picture - sums[:3] / sums[3:].clamp(min=1.0)) * mask


def _search(expected: Tensor, known: Tensor, seen: Tensor, inside: Tensor) -> tuple[tuple[float, float], float]:
    """The shift x, y in pixels with the largest correlation between contours, and this correlation. expected, seen:
    contours [3, h, w], compared at half the resolution. known, inside: the pixels that count in each [h, w]."""
    here, there = F.avg_pool2d(expected, 2), F.avg_pool2d(seen, 2)
    known, inside = ((F.avg_pool2d(mask[None], 2)[0] > 0.99).to(here) for mask in (known, inside))
    here, there = here * known, there * inside
    parts = torch.cat([there, there.square().sum(0, keepdim=True), inside[None]])
    kernels = here.new_zeros(4, len(parts), *known.shape)
    kernels[0, :3], kernels[1, 3], kernels[2, 4], kernels[3, 4] = here, known, here.square().sum(0), known
    product, power, own, count = F.conv2d(F.pad(parts, (REACH,) * 4)[None], kernels)[0]
    alike = product / (power * own).clamp(min=1e-9).sqrt()
    alike = torch.where(count < OVERLAP * count[REACH, REACH], -1.0, alike)
    best = int(alike.argmax())
    row, column = divmod(best, 2 * REACH + 1)
    return (2.0 * (REACH - column), 2.0 * (REACH - row)), float(alike.flatten()[best])
