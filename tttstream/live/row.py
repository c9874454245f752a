"""Row: one source with its own memory, with the interface for the worker of an engine."""

import copy
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from tttstream.evaluation.measures import Latencies
from tttstream.frames import Frame, Result
from tttstream.live.boxes import Box
from tttstream.live.companion import Companion
from tttstream.live.feed import Feed
from tttstream.live.film import Clip, Film
from tttstream.live.gallery import Gallery, moment
from tttstream.live.gate import Gate
from tttstream.live.panes import Panes, Shown, why
from tttstream.live.policy import Taken
from tttstream.live.snapshots import KEY, Kept
from tttstream.sources.base import Source
from tttstream.sources.pushed import Pushed
from tttstream.streams import Session
from tttstream.views.overlay import to_uint8

Command = Callable[[Callable[[], Any]], Future[Any]]
"""Runs a job in another thread."""
Helpers = Callable[[str, str], Companion]
"""Makes a companion of a kind for the camera with this id."""
CURVE = 600  # number of results in a curve
RECENT = 512  # number of latencies for the current percentiles
GREY = 127  # value of ignored pixels in the input of the model


class Row:
    """A source and its stream. The worker of an engine calls `masked`, `took`, `refuse` and `fail`.

    id: of [A-Za-z0-9_-]. label: for display. kind: see `naming.kind_of`. command: of the worker. helpers: makes
    companions. keep_save: called with each saved memory. shown: the newest result with its frame. event_begins: the
    number of the frame at which the last event began.
    """

    def __init__(
        self,
        name: str,
        label: str,
        kind: str,
        stream: Session,
        gallery: Gallery,
        command: Command,
        *,
        filmed: bool,
        helpers: Helpers,
    ) -> None:
        self.id, self.label, self.kind = name, label, kind
        self.stream, self.gallery, self._command, self._helpers = stream, gallery, command, helpers
        self.keep_save: Callable[[str, Session], None] = lambda name, stream: None
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

    def masked(self, taken: Taken) -> Frame:
        """The frame for the model, with grey boxes; prepares the stream for a new source."""
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
        """Record the result of a frame, in the worker."""
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
        """Record that the stream refused a frame and is unchanged."""
        self.refused, self.refusal = self.refused + 1, " ".join(str(error).split())[:300]

    def fail(self, error: Exception) -> None:
        """End this camera after an error of its stream; the others continue."""
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
        """End the current event, if there is one."""
        if self.shown is not None:
            self._end_event(self.shown.result.index, self.shown.result.time_s)

    def close(self) -> None:
        """Finish clips and end companions; no frames follow."""
        if self.film is not None:
            self.film.close()
        for companion in self.companions.values():
            companion.close()

    def kept(self, position: dict[str, Any] | None) -> Kept:
        """The values needed to resume; position: of the feed after the last frame."""
        place = (position or {}).get("source")
        source = None if self._source is None else {"name": self.label, "position": place}
        note = {
            "label": self.label, "position": position, "ignore": self.ignore, "preset": self.preset,
            "gate": self.gate.state(), "events": self.events, "refused": self.refused,
        }  # fmt: skip
        return Kept(self.stream.state, {**self.stream.notes(source), KEY: json.dumps(note)})

    def restore_note(self, note: dict[str, Any]) -> None:
        """Restore the values of `kept`."""
        self.ignore = tuple(tuple(box) for box in note["ignore"])
        self.preset, self.events, self.refused = note["preset"], note["events"], note["refused"]
        self.gate.restore(note["gate"])

    @property
    def state(self) -> str:
        """The state of the feed, "failed" if the stream raised an error."""
        return "failed" if self.broken else self.feed.state

    @property
    def reason(self) -> str:
        """The reason of the last failure, in one line."""
        return self.broken or self.feed.reason

    @property
    def done(self) -> bool:
        """Whether no more frames follow."""
        return bool(self.broken) or (not self.feed.alive)
