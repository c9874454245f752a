"""The base class of sources: an iterator of Frames that can be closed, counted and resumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.poses import Form


@dataclass(frozen=True)
class Event:
    """An event that a generated source inserted: its kind, its first frame, and the frame after its last.

    where: the pose, or a part of it, at which the event is visible, if it has a place. since: the frame in which it
    happened, if it is visible only later.
    """

    kind: str
    start: int
    stop: int
    where: tuple[float, ...] | None = None
    since: int | None = None


class Source(ABC):
    """Yields frames one at a time and stores only a few of them, even if the reader is slow.

    name: short text for reports. fps: nominal rate, None if unknown. live: whether frames come in real time (camera).
    skipped: damaged frames skipped so far. truncated: true after the source ended early, or a part of it was
    unreadable. frames: the number of frames (from its header), None if unknown or endless. estimated: whether `frames`
    is an estimate from the duration and the rate, which is wrong if the rate varies. Frames are numbered in the order
    in which they are yielded; a skipped frame has no number. pose_form: the form of the poses of its frames, None if
    they have none. unposed: the number of frames without a pose so far, if poses were requested. about: one line that
    describes the origin of the poses. origin: the clock time in seconds of its time 0, None if unknown.
    """

    name: str
    fps: float | None = None
    frames: int | None = None
    estimated: bool = False
    live: bool = False
    skipped: int = 0
    truncated: bool = False
    pose_form: Form | None = None
    unposed: int = 0
    about: str = ""
    origin: float | None = None

    def ends_before(self, index: int) -> bool:
        """Whether the source certainly has no frame with this number."""
        return self.frames is not None and not self.estimated and index >= self.frames

    def place(self, frame: Frame) -> int | None:
        """The number of the last yielded frame, counting skipped ones; None if damage makes it unknown."""
        return frame.index

    def remarks(self) -> list[str]:
        """Remarks about the run for the user, one line each."""
        return []

    def _check(self, position: dict[str, Any]) -> None:
        """Raise SourceError for a position of another source, or of this one with other poses."""
        if position.get("source") != self.name or not isinstance(position.get("index"), int):
            came = position.get("source")
            raise SourceError(f"{self.name} cannot continue at a position of {came!r}; open the source that it is from")
        if "posed" in position:
            raise SourceError(
                f"{self.name}: the position was taken with other poses; continue with the same --poses or --pose"
            )

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Frames from the current position on. One iterator at a time."""

    @abstractmethod
    def position(self) -> dict[str, Any]:
        """The position of the source (JSON-able): `seek` continues from it with the frame after the last one
        yielded."""

    @abstractmethod
    def seek(self, position: dict[str, Any]) -> None:
        """Continue where `position()` was taken, so that the next frames are the same bit for bit. Raises SourceError
        for a position of another source."""

    def events(self, until: int) -> list[Event] | None:
        """The planted events before frame `until`; None for a source that has none."""
        return None

    def close(self) -> None:  # noqa: B027
        """Release files, devices and threads. Safe to call twice."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
