"""Frames of video files for training: by PyAV, which reads whatever FFmpeg reads, or by decord with PyAV behind it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np

from tttstream.errors import DependencyError, SourceError
from tttstream.sources.video import FAILURES, longest_stream, reason, upright
from tttstream.train.data.clips import Decoder, Numbers, Pixels, Reader, Shot

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MEMBER = "::"  # shard.tar::name is a video inside a tar
CUT_S = 1.0  # seconds missing at the end that tell a file cut off from one whose header rounds
NEAR = 64  # frames: to go on this far ahead, decoding is as quick as seeking


class PyAV(Decoder):
    """FFmpeg by way of PyAV: reads what FFmpeg reads, frame after frame, and holds one frame at a time.

    short_side: reduce pictures to this many pixels on their shorter side as they are decoded, None for as they are.
    """

    def __init__(self, short_side: int | None = None) -> None:
        self.short_side = short_side

    def open(self, path: str) -> Reader:
        """See Decoder."""
        return _PyAVReader(path, self.short_side)

    def count(self, path: str) -> int:
        """See Decoder."""
        return scan(path).frames


class Decord(Decoder):
    """decord, opened anew for every read, for it would go on decoding into memory between two; what it cannot read
    (AV1, damaged files) is left to PyAV.

    short_side: as for PyAV.
    """

    def __init__(self, short_side: int | None = None) -> None:
        self.short_side = short_side

    def open(self, path: str) -> Reader:
        """See Decoder."""
        return _DecordReader(path, self.short_side)

    def count(self, path: str) -> int:
        """See Decoder."""
        return scan(path).frames


class Scan(NamedTuple):
    """What the packets of a video say.

    stamps: when its frames are shown, in ticks; None where it does not say so. damage: set where the file ends well
    before the time its header promises.
    """

    frames: int
    stamps: Numbers | None
    damage: str | None


@lru_cache(maxsize=4096)
def scan(path: str) -> Scan:
    """Read the packets of a video without decoding them. Raises SourceError where there are none."""
    stamps: list[int | None] = []
    reach = 0.0
    with _container(path) as container:
        stream = longest_stream(container, short(path))
        for packet in _packets(container):
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None and packet.time_base is not None:
                reach = max(reach, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream is stream and packet.size and not packet.is_discard:
                stamps.append(packet.pts)
        promised = (container.duration or 0) / av.time_base
        exact = "avi" not in container.format.name.split(",")  # AVI has no presentation times
    if not stamps:
        raise SourceError(f"{short(path)} holds no frames")
    known = [stamp for stamp in stamps if stamp is not None]
    exact = exact and len(set(known)) == len(stamps)
    cut = f"the last {promised - reach:.1f} of {promised:.1f} s are missing" if promised - reach > CUT_S else None
    return Scan(len(stamps), np.sort(np.array(known, np.int64)) if exact else None, cut)


class _PyAVReader(Reader):
    """Goes on where it stands when the next frame asked for is near, and seeks by time stamp when it is not."""

    def __init__(self, path: str, short_side: int | None) -> None:
        self._path, self._short_side = path, short_side
        self._scan = scan(path)
        self.frames, self.damage = self._scan.frames, self._scan.damage
        self._damaged = 0
        self._container: InputContainer | None = None
        self._pictures: Iterator[tuple[int, VideoFrame]] = iter(())
        self._next = 0

    def read(self, indices: Numbers) -> Shot:
        """See Reader."""
        wanted = [int(index) for index in indices if index < self._scan.frames]
        if wanted and (self._container is None or not self._next <= wanted[0] <= self._next + NEAR):
            self._go_to(wanted[0])
        frames: list[Pixels] = []
        while len(frames) < len(wanted):
            number, picture = next(self._pictures, (-1, None))
            if picture is None:
                break
            self._next = number + 1
            # A frame that is missing (it was damaged) is stood for by the one after it.
            while len(frames) < len(wanted) and wanted[len(frames)] <= number:
                frames.append(_pixels(picture, self._short_side))
        return Shot(_stacked(frames))

    def _go_to(self, index: int) -> None:
        """Stand before a frame, or before an earlier one: the last key frame, or the first frame of all."""
        container, stream = self._reopened()
        if index and self._scan.stamps is not None:
            try:
                container.seek(int(self._scan.stamps[index]), stream=stream)
            except FAILURES:
                container, stream = self._reopened()
        self._next = 0
        self._pictures = self._numbered(self._decoded(container, stream))

    def _reopened(self) -> tuple[InputContainer, VideoStream]:
        self.close()
        self._container = container = _container(self._path)
        stream = longest_stream(container, short(self._path))
        stream.codec_context.thread_count = 1  # the workers are the threads
        return container, stream

    def _numbered(self, pictures: Iterator[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
        """Pictures with their numbers: by their time stamps, or by counting from the start where there are none."""
        number, stamps = -1, self._scan.stamps
        for picture in pictures:
            by_stamp = 0 if stamps is None or picture.pts is None else int(np.searchsorted(stamps, picture.pts))
            number = max(number + 1, by_stamp)
            yield number, picture

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Pictures that are not damaged, until nothing more can be read."""
        for packet in _packets(container, stream):
            try:
                pictures = stream.decode(packet)
            except FAILURES:
                self._note_damage()
                continue
            for picture in pictures:
                if picture.is_corrupt:
                    self._note_damage()
                else:
                    yield picture

    def _note_damage(self) -> None:
        self._damaged += 1
        self.damage = f"damaged frames: {self._damaged}"

    def close(self) -> None:
        """See Reader."""
        self._pictures = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None


