"""Segments an object from a box around it, or from a point on it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import FrameError

SHORT = 240  # pixels: the short side of the picture in which outlines are computed
STEPS = 5  # of GrabCut
EDGE, LEAST = 0.01, 0.05  # of a guess: its unsure edge as a share of the short side, and its least share of the box
CORE, LIKELY, REACH = 0.02, 0.1, 0.3  # radii around a point, as shares of the short side

Mask = NDArray[np.bool_]


def from_box(image: NDArray[np.generic], box: Sequence[float], guess: Mask | None = None) -> Mask:
    """The object in a box by GrabCut (Rother et al., SIGGRAPH 2004): all outside of the box is background.

    image: RGB [H, W, 3], uint8 or float in 0..1. box: x and y of its upper left corner, width, height, in pixels; it is
    clipped to the picture. If GrabCut finds less than a hundredth of the box, or if the box covers the whole picture,
    so that there is no background, the object is the ellipse in the box. guess: [H, W] the mask of a model; if it has a
    twentieth of the box or more, its inner part is the object for sure and the rest of the box probably background.
    Raises FrameError for a box without pixels.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = _clipped(box, height, width)
    small, scale = _small(image)
    x0, y0, x1, y1 = (round(value * scale) for value in (left, top, right, bottom))
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    labels = np.zeros(small.shape[:2], np.uint8)  # 0: background for sure
    labels[y0:y1, x0:x1] = 3  # 3: probably the object
    if guess is not None:
        labels = _guessed(labels, guess)
    found = _cut(small, labels) if (labels == 0).any() else np.zeros(labels.shape, bool)
    if found.sum() < 0.01 * (labels > 0).sum():
        ys, xs = np.indices(labels.shape) + 0.5
        across, down = (xs - (x0 + x1) / 2) / (x1 - x0), (ys - (y0 + y1) / 2) / (y1 - y0)
        found = across**2 + down**2 <= 0.25
    whole = _whole(found, height, width)
    inside = np.zeros_like(whole)
    inside[int(np.floor(top)) : int(np.ceil(bottom)), int(np.floor(left)) : int(np.ceil(right))] = True
    return whole & inside if (whole & inside).any() else inside  # a tiny box may vanish in the smaller picture


def from_point(image: NDArray[np.generic], point: Sequence[float]) -> Mask:
    """The object at a point (x, y) by GrabCut: pixels near the point are the object, far ones are background.

    A point is ambiguous: the result may be a part of the object. Raises FrameError for a point outside of the picture.
    """
    height, width = image.shape[:2]
    x, y = _finite(point, 2, "a point x, y")
    if not (0 <= x < width and 0 <= y < height):
        raise FrameError(f"the point {x:g}, {y:g} is outside of the frame of {width}x{height} pixels")
    small, scale = _small(image)
    ys, xs = np.indices(small.shape[:2]) + 0.5
    far = np.hypot(xs - (x + 0.5) * scale, ys - (y + 0.5) * scale) / min(small.shape[:2])
    labels = np.where(far < REACH, 2, 0).astype(np.uint8)  # 2: probably background
    labels[far < LIKELY] = 3
    core = far <= max(CORE, far.min())
    labels[core] = 1  # 1: the object for sure
    from scipy.ndimage import label

    pieces, _ = label(_cut(small, labels) | core)
    return _whole(pieces == pieces[core][0], height, width)


def _guessed(labels: NDArray[np.uint8], guess: Mask) -> NDArray[np.uint8]:
    """The labels of GrabCut for a box (3 inside, 0 outside) and the mask that a model predicted."""
    import cv2

    small = cv2.resize(guess.astype(np.float32), labels.shape[::-1], interpolation=cv2.INTER_AREA) > 0.5
    small &= labels > 0
    if small.sum() < LEAST * (labels > 0).sum():
        return labels
    side = 2 * max(1, round(EDGE * min(labels.shape))) + 1
    core = cv2.erode(small.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    return np.where(core, 1, np.where((labels > 0) & ~small, 2, labels)).astype(np.uint8)  # 2: probably background


def _cut(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Mask:
    import cv2

    cv2.setRNGSeed(0)  # GrabCut draws its clusters at random: a stream must be reproducible
    behind, object_ = np.zeros((1, 65)), np.zeros((1, 65))  # colours of background and object, filled by it
    found, *_ = cv2.grabCut(image, labels.copy(), (0, 0, 0, 0), behind, object_, STEPS, cv2.GC_INIT_WITH_MASK)
    return np.asarray((found == 1) | (found == 3))


def _small(image: NDArray[np.generic]) -> tuple[NDArray[np.uint8], float]:
    import cv2

    pixels = np.asarray(image if image.dtype == np.uint8 else np.rint(image.clip(0, 1) * 255), np.uint8)
    scale = min(1.0, SHORT / min(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _whole(mask: Mask, height: int, width: int) -> Mask:
    import cv2

    return np.asarray(cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5)


def _clipped(box: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    x, y, wide, high = _finite(box, 4, "a box x, y, width, height")
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + wide, float(width)), min(y + high, float(height))
    if right - left < 1 or bottom - top < 1:
        raise FrameError(
            f"the box {x:g}, {y:g}, {wide:g}, {high:g} (x, y, width, height) has no pixel of the frame of "
            f"{width}x{height}"
        )
    return left, top, right, bottom


def _finite(numbers: Sequence[float], count: int, meant: str) -> list[float]:
    values = np.asarray(numbers, np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise FrameError(f"expected {meant} in pixels, got {numbers!r}")
    return [float(value) for value in values]
