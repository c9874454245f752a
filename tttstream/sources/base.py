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
    """Something that a generated source planted: what, from which frame, to which frame (exclusive).

    where: the pose, or a part of one, at which it is seen, for what happened at a place. since: the frame in which it
    happened, for what is seen only later.
    """

    kind: str
    start: int
    stop: int
    where: tuple[float, ...] | None = None
    since: int | None = None


class Source(ABC):
    """Yields frames one at a time and holds no more than a few of them, however slowly they are taken.

    name: short text for reports. fps: nominal rate, None where unknown. live: true where time does not wait (camera).
    skipped: damaged frames passed over so far. truncated: true once the source broke off before its end, or a part of
    it turned out to be unreadable. frames: how many frames there are in all (as its header says), None where unknown
    or endless. Frames are numbered in the order in which they are yielded: a skipped one takes no number.
    pose_form: what the poses of its frames are, None where they have none. unposed: frames without a pose so far, where
    poses were asked for. about: what was understood of where poses come from, in one line. origin: what a clock said at
    its time 0 in seconds, None where unknown.
    """

    name: str
    fps: float | None = None
    frames: int | None = None
    live: bool = False
    skipped: int = 0
    truncated: bool = False
    pose_form: Form | None = None
    unposed: int = 0
    about: str = ""
    origin: float | None = None

    def place(self, frame: Frame) -> int | None:
        """The number of the frame just yielded if skipped ones count too; None where damage makes it unknown."""
        return frame.index

    def remarks(self) -> list[str]:
        """Remarks for a person about the run, one line each."""
        return []

    def _check(self, position: dict[str, Any]) -> None:
        """Refuse a position that another source gave."""
        if position.get("source") != self.name or not isinstance(position.get("index"), int):
            came = position.get("source")
            raise SourceError(f"{self.name} cannot go on at a position of {came!r}; open the source it was taken from")

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Frames from the current position on. One iterator at a time."""

    @abstractmethod
    def position(self) -> dict[str, Any]:
        """The position of the source (JSON-able): `seek` with it goes on with the frame after the last one yielded."""

    @abstractmethod
    def seek(self, position: dict[str, Any]) -> None:
        """Go on where `position()` was taken, so that the next frames are the same bit for bit."""

    def events(self, until: int) -> list[Event] | None:
        """The planted events before frame `until`; None for a source that has none."""
        return None

    def close(self) -> None:  # noqa: B027
        """Give back files, devices and threads. Safe to call twice."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