def _pixels(picture: VideoFrame, short_side: int | None) -> Pixels:
    if short_side is not None and min(picture.width, picture.height) > short_side:
        width, height = reduced(picture.width, picture.height, short_side)
        rotation = picture.rotation  # what `reformat` gives has none
        small = picture.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
        return np.ascontiguousarray(np.rot90(small.to_ndarray(), round(rotation / 90)))
    return upright(picture)


def reduced(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The size of a picture whose shorter side is reduced to `short_side` pixels."""
    share = short_side / min(width, height)
    return max(1, round(width * share)), max(1, round(height * share))


class _DecordReader(Reader):
    """Opens the file for each read; where decord gives up, or counts other frames than the packets say, PyAV reads."""

    def __init__(self, path: str, short_side: int | None) -> None:
        self._path, self._short_side = path, short_side
        self._fallback: Reader | None = None
        self._shape: tuple[int, int, int] | None = None
        self._count, _, self.damage = scan(path)
        self.frames = self._count

    def read(self, indices: Numbers) -> Shot:
        """See Reader."""
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
            reader = decord.VideoReader(_file(self._path), num_threads=1)
            if self._short_side is not None:
                height, width, _ = self._shape = self._shape or reader[0].shape
                if min(width, height) > self._short_side:
                    width, height = reduced(width, height, self._short_side)
                    reader = decord.VideoReader(_file(self._path), width=width, height=height, num_threads=1)
            return reader.get_batch(indices).asnumpy() if len(reader) == self.frames else None
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError):
            return None

    def close(self) -> None:
        """See Reader."""
        if self._fallback is not None:
            self._fallback.close()


def _stacked(frames: list[Pixels]) -> Pixels:
    return np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.uint8)


def _container(path: str) -> InputContainer:
    try:
        return av.open(_file(path))
    except FAILURES as error:
        raise SourceError(f"{short(path)} cannot be read as a video ({reason(error)})") from error


def _packets(container: InputContainer, *streams: VideoStream) -> Iterator[Packet[Any]]:
    """Packets of these streams, or of all, until the file ends or breaks off."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets, None)
        except FAILURES:
            packet = None
        if packet is None:
            return
        yield packet


def _file(path: str) -> Any:
    """The path itself, or the bytes of a video inside a tar."""
    shard, inside, name = path.partition(MEMBER)
    return io.BytesIO(member(shard, name)) if inside else path


def member(shard: str, name: str) -> bytes:
    """A file inside a tar. Raises SourceError where it cannot be read."""
    try:
        offset, size = members(shard)[name]
        with open(shard, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except (KeyError, OSError) as error:
        raise SourceError(f"{name} cannot be read from {shard}: {error}") from error


@lru_cache(maxsize=4096)
def members(shard: str) -> dict[str, tuple[int, int]]:
    """Where the files of a tar stand in it: name → (offset, size). Raises SourceError where it is no tar."""
    try:
        with tarfile.open(shard, "r:") as tar:
            return {item.name: (item.offset_data, item.size) for item in tar if item.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise SourceError(f"{shard} cannot be read as an uncompressed tar: {error}") from error


def short(path: str) -> str:
    """A path by its last part, for reports."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]
