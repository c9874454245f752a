"""The pictures of one video, decoded by PyAV one at a time, and how the video ended."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tttstream.errors import DependencyError, SourceError
from tttstream.io.addresses import advice
from tttstream.sources.endings import ends_within
from tttstream.sources.jpeg import is_whole
from tttstream.sources.pipes import Pipe, handed, why

try:
    import cv2  # noqa: F401 - before PyAV: where it comes after, the first window of OpenCV hangs
    import av  # isort: skip
    from tttstream.sources.pictures import Display
except ImportError as error:
    raise DependencyError("reading videos needs PyAV: pip install av") from error

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

HEADERS_WITH_DURATION = {"mov", "mp4", "matroska", "webm", "avi", "flv", "asf"}
HOLE_S = 1.0
SLACK_S = 0.25
ROUNDING_S = 0.002  # of time stamps, in containers that count milliseconds
NO_TIMES = 0x80  # FFmpeg's flag of formats without time stamps, which gives them 25 frames a second or so
ARRIVAL_TICK = Fraction(1, 1_000_000)
FAILURES = (av.error.FFmpegError, OSError, ValueError)  # FFmpeg's own are not all OSErrors


class VideoDecoder:
    """One pass over an open file: yields (picture, time stamp) and records damaged and missing parts.

    exact: whether a time stamp identifies a frame: the time stamps are from the file and increase, and nothing was
    damaged.
    """

    def __init__(self, path: str, name: str, strict: bool, timeout_s: float) -> None:
        self.path, self.name, self.strict, self.timeout_s = path, name, strict, timeout_s
        self.file: Any = None
        try:
            self.file = handed(path)
            self.container = av.open(self.file, timeout=timeout_s if "://" in path else None)
        except FAILURES as error:
            if isinstance(self.file, Pipe):
                self.file.close()
            if isinstance(error, av.error.ExitError):
                raise SourceError(f"{name}: {self._said(error)}; see whether it sends, and start again") from error
            said = why(path, self.file, reason(error))
            then = advice(said) if "://" in path else "is it complete, and a video?"
            raise SourceError(f"{name} cannot be read as a video ({said}); {then}") from error
        self.formats = set(self.container.format.name.split(","))
        try:
            self.stream = longest_stream(self.container, name)
            self.display = Display.of(self.stream, name)
        except SourceError:
            self.close()
            raise
        size = self.container.size  # negative if no end is known
        timeless = bool(self.container.format.flags & NO_TIMES) or self.container.format.name.endswith("_pipe")
        self.by_arrival = timeless and (size is None or size <= 0)
        self.tick = ARRIVAL_TICK if self.by_arrival else self.stream.time_base or Fraction(1, 1000)
        rate = self.stream.average_rate
        self.fps = float(rate) if rate else None
        self.step = max(1, round(1 / (rate * self.tick))) if rate else 1
        self.start = float((self.stream.start_time or 0) * self.tick)
        self.end = self._promised_end()
        self.frames = self.stream.frames or round((self.end - self.start) * (self.fps or 0)) or None
        self.skipped, self.truncated = 0, False
        self.exact = "avi" not in self.formats  # AVI has no presentation times
        self.stamp: int | None = None
        self.reach = self.start
        self.arrived = 0.0  # arrival time of the last packet, by the clock of the process
        self.longest, self.second = 0, 0  # the two longest intervals between frames so far
        self.steps = {float(1 / known) for known in (rate, self.stream.base_rate) if known}
        self.steady = bool(self.steps)  # whether all intervals of up to `HOLE_S` keep to the rate
        self.judged = -(2**63)  # the intervals up to this time stamp were noted before a jump
        self.due: float | None = None  # the end of the latest packet that was read
        self.silent = 0.0  # the longest time that no packet covers

    def close(self) -> None:
        """Close the container, and the pipe behind it."""
        self.container.close()
        if isinstance(self.file, Pipe):
            self.file.close()

    def _promised_end(self) -> float:
        """The end of the stream in seconds, from the header; its start, if the header has no duration."""
        if not self.formats & HEADERS_WITH_DURATION:
            return self.start
        if "avi" in self.formats and self.fps:  # FFmpeg adapts the duration to the rest of the file
            return self.start + self.stream.frames / self.fps
        if self.stream.duration:
            return self.start + _duration(self.stream)
        return _duration(self.stream) or (self.container.duration or 0) / av.time_base

    def _said(self, error: Exception) -> str:
        """The reason of a failure. FFmpeg reports a timeout as an exit."""
        return f"no data for {self.timeout_s:g} s" if isinstance(error, av.error.ExitError) else reason(error)

    def history(self) -> dict[str, Any]:
        """The state that `jump` needs so that later frames are checked as if read from the start."""
        intervals = {"longest": self.longest, "second": self.second, "steady": self.steady, "silent": self.silent}
        return {"exact": self.exact, **intervals}

    def jump(self, position: dict[str, Any]) -> bool:
        """Move to the last key frame at or before a time stamp; False if the container cannot."""
        try:
            self.container.seek(position["stamp"], stream=self.stream)
        except FAILURES:
            return False
        self.stamp, self.longest, self.second = None, position["longest"], position["second"]
        self.steady, self.silent, self.due = position.get("steady", False), position.get("silent", 0.0), None
        self.judged = position["stamp"]
        return True

    def __iter__(self) -> Iterator[tuple[VideoFrame, int]]:
        for picture in self._pictures():
            if picture.is_corrupt:
                self._damaged("a damaged picture")
                continue
            # AVI stores decoding times only; its pts are guesses and not monotonic.
            stamp = picture.dts if "avi" in self.formats else picture.pts
            if self.by_arrival:
                stamp = round(self.arrived / ARRIVAL_TICK)
            if stamp is None or (self.stamp is not None and stamp <= self.stamp):
                self.exact = False
                stamp = 0 if self.stamp is None else self.stamp + self.step
            if self.stamp is not None and stamp > self.judged:
                self._note_interval(stamp - self.stamp)
            self.stamp = stamp
            yield picture, stamp
        self._judge_the_end()

    def _note_interval(self, ticks: int) -> None:
        self.second, self.longest = sorted((self.second, self.longest, ticks))[1:]
        seconds, rounding = float(ticks * self.tick), max(ROUNDING_S, float(2 * self.tick))
        if seconds <= HOLE_S and self.steady:
            self.steady = any(abs(seconds - step) <= rounding for step in self.steps)

    def _pictures(self) -> Iterator[VideoFrame]:
        own_clock = _duration(self.stream) > 0
        # All streams: the end of the longest one separates a cut file from a short stream
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets, None)
            except FAILURES as error:
                self._broke_off(f"reading failed ({self._said(error)})")
                packet = None
            if packet is None:
                return
            self.arrived = time.monotonic()
            self._note_silence(packet)
            mine = packet.stream is self.stream
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None and (mine or not own_clock):
                self.reach = max(self.reach, float((stamp + (packet.duration or 0)) * (packet.time_base or 0)))
            if not mine:
                continue
            try:
                pictures = decode(self.stream, packet)
            except FAILURES as error:
                self._damaged(f"a damaged packet ({reason(error)})")
            else:
                yield from pictures

    def _note_silence(self, packet: Packet[Any]) -> None:
        """The gap in time before a packet, over all streams."""
        start = packet.pts if packet.dts is None else packet.dts
        if start is None or packet.time_base is None:
            return
        if self.due is not None and "avi" not in self.formats:  # in AVI, frames left out are written down as empty
            self.silent = max(self.silent, float(start * packet.time_base) - self.due)
        end = float((start + (packet.duration or 0)) * packet.time_base)
        self.due = end if self.due is None else max(self.due, end)

    def _judge_the_end(self) -> None:
        tick = float(self.tick)
        missing = self.end - self.reach
        if missing > SLACK_S + 2 * self.second * tick:
            self._broke_off(f"the last {missing:.1f} of {self.end - self.start:.1f} s are missing")
        elif ends_within(self.path, self.formats):
            self._broke_off("the file ends in the middle of a part")
        elif self.steady and min(self.silent, self.longest * tick) > max(HOLE_S, 10 * min(self.steps)):
            self._broke_off(f"{self.longest * tick:.1f} s are missing in the middle")

    def _damaged(self, what: str) -> None:
        self.skipped += 1
        self.exact = False
        self._broke_off(what)

    def _broke_off(self, why: str) -> None:
        self.truncated = True
        if self.strict:
            where = (
                "at its start" if self.stamp is None else f"after {float(self.stamp * self.tick) - self.start:.2f} s"
            )
            raise SourceError(f"{self.name} is damaged or cut off {where}: {why}; on_error=skip reads the rest")


def longest_stream(container: InputContainer, name: str) -> VideoStream:
    """The longest video stream. Cover pictures do not count. Raises SourceError if there is none."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise SourceError(f"{name} contains no video stream")
    return max(streams, key=lambda stream: (_duration(stream), stream.frames, stream.width * stream.height))


def _duration(stream: VideoStream) -> float:
    """The duration in seconds from the header of the stream, 0 if it has none (Matroska stores it in a tag)."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def reason(error: Exception) -> str:
    """The message of FFmpeg or the system, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def decode(stream: VideoStream, packet: Packet[Any]) -> list[VideoFrame]:
    """The pictures of a packet. Raises one of `FAILURES` for a damaged one.

    FFmpeg decodes a JPEG that is cut off without an error unless it is strict.
    """
    if stream.codec_context.name == "mjpeg":
        if not stream.codec_context.is_open:
            stream.codec_context.options = {"err_detect": "explode"}
        # Some AVI writers omit the end marker.
        if packet.size and "avi" not in stream.container.format.name and not is_whole(bytes(packet)):
            raise ValueError("a JPEG is cut off")
    return stream.decode(packet)


def checksum(picture: VideoFrame) -> int:
    """CRC-32 of the pixels as RGB."""
    return zlib.crc32(picture.to_ndarray(format="rgb24").tobytes())
