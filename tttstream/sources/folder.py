"""Frames from a folder of images."""

from __future__ import annotations

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
    """The images of one folder in natural order (2 before 10), not those of its subfolders; or one image; or those
    that frame%05d.png stands for, by their numbers.

    path: the folder, image or pattern. fps: the rate they are shown at, 30 unless given. on_error: "skip" passes over
    an image that cannot be read and counts it, "raise" raises SourceError there. Time goes by the place in the folder,
    so a skipped image leaves a gap. Where all names are times of the day it goes by these, and `origin` is the first:
    seconds as in 1305031102.175304.png, or 16 or 19 digits of micro- or nanoseconds. Images may differ in size;
    `pages.Pages` says how they are brought to 8 bits.

    A file of several images (APNG, animated WebP, TIFF of several pages) gives each of them as a frame, once, at its
    place in the folder and at the folder's rate, which is then followed whatever the names are. An animation that is
    the only file goes by its own durations (one of 0 lasts as long as a frame at 30 per second), and `fps` is the rate
    of its first image. Behind a damaged image of an animation those drawn over it are passed over, too.

    Raises SourceError where there is no image, or at the end where not one could be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float = 30.0, on_error: str = "skip") -> None:
        folder = Path(path)
        self.name, self.fps, self._strict = shown(folder.name or str(folder)), fps, on_error == "raise"
        paths = [folder] if os.path.isfile(folder) else sequence(folder) or listed(folder, IMAGES)
        others = listed(folder, UNREAD) if folder.is_dir() else []
        kinds = ", ".join(sorted({path.suffix.lower() for path in others}))
        self._unread = f"{len(others)} images are passed over, of kinds that are not read: {kinds}" if others else ""
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
                    f"it holds {self._pages.count} images; name it .png, .webp, .gif or .tif for what it is"
                )
        return self._pages

    def _time(self, place: int) -> float:
        if self._clock is not None:
            return self._clock / 1000
        return place / (self.fps or 30.0) if self._stamps is None else self._stamps[place] - self._stamps[0]

    def place(self, frame: Frame) -> int:
        """See Source."""
        return self._place - 1

    def remarks(self) -> list[str]:
        """See Source."""
        return [self._unread] if self._unread else []

    def position(self) -> dict[str, Any]:
        """The number of the next frame, its place among the images, and in an animation its time."""
        clock = {} if self._clock is None else {"clock": self._clock}
        return {"source": self.name, "index": self._index, "place": self._place, "skipped": self.skipped} | clock

    def seek(self, position: dict[str, Any]) -> None:
        """Go on with the image after the last one yielded."""
        self._check(position)
        if position["place"] > len(self._images) or (self._clock is None) == ("clock" in position):
            raise SourceError(
                f"{self.name} has changed: it holds {len(self._images)} images, {position['place']} were read"
            )
        self.close()
        self._index, self._place, self.skipped = position["index"], position["place"], position["skipped"]
        self._clock = position.get("clock")

    def close(self) -> None:
        """See Source."""
        if self._pages is not None:
            self._pages.close()
            self._pages = None


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
