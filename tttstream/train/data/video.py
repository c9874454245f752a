"""Frames of video files for training, with PyAV (all formats of FFmpeg), or with decord and PyAV as its fallback."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import cv2
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tttstream.errors import DependencyError, SourceError
from tttstream.sources.decoder import FAILURES, longest_stream
from tttstream.sources.pictures import Display
from tttstream.train.data.clips import Decoder, Numbers, Pixels, Reader, Shot
from tttstream.train.data.files import content, decoded, demuxed, opened, short
from tttstream.train.data.packets import START, Anchor, scan

EXACT = frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9"})  # codecs in which decord finds frames by number
LOOK = 256  # number of frames in which a frame with the size in the header is searched
NEAR = 64  # frames: up to this distance decoding is as fast as seeking


class PyAV(Decoder):
    """FFmpeg through PyAV: reads all formats of FFmpeg, frame by frame, with one frame in memory.

    short_side: reduce pictures to this many pixels on their shorter side when they are decoded; None keeps their size.
    """

    def __init__(self, short_side: int | None = None) -> None:
        self.short_side = short_side

    def open(self, path: str) -> Reader:
        return _PyAVReader(path, self.short_side)

    def count(self, path: str) -> int:
        return scan(path).frames


class Decord(PyAV):
    """decord, reopened for every read, because it would continue to decode into memory between two reads.

    It reads MP4, MOV and Matroska with the codecs in EXACT if every picture needs only its key frame; in other files it
    confuses frames. PyAV reads all other files, damaged files, and files whose pictures decord converts wrongly (see
    `plain`).

    short_side: as for PyAV.
    """

    def open(self, path: str) -> Reader:
        return _DecordReader(path, self.short_side)


class _Misled(Exception):
    """The frame that was read is not the one that the scan expects."""


class _PyAVReader(Reader):
    """Decodes forward if the next requested frame is near, and otherwise seeks to the key frame before it.

    A seek is always checked: the packets after it must be those of the scan, and the first picture must be that of the
    first packet. If they are not, the next earlier position is tried, and finally the start of the file.
    """

    def __init__(self, path: str, short_side: int | None) -> None:
        self._path, self._short_side = path, short_side
        self._scan = scan(path)
        self.frames, self.damage = self._scan.frames, self._scan.damage
        self._damaged: set[int] = set()
        self._container: InputContainer | None = None
        self._pictures: Iterator[tuple[int, VideoFrame]] = iter(())
        self._next = 0
        self._header = (0, 0)
        self._shape: tuple[int, int] | None = None

    def read(self, indices: Numbers) -> Shot:
        wanted = [int(index) for index in indices if index < self._scan.frames]
        while wanted:
            try:
                if self._container is None or not self._next <= wanted[0] <= self._next + NEAR:
                    self._go_to(wanted[0])
                return Shot(_stacked(self._collected(wanted)))
            except _Misled:  # its recorded data may be wrong too
                self.close()
                self._damaged.clear()
                self.damage = self._scan.damage
        return Shot(_stacked([]))

    def _collected(self, wanted: list[int]) -> list[Pixels]:
        frames: list[Pixels] = []
        while len(frames) < len(wanted):
            number, picture = next(self._pictures, (-1, None))
            if picture is None:
                break
            self._next = number + 1
            # The next frame replaces a missing (damaged) one.
            while len(frames) < len(wanted) and wanted[len(frames)] <= number:
                frames.append(self._sized(self._display.show(picture), (picture.width, picture.height)))
        return frames

    def _sized(self, pixels: Pixels, size: tuple[int, int]) -> Pixels:
        """A frame in the size of the clip, resized if its own size differs, as in `watch`.

        size: that of the stored picture; if it is the size in the header, so is that of the clip.
        """
        shape = (pixels.shape[0], pixels.shape[1])
        if size == self._header and self._shape in (None, shape):
            self._shape = shape
            return pixels
        self._shape = _usual_shape(self._path, self._short_side)
        if shape == self._shape:
            return pixels
        (height, width), (own_height, own_width) = self._shape, shape
        self.damage = f"the size of its frames changes from {width}×{height} to {own_width}×{own_height} pixels"
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    def _go_to(self, frame: int) -> None:
        """Seek to a position before a frame: the last key frame that can be reached, or the start."""
        for anchor in self._scan.before(frame):
            self.close()
            self._container = container = opened(self._path)
            stream = longest_stream(container, short(self._path))
            self._header = (stream.codec_context.width, stream.codec_context.height)
            self._display = Display.of(stream, short(self._path), self._short_side)
            if anchor != START and not _sought(container, stream, int(self._scan.seeks[anchor.packet])):
                self._scan.forget(anchor)
                continue
            pictures = self._good(decoded(stream, self._checked(demuxed(container, stream), anchor)), anchor)
            try:
                first = next(pictures, None)
            except _Misled:
                first = None
            if anchor == START or (first and first[0] == anchor.packet and first[1].key_frame):
                self._next = anchor.frame
                self._pictures = self._numbered(chain([first] if first else [], pictures), anchor)
                return
            self._scan.forget(anchor)

    def _checked(self, packets: Iterator[Packet[Any]], anchor: Anchor) -> Iterator[tuple[int, Packet[Any]]]:
        """The packets from an anchor on with their numbers. Raises _Misled for other packets, SourceError if the file
        has changed.
        """
        index, latest = anchor.packet, self._scan.seeks[anchor.packet]
        for packet in packets:
            if self._scan.holds(index, packet):
                yield index, packet
                index += 1
            elif anchor == START:
                raise SourceError(f"{short(self._path)} has changed since it was first read")
            elif index > anchor.packet:
                self._scan.forget(anchor)
                raise _Misled
            elif packet.dts is not None and packet.dts > latest:
                return  # the seek ended after the anchor

    def _good(
        self, pictures: Iterator[tuple[int | None, VideoFrame | None]], anchor: Anchor
    ) -> Iterator[tuple[int | None, VideoFrame]]:
        """Pictures that are not damaged; damaged ones are recorded if they are after the anchor."""
        numbers = self._scan.numbers
        for index, picture in pictures:
            if picture is not None:
                yield index, picture
            elif index is not None and (numbers is None or numbers[index] >= anchor.frame):
                self._note_damage(index)

    def _numbered(
        self, pictures: Iterator[tuple[int | None, VideoFrame]], anchor: Anchor
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Pictures with their numbers, from their packets, or counted if the packets do not determine them."""
        number, numbers = anchor.frame - 1, self._scan.numbers
        for index, picture in pictures:
            last, number = number, number + 1
            if numbers is not None:
                number = -1 if index is None else int(numbers[index])
                if number <= last:
                    self._scan.distrust()
                    raise _Misled
                for missing in range(last + 1, number):
                    self._note_damage(int(np.flatnonzero(numbers == missing)[0]))
            elif index is not None and picture.key_frame:
                self._scan.learn(Anchor(number, index))
            yield number, picture

    def _note_damage(self, packet: int) -> None:
        self._damaged.add(packet)
        self.damage = f"damaged frames: {len(self._damaged)}"

    def close(self) -> None:
        self._pictures = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None


