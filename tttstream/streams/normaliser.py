"""Normalises losses of frames to surprise, a scale with the same meaning for every stream."""

import math
from dataclasses import dataclass


@dataclass
class Normaliser:
    """Converts a stream of positive losses to standard scores relative to the recent past of the stream.

    The score of a frame is (log loss - expected) / deviation. The expected value is the extrapolation of a level and a
    slope, Holt's linear trend (doi 10.1016/j.ijforecast.2003.09.015), because the loss of a memory that learns falls,
    fast at first. The deviation is that of the prediction errors over roughly the last 1 / (1 - decay) frames; early in
    a stream the last quarter of the frames has the most weight. The error of a frame enters slope and deviation with at
    most `clip` deviations, so that an event does not hide the next one. The first frame, before any learning, is
    ignored; the first `warmup` frames score 0. The state is four numbers.

    follow: share of the prediction error that is added to the level. bend: share of this change that is added to the
    slope.
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
        """Return the score of this frame, and update the state."""
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
        """Start another stream of the same kind, with a new level and slope. The next frame scores 0."""
        self.level, self.slope = math.nan, 0.0

    def state(self) -> dict[str, float]:
        """The values that `restore` needs to continue bit for bit."""
        return {"count": self.count, "level": self.level, "slope": self.slope, "variance": self.variance}

    def restore(self, state: dict[str, float]) -> None:
        """Continue where `state()` was taken."""
        self.count = int(state["count"])
        self.level, self.slope, self.variance = (float(state[name]) for name in ("level", "slope", "variance"))
