"""Opens sources for FFmpeg: files by their absolute path, pipes as files that are read once; and explains failures."""

import os
import re
import stat
import sys
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tttstream.sources.listing import STDIN, is_path

INDEX_LAST = (
    "it is MP4 or MOV with its index at the end, and a pipe needs the index at the start: write it with "
    "-movflags +faststart, send MPEG-TS or Matroska, or give the file itself"
)
UNREACHED = re.compile(
    "(?i)refused|not found|timed out|unreachable|no route|server returned|resolve|denied|reset by peer"
)
"""A message about a server or an address without the path of the file."""
HEADS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # at byte 4 of an MP4 or MOV


class Pipe:
    """The standard input (-), a named pipe or /dev/fd/3, read from its current position; stores its first bytes."""

    def __init__(self, path: str) -> None:
        self._file: Any = sys.stdin.buffer if path == STDIN else open(path, "rb", buffering=0)  # noqa: SIM115
        self._read = getattr(self._file, "read1", self._file.read)  # the available bytes, without waiting for more
        self.head = b""

    def read(self, count: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        data: bytes = self._read(count)
        if len(self.head) < 8:
            self.head += data[:8]
        return data

    @property
    def has_index_last(self) -> bool:
        """Whether the first bytes are those of an MP4 or MOV; if it cannot be read, its index is at the end."""
        return self.head[4:8] in HEADS

    def close(self) -> None:
        """Close a pipe that was opened here."""
        if self._file is not sys.stdin.buffer:
            self._file.close()


def flows(path: str) -> bool:
    """Whether a path is a pipe or a similar file, which can be read only once and from its start."""
    if path == STDIN:
        return not sys.stdin.seekable()
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


def handed(path: str) -> Any:
    """A source as an argument of `av.open`. A file has its absolute path: FFmpeg reads text before a colon at the start
    of a path as a protocol."""
    if flows(path):
        return Pipe(path)
    if path == STDIN:  # a file that the shell opened
        sys.stdin.buffer.seek(0)
        return sys.stdin.buffer
    return os.path.abspath(path) if is_path(path) or "://" not in path else path


def why(path: str, file: Any, said: str) -> str:
    """The reason why a source cannot be read as a video, if FFmpeg's message does not give it."""
    if isinstance(file, Pipe):
        if not file.head:
            return "it sent no data"
        return INDEX_LAST if file.has_index_last else said
    if UNREACHED.search(said):
        return said
    if "://" in path and PurePosixPath(urlsplit(path).path).suffix.lower() in (".mp4", ".mov", ".m4v", ".3gp"):
        return f"{said}; perhaps its server cannot start in the middle of a file, and {INDEX_LAST}"
    return said
