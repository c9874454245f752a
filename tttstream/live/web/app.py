"""The application: the page, the operations of the API and the WebSockets, behind the guard."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from tttstream.live import Engine
from tttstream.live.web.access import Access
from tttstream.live.web.api import Api
from tttstream.live.web.guard import Guard, refusal
from tttstream.live.web.operations import Operation, document
from tttstream.live.web.pictures import Pictures
from tttstream.live.web.seats import Seats
from tttstream.live.web.sockets import BROWSER, FULL, PICTURES, Viewer, Visitors
from tttstream.live.web.updates import Updates

PAGE = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
LOG = logging.getLogger("tttstream.live.web")
SOCKETS = {"/api/pictures": PICTURES, "/api/browser-camera": BROWSER}


class Application:
    """An ASGI application over one engine.

    access: conditions of requests. port: of the server. seats: limits of clients.
    """

    def __init__(self, engine: Engine, access: Access, port: int, seats: Seats | None = None) -> None:
        self._engine, self._seats = engine, seats or Seats()
        self._updates, self._visitors = Updates(engine), Visitors(engine)
        self._pictures = Pictures()
        self.guard = Guard(self._inside, access, port)
        self.operations = Api(engine, self.guard, self._pictures, self._updates, self._seats).operations()
        self._starlette = Starlette(
            routes=self._routes(self.operations), lifespan=self._lifespan, exception_handlers=HANDLERS
        )
        self._starlette.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.guard(scope, receive, send)

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._starlette(scope, receive, send)

    def _routes(self, operations: list[Operation]) -> list[BaseRoute]:
        described = JSONResponse(document(operations, SOCKETS))

        async def openapi(_: Request) -> Response:
            return described

        return [
            Route("/", _page, methods=["GET"]),
            Route("/page/{name}", _asset, methods=["GET"]),
            Route("/api/openapi.json", openapi, methods=["GET"]),
            *(operation.route() for operation in operations),
            WebSocketRoute("/api/pictures", self._look),
            WebSocketRoute("/api/browser-camera", self._visit),
        ]

    async def _look(self, socket: WebSocket) -> None:
        await self._seated(socket, Viewer(socket, self._engine, self._pictures, self._seats).serve)

    async def _visit(self, socket: WebSocket) -> None:
        await self._seated(socket, lambda: self._visitors.serve(socket))

    async def _seated(self, socket: WebSocket, serve: Any) -> None:
        await socket.accept()
        if self._seats.are_taken:
            await socket.close(FULL, "too many listen and look already; try again later")
            return
        with self._seats.seat():
            try:
                await serve()
            except Exception:
                LOG.exception("a WebSocket broke off")
                raise

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._updates.run()), asyncio.create_task(self._tidy())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            self._pictures.close()

    async def _tidy(self) -> None:
        """End the threads of removed cameras."""
        while True:
            await asyncio.sleep(2)
            self._pictures.keep(self._engine.cameras)


async def _page(request: Request) -> Response:
    """The page, or the form for the token."""
    name, status = ("index.html", 200) if request.scope["signed_in"] else ("signin.html", 401)
    return FileResponse(PAGE / name, status, media_type="text/html", headers={"Cache-Control": "no-cache"})


async def _asset(request: Request) -> Response:
    """A file of the page, by its name."""
    known = {path.name: path for path in PAGE.iterdir()}
    path = known.get(request.path_params["name"])
    if path is None or path.suffix not in TYPES:
        return refusal(404, "there is no such file")
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"Cache-Control": "no-cache"})


async def _missing(_: Request, error: Exception) -> Response:
    """Refusals of Starlette itself: unknown path, unknown method."""
    status = getattr(error, "status_code", 500)
    return refusal(status, str(getattr(error, "detail", "error")).lower(), getattr(error, "headers", None))


async def _broken(_: Request, error: Exception) -> Response:
    """An internal error: it is logged, and the client gets no details."""
    LOG.error("a request broke off", exc_info=error)
    return refusal(500, "an error inside the server; its log has it")


HANDLERS: dict[Any, Any] = {HTTPException: _missing, Exception: _broken}
