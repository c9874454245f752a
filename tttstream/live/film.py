"""Film: stores the last seconds of a source in small pictures, and makes the clips of events from them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tttstream.errors import FrameError
from tttstream.frames import Frame
from tttstream.views.jpeg import decode, encode, narrowed
from tttstream.views.overlay import fit, to_uint8
from tttstream.views.writer import VideoWriter

AROUND_S = 3.0  # before an event and after it
LONGEST_S = 30.0  # of a clip
WIDTH = 480  # pixels
MOST = 1200  # pictures of a clip


class Still(NamedTuple):
    """A picture as JPEG, and its time in the source in seconds."""

    time_s: float
    jpeg: bytes


@dataclass
class Clip:
    """Pictures around one event. until: the time in the source at which it ends; None while that is unknown."""

    number: int
    stills: list[Still]
    since: float
    until: float | None = None
    finish: Callable[[Clip], None] = field(repr=False, default=lambda clip: None)

    @property
    def whole(self) -> bool:
        """Whether the clip is complete."""
        last = self.stills[-1].time_s if self.stills else self.since
        over = self.until is not None and last >= self.until
        return over or last - self.since >= LONGEST_S or len(self.stills) >= MOST

    def write(self, path: Path, fps: float) -> None:
        """Write the clip as MP4; all pictures are resized to the size of the first. Raises OutputError."""
        size = decode(self.stills[0].jpeg).shape[:2]
        writer = VideoWriter(path, fps)
        with writer:
            for still in self.stills:
                picture = decode(still.jpeg)
                writer.write(picture if picture.shape[:2] == size else fit(picture, *size), still.time_s)


class Film:
    """Takes every frame of a source and keeps the last AROUND_S seconds, in constant memory.

    Two threads share it: that of the source adds frames, the worker begins and ends clips.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stills: deque[Still] = deque(maxlen=MOST // 8)
        self._clips: list[Clip] = []

    def put(self, frame: Frame) -> None:
        """Add a frame; finishes the clips that it completes."""
        try:
            still = Still(frame.time_s, encode(narrowed(to_uint8(frame.image), WIDTH), 75))
        except FrameError:
            return
        with self._lock:
            if self._stills and still.time_s < self._stills[-1].time_s:  # the clock has jumped back
                self._stills.clear()
            self._stills.append(still)
            while self._stills[0].time_s < still.time_s - AROUND_S - 2:
                self._stills.popleft()
            for clip in self._clips:
                clip.stills.append(still)
            whole = [clip for clip in self._clips if clip.whole]
            self._clips = [clip for clip in self._clips if not clip.whole]
        for clip in whole:
            clip.finish(clip)

    def begin(self, number: int, time_s: float, finish: Callable[[Clip], None]) -> None:
        """Begin the clip of an event at a time; `finish` is called with the complete clip, in any thread."""
        since = time_s - AROUND_S
        with self._lock:
            stills = [still for still in self._stills if still.time_s >= since]
            self._clips.append(Clip(number, stills, since, finish=finish))

    def end(self, number: int, time_s: float) -> None:
        """Set the end of the event: its clip continues for AROUND_S after it."""
        with self._lock:
            for clip in self._clips:
                if clip.number == number:
                    clip.until = time_s + AROUND_S

    def close(self) -> None:
        """Finish all clips; no frames follow."""
        with self._lock:
            clips, self._clips = self._clips, []
        for clip in clips:
            if clip.stills:
                clip.finish(clip)
