"""Encodes the pictures of cameras while clients read them, each picture once for all clients."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import NamedTuple

from tttstream.errors import TTTStreamError
from tttstream.live import Camera, Pane

WAIT_S = 0.5  # seconds between two checks for waiting readers
IDLE_S = 10.0  # seconds without a reader after which the thread of a camera ends
WIDTHS = (160, 240, 320, 480, 640, 960, 1280)  # pixels; few, so that many clients share one picture


class View(NamedTuple):
    """A pane of a camera at one of WIDTHS."""

    kind: str
    width: int

    @classmethod
    def of(cls, kind: str, width: int) -> View:
        """The view with the smallest sufficient width."""
        return cls(kind, next((known for known in WIDTHS if known >= width), WIDTHS[-1]))


class Encoder:
    """Encodes the pictures of one camera in its own thread.

    Only views with a waiting reader are encoded. A slow reader does not wait, so it costs nothing, and its next picture
    is the newest.
    """

    def __init__(self, camera: Camera, loop: asyncio.AbstractEventLoop) -> None:
        self._camera, self._loop = camera, loop
        self._changed = threading.Condition()
        self._waiting: dict[View, set[asyncio.Future[None]]] = {}
        self._newest: dict[View, Pane] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    async def newer(self, view: View, version: int) -> Pane:
        """Wait for a picture of a view that is newer than this version."""
        while view not in self._newest or self._newest[view].version <= version:
            await self._next(view)
        return self._newest[view]

    async def _next(self, view: View) -> None:
        """Wait until the view is drawn again."""
        future: asyncio.Future[None] = self._loop.create_future()
        with self._changed:
            self._waiting.setdefault(view, set()).add(future)
            if self._thread is None and not self._closed:
                name = f"tttstream pictures {self._camera.id}"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
            self._changed.notify_all()
        try:
            await future
        finally:
            with self._changed:
                self._waiting.get(view, set()).discard(future)

    def close(self) -> None:
        """End the thread. Waiting readers are not woken: cancel them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        seen: dict[View, int] = {}
        while (views := self._wanted()) is not None:
            known = min(seen.get(view, -1) for view in views)
            if self._camera.version <= known and self._camera.wait(known, WAIT_S) <= known:
                continue
            for view in views:
                seen[view] = self._camera.version
                try:
                    pane = self._camera.pane(view.kind, width=view.width)
                except TTTStreamError:  # the camera has left, or has no such pane any more
                    pane = None
                if pane is not None:
                    self._hand_out(view, pane)

    def _wanted(self) -> list[View] | None:
        """The views with a waiting reader; None if the thread must end."""
        with self._changed:
            self._waiting = {view: futures for view, futures in self._waiting.items() if futures}
            if not self._waiting and not self._closed:
                self._changed.wait_for(lambda: self._closed or any(self._waiting.values()), IDLE_S)
            views = [view for view, futures in self._waiting.items() if futures]
            if self._closed or not views:
                self._thread = None
                return None
            return views

    def _hand_out(self, view: View, pane: Pane) -> None:
        with self._changed:
            futures = self._waiting.pop(view, set())
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._resolve, view, pane, futures)

    def _resolve(self, view: View, pane: Pane, futures: set[asyncio.Future[None]]) -> None:
        self._newest[view] = pane
        for future in futures:
            if not future.done():
                future.set_result(None)


class Pictures:
    """The encoders of all cameras, for the event loop in which it is made."""

    def __init__(self) -> None:
        self._encoders: dict[str, tuple[Camera, Encoder]] = {}
        self._loop = asyncio.get_running_loop()

    def of(self, camera: Camera) -> Encoder:
        """The encoder of a camera."""
        known = self._encoders.get(camera.id)
        if known is not None and known[0] is camera:
            return known[1]
        if known is not None:  # another camera of the same name
            known[1].close()
        encoder = Encoder(camera, self._loop)
        self._encoders[camera.id] = camera, encoder
        return encoder

    def keep(self, cameras: tuple[Camera, ...]) -> None:
        """Remove all cameras but these."""
        present = {camera.id for camera in cameras}
        for name in [name for name in self._encoders if name not in present]:
            self._encoders.pop(name)[1].close()

    def close(self) -> None:
        """End all threads."""
        self.keep(())
