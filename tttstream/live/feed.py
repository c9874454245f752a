"""Feed: one source in its own thread, reopened after a failure."""

import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tttstream.errors import SourceError, TTTStreamError
from tttstream.frames import Frame
from tttstream.io.names import shortened
from tttstream.live.policy import Inbox, Policy, Taken
from tttstream.sources.base import Source

Opener = Callable[[], Source]

STALL_S = 2.0  # a live source without a frame for this time counts as stalled
LATE_S = 1.0  # a recording that is late by this time restarts its clock
PAUSE_S = 2.0  # longest wait of a recording for the time of its next frame, because its clock may jump


@dataclass(frozen=True)
class Retry:
    """The wait before a source is reopened: `first` seconds, doubled each time, at most `most`."""

    first: float = 0.5
    most: float = 30.0

    def wait_s(self, attempts: int) -> float:
        """The seconds before the attempt after this number of failures."""
        return float(min(self.most, self.first * 2.0 ** min(attempts - 1, 30)))


class Feed:
    """Reads a source and puts its frames into an inbox, until it ends or `stop` is called.

    open_source: opens the source; called again after a failure if `lasting`, and when a live source ends. policy,
    inbox: see there. seen: called with every frame, in this thread. paced: a recording plays at its own rate. looped: a
    recording restarts at its end. limit: the number of frames to put into the inbox. position: where to continue, of
    `Taken` or `final`. told: changes a message before it is shown.

    Numbers and times of frames continue after failures and in loops. The time of a live source counts from its first
    capture.

    state: "opening", "running", "stalled", "retrying", "ended" or "failed". reason: of the last failure, in one line.
    final: the position after the last frame put into the inbox, set when the thread has ended.
    """

    def __init__(
        self,
        open_source: Opener,
        inbox: Inbox,
        *,
        name: str,
        policy: Policy,
        lasting: bool,
        paced: bool = True,
        looped: bool = False,
        limit: int | None = None,
        position: dict[str, Any] | None = None,
        retry: Retry | None = None,
        seen: Callable[[Frame], None] | None = None,
        told: Callable[[str], str] = str,
    ) -> None:
        self._open, self.inbox, self._seen = open_source, inbox, seen
        self.policy, self._lasting, self._paced, self._looped, self._limit = policy, lasting, paced, looped, limit
        self._retry = retry or Retry()
        self._position, self._name, self._told = position, name, told
        self._stop = threading.Event()
        self._state, self.reason, self.attempts = "opening", "", 0
        self.retry_at: float | None = None
        self.source: Source | None = None
        self.final = position
        self._read = self._handed = self._gone = 0  # frames read; handed over; skipped by sources that are closed
        self._missed_before = 0
        self._index, self._time_s = 0, 0.0  # earliest number of the next frame
        self._offset: tuple[int, float] = 0, 0.0  # start of the current source
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"tttstream feed {name}", daemon=True)

    def start(self) -> None:
        """Start to read."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current frame; returns at once."""
        self._stop.set()
        source = self.source
        if source is not None and source.live and hasattr(source, "put"):
            source.close()  # it would wait for a picture that never comes

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread. Returns whether it has ended within this time."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether there may be more frames."""
        return self._state not in ("ended", "failed")

    @property
    def state(self) -> str:
        """The state in one word, see the class."""
        source = self.source
        silent = time.monotonic() - self._last > STALL_S and not self.inbox.waiting and not self.inbox.full
        stalled = self._state == "running" and silent and source is not None and source.live
        return "stalled" if stalled else self._state

    @property
    def rests(self) -> bool:
        """Whether no frame is expected: the source ended, failed, or sends nothing."""
        return not self.inbox.full and self.state in ("opening", "retrying", "stalled", "ended", "failed")

    def place(self) -> dict[str, Any] | None:
        """The position to resume from while `rests` is true."""
        source = self.source
        return self.final if source is None or not source.live else self._place(source, self._offset)

    @property
    def policy_now(self) -> str:
        """The policy for the current source."""
        source = self.source
        return str(self.policy if source is None else self.policy.decided(source.live))

    @property
    def fps(self) -> float | None:
        """The nominal rate of the current source."""
        source = self.source
        return None if source is None else source.fps

    @property
    def skipped(self) -> int:
        """Damaged frames so far."""
        return self._gone + (self.source.skipped if self.source is not None else 0)

    @property
    def dropped(self) -> int:
        """The number of dropped frames so far."""
        return self.inbox.dropped + self._missed_before + int(getattr(self.source, "missed", 0))

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._state = "opening"
                again = self._attempt()
                if not again or self._stop.is_set():
                    break
            if self._state != "failed":
                self._state = "ended"
        finally:
            self.inbox.wake()

    def _attempt(self) -> bool:
        """Read a source once to its end. Returns whether to reopen it."""
        source = None
        try:
            source = self._open()
            self.source = source
            live, resumed = source.live, self._position is not None
            self._follow(source)
            again = live or (self._looped and (self._read > 0 or resumed))  # an empty recording is not repeated forever
            said = "the stream ended" if live else ""
        except Exception as error:  # any error of a driver or a decoder ends only this source
            again, said = self._lasting or (source is not None and source.live), self._told(_line(error))
            live = True
            if not again:
                self._state, self.reason = "failed", said
        finally:
            if source is not None:
                self._put_away(source)
        if self._limit is not None and self._handed >= self._limit:
            return False
        if again and live and not self._stop.is_set():
            self._wait(said)
        return again

    def _put_away(self, source: Source) -> None:
        self.source = None
        self._gone += source.skipped
        self._missed_before += int(getattr(source, "missed", 0))
        with suppress(Exception):  # it is broken already
            source.close()
        # Pictures of a closed file in PyAV, and their threads, are freed by a garbage collection; this one is fast
        gc.collect(1)

    def _wait(self, reason: str) -> None:
        self.attempts += 1
        pause = self._retry.wait_s(self.attempts)
        self.reason, self._state, self.retry_at = reason, "retrying", time.monotonic() + pause
        self._stop.wait(pause)
        self.retry_at = None

    def _follow(self, source: Source) -> None:
        position, self._position = self._position, None
        offset = self._index, self._time_s
        if position is not None:
            offset = tuple(position["offset"])
            self._index, self._time_s = position["index"], position["time_s"]
            if position["name"] != self._name:
                raise SourceError(f"the position is from {position['name']!r}, this source is {self._name!r}")
            if not source.live and position["source"] is not None:
                source.seek({**position["source"], "source": source.name})
        self._offset = offset
        policy = self.policy.decided(source.live)
        pace = _Pace(self._stop) if self._paced and not source.live else None
        origin = None
        self._last = time.monotonic()
        try:
            for frame in source:
                now = time.monotonic()
                if pace is not None:
                    pace.wait(frame.time_s)
                    now = time.monotonic()
                captured = now if frame.captured is None else min(frame.captured, now)
                if source.live:
                    origin = captured - self._time_s if origin is None else origin
                    frame = replace(frame, index=self._index, time_s=max(captured - origin, self._time_s))
                elif any(offset):
                    frame = replace(frame, index=frame.index + offset[0], time_s=frame.time_s + offset[1])
                self._state, self._last, self.attempts, self.reason = "running", now, 0, ""
                self._read += 1
                self._index, self._time_s = frame.index + 1, frame.time_s + 1e-3
                if self._seen is not None:
                    self._seen(frame)
                if policy.every == 1 or (self._read - 1) % policy.every == 0:
                    self._hand_over(source, frame, captured, policy, offset)
                if self._stop.is_set() or (self._limit is not None and self._handed >= self._limit):
                    break
        finally:
            with suppress(Exception):  # a failed source may not know its position
                self.final = self._place(source, offset)
        self._time_s += 1 / (source.fps or 25.0)

    def _hand_over(self, source: Source, frame: Frame, captured: float, policy: Policy, offset: Any) -> None:
        place = self._place(source, offset) if self.inbox.position_wanted() else None
        before = self.inbox.dropped
        if self.inbox.put(Taken(frame, captured, source, place), bool(policy.newest)):
            self._handed += 1 - (self.inbox.dropped - before)

    def _place(self, source: Source, offset: tuple[int, float]) -> dict[str, Any]:
        """The position to resume from (JSON-able)."""
        place = None if source.live else {**source.position(), "source": ""}  # the name may be an address with secrets
        return {
            "name": self._name,
            "source": place,
            "offset": list(offset),
            "index": self._index,
            "time_s": self._time_s,
        }


class _Pace:
    """Waits for the times of a recording's frames."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._start: float | None = None

    def wait(self, time_s: float) -> None:
        now = time.monotonic()
        early = 0.0 if self._start is None else self._start + time_s - now
        if self._start is None or not -LATE_S < early < PAUSE_S:
            early = min(max(early, 0.0), PAUSE_S)
            self._start = now + early - time_s
        if early > 0:
            self._stop.wait(early)


def _line(error: Exception) -> str:
    """The error in one line."""
    said = " ".join(str(error).split()) or "no reason given"
    known = isinstance(error, (TTTStreamError, SourceError))
    return shortened(said if known else f"{type(error).__name__}: {said}", 300)
