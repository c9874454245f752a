"""The picture of a map: the frame, the expected picture at its pose, and the world in the memory."""

import math
from collections import deque
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.frames import Result
from tttstream.streams.map import Extent, MapStream
from tttstream.views.overlay import ALERT, BACKGROUND, MUTED, TEXT, Overlay, Picture, fit, size_text

PANE, GAP, TITLE = 288, 12, 26  # pixels
EVERY = 6  # frames between two drawings of the world
PATH = 240  # frames of the path that are drawn
MARKED = 150  # frames for which a changed place is outlined
CHANGED = 6.0  # score from which a cell counts as changed: one second in 50 without a change has such a cell, and six
# in seven with one (photographs for training)
KNOWN = 0.8  # least familiarity of a changed cell
TITLES = ("what it sees", "what memory expected here", "the world as remembered")


class Mark(NamedTuple):
    """A place that differed from the expected picture: its centre x, y in the world, and the number of the frame."""

    x: float
    y: float
    frame: int


def dimmed(picture: Picture, familiar: NDArray[np.float32]) -> Picture:
    """A picture of a world [H, W, 3], darkened where `familiar` [h, w] is low."""
    known = cv2.resize(familiar, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    return (picture * known + np.array(BACKGROUND, np.float32) * (1 - known)).astype(np.uint8)


def changed_patches(result: Result) -> NDArray[np.bool_]:
    """The familiar patches [h, w] of a frame that have changed."""
    return (result.surprise_map > CHANGED) & ((result.familiar or 0.0) > KNOWN)


def outline(area: Picture, result: Result) -> None:
    """Outline the changed patches of a frame in its picture [H, W, 3], in place."""
    size = area.shape[1], area.shape[0]
    changed = cv2.resize(changed_patches(result).astype(np.uint8) * 255, size, interpolation=cv2.INTER_CUBIC)
    outlines, _ = cv2.findContours((changed > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(area, outlines, -1, BACKGROUND, 4, cv2.LINE_AA)
    cv2.drawContours(area, outlines, -1, ALERT, 2, cv2.LINE_AA)


def world_picture(stream: MapStream, side: int) -> tuple[Picture, Extent]:
    """The world in the memory of a stream, with `side` pixels on its longer side, and the extent of the picture.

    Raises StateError if the stream has seen nothing yet.
    """
    (x0, y0), (x1, y1), number = stream.extent
    n = stream.model.config.side  # the world is drawn in whole cells
    low, high = (math.floor(x0 * n) / n, math.floor(y0 * n) / n), (math.ceil(x1 * n) / n, math.ceil(y1 * n) / n)
    extent = Extent(low, high, number)
    shown = dimmed(*stream.world(extent))
    scale = side / max(shown.shape[:2])
    size = round(shown.shape[1] * scale), round(shown.shape[0] * scale)
    return np.asarray(cv2.resize(shown, size, interpolation=cv2.INTER_CUBIC), np.uint8), extent


def in_world(points: NDArray[np.float64], world: Picture, extent: Extent) -> NDArray[np.int32]:
    """Points [n, 2] of a world as pixels of its picture."""
    corner = np.array(extent.low)
    scale = world.shape[1] / (extent.high[0] - corner[0])
    return np.asarray(np.round((points - corner) * scale), np.int32)


def draw_view(world: Picture, extent: Extent, at: NDArray[np.float64]) -> None:
    """Draw the view of a camera, at a pose as in `MapStream.at`, as a square on the picture of a world, in place."""
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]) * math.exp(at[2])
    turned = corners @ np.array([[math.cos(at[3]), math.sin(at[3])], [-math.sin(at[3]), math.cos(at[3])]])
    cv2.polylines(world, [in_world(at[:2] + turned, world, extent)], True, TEXT, 2, cv2.LINE_AA)


class WorldOverlay(Overlay):
    """Draws three panes above the numbers and the curve: the frame with outlines of changed places, the expected
    picture, and the world in the memory, redrawn every few frames, with the path of the camera.

    stream: the stream with the memory. The picture shows the visited part of the world of the frame.
    """

    def __init__(self, stream: MapStream, threshold: float = 3.0) -> None:
        super().__init__(threshold, width=3 * PANE + 4 * GAP, history=300)
        self.stream = stream
        self._path: deque[tuple[float, float]] = deque(maxlen=PATH)
        self._marks: deque[Mark] = deque(maxlen=64)
        self._world: Picture | None = None
        self._drawn = stream.extent

    def _tall(self, frame: Picture) -> int:
        return TITLE + PANE + GAP

    def _draw_top(self, area: Picture, frame: Picture, result: Result, note: str) -> None:
        at = self.stream.at
        self._follow(at, result)
        cv2.rectangle(area, (0, 0), (area.shape[1], area.shape[0]), BACKGROUND, cv2.FILLED)
        panes = [area[TITLE : TITLE + PANE, GAP + i * (PANE + GAP) :][:, :PANE] for i in range(3)]
        self._draw_frame(panes[0], frame, result, note)
        if result.expected is not None:
            panes[1][:] = fit(result.expected, PANE, PANE)
            unknown = 1 - (result.familiar or 0.0)
            cv2.addWeighted(panes[1], 1 - 0.8 * unknown, np.full_like(panes[1], BACKGROUND), 0.8 * unknown, 0, panes[1])
        self._draw_world(panes[2], at)
        size = size_text(self.stream.state_bytes)
        texts = [(GAP + i * (PANE + GAP), 6.0, title, 13, TEXT) for i, title in enumerate(TITLES)]
        texts.append((GAP + 3 * (PANE + GAP) - 122, 8.0, f"from {size}, always", 11, MUTED))
        self._write(area[:TITLE], texts)  # type: ignore[arg-type]

    def _draw_frame(self, area: Picture, frame: Picture, result: Result, note: str) -> None:
        area[:] = fit(frame, *area.shape[:2])
        outline(area, result)
        if note:
            self._write(area[8:30, 10 : 20 + 9 * len(note)], [(4, 2, note, 14, TEXT)])

    def _follow(self, at: NDArray[np.float64], result: Result) -> None:
        """Record the position of the camera, and the changes there."""
        if at[4] != self._drawn.world:  # another world
            self._world = None
            self._path.clear()
            self._marks.clear()
        self._path.append((float(at[0]), float(at[1])))
        changed = changed_patches(result)
        if changed.any():
            side = len(changed)
            rows, columns = np.nonzero(changed)
            right, down = (columns.mean() + 0.5) / side - 0.5, (rows.mean() + 0.5) / side - 0.5
            c, s = math.exp(at[2]) * math.cos(at[3]), math.exp(at[2]) * math.sin(at[3])
            x, y = at[0] + c * right - s * down, at[1] + s * right + c * down
            near = [m for m in self._marks if math.hypot(m.x - x, m.y - y) < 0.3]
            for mark in near:
                self._marks.remove(mark)
                x, y = 0.7 * mark.x + 0.3 * x, 0.7 * mark.y + 0.3 * y
            self._marks.append(Mark(x, y, self._seen))

    def _draw_world(self, area: Picture, at: NDArray[np.float64]) -> None:
        if self._world is None or self._seen % EVERY == 0:
            self._world, self._drawn = world_picture(self.stream, PANE)
        world = self._world.copy()
        path = in_world(np.array(self._path), world, self._drawn)
        cv2.polylines(world, [path], False, (210, 220, 235), 1, cv2.LINE_AA)
        draw_view(world, self._drawn, at)
        for mark in self._marks:
            if self._seen - mark.frame < MARKED:
                middle, half = np.array([mark.x, mark.y]), 0.24
                box = in_world(np.stack([middle - half, middle + half]), world, self._drawn)
                cv2.rectangle(world, tuple(box[0].tolist()), tuple(box[1].tolist()), ALERT, 2, cv2.LINE_AA)
        top, left = (PANE - world.shape[0]) // 2, (PANE - world.shape[1]) // 2
        area[top : top + world.shape[0], left : left + world.shape[1]] = world
