"""Frames of a ROS 2 bag: one topic of images, with poses from another one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.io.names import shown
from tttstream.poses import Track
from tttstream.sources.base import Source
from tttstream.sources.posed import Posed
from tttstream.sources.robots.images import IMAGES, picture
from tttstream.sources.robots.poses import track
from tttstream.sources.robots.recording import DAMAGE, Recording, Topic

CLOCKS = ("header", "log")


class Bag(Source):
    """The images of one topic of a bag (`.mcap`, or the folder of a rosbag2), in the order of writing.

    path: the bag. topic: of sensor_msgs/msg/Image or CompressedImage; the only one of these unless given. clock: the
    time of a frame is the stamp in its "header", or the time at which it was recorded, "log"; a bag whose first header
    has no stamp uses the log, and `about` says so. on_error: for messages that cannot be read or are not later than the
    one before. "skip" skips and counts them, "raise" raises SourceError. first: the number of the first message to
    read; times count from message 0.

    `origin` is the time of the first frame in seconds since 1970 (or since the start of the robot's clock). `truncated`
    is true after a file ended early. Raises SourceError if the path is no bag, if the topic does not exist or has no
    images, or at the end if no image could be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Recording,
        *,
        topic: str | None = None,
        clock: str = "header",
        on_error: str = "skip",
        first: int = 0,
    ) -> None:
        if clock not in CLOCKS:
            raise SourceError(f"clock is {clock!r}, expected header or log")
        self.recording = path if isinstance(path, Recording) else Recording(Path(path))
        self._strict = on_error == "raise"
        self._topic: Topic = self.recording.find(topic, IMAGES, "images")
        self.name = shown(f"{self.recording.path.name}:{self._topic.name}")
        self.frames = self._topic.count
        start = next((stamped for stamped in self.recording.messages(self._topic.name) if stamped is not None), None)
        if start is None:
            raise SourceError(f"no message of {self.name} can be decoded; {self._broken()}")
        self.clock = "log" if clock == "log" or not start.header else "header"
        self.about = "times by the log" + ("" if clock == "log" else ", since the first header has none")
        if self.clock == "header":
            self.about = "times by the headers"
        self._start = start.log if self.clock == "log" else start.header
        self.origin = self._start / 1e9
        last = self.recording.last(self._topic.name)
        self.fps = (self.frames - 1) / (last - start.log) * 1e9 if last is not None and last > start.log else None
        self._index = self._late = 0
        self._place = first
        self._last: int | None = None
        self._why = ""
        self.truncated = self.recording.truncated

    def __iter__(self) -> Iterator[Frame]:
        for stamped in self.recording.messages(self._topic.name, self._place):
            self._place += 1
            try:
                if stamped is None:
                    raise ValueError("it cannot be decoded")
                moment = stamped.log if self.clock == "log" else stamped.header
                if self._last is not None and moment <= self._last:
                    self._late += 1
                    raise ValueError(
                        f"its {self.clock} says {moment / 1e9:.6f} s, not after {self._last / 1e9:.6f} s before it"
                    )
                image = picture(stamped.message)
            except DAMAGE as error:
                said = f"message {self._place - 1}: {' '.join(str(error).split())}"
                self.skipped += 1
                self._why = self._why or said
                if self._strict:
                    raise SourceError(f"{self.name}, {said}") from error
                continue
            self._index, self._last = self._index + 1, moment
            yield Frame(image, self._index - 1, (moment - self._start) / 1e9)
        self.truncated = self.recording.truncated
        if self.truncated and self._strict:
            raise SourceError(self._broken())
        if not self._index:
            raise SourceError(f"not one of {self._place} images of {self.name} can be read; {self._broken()}")

    def _broken(self) -> str:
        return self._why or self.recording.why or "see what was recorded"

    def place(self, frame: Frame) -> int:
        return self._place - 1

    def remarks(self) -> list[str]:
        found = [self.recording.why] if self.recording.why else []
        if self.skipped:
            found.append(f"{self.skipped} messages skipped, the first: {self._why}")
        if self._late:
            other = "header" if self.clock == "log" else "log"
            found.append(f"{self._late} images were not later than those before them: try --clock {other}")
        return found

    def position(self) -> dict[str, Any]:
        """The number of the next frame and of the next message, and the time of the last frame."""
        counts = {"index": self._index, "place": self._place, "skipped": self.skipped, "late": self._late}
        return {"source": self.name, **counts, "last": self._last, "clock": self.clock}

    def seek(self, position: dict[str, Any]) -> None:
        """Continue with the message after the last one yielded."""
        self._check(position)
        if position["place"] > self._topic.count or position["clock"] != self.clock:
            raise SourceError(
                f"{self.name} has changed, or uses another clock: it has {self._topic.count} messages by the "
                f"{self.clock}, the position is at {position['place']} by the {position['clock']}"
            )
        self._index, self._place, self._last = position["index"], position["place"], position["last"]
        self.skipped, self._late = position["skipped"], position["late"]


def posed(bag: Bag, pose: str | Track, *, tolerance: float | None = None, on_error: str = "skip") -> Posed:
    """The images of a bag, each with its pose. pose: a topic and its values, see `poses.wanted`; or a Track. tolerance:
    the largest time in seconds between a frame and the nearest pose; see `tttstream.poses.Track`. Raises SourceError if
    images and poses have no common time."""
    found = pose
    if isinstance(found, str):
        found = track(bag.recording, found, clock=bag.clock, tolerance=tolerance, on_error=on_error)
    try:
        source = Posed(bag, found, on_error=on_error)
    except SourceError as error:
        other = "header" if bag.clock == "log" else "log"
        raise SourceError(f"{error} (both use the clock {bag.clock}; try --clock {other})") from error
    source.about = f"{bag.about}; {source.about}"
    return source
