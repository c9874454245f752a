"""Finds events in a stream's surprise, and compares it with two simple baselines."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.frames import Result
from tttstream.sources.base import Event

Scores = NDArray[np.floating[Any]]
RIVALS = ("surprise", "frame_difference", "mog2")


@dataclass
class Detected:
    """One event: the frame at which the surprise exceeded the threshold, and its maximum."""

    index: int
    time_s: float
    surprise: float


class EventDetector:
    """Events are rises of the surprise above `threshold`. An event ends when the surprise was below `release` for
    `hold` frames.

    events: the latest 10,000 of them. total: their number.
    """

    def __init__(self, threshold: float = 3.0, release: float = 1.5, hold: int = 5) -> None:
        self.threshold, self.release, self.hold = threshold, release, hold
        self.events: deque[Detected] = deque(maxlen=10_000)
        self.total = 0
        self._quiet = hold

    def update(self, result: Result) -> bool:
        """Add the result of one frame; returns True if an event begins."""
        begins = self._quiet >= self.hold and result.surprise > self.threshold
        if begins:
            self.events.append(Detected(result.index, result.time_s, result.surprise))
            self.total += 1
            self._quiet = 0
        elif self._quiet < self.hold:
            self._quiet = self._quiet + 1 if result.surprise < self.release else 0
            self.events[-1].surprise = max(self.events[-1].surprise, result.surprise)
        return begins


def auroc(positive: Scores, negative: Scores) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, with ties as one half."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))


class Baselines:
    """Baselines frame by frame: frame difference and OpenCV's MOG2.

    frame difference: mean absolute difference to the frame before. mog2: share of foreground pixels of OpenCV's
    background model (default options, without shadows).
    """

    def __init__(self) -> None:
        import cv2

        self._background = cv2.createBackgroundSubtractorMOG2(detectShadows=False)
        self._before: NDArray[np.uint8] | None = None

    def scores(self, image: NDArray[np.uint8]) -> tuple[float, float]:
        """Frame difference and mog2 of the next frame [H, W, 3] uint8 of a stream."""
        import cv2

        before = image if self._before is None else self._before
        difference = float(cv2.norm(image, before, cv2.NORM_L1)) / image.size
        foreground = cv2.countNonZero(self._background.apply(image)) / image[..., 0].size
        self._before = image.copy()
        return difference, foreground


class Comparison:
    """Compares the scores of surprise and of `Baselines` on the same frames with planted events.

    The last `capacity` frames are kept (12 bytes each).
    """

    def __init__(self, capacity: int = 200_000) -> None:
        self._scores = np.full((len(RIVALS), capacity), np.nan, dtype=np.float32)
        self._baselines = Baselines()
        self._first: int | None = None
        self._last = -1

    def add(self, image: NDArray[np.uint8], result: Result) -> None:
        """Add one frame, the model's input [S, S, 3] uint8, and the result of the stream."""
        self._scores[:, result.index % self._scores.shape[1]] = result.surprise, *self._baselines.scores(image)
        self._last = result.index
        self._first = result.index if self._first is None else self._first

    def report(self, planted: Sequence[Event], *, window: int = 30, warmup: int = 60) -> dict[str, dict[str, Any]]:
        """For each detector, how well its score finds the planted events, and each kind of event.

        The score of a window is the highest score of its frames. Windows have `window` frames and start at each event;
        free windows have no event in them, no event within one window before them, and are after the first `warmup`
        frames of the stream. auroc: of the events against the free windows. found: share of the events that score above
        the level that 5% of the free windows exceed. delay_frames: frames to that level, median over the found ones; 0
        is the first frame.
        """
        capacity = self._scores.shape[1]
        first = max(self._first or 0, self._last + 1 - capacity)
        scores = np.nan_to_num(self._scores[:, np.arange(first, self._last + 1) % capacity], nan=-np.inf)
        free = np.ones(scores.shape[1], dtype=bool)
        free[:warmup] = False
        for event in planted:
            free[max(0, event.start - first) : max(0, event.stop - first + window)] = False
        starts: dict[str, set[int]] = {}
        for event in planted:
            if first + warmup <= event.start <= self._last:
                starts.setdefault(event.kind, set()).add(event.start - first)
        every = sorted(set().union(*starts.values()))
        report = {}
        for name, row in zip(RIVALS, scores, strict=True):
            chances = np.array([piece.max() for piece in windows(row, free, window)])
            report[name] = _judge(row, every, chances, window)
            report[name]["by_kind"] = {kind: _judge(row, sorted(at), chances, window) for kind, at in starts.items()}
        return report


def windows(row: Scores, free: NDArray[np.bool_], window: int) -> Iterator[Scores]:
    """The consecutive windows of `window` frames in the free intervals of a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], free, [False]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        for at in range(start, stop - window + 1, window):
            yield row[at : at + window]


def _judge(row: Scores, starts: Sequence[int], chances: Scores, window: int) -> dict[str, Any]:
    pieces = [row[start : start + window] for start in starts]
    value = auroc(np.array([piece.max() for piece in pieces]), chances)
    level = np.quantile(chances, 0.95) if len(chances) else np.inf
    delays = [int(np.argmax(piece > level)) for piece in pieces if piece.max() > level]
    return {
        "events": len(pieces),
        "auroc": round(value, 4) if np.isfinite(value) else None,
        "found": round(len(delays) / len(pieces), 4) if len(pieces) and len(chances) else None,
        "delay_frames": float(np.median(delays)) if delays else None,
    }
