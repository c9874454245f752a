"""The browser page of `tttstream live` and its API."""

from tttstream.live.web.server import Server, serve

__all__ = ["Server", "serve"]
