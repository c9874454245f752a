"""The base class of sources that generate their frames: a frame depends only on the settings and its number."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.sources.base import Source

START = 0  # the stream of random numbers for the starts of stays; subclasses number theirs from 1 on


class Generated(Source):
    """Endless frames in stays: intervals of `stay` ± `jitter` frames, each in one place.

    size: side of the square frames in pixels. seed: it determines all frames, bit for bit on one machine, so seeking is
    exact and memory does not grow. Raises SourceError for a size or seed that is not usable.
    """

    stay: ClassVar[int]
    jitter: ClassVar[int]

    def __init__(self, *, size: int, seed: int) -> None:
        if not 16 <= size <= 4096:
            raise SourceError(f"{self.name}: size is {size}, expected 16 to 4096 pixels")
        if seed < 0:
            raise SourceError(f"{self.name}: seed is {seed}, expected 0 or more")
        self.size, self.seed = size, seed
        self._index = 0

    @abstractmethod
    def frame(self, index: int) -> Frame:
        """Any frame, by its number."""

    def _settings(self) -> dict[str, Any]:
        """The settings that must be equal to resume (JSON-able)."""
        return {"seed": self.seed, "size": self.size}

    def __iter__(self) -> Iterator[Frame]:
        while True:
            self._index += 1
            yield self.frame(self._index - 1)

    def position(self) -> dict[str, Any]:
        """The number of the next frame, and the settings, which must be equal to continue."""
        return {"source": self.name, "index": self._index, **self._settings()}

    def seek(self, position: dict[str, Any]) -> None:
        """Continue at a frame; the cost does not depend on the distance."""
        self._check(position)
        mine = self._settings()
        theirs = {name: position.get(name) for name in mine}
        if theirs != mine:
            came, here = (" and ".join(f"{k} {v}" for k, v in settings.items()) for settings in (theirs, mine))
            raise SourceError(f"{self.name}: the position is from {came}, this source has {here}")
        self._index = position["index"]

    def _rng(self, *use: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, *use]))

    def _start(self, number: int) -> int:
        """The first frame of a stay."""
        if number == 0:
            return 0
        return number * self.stay + int(self._rng(START, number).integers(-self.jitter, self.jitter + 1))

    def _number(self, index: int) -> int:
        """The stay that a frame belongs to."""
        number = index // self.stay
        if index >= self._start(number + 1):
            return number + 1
        return number if index >= self._start(number) else number - 1
