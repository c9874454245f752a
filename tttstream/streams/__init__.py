"""Streams: a model, the memory's state, a clock and counters. Frames go in one at a time, and results come out."""

from tttstream.errors import ConfigError
from tttstream.models.base import SavedModel
from tttstream.streams.map import Extent, Imagined, MapStream
from tttstream.streams.masks import MaskResult, MaskStream
from tttstream.streams.normaliser import Normaliser
from tttstream.streams.session import Saved, Session, choose_device, place
from tttstream.streams.surprise import Stream
from tttstream.streams.teach import Found, TeachResult, TeachStream

__all__ = [
    "Extent",
    "Found",
    "Imagined",
    "MapStream",
    "MaskResult",
    "MaskStream",
    "Normaliser",
    "Saved",
    "Session",
    "Stream",
    "TeachResult",
    "TeachStream",
    "choose_device",
    "kind_for",
    "place",
]

KINDS: tuple[type[Session], ...] = (Stream, MapStream, MaskStream, TeachStream)


def kind_for(model: SavedModel) -> type[Session]:
    """The kind of stream that a model is for. Raises ConfigError where there is none."""
    for kind in KINDS:
        if isinstance(model, kind.MODELS):
            return kind
    raise ConfigError(f"there is no stream for a {type(model).__name__}: write a subclass of tttstream.streams.Session")
