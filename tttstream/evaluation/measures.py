"""The cost of a run, in constant memory: percentiles of latency, frames a second, resident memory."""

import math
import time

import numpy as np
import psutil


class Latencies:
    """Percentiles of milliseconds in constant memory: exact up to 10,000 values, then within 0.5%."""

    STEP = math.log(1.01)
    LOW = 1e-3  # ms; 2,400 steps of 1% reach 20 s

    def __init__(self) -> None:
        self._first = np.zeros(10_000)
        self._bins = np.zeros(2_400, dtype=np.int64)
        self.count = 0

    def add(self, value_ms: float) -> None:
        """Add one value."""
        if self.count < len(self._first):
            self._first[self.count] = value_ms
        place = int(math.log(max(value_ms, self.LOW) / self.LOW) / self.STEP)
        self._bins[min(place, len(self._bins) - 1)] += 1
        self.count += 1

    def percentile(self, percent: float) -> float:
        """The value that `percent` of the values do not exceed."""
        if self.count <= len(self._first):
            return float(np.percentile(self._first[: self.count], percent))
        place = int(np.searchsorted(np.cumsum(self._bins), percent / 100 * self.count))
        return self.LOW * math.exp((place + 0.5) * self.STEP)


class Usage:
    """Resident memory of this process in MB: at the start, now, at most, and after the first thousand frames."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.start = self.now = self.most = self.read()
        self.warm: float | None = None

    def read(self) -> float:
        """Resident memory now, MB."""
        return self._process.memory_info().rss / 1e6

    def sample(self, frames: int) -> None:
        """Measure again, after this number of frames."""
        self.now = self.read()
        self.most = max(self.most, self.now)
        if self.warm is None and frames >= 1000:
            self.warm = self.now

    def summary(self) -> dict[str, float | None]:
        """For summary.json; `warm` is null in a run of less than 1,000 frames."""
        warm = None if self.warm is None else round(self.warm, 1)
        return {"start": round(self.start, 1), "warm": warm, "end": round(self.now, 1), "max": round(self.most, 1)}


class Rate:
    """Frames a second: recently (for display), and over the whole run."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._late_s: float | None = None
        self.frames = 0

    def tick(self) -> None:
        """One more frame is done."""
        now = time.perf_counter()
        took, self._last = now - self._last, now
        self._late_s = took if self._late_s is None else self._late_s + 0.05 * (took - self._late_s)
        self.frames += 1

    @property
    def late(self) -> float:
        """Frames a second over the last twenty frames or so."""
        return 1 / max(self._late_s or math.inf, 1e-6)

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last frame."""
        return self._last - self._start

    @property
    def overall(self) -> float:
        """Frames a second from the start to the last frame."""
        return self.frames / max(self.seconds, 1e-9)
