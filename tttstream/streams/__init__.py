"""Streams: each has a model, the state of its memory, a clock and counters, and returns one result for each frame."""

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
    """The class of streams for a model. Raises ConfigError if there is none."""
    for kind in KINDS:
        if isinstance(model, kind.MODELS):
            return kind
    raise ConfigError(f"there is no stream for a {type(model).__name__}: write a subclass of tttstream.streams.Session")
