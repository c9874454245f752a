"""Panes: the pictures of a camera for display, encoded on request, once for all requests."""

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import ConfigError
from tttstream.frames import Frame, Result
from tttstream.streams import MapStream, Session
from tttstream.views.jpeg import encode, narrowed
from tttstream.views.masks import MaskOverlay, palette
from tttstream.views.overlay import HeatLayer, fit, to_uint8
from tttstream.views.world import draw_view, outline, world_picture

KINDS = ("frame", "surprise", "expected", "world", "follow")
WIDTHS = (64, 1280)
WORLD_EVERY = 8  # frames between two drawings of the world
SIDE = 384  # pixels of a small picture that is drawn larger

Marked = tuple[Frame, NDArray[np.uint8]]  # a frame and the mask of the followed things


class Shown(NamedTuple):
    """The values from which the pictures of a frame are drawn. number: of the result. memory: a read-only copy of the
    stream. captured: the time of the capture, by `time.monotonic()`. latency_ms: from the capture to the result."""

    number: int
    frame: Frame
    result: Result
    memory: Session
    captured: float
    latency_ms: float


class Pane(NamedTuple):
    """A picture as JPEG. version: the number of its result. captured: of its frame. size: width and height."""

    version: int
    jpeg: bytes
    captured: float
    size: tuple[int, int]


class Panes:
    """Draws and encodes pictures; keeps the newest of each kind and width. Thread-safe."""

    def __init__(self) -> None:
        self._shown: Shown | None = None
        self._heat = HeatLayer()
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], Pane] = {}
        self._marked: Marked | None = None

    def show(self, shown: Shown | None) -> None:
        """Set the values that are shown."""
        self._shown = shown

    def mark(self, marked: Marked | None) -> None:
        """Show this frame with the mask of the followed things."""
        self._marked = marked

    @property
    def kinds(self) -> list[str]:
        """The panes that are available now."""
        return self._kinds(self._shown, self._marked)

    @staticmethod
    def _kinds(shown: Shown | None, marked: Marked | None) -> list[str]:
        if shown is None:
            return ["frame"]
        kinds = ["frame"]
        if shown.result.surprise_map.size > 1:
            kinds.append("surprise")
        if shown.result.expected is not None:
            kinds.append("expected")
        if isinstance(shown.memory, MapStream) and shown.frame.pose is not None:
            kinds.append("world")
        return kinds if marked is None else [*kinds, "follow"]

    def get(self, kind: str, width: int) -> Pane | None:
        """A pane of a kind, at most `width` wide; None without a picture. Raises ConfigError for an unknown kind."""
        if kind not in KINDS:
            raise ConfigError(f"there is no pane {kind!r}, expected one of {', '.join(KINDS)}")
        shown, marked, width = self._shown, self._marked, min(max(width, WIDTHS[0]), WIDTHS[1])
        if shown is None or kind not in self._kinds(shown, marked):
            return None
        with self._lock:
            kept = self._kept.get((kind, width))
            fresh = 1 if kind != "world" else WORLD_EVERY
            if kept is not None and 0 <= shown.number - kept.version < fresh:
                return kept
            if len(self._kept) > 16:
                self._kept.clear()
            picture = self._drawn(kind, shown, marked, width)
            size = picture.shape[1], picture.shape[0]
            pane = self._kept[kind, width] = Pane(shown.number, encode(picture), shown.captured, size)
            return pane

    def _drawn(self, kind: str, shown: Shown, marked: Marked | None, width: int) -> NDArray[np.uint8]:
        if kind == "world":
            assert isinstance(shown.memory, MapStream)
            world, extent = world_picture(shown.memory, min(width, SIDE))
            draw_view(world, extent, shown.memory.at)
            return world
        if kind == "expected":
            assert shown.result.expected is not None
            return _enlarged(shown.result.expected, width)
        if kind == "follow":
            assert marked is not None
            frame, mask = marked
            return narrowed(MaskOverlay(palette()).draw(frame.image, mask), width)
        picture = narrowed(to_uint8(shown.frame.image), width)
        if kind == "frame":
            return picture
        picture = _enlarged(picture, width).copy()
        if shown.result.familiar is not None:
            outline(picture, shown.result)
        else:
            self._heat.over(picture, shown.result.surprise_map)
        return picture


def _enlarged(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Enlarge a picture to at least SIDE pixels on the longer side, within a width."""
    factor = max(1.0, SIDE / max(picture.shape[:2]))
    if factor > 1:
        picture = fit(picture, round(picture.shape[0] * factor), round(picture.shape[1] * factor))
    return narrowed(picture, width)


def why(shown: Shown, width: int = 480) -> dict[str, bytes]:
    """The pictures that explain the surprise of a frame, as JPEG by kind."""
    panes = Panes()
    panes.show(shown)
    found = {kind: panes.get(kind, width) for kind in ("frame", "surprise", "expected")}
    return {kind: pane.jpeg for kind, pane in found.items() if pane is not None}
