"""Generated moving objects with masks: cut out of pictures, moved, bent, lit and occluded."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def smooth(rng: np.random.Generator, steps: int, spread: float, wander: float = 0.5) -> Floats:
    """A path of `steps` values from 0 on: a constant velocity N(0, spread) and a random walk of the velocity."""
    pace = rng.normal(0, spread) + wander * spread * rng.normal(0, 1, steps).cumsum() / 1.7
    return np.concatenate([[0.0], pace.cumsum()[: steps - 1]]).astype(np.float32)


def near(path: Floats, reach: float) -> Floats:
    """A path in the direction of another one that slows down, so that it stays within `reach` of 0."""
    return np.asarray(reach * np.tanh(path / reach), np.float32)


def streak(shift: Floats) -> Floats:
    """A kernel for motion blur along a shift (x, y) in pixels."""
    side = 2 * int(np.ceil(np.abs(shift).max() / 2)) + 1
    kernel = np.zeros((side, side), np.float32)
    ends = [np.rint(side // 2 + sign * shift / 2).astype(int).tolist() for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return np.asarray(kernel / kernel.sum(), np.float32)


@dataclass
class Motion:
    """The motion of an object over time: rotation (radians), growth (log), shift (pixels), an oscillating bend, and
    stretch (log of the change of width over height), by default none."""

    turn: Floats
    growth: Floats
    shift: Floats
    bends: Floats = field(repr=False)
    sway: Floats = field(repr=False)
    stretch: Floats | None = field(default=None, repr=False)

    @classmethod
    def draw(cls, rng: np.random.Generator, steps: int, size: int, lively: float, bend: float) -> Motion:
        """A random motion over `steps` frames of `size` pixels. lively, bend: the amounts of motion and bending, 1 is
        usual."""
        lively *= float(rng.choice((0.3, 1.0, 1.8)))
        shift = np.stack([smooth(rng, steps, 0.022 * size * lively) for _ in range(2)], 1)
        bends = rng.normal(0, bend * 0.025 * size, (2, 4, 4, 2)).astype(np.float32)
        sway = np.stack([0.3 + smooth(rng, steps, 0.12), smooth(rng, steps, 0.15)], 1)
        return cls(smooth(rng, steps, 0.03 * lively), smooth(rng, steps, 0.018 * lively), shift, bends, sway)

    def matrix(self, t: int, middle: Floats) -> Floats:
        """The affine map [2, 3] from the initial positions to those at time t, about a centre (x, y)."""
        scale = float(np.exp(np.clip(self.growth[t], -1.0, 1.0)))
        c, s = scale * np.cos(self.turn[t]), scale * np.sin(self.turn[t])
        linear = np.array([[c, -s], [s, c]], np.float32)
        if self.stretch is not None:
            wider = float(np.exp(np.clip(self.stretch[t], -0.6, 0.6)))
            linear = linear @ np.diag([wider, 1 / wider]).astype(np.float32)
        return np.hstack([linear, (middle + self.shift[t] - linear @ middle)[:, None]]).astype(np.float32)

    def sources(self, t: int, matrix: Floats, size: int) -> tuple[Floats, Floats]:
        """For each pixel of a frame, its position (x, y) in the picture."""
        back = cv2.invertAffineTransform(matrix).astype(np.float32)
        x = np.arange(size, dtype=np.float32)
        field = cv2.resize(np.tensordot(self.sway[t], self.bends, 1), (size, size), interpolation=cv2.INTER_CUBIC)
        map_x = back[0, 0] * x + (back[0, 1] * x)[:, None] + back[0, 2] + field[..., 0]
        map_y = back[1, 0] * x + (back[1, 1] * x)[:, None] + back[1, 2] + field[..., 1]
        return map_x.astype(np.float32), map_y.astype(np.float32)


def contour(rng: np.random.Generator, side: int) -> Floats:
    """A random shape [side, side] in 0..1: a round one, a polygon, a body with limbs, or a ring."""
    kind = rng.choice(("waves", "polygon", "limbs", "boxes"), p=(0.35, 0.25, 0.25, 0.15))
    mask = np.zeros((side, side), np.uint8)
    middle, radius = side / 2, side * 0.46
    if kind in ("waves", "polygon"):
        count = 64 if kind == "waves" else int(rng.integers(3, 9))
        angle = np.sort(rng.uniform(0, 2 * np.pi, count)) if kind == "polygon" else np.linspace(0, 2 * np.pi, count)
        reach = np.full(count, 0.75)
        if kind == "waves":
            for k in range(2, 7):
                reach += rng.uniform(0, 0.35 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        else:
            reach = rng.uniform(0.45, 1.0, count)
        stretch = rng.uniform(0.45, 1.0)
        points = np.stack([np.cos(angle), stretch * np.sin(angle)], 1) * (radius * reach.clip(0.2, 1))[:, None]
        turn = rng.uniform(0, np.pi)
        points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        cv2.fillPoly(mask, [np.rint(points + middle).astype(np.int32)], 255, cv2.LINE_AA)
    elif kind == "limbs":
        at = np.array([middle, middle])
        for _ in range(int(rng.integers(3, 8))):
            to = (at + rng.normal(0, 0.28 * side, 2)).clip(0.08 * side, 0.92 * side)
            cv2.line(
                mask, at.astype(int).tolist(), to.astype(int).tolist(), 255, int(rng.uniform(0.06, 0.28) * side) + 1
            )
            at = to if rng.random() < 0.6 else np.array([middle, middle])
    else:
        for _ in range(int(rng.integers(1, 4))):
            box = ((middle, middle), tuple(rng.uniform(0.25, 0.85, 2) * side * 0.7), float(rng.uniform(0, 180)))
            at = rng.normal(0, 0.08 * side, 2)
            corners = cv2.boxPoints(box) + at
            cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 255, cv2.LINE_AA)
    return (mask / 255).astype(np.float32)


def texture(rng: np.random.Generator, picture: Pixels, side: int) -> Floats:
    """A part of a picture [side, side, 3], with changed colour, contrast and light."""
    height, width = picture.shape[:2]
    piece = int(min(height, width) * rng.uniform(0.15, 0.8))
    top, left = rng.integers(height - piece + 1), rng.integers(width - piece + 1)
    image = cv2.resize(picture[top : top + piece, left : left + piece], (side, side), interpolation=cv2.INTER_AREA)
    return recolour(rng, image.astype(np.float32), float(rng.choice((0.0, 0.5, 1.0))))


def recolour(rng: np.random.Generator, image: Floats, strength: float) -> Floats:
    """An image in 0..255 with changed colour cast, contrast and light; strength 0 changes nothing."""
    mean = image.mean((0, 1))
    gain = np.exp(rng.normal(0, 0.3 * strength, 3)) * np.exp(rng.normal(0, 0.25 * strength))
    return ((image - mean) * gain + mean + rng.normal(0, 30 * strength) + rng.normal(0, 15 * strength, 3)).clip(0, 255)


def region(rng: np.random.Generator, picture: Pixels, side: int) -> tuple[Pixels, Floats] | None:
    """A window of a picture and the mask of a region in it, whose border is a border in the picture.

    Regions are grown from small parts of similar colour; None if no region has a suitable size.
    """
    from skimage.segmentation import felzenszwalb

    height, width = picture.shape[:2]
    whole = int(min(height, width) * rng.uniform(0.55, 1.0))
    top, left = rng.integers(height - whole + 1), rng.integers(width - whole + 1)
    window = cv2.resize(picture[top : top + whole, left : left + whole], (side, side), interpolation=cv2.INTER_AREA)
    pieces = felzenszwalb(window, scale=float(rng.uniform(80, 400)), sigma=0.8, min_size=side * side // 150)
    sizes = np.bincount(pieces.ravel())
    wanted = rng.uniform(0.03, 0.25) * side * side
    inner = pieces[side // 5 : -side // 5, side // 5 : -side // 5]
    chosen = pieces == inner[tuple(rng.integers(len(inner), size=2))]
    for _ in range(6):
        if chosen.sum() >= wanted:
            break
        grown = cv2.dilate(chosen.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        touching = np.unique(pieces[grown & ~chosen])
        touching = touching[sizes[touching] < 0.3 * side * side]
        if not len(touching):
            break
        chosen |= pieces == rng.choice(touching)
    share = chosen.mean()
    if not 0.015 < share < 0.45:
        return None
    solid = cv2.morphologyEx(chosen.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    soft = cv2.GaussianBlur(solid.astype(np.float32), (3, 3), 0)
    return np.asarray(window, np.uint8), np.asarray(soft, np.float32)


@dataclass
class Sprite:
    """One object: its picture and opacity [h, w], its motion, the initial position of its centre, and its light."""

    image: Floats = field(repr=False)
    alpha: Floats = field(repr=False)
    motion: Motion
    at: Floats
    light: Floats

    def paint(self, canvas: Floats, t: int, camera: Floats | None) -> Floats:
        """Draw on a canvas [size, size, 3] at time t, in place. Returns the opacity [size, size] of the object."""
        size = len(canvas)
        middle = np.array(self.alpha.shape[::-1], np.float32) / np.float32(2)
        matrix = self.motion.matrix(t, middle)
        matrix[:, 2] += self.at - middle
        if camera is not None:
            matrix = (np.vstack([camera, [0, 0, 1]]) @ np.vstack([matrix, [0, 0, 1]]))[:2].astype(np.float32)
        maps = self.motion.sources(t, matrix, size)
        alpha = cv2.remap(self.alpha, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        image = cv2.remap(self.image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) * self.light[t]
        canvas += alpha[..., None] * (image - canvas)
        return np.asarray(alpha, np.float32)


def make_sprite(rng: np.random.Generator, pictures: list[Pixels], steps: int, size: int, like: Sprite | None) -> Sprite:
    """A new object from the given pictures; with `like`, in the colours of that object."""
    side = int(size * np.exp(rng.uniform(np.log(0.18), np.log(0.75))))
    image = texture(rng, pictures[0], side)
    alpha = contour(rng, side)
    found = region(rng, pictures[0], side) if side >= 24 and rng.random() < 0.45 else None
    if like is not None:
        same = cv2.resize(like.image, (side, side), interpolation=cv2.INTER_AREA)[:: rng.choice((1, -1))]
        image = recolour(rng, np.ascontiguousarray(same, np.float32), 0.3)
    elif found is not None:
        image, alpha = recolour(rng, found[0].astype(np.float32), float(rng.choice((0.0, 0.4)))), found[1]
    elif rng.random() < 0.5:  # several parts, as most things have
        for picture in pictures[1 : 1 + int(rng.integers(1, 3))]:
            shift = rng.uniform(0, 0.3, 2) * side
            smaller = np.array([[0.7, 0, shift[0]], [0, 0.7, shift[1]]])
            part = cv2.warpAffine(contour(rng, side), smaller, (side, side))
            image += part[..., None] * (texture(rng, picture, side) - image)
    edge = max(1.0, side * 0.01) * rng.uniform(0.4, 1.2)
    soft = cv2.GaussianBlur(alpha, (0, 0), float(edge))
    motion = Motion.draw(rng, steps, size, 1.0, side / size * float(rng.choice((0.0, 1.0, 2.5))))
    at = rng.uniform(0.15, 0.85, 2).astype(np.float32) * size
    light = np.exp(smooth(rng, steps, 0.02)).astype(np.float32)
    return Sprite(np.asarray(image, np.float32), np.asarray(soft, np.float32), motion, at, light)
