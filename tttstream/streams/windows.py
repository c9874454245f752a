"""Windows: parts of a frame around objects, the inputs of the model, with a bounded number of pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttstream.models.masks import Propagator
from tttstream.models.masks.target import TargetState

CELL = 16  # pixels: the sides of what the model sees are multiples of it
SHORT, CROP = 1.5, 1.2  # of the side at which a model was trained: the best that docs/results/masks.md has
LEAST = 96  # pixels: the shortest side of what the model sees of a part
AROUND = 0.25  # of the longer side of an object is seen around it at least,
APART = 0.06  # and so much of the short side of the frame,
WIDEN = 0.12  # and so much more for each frame in which it was not learned
FILL = 0.8  # of the pixels that may be seen are filled with what lies around
MORE = 1.2  # times as many pixels as intended may be seen before the zoom changes
CLOSER = 1.5  # times as near as before it must be possible to look, before the zoom changes


class Box(NamedTuple):
    """Top, left, bottom and right in pixels of the frame, the last two exclusive."""

    top: float
    left: float
    bottom: float
    right: float

    @property
    def area(self) -> float:
        """The area in pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def union(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))

    def wider(self, by: float, height: int, width: int) -> Box:
        """This box plus a margin of `by` pixels, clipped to a frame of this size."""
        return Box(
            max(self.top - by, 0), max(self.left - by, 0), min(self.bottom + by, height), min(self.right + by, width)
        )

    def filled(self, area: float, height: int, width: int) -> Box:
        """This box, enlarged equally on all sides to about this area, inside a frame of this size."""
        box = self
        for _ in range(3):  # where a side of the frame is met, the other sides go further
            high, wide = box.bottom - box.top, box.right - box.left
            if box.area >= area:
                break
            box = box.wider((math.sqrt((high - wide) ** 2 + 4 * area) - high - wide) / 4, height, width)
        return box


class Window(NamedTuple):
    """A part of a frame. top, left, bottom, right: in pixels of the frame, the last two exclusive. sides: height and
    width of the model's input. objects: those to find in it, from 0."""

    top: int
    left: int
    bottom: int
    right: int
    sides: tuple[int, int]
    objects: list[int]

    @property
    def slices(self) -> tuple[slice, slice]:
        """The slices of rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def view(self, height: int, width: int) -> Tensor:
        """Top, left, bottom and right [4] in short sides from the middle of a frame of this size."""
        edges = torch.tensor(self[:4], dtype=torch.float64)
        return (edges - torch.tensor([height, width, height, width]) / 2) / min(height, width)


def usual(model: Propagator[Any], size: int | None, crop: int | None) -> tuple[int | None, int | None]:
    """(size, crop) of the command line: the short side of frames, and the side of windows. Without a size, a model that
    accepts parts of frames gets the best windows of docs/results/masks.md."""
    side = round(CROP * model.config.size)
    if size is not None or not model.VIEWS or (crop is None and side < LEAST):
        return size, crop
    return round(SHORT * model.config.size), side if crop is None else crop


def planned(
    boxes: Mapping[int, Box], before: Sequence[float], height: int, width: int, pixels: int, finest: float
) -> tuple[list[Window], list[float]]:
    """The windows of a frame of this size, and each object's zoom: pixels of the model's input per pixel of the frame.

    Features of an object depend on its size, so its zoom is constant until the window has become far too large or far
    too small. Objects near each other share a window.

    boxes: in which objects may be. before: their zooms so far, 0 for a new choice. pixels: of the model's input for a
    window. finest: the largest zoom.
    """
    zooms = list(before)
    for number, box in boxes.items():
        zooms[number] = _zoom(box, before[number], pixels, finest)
    windows = []
    for box, objects in _together(boxes):
        zoom = min(*(zooms[number] for number in objects), math.sqrt(MORE * pixels / max(box.area, 1.0)))
        box = box.filled(FILL * pixels / zoom**2, height, width)
        top, bottom, down = _side(box.top, box.bottom, height, zoom)
        left, right, across = _side(box.left, box.right, width, zoom)
        windows.append(Window(top, left, bottom, right, (down, across), objects))
    return windows, zooms


def where(state: TargetState, shown: Tensor | None, height: int, width: int) -> dict[int, Box]:
    """The box in which each object may be, in a frame of this size: around its mask in `shown` [objects, H, W], else
    around its place when it was last learned. Objects that were never given have none."""
    short, found = min(height, width), {}
    middle = torch.tensor([height, width, height, width], dtype=torch.float64) / 2
    given = [False] * state.objects if shown is None else shown.flatten(1).any(1).tolist()
    for number, (seen, missed) in enumerate(zip(state.seen[0].tolist(), state.missed[0].tolist(), strict=True)):
        if given[number]:
            assert shown is not None
            sides = [shown[number].any(1 - axis).nonzero() for axis in (0, 1)]
            edges, missed = [float(x) for x in (*(side[0] for side in sides), *(side[-1] + 1 for side in sides))], 0.0
        elif seen:
            edges = (state.box[0, number].double() * short + middle).tolist()
        else:
            continue
        box = Box(*edges)
        by = AROUND * max(box.bottom - box.top, box.right - box.left) + (APART + WIDEN * missed) * short
        found[number] = box.wider(by, height, width)
    return found


def _zoom(box: Box, before: float, pixels: int, finest: float) -> float:
    fit = min(finest, math.sqrt(pixels / max(box.area, 1.0)))
    keep = before > 0 and before**2 * box.area <= MORE * pixels and fit <= CLOSER * before
    return before if keep else fit


def _side(low: float, high: float, size: int, zoom: float) -> tuple[int, int, int]:
    """The first and last pixel of a window along one side of the frame, and the pixels of the model's input there."""
    seen = max(round((high - low) * zoom / CELL) * CELL, LEAST)
    length = round(seen / zoom)
    if length >= size:
        return 0, size, max(round(size * zoom / CELL) * CELL, CELL)
    start = min(max(round((low + high - length) / 2), 0), size - length)
    return start, start + length, seen


def _together(boxes: Mapping[int, Box]) -> list[tuple[Box, list[int]]]:
    """Boxes with their objects. Two boxes are joined if their union is not larger than the sum of both."""
    found = [(box, [number]) for number, box in boxes.items()]
    pair = _pair(found)
    while pair is not None:
        one, other = pair
        box, numbers = found.pop(other)
        found[one] = found[one][0].union(box), sorted(found[one][1] + numbers)
        pair = _pair(found)
    return found


def _pair(found: list[tuple[Box, list[int]]]) -> tuple[int, int] | None:
    for one, (box, _) in enumerate(found):
        for other in range(one + 1, len(found)):
            if box.union(found[other][0]).area <= box.area + found[other][0].area:
                return one, other
    return None
