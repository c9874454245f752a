"""Generated footage that needs no file: the camera walk of `tttstream watch walk`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tttstream.sources.walk import Walk
from tttstream.train.data.clips import Clip, Decoder, Numbers, Reader, Shot


@dataclass(frozen=True)
class WalkClip(Clip):
    """A camera walk over photographs. seed: which one. size: side in pixels. frames: its length, None for endless."""

    seed: int = 0
    size: int = 128
    frames: int | None = None

    def open(self, decoder: Decoder) -> Reader:
        """See Clip."""
        return _WalkReader(Walk(size=self.size, seed=self.seed), self.frames)

    def count(self, decoder: Decoder) -> int | None:
        """See Clip."""
        return self.frames


class _WalkReader(Reader):
    def __init__(self, walk: Walk, frames: int | None) -> None:
        self._walk, self.frames = walk, frames

    def read(self, indices: Numbers) -> Shot:
        return Shot(np.stack([self._walk.frame(int(index)).image for index in indices]).astype(np.uint8, copy=False))
