"""Generated clips: the cameras of `tttstream watch walk` and `tttstream watch places`."""

from dataclasses import dataclass

import numpy as np

from tttstream.sources.photographs import HELD_OUT, NAMES
from tttstream.sources.places import Places
from tttstream.sources.walk import Walk
from tttstream.train.data.clips import Clip, Decoder, Numbers, Reader, Shot


@dataclass(frozen=True)
class WalkClip(Clip):
    """A camera walk over photographs. seed: which one. size: side in pixels. frames: its length, None for endless."""

    seed: int = 0
    size: int = 128
    frames: int | None = None

    def open(self, decoder: Decoder) -> Reader:
        return _WalkReader(Walk(size=self.size, seed=self.seed), self.frames)

    def count(self, decoder: Decoder) -> int | None:
        return self.frames


class _WalkReader(Reader):
    def __init__(self, walk: Walk, frames: int | None) -> None:
        self._walk, self.frames = walk, frames

    def read(self, indices: Numbers) -> Shot:
        return Shot(np.stack([self._walk.frame(int(index)).image for index in indices]).astype(np.uint8, copy=False))


STRIDES = (6, 8, 12, 16, 24, 32)
TRAINED_ON = tuple(name for name in NAMES if name not in HELD_OUT)
"""The photographs that shipped models may be trained on."""


@dataclass(frozen=True)
class PlacesClip(Clip):
    """A camera in worlds of photographs, with its pose. seed: which one. size: side in pixels. frames: its length, None
    for endless. held_out: use the photographs of the source `places` instead of those for training. speed: the step
    between frames; by default drawn from STRIDES with the seed."""

    seed: int = 0
    size: int = 128
    frames: int | None = None
    held_out: bool = False
    speed: int | None = None

    @property
    def pose(self) -> int:
        return 5

    def open(self, decoder: Decoder) -> Reader:
        speed = STRIDES[self.seed % len(STRIDES)] if self.speed is None else self.speed
        photographs = HELD_OUT if self.held_out else TRAINED_ON
        return _PlacesReader(Places(size=self.size, seed=self.seed, photographs=photographs), speed, self.frames)

    def count(self, decoder: Decoder) -> int | None:
        return self.frames


class _PlacesReader(Reader):
    def __init__(self, places: Places, speed: int, frames: int | None) -> None:
        self._places, self._speed, self.frames = places, speed, frames

    def read(self, indices: Numbers) -> Shot:
        shown = [self._places.frame(int(index) * self._speed) for index in indices]
        poses = np.stack([frame.pose for frame in shown if frame.pose is not None])
        return Shot(np.stack([frame.image for frame in shown]).astype(np.uint8, copy=False), poses=poses)
