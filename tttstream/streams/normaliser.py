"""The surprise of a frame on a scale that means the same on every stream."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Normaliser:
    """Turns a stream of positive losses into standard scores against the stream's own recent past.

    The score of a frame is (log loss - expected) / deviation. What is expected goes on from a level and a slope, Holt's
    linear trend (doi 10.1016/j.ijforecast.2003.09.015), since the loss of a memory that learns falls, fast at first;
    the deviation is that of what was not expected over roughly the last 1 / (1 - decay) frames, of a shorter past its
    last quarter most. A frame counts towards slope and deviation with at most `clip` deviations, so that an event does
    not hide the one after it. The first frame, when nothing is learned yet, counts nowhere; the first `warmup` frames
    score 0. Four numbers are kept, for ever.

    follow: share of the unexpected that moves the level. bend: share of that which moves the slope.
    """

    decay: float = 0.99
    clip: float = 3.0
    warmup: int = 8
    follow: float = 0.3
    bend: float = 0.1
    count: int = 0
    level: float = 0.0
    slope: float = 0.0
    variance: float = 0.0

    FLOOR = 0.003
    """Least deviation of the log loss: a change of one per cent of the loss is an event, even on a still picture."""

    def push(self, loss: float) -> float:
        """The score of this frame, and learn from it."""
        value = math.log(max(loss, 1e-12))
        expected = self.level + self.slope
        unexpected = value - expected
        deviation = max(math.sqrt(self.variance), self.FLOOR)
        first = self.count < 2 or math.isnan(self.level)
        score = 0.0 if first or self.count < self.warmup else unexpected / deviation
        self.count += 1
        if first:
            self.level = value
            return score
        recent = 4.0 / (self.count + 3.0)
        step, follow = max(1.0 - self.decay, recent), max(self.follow, recent)
        change = unexpected
        if self.count > self.warmup:
            change = min(max(change, -self.clip * deviation), self.clip * deviation)
        self.level = expected + follow * unexpected
        self.slope += follow * self.bend * change
        self.variance = (1.0 - step) * self.variance + step * change * change
        return score

    def restart(self) -> None:
        """Another stream of the same kind begins, whose level and slope are its own. The next frame scores 0."""
        self.level, self.slope = math.nan, 0.0

    def state(self) -> dict[str, float]:
        """The values that `restore` needs to continue bit for bit."""
        return {"count": self.count, "level": self.level, "slope": self.slope, "variance": self.variance}

    def restore(self, state: dict[str, float]) -> None:
        """Go on where `state()` was taken."""
        self.count = int(state["count"])
        self.level, self.slope, self.variance = (float(state[name]) for name in ("level", "slope", "variance"))
