"""The server: serves the page and answers the API, in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from tttstream.errors import ConfigError, OutputError
from tttstream.live import Engine
from tttstream.live.web.access import Access
from tttstream.live.web.app import Application
from tttstream.live.web.sockets import MOST_PICTURE

START_S, STOP_S = 10.0, 3.0
BUFFER = 128 * 1024  # bytes in the send buffer of one client: more would only delay its pictures
SILENT_MS = 30_000  # time after which the system drops a client that does not read
CONNECTIONS = 1500


class Server:
    """A running server.

    url: the address to open, with the token after `#`, which browsers do not send. close() ends the server.
    """

    def __init__(self, engine: Engine, access: Access, port: int, tls: tuple[Path, Path] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # broken connections of clients are not logged
        self._socket = _bound(access.host, port)
        self.port = int(self._socket.getsockname()[1])
        host = _own_address() if access.host in ("0.0.0.0", "::") else access.host
        host = f"[{host}]" if ":" in host else host
        secret = "" if access.token is None else f"#token={access.token}"
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}/{secret}"
        self._engine, self._access, self._tls = engine, access, tls
        self._server: uvicorn.Server | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="tttstream web", daemon=True)
        self._thread.start()
        self._wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the server is running."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the server; clients lose their connection."""
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:
            self._failure = failure

    async def _serve(self) -> None:
        certificate, key = self._tls or (None, None)
        config = uvicorn.Config(
            Application(self._engine, self._access, self.port),
            http="h11",
            ws="websockets-sansio",
            ws_max_size=MOST_PICTURE + 8,
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._server = uvicorn.Server(config)
        await self._server.serve(sockets=[self._socket])

    def _wait(self) -> None:
        """Wait until the server answers. Raises ConfigError if it cannot start."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._failure is None:
            if self._server is not None and self._server.started:
                return
            time.sleep(0.01)
        self._socket.close()
        if isinstance(self._failure, (ssl.SSLError, OSError)):
            raise ConfigError(f"the certificate or its key cannot be used: {self._failure}") from self._failure
        raise OutputError(f"the page cannot be served: {self._failure or 'no answer'}") from self._failure


def serve(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 8230,
    *,
    token: str | None = None,
    names: Sequence[str] = (),
    tls: tuple[Path, Path] | None = None,
) -> Server:
    """Serve the page of an engine.

    host, port: to listen on; port 0 is any free one. token: required on other interfaces than loopback. names: further
    host names of the server in requests. tls: files of a certificate and its key, in PEM; browsers of other machines
    share their camera only over TLS.

    Raises ConfigError for options that do not fit, OutputError for a port in use.
    """
    for path in tls or ():
        if not path.is_file():
            raise ConfigError(f"there is no file {path}: TLS needs a certificate and its key, both in PEM")
    return Server(engine, Access(host, token, names, secure=tls is not None), port, tls)


def _own_address() -> str:
    """The address of this machine in its network; its name without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address reserved for documentation; nothing is sent
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OutputError for a port in use, ConfigError for an address of another machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"{host} is no address: {error.strerror}") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        with contextlib.suppress(AttributeError):  # Linux has it
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise OutputError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --web") from error
    return listening
