"""Generated clips: the cameras of `tttstream watch walk` and `tttstream watch places`."""

from dataclasses import dataclass

import numpy as np

from tttstream.sources.generated import Generated
from tttstream.sources.photographs import HELD_OUT, NAMES
from tttstream.sources.places import Places
from tttstream.sources.walk import Walk
from tttstream.train.data.clips import Decoder, GeneratedClip, Numbers, Reader, Shot

STRIDES = (6, 8, 12, 16, 24, 32)
TRAINED_ON = tuple(name for name in NAMES if name not in HELD_OUT)
"""The photographs that shipped models may be trained on."""


@dataclass(frozen=True)
class WalkClip(GeneratedClip):
    """A camera walk over photographs."""

    def open(self, decoder: Decoder) -> Reader:
        return _Reader(Walk(size=self.size, seed=self.seed), 1, self.frames)


@dataclass(frozen=True)
class PlacesClip(GeneratedClip):
    """A camera in worlds of photographs, with its pose. held_out: use the photographs of the source `places` instead of
    those for training. speed: the step between frames; by default drawn from STRIDES with the seed."""

    pose: int = 5
    held_out: bool = False
    speed: int | None = None

    def open(self, decoder: Decoder) -> Reader:
        speed = STRIDES[self.seed % len(STRIDES)] if self.speed is None else self.speed
        photographs = HELD_OUT if self.held_out else TRAINED_ON
        return _Reader(Places(size=self.size, seed=self.seed, photographs=photographs), speed, self.frames)


class _Reader(Reader):
    def __init__(self, source: Generated, speed: int, frames: int | None) -> None:
        self._source, self._speed, self.frames = source, speed, frames

    def read(self, indices: Numbers) -> Shot:
        shown = [self._source.frame(int(index) * self._speed) for index in indices]
        poses = [frame.pose for frame in shown if frame.pose is not None]
        images = np.stack([frame.image for frame in shown]).astype(np.uint8, copy=False)
        return Shot(images, poses=np.stack(poses) if poses else None)
