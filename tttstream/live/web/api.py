"""The operations of the API on the engine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, Response

from tttstream.live import Camera, Engine, Pane
from tttstream.live.web.guard import Guard
from tttstream.live.web.operations import Asked, Operation, Refused
from tttstream.live.web.pictures import Pictures, View
from tttstream.live.web.schema import Schema, number, record, text
from tttstream.live.web.seats import Seats
from tttstream.live.web.streaming import Endless, within
from tttstream.live.web.updates import KINDS, Updates

PATIENCE_S = 60.0  # seconds for a command, which waits for the frame before it
SIDE = number(0, 1)
BOX: Schema = {"type": "array", "items": SIDE, "minItems": 4, "maxItems": 4}
NAME = text(32, "^[A-Za-z0-9_-]{1,32}$")
LABEL = text(40)
COUNT: Schema = {"type": "integer", "minimum": -1, "maximum": 10**15}
WIDTH: Schema = {"type": "integer", "minimum": 64, "maximum": 1280}
SETTINGS = record(
    learn={"type": "boolean"},
    preset=text(16),
    threshold=number(0.5, 20),
    least_s=number(0, 10),
    ignore={"type": "array", "items": BOX, "maxItems": 32},
)
PLACE: Schema = {"type": "integer", "minimum": 0, "maximum": 10**6}
LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": 500}
UPDATES = (
    "Server-sent events: `status` 5 times a second, `curve` with the new points of each camera, `event` when one "
    "begins or ends. `only=status,event` leaves the others out"
)
CURVE = "The newest points after a number, 600 at most: [number, time_s, surprise, latency_ms]"
VIDEO = "The same as motion JPEG. `X-Captured` of each part is the capture time, in seconds since 1970"
WHY = "The reason of the event: `frame`, `expected` and `surprise` as JPEG, `clip` as MP4"
MIXED = "multipart/x-mixed-replace"
CONTENTS = {"frame": "image/jpeg", "expected": "image/jpeg", "surprise": "image/jpeg", "clip": "video/mp4"}
BOUNDARY = "frame"


class Api:
    """The operations on one engine. guard: sets cookies. seats: limits of clients."""

    def __init__(self, engine: Engine, guard: Guard, pictures: Pictures, updates: Updates, seats: Seats) -> None:
        self._engine, self._guard, self._pictures, self._updates, self._seats = engine, guard, pictures, updates, seats

    def operations(self) -> list[Operation]:
        """All of them, in the order in which they are documented."""
        return [*self._of_engine(), *self._of_camera(), *self._of_events()]

    def _of_engine(self) -> list[Operation]:
        session, number = record(("token",), token=text(256)), record(("number",), number=PLACE)
        return [
            Operation("POST", "/api/session", "Sign in with the token, get a cookie", self._sign_in, session, gives=""),
            Operation("GET", "/api/status", "The status of the engine and of every camera", self._status),
            Operation(
                "GET", "/api/updates", UPDATES, self._listen, query={"only": text(32)}, gives="text/event-stream"
            ),
            Operation("POST", "/api/cameras", "Add a source of `allowed`, by its number", self._add, number),
        ]

    def _of_camera(self) -> list[Operation]:
        one, named, label = "/api/cameras/{id}", record(("name",), name=NAME), record(("label",), label=LABEL)
        pane, width, jpeg = one + "/panes/{kind}", {"width": WIDTH}, "image/jpeg"
        follow = record(("box",), box=BOX, name=text(40, least=0))
        teach = record(("label",), label=LABEL, box=BOX)
        command = self._command
        return [
            Operation("GET", one, "The status of a camera", self._camera_status),
            Operation(
                "PATCH", one, "Change settings: learning, and the threshold of events", command(Camera.set), SETTINGS
            ),
            Operation("DELETE", one, "Remove a camera and its memory", self._remove, gives=""),
            Operation("GET", f"{one}/curve", CURVE, self._curve, query={"after": COUNT}),
            Operation("GET", pane, "The newest picture: `frame`, `surprise` …", self._picture, query=width, gives=jpeg),
            Operation("GET", f"{pane}/video", VIDEO, self._video, query=width, gives=f"{MIXED}; boundary={BOUNDARY}"),
            Operation("POST", f"{one}/forget", "Reset the memory", command(Camera.forget)),
            Operation("POST", f"{one}/save", "Save the memory under a name", command(Camera.save), named),
            Operation("POST", f"{one}/restore", "Restore a saved memory", command(Camera.restore), named),
            Operation("POST", f"{one}/follow", "Follow the thing in a box", command(Camera.follow, "follow"), follow),
            Operation(
                "DELETE",
                f"{one}/follow",
                "Stop following one thing, or all",
                command(Camera.unfollow, "follow"),
                query={"number": COUNT},
            ),
            Operation(
                "POST", f"{one}/teach", "Teach a thing in the picture or a box", command(Camera.teach, "teach"), teach
            ),
            Operation(
                "POST", f"{one}/forget-label", "Remove a taught name", command(Camera.forget_label, "teach"), label
            ),
        ]

    def _of_events(self) -> list[Operation]:
        limits = {"after": COUNT, "limit": LIMIT, "camera": text(64)}
        one = "/api/events/{number}"
        return [
            Operation(
                "GET", "/api/events", "The newest events after a number, newest last", self._events, query=limits
            ),
            Operation("GET", one, "One event", self._event),
            Operation("GET", one + "/{what}", WHY, self._content, gives="image/jpeg"),
        ]

    async def _sign_in(self, asked: Asked) -> Response:
        return self._guard.sign_in(asked.request.scope, asked.body["token"])

    async def _status(self, asked: Asked) -> Any:
        return self._engine.status()

    async def _listen(self, asked: Asked) -> Response:
        wanted = set(asked.query.get("only", ",".join(KINDS)).split(","))
        if not wanted <= set(KINDS):
            raise Refused(400, f"only: expected some of {','.join(KINDS)}")
        return self._endless(self._told(wanted), "text/event-stream")

    async def _told(self, wanted: set[str]) -> AsyncGenerator[bytes, None]:
        with self._seats.seat(), self._updates.listener() as updates:
            yield b"retry: 1000\n\n"
            async for update in updates:
                chunk = b"".join(part for kind, part in update.items() if kind in wanted)
                yield chunk or b": nothing new\n\n"

    def _endless(self, chunks: AsyncGenerator[bytes, None], media_type: str) -> Endless:
        if self._seats.are_taken:
            raise Refused(503, "too many listen and look already; try again later")
        return Endless(chunks, media_type)

    async def _add(self, asked: Asked) -> Any:
        camera = await asyncio.to_thread(self._engine.add, asked.body["number"])
        return camera.status()

    async def _camera_status(self, asked: Asked) -> Any:
        return self._camera(asked).status()

    async def _remove(self, asked: Asked) -> None:
        await asyncio.to_thread(self._engine.remove, self._camera(asked).id)

    async def _curve(self, asked: Asked) -> Any:
        return self._camera(asked).curve(asked.query.get("after", -1))

    async def _picture(self, asked: Asked) -> Response:
        camera, view = self._view(asked)
        pane = await asyncio.to_thread(camera.pane, view.kind, width=view.width)
        if pane is None:
            raise Refused(404, f"{camera.id} has no picture yet")
        return Response(pane.jpeg, media_type="image/jpeg", headers={"X-Version": str(pane.version)})

    async def _video(self, asked: Asked) -> Response:
        return self._endless(self._parts(*self._view(asked)), f"multipart/x-mixed-replace; boundary={BOUNDARY}")

    async def _parts(self, camera: Camera, view: View) -> AsyncGenerator[bytes, None]:
        encoder, version = self._pictures.of(camera), -1
        with self._seats.seat(), self._seats.look():
            while True:
                pane = await encoder.newer(view, version)
                version = pane.version
                yield _part(pane)
                await asyncio.sleep(self._seats.pause_s)

    def _command(self, act: Callable[..., Future[Any]], can: str = "") -> Callable[[Asked], Awaitable[Any]]:
        """An operation that gives a command to a camera and waits for it. can: what the engine must be able to do."""

        async def answer(asked: Asked) -> Any:
            if can and not self._engine.status()["can"][can]:  # some models cannot
                raise Refused(501, f"this engine cannot {can}")
            # In a thread, because the engine loads a model for the first thing that is followed or taught
            return await _done(await asyncio.to_thread(act, self._camera(asked), **asked.query, **(asked.body or {})))

        return answer

    async def _events(self, asked: Asked) -> Any:
        query = asked.query
        return self._engine.gallery.list(query.get("after", -1), query.get("limit", 100), query.get("camera"))

    async def _event(self, asked: Asked) -> Any:
        event = self._engine.gallery.get(_number(asked))
        if event is None:
            raise Refused(404, "there is no such event")
        return event

    async def _content(self, asked: Asked) -> Response:
        what = asked.path["what"]
        if what not in CONTENTS:
            raise Refused(404, f"expected {', '.join(CONTENTS)}")
        content = await asyncio.to_thread(self._engine.gallery.content, _number(asked), what)
        if content is None:
            raise Refused(404, "the event has none, or does not have it yet")
        if isinstance(content, Path):
            return FileResponse(content, media_type=CONTENTS[what])
        return Response(content, media_type=CONTENTS[what])

    def _camera(self, asked: Asked) -> Camera:
        return self._engine.camera(asked.path["id"])

    def _view(self, asked: Asked) -> tuple[Camera, View]:
        camera, kind = self._camera(asked), asked.path["kind"]
        if kind not in camera.status()["panes"]:
            raise Refused(404, f"{camera.id} has no such pane")
        return camera, View.of(kind, asked.query.get("width", 480))


async def _done(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """The result of a command. The command continues if the client stops waiting."""
    try:
        return await within(PATIENCE_S, asyncio.shield(asyncio.wrap_future(future)))
    except asyncio.TimeoutError:
        raise Refused(503, "the engine does not answer") from None


def _number(asked: Asked) -> int:
    digits = asked.path["number"]
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise Refused(404, "there is no such event")
    return int(digits)


def _part(pane: Pane) -> bytes:
    """A picture as one part of motion JPEG, with the time of its capture in seconds since 1970."""
    captured = time.time() - (time.monotonic() - pane.captured)
    head = (
        f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(pane.jpeg)}\r\n"
        f"X-Version: {pane.version}\r\nX-Captured: {captured:.6f}\r\n\r\n"
    )
    return head.encode() + pane.jpeg + b"\r\n"
