"""A Clip says where frames are to be found; a Reader, opened by the process that needs it, gives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int64]


class Shot(NamedTuple):
    """Frames in a row: uint8 RGB [n, H, W, 3], and if known the object that each pixel belongs to, [n, H, W]: 0 the
    background, -1 (`tttstream.io.mask_files.VOID`) where nobody knows; and where each frame was taken, [n, P]."""

    frames: Pixels
    masks: NDArray[np.integer[Any]] | None = None
    poses: NDArray[np.float64] | None = None


class Reader(ABC):
    """An open clip. frames: how many it should have, None where it never ends. damage: what was found wrong with it."""

    frames: int | None = None
    damage: str | None = None

    @abstractmethod
    def read(self, indices: Numbers) -> Shot:
        """The frames of these numbers, which increase; fewer, from the first on, where it breaks off.

        What a frame looks like depends on its number alone, not on what was read before.
        Raises SourceError where nothing at all can be read.
        """

    def close(self) -> None:  # noqa: B027
        """Give back files and threads."""


class Decoder(ABC):
    """Opens video files."""

    @abstractmethod
    def open(self, path: str) -> Reader:
        """Open a video file, or one in a tar: `shard.tar::name`. Raises SourceError where that cannot be done."""

    @abstractmethod
    def count(self, path: str) -> int:
        """How many frames a video has by its packets, without decoding one. Raises SourceError as `open` does."""


@dataclass(frozen=True)
class Clip(ABC):
    """A piece of footage by itself. name: for reports. label: its class, -1 for none. masked: it has object masks.
    pose: how many numbers say where a frame was taken, 0 where that is not known."""

    name: str
    label: int = -1
    masked: bool = False

    @property
    def pose(self) -> int:
        """How many numbers say where a frame was taken."""
        return 0

    @abstractmethod
    def open(self, decoder: Decoder) -> Reader:
        """Open it. Raises SourceError where it cannot be read."""

    @abstractmethod
    def count(self, decoder: Decoder) -> int | None:
        """How many frames it has, None where it never ends. Raises SourceError where it cannot be read."""


@dataclass(frozen=True)
class VideoClip(Clip):
    """A video file, named by its path, or the frames [start, stop) of it (stop None: to the end)."""

    start: int = 0
    stop: int | None = None

    def open(self, decoder: Decoder) -> Reader:
        """See Clip."""
        return piece(decoder.open(self.name), self.start, self.stop)

    def count(self, decoder: Decoder) -> int | None:
        """See Clip."""
        return length(decoder.count(self.name), self.start, self.stop)


def piece(reader: Reader, start: int, stop: int | None) -> Reader:
    """The frames [start, stop) of a clip (stop None: to the end)."""
    return reader if (start, stop) == (0, None) else _Part(reader, start, stop)


def length(frames: int, start: int, stop: int | None) -> int:
    """How many of so many frames lie in [start, stop)."""
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
