"""WebSockets: pictures to a browser, which confirms each one, and pictures from a browser's own camera."""

import asyncio
import json
import secrets
import struct
import time
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from tttstream.errors import ConfigError, FrameError, TTTStreamError
from tttstream.live import Camera, Engine, Pane
from tttstream.live.web.pictures import Pictures, View
from tttstream.live.web.rates import Rate
from tttstream.live.web.schema import check, number, record, text
from tttstream.live.web.seats import Seats
from tttstream.live.web.streaming import within
from tttstream.live.web.updates import text_of

MOST_VIEWS = 64  # of one client
AHEAD = 2  # largest number of unconfirmed pictures of a view
PATIENCE_S = 15.0
MOST_PICTURE = 2 * 1024 * 1024  # bytes
FASTEST = 40.0  # pictures a second of a browser's camera
GRACE_S = 60.0  # for which a browser's camera stays when its connection breaks
REFUSED, FULL = 1008, 1013  # codes that close a WebSocket

WATCH = record(
    ("watch",),
    watch={
        "type": "array",
        "maxItems": MOST_VIEWS,
        "items": record(
            ("camera", "pane"),
            camera=text(64),
            pane=text(16),
            width={"type": "integer", "minimum": 64, "maximum": 1280},
        ),
    },
)
SHOWN = record(("shown",), shown={"type": "integer", "minimum": 0, "maximum": 10**6})
PING = record(("ping",), ping=number(0, 1e15))
HELLO = record(("label",), label=text(64), camera=text(64), key=text(64))

PICTURES = """The client sends JSON. `{"watch": [{"camera", "pane", "width"}, …]}` says what it looks at, at most 64 \
views; their places in the list are their numbers. The server sends each picture as binary: 4 bytes with the length of \
a JSON header (big-endian), the header `{"view", "camera", "pane", "version", "captured", "size"}`, a JPEG. `captured` \
is a time of the server's clock in seconds. `{"shown": view}` says that a picture of the view is on the screen; at \
most two pictures of a view are under way, so what a slow client sees is never old. `{"ping": t}` gets `{"pong": t, \
"now": time of the server's clock}`."""
BROWSER = """A browser's own camera. The client begins with `{"label"}`, or with the `camera` and `key` of before when \
its connection broke; it gets `{"camera", "key", "now"}`. Then it sends each picture as binary: 8 bytes with the time \
of its capture on the server's clock (big-endian double, 0 if it is not known), then JPEG, PNG or WebP of at most \
2 MiB and 4096 pixels a side. The server answers each with `{"taken": n, "now"}`, or `{"refused": "…"}`. The camera \
leaves a minute after the connection. `{"ping": t}` as above."""


class Window:
    """Limits a sender to AHEAD unconfirmed pictures."""

    def __init__(self) -> None:
        self._under_way, self._room = 0, asyncio.Event()
        self._room.set()

    async def enter(self) -> None:
        """Wait until another picture may be sent."""
        await self._room.wait()
        self._under_way += 1
        if self._under_way >= AHEAD:
            self._room.clear()

    def leave(self) -> None:
        """Confirm one picture."""
        self._under_way = max(0, self._under_way - 1)
        self._room.set()


