"""Frames from a folder of images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DependencyError, SourceError
from tttstream.frames import Frame
from tttstream.names import shown
from tttstream.sources.base import Source
from tttstream.sources.listing import IMAGES, VIDEOS, expand, listed, natural, sequence

__all__ = ["IMAGES", "VIDEOS", "ImageFolder", "expand", "listed", "natural", "pixels"]


class ImageFolder(Source):
    """The images of one folder in natural order (2 before 10), not those of its subfolders; or one image; or those
    that frame%05d.png stands for, by their numbers.

    path: the folder, image or pattern. fps: the rate they are shown at, 30 unless given. on_error: "skip" passes over
    an image that cannot be read and counts it, "raise" raises SourceError there. Time goes by the place in the folder,
    so a skipped image leaves a gap. Where all names are times of the day it goes by these, and `origin` is the first:
    seconds as in 1305031102.175304.png, or 16 or 19 digits of micro- or nanoseconds. Images may differ in size;
    `pixels` says how they are brought to 8 bits.

    Raises SourceError where there is no image, or at the end where not one could be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float = 30.0, on_error: str = "skip") -> None:
        folder = Path(path)
        self.name, self.fps, self._strict = shown(folder.name or str(folder)), fps, on_error == "raise"
        self._paths = [folder] if os.path.isfile(folder) else sequence(folder) or listed(folder, IMAGES)
        if not self._paths:
            raise SourceError(f"{folder} holds no images ({', '.join(sorted(IMAGES))}); name a folder that does")
        self._stamps = stamps(self._paths)
        if self._stamps is not None:
            self._stamps, self._paths = map(
                list, zip(*sorted(zip(self._stamps, self._paths, strict=True)), strict=True)
            )
            self.origin = self._stamps[0]
            self.fps = (len(self._stamps) - 1) / (self._stamps[-1] - self.origin)
        self.frames = len(self._paths)
        self._index = self._place = 0

    def __iter__(self) -> Iterator[Frame]:
        why = ""
        while self._place < len(self._paths):
            path = self._paths[self._place]
            self._place += 1
            try:
                image = pixels(path)
            except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
                self.skipped += 1
                why = why or f"{path.name}: {error}"
                if self._strict:
                    raise SourceError(
                        f"{path.name} cannot be read as an image ({error}); remove it or skip it"
                    ) from error
                continue
            self._index += 1
            place = self._place - 1
            time_s = place / (self.fps or 30.0) if self._stamps is None else self._stamps[place] - self._stamps[0]
            yield Frame(image, self._index - 1, time_s)
        if self._index == 0:
            raise SourceError(f"not one of the {len(self._paths)} images of {self.name} can be read ({why})")

    def place(self, frame: Frame) -> int:
        """See Source."""
        return self._place - 1

    def position(self) -> dict[str, Any]:
        """The number of the next frame, and its place among the images."""
        return {"source": self.name, "index": self._index, "place": self._place, "skipped": self.skipped}

    def seek(self, position: dict[str, Any]) -> None:
        """Go on with the image after the last one yielded."""
        self._check(position)
        if position["place"] > len(self._paths):
            raise SourceError(
                f"{self.name} has changed: it holds {len(self._paths)} images, {position['place']} were read"
            )
        self._index, self._place, self.skipped = position["index"], position["place"], position["skipped"]


def stamps(paths: list[Path]) -> list[float] | None:
    """The times in seconds that are the names of files; None where they are not, or not all different."""
    names = [path.stem for path in paths]
    if all(re.fullmatch(r"\d{9,10}\.\d+", name) for name in names):
        found = [float(name) for name in names]
    elif len({len(name) for name in names}) == 1 and re.fullmatch(r"\d{16}|\d{19}", names[0]):
        if not all(name.isdecimal() for name in names):
            return None
        found = [int(name) / 10.0 ** (len(name) - 10) for name in names]
    else:
        return None
    return found if len(set(found)) == len(found) > 1 else None


def pixels(path: Path) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of an image file, turned upright by its EXIF note.

    8 bits stay as they are; bits become 0 and 255; palettes, CMYK and greys become RGB; opacity is dropped. Of 16 bits
    the upper 8 count. Floats stand for 0 to 1, whole numbers of 32 bits for those of 16. Raises ValueError where they
    lie outside, or where 32 bits hold nothing above 255 and so may be meant as 8 (save them as 8 or 16 bits), and for
    a file of several images (an animation, pages), of which one would stand for all.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DependencyError("reading images needs Pillow: pip install pillow") from error
    with Image.open(path) as file:
        count = getattr(file, "n_frames", 1) if file.format in ("PNG", "WEBP", "TIFF", "GIF") else 1
        if count > 1:
            raise ValueError(f"it holds {count} images, expected one; convert it to a video or to single images")
        image = ImageOps.exif_transpose(file)
        if image.mode == "F":
            image = Image.fromarray(_scaled(np.asarray(image), 0, 1, 255))
        elif image.mode.startswith("I"):  # Pillow would clip it at 255
            least = 256 if image.mode == "I" and file.format == "TIFF" else 0
            image = Image.fromarray(_scaled(np.asarray(image), least, 65535, 1 / 256))
        return np.array(image.convert("RGB"))


def _scaled(values: NDArray[Any], least: int, most: int, by: float) -> NDArray[np.uint8]:
    """Values from 0 to `most` times `by`, in 8 bits; the greatest of them must be at least `least`, or 0."""
    low, high = values.min(), values.max()
    if not (low >= 0 and (high == 0 or least <= high <= most)):
        expected = f"0 to {most}" + (f" with some from {least} on" if least else "")
        raise ValueError(f"its values go from {low:g} to {high:g}, expected {expected}; save it with 8 or 16 bits")
    scaled = values.astype(np.float64) * by
    return np.asarray(np.floor(scaled) if by < 1 else np.round(scaled)).astype(np.uint8)
