"""Live: many cameras on one model, each with its own memory."""

from tttstream.live.camera import Camera
from tttstream.live.engine import Engine, UnknownCamera
from tttstream.live.feed import Retry
from tttstream.live.panes import Pane

__all__ = ["Camera", "Engine", "Pane", "Retry", "UnknownCamera"]
