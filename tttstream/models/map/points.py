"""Where the patches of a picture lie in the world, and how that is told to a network."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tttstream.errors import ConfigError, ShapeError
from tttstream.poses import Form

PRIME = 2147483647  # products of two numbers below it fit into 63 bits
BITS = 32  # of a mixed number that a key takes
GOLDEN = 0x1E3779B97F4A7C15  # parts the numbers from which the words of a key are mixed
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
        if self._angle is None:
            return pose
        cosine, sine = self._angle
        rest = np.delete(pose, self._angle)
        x, y, log_zoom, world = np.pad(rest, (0, 4 - len(rest)))
        return np.array([x, y, log_zoom, math.atan2(pose[sine], pose[cosine]), world])


def complete(pose: Tensor) -> Tensor:
    """Poses [..., 2 to 5] -> [..., 5]: what is not said is 0. Raises ShapeError for other lengths."""
    if not 2 <= pose.shape[-1] <= NUMBERS:
        raise ShapeError(
            f"map: a pose is x, y and perhaps log zoom, roll and number of the world; got {pose.shape[-1]} numbers"
        )
    return torch.cat([pose, pose.new_zeros(*pose.shape[:-1], NUMBERS - pose.shape[-1])], dim=-1)


class PointFeatures(nn.Module):
    """Points [..., 2 or more] -> features [..., count]: random Fourier features of x and y (Rahimi and Recht, 2007), as
    many of each scale.

    scales: lengths in sides of a view beyond which two points have little in common.
    """

    waves: Tensor
    phases: Tensor

    def __init__(self, count: int, scales: tuple[float, ...]) -> None:
        super().__init__()
        each = count // len(scales)
        self.register_buffer("waves", torch.cat([torch.randn(2, each) / scale for scale in scales], dim=1))
        self.count = each * len(scales)
        self.register_buffer("phases", 2 * math.pi * torch.rand(self.count))

    def forward(self, points: Tensor) -> Tensor:
        """See the class; angles are taken in float64, since x and y may be large."""
        angles = points[..., :2].double() @ self.waves.double() + self.phases.double()
        return angles.cos().to(self.waves.dtype)


class WorldSigns(nn.Module):
    """Numbers of worlds [...] -> signs [..., width], with which the keys of places are multiplied, so that two worlds
    have nothing in common. They are those of a polynomial hash of the number; all of world 0 are 1."""

    factors: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("factors", torch.randint(1, PRIME, (2, width)))

    def forward(self, worlds: Tensor) -> Tensor:
        """See the class."""
        number = worlds.round().long()[..., None] % PRIME
        square = number * number % PRIME
        value = (square * self.factors[0] % PRIME + number * self.factors[1] % PRIME) % PRIME
        return 1 - 2 * (value % 2)


class CellKeys(nn.Module):
    """Cells, by their middles and worlds [..., 3], -> keys [..., width] of -1 and 1, a hash of column, row and world.

    Keys of different cells are independent, within a world and across worlds. So a network treats all cells of all
    worlds alike, at any distance from the origin and for any number of a world.

    side: cells along the side of a view.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.width, self.side = width, side

    def forward(self, points: Tensor) -> Tensor:
        """See the class. It computes in whole numbers of 64 bits, so all machines get equal keys. float32."""
        column, row = (points[..., :2] * self.side).floor().long().unbind(-1)
        name = _mixed(_mixed(_mixed(points[..., 2].round().long()) + column) + row)
        words = torch.arange(1, -(-self.width // BITS) + 1, device=points.device)
        words = _mixed(name[..., None] + words * GOLDEN)
        bits = words[..., None] >> torch.arange(BITS, device=points.device) & 1
        return 1.0 - 2.0 * bits.flatten(-2)[..., : self.width].float()


def _mixed(numbers: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014) on whole numbers of 64 bits: each bit of the result depends on
    all bits. Products overflow on purpose."""
    for shift, factor in zip(SHIFTS, FACTORS, strict=True):
        numbers = (numbers ^ _right(numbers, shift)) * factor
    return numbers ^ _right(numbers, 31)


def _right(numbers: Tensor, shift: int) -> Tensor:
    """A shift to the right that fills with zeros, whatever the sign."""
    return (numbers >> shift) & ((1 << (64 - shift)) - 1)
