"""Access to the page and its API: addresses, tokens and host names."""

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable

from tttstream.errors import ConfigError

SHORTEST = 16  # characters of a token
TOKEN = re.compile(r"[A-Za-z0-9._~-]+")  # these need no escaping in a URL, a header or a shell
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """The conditions that a request must meet. host: the address that the server listens on. token: required in every
    request; None admits every program of this machine and is allowed on loopback only. "new" makes a token. names:
    further host names of the server in requests, such as that of a proxy. secure: whether the server uses TLS.

    Raises ConfigError for an address beyond loopback without a token, and for a token that is short or has characters
    that a URL does not allow.
    """

    def __init__(
        self, host: str = "127.0.0.1", token: str | None = None, names: Iterable[str] = (), *, secure: bool = False
    ) -> None:
        if token is None and not is_loopback(host):
            raise ConfigError(f"{host} is open to other machines, which requires a token")
        if token == "new":
            token = secrets.token_urlsafe(24)
        if token is not None and (len(token) < SHORTEST or not TOKEN.fullmatch(token)):
            raise ConfigError(f"a token has at least {SHORTEST} letters, digits or . _ ~ -")
        self.host, self.token, self.secure = host, token, secure
        self.names = LOOPBACK | {name.lower() for name in names}
        if token is not None:
            own = socket.gethostname().lower()
            self.names |= {own, f"{own}.local"}

    def __repr__(self) -> str:
        return f"Access(host={self.host!r}, token={'None' if self.token is None else '…'})"

    def fits_host(self, header: str) -> bool:
        """Whether a Host header names this server.

        A page of another site can reach the server by its own host name that resolves to this machine (DNS rebinding).
        Such a name is refused. A numeric address cannot be such a name, so with a token every address is accepted.
        """
        match = HOST.fullmatch(header)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.token is not None or address.is_loopback

    def fits_origin(self, origin: str, host: str) -> bool:
        """Whether an Origin header is that of this server's page under this Host. A proxy may add TLS, but not remove
        it."""
        schemes = ("https",) if self.secure else ("http", "https")
        return origin.lower() in {f"{scheme}://{host.lower()}" for scheme in schemes}

    def fits_token(self, given: str) -> bool:
        """Whether this is the token, compared in constant time."""
        return self.token is None or hmac.compare_digest(_digest(given), _digest(self.token))

    def fits_cookie(self, given: str) -> bool:
        """Whether this is the value of `cookie`."""
        return self.token is None or hmac.compare_digest(_digest(given), _digest(self.cookie))

    @property
    def cookie(self) -> str:
        """The value of the cookie for a browser that sent the token. The token cannot be derived from it. It stays the
        same when the server restarts with the same token."""
        assert self.token is not None
        return hmac.new(self.token.encode(), b"tttstream live page", hashlib.sha256).hexdigest()

    def cookie_name(self, port: int) -> str:
        """The name of the cookie: browsers share cookies between the ports of a host."""
        return f"tttstream_{port}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
