"""Follower: follows things from boxes that the user drew."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import ConfigError
from tttstream.frames import Frame
from tttstream.live.boxes import Box
from tttstream.live.companion import Companion, in_pixels
from tttstream.models.masks import TargetModel
from tttstream.streams import MaskResult, MaskStream
from tttstream.streams.windows import usual

MOST = 4  # things at the same time
CROP = 248  # pixels: the side of windows, the fast setting of docs/masks.md
LEAST = 1e-4  # share of the picture below which a thing is not in view


class Follower(Companion):
    """Follows at most MOST things of one camera.

    seen: the last processed frame, with the mask of the things, for a picture.
    """

    KIND = "follow"

    def __init__(self, model: TargetModel, name: str) -> None:
        size, crop = usual(model, None, CROP)
        self.stream: MaskStream = MaskStream(model, objects=MOST, size=size, crop=crop)
        self._names: dict[int, str] = {}
        self._found: dict[int, tuple[Box | None, float]] = {}
        self.seen: tuple[Frame, NDArray[np.uint8]] | None = None
        super().__init__(name)

    @property
    def wanted(self) -> bool:
        return bool(self._names)

    def look(self, frame: Frame) -> None:
        self._take(frame, self.stream.push(frame))

    def _take(self, frame: Frame, result: MaskResult) -> None:
        mask = np.where(np.isin(result.mask, list(self._names)), result.mask, 0).astype(np.uint8)
        self._found = {
            number: (_box(mask == number), float(result.confidence[number - 1])) for number in list(self._names)
        }
        self.seen = frame, mask

    def add(self, frame: Frame, box: Box, name: str) -> int:
        """In its thread: follow the thing in a box of a frame; returns its number. Raises ConfigError, FrameError."""
        free = [number for number in range(1, MOST + 1) if number not in self._names]
        if not free:
            raise ConfigError(f"{MOST} things are followed already: stop following one")
        result = self.stream.add(frame=frame, box=in_pixels(box, frame), number=free[0])
        self._names[free[0]] = name or f"thing {free[0]}"
        self._take(frame, result)
        return free[0]

    def drop(self, number: int | None) -> None:
        """In its thread: stop following one thing, or all. Raises ConfigError for a number that is not followed."""
        if number is None:
            self._names.clear()
        elif self._names.pop(number, None) is None:
            raise ConfigError(f"no thing {number!r:.20} is followed")
        else:
            self.stream.forget(number)
        if not self._names:
            self.stream.reset()
            self._found, self.seen = {}, None

    def things(self) -> list[dict[str, Any]]:
        """The followed things, the last box of each (None if it is out of sight) and its confidence."""
        found = self._found
        return [
            {"number": number, "name": name, "box": found[number][0], "confidence": round(found[number][1], 3)}
            for number, name in list(self._names.items())
            if number in found
        ]

    def note(self) -> dict[str, Any]:
        return {"names": {str(number): name for number, name in self._names.items()}}

    def restore(self, note: dict[str, Any]) -> None:
        self._names = {int(number): name for number, name in note["names"].items()}


def _box(mask: NDArray[np.bool_]) -> Box | None:
    """The box around a mask [H, W]; None for one that is nearly empty."""
    if mask.mean() < LEAST:
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    edges = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    x0, y0, x1, y1 = (round(float(edge), 4) for edge in edges)
    return x0, y0, x1, y1
