"""Places in the world: poses, and the keys and marks of places, which are inputs of a network."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError, ShapeError
from tttstream.poses import Form

BITS = 32  # of a mixed number that make a phase
GOLDEN = 0x1E3779B97F4A7C15  # between the numbers that are mixed for one name
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
SIZE = 0.7  # of a mark, beside numbers of a code, which have a deviation of 1
SHIFTS = 30, 27  # of SplitMix64
FACTORS = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)  # the same
NUMBERS = 5
"""Of a pose: x and y of the middle of the view, in sides of a view at zoom 1; log zoom; roll in radians; world."""


class Plane:
    """Turns the poses of a source into those of a map.

    form: what their numbers are, None for those of a map. One angle among them is the roll; the others are x, y, log
    zoom and the number of the world, in this order, as far as there are any. Raises ShapeError for other forms.
    """

    def __init__(self, form: Form | None) -> None:
        angles = () if form is None else form.directions
        self._angle = angles if len(angles) == 2 else None
        if form is None:
            return
        plain = len(form.names) - len(angles)
        if len(angles) not in (0, 2) or not 2 <= plain <= NUMBERS - bool(angles):
            raise ConfigError(
                f"a map lies in a plane: its poses are x, y and perhaps log zoom, an angle of roll, and the number of "
                f"the world; these are {', '.join(form.names)}. Choose some, such as --pose x,y"
            )

    def __call__(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """A pose of the source [P] -> 2 to 5 numbers."""
        return pose if self._angle is None else self.laid(torch.from_numpy(pose.copy())).numpy()

    def laid(self, poses: Tensor) -> Tensor:
        """Poses of the source [..., P] -> [..., 2 to 5]."""
        if self._angle is None:
            return poses
        cosine, sine = self._angle
        rest = poses[..., [place for place in range(poses.shape[-1]) if place not in self._angle]]
        x, y, log_zoom, world = F.pad(rest, (0, 4 - rest.shape[-1])).unbind(-1)
        return torch.stack([x, y, log_zoom, torch.atan2(poses[..., sine], poses[..., cosine]), world], dim=-1)


def complete(pose: Tensor) -> Tensor:
    """Poses [..., 2 to 5] -> [..., 5]: what is not said is 0. Raises ShapeError for other lengths."""
    if not 2 <= pose.shape[-1] <= NUMBERS:
        raise ShapeError(
            f"map: a pose is x, y and perhaps log zoom, roll and number of the world; got {pose.shape[-1]} numbers"
        )
    return torch.cat([pose, pose.new_zeros(*pose.shape[:-1], NUMBERS - pose.shape[-1])], dim=-1)


class PlaceKeys(nn.Module):
    """Points, x, y and world [..., 3], -> keys [..., width] in float32: Fourier features of x and y with frequencies of
    a normal distribution (Rahimi and Recht, 2007) and phases that are a hash of the number of the world.

    Two points of one world at distance d have keys with a correlation of about exp(-(d / scale)^2 / 2); keys of
    different worlds are independent. So a network treats all places of all worlds alike, whatever the number of the
    world, and neighbouring places, which often look alike, share a part of what is learned. The frequencies are not
    drawn: their lengths are quantiles and their directions turn by the golden angle, so the correlation is closer to
    its mean than that of as many random ones.

    scale: in sides of a view.
    """

    waves: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.width = width
        length = (-2 * (1 - (torch.arange(width) + 0.5) / width).log()).sqrt()
        turn = torch.arange(width) * GOLDEN_ANGLE
        self.register_buffer("waves", length * torch.stack([turn.cos(), turn.sin()]) / scale)

    def forward(self, points: Tensor) -> Tensor:
        """See the class; angles are taken in float64, since x and y may be large."""
        phases = _hashed(_mixed(points[..., 2].round().long()), self.width) & (2**BITS - 1)
        angles = points[..., :2].double() @ self.waves.double() + phases * (2 * math.pi / 2**BITS)
        return (math.sqrt(2) * angles.cos()).float()


class CellMarks(nn.Module):
    """Cells, by their middles and worlds [..., 3], -> marks [..., count] of -SIZE and SIZE in float32: a hash of
    column, row and world. Marks of different cells are independent.

    side: cells along the side of a view.
    """

    def __init__(self, count: int, side: int) -> None:
        super().__init__()
        self.count, self.side = count, side

    def forward(self, points: Tensor) -> Tensor:
        """See the class. It computes in whole numbers of 64 bits, so all machines get equal marks."""
        column, row = (points[..., :2] * self.side).floor().long().unbind(-1)
        name = _mixed(_mixed(_mixed(points[..., 2].round().long()) + column) + row)
        return SIZE - 2 * SIZE * (_hashed(name, self.count) & 1).float()


def _hashed(names: Tensor, count: int) -> Tensor:
    """`count` independent numbers of 64 bits for each name: [...] -> [..., count]."""
    return _mixed(names[..., None] + torch.arange(1, count + 1, device=names.device) * GOLDEN)


def _mixed(numbers: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014) on whole numbers of 64 bits: each bit of the result depends on
    all bits. Products overflow on purpose."""
    for shift, factor in zip(SHIFTS, FACTORS, strict=True):
        numbers = (numbers ^ _right(numbers, shift)) * factor
    return numbers ^ _right(numbers, 31)


def _right(numbers: Tensor, shift: int) -> Tensor:
    """A shift to the right that fills with zeros, whatever the sign."""
    return (numbers >> shift) & ((1 << (64 - shift)) - 1)
