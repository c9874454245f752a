"""Webhook: posts every event to an address, without blocking."""

import base64
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import unquote, urlsplit

from tttstream.errors import ConfigError, OutputError
from tttstream.io.outputs import text_of
from tttstream.live.chores import Chores
from tttstream.live.naming import label_of

TIMEOUT_S = 5.0
TRIES = 3


class Webhook:
    """Posts {"kind": "begin" or "end", "event": …} as JSON to an address, in order, in a separate thread.

    address: http or https; a user and password in it are sent as basic authorisation and never shown. A message that
    fails TRIES times is dropped. Raises ConfigError for another address.
    """

    def __init__(self, address: str) -> None:
        try:
            url = urlsplit(address)
            scheme, host, _ = url.scheme, url.hostname, url.port
        except ValueError as error:
            raise ConfigError(f"--webhook is no address: {error}") from error
        if scheme not in ("http", "https") or not host:
            raise ConfigError(f"--webhook takes http://… or https://…, got {label_of(address)}")
        self.label = label_of(address)
        self._address = url._replace(netloc=url.netloc.rsplit("@", 1)[-1]).geturl()
        self._headers = {"Content-Type": "application/json", "User-Agent": "tttstream"}
        if url.username is not None:
            secret = f"{unquote(url.username)}:{unquote(url.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        self._chores = Chores("webhook")

    @property
    def trouble(self) -> str | None:
        """Why the last message did not arrive, None if it did."""
        return self._chores.trouble

    def tell(self, kind: str, event: dict[str, Any]) -> None:
        """Queue a message. Never waits; messages are dropped if the queue is full."""
        body = text_of({"kind": kind, "event": event}).encode()
        self._chores.add(lambda: self._post(body))

    def _post(self, body: bytes) -> None:
        for attempt in range(TRIES):
            request = urllib.request.Request(self._address, body, self._headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                    return
            except urllib.error.HTTPError as error:
                error.close()
                said = f"it answered {error.code}"
                if error.code < 500:
                    break
            except (OSError, ValueError) as error:
                said = str(getattr(error, "reason", None) or error)
            if attempt < TRIES - 1:
                time.sleep(0.2 * 4**attempt)
        raise OutputError(f"{self.label} did not take an event: {said}")

    def close(self) -> None:
        """Send the queued messages, for a few seconds at most."""
        self._chores.close(2 * TIMEOUT_S)
