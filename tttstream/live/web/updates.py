"""Updates of the status, several times a second: encoded once and sent to all listeners."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from tttstream.io.names import clean
from tttstream.live import Engine

EVERY_S = 0.2
BEHIND = 25  # updates that a listener may be behind before it is dropped
KINDS = ("status", "curve", "event")


def text_of(value: Any) -> str:
    """A value as JSON without NaN, so that every browser reads it."""
    return json.dumps(_finite(clean(value)), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) <= 1e300 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


class Update(dict[str, bytes]):
    """The server-sent events of one moment by their kind, `status`, `curve` or `event`."""

    def add(self, kind: str, value: Any) -> None:
        """Add an event of a kind."""
        self[kind] = self.get(kind, b"") + f"event: {kind}\ndata: {text_of(value)}\n\n".encode()


class Updates:
    """Reads the status of the engine every 0.2 s and sends it to all listeners.

    status: of the engine, each time. curve: {camera: points since the last time}. event: an event that began or ended.
    A listener that does not read is dropped when it is BEHIND updates behind; this does not affect others.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._listeners: set[asyncio.Queue[Update | None]] = set()
        self._points: dict[str, int] = {}
        self._open: set[int] = set()
        self._last = -1

    async def run(self) -> None:
        """Read and send until cancelled."""
        self._skip_past()
        while True:
            if self._listeners:
                self._tell(await asyncio.to_thread(self._gather))
            else:
                self._skip_past()
            await asyncio.sleep(EVERY_S)

    def close(self) -> None:
        """End the updates of all listeners."""
        for queue in self._listeners:
            _drop(queue)

    @contextmanager
    def listener(self) -> Iterator[AsyncIterator[Update]]:
        """The next updates. Ends for a listener that is too far behind, and when the server closes."""
        queue: asyncio.Queue[Update | None] = asyncio.Queue(BEHIND)
        self._listeners.add(queue)
        try:
            yield _heard(queue)
        finally:
            self._listeners.discard(queue)

    def _tell(self, update: Update) -> None:
        for queue in list(self._listeners):
            if queue.full():
                self._listeners.discard(queue)
                _drop(queue)
            else:
                queue.put_nowait(update)

    def _gather(self) -> Update:
        update = Update()
        update.add("status", self._engine.status())
        curves = {}
        cameras = self._engine.cameras
        self._points = {camera.id: min(self._points.get(camera.id, -1), camera.version) for camera in cameras}
        for camera in cameras:
            points = camera.curve(self._points[camera.id])
            if points:
                curves[camera.id] = points
                self._points[camera.id] = int(points[-1][0])
        if curves:
            update.add("curve", curves)
        for event in self._events():
            update.add("event", event)
        return update

    def _events(self) -> list[dict[str, Any]]:
        """Events that are new, and those that ended since."""
        gallery = self._engine.gallery
        new = gallery.list(self._last)
        ended = [event for event in map(gallery.get, sorted(self._open)) if event is not None and event["ends"]]
        self._open = {number for number in self._open if gallery.get(number) is not None}
        self._open -= {event["number"] for event in ended}
        self._open |= {event["number"] for event in new if not event["ends"]}
        if new:
            self._last = new[-1]["number"]
        return [*ended, *new]

    def _skip_past(self) -> None:
        """Skip the present updates because nobody listens; later clients request the status themselves."""
        self._points = {camera.id: camera.version for camera in self._engine.cameras}
        last = self._engine.gallery.list(self._last)
        if last:
            self._last = last[-1]["number"]
            self._open = {event["number"] for event in last if not event["ends"]}


async def _heard(queue: asyncio.Queue[Update | None]) -> AsyncIterator[Update]:
    while (update := await queue.get()) is not None:
        yield update


def _drop(queue: asyncio.Queue[Update | None]) -> None:
    """End the updates of a queue and discard those in it."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)
