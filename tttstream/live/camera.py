"""Camera: one source with its own memory, its status, and its commands."""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from tttstream.errors import ConfigError
from tttstream.frames import Frame, Result
from tttstream.live.boxes import Box, box_of, boxes_of
from tttstream.live.companion import Companion
from tttstream.live.follower import Follower
from tttstream.live.gate import PRESETS
from tttstream.live.panes import Pane
from tttstream.live.row import Command, Row
from tttstream.live.teacher import Teacher

MOST_SAVES = 8
SAVE_NAME = re.compile("[A-Za-z0-9_-]{1,32}")


class Camera(Row):
    """The public interface of a row. Any thread may call it."""

    # Output for the user.

    def wait(self, version: int, timeout_s: float) -> int:
        """Wait until the number of the newest result is above `version` or the time is over; returns that number."""
        with self._changed:
            self._changed.wait_for(lambda: self.version > version, timeout_s)
            return self.version

    def pane(self, kind: str, *, width: int = 480) -> Pane | None:
        """The newest picture of a kind: "frame", "surprise", "expected", "world" or "follow"; None if there is none
        yet.

        width: at most, in pixels. Raises ConfigError for another kind.
        """
        self._mark()
        return self._panes.get(kind, width)

    def _mark(self) -> list[dict[str, Any]]:
        """Show the followed things; returns the result."""
        follower = self.companions.get(Follower.KIND)
        if not isinstance(follower, Follower):
            return []
        self._panes.mark(follower.seen)
        return follower.things()

    def curve(self, after: int = -1) -> list[list[float]]:
        """[number, time in seconds, surprise, latency in ms] of the results with a number above `after`."""
        with self._changed:
            return [list(point) for point in self._curve if point[0] > after]

    @property
    def fps(self) -> float:
        """Results a second lately."""
        with self._changed:
            times = list(self._times)
        if len(times) < 2:
            return 0.0
        return (len(times) - 1) / max(max(times[-1], time.monotonic() - 1.0) - times[0], 1e-6)

    def status(self) -> dict[str, Any]:
        """The current status (JSON-able)."""
        feed, shown, gate = self.feed, self.shown, self.gate
        retry_at, now = feed.retry_at, time.monotonic()
        followed, teacher = self._mark(), self.companions.get(Teacher.KIND)
        return {
            "id": self.id,
            "label": self.label,
            "kind": self.kind,
            "state": self.state,
            "reason": self.reason,
            "retry_in_s": None if retry_at is None else round(max(retry_at - now, 0.0), 1),
            "attempts": feed.attempts,
            "policy": feed.policy_now,
            "source_fps": feed.fps,
            "dropped": feed.dropped,
            "skipped": feed.skipped,
            "refused": self.refused,
            "refusal": self.refusal,
            "trouble": "; ".join(f"{one.KIND}: {one.trouble}" for one in self.companions.values() if one.trouble),
            "learn": self.stream.learn,
            "frames": self.stream.frames,
            "state_bytes": self.stream.state_bytes,
            "version": self.version,
            "fps": round(self.fps, 1),
            "latency_ms": self._latency(),
            **_said(None if shown is None else shown.result),
            "picture": None if shown is None else [shown.frame.image.shape[1], shown.frame.image.shape[0]],
            "panes": self._panes.kinds,
            "age_s": None if shown is None else round(now - self._times[-1], 3),
            "threshold": gate.threshold,
            "preset": self.preset or None,
            "least_s": gate.least_s,
            "ignore": [list(box) for box in self.ignore],
            "event": self._event,
            "events": self.events,
            "follow": followed,
            "taught": teacher.taught() if isinstance(teacher, Teacher) else [],
            "said": teacher.said() if isinstance(teacher, Teacher) else [],
            "saved": [{"name": name, "frames": saved.frames} for name, saved in sorted(self.saves.items())],
            "snapshot": self.snapshot and {"frames": self.snapshot[0], "age_s": round(now - self.snapshot[1], 1)},
        }

    def _latency(self) -> dict[str, float | None]:
        with self._changed:
            recent = np.array(self._recent)
        if not recent.size:
            return {"last": None, "p50": None, "p95": None, "p99": None}
        values = [recent[-1], *np.percentile(recent, (50, 95, 99))]
        return {name: round(float(value), 2) for name, value in zip(("last", "p50", "p95", "p99"), values, strict=True)}

    # Commands of the user. Each runs between two frames; the result of the future is the new status.

    def _tell(self, job: Callable[[], Any], command: Command | None = None) -> Future[Any]:
        """Do a job in the worker, or by another command."""

        def done() -> dict[str, Any]:
            job()
            return self.status()

        return (command or self._command)(done)

    def set(
        self,
        *,
        learn: bool | None = None,
        preset: str | None = None,
        threshold: float | None = None,
        least_s: float | None = None,
        ignore: Sequence[Sequence[float]] | None = None,
    ) -> Future[Any]:
        """Change settings; None leaves a setting unchanged.

        learn: whether the memory learns. preset: "low", "normal" or "high" sensitivity. threshold: of the surprise, 0.5
        to 20. least_s: how long a surprise must last to be an event, 0 to 10 seconds. ignore: boxes (x0, y0, x1, y1) in
        0..1 of the picture, at most 32, that are grey for the model. The future raises ConfigError for other values.
        """

        def job() -> None:
            boxes = self.ignore if ignore is None else boxes_of(ignore)
            if preset is not None and preset not in PRESETS:
                raise ConfigError(f"there is no preset {preset!r}, expected one of {', '.join(PRESETS)}")
            _within("threshold", threshold, 0.5, 20.0)
            _within("least_s", least_s, 0.0, 10.0)
            if preset is not None:
                self.preset, self.gate.threshold = preset, PRESETS[preset]
            if threshold is not None:
                self.preset, self.gate.threshold = "", float(threshold)
            self.gate.least_s = self.gate.least_s if least_s is None else float(least_s)
            self.stream.learn = self.stream.learn if learn is None else bool(learn)
            self.ignore = boxes

        return self._tell(job)

    def forget(self) -> Future[Any]:
        """Reset the memory, as at the start of a stream."""
        return self._tell(self.stream.reset)

    def save(self, name: str = "saved") -> Future[Any]:
        """Save a copy of the memory under a name, at most MOST_SAVES; with snapshots also in a file."""

        def job() -> None:
            _check_name(name)
            if name not in self.saves and len(self.saves) >= MOST_SAVES:
                raise ConfigError(f"{MOST_SAVES} memories are saved already: save under one of {', '.join(self.saves)}")
            self.saves[name] = self.stream.copy()
            self.keep_save(name, self.saves[name])

        return self._tell(job)

    def restore(self, name: str = "saved") -> Future[Any]:
        """Continue with the memory saved under a name; settings stay."""

        def job() -> None:
            _check_name(name)
            if name not in self.saves:
                raise ConfigError(f"nothing is saved under {name!r}")
            learn = self.stream.learn
            self.stream = self.saves[name].copy()
            self.stream.learn = learn

        return self._tell(job)

    def follow(self, box: Sequence[float], name: str = "") -> Future[Any]:
        """Follow the thing in a box of the newest picture. At most MOST things are followed at a time.

        box: (x0, y0, x1, y1), as shares of the picture's width and height, 0..1. name: shown to people, at most 40
        letters. The future raises ConfigError or FrameError if this is not possible.
        """
        short = " ".join(name.split())[:40]
        return self._help(Follower, lambda follower, frame, place: follower.add(frame, place, short), box)

    def unfollow(self, number: int | None = None) -> Future[Any]:
        """Stop following a thing, by its number, or all things."""
        return self._stop_help(Follower, "nothing is followed", lambda follower: follower.drop(number))

    def teach(self, label: str, box: Sequence[float] | None = None) -> Future[Any]:
        """Teach one example of a thing: a box (x0, y0, x1, y1) in 0..1 of the newest picture, or the whole picture.

        More examples improve recognition. The future raises ConfigError if this is not possible.
        """
        return self._help(Teacher, lambda teacher, frame, place: teacher.teach(label, frame, place), box)

    def forget_label(self, label: str) -> Future[Any]:
        """Remove a taught name."""
        return self._stop_help(Teacher, "nothing was taught", lambda teacher: teacher.forget(label))

    def _help(
        self, kind: type[Companion], act: Callable[[Any, Frame, Box | None], Any], box: Sequence[float] | None
    ) -> Future[Any]:
        """Let a companion act on the newest frame, and on a box in it if there is one."""
        shown = self.shown
        try:
            place = None if box is None else box_of(box)
            if shown is None:
                raise ConfigError(f"{self.label} has shown no picture yet: there is nothing to {kind.KIND}")
            companion, frame = self.companion(kind.KIND), shown.frame
        except Exception as error:
            return failed(error)
        return self._tell(lambda: act(companion, frame, place), companion.do)

    def _stop_help(self, kind: type[Companion], missing: str, act: Callable[[Any], None]) -> Future[Any]:
        """Let a companion act. The future raises ConfigError with `missing` if there is none."""
        companion = self.companions.get(kind.KIND)
        if companion is None:
            return failed(ConfigError(missing))
        return self._tell(lambda: act(companion), companion.do)

    def companion(self, kind: str) -> Companion:
        """The companion of a kind, made at the first call. Raises the errors of loading its model."""
        with self._joining:
            if kind not in self.companions:
                self.companions = {**self.companions, kind: self._helpers(kind, self.id)}
        return self.companions[kind]

    def put(self, jpeg: bytes, captured: float | None = None) -> None:
        """Add a picture of a browser's camera; see `Pushed.put`. Raises ConfigError for another camera."""
        if self.pushed is None:
            raise ConfigError(f"{self.label} is no camera of a browser: it takes no pictures")
        self.pushed.put(jpeg, captured)


def failed(error: Exception) -> Future[Any]:
    """A future that has failed with this error."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _said(result: Result | None) -> dict[str, Any]:
    """The last result, for a status."""
    names = ("time_s", "surprise", "learned", "familiar")
    values = {name: None if result is None else getattr(result, name) for name in names}
    labels = () if result is None else result.labels
    return {
        **{name: None if value is None else round(value, 4) for name, value in values.items()},
        "labels": [{"label": name, "probability": round(probability, 4)} for name, probability in labels],
    }


def _check_name(name: str) -> None:
    if not SAVE_NAME.fullmatch(name):
        raise ConfigError(f"the name of a saved memory has 1 to 32 of A-Z, a-z, 0-9, _ and -, got {name!r:.60}")


def _within(what: str, value: float | None, low: float, high: float) -> None:
    if value is not None and (isinstance(value, bool) or not low <= value <= high):
        raise ConfigError(f"{what} is {value!r:.30}, expected {low:g} to {high:g}")
