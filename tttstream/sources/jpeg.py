"""Checks that a JPEG is complete: FFmpeg decodes one that is cut off, with grey in place of the missing part."""

import re

MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan; FF 00 is a byte of it, FF D0 to D7 are restarts
BARE = range(0xD0, 0xD8)  # markers without a length
START, END, SCAN = 0xD8, 0xD9, 0xDA


def is_whole(data: bytes) -> bool:
    """Whether a JPEG has all its parts up to the end marker. Bytes after it are ignored."""
    at = data.find(b"\xff\xd8") + 2
    while 2 <= at < len(data) - 1:
        if data[at] != 0xFF:
            return False
        kind, at = data[at + 1], at + 1 + (data[at + 1] != 0xFF)  # a marker may have any number of FF before it
        if kind in (START, END):
            return kind == END
        if kind == 0xFF or kind in BARE:
            continue
        at += int.from_bytes(data[at : at + 2], "big")
        if kind == SCAN:
            marker = MARKER.search(data, at)
            at = len(data) if marker is None else marker.start()
    return False
