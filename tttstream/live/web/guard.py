"""Checks before every route: Host, Origin, token and rate of each request; adds the headers of each answer."""

from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tttstream.live.web.access import Access
from tttstream.live.web.rates import Rate

OPEN = frozenset({"/", "/api/session", "/page/signin.js", "/page/style.css", "/page/icon.svg"})
"""The page for a browser that has not sent the token: a form for it. "/" decides by `scope["signed_in"]`."""
CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware that passes a request to `app` or refuses it.

    A refusal is JSON `{"error": …}`: 400 without a usable Host, 421 for the Host of another server, 403 for a request
    from the page of another site, 401 without the token, 429 for too many requests. WebSockets are refused in the
    same way before they open. port: of the server.
    """

    def __init__(self, app: ASGIApp, access: Access, port: int) -> None:
        self._app, self._access, self._cookie = app, access, access.cookie_name(port)
        self._requests, self._changes, self._guesses = Rate(200, 1000), Rate(20, 60), Rate(0.2, 10)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._foreign(scope, headers) or self._too_many(scope)
        if answer is None:
            scope["signed_in"] = self._signed_in(scope, headers)
            if not scope["signed_in"] and scope["path"] not in OPEN:
                answer = self._unknown(scope, headers)
        if answer is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "http":
            await answer(scope, receive, _with_headers(send))
        else:
            await _refuse_socket(answer, scope, receive, _with_headers(send))

    def _foreign(self, scope: Scope, headers: Headers) -> Response | None:
        """A refusal for requests from another site or to another host name."""
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return refusal(400, "expected one Host header")
        if not self._access.fits_host(hosts[0]):
            return refusal(421, "this is not the server of that host; see --web-name")
        asks = scope["type"] == "websocket" or scope["method"] in CHANGES
        origin = headers.get("origin")
        if origin is not None and asks and not self._access.fits_origin(origin, hosts[0]):
            return refusal(403, "the page of another site may not ask this")
        # A browser names the origin of each request; opening the page from a link is allowed.
        visit = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not visit:
            return refusal(403, "the page of another site may not ask this")
        return None

    def _too_many(self, scope: Scope) -> Response | None:
        client = _client(scope)
        changes = scope["type"] == "http" and scope["method"] in CHANGES
        if self._requests.allows(client) and (not changes or self._changes.allows(client)):
            return None
        return refusal(429, "too many requests; wait a second", {"Retry-After": "1"})

    def _signed_in(self, scope: Scope, headers: Headers) -> bool:
        """Whether the request has the token in a header or the cookie of the page."""
        if self._access.token is None:
            return True
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return not self._guesses.is_spent(_client(scope)) and self._access.fits_token(token.strip())
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and self._access.fits_cookie(morsel.value)

    def _unknown(self, scope: Scope, headers: Headers) -> Response:
        if "authorization" in headers and not self._guesses.allows(_client(scope)):
            return refusal(429, "too many wrong tokens; wait a minute", {"Retry-After": "60"})
        return refusal(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    def sign_in(self, scope: Scope, token: str) -> Response:
        """The answer to a browser that sends a token: 204 with the cookie, 401, or 429 after too many wrong ones."""
        client = _client(scope)
        if self._guesses.is_spent(client):
            return refusal(429, "too many wrong tokens; wait a minute", {"Retry-After": "60"})
        if self._access.token is not None and not self._access.fits_token(token):
            self._guesses.allows(client)
            return refusal(401, "the token is wrong")
        response = Response(status_code=204)
        if self._access.token is not None:
            secure = self._access.secure
            response.set_cookie(self._cookie, self._access.cookie, httponly=True, samesite="strict", secure=secure)
        return response


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse({"error": reason}, status, headers)


def _client(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else "?"


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sent


async def _refuse_socket(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    await receive()  # websocket.connect
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    start = {"status": answer.status_code, "headers": answer.raw_headers}
    await send({"type": "websocket.http.response.start", **start})
    await send({"type": "websocket.http.response.body", "body": answer.body})
