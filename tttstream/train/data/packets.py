"""The packets of a video, read without decoding: the number of frames, and the frame in each packet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import av
import numpy as np
from av.packet import Packet
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.sources.decoder import longest_stream
from tttstream.train.data.clips import Numbers
from tttstream.train.data.files import decoded, demuxed, opened, short

Flags = NDArray[np.bool_]

CUT_S = 1.0  # a file that ends this many seconds early is cut off; less may be due to a rounded header
UNKNOWN = np.iinfo(np.int64).min  # a time stamp or position that is not in the file
# Formats that store a presentation time for each packet; in other formats the times are guesses. In MPEG streams
# several packets may have the same time; they then also have the same position.
TIMED = frozenset({"mov", "matroska", "mpegts", "mpeg", "flv", "nut"})
REORDERED = 32  # packets: the largest distance of a picture from its presentation order in any codec
ATTEMPTS = 4  # number of seeks before the file is read from its start


class Anchor(NamedTuple):
    """A frame at which decoding may begin, and its packet."""

    frame: int
    packet: int


START = Anchor(0, 0)


@dataclass
class Scan:
    """The packets of a video's pictures.

    frames: the expected number. packets: the identity of each, in the order of the file: its time stamp, size and
    position. seeks: the time stamp with which a seek reaches each. keys: whether decoding may begin there. numbers: the
    frame in each packet, below 0 if it is never shown; None if they are known only by decoding from the start. formats,
    codec: the names in FFmpeg. fresh: whether each key frame of H.264 and HEVC resets the decoder. damage: set if the
    file ends well before the duration in its header. anchors: frames at which decoding may begin; all of them if
    `numbers` is known, else those found so far.
    """

    frames: int
    packets: Numbers
    seeks: Numbers
    keys: Flags
    numbers: Numbers | None
    formats: frozenset[str]
    codec: str
    fresh: bool
    damage: str | None
    anchors: list[Anchor] = field(default_factory=lambda: [START])

    def __post_init__(self) -> None:
        if self.numbers is not None:
            begin = np.flatnonzero(self.keys & (self.numbers > 0))
            self.anchors += sorted(Anchor(int(self.numbers[packet]), int(packet)) for packet in begin)

    def before(self, frame: int) -> Iterator[Anchor]:
        """Positions from which decoding reaches a frame: the nearest anchor, some before it, and the start."""
        reach = bisect_right(self.anchors, Anchor(frame, len(self.packets)))
        yield from self.anchors[max(1, reach - ATTEMPTS) : reach][::-1]
        yield START

    def learn(self, anchor: Anchor) -> None:
        """Store an anchor."""
        if self.keys[anchor.packet] and anchor.frame > self.anchors[-1].frame:
            self.anchors.append(anchor)

    def forget(self, anchor: Anchor) -> None:
        """Remove an anchor."""
        self.keys[anchor.packet] = False
        if anchor in self.anchors[1:]:
            self.anchors.remove(anchor)

    def distrust(self) -> None:
        """Count frames from now on, because the order of the packets is not that of the pictures."""
        self.numbers = None
        self.anchors[:] = [START]

    def holds(self, index: int, packet: Packet[Any]) -> bool:
        """Whether a packet has this number."""
        return index < len(self.packets) and tuple(self.packets[index]) == _identity(packet)

    @property
    def closed(self) -> bool:
        """Whether each packet has a picture, and no picture is shown before an earlier key frame."""
        if self.numbers is None or len(self.numbers) != self.frames:
            return False
        return bool((self.numbers[self.keys] == np.flatnonzero(self.keys)).all())


@lru_cache(maxsize=4096)
def scan(path: str) -> Scan:
    """Read the packets of a video without decoding them. Raises SourceError if there are none."""
    rows: list[tuple[int, ...]] = []
    reach, fresh = 0.0, True
    with opened(path) as container:
        stream = longest_stream(container, short(path))
        codec, header = stream.codec_context.name, stream.codec_context.extradata or b""
        for packet in demuxed(container):
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None and packet.time_base is not None:
                reach = max(reach, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream is stream:
                visible = not packet.is_discard and not _hidden(codec, packet)
                decoding = UNKNOWN if packet.dts is None else packet.dts
                fresh = fresh and (not packet.is_keyframe or _begins(codec, header, packet))
                rows.append((*_identity(packet), decoding, packet.is_keyframe, visible))
        promised = (container.duration or 0) / av.time_base
        formats = frozenset(container.format.name.split(","))
    table = np.array(rows, np.int64).reshape(-1, 6)
    pts, dts, keys, shown = table[:, 0], table[:, 3], table[:, 4] > 0, table[:, 5] > 0
    if not shown.any():
        raise SourceError(f"{short(path)} holds no frames")
    ordered = not stream.codec_context.codec.reorder or bool(formats & TIMED and len(set(table[:, 2])) == len(table))
    numbers = _numbers(pts, dts, shown) if ordered else None
    if numbers is not None and not (keys[0] and numbers[0] == 0):
        numbers = _without_head(path, numbers)
    cut = f"the last {promised - reach:.1f} of {promised:.1f} s are missing" if promised - reach > CUT_S else None
    frames = int((shown if numbers is None else numbers >= 0).sum())
    seeks = np.where(dts == UNKNOWN, pts, dts)
    return Scan(frames, table[:, :3].copy(), seeks, keys & shown, numbers, formats, codec, fresh, cut)


def _identity(packet: Packet[Any]) -> tuple[int, int, int]:
    pts, place = packet.pts, packet.pos
    return UNKNOWN if pts is None else pts, packet.size, UNKNOWN if place is None else place


def _hidden(codec: str, packet: Packet[Any]) -> bool:
    """Whether a packet of VP8 has a picture that is only a reference (RFC 6386, 9.1: the bit show_frame)."""
    return codec == "vp8" and not memoryview(packet)[0] >> 4 & 1


# For each codec: the position of the size of lengths in its header, and whether the first byte of a unit is a reset.
UNITS: dict[str, tuple[int, Callable[[int], bool]]] = {
    "h264": (4, lambda unit: unit & 31 == 5),
    "hevc": (21, lambda unit: 16 <= unit >> 1 & 63 <= 21),
}


def _begins(codec: str, header: bytes, packet: Packet[Any]) -> bool:
    """Whether a packet resets the decoder; also False if its units have no lengths. True for codecs other than H.264
    and HEVC, in which all key frames do.
    """
    if codec not in UNITS:
        return True
    place, anew = UNITS[codec]
    if len(header) <= place or header[0] != 1:
        return False
    prefix, data, at = (header[place] & 3) + 1, memoryview(packet), 0
    while at + prefix < len(data):
        if anew(data[at + prefix]):
            return True
        at += prefix + int.from_bytes(data[at : at + prefix], "big")
    return False


def _numbers(pts: Numbers, dts: Numbers, shown: Flags) -> Numbers | None:
    """The frame in each packet, by the order of the time stamps; None if they do not determine it."""
    stamps, known = pts[shown], dts[dts != UNKNOWN]
    order = np.argsort(stamps)
    certain = (
        (stamps != UNKNOWN).all()
        and (np.diff(stamps[order]) > 0).all()
        and (np.diff(known) > 0).all()
        and (pts >= dts)[shown].all()
        and (np.abs(order - np.arange(len(order))) <= REORDERED).all()
    )
    if not certain:
        return None
    numbers = np.full(len(pts), -1, np.int64)
    numbers[np.flatnonzero(shown)[order]] = np.arange(len(order))
    return numbers


def _without_head(path: str, numbers: Numbers) -> Numbers | None:
    """Numbers that begin at the first picture that can be decoded, for a file that was cut at its start; None if it is
    no key frame, so that the first picture depends on missing ones.
    """
    with opened(path) as container:
        stream = longest_stream(container, short(path))
        for index, picture in decoded(stream, enumerate(demuxed(container, stream))):
            if picture is not None:
                return numbers - numbers[index] if picture.key_frame and index is not None else None
    return None
