"""Opens video files, also those inside a tar."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tttstream.errors import SourceError
from tttstream.sources.decoder import FAILURES, decode, reason

MEMBER = "::"  # shard.tar::name is a video inside a tar


def opened(path: str) -> InputContainer:
    """Open a video file. Raises SourceError if it is no video."""
    try:
        return av.open(content(path))
    except FAILURES as error:
        raise SourceError(f"{short(path)} cannot be read as a video ({reason(error)})") from error


def demuxed(container: InputContainer, *streams: VideoStream) -> Iterator[Packet[Any]]:
    """The packets of these streams, or of all, until the file ends or is cut off, without empty ones: these contain no
    picture, and for a decoder they mean the end.
    """
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets, None)
        except FAILURES:
            packet = None
        if packet is None:
            return
        if packet.size:
            yield packet


def decoded(
    stream: VideoStream, packets: Iterator[tuple[int, Packet[Any]]]
) -> Iterator[tuple[int | None, VideoFrame | None]]:
    """The pictures in numbered packets, each with the number of its packet; None for one that is damaged."""
    context = stream.codec_context
    context.thread_count = 1  # the workers are the threads
    context.flags |= Flags.copy_opaque
    for index, packet in packets:
        packet.opaque = [index]  # a separate list: PyAV uses the addresses of these objects as their names
        try:
            pictures = decode(stream, packet)
        except FAILURES:
            yield index, None
            continue
        for picture in pictures:
            yield _origin(picture), None if picture.is_corrupt else picture
    try:
        last = stream.decode(None)
    except FAILURES:
        return
    for picture in last:
        yield _origin(picture), None if picture.is_corrupt else picture


def _origin(picture: VideoFrame) -> int | None:
    return picture.opaque[0] if isinstance(picture.opaque, list) else None


def content(path: str) -> Any:
    """The path, or the bytes of a video inside a tar. The path is absolute, because FFmpeg reads text before a colon at
    the start of a path as a protocol; a file with :: in its name has precedence over a tar."""
    shard, inside, name = path.partition(MEMBER)
    if os.path.exists(path) or not inside:
        return path if "://" in path and not os.path.exists(path) else os.path.abspath(path)
    while MEMBER in name and not os.path.isfile(shard):  # a tar with :: in its name
        more, _, name = name.partition(MEMBER)
        shard += MEMBER + more
    return io.BytesIO(member(shard, name))


def member(shard: str, name: str) -> bytes:
    """Open a file inside a tar. Raises SourceError if it cannot be read."""
    try:
        offset, size = members(shard)[name]
        with open(shard, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except (KeyError, OSError) as error:
        raise SourceError(f"{name} cannot be read from {shard}: {error}") from error


@lru_cache(maxsize=4096)
def members(shard: str) -> dict[str, tuple[int, int]]:
    """Positions of the files in a tar: name → (offset, size). Raises SourceError if it is no tar."""
    try:
        with tarfile.open(shard, "r:") as tar:
            return {item.name: (item.offset_data, item.size) for item in tar if item.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise SourceError(f"{shard} cannot be read as an uncompressed tar: {error}") from error


def short(path: str) -> str:
    """The last part of a path, for reports."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]
