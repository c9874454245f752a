"""Gate: decides which rises of the surprise are events."""

from dataclasses import dataclass
from typing import Any

PRESETS = {"low": 6.0, "normal": 3.0, "high": 2.0}
"""Thresholds of the surprise by sensitivity."""
STEP_S = 1.0  # longest duration of a frame, because clocks jump


@dataclass
class Gate:
    """An event begins when the surprise exceeds `threshold` and then stays above half of it for `least_s` seconds. It
    ends after `hold_s` seconds below half of it.

    peak: the highest surprise since the last crossing. rising: above the threshold, but not yet for `least_s`. going:
    an event has begun and not ended. The state has four numbers.
    """

    threshold: float = PRESETS["normal"]
    least_s: float = 0.0
    hold_s: float = 0.5
    rising: bool = False
    going: bool = False
    peak: float = 0.0
    above_s: float = 0.0
    below_s: float = 0.0
    last_s: float | None = None

    def push(self, surprise: float, time_s: float) -> tuple[str, ...]:
        """Add a frame; returns "rise" if the surprise crosses the threshold, "begin" and "end" of an event."""
        step = 0.0 if self.last_s is None else min(max(time_s - self.last_s, 0.0), STEP_S)
        self.last_s = time_s
        low = surprise < self.threshold / 2
        said: list[str] = []
        if not self.rising and not self.going:
            if surprise <= self.threshold:
                return ()
            self.rising, self.peak, self.above_s, self.below_s = True, surprise, 0.0, 0.0
            said.append("rise")
        else:
            self.peak = max(self.peak, surprise)
            self.above_s += step
        if self.rising:
            if low:
                self.rising = False
                return ()
            if self.above_s >= self.least_s:
                self.rising, self.going = False, True
                said.append("begin")
        else:
            self.below_s = self.below_s + step if low else 0.0
            if self.below_s >= self.hold_s:
                self.going = False
                said.append("end")
        return tuple(said)

    def state(self) -> dict[str, Any]:
        """The values that `restore` needs (JSON-able)."""
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`. An event that had not ended is ended, because its end is unknown."""
        for name in vars(self):
            if name in state:
                setattr(self, name, state[name])
        self.rising = self.going = False
