"""Camera: one source with its own memory, what it says, and what a person can tell it."""

from __future__ import annotations

import copy
import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from tttstream.errors import ConfigError
from tttstream.evaluation.measures import Latencies
from tttstream.frames import Frame, Result
from tttstream.live.boxes import Box, box_of, boxes_of
from tttstream.live.companion import Companion
from tttstream.live.feed import Feed
from tttstream.live.film import Clip, Film
from tttstream.live.follower import Follower
from tttstream.live.gallery import Gallery, moment
from tttstream.live.gate import PRESETS, Gate
from tttstream.live.panes import Pane, Panes, Shown, why
from tttstream.live.policy import Taken
from tttstream.live.snapshots import Kept
from tttstream.sources.base import Source
from tttstream.sources.pushed import Pushed
from tttstream.streams import Session
from tttstream.views.overlay import to_uint8

Helpers = Callable[[str, str], Companion]
"""Makes a companion of a kind for the camera of that id."""
CURVE = 600  # results that are kept for a curve
RECENT = 512  # latencies behind the percentiles of now
GREY = 127  # what a model sees of what is ignored
MOST_SAVES = 8
SAVE_NAME = re.compile("[A-Za-z0-9_-]{1,32}")


class Camera:
    """A source, its stream, and all that is known of both. The worker of an engine calls `masked`, `took`, `refuse` and
    `obey`; everything else may be called by any thread.

    id: of [A-Za-z0-9_-]. label: for people. kind: see `naming.kind_of`. command: hands a job to the worker. helpers:
    makes companions. shown: the newest result with its frame. event_begins: the number of the frame at which
    the last event was told.
    """

    def __init__(
        self,
        name: str,
        label: str,
        kind: str,
        stream: Session,
        gallery: Gallery,
        command: Callable[[Camera, Callable[[], Any]], Future[Any]],
        *,
        filmed: bool,
        helpers: Helpers,
    ) -> None:
        self.id, self.label, self.kind = name, label, kind
        self.stream, self.gallery, self._command, self._helpers = stream, gallery, command, helpers
        self.companions: dict[str, Companion] = {}
        self._joining = threading.Lock()
        self.feed: Feed
        self.pushed: Pushed | None = None
        self.film = Film() if filmed else None
        self.gate, self.preset = Gate(), "normal"
        self.ignore: tuple[Box, ...] = ()
        self.version = self.refused = self.events = 0
        self.refusal = self.broken = ""
        self.latencies = Latencies()
        self.snapshot: tuple[int, float] | None = None
        self.saves: dict[str, Session] = {}
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._curve: deque[list[float]] = deque(maxlen=CURVE)
        self._times: deque[float] = deque(maxlen=50)
        self._event: int | None = None
        self._rise: tuple[Shown, dict[str, Any]] | None = None
        self._source: Source | None = None
        self.shown: Shown | None = None
        self.event_begins: int | None = None
        self._panes = Panes()
        self._changed = threading.Condition()

    # What the worker calls, in its thread.

    def masked(self, taken: Taken) -> Frame:
        """The frame that the model sees; prepares the stream for a source that is new."""
        if taken.source is not self._source:
            self._source = taken.source
            self.stream.begin(taken.source)
        if not self.ignore:
            return taken.frame
        image = to_uint8(taken.frame.image).copy()
        height, width = image.shape[:2]
        for x0, y0, x1, y1 in self.ignore:
            rows = slice(math.floor(y0 * height), math.ceil(y1 * height))
            image[rows, math.floor(x0 * width) : math.ceil(x1 * width)] = GREY
        return replace(taken.frame, image=image)

    def took(self, taken: Taken, result: Result) -> None:
        """The worker has the result of a frame."""
        latency = (time.monotonic() - taken.captured) * 1e3
        self.latencies.add(latency)
        self._recent.append(latency)
        self._times.append(time.monotonic())
        shown = Shown(self.version + 1, taken.frame, result, copy.copy(self.stream), taken.captured, latency)
        if self.stream.surprises:
            self._judge(shown)
        with self._changed:
            self.shown = shown
            self._panes.show(shown)
            self.version += 1
            self._curve.append([self.version, round(result.time_s, 3), round(result.surprise, 4), round(latency, 2)])
            self._changed.notify_all()
        for companion in self.companions.values():
            companion.put(taken.frame)

    def refuse(self, error: Exception) -> None:
        """The stream refused a frame, and is unchanged."""
        self.refused, self.refusal = self.refused + 1, " ".join(str(error).split())[:300]

    def fail(self, error: Exception) -> None:
        """The stream broke: this camera ends, the others go on."""
        self.broken = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.feed.stop()

    def _judge(self, shown: Shown) -> None:
        result = shown.result
        for said in self.gate.push(result.surprise, result.time_s):
            if said == "rise":
                self._rise = shown, moment(result.index, result.time_s)
            elif said == "begin" and self._rise is not None:
                strongest, begins = self._rise
                self._event = self.gallery.begin(self.id, self.label, begins, self.gate.peak, why(strongest))
                self.events += 1
                self.event_begins = result.index
                if self.film is not None:
                    self.film.begin(self._event, begins["time_s"], self._add_clip)
            elif said == "end":
                self._end_event(result.index, result.time_s)
        if self._rise is not None and self.gate.rising and result.surprise > self._rise[0].result.surprise:
            self._rise = shown, self._rise[1]

    def _add_clip(self, clip: Clip) -> None:
        self.gallery.add_clip(clip, self.feed.fps or 25.0)

    def _end_event(self, index: int, time_s: float) -> None:
        if self._event is not None:
            self.gallery.end(self._event, moment(index, time_s), self.gate.peak)
            if self.film is not None:
                self.film.end(self._event, time_s)
        self._event = self._rise = None

    def end_event(self) -> None:
        """End the event that goes on, if there is one."""
        if self.shown is not None:
            self._end_event(self.shown.result.index, self.shown.result.time_s)

    def close(self) -> None:
        """Nothing more comes: finish clips, end companions."""
        if self.film is not None:
            self.film.close()
        for companion in self.companions.values():
            companion.close()

    def kept(self, position: dict[str, Any] | None) -> Kept:
        """All that is needed to go on here; position: of the feed behind the last frame."""
        place = (position or {}).get("source")
        source = None if self._source is None else {"name": self._source.name, "position": place}
        note = {
            "label": self.label, "position": position, "ignore": self.ignore, "preset": self.preset,
            "gate": self.gate.state(), "events": self.events, "refused": self.refused,
        }  # fmt: skip
        return Kept(self.stream.state, {**self.stream.notes(source), "live": json.dumps(note)})

    def restore_note(self, note: dict[str, Any]) -> None:
        """Take over what `kept` noted of the camera."""
        self.ignore = tuple(tuple(box) for box in note["ignore"])
        self.preset, self.events, self.refused = note["preset"], note["events"], note["refused"]
        self.gate.restore(note["gate"])

    @property
    def done(self) -> bool:
        """Whether no frame will come any more."""
        return bool(self.broken) or (not self.feed.alive)

    # What a person sees.

    def wait(self, version: int, timeout_s: float) -> int:
        """The number of the newest result, once it is above `version` or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.version > version, timeout_s)
            return self.version

    def pane(self, kind: str, *, width: int = 480) -> Pane | None:
        """A picture of now: "frame", "surprise", "expected", "world" or "follow"; None where there is none (yet).

        width: in pixels at most. Raises ConfigError for another kind.
        """
        self._mark()
        return self._panes.get(kind, width)

    def _mark(self) -> list[dict[str, Any]]:
        """Show what is followed; returns it."""
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
        """All numbers of now (JSON-able)."""
        feed, shown, gate = self.feed, self.shown, self.gate
        retry_at, now = feed.retry_at, time.monotonic()
        followed = self._mark()
        return {
            "id": self.id,
            "label": self.label,
            "kind": self.kind,
            "state": "failed" if self.broken else feed.state,
            "reason": self.broken or feed.reason,
            "retry_in_s": None if retry_at is None else round(max(retry_at - now, 0.0), 1),
            "attempts": feed.attempts,
            "policy": feed.policy_now,
            "source_fps": feed.fps,
            "dropped": feed.dropped,
            "skipped": feed.skipped,
            "refused": self.refused,
            "refusal": self.refusal,
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
            "taught": [],
            "said": [],
            "saved": [{"name": name, "frames": saved.frames} for name, saved in sorted(self.saves.items())],
            "snapshot": None if self.snapshot is None else _snapshot(*self.snapshot, now),
        }

    def _latency(self) -> dict[str, float | None]:
        with self._changed:
            recent = np.array(self._recent)
        if not recent.size:
            return {"last": None, "p50": None, "p95": None, "p99": None}
        values = [recent[-1], *np.percentile(recent, (50, 95, 99))]
        return {name: round(float(value), 2) for name, value in zip(("last", "p50", "p95", "p99"), values, strict=True)}

    # What a person tells it. Each is done between two frames; the future's result is the new status.

    def _tell(self, job: Callable[[], None]) -> Future[Any]:
        def done() -> dict[str, Any]:
            job()
            return self.status()

        return self._command(self, done)

    def set(
        self,
        *,
        learn: bool | None = None,
        preset: str | None = None,
        threshold: float | None = None,
        least_s: float | None = None,
        ignore: Sequence[Sequence[float]] | None = None,
    ) -> Future[Any]:
        """Change settings; what is None stays.

        learn: whether the memory learns. preset: "low", "normal" or "high" sensitivity. threshold: of the surprise, 0.5
        to 20. least_s: how long a surprise must last to be an event, 0 to 10 seconds. ignore: boxes (x0, y0, x1, y1) in
        0..1 of the picture, at most 32, which the model sees grey. The future raises ConfigError for other values.
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
        """Empty the memory, as if the stream began now."""
        return self._tell(self.stream.reset)

    def save(self, name: str = "saved") -> Future[Any]:
        """Keep the memory as it is under a name, at most MOST_SAVES of them."""

        def job() -> None:
            _check_name(name)
            if name not in self.saves and len(self.saves) >= MOST_SAVES:
                raise ConfigError(f"{MOST_SAVES} memories are saved already: save under one of {', '.join(self.saves)}")
            self.saves[name] = self.stream.copy()

        return self._tell(job)

    def restore(self, name: str = "saved") -> Future[Any]:
        """Go on with the memory that was saved under a name; settings stay."""

        def job() -> None:
            _check_name(name)
            if name not in self.saves:
                raise ConfigError(f"nothing is saved under {name!r}")
            learn = self.stream.learn
            self.stream = self.saves[name].copy()
            self.stream.learn = learn

        return self._tell(job)

    def follow(self, box: Sequence[float], name: str = "") -> Future[Any]:
        """Follow what is in a box (x0, y0, x1, y1) in 0..1 of the picture that is shown now, MOST things at a time.

        name: for people, at most 40 letters. The future raises ConfigError or FrameError where that cannot be.
        """
        shown = self.shown

        def job() -> dict[str, Any]:
            assert isinstance(companion, Follower)
            assert shown is not None
            companion.add(shown.frame, place, " ".join(name.split())[:40])
            return self.status()

        try:
            place = box_of(box)
            if shown is None:
                raise ConfigError(f"{self.label} has shown no picture yet: there is nothing to follow")
            companion = self.companion(Follower.KIND)
        except Exception as error:
            return failed(error)
        return companion.do(job)

    def unfollow(self, number: int | None = None) -> Future[Any]:
        """Let a thing go by its number, or all of them."""
        companion = self.companions.get(Follower.KIND)
        if not isinstance(companion, Follower):
            return failed(ConfigError("nothing is followed"))
        follower = companion

        def job() -> dict[str, Any]:
            follower.drop(number)
            return self.status()

        return follower.do(job)

    def companion(self, kind: str) -> Companion:
        """The companion of a kind, made where it is not there yet. Raises what loading its model raises."""
        with self._joining:
            if kind not in self.companions:
                self.companions = {**self.companions, kind: self._helpers(kind, self.id)}
        return self.companions[kind]

    def put(self, jpeg: bytes, captured: float | None = None) -> None:
        """Hand over a picture of a browser's camera; see `Pushed.put`. Raises ConfigError for another camera."""
        if self.pushed is None:
            raise ConfigError(f"{self.label} is no camera of a browser: it takes no pictures")
        self.pushed.put(jpeg, captured)


def failed(error: Exception) -> Future[Any]:
    """A future that is done with an error."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _said(result: Result | None) -> dict[str, Any]:
    """What a status says of the last result."""
    names = ("time_s", "surprise", "learned", "familiar")
    values = {name: None if result is None else getattr(result, name) for name in names}
    labels = () if result is None else result.labels
    return {
        **{name: None if value is None else round(value, 4) for name, value in values.items()},
        "labels": [{"label": name, "probability": round(probability, 4)} for name, probability in labels],
    }


def _snapshot(frames: int, when: float, now: float) -> dict[str, Any]:
    return {"frames": frames, "age_s": round(now - when, 1)}


def _check_name(name: str) -> None:
    if not SAVE_NAME.fullmatch(name):
        raise ConfigError(f"a saved memory is called by 1 to 32 of A-Z, a-z, 0-9, _ and -, got {name!r:.60}")


def _within(what: str, value: float | None, low: float, high: float) -> None:
    if value is not None and (isinstance(value, bool) or not low <= value <= high):
        raise ConfigError(f"{what} is {value!r:.30}, expected {low:g} to {high:g}")
