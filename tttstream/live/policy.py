"""Policies that select the frames of a source, and the inbox in which a frame waits."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tttstream.errors import ConfigError
from tttstream.frames import Frame
from tttstream.sources.base import Source


class Taken(NamedTuple):
    """A waiting frame. captured: the time of its capture, by `time.monotonic()`. source: of the frame. position: that
    of the source after the frame, if it was asked for."""

    frame: Frame
    captured: float
    source: Source
    position: dict[str, Any] | None = None


@dataclass(frozen=True)
class Policy:
    """newest: a new frame replaces the waiting one; otherwise the source waits. every: only each n-th frame. `newest`
    None means true for a live source, false for a recording.
    """

    newest: bool | None = None
    every: int = 1

    @classmethod
    def parse(cls, text: str) -> Policy:
        """The policy named "auto", "latest", "all" or "every N". Raises ConfigError for another text."""
        found = re.fullmatch(r"every[ :=]?([1-9][0-9]{0,5})", text)
        if found:
            return cls(every=int(found[1]))
        if text not in ("auto", "latest", "all"):
            raise ConfigError(f"a policy is latest, all or 'every N' (or auto), got {text!r}")
        return cls({"auto": None, "latest": True, "all": False}[text])

    def decided(self, live: bool) -> Policy:
        """The policy for a live source or a recording, without None."""
        return Policy(live if self.newest is None else self.newest, self.every)

    def __str__(self) -> str:
        if self.every > 1:
            return f"every {self.every}"
        return {None: "auto", True: "latest", False: "all"}[self.newest]


class Inbox:
    """A queue of one frame between the thread of a source and the worker. dropped: the number of replaced frames.

    notify: called after a frame was put in.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._changed = threading.Condition()
        self._frame: Taken | None = None
        self._open = True
        self.waiting = False  # whether the source waits until the frame is taken
        self.dropped = 0
        self._wanted = False

    @property
    def full(self) -> bool:
        """Whether a frame waits."""
        return self._frame is not None

    def put(self, taken: Taken, newest: bool) -> bool:
        """Put a frame in; False if the inbox is closed."""
        with self._changed:
            if not newest:
                self.waiting = True
                self._changed.wait_for(lambda: self._frame is None or not self._open)
                self.waiting = False
            if not self._open:
                return False
            before, self._frame = self._frame, taken
            if before is not None:
                self.dropped += 1
                if before.position is not None and taken.position is None:  # requested, and not yet answered
                    self._wanted = True
        self._notify()
        return True

    def take(self) -> Taken | None:
        """Take the waiting frame, None if there is none."""
        with self._changed:
            taken, self._frame = self._frame, None
            self._changed.notify_all()
        return taken

    def close(self) -> None:
        """Close the inbox, and wake all waiting threads."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def wake(self) -> None:
        """Wake the worker after a change."""
        self._notify()

    def want_position(self) -> None:
        """Request the position after one of the next frames."""
        self._wanted = True

    def position_wanted(self) -> bool:
        """Whether the position after the next frame was requested; the request then counts as answered."""
        wanted, self._wanted = self._wanted, False
        return wanted