class Viewer:
    """One client that receives pictures."""

    def __init__(self, socket: WebSocket, engine: Engine, pictures: Pictures, seats: Seats) -> None:
        self._socket, self._engine, self._pictures, self._seats = socket, engine, pictures, seats
        self._views: list[asyncio.Task[None]] = []
        self._windows: list[Window] = []
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Serve the client until it disconnects."""
        try:
            while True:
                await self._heed(json.loads(await self._socket.receive_text()))
        except (WebSocketDisconnect, asyncio.TimeoutError):
            return
        except (ValueError, KeyError, RecursionError, TTTStreamError) as error:
            await _end(self._socket, REFUSED, str(error))
        finally:
            self._stop()

    async def _heed(self, said: Any) -> None:
        if isinstance(said, dict) and "shown" in said:
            check(said, SHOWN)
            if said["shown"] < len(self._windows):
                self._windows[said["shown"]].leave()
        elif isinstance(said, dict) and "ping" in said:
            check(said, PING)
            await self._send(text_of({"pong": said["ping"], "now": time.monotonic()}))
        else:
            check(said, WATCH)
            self._stop()
            for place, one in enumerate(said["watch"]):
                self._windows.append(Window())
                view = View.of(one["pane"], one.get("width", 480))
                self._views.append(asyncio.create_task(self._show(place, one["camera"], view)))

    async def _show(self, place: int, name: str, view: View) -> None:
        """Send the pictures of one view."""
        version, window = -1, self._windows[place]
        with self._seats.look(), suppress(TTTStreamError, WebSocketDisconnect, asyncio.TimeoutError):
            camera = self._engine.camera(name)
            encoder = self._pictures.of(camera)
            while True:
                await window.enter()
                pane = await encoder.newer(view, version)
                version = pane.version
                await self._send(_message(place, camera, view, pane))
                await asyncio.sleep(self._seats.pause_s)

    async def _send(self, message: str | bytes) -> None:
        async with self._sending:
            sent = self._socket.send_text(message) if isinstance(message, str) else self._socket.send_bytes(message)
            await within(PATIENCE_S, sent)

    def _stop(self) -> None:
        for task in self._views:
            task.cancel()
        self._views, self._windows = [], []


class Visitor:
    """The camera of a browser. key: sent by the browser to continue it. leaves: the task that removes it."""

    def __init__(self, camera: Camera) -> None:
        self.camera, self.key = camera, secrets.token_urlsafe(16)
        self.connections = 0
        self.leaves: asyncio.Task[None] | None = None


class Visitors:
    """The cameras of browsers."""

    def __init__(self, engine: Engine, grace_s: float = GRACE_S) -> None:
        self._engine, self._grace_s = engine, grace_s
        self._visitors: dict[str, Visitor] = {}

    async def serve(self, socket: WebSocket) -> None:
        """Serve one connection until the browser disconnects."""
        visitor = None
        try:
            hello = json.loads(await within(PATIENCE_S, socket.receive_text()))
            check(hello, HELLO)
            visitor = await self._welcome(hello)
            said = {"camera": visitor.camera.id, "key": visitor.key, "now": time.monotonic()}
            await socket.send_text(text_of(said))
            await self._take(socket, visitor.camera)
        except (WebSocketDisconnect, asyncio.TimeoutError):
            return
        except (ValueError, KeyError, RecursionError, TTTStreamError) as error:
            await _end(socket, REFUSED, str(error))
        finally:
            if visitor is not None:
                self._part_with(visitor)

    async def _welcome(self, hello: dict[str, Any]) -> Visitor:
        known = self._visitors.get(hello.get("camera", ""))
        if known is not None and secrets.compare_digest(known.key.encode(), hello.get("key", "").encode()):
            visitor = known
            if visitor.leaves is not None:
                visitor.leaves.cancel()
        else:
            camera = await asyncio.to_thread(self._engine.add_browser, hello["label"])
            visitor = self._visitors[camera.id] = Visitor(camera)
        visitor.connections += 1
        return visitor

    async def _take(self, socket: WebSocket, camera: Camera) -> None:
        """Forward the received pictures."""
        rate, taken = Rate(FASTEST, FASTEST), 0
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") is not None:
                ping = json.loads(message["text"])
                check(ping, PING)
                said: dict[str, Any] = {"pong": ping["ping"]}
            elif not rate.allows(""):
                said = {"refused": f"expected at most {FASTEST:.0f} pictures a second"}
            else:
                taken += 1
                said = await asyncio.to_thread(_put, camera, message["bytes"]) or {"taken": taken}
            await within(PATIENCE_S, socket.send_text(text_of({**said, "now": time.monotonic()})))

    def _part_with(self, visitor: Visitor) -> None:
        visitor.connections -= 1
        if not visitor.connections:
            visitor.leaves = asyncio.create_task(self._let_go(visitor))

    async def _let_go(self, visitor: Visitor) -> None:
        await asyncio.sleep(self._grace_s)
        self._visitors.pop(visitor.camera.id, None)
        with suppress(ConfigError):  # it was removed by another request
            await asyncio.to_thread(self._engine.remove, visitor.camera.id)


def _put(camera: Camera, message: bytes) -> dict[str, Any]:
    """Forward a picture. Returns the answer to the browser."""
    if len(message) <= 8:
        return {"refused": "expected 8 bytes of time and a picture"}
    (captured,) = struct.unpack(">d", message[:8])
    now = time.monotonic()
    try:
        camera.put(message[8:], captured if now - 10 < captured <= now else now)
    except FrameError as error:
        return {"refused": " ".join(str(error).split())}
    return {}


def _message(place: int, camera: Camera, view: View, pane: Pane) -> bytes:
    head = text_of(
        {
            "view": place,
            "camera": camera.id,
            "pane": view.kind,
            "version": pane.version,
            "captured": pane.captured,
            "size": list(pane.size),
        }
    ).encode()
    return struct.pack(">I", len(head)) + head + pane.jpeg


async def _end(socket: WebSocket, code: int, reason: str) -> None:
    """Close with a reason, of which a WebSocket sends at most 123 bytes."""
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(code, " ".join(reason.split()).encode()[:120].decode(errors="ignore"))
