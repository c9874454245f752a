"""Frames of a video file or URL, decoded by PyAV one at a time and never ahead of the reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.io.addresses import checked, public
from tttstream.io.names import shown
from tttstream.sources.base import Source
from tttstream.sources.decoder import VideoDecoder, checksum
from tttstream.sources.listing import STDIN
from tttstream.sources.pipes import flows, why

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtp", "udp", "srt"}
NETWORK_TIMEOUT_S = 10.0
EVEN = 8  # after this number of frames at one rate a gap does not count as a variable rate


class Video(Source):
    """The longest video stream of a file or URL, converted by `pictures.Display`, with the times of its frames.

    path: file, URL, pipe, or - for the standard input. timeout_s: the longest time without data from a URL. on_error:
    for damage. "skip" skips damaged frames, counts them in `skipped`, and ends when nothing more can be read; "raise"
    raises SourceError after the good frames before the damage. `truncated` is true after a packet or frame is damaged,
    after a read error, if the file ends well before the duration in its header or, in formats without one (MPEG-TS,
    GIF), within one of its parts, or if it has a gap. A gap is more than a second in which a stream of constant rate
    has no frame, no frame has such a duration, and there is no sound. Any other interval is a pause, as in recordings
    of a variable rate of still scenes. Matroska, FLV and MPEG-TS may have no durations of frames: without sound, a
    pause in a stream of constant rate then counts as a gap. `time_s` counts from the first frame and strictly
    increases; a variable rate is kept. It is the presentation time. If the format has none and the data are from a pipe
    or the network (Motion JPEG of a camera), it is the arrival time, and the source is live.

    Raises SourceError if the file cannot be opened, contains no video, or has no frame that can be decoded and
    converted.
    """

    def __init__(self, path: str, *, on_error: str = "skip", timeout_s: float = NETWORK_TIMEOUT_S) -> None:
        self._path, self._strict, self._timeout_s = path, on_error == "raise", timeout_s
        self._once = flows(path)
        self.name = shown(path if self._once else path.replace("\\", "/").rsplit("/", 1)[-1])
        if path == STDIN:
            self.name = "standard input"
        if "://" in path:  # the complete address, but without a password
            checked(path)
            self.live = urlsplit(path).scheme in LIVE_SCHEMES
            self.name = shown(public(path))
        self._decoder: VideoDecoder | None = None
        self._rewind()

    def _rewind(self) -> VideoDecoder:
        """Reopen the file and decode its first frame."""
        self.close()
        self._decoder = decoder = VideoDecoder(self._path, self.name, self._strict, self._timeout_s)
        self.fps, self.frames, self.estimated = decoder.fps, decoder.frames, not decoder.stream.frames
        self._pictures = iter(decoder)
        self._pending = next(self._pictures, None)
        if self._pending is None:
            said = why(self._path, decoder.file, "convert it, for example with ffmpeg")
            self.close()
            raise SourceError(f"no frame of {self.name} can be decoded; {said}")
        self.live = self.live or decoder.by_arrival
        try:
            decoder.display.show(self._pending[0])  # raises an error for pictures that cannot be converted
        except SourceError:
            self.close()
            raise
        self._origin = self._pending[1]
        self._index, self._last = 0, self._pending
        self._regular, self._hole = True, False
        return decoder

    def __iter__(self) -> Iterator[Frame]:
        while self._decoder is not None and (picture := self._next_picture()) is not None:
            image, stamp = picture
            time_s = float((stamp - self._origin) * self._decoder.tick)
            self._index += 1
            self._judge(self._decoder)
            arrived = self._decoder.arrived if self.live else None
            yield Frame(self._decoder.display.show(image), self._index - 1, time_s, captured=arrived)

    def _judge(self, decoder: VideoDecoder) -> None:
        """Check whether the number of the last frame is its number in the file.

        Before a damaged frame this is true for all frames; after it the numbers are unknown. A file without a frame
        count may have lost frames in a gap of a constant rate without any other sign.
        """
        fits = self.skipped > 0 or self._by_time() == self._index - 1
        self._hole |= self._regular and not fits and self._index > EVEN and not decoder.stream.frames
        self._regular &= fits

    def _by_time(self) -> int | None:
        """The number of the last frame by its time, at a constant rate."""
        if self._decoder is None or not self.fps:
            return None
        return round((float(self._last[1] * self._decoder.tick) - self._decoder.start) * self.fps)

    def place(self, frame: Frame) -> int | None:
        """See Source. After damage it follows from the time, if the rate was constant before."""
        if not self.skipped:
            return None if self._hole else frame.index
        return self._by_time() if self._regular else None

    def _next_picture(self) -> tuple[VideoFrame, int] | None:
        try:
            picture = self._pending or next(self._pictures, None)
        finally:
            if self._decoder is not None:
                self.skipped, self.truncated = self._decoder.skipped, self._decoder.truncated
        self._pending = None
        self._last = picture or self._last
        return picture

    def position(self) -> dict[str, Any]:
        """The number of the next frame, and the time stamp and a checksum of the last one, with which `seek` finds
        it."""
        position: dict[str, Any] = {"source": self.name, "index": self._index}
        if self._index and self._decoder is not None:
            image, stamp = self._last
            position |= {
                "stamp": stamp,
                "crc": checksum(image),
                "even": [self._regular, self._hole],
                **self._decoder.history(),
            }
        return position

    def seek(self, position: dict[str, Any]) -> None:
        """Continue after frame `index - 1`, found by its time stamp and checksum, or else by decoding from the start.

        A live stream and a pipe cannot be rewound: they continue with the next frame, and only the count is restored.
        """
        self._check(position)
        index = position["index"]
        if self._once:
            self._index = index
            return
        decoder = self._rewind()
        if index and not self.live and not self._jump(decoder, position):
            self._rewind()
            passed = sum(1 for _ in zip(range(index), iter(self._next_picture, None), strict=False))
            if passed < index or checksum(self._last[0]) != position["crc"]:
                raise SourceError(f"{self.name} has changed: frame {index - 1} is not the frame of the position")
        self._index = index
        self._regular, self._hole = position.get("even", (index == 0, False))

    def _jump(self, decoder: VideoDecoder, position: dict[str, Any]) -> bool:
        """Seek to the key frame before the position and decode up to it; False if this does not find it."""
        stamp = position["stamp"]
        if not position["exact"] or not decoder.jump(position):
            return False
        self._pictures, self._pending = iter(decoder), None
        while (picture := self._next_picture()) is not None and picture[1] < stamp:
            pass
        return picture is not None and picture[1] == stamp and checksum(picture[0]) == position["crc"]

    def close(self) -> None:
        """Close the file."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
