"""Draws the results of `teach`: things cut out of photographs are taught on grass, then found on gravel and brick.

python demos/teach_picture.py --out docs/teach.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tttstream import TeachStream, models
from tttstream.sources.photographs import photograph
from tttstream.views.teach import TeachOverlay

THINGS = {"cat": ("chelsea.png", 60, 120, 200), "coffee": ("coffee.png", 60, 150, 320)}
STRANGER = "rocket.jpg", 40, 250, 200
HEIGHT, WIDTH, SIDE = 240, 360, 100


def cut(photo: str, top: int, left: int, side: int, to: int) -> NDArray[np.uint8]:
    """A square of a photograph at a side of `to` pixels."""
    piece = photograph(photo)[top : top + side, left : left + side]
    return np.asarray(cv2.resize(piece, (to, to), interpolation=cv2.INTER_AREA), np.uint8)


def scene(ground: str, *things: tuple[NDArray[np.uint8], int, int]) -> NDArray[np.uint8]:
    """A photograph with things at (left, top)."""
    image = np.asarray(cv2.resize(photograph(ground), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)
    for thing, left, top in things:
        image[top : top + len(thing), left : left + len(thing)] = thing
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("teach.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    stream, overlay = TeachStream(models.load("teach")), TeachOverlay()
    for name, where in THINGS.items():
        for left in (40, 200):
            stream.teach(name, scene("grass.png", (cut(*where, SIDE), left, 70)), (left, 70, SIDE, SIDE))
    cat, coffee = THINGS["cat"], THINGS["coffee"]
    scenes = [
        scene("gravel.png", (cut(*cat, 84), 240, 110)),
        scene("brick.png", (cut(*coffee, 120), 30, 60), (cut(*cat, 90)[:, ::-1], 220, 20)),
        scene("brick.png", (cut(*STRANGER, SIDE), 130, 80)),
    ]
    taught = {label: stream.examples(label) for label in stream.labels}
    pictures = []
    for image in scenes:
        result = stream.push(image)
        print(", ".join(f"{thing.label} {thing.probability:.2f}" for thing in result.found) or result.label)
        pictures.append(overlay.draw(image, result, taught))
    Image.fromarray(np.hstack(pictures)).save(args.out)


if __name__ == "__main__":
    main()
