"""Addresses of sources on the network: remove secrets before they are shown, and explain wrong ones."""

import re
from urllib.parse import urlsplit

from tttstream.errors import SourceError

ADVICE = (
    ("(?i)401|unauthori[sz]ed", "give the user and the password in the address, USER:PASSWORD@HOST"),
    ("(?i)404", "its server has no such stream: check the part after the host"),
    ("(?i)protocol not found", "an address begins with rtsp://, http://, https://, udp:// or the like"),
    (
        "(?i)refused|timed out|unreachable|no route|resolve|input/output",
        "check that it is on, and that host and port are right",
    ),
)
"""Explanations of messages of FFmpeg about an address."""


def public(text: str) -> str:
    """A source without the user and password of its address; unchanged if it is no address.

    A password may contain characters that end a host (/, ? and #): everything up to the last @ is left out.
    """
    scheme, mark, rest = text.partition("://")
    return f"{scheme}://{rest.rsplit('@', 1)[-1]}" if mark and _named(rest) else text


def checked(text: str) -> None:
    """Raise SourceError for an ambiguous address. The message gives the correct form."""
    rest = text.partition("://")[2]
    if "@" in _behind(rest) and _named(rest):
        raise SourceError(
            f"{public(text)}: an @ is after a /, ? or # of the address. In a user name or password write "
            "/ as %2F, ? as %3F, # as %23 and @ as %40; in a path write @ as %40"
        )
    try:
        urlsplit(text)
    except ValueError as error:
        raise SourceError(f"{public(text)} is no address: {error}") from error


def advice(said: str) -> str:
    """Advice for a message of FFmpeg about an address."""
    return next((text for pattern, text in ADVICE if re.search(pattern, said)), "check whether it sends a video")


def _behind(rest: str) -> str:
    """The part of an address after user, host and port."""
    return rest[len(re.match("[^/?#]*", rest)[0]) :]  # type: ignore[index]


def _named(rest: str) -> bool:
    """Whether the part after the scheme has, or may have, a user or a password."""
    host = rest[: len(rest) - len(_behind(rest))]
    return "@" in host or (":" in host and "@" in rest)
