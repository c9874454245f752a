"""Frames with poses: of a recording from a file, of a live source from a callable or a file that grows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from numpy.typing import ArrayLike

from tttstream.errors import FrameError, SourceError, TTTStreamError
from tttstream.frames import Frame
from tttstream.poses import Form, PoseMissing, Track
from tttstream.sources.base import Event, Source


class Posed(Source):
    """The frames of another source, each with its pose.

    source: a recording (a video, a folder of images, `walk`, an environment). track: its poses. on_error: for frames
    without a pose. "skip" skips them and counts them in `skipped` and `unposed`; "raise" raises SourceError. Frames are
    renumbered in the order in which they are yielded.

    Raises SourceError if the file and the source have no time in common, or at the end if no frame has a pose.
    """

    def __init__(self, source: Source, track: Track, *, on_error: str = "skip") -> None:
        if source.live:
            raise SourceError(f"{source.name} is live: give a file of poses that grows, not a recording")
        self._source, self._track, self._strict = source, track, on_error == "raise"
        self.name, self.fps, self.frames, self.pose_form = source.name, source.fps, source.frames, track.form
        track.begin(source.origin, None if source.frames is None or not source.fps else source.frames / source.fps)
        self.about = track.text
        if track.clock != "time" and source.frames is not None:
            self.about += f" ({source.name} has {source.frames} frames)"
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
        return self._source.skipped + self.unposed

    @property
    def truncated(self) -> bool:  # type: ignore[override]
        """Whether the source ended early."""
        return self._source.truncated

    def remarks(self) -> list[str]:
        missing = [f"{self.unposed} frames skipped without a pose, the first: {self._first_missing}"]
        return self._source.remarks() + (missing if self.unposed else [])

    def position(self) -> dict[str, Any]:
        """The position of the source, with the numbers of frames and the last pose, which identifies the file."""
        posed = {"index": self._index, "unposed": self.unposed, "last": self._last, "missing": self._first_missing}
        return {**self._source.position(), "posed": posed}

    def seek(self, position: dict[str, Any]) -> None:
        """Continue where `position()` was taken. Raises SourceError if the poses have changed."""
        self._check(position)
        posed = position.get("posed")
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
        self._source.seek(position)
        self._index, self.unposed = posed["index"], posed["unposed"]
        self._last, self._first_missing = last, posed["missing"]

    def events(self, until: int) -> list[Event] | None:
        """The events of the source; None if frames were skipped, because this changes the numbers of frames."""
        return None if self.unposed else self._source.events(until)

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class Asked:
    """Requests the current pose, and counts the frames without a pose.

    give: a callable that takes the capture time (`time.monotonic()`) and returns a pose, or None if it is unknown; or a
    Feed. A frame without a pose is unchanged and counts in `unposed`; with strict it raises PoseMissing.
    """

    def __init__(self, give: Callable[[float], ArrayLike | None], name: str, *, strict: bool) -> None:
        self._give, self._name, self._strict = give, name, strict
        self.unposed, self.first = 0, ""
        self._width: int | None = None

    def ask(self, moment: float) -> Any:
        """Request the current pose, for `put`. Returns errors instead of raising them, for use in a thread."""
        try:
            pose = self._give(moment)
            return pose if pose is not None else PoseMissing(getattr(self._give, "reason", "") or "none was given")
        except Exception as error:  # code of the user; `put` raises the error in the thread of the reader
            return error

    def put(self, frame: Frame, answer: Any) -> Frame:
        """The frame with the answered pose. Raises SourceError if the request failed."""
        if isinstance(answer, PoseMissing):
            return self._none(frame, str(answer))
        if isinstance(answer, Exception):
            if isinstance(answer, TTTStreamError):
                raise answer
            what = " ".join(str(answer).split())
            raise SourceError(
                f"{self._name}: the request for a pose failed: {type(answer).__name__}: {what}"
            ) from answer
        try:
            posed = replace(frame, pose=answer)
        except FrameError as error:
            return self._none(frame, str(error))
        assert posed.pose is not None
        self._width = self._width or posed.pose.size
        if posed.pose.size != self._width:
            return self._none(frame, f"a pose of {posed.pose.size} numbers, those before had {self._width}")
        return posed

    def _none(self, frame: Frame, reason: str) -> Frame:
        said = f"frame {frame.index} at {frame.time_s:.3f} s: {reason}"
        if self._strict:
            raise PoseMissing(f"{self._name} has no pose for {said}")
        self.unposed, self.first = self.unposed + 1, self.first or said
        return frame

    def remarks(self) -> list[str]:
        """A line about the frames without a pose, if there are any."""
        return [f"{self.unposed} frames without a pose, the first: {self.first}"] if self.unposed else []


class LivePosed(Source):
    """The frames of a live stream (a network camera), each with the pose at its capture time.

    give, on_error: as in Asked; "raise" raises SourceError at a frame without a pose.
    """

    live = True

    def __init__(self, source: Source, give: Callable[[float], ArrayLike | None], *, on_error: str = "skip") -> None:
        self._source, self._give = source, give
        self._asked = Asked(give, source.name, strict=on_error == "raise")
        self.name, self.fps, self.frames = source.name, source.fps, source.frames
        self.about = str(getattr(give, "text", ""))

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            yield self._asked.put(frame, self._asked.ask(time.monotonic()))

    @property
    def pose_form(self) -> Form | None:  # type: ignore[override]
        """The form of the poses, None while it is unknown."""
        return getattr(self._give, "form", None)

    @property
    def unposed(self) -> int:  # type: ignore[override]
        """Frames without a pose so far."""
        return self._asked.unposed

    @property
    def skipped(self) -> int:  # type: ignore[override]
        """Damaged frames skipped."""
        return self._source.skipped

    @property
    def truncated(self) -> bool:  # type: ignore[override]
        """Whether the stream ended early."""
        return self._source.truncated

    def remarks(self) -> list[str]:
        return self._source.remarks() + self._asked.remarks()

    def position(self) -> dict[str, Any]:
        """The position of the stream."""
        return self._source.position()

    def seek(self, position: dict[str, Any]) -> None:
        """Go on counting from a position."""
        self._source.seek(position)

    def close(self) -> None:
        """Close the stream."""
        self._source.close()
