"""Detects video files that were cut off, by their last bytes, for formats without a length in the header."""

import os
from collections.abc import Callable
from typing import BinaryIO

from tttstream.sources.listing import STDIN


def ends_within(path: str, formats: set[str]) -> bool:
    """True if a file of a format without a length in its header ends inside one of its parts, else False."""
    checks = {"mpegts": _ends_within_packet, "gif": _lacks(b";")}
    check = next((checks[name] for name in checks if name in formats), None)
    if check is None or path == STDIN or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return check(file)


def _ends_within_packet(file: BinaryIO) -> bool:
    """Whether the size of a transport stream is not a multiple of its packets (188 bytes, or with a time or
    checksum)."""
    head = file.read(2 * 204)
    size = next((n for n, at in ((188, 0), (192, 4), (204, 0)) if head[at::n][:2] == b"GG"), 0)
    return size > 0 and os.fstat(file.fileno()).st_size % size > 0


def _lacks(end: bytes) -> Callable[[BinaryIO], bool]:
    """A function that checks whether the last bytes of a file, without padding, differ from these."""

    def check(file: BinaryIO) -> bool:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 4096))
        return not file.read().rstrip(b"\0").endswith(end)

    return check
