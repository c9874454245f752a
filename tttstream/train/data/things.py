"""Views of generated and of real things, with a box around each: the training data of `tttstream teach`.

A generated thing is cut out of pictures (`sprites`). Its views have other backgrounds, and it is rotated, stretched,
bent, scaled, partly occluded, in other light, blurred and noisy. A real thing is a window of a video that is tracked
with optical flow for one or two seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.sources.photographs import photograph
from tttstream.sources.video import Video
from tttstream.train.data.sprites import Floats, Pixels, Sprite, make_sprite

SIZE = 224  # pixels: the side of the views
SHORT = 288  # pixels: the short side of stored frames of videos
STEPS = 48  # of the motion of a thing; each view shows one of them
FRAMES = 6  # number of stored frames of a video

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the sides."""


class View(NamedTuple):
    """image: [SIZE, SIZE, 3]. things: the numbers of the things in it. boxes: one around each thing. empty: boxes
    without a thing."""

    image: Pixels
    things: list[int]
    boxes: list[Box]
    empty: list[Box]


Pool = list[list[Pixels]]
"""A list of pictures for each photograph or video."""


def pool(photographs: Sequence[str], videos: Sequence[str]) -> Pool:
    """Photographs of scikit-image and some frames of each video."""
    found = []
    for name in photographs:
        image = photograph(name)
        found.append([_short(image, min(600, min(image.shape[:2])))])
    for path in videos:
        found.append([_short(image, SHORT) for image in _spread(path)])
    return [pictures for pictures in found if pictures]


def _spread(path: str) -> list[Pixels]:
    """Frames of a video, evenly over its length."""
    with Video(path) as video:
        every = max(1, (video.frames or 10 * FRAMES) // FRAMES)
        return [np.asarray(frame.image, np.uint8) for n, frame in enumerate(video) if n % every == 0][:FRAMES]


def _short(image: Pixels, short: int) -> Pixels:
    scale = short / min(image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how), np.uint8)


def _piece(rng: np.random.Generator, picture: Pixels, least: float, most: float) -> Pixels:
    """A random square of a picture, its side a share of the short side."""
    side = int(min(picture.shape[:2]) * rng.uniform(least, most))
    top, left = rng.integers(picture.shape[0] - side + 1), rng.integers(picture.shape[1] - side + 1)
    return picture[top : top + side, left : left + side]


def _any(rng: np.random.Generator, of: Pool) -> Pixels:
    pictures = of[rng.integers(len(of))]
    return pictures[rng.integers(len(pictures))]


