"""The browser page of `tttstream live` and the API under it."""

from tttstream.live.web.server import Server, serve

__all__ = ["Server", "serve"]
