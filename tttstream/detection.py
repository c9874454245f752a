"""Finds events in a stream's surprise, and measures how well it does so beside two things a user could do instead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.frames import Result
from tttstream.sources.base import Event

RIVALS = ("surprise", "frame_difference", "mog2")


@dataclass
class Detected:
    """One event: where surprise rose above the threshold, and the highest it came to."""

    index: int
    time_s: float
    surprise: float


class EventDetector:
    """Events are rises of the surprise above `threshold`; one lasts until it stayed below `release` for `hold` frames.

    events: the latest 10,000 of them. total: how many there were.
    """

    def __init__(self, threshold: float = 3.0, release: float = 1.5, hold: int = 5) -> None:
        self.threshold, self.release, self.hold = threshold, release, hold
        self.events: deque[Detected] = deque(maxlen=10_000)
        self.total = 0
        self._quiet = hold

    def update(self, result: Result) -> bool:
        """Take in one frame's result; True where an event begins."""
        begins = self._quiet >= self.hold and result.surprise > self.threshold
        if begins:
            self.events.append(Detected(result.index, result.time_s, result.surprise))
            self.total += 1
            self._quiet = 0
        elif self._quiet < self.hold:
            self._quiet = self._quiet + 1 if result.surprise < self.release else 0
            self.events[-1].surprise = max(self.events[-1].surprise, result.surprise)
        return begins


def auroc(positive: NDArray[np.floating[Any]], negative: NDArray[np.floating[Any]]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))


class Comparison:
    """Scores of surprise, frame difference and OpenCV's MOG2 on the same frames, set against planted events.

    frame difference: mean absolute difference to the frame before. mog2: share of pixels that OpenCV's background
    model (its own defaults, shadows off) calls foreground. The last `capacity` frames are kept (12 bytes each).
    """

    def __init__(self, capacity: int = 200_000) -> None:
        import cv2

        self._scores = np.full((len(RIVALS), capacity), np.nan, dtype=np.float32)
        self._background = cv2.createBackgroundSubtractorMOG2(detectShadows=False)
        self._before: NDArray[np.uint8] | None = None
        self._last = -1

    def add(self, image: NDArray[np.uint8], result: Result) -> None:
        """Take in one frame, as the model saw it [S, S, 3] uint8, and what the stream said of it."""
        import cv2

        before = image if self._before is None else self._before
        difference = float(cv2.norm(image, before, cv2.NORM_L1)) / image.size
        foreground = cv2.countNonZero(self._background.apply(image)) / image[..., 0].size
        self._scores[:, result.index % self._scores.shape[1]] = result.surprise, difference, foreground
        self._before, self._last = image.copy(), result.index

    def report(self, planted: Sequence[Event], *, onset: int = 10, warmup: int = 50) -> dict[str, dict[str, Any]]:
        """For each detector, how well its score finds the planted events.

        auroc: of frames within `onset` frames of an event's start against frames of no event; the rest of an event,
        `onset` frames after its end and the first `warmup` frames of the stream count as neither.
        found: share of the events with a score above the level that 1% of the frames of no event exceed, before the
        event ends or within `onset` frames. delay_frames: median over the found ones, 0 for the first frame.
        """
        capacity = self._scores.shape[1]
        first = max(0, self._last + 1 - capacity)
        scores = self._scores[:, np.arange(first, self._last + 1) % capacity]
        events = [event for event in planted if first + warmup <= event.start <= self._last]
        free = np.ones(scores.shape[1], dtype=bool)
        free[:warmup] = False
        starts = np.zeros_like(free)
        for event in events:
            start = event.start - first
            free[start : event.stop - first + onset] = False
            starts[start : start + onset] = True
        free &= np.isfinite(scores[0])
        starts &= np.isfinite(scores[0])
        return {
            name: self._judge(row, free, starts, events, first, onset) for name, row in zip(RIVALS, scores, strict=True)
        }

    @staticmethod
    def _judge(
        row: NDArray[np.float32],
        free: NDArray[np.bool_],
        starts: NDArray[np.bool_],
        events: Iterable[Event],
        first: int,
        onset: int,
    ) -> dict[str, Any]:
        level = np.quantile(row[free], 0.99) if free.any() else np.inf
        delays: list[int] = []
        count = 0
        for event in events:
            start = event.start - first
            hits = np.flatnonzero(row[start : max(event.stop - first, start + onset)] > level)
            delays += [int(hits[0])] if len(hits) else []
            count += 1
        value = auroc(row[starts], row[free])
        return {
            "auroc": round(value, 4) if np.isfinite(value) else None,
            "events": count,
            "found": round(len(delays) / count, 4) if count else None,
            "delay_frames": float(np.median(delays)) if delays else None,
        }
