"""The record of a whole stream for its chart, in constant memory: curves of decreasing resolution, and the highest
peaks."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttstream.frames import Result
from tttstream.views.overlay import fit, to_uint8

SHORT = 8
"""Up to this number of frames a run is drawn frame by frame, each with its own time."""


class Envelope:
    """Lowest, mean and highest value over time in at most `size` bins. At first each bin is one frame; when all are
    used, neighbours are merged, and each bin has twice as many frames. Constant memory."""

    def __init__(self, size: int = 2048) -> None:
        self.size = size
        self.width = 1  # frames in each bin
        self.count = 0
        self._low, self._sum, self._high = (np.zeros(size, dtype=np.float32) for _ in range(3))

    def add(self, value: float) -> None:
        """Append the next frame's value."""
        place, within = divmod(self.count, self.width)
        if place == self.size:
            half = self.size // 2
            self._low[:half] = np.minimum(self._low[::2], self._low[1::2])
            self._high[:half] = np.maximum(self._high[::2], self._high[1::2])
            self._sum[:half] = self._sum[::2] + self._sum[1::2]
            self.width *= 2
            place, within = divmod(self.count, self.width)
        if within == 0:
            self._low[place], self._sum[place], self._high[place] = value, value, value
        else:
            self._low[place] = min(self._low[place], value)
            self._sum[place] += value
            self._high[place] = max(self._high[place], value)
        self.count += 1

    def curves(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """(frame number at the centre of each bin, lowest, mean, highest)."""
        bins = -(-self.count // self.width)
        starts = np.arange(bins, dtype=np.float32) * self.width
        counts = np.minimum(self.width, self.count - starts)
        mean = self._sum[:bins] / counts
        middle = starts + (counts - 1) / 2
        return middle.astype(np.float32), self._low[:bins], mean.astype(np.float32), self._high[:bins]


class Moment(NamedTuple):
    """A frame that is shown in the chart."""

    frame: int
    time_s: float
    surprise: float
    picture: NDArray[np.uint8]


class Highlights:
    """The most surprising frames, with a distance of at least 1/16 of the frames so far."""

    def __init__(self, count: int = 8, side: int = 160) -> None:
        self.count, self.side = count, side
        self._best: list[Moment] = []

    def add(self, number: int, image: NDArray[np.generic], result: Result) -> None:
        """Consider the `number`-th frame seen."""
        if len(self._best) == self.count and result.surprise <= self._best[-1].surprise:
            return
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        crop = to_uint8(image[top : top + side, left : left + side])
        picture = fit(crop, self.side, self.side)
        self._best.append(Moment(number, result.time_s, result.surprise, picture))
        self._best.sort(key=lambda moment: -moment.surprise)
        self._best = self._spread(number)

    def _spread(self, seen: int) -> list[Moment]:
        kept: list[Moment] = []
        for moment in self._best:
            if all(abs(moment.frame - other.frame) >= max(8, seen // 16) for other in kept):
                kept.append(moment)
        return kept[: self.count]

    def in_order(self, seen: int, threshold: float = 3.0, least: int = 4) -> list[Moment]:
        """Those above a threshold, ordered by time; if there are fewer than `least`, the highest `least`."""
        best = self._spread(seen)
        above = sum(moment.surprise > threshold for moment in best)
        return sorted(best[: max(above, least)], key=lambda moment: moment.frame)


class Trace:
    """The curves and highlights of one stream, updated with each frame."""

    def __init__(self) -> None:
        self.surprise, self.learned, self.latency = Envelope(), Envelope(), Envelope()
        self.highlights = Highlights()
        self.first_s = self.last_s = 0.0
        self.times: list[float] = []  # of the first `SHORT` frames
        self.first_index = 0

    @property
    def frames(self) -> int:
        """The number of frames so far."""
        return self.surprise.count

    def add(self, image: NDArray[np.generic], result: Result) -> None:
        """Add one frame and its result."""
        if not self.frames:
            self.first_s, self.first_index = result.time_s, result.index
        self.last_s = result.time_s
        if self.frames < SHORT:
            self.times.append(result.time_s)
        self.highlights.add(self.frames, image, result)
        self.surprise.add(result.surprise)
        self.learned.add(result.learned)
        self.latency.add(result.latency_ms)

    @property
    def short(self) -> bool:
        """Whether the run is so short that it is drawn frame by frame."""
        return self.frames <= SHORT

    def along(self, numbers: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """The positions of frame numbers along the chart: at their times, evenly spaced between the first and the last;
        in a short run at the numbers themselves."""
        if self.short:
            return numbers
        return self.first_s + numbers * ((self.last_s - self.first_s) / (self.frames - 1))

    def place_of(self, index: int) -> float:
        """The position along the chart of the frame with this index in the source."""
        return float(self.along(np.array([index - self.first_index], dtype=np.float32))[0])

    def limits(self) -> tuple[float, float]:
        """The limits of the chart."""
        if self.short:
            return -0.5, self.frames - 0.5
        return self.first_s, max(self.last_s, self.first_s + 0.1)
