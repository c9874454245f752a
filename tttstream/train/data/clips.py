"""Clips and Readers: a Clip describes where frames are; a Reader is opened by the process that reads them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttstream.poses import Form

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int64]


class Shot(NamedTuple):
    """Consecutive frames: uint8 RGB [n, H, W, 3]; optionally the object of each pixel, [n, H, W], 0 the background, -1
    (`tttstream.io.mask_files.VOID`) unknown; and the pose of each frame, [n, P]."""

    frames: Pixels
    masks: NDArray[np.integer[Any]] | None = None
    poses: NDArray[np.float64] | None = None


class Reader(ABC):
    """An open clip. frames: the expected number, None if it is endless. damage: the description of damage, if any."""

    frames: int | None = None
    damage: str | None = None

    @abstractmethod
    def read(self, indices: Numbers) -> Shot:
        """The frames with these increasing numbers; fewer if the clip ends early. A frame depends only on its number,
        not on earlier reads. Raises SourceError if no frame can be read.
        """

    def close(self) -> None:  # noqa: B027
        """Release files and threads."""


class Decoder(ABC):
    """Opens video files."""

    @abstractmethod
    def open(self, path: str) -> Reader:
        """Open a video file, or one in a tar: `shard.tar::name`. Raises SourceError if it cannot be opened."""

    @abstractmethod
    def count(self, path: str) -> int:
        """The number of frames of a video, counted by packets without decoding. Raises SourceError as `open` does."""


@dataclass(frozen=True)
class Clip(ABC):
    """A clip of a data set. name: for reports. label: its class, -1 for none. masked: whether it has object masks.
    pose: the number of values of a pose, 0 without poses."""

    name: str
    label: int = -1
    masked: bool = False
    pose: int = 0

    @property
    def form(self) -> Form | None:
        """The meaning of the values of a pose; None if they are plain numbers."""
        return None

    @abstractmethod
    def open(self, decoder: Decoder) -> Reader:
        """Open the clip. Raises SourceError if it cannot be read."""

    @abstractmethod
    def count(self, decoder: Decoder) -> int | None:
        """The number of frames, None if it is endless. Raises SourceError if it cannot be read."""


@dataclass(frozen=True)
class GeneratedClip(Clip):
    """A clip whose frames depend only on a seed. seed: determines the frames. size: side in pixels. frames: its length,
    None for endless."""

    seed: int = 0
    size: int = 128
    frames: int | None = None

    def count(self, decoder: Decoder) -> int | None:
        return self.frames


@dataclass(frozen=True)
class VideoClip(Clip):
    """A video file, with its path as the name, or its frames [start, stop) (stop None: to the end)."""

    start: int = 0
    stop: int | None = None

    def open(self, decoder: Decoder) -> Reader:
        return piece(decoder.open(self.name), self.start, self.stop)

    def count(self, decoder: Decoder) -> int | None:
        return length(decoder.count(self.name), self.start, self.stop)


def piece(reader: Reader, start: int, stop: int | None) -> Reader:
    """The frames [start, stop) of a clip (stop None: to the end)."""
    return reader if (start, stop) == (0, None) else _Part(reader, start, stop)


def length(frames: int, start: int, stop: int | None) -> int:
    """The number of frames in [start, stop) of a video with `frames` frames."""
    return max(0, min(frames, frames if stop is None else stop) - start)


class _Part(Reader):
    """The frames [start, stop) of another reader."""

    def __init__(self, reader: Reader, start: int, stop: int | None) -> None:
        self._reader, self._start = reader, start
        if reader.frames is not None:
            self.frames = length(reader.frames, start, stop)
        self.damage = reader.damage

    def read(self, indices: Numbers) -> Shot:
        shot = self._reader.read(indices + self._start)
        self.damage = self._reader.damage
        return shot

    def close(self) -> None:
        self._reader.close()
