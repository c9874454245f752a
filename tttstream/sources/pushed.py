"""Frames that a caller pushes, such as the pictures of a browser's camera."""

import io
import threading
import time
from collections.abc import Iterator

import numpy as np

from tttstream.errors import DependencyError, FrameError
from tttstream.frames import Frame
from tttstream.sources.live import Live
from tttstream.sources.pages import FAILURES

try:
    from PIL import Image
except ImportError as error:
    raise DependencyError("reading pictures needs Pillow: pip install pillow") from error

FORMATS = ("JPEG", "PNG", "WEBP")
LARGEST = 4096  # pixels a side


class Pushed(Live):
    """Pictures that another thread pushes. A slow reader gets the newest; `missed` counts the others.

    name: for reports. The iterator waits for the next picture, and ends after `close`.
    """

    def __init__(self, name: str = "browser") -> None:
        self.name, self.missed = name, 0
        self._newest: tuple[bytes, float] | None = None
        self._closed = False
        self._changed = threading.Condition()

    def put(self, data: bytes, captured: float | None = None) -> None:
        """Push a picture, JPEG, PNG or WebP. captured: its capture time by `time.monotonic()`, by default now. Never
        waits. Raises FrameError for other data (by the header), and for a side above LARGEST.
        """
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                sides = picture.size
        except (*FAILURES, Image.DecompressionBombError) as error:
            raise FrameError(f"{len(data)} bytes that are no picture; expected {', '.join(FORMATS)}") from error
        if max(sides) > LARGEST:
            raise FrameError(f"a picture of {sides[0]}x{sides[1]} pixels, expected at most {LARGEST} a side")
        now = time.monotonic()
        with self._changed:
            self.missed += self._newest is not None
            self._newest = data, now if captured is None else min(captured, now)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._closed)
                newest, self._newest = self._newest, None
            if newest is None:
                return
            try:
                with Image.open(io.BytesIO(newest[0]), formats=FORMATS) as picture:
                    image = np.array(picture.convert("RGB"))
            except FAILURES:
                self.skipped += 1
                continue
            yield self._numbered(image, newest[1])

    def close(self) -> None:
        """End the iterator, after the waiting picture."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
