"""Frames from a folder of images."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.io.names import shown
from tttstream.sources.base import Source
from tttstream.sources.listing import IMAGES, UNREAD, VIDEOS, expand, listed, natural, sequence
from tttstream.sources.pages import FAILURES, SEVERAL, Pages, count_pages

__all__ = ["IMAGES", "VIDEOS", "ImageFolder", "expand", "listed", "natural"]


class ImageFolder(Source):
    """The images of one folder in natural order (2 before 10), without subfolders; or one image; or the numbered images
    that match a pattern such as frame%05d.png.

    path: the folder, image or pattern. fps: the frame rate, 30 unless given. on_error: "skip" skips an image that
    cannot be read and counts it, "raise" raises SourceError. The time of a frame follows from its position in the
    folder, so a skipped image leaves a gap. If all names are timestamps (seconds as in 1305031102.175304.png, or 16 or
    19 digits of micro- or nanoseconds), these are the times, and `origin` is the first. Images may differ in size;
    `pages.Pages` describes their conversion to 8 bits.

    A file of several images (APNG, animated WebP, TIFF of several pages) yields each of them once, at its position in
    the folder. The times then follow from the rate, also if the names are timestamps. An animation that is the only
    file has its own durations (a duration of 0 counts as 1/30 s), and `fps` is the rate of its first image. After a
    damaged image of an animation, the images that are drawn over it are skipped too.

    Raises SourceError if there is no image, or at the end if none could be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float = 30.0, on_error: str = "skip") -> None:
        folder = Path(path)
        self.name, self.fps, self._strict = shown(folder.name or str(folder)), fps, on_error == "raise"
        paths = [folder] if os.path.isfile(folder) else sequence(folder) or listed(folder, IMAGES)
        others = listed(folder, UNREAD) if folder.is_dir() else []
        kinds = ", ".join(sorted({path.suffix.lower() for path in others}))
        self._unread = f"{len(others)} images are skipped, of kinds that are not read: {kinds}" if others else ""
        if not paths:
            raise SourceError(f"{folder} holds no images ({', '.join(sorted(IMAGES))}); name a folder that does")
        self._stamps = stamps(paths)
        if self._stamps is not None:
            self._stamps, paths = map(list, zip(*sorted(zip(self._stamps, paths, strict=True)), strict=True))
        self._images = [(path, page) for path in paths for page in range(count_pages(path))]
        self.frames = len(self._images)
        if self.frames > len(paths):
            self._stamps = None
        if self._stamps is not None:
            self.origin = self._stamps[0]
            self.fps = (len(self._stamps) - 1) / (self._stamps[-1] - self.origin)
        self._index = self._place = 0
        self._pages: Pages | None = None
        self._clock: float | None = None  # in ms, of an animation by itself
        if len(paths) == 1 and self.frames > 1:
            with Pages(paths[0]) as pages:
                if pages.timed:
                    self._clock, self.fps = 0.0, 1000 / (pages.first_duration() or 1000 / 30)

    def __iter__(self) -> Iterator[Frame]:
        why = ""
        while self._place < len(self._images):
            path, page = self._images[self._place]
            self._place += 1
            try:
                pages = self._opened(path)
                image = pages.read(page)
            except FAILURES as error:
                self.skipped += 1
                why = why or f"{path.name}: {error}"
                if self._strict:
                    raise SourceError(
                        f"{path.name} cannot be read as an image ({error}); remove it or skip it"
                    ) from error
                continue
            self._index += 1
            time_s = self._time(self._place - 1)
            if self._clock is not None:
                self._clock += pages.duration() or 1000 / 30
            yield Frame(image, self._index - 1, time_s)
        self.close()
        if self._index == 0:
            raise SourceError(f"not one of the {len(self._images)} images of {self.name} can be read ({why})")

    def _opened(self, path: Path) -> Pages:
        if self._pages is None or self._pages.path != path:
            self.close()
            self._pages = Pages(path)
            if self._pages.count > 1 and path.suffix.lower() not in SEVERAL:
                raise ValueError(
                    f"it contains {self._pages.count} images; its suffix must be .png, .webp, .gif or .tif, according "
                    "to its format"
                )
        return self._pages

    def _time(self, place: int) -> float:
        if self._clock is not None:
            return self._clock / 1000
        return place / (self.fps or 30.0) if self._stamps is None else self._stamps[place] - self._stamps[0]

    @property
    def numbers(self) -> list[int] | None:
        """The numbers at the ends of the names of all images; None if the names differ in anything else."""
        found = [re.fullmatch(r"(.*?)(\d+)", path.stem) for path, _ in self._images]
        parts = [(one[1], int(one[2])) for one in found if one is not None]
        alike = len(parts) == len(found) and len(dict(parts)) == 1 and self._stamps is None
        return [number for _, number in parts] if alike else None

    def place(self, frame: Frame) -> int:
        return self._place - 1

    def remarks(self) -> list[str]:
        return [self._unread] if self._unread else []

    def position(self) -> dict[str, Any]:
        """The number of the next frame, its position among the images, and in an animation its time."""
        clock = {} if self._clock is None else {"clock": self._clock}
        return {"source": self.name, "index": self._index, "place": self._place, "skipped": self.skipped} | clock

    def seek(self, position: dict[str, Any]) -> None:
        """Continue with the image after the last one yielded."""
        self._check(position)
        if position["place"] > len(self._images) or (self._clock is None) == ("clock" in position):
            raise SourceError(
                f"{self.name} has changed: it holds {len(self._images)} images, {position['place']} were read"
            )
        self.close()
        self._index, self._place, self.skipped = position["index"], position["place"], position["skipped"]
        self._clock = position.get("clock")

    def close(self) -> None:
        if self._pages is not None:
            self._pages.close()
            self._pages = None


def stamps(paths: list[Path]) -> list[float] | None:
    """The times in seconds in the names of files; None if the names are no times, or not all different."""
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
