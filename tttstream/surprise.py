"""The surprise of a frame on a scale that means the same on every stream."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Normaliser:
    """Turns a stream of positive losses into standard scores against the stream's own recent past.

    The score of a frame is (log loss - mean) / deviation, with mean and deviation of the log loss over roughly the
    last 1 / (1 - decay) frames before it; of a shorter past the last quarter counts most, since a fresh memory learns
    fast at first and what its loss was then means little. A frame counts towards them with at most `clip` deviations,
    so that an event does not hide the one after it. The first `warmup` frames score 0. Six numbers, for ever.
    """

    decay: float = 0.99
    clip: float = 3.0
    warmup: int = 8
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    FLOOR = 0.01
    """Least deviation of the log loss: one per cent of the loss counts as no surprise even on a still picture."""

    def push(self, loss: float) -> float:
        """The score of this frame, and learn from it."""
        value = math.log(max(loss, 1e-12))
        deviation = max(math.sqrt(self.variance), self.FLOOR)
        score = (value - self.mean) / deviation if self.count >= self.warmup else 0.0
        self.count += 1
        step = max(1.0 - self.decay, 4.0 / (self.count + 3.0))
        change = value - self.mean
        if self.count > self.warmup:
            change = min(max(change, -self.clip * deviation), self.clip * deviation)
        self.mean += step * change
        self.variance = (1.0 - step) * (self.variance + step * change * change)
        return score

    def state(self) -> dict[str, float]:
        """What `restore` needs to go on bit for bit."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def restore(self, state: dict[str, float]) -> None:
        """Go on where `state()` was taken."""
        self.count = int(state["count"])
        self.mean, self.variance = float(state["mean"]), float(state["variance"])
