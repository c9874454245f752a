"""Follow objects through hard situations: J with windows of the command line, and with whole frames.

    python demos/hard.py DAVIS VIDEO … --objects car-shadow dog libby

The objects of DAVIS sequences, cut out by their true masks, move over frames of the videos. They move fast, jump, leave
the picture and return elsewhere, hide, grow, shrink, meet others that look alike, are tiny or huge. The composites are
harder than most videos. J: of all frames after the first in which the object is in view, then of the last quarter of
them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from davis import davis
from numpy.typing import NDArray

from tttstream import MaskStream, models, open_source
from tttstream.evaluation.davis import region_similarity

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 480, 854


class Place(NamedTuple):
    """The position of an object. y, x: its centre relative to the centre of the frame, in short sides of the frame.
    side: the square root of its area in the same unit; 0 if it is hidden."""

    y: float
    x: float
    side: float


def wave(t: float, times: float) -> float:
    """A triangle wave in -1 … 1 that starts at 0."""
    return float(2 / np.pi * np.arcsin(np.sin(2 * np.pi * times * t)))


SITUATIONS: dict[str, Callable[[float], Place]] = {
    "calm": lambda t: Place(0.1 * wave(t, 1), 0.3 * wave(t, 1), 0.3),
    "fast": lambda t: Place(0.15 * wave(t, 3), 0.6 * wave(t, 2.5), 0.25),
    "jump": lambda t: Place(0.0, -0.4 if t < 0.4 else 0.45, 0.3),
    "leaves": lambda t: Place(0.0, 4 * t if t < 0.35 else (-1.3 if t < 0.6 else min(-1.3 + 4 * (t - 0.6), 0.0)), 0.25),
    "hides": lambda t: Place(0.0, -0.6 + 1.2 * t, 0.0 if 0.3 < t < 0.6 else 0.25),
    "grows": lambda t: Place(0.05 * wave(t, 1), 0.3 - 0.3 * t, 0.1 * 8**t),
    "shrinks": lambda t: Place(0.05 * wave(t, 1), 0.3 * t, 0.8 * 8**-t),
    "tiny": lambda t: Place(0.2 * wave(t, 1), 0.5 * wave(t, 1), 0.06),
    "huge": lambda t: Place(0.1 * wave(t, 2), 0.2 * wave(t, 1), 0.9),
}
"""The place of the object at the time t, from 0 to 1."""
ALIKE: dict[str, Callable[[float], Place]] = {"twin": lambda t: Place(0.05, 0.7 - 1.4 * t, 0.25)}
"""The place of a second object that looks like the first one, which moves as in "twin"."""
SITUATIONS["twin"] = lambda t: Place(0.0, -0.6 + 1.2 * t, 0.25)


def background(video: str, count: int) -> list[Pixels]:
    """The first frames of a video, cut to the size of the composites. A short video is played forwards and
    backwards."""
    with open_source(video) as source:
        every = [np.asarray(frame.image, np.uint8) for frame in islice(source, count)]
    share = max(HEIGHT / every[0].shape[0], WIDTH / every[0].shape[1])
    large = [cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA) for image in every]
    cut = [image[:HEIGHT, :WIDTH] for image in large]
    turns = [*cut, *cut[-2:0:-1]]
    return [turns[t % len(turns)].copy() for t in range(count)]


def pasted(image: Pixels, label: Pixels, of: tuple[Pixels, NDArray[np.bool_]], place: Place, number: int) -> None:
    """Draw the object of one frame into another frame, and set the pixels of its mask to `number` in the label."""
    picture, mask = of
    if place.side <= 0 or not mask.any():
        return
    zoom = place.side * HEIGHT / np.sqrt(mask.sum())
    y, x = np.argwhere(mask).mean(0)
    to_y, to_x = HEIGHT / 2 + place.y * HEIGHT, WIDTH / 2 + place.x * HEIGHT
    matrix = np.array([[zoom, 0, to_x - zoom * x], [0, zoom, to_y - zoom * y]])
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(0.7, 0.5 / zoom))
    small = cv2.GaussianBlur(picture, (0, 0), 0.4 / zoom) if zoom < 0.7 else picture
    alpha = cv2.warpAffine(soft, matrix, (WIDTH, HEIGHT))[..., None]
    image[:] = (alpha * cv2.warpAffine(small, matrix, (WIDTH, HEIGHT)) + (1 - alpha) * image).round()
    label[alpha[..., 0] > 0.5] = number


def scene(
    name: str, cut: list[tuple[Pixels, NDArray[np.bool_]]], ground: list[Pixels]
) -> tuple[list[Pixels], list[Pixels]]:
    """Frames, and labels in which 1 is the object."""
    images, labels = [image.copy() for image in ground], [np.zeros((HEIGHT, WIDTH), np.uint8) for _ in ground]
    for t, (image, label) in enumerate(zip(images, labels, strict=True)):
        time, of = t / (len(images) - 1), cut[t % len(cut)]
        if name in ALIKE:
            picture, mask = cut[(t + len(cut) // 2) % len(cut)]
            other = np.ascontiguousarray(picture[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
            pasted(image, label, other, ALIKE[name](time), 0)
        pasted(image, label, of, SITUATIONS[name](time), 1)
    return images, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DAVIS")
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--model", default="track", help="a mask model by name or from its folder")
    parser.add_argument("--objects", nargs="*", help="of these sequences")
    parser.add_argument("--situations", nargs="*", default=list(SITUATIONS), choices=SITUATIONS)
    parser.add_argument("--crop", type=int, nargs="*", default=[384, 224], help="sides of windows; 0 for whole frames")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--each", action="store_true", help="a row for each object, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load(args.model)
    objects = list(davis(args.root, args.objects))
    print("| situation | " + " | ".join(f"{crop or 'whole, 320 px'}: J | end" for crop in args.crop) + " |")
    print("| --- |" + " --- |" * 2 * len(args.crop), flush=True)
    every = []
    for name in args.situations:
        rows = []
        for number, (title, pictures, truths) in enumerate(objects):
            cut = [(picture, truth > 0) for picture, truth in zip(pictures, truths, strict=True)]
            ground = background(args.videos[number % len(args.videos)], args.frames)
            images, labels = scene(name, cut, ground)
            row = []
            for crop in args.crop:
                stream = MaskStream(model, size=480 if crop else None, crop=crop or None)
                found = [stream.push(image, labels[0] if t == 0 else None).mask for t, image in enumerate(images)]
                pairs = [pair for pair in zip(found[1:], labels[1:], strict=True) if pair[1].any()]
                overlap = [region_similarity(mask > 0, label > 0) for mask, label in pairs]
                row += [np.mean(overlap), np.mean(overlap[-len(overlap) // 4 :])]
            rows.append(row)
            if args.each:
                print(f"| {name}, {title} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)
        every.append(np.mean(rows, 0))
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in every[-1]) + " |", flush=True)
    print("| mean | " + " | ".join(f"{value:.3f}" for value in np.mean(every, 0)) + " |")


if __name__ == "__main__":
    main()
