"""Frames with poses: of a recording from a file, of a live source from a callable or a file that grows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from numpy.typing import ArrayLike

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.poses import PoseMissing, Track
from tttstream.sources.base import Event, Source
from tttstream.sources.folder import ImageFolder
from tttstream.sources.live import Asked, Live


class Wrapped(Source):
    """The base class of sources that yield the frames of another one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name, self.fps = source.name, source.fps
        self.frames, self.estimated = source.frames, source.estimated

    @property
    def skipped(self) -> int:  # type: ignore[override]
        """Damaged frames skipped."""
        return self._source.skipped

    @property
    def truncated(self) -> bool:  # type: ignore[override]
        """Whether the source ended early."""
        return self._source.truncated

    def remarks(self) -> list[str]:
        return self._source.remarks() + super().remarks()

    def position(self) -> dict[str, Any]:
        return self._source.position()

    def seek(self, position: dict[str, Any]) -> None:
        self._source.seek(position)

    def close(self) -> None:
        self._source.close()


class Posed(Wrapped):
    """The frames of another source, each with its pose.

    source: a recording (a video, a folder of images, `walk`, an environment). track: its poses. on_error: for frames
    without a pose. "skip" skips them and counts them in `skipped` and `unposed`; "raise" raises SourceError. Frames are
    renumbered in the order in which they are yielded.

    Raises SourceError if the file and the source have no time in common, or at the end if no frame has a pose.
    """

    def __init__(self, source: Source, track: Track, *, on_error: str = "skip") -> None:
        if source.live:
            raise SourceError(f"{source.name} is live: give a file of poses that grows, not a recording")
        super().__init__(source)
        self._track, self._strict, self.pose_form = track, on_error == "raise", track.form
        track.begin(source.origin, None if source.frames is None or not source.fps else source.frames / source.fps)
        self.about = track.text
        if track.clock != "time" and source.frames is not None:
            self.about += f" ({source.name} has {source.frames} frames{_named(source)})"
        self._index, self.unposed = 0, 0
        self._last: dict[str, Any] | None = None  # the last pose, and its frame
        self._first_missing: str | None = None

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            place = self._source.place(frame)
            try:
                pose = self._track.pose(place, frame.time_s)
            except PoseMissing as missing:
                if self._strict:
                    raise
                self._first_missing = self._first_missing or str(missing)
                if self.frames is None and self._track.over(place, frame.time_s):
                    break  # an endless source has no further frame with a pose
                self.unposed += 1
                continue
            self._index += 1
            self._last = {"place": place, "time_s": frame.time_s, "pose": pose.tolist()}
            yield replace(frame, index=self._index - 1, pose=pose)
        if not self._index and self.unposed:
            raise SourceError(f"{self.name}: not one of {self.unposed} frames has a pose; {self._first_missing}")

    def place(self, frame: Frame) -> int | None:
        """See Source: the number in the source, where frames without a pose count too."""
        return None if self._last is None else self._last["place"]

    @property
    def skipped(self) -> int:  # type: ignore[override]
        """Frames skipped: damaged ones, and those without a pose."""
        return super().skipped + self.unposed

    def remarks(self) -> list[str]:
        missing = [f"{self.unposed} frames skipped without a pose, the first: {self._first_missing}"]
        return super().remarks() + (missing if self.unposed else [])

    def position(self) -> dict[str, Any]:
        """The position of the source, with the numbers of frames and the last pose, which identifies the file."""
        posed = {"index": self._index, "unposed": self.unposed, "last": self._last, "missing": self._first_missing}
        return {**super().position(), "posed": posed}

    def seek(self, position: dict[str, Any]) -> None:
        """Continue where `position()` was taken. Raises SourceError if the poses have changed."""
        posed = position.get("posed")
        bare = {key: value for key, value in position.items() if key != "posed"}
        self._check(bare)
        if posed is None:
            raise SourceError(
                f"{self.name}: the position was taken without poses; continue without them, or start from the beginning"
            )
        last = posed["last"]
        try:
            same = last is None or self._track.pose(last["place"], last["time_s"]).tolist() == last["pose"]
        except PoseMissing:
            same = False
        if not same:
            raise SourceError(
                f"{self._track.name} has changed: it has another pose for the last frame before this position"
            )
        super().seek(bare)
        self._index, self.unposed = posed["index"], posed["unposed"]
        self._last, self._first_missing = last, posed["missing"]

    def events(self, until: int) -> list[Event] | None:
        """The events of the source; None if frames were skipped, because this changes the numbers of frames."""
        return None if self.unposed else self._source.events(until)


def _named(source: Source) -> str:
    """What to know of images whose names have other numbers than their frames."""
    numbers = source.numbers if isinstance(source, ImageFolder) else None
    if numbers is None or (numbers == [*range(numbers[0], numbers[0] + len(numbers))] and numbers[0] < 2):
        return ""
    return f", counted from 0; their names have the numbers {numbers[0]} to {numbers[-1]}"


class LivePosed(Wrapped, Live):
    """The frames of a live stream (a network camera), each with the pose at its capture time.

    give, on_error: as in Asked; "raise" raises SourceError at a frame without a pose.
    """

    _asked: Asked

    def __init__(self, source: Source, give: Callable[[float], ArrayLike | None], *, on_error: str = "skip") -> None:
        super().__init__(source)
        self._asked = Asked(give, source.name, strict=on_error == "raise")
        self.about = self._asked.text

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            yield self._asked.put(frame, self._asked.ask(time.monotonic()))
