"""An operation of the API: the values read from a request and their checks, the answer, and its OpenAPI description."""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tttstream import __version__
from tttstream.errors import CheckpointError, ConfigError, OutputError, TTTStreamError
from tttstream.live.web.guard import refusal
from tttstream.live.web.schema import Schema, check, record
from tttstream.live.web.updates import text_of

MOST_BODY = 64 * 1024  # bytes
DESCRIPTION = (
    "The API of the page. Every answer that is not 2xx is JSON with `error`, one line. With a token, each request "
    "carries `Authorization: Bearer TOKEN`, or the cookie that `POST /api/session` gives. A command runs between "
    "two frames and returns the new status of the camera. Boxes are [x0, y0, x1, y1] in 0..1 of the picture."
)


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Asked:
    """The content of a request. path, query: its parameters. body: its JSON, None if the operation has no body."""

    request: Request
    path: dict[str, str]
    query: dict[str, Any]
    body: Any


@dataclass(frozen=True)
class Operation:
    """One method on one path.

    answer: called with `Asked`; returns a Response, a value for JSON, or None for an empty answer. body: the schema of
    the request's JSON. query: schemas of the query parameters. gives: the media type.
    """

    method: str
    path: str
    summary: str
    answer: Callable[[Asked], Awaitable[Any]]
    body: Schema | None = None
    query: dict[str, Schema] = field(default_factory=dict)
    gives: str = "application/json"

    def route(self) -> Route:
        """The Starlette route of the operation."""
        return Route(self.path, self._respond, methods=[self.method], name=self.name)

    @property
    def name(self) -> str:
        """The unique name in OpenAPI."""
        words = re.findall(r"\w+", self.path.removeprefix("/api/"))
        return "_".join([self.method.lower(), *words]).replace("-", "_")

    async def _respond(self, request: Request) -> Response:
        try:
            query = {key: _parsed(key, value, self.query) for key, value in request.query_params.items()}
            body = None if self.body is None else await _read(request)
            if self.body is not None:
                check(body, self.body)
            said = await self.answer(Asked(request, dict(request.path_params), query, body))
        except Refused as refused:
            return refusal(refused.status, refused.reason)
        except TTTStreamError as error:
            return refusal(_status_of(error), " ".join(str(error).split()))
        if isinstance(said, Response):
            return said
        if said is None:
            return Response(status_code=204)
        return Response(text_of(said), media_type="application/json")

    def describe(self) -> dict[str, Any]:
        """The operation in the terms of OpenAPI."""
        inside = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)", self.path)
        ]
        behind = [{"name": name, "in": "query", "schema": schema} for name, schema in self.query.items()]
        good: dict[str, Any] = {"200": {"description": "done", "content": {self.gives: {}}}}
        if not self.gives:
            good = {"204": {"description": "done"}}
        error = {"$ref": "#/components/responses/Error"}
        said: dict[str, Any] = {
            "operationId": self.name,
            "summary": self.summary,
            "responses": {**good, "default": error},
        }
        if inside or behind:
            said["parameters"] = inside + behind
        if self.body is not None:
            said["requestBody"] = {"required": True, "content": {"application/json": {"schema": self.body}}}
        return said


def document(operations: Sequence[Operation], sockets: dict[str, str]) -> dict[str, Any]:
    """The OpenAPI 3.1 document. sockets: what the WebSocket at each path is for."""
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.describe()
    for path, text in sockets.items():
        answer = {"101": {"description": "the WebSocket is open"}}
        paths[path] = {"get": {"summary": "WebSocket", "description": text, "responses": answer}}
    error = record(("error",), error={"type": "string"})
    return {
        "openapi": "3.1.0",
        "info": {"title": "tttstream live", "version": __version__, "description": DESCRIPTION},
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "responses": {
                "Error": {"description": "refused", "content": {"application/json": {"schema": error}}},
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


async def _read(request: Request) -> Any:
    """The JSON that a request carries."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected Content-Type: application/json")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MOST_BODY:
            raise Refused(413, f"expected at most {MOST_BODY} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(400, "expected JSON") from None


def _parsed(name: str, text: str, schemas: dict[str, Schema]) -> Any:
    """The value of a query parameter."""
    if name not in schemas:
        raise ConfigError(f"expected {', '.join(schemas) or 'no parameters'}, got {name[:40]!r}")
    value: Any = text
    if schemas[name]["type"] == "integer":
        if not re.fullmatch(r"-?\d{1,15}", text):
            raise ConfigError(f"{name}: expected a whole number")
        value = int(text)
    check(value, schemas[name], name)
    return value


def _status_of(error: TTTStreamError) -> int:
    if type(error).__name__ == "UnknownCamera":
        return 404
    if isinstance(error, CheckpointError):
        return 409
    return 507 if isinstance(error, OutputError) else 400
