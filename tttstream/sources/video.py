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
EVEN = 8  # frames at one rate, after which a hole is not taken for a variable rate


class Video(Source):
    """A video file or URL: its longest video stream, shown as `pictures.Display` says, with the times of its frames.

    path: file, URL, pipe, or - for the standard input. timeout_s: how long a URL may send nothing. on_error: what to do
    with damage. "skip" passes over damaged frames, counts them in `skipped`, and ends where nothing more can be read;
    "raise" raises SourceError there, after the good frames before it.
    `truncated` turns true when a packet or frame is damaged, when reading breaks off, when the file ends well before
    the time its header promises or, where its format promises none, within one of its parts (MPEG-TS, GIF), or when it
    has a hole. A hole is more than a second in which a stream of constant rate has no frame and nothing at all was due:
    no frame that is said to last so long, no sound. Everything else is a pause, as recordings of a variable rate have
    them where nothing moves. Matroska, FLV and MPEG-TS may not say how long a frame lasts: without sound, a pause among
    frames that all keep to one rate cannot be told from a hole there, and counts as one.
    `time_s` counts from the first frame and strictly increases; a variable rate is kept. It is the time of presentation
    or, where the format has none and data come by a pipe or the network (Motion JPEG of a camera), that of arrival;
    such a source is live.

    Raises SourceError where the file cannot be opened, holds no video, or not one frame of it can be decoded or shown.
    """

    def __init__(self, path: str, *, on_error: str = "skip", timeout_s: float = NETWORK_TIMEOUT_S) -> None:
        self._path, self._strict, self._timeout_s = path, on_error == "raise", timeout_s
        self._once = flows(path)
        self.name = shown(path if self._once else path.replace("\\", "/").rsplit("/", 1)[-1])
        if path == STDIN:
            self.name = "standard input"
        if "://" in path:  # the whole address, but a password must not reach a report
            checked(path)
            self.live = urlsplit(path).scheme in LIVE_SCHEMES
            self.name = shown(public(path))
        self._decoder: VideoDecoder | None = None
        self._rewind()

    def _rewind(self) -> VideoDecoder:
        """Open the file anew and decode its first frame."""
        self.close()
        self._decoder = decoder = VideoDecoder(self._path, self.name, self._strict, self._timeout_s)
        self.fps, self.frames = decoder.fps, decoder.frames
        self._pictures = iter(decoder)
        self._pending = next(self._pictures, None)
        if self._pending is None:
            said = why(self._path, decoder.file, "convert it, for example with ffmpeg")
            self.close()
            raise SourceError(f"not one frame of {self.name} can be decoded; {said}")
        self.live = self.live or decoder.by_arrival
        try:
            decoder.display.show(self._pending[0])  # what cannot be shown is refused here
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
        """Whether the last frame stands where its number says.

        Up to a damaged one all frames should, else the number of those after it is unknown. A file without a count of
        its frames may have lost some where a regular rate has a hole, and nobody tells.
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
        """See Source: after damage by its time, if the rate was constant before."""
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
        """The number of the next frame, with the time stamp and a checksum of the last one to find the place again."""
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
        """Go on after frame `index - 1`, found by its time stamp and checksum, or else by decoding from the start.

        A live stream and a pipe cannot be rewound: they go on with what comes, and only the count is taken over.
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
                raise SourceError(
                    f"{self.name} has changed: frame {index - 1} is not the one the position was taken at"
                )
        self._index = index
        self._regular, self._hole = position.get("even", (index == 0, False))

    def _jump(self, decoder: VideoDecoder, position: dict[str, Any]) -> bool:
        """Seek to the key frame before the position and decode up to it; False where that does not lead there."""
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
