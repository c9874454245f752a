"""Engine: many cameras on one model, each with its own memory; frames that are ready together run in one batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tttstream.errors import ConfigError
from tttstream.live.assistants import Assistants
from tttstream.live.camera import Camera
from tttstream.live.companion import Companion
from tttstream.live.feed import Feed, Retry
from tttstream.live.gallery import Gallery
from tttstream.live.gate import PRESETS
from tttstream.live.naming import id_of, kind_of, label_of, scrubbed
from tttstream.live.policy import Inbox, Policy
from tttstream.live.snapshots import Kept, Snapshots, about
from tttstream.live.webhook import Webhook
from tttstream.live.worker import Worker
from tttstream.models.base import SavedModel
from tttstream.models.frame import FrameModel
from tttstream.models.map import MapModel
from tttstream.sources import Source, open_source
from tttstream.sources.pushed import Pushed
from tttstream.streams import MaskStream, Session, kind_for

MOST_CAMERAS = 64
MOST_BROWSERS = 8
LASTING = ("camera", "network", "browser")  # kinds of sources that are reopened after a failure
PARTING_S = 2.0  # time limit for sources to end


class UnknownCamera(ConfigError):
    """There is no camera of that id."""


class Engine:
    """Runs cameras until they end or `stop` is called.

    model: a FrameModel, Classifier or MapModel. allowed: the only sources that can be added, as arguments of
    `open_source`. name: of the model, for display. policy: "auto", "latest", "all" or "every N", see `Policy`. paced:
    recordings play at their own rate. looped: recordings restart at their end. snapshots: folder in which every
    camera's memory is saved, every `every_s` seconds and at the end; resume: cameras continue from there. events:
    folder for events and their clips. webhook: an address that receives a message for each event. expect: whether a
    FrameModel also predicts pictures, which takes three times as long; None: if `allowed` has one source. view: of a
    MapModel, the side of a view in the units of the poses. learn, device, backend: as for `tttstream.Stream`. limit:
    the number of frames of each camera. workers: threads that share a batch, by default two, or one on a machine with
    one core. opener: opens a source; by default `open_source`.

    Use it as a context manager, or call `start` and `stop`; `summary` is the result of `stop`. Raises ConfigError,
    OutputError and CheckpointError.

    >>> with Engine(tttstream.models.load("base"), allowed=["0"]) as engine:
    ...     camera = engine.add(0)
    ...     camera.wait(100, timeout_s=10)
    """

    MOST_CAMERAS, MOST_BROWSERS = MOST_CAMERAS, MOST_BROWSERS

    def __init__(
        self,
        model: SavedModel,
        *,
        allowed: Sequence[str] = (),
        name: str = "base",
        policy: str = "auto",
        paced: bool = True,
        looped: bool = False,
        snapshots: Path | None = None,
        every_s: float = 10.0,
        resume: bool = False,
        events: Path | None = None,
        webhook: str | None = None,
        expect: bool | None = None,
        view: float | None = None,
        learn: bool = True,
        device: str = "auto",
        backend: str = "auto",
        limit: int | None = None,
        workers: int | None = None,
        retry: Retry | None = None,
        opener: Callable[[str], Source] | None = None,
    ) -> None:
        self.model, self.name = model, name
        self._stream = _maker(model, device, backend, learn, len(allowed) == 1 if expect is None else expect, view)
        self._policy, self._paced, self._looped, self._limit = Policy.parse(policy), paced, looped, limit
        self._retry, self._opener, self._helpers = retry, opener or open_source, Assistants()
        self._specs = [str(spec) for spec in allowed]
        self._ids: list[str] = []
        for spec in self._specs:
            self._ids.append(id_of(label_of(spec), self._ids))
        if resume and snapshots is None:
            raise ConfigError("resume needs snapshots, the folder of the run")
        self._hook = None if webhook is None else Webhook(webhook)
        self._snapshots = None if snapshots is None else Snapshots(snapshots)
        self._every_s, self._resume = every_s, resume
        try:
            self.gallery = Gallery(events, None if self._hook is None else self._hook.tell)
        except BaseException:
            if self._snapshots is not None:
                self._snapshots.close()
            raise
        self._cameras: tuple[Camera, ...] = ()
        self._joining = threading.Lock()
        self._started = time.monotonic()
        self._process = psutil.Process()
        self._due: dict[str, float] = {}  # time of the next snapshot of each camera
        self._parted: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self._worker = Worker(lambda: self._cameras, self._keep, self._ask_for_snapshots, workers)

    # Cameras

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The current cameras, in the order in which they were added."""
        return self._cameras

    @property
    def allowed(self) -> list[dict[str, Any]]:
        """The labels of the sources that `add` accepts, each with the id of its camera if one was added."""
        here = {camera.id for camera in self._cameras}
        known = zip(self._specs, self._ids, strict=True)
        return [
            {"number": number, "label": label_of(spec), "camera": name if name in here else None}
            for number, (spec, name) in enumerate(known)
        ]

    def camera(self, name: str) -> Camera:
        """The camera with this id. Raises UnknownCamera."""
        for camera in self._cameras:
            if camera.id == name:
                return camera
        known = ", ".join(camera.id for camera in self._cameras) or "none"
        raise UnknownCamera(f"there is no camera {name!r:.60}; there are {known}")

    def add(self, number: int) -> Camera:
        """Start one of the allowed sources.

        Raises ConfigError for another number, or one that is already watched; CheckpointError if its snapshot
        cannot be resumed.
        """
        if isinstance(number, bool) or not 0 <= number < len(self._specs):
            known = f"0 to {len(self._specs) - 1}" if self._specs else "no number"
            raise ConfigError(f"there is no source {number!r:.30}: those given at the start have {known}")
        spec = self._specs[number]
        kind = kind_of(spec)
        return self._join(self._ids[number], label_of(spec), kind, lambda: self._opener(spec), None, spec)

    def add_browser(self, label: str = "browser") -> Camera:
        """Add a camera whose pictures come from `Camera.put`."""
        with self._joining:
            if sum(camera.kind == "browser" for camera in self._cameras) >= MOST_BROWSERS:
                raise ConfigError(f"{MOST_BROWSERS} browsers send pictures already")
            name = id_of(label, [*(camera.id for camera in self._cameras), *self._ids])
        pushed = Pushed(label[:80])
        return self._join(name, label[:80], "browser", lambda: pushed, pushed)

    def _join(
        self, name: str, label: str, kind: str, opener: Callable[[], Source], pushed: Pushed | None, spec: str = ""
    ) -> Camera:
        with self._joining:
            if len(self._cameras) >= MOST_CAMERAS:
                raise ConfigError(f"{MOST_CAMERAS} cameras are watched already: remove one")
            if name in (camera.id for camera in self._cameras):
                raise ConfigError(f"{label} is watched already")
            camera = Camera(
                name,
                label,
                kind,
                self._stream(),
                self.gallery,
                self._worker.do,
                filmed=self.gallery.clips,
                helpers=self._helpers,
            )
            camera.pushed = pushed
            position = self._resumed(camera)
            camera.feed = Feed(
                opener,
                Inbox(self._worker.notify),
                name=name,
                policy=self._policy,
                lasting=kind in LASTING,
                paced=self._paced,
                looped=self._looped,
                limit=self._limit,
                position=position,
                retry=self._retry,
                seen=None if camera.film is None else camera.film.put,
                told=lambda text: scrubbed(text, spec),
            )
            self._due[name] = time.monotonic() + self._every_s
            self._cameras = (*self._cameras, camera)
        camera.feed.start()
        return camera

    def _resumed(self, camera: Camera) -> dict[str, Any] | None:
        """Resume a camera from its snapshot; returns the position of its feed."""
        if self._snapshots is None:
            return None
        snapshots = self._snapshots

        def keep_save(name: str, stream: Session) -> None:
            snapshots.write(snapshots.path(camera.id, name), Kept(stream.state, stream.notes()))

        camera.keep_save = keep_save
        for name in self._snapshots.names(camera.id) if self._resume else []:
            saved = self._stream()
            saved.load(self._snapshots.path(camera.id, name))
            camera.saves[name] = saved
        path = self._snapshots.path(camera.id)
        if not self._resume or not path.exists():
            return None
        for kind in self._helpers.kinds:
            beside = self._snapshots.path(f"{camera.id}+{kind}")
            if beside.exists():
                camera.companion(kind).load(beside)
        note = about(path)
        camera.stream.load(path)
        camera.restore_note(note)
        position: dict[str, Any] | None = note["position"]
        return position

    def remove(self, name: str) -> None:
        """Remove a camera and its memory; its last snapshot is kept. Raises UnknownCamera."""
        camera = self.camera(name)
        camera.feed.stop()
        camera.feed.join(PARTING_S)
        self._worker.do(lambda: self._part(camera)).result(PARTING_S + 30.0)
        with self._joining:
            self._cameras = tuple(other for other in self._cameras if other is not camera)
        camera.close()

    def _part(self, camera: Camera) -> None:
        """Remove a row in the worker: process the last frame, and write the last snapshot."""
        while (taken := camera.feed.inbox.take()) is not None:
            self._worker.look([(camera, taken)])
        camera.feed.inbox.close()
        camera.end_event()
        self._keep(camera, camera.feed.final)
        self._parted.append(self._account(camera))

    # Snapshots

    def _ask_for_snapshots(self) -> None:
        now = time.monotonic()
        if self._snapshots is not None:
            for camera in self._cameras:
                if now < self._due[camera.id]:
                    continue
                self._due[camera.id] = now + self._every_s
                if camera.feed.rests and not camera.broken:  # commands since the last snapshot are saved too
                    self._keep(camera, camera.feed.place())
                else:
                    camera.feed.inbox.want_position()

    def _keep(self, camera: Camera, position: dict[str, Any] | None) -> None:
        if self._snapshots is None or not camera.stream.frames:
            return
        self._snapshots.write(self._snapshots.path(camera.id), camera.kept(position))
        for companion in camera.companions.values():
            companion.do(lambda it=companion: self._keep_companion(camera, it))  # type: ignore[misc]
        camera.snapshot = camera.stream.frames, time.monotonic()

    def _keep_companion(self, camera: Camera, companion: Companion) -> None:
        """Save a companion, in its thread."""
        assert self._snapshots is not None
        path, kept = self._snapshots.path(f"{camera.id}+{companion.KIND}"), companion.kept()
        if kept is None:
            self._snapshots.remove(path)
        else:
            self._snapshots.write(path, kept)

    # A run

    def start(self) -> None:
        """Start the threads."""
        self._worker.start()

    @property
    def running(self) -> bool:
        """Whether any camera may still have a frame."""
        waiting = [not camera.done or (camera.feed.inbox.full and not camera.broken) for camera in self._cameras]
        return any(waiting) or self._worker.busy

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all cameras have ended or the time is over; returns whether they have ended."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while self.running:
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def stop(self) -> dict[str, Any]:
        """End all cameras after their current frame and write the last files; returns a summary (JSON-able).

        The cameras can still be read.
        """
        for camera in self._cameras:
            camera.feed.stop()
        until = time.monotonic() + PARTING_S
        for camera in self._cameras:
            camera.feed.join(max(0.05, until - time.monotonic()))
        cameras = self._cameras
        for camera in cameras:
            self._worker.do(lambda it=camera: self._part(it)).result()  # type: ignore[misc]
        self._worker.stop()
        for camera in cameras:
            camera.close()
        summary = {**self._about(), "seconds": round(time.monotonic() - self._started, 3), "cameras": self._parted}
        self.gallery.close()
        if self._snapshots is not None:
            self._snapshots.close()
        if self._hook is not None:
            self._hook.close()
        self.summary = {**summary, "trouble": self._trouble()}
        return self.summary

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker.alive:
            self.stop()

    def _account(self, camera: Camera) -> dict[str, Any]:
        """The entry of a camera in the summary."""
        status = camera.status()
        names = ("id", "label", "frames", "dropped", "skipped", "refused", "events", "state_bytes", "state", "reason")
        latency = {f"p{p}": round(camera.latencies.percentile(p), 3) for p in (50, 95, 99)} if camera.version else {}
        return {name: status[name] for name in names} | {"results": camera.version, "latency_ms": latency}

    def _about(self) -> dict[str, Any]:
        kind = "map" if isinstance(self.model, MapModel) else "surprise"
        return {"model": self.name, "kind": kind, "size": int(self.model.config.size)}

    def _trouble(self) -> dict[str, str | None]:
        return {
            "snapshots": None if self._snapshots is None else self._snapshots.trouble,
            "events": self.gallery.trouble,
            "webhook": None if self._hook is None else self._hook.trouble,
        }

    def status(self) -> dict[str, Any]:
        """All numbers of now (JSON-able)."""
        return {
            **self._about(),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "rss_mb": round(self._process.memory_info().rss / 1e6, 1),
            "trouble": self._trouble(),
            "allowed": self.allowed,
            "cameras": [camera.status() for camera in self._cameras],
            "presets": dict(PRESETS),
            "can": {
                **{kind: kind in self._helpers.kinds for kind in ("follow", "teach")},
                "snapshots": self._snapshots is not None,
                "clips": self.gallery.clips,
            },
        }


def _maker(
    model: SavedModel, device: str, backend: str, learn: bool, expect: bool, view: float | None
) -> Callable[[], Session]:
    """A function that makes a fresh stream of the kind for this model."""
    kind: Any = kind_for(model)
    if issubclass(kind, MaskStream):
        raise ConfigError(
            "live accepts models of surprise, classifiers and maps; use `tttstream track` for mask models"
        )
    if view is not None and not kind.VIEWS:
        raise ConfigError("--view belongs to maps, and this model is none: leave it out")
    more: dict[str, Any] = {"embed": False} if kind.EMBEDS else {}
    more |= {} if view is None else {"view": view}
    if isinstance(model, FrameModel):
        more["predict"] = expect

    def make() -> Session:
        stream: Session = kind(model, device=device, backend=backend, learn=learn, **more)
        return stream

    make()
    return make