def _sought(container: InputContainer, stream: VideoStream, stamp: int) -> bool:
    """Seek a container to a time stamp. Returns whether it worked."""
    try:
        container.seek(stamp, stream=stream)
    except FAILURES:
        return False
    return True


@lru_cache(maxsize=4096)
def _usual_shape(path: str, short_side: int | None) -> tuple[int, int]:
    """Height and width of the frames with the size in the header, or of the first frame if none of the first has it."""
    with opened(path) as container:
        stream = longest_stream(container, short(path))
        display = Display.of(stream, short(path), short_side)
        header = (stream.codec_context.width, stream.codec_context.height)
        first: tuple[int, int] | None = None
        for _, picture in islice(decoded(stream, enumerate(demuxed(container, stream))), LOOK):
            if picture is not None and (first is None or (picture.width, picture.height) == header):
                height, width, _ = display.show(picture).shape
                first = height, width
                if (picture.width, picture.height) == header:
                    break
    if first is None:
        raise SourceError(f"{short(path)} has no frame that can be decoded at its start")
    return first


@lru_cache(maxsize=4096)
def plain(path: str) -> bool:
    """Whether the first picture of a video is shown as it is stored; decord ignores rotation and aspect ratio.

    Raises SourceError for colours that cannot be converted, which decord would convert wrongly.
    """
    with opened(path) as container:
        stream = longest_stream(container, short(path))
        for packet in demuxed(container, stream):
            try:
                pictures = stream.decode(packet)
            except FAILURES:
                return False
            if pictures:
                display = Display.of(stream, short(path))
                display.show(pictures[0])
                return display.as_stored(pictures[0])
    return False


class _DecordReader(Reader):
    """Opens the file for each read. PyAV reads files on which decord fails, for which it counts other frames or key
    frames than the packets have, or whose pictures are not shown as they are stored."""

    def __init__(self, path: str, short_side: int | None) -> None:
        self._path, self._short_side = path, short_side
        found = scan(path)
        exact = bool(found.formats & {"mov", "matroska"}) and found.codec in EXACT and found.closed and found.fresh
        self._fallback: Reader | None = None if exact and plain(path) else _PyAVReader(path, short_side)
        self._shape: tuple[int, int, int] | None = None
        self._keys = set(np.flatnonzero(found.keys).tolist())
        self._count, self.damage = found.frames, found.damage
        self.frames = self._count

    def read(self, indices: Numbers) -> Shot:
        if self._fallback is None:
            wanted = indices[indices < self._count]
            frames = self._by_decord(wanted) if len(wanted) else _stacked([])
            if frames is not None:
                return Shot(frames)
            self._fallback = _PyAVReader(self._path, self._short_side)
        shot = self._fallback.read(indices)
        self.damage = self._fallback.damage
        return shot

    def _by_decord(self, indices: Numbers) -> Pixels | None:
        try:
            import decord
        except ImportError as error:
            raise DependencyError("decord is not installed: pip install decord, or choose the decoder PyAV") from error
        decord.logging.set_level(decord.logging.QUIET)
        try:
            reader = decord.VideoReader(content(self._path), num_threads=1)
            if self._short_side is not None:
                height, width, _ = self._shape = self._shape or reader[0].shape
                if min(width, height) > self._short_side:
                    width, height = Display(self._path, short_side=self._short_side).size(width, height)
                    reader = decord.VideoReader(content(self._path), width=width, height=height, num_threads=1)
            # A file may mark every frame as a key frame. decord trusts this and would begin to decode at any frame.
            exact = len(reader) == self.frames and self._keys.issuperset(reader.get_key_indices())
            return reader.get_batch(indices).asnumpy() if exact else None
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, UnicodeEncodeError):  # of its name
            return None

    def close(self) -> None:
        if self._fallback is not None:
            self._fallback.close()


def _stacked(frames: list[Pixels]) -> Pixels:
    return np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.uint8)