def thing(rng: np.random.Generator, of: Pool, like: Sprite | None = None) -> Sprite:
    """A new thing; with `like`, in the colours of another thing. It fills at least half of its box, has some contrast,
    and is neither black nor white."""
    while True:
        sprite = make_sprite(rng, [_any(rng, of) for _ in range(3)], STEPS, int(1.1 * SIZE), like)
        if like is None and rng.random() < 0.3:  # a part of a picture in a round frame
            side = len(sprite.alpha)
            plain = _piece(rng, _any(rng, of), 0.2, 0.6)
            sprite.image = np.asarray(cv2.resize(plain, (side, side), interpolation=cv2.INTER_AREA), np.float32)
            shape = np.zeros((side, side), np.uint8)
            axes = int(side * rng.uniform(0.3, 0.48)), int(side * rng.uniform(0.3, 0.48))
            cv2.ellipse(shape, (side // 2, side // 2), axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
            sprite.alpha = (shape / 255).astype(np.float32)
        solid = sprite.alpha > 0.5
        if solid.sum() > 200:
            box = solid[solid.any(1)][:, solid.any(0)]
            pixels = sprite.image[solid]
            if box.mean() > 0.5 and pixels.std(0).max() > 22 and 35 < pixels.mean() < 225:
                return sprite
        like = None


def view(rng: np.random.Generator, of: Pool, things: dict[int, Sprite]) -> View:
    """One view of up to four things, each in a quarter of the picture, with new motion, light and noise."""
    ground = cv2.resize(_piece(rng, _any(rng, of), 0.5, 1.0), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    canvas: Floats = np.ascontiguousarray(ground[:, :: rng.choice((1, -1))], np.float32)
    covers: list[Floats] = []
    for quarter, sprite in zip(rng.permutation(4), things.values(), strict=False):
        cover = _paint(rng, canvas, sprite, int(quarter))
        covers = [other * (1 - cover) for other in covers] + [cover]
    numbers, boxes = [], []
    for number, cover in zip(things, covers, strict=True):
        rows, columns = np.nonzero(cover > 0.5)
        if len(rows) < 150:
            continue
        left, right = np.percentile(columns, (1, 99))
        top, bottom = np.percentile(rows, (1, 99))
        numbers.append(number)
        boxes.append(_shaken(rng, (left / SIZE, top / SIZE, (right + 1) / SIZE, (bottom + 1) / SIZE), 0.06))
    filled = np.sum(covers, 0)
    empty = []
    for _ in range(2):
        side = rng.uniform(0.2, 0.6)
        left, top = rng.uniform(0, 1 - side, 2)
        inside = filled[int(top * SIZE) : int((top + side) * SIZE), int(left * SIZE) : int((left + side) * SIZE)]
        if inside.mean() < 0.15:
            empty.append((left, top, left + side, top + side))
    return View(_seen(rng, canvas), numbers, boxes, empty)


def _paint(rng: np.random.Generator, canvas: Floats, sprite: Sprite, quarter: int) -> Floats:
    """Draw an object into one quarter of the picture, in place. Returns the opacity mask of the object."""
    middle = np.array(sprite.alpha.shape[::-1], np.float32) / 2
    scale = SIZE * np.exp(rng.uniform(np.log(0.22), np.log(0.6))) / max(sprite.alpha.shape)
    turn, stretch = rng.normal(0, 0.25), np.exp(rng.normal(0, 0.12))
    c, s = np.cos(turn), np.sin(turn)
    linear = scale * np.array([[c, -s], [s, c]]) @ np.diag([stretch, 1 / stretch])
    at = SIZE * np.array([0.3 + 0.4 * (quarter % 2), 0.3 + 0.4 * (quarter // 2)]) + rng.normal(0, 0.06 * SIZE, 2)
    camera = np.hstack([linear, (at - linear @ middle)[:, None]]).astype(np.float32)
    motion = replace(sprite.motion, shift=np.zeros_like(sprite.motion.shift))
    still = replace(sprite, motion=motion, at=middle.astype(np.float32))
    return still.paint(canvas, int(rng.integers(STEPS)), camera)


def _shaken(rng: np.random.Generator, box: Box, by: float) -> Box:
    """A box with random errors of its edges, as shares of its sides, like those of boxes drawn by hand."""
    wide, tall = box[2] - box[0], box[3] - box[1]
    left, top, right, bottom = (np.array(box) + rng.normal(0, by, 4) * (wide, tall, wide, tall)).clip(0, 1)
    return float(left), float(top), float(max(right, left + 0.01)), float(max(bottom, top + 0.01))


def _seen(rng: np.random.Generator, picture: Floats) -> Pixels:
    """A picture with the effects of a camera: light, colour, blur, motion blur, noise, compression."""
    light = np.exp(rng.normal(0, 0.15)) * np.exp(rng.normal(0, 0.05, 3))
    image = np.asarray(255 * (picture * light / 255).clip(0, 1) ** np.exp(rng.normal(0, 0.2)), np.float32)
    if rng.random() < 0.4:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.6)), np.float32)
    if rng.random() < 0.2:
        side = int(rng.integers(3, 11))
        kernel = np.zeros((side, side), np.float32)
        cv2.line(kernel, (0, int(rng.integers(side))), (side - 1, int(rng.integers(side))), 1.0)
        image = np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.float32)
    seen = (image + rng.normal(0, rng.choice((0, 3, 7)), image.shape)).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        coded = cv2.imencode(".jpg", seen, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])[1]
        seen = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return seen


def followed(rng: np.random.Generator, path: str, runs: int = 5, most: int = 6) -> Iterator[View]:
    """Every second frame of several runs of a video, with the tracked windows, each with its own number. runs: the
    number of runs of 40 frames. most: the largest number of windows in each."""
    with Video(path) as video:
        frames = [_short(np.asarray(frame.image, np.uint8), 256) for frame in video]
    number = 0
    for start in np.linspace(0, max(0, len(frames) - 40), max(1, min(runs, len(frames) // 60))).astype(int):
        stretch = frames[start : start + 40]
        greys = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8) for frame in stretch]
        windows = dict(enumerate(_windows(rng, greys[0], most), number))
        number += len(windows)
        sides = np.tile(greys[0].shape[::-1], 2)
        for t, frame in enumerate(stretch):
            if t:
                moved = {n: _moved(greys[t - 1], greys[t], box) for n, box in windows.items()}
                windows = {n: box for n, box in moved.items() if box is not None}
            if t % 2 == 0 and windows:
                boxes = [_shaken(rng, _box(box / sides), 0.05) for box in windows.values()]
                yield View(frame, list(windows), boxes, [])


def _box(numbers: NDArray[np.float64]) -> Box:
    left, top, right, bottom = numbers.tolist()
    return left, top, right, bottom


def _windows(rng: np.random.Generator, grey: NDArray[np.uint8], most: int) -> list[NDArray[np.float64]]:
    """Windows in pixels with enough contrast, around points that can be tracked, with little overlap."""
    points = cv2.goodFeaturesToTrack(grey, 200, 0.02, 5)
    found: list[NDArray[np.float64]] = []
    for _ in range(60 if points is not None else 0):
        x, y = points[rng.integers(len(points)), 0]
        wide, tall = np.exp(rng.uniform(np.log(28), np.log(110), 2))
        box = np.array([x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2])
        if box.min() < 0 or box[2] > grey.shape[1] or box[3] > grey.shape[0] or not 0.45 < wide / tall < 2.2:
            continue
        left, top, right, bottom = box.astype(int)
        if grey[top:bottom, left:right].std() > 12 and all(_common(box, other) < 0.15 for other in found):
            found.append(box)
        if len(found) == most:
            break
    return found


def _common(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The common area of two windows, as a share of the smaller one."""
    sides = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0)
    return float(sides.prod() / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def _moved(before: NDArray[np.uint8], after: NDArray[np.uint8], box: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The position of a window in the next frame, by the median of consistent flows; None if it is lost."""
    x, y = np.meshgrid(np.linspace(box[0] + 2, box[2] - 2, 8), np.linspace(box[1] + 2, box[3] - 2, 8))
    points = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)[:, None]
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, np.empty_like(points))
    back, _, _ = cv2.calcOpticalFlowPyrLK(after, before, there, np.empty_like(points))
    good = (found[:, 0] > 0) & (np.abs(back - points).max((1, 2)) < 1.5)
    if good.mean() < 0.4:
        return None
    moved = box + np.tile(np.median((there - points)[good, 0], 0), 2)
    height, width = after.shape
    return moved if moved[:2].min() > -8 and moved[2] < width + 8 and moved[3] < height + 8 else None
