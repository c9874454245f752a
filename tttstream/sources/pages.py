"""Image files: the number of images in a file, and their pixels in 8 bits."""

from __future__ import annotations

import os
import re
import struct
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DependencyError, SourceError

SEVERAL = frozenset({".png", ".tif", ".tiff", ".webp"})
"""Suffixes of files that may contain several images."""
FAILURES = (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, struct.error)
"""The exceptions that Pillow raises for a damaged file."""


class Pages:
    """The images of one file, upright by its EXIF orientation; images of an animation are drawn over earlier ones.

    path: the file. count: the number of images, without the thumbnails and masks of a TIFF (by NewSubfileType), and
    without the default image of an APNG that is not part of the animation. timed: whether each image has a duration.

    8 bits are unchanged; single bits become 0 and 255; palettes, CMYK and greys become RGB; opacity is ignored. 16 bits
    are reduced to the upper 8. Floats must be in 0..1; integers of 32 bits are read like those of 16.

    Raises one of FAILURES if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise DependencyError("reading images needs Pillow: pip install pillow") from error
        self.path = path
        with _Watched() as watched:
            self._file: Any = Image.open(path)
        self._cut = watched.cut and self._file.format == "TIFF"
        try:
            self._numbers = self._listed()
        except BaseException:
            self._file.close()
            raise
        self.count = len(self._numbers)
        self.timed = self.count > 1 and self._file.format != "TIFF"
        self._broken = False

    def _listed(self) -> list[int]:
        """The numbers of the images in Pillow."""
        file = self._file
        if file.format == "TIFF":
            return self._listed_tiff()
        last = file.n_frames if file.format in ("PNG", "WEBP", "GIF") and getattr(file, "is_animated", False) else 1
        if last == 1 or not getattr(file, "default_image", False):
            return list(range(last))
        self._seek(1)
        # APNG_BLEND_OP_OVER: Pillow would start from the default image, not from an empty one
        if file.info.get("blend") == 1:
            raise ValueError("its first image is drawn over the default image; convert it to a video")
        return list(range(1, last))

    def _listed_tiff(self) -> list[int]:
        """The pages of a TIFF. A damaged page counts; pages after it cannot be found."""
        numbers = []
        for number in count():
            try:
                self._seek(number)
            except EOFError:
                break
            except FAILURES:
                numbers.append(number)
                break
            if not (self._file.tag_v2.get(254, 0) & 5 or self._file.tag_v2.get(255) == 2):
                numbers.append(number)
        return numbers or [0]

    def _seek(self, number: int) -> None:
        file = self._file
        if file.format == "PNG" and file.info.get("disposal") == 2 and file.tell() != number:
            # Pillow disposes of an image correctly (APNG_DISPOSE_OP_PREVIOUS) only if it was not shown: start again
            from PIL import Image

            file.close()
            file = self._file = Image.open(self.path)
        with _Watched() as watched:
            file.seek(number)
        if watched.cut or (self._cut and number == 0):
            raise ValueError("it is cut off")

    def read(self, page: int) -> NDArray[np.uint8]:
        """RGB [H, W, 3] of an image by its position in the file; fast in sequence.

        Raises ValueError if its values are outside their range, or if 16 or 32 bits have no value above 255 (except all
        0) and may therefore be meant as 8 bits; another of FAILURES if it is damaged, or drawn over a damaged one.
        """
        from PIL import Image, ImageOps

        if page >= self.count:
            raise ValueError(f"it has changed, and contains {self.count} images now")
        if self._broken:
            raise ValueError("an image before it, over which it is drawn, is damaged")
        try:
            self._seek(self._numbers[page])
            self._file.load()
        except FAILURES:
            self._broken = self.timed
            raise
        file = self._file
        image = ImageOps.exif_transpose(file)
        if image.mode == "F":
            image = Image.fromarray(scaled(np.asarray(image), 0, 1, 255))
        elif image.mode.startswith("I"):  # Pillow would clip it at 255
            image = Image.fromarray(scaled(np.asarray(image), 256, 65535, 1 / 256))
        return np.array(image.convert("RGB"))

    def duration(self) -> float:
        """The duration of the last image in milliseconds, 0 if the file has none."""
        return float(self._file.info.get("duration", 0))

    def first_duration(self) -> float:
        """The duration of the first image in milliseconds, 0 if it cannot be read."""
        try:
            self.read(0)
        except FAILURES:
            return 0.0
        return self.duration()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Watched(warnings.catch_warnings):
    """Detects that the directory of a TIFF is cut off, about which Pillow only warns."""

    def __init__(self) -> None:
        super().__init__(record=True)

    def __enter__(self) -> _Watched:  # type: ignore[override]
        self._told = super().__enter__() or []
        warnings.simplefilter("always")
        return self

    @property
    def cut(self) -> bool:
        """Whether the directory is cut off."""
        return any(re.match("Truncated File Read|Corrupt EXIF data", str(told.message)) for told in self._told)


def count_pages(path: Path) -> int:
    """The number of images in a file; 1 if its format has only one, or if it is damaged."""
    if path.suffix.lower() not in SEVERAL:
        return 1
    try:
        if _is_single(path):
            return 1
        with Pages(path) as pages:
            return pages.count
    except FAILURES:
        return 1


def _is_single(path: Path) -> bool:
    """Whether the header of a file shows that it has one image; False in doubt. Ten times as fast as Pillow."""
    with open(path, "rb") as file:
        head = file.read(21)
        if head.startswith(b"\x89PNG\r\n\x1a\n"):  # an animation has a chunk acTL before its pixels
            at, kind = 8, b""
            while kind != b"IDAT":
                file.seek(at)
                length, kind = struct.unpack(">I4s", file.read(8))
                if kind == b"acTL":
                    return False
                at += length + 12
            return True
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return head[12:16] in (b"VP8 ", b"VP8L") or (head[12:16] == b"VP8X" and not head[20] & 2)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
        if order is None:
            return False
        file.seek(struct.unpack(f"{order}I", head[4:8])[0])  # the first directory, whose last word points to the next
        (fields,) = struct.unpack(f"{order}H", file.read(2))
        file.seek(12 * fields, os.SEEK_CUR)
        return file.read(4) == b"\0\0\0\0"


def pixels(path: Path) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of a file with one image, see Pages. Raises ValueError if it contains several."""
    with Pages(path) as pages:
        if pages.count > 1:
            raise ValueError(
                f"it contains {pages.count} images, expected one; convert it to a video or to single images"
            )
        return pages.read(0)


def read_image(path: Path) -> NDArray[np.uint8]:
    """As `pixels`, but raises SourceError if the file cannot be read."""
    try:
        return pixels(path)
    except FAILURES as error:
        raise SourceError(f"{path} cannot be read as an image ({error})") from error


def scaled(values: NDArray[Any], least: int, most: int, by: float) -> NDArray[np.uint8]:
    """Values from 0 to `most` times `by`, in 8 bits. Raises ValueError for other values, and if the greatest of them is
    neither 0 nor at least `least`."""
    low, high = values.min(), values.max()
    if not (low >= 0 and (high == 0 or least <= high <= most)):
        expected = f"0 to {most}" + (f" with some from {least} on" if least else "")
        raise ValueError(f"its values go from {low:g} to {high:g}, expected {expected}; save it with 8 or 16 bits")
    scaled = values.astype(np.float64) * by
    return np.asarray(np.floor(scaled) if by < 1 else np.round(scaled)).astype(np.uint8)
