"""Teaches things by name and recognises them, with a picture of each: in a video, a camera, or drawn by the script.

python demos/teach.py                                        the script draws the things, without a file or camera
python demos/teach.py --thing mug 0 120 80 60 70 clip.mp4    frame 0, left, top, width, height in pixels
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
from skimage import data

import tttstream
from tttstream import models
from tttstream.frames import Frame
from tttstream.streams import TeachStream

SIDE, THING = 224, 96
THINGS = {"cat": data.chelsea()[20:260, 100:340], "coffee": data.coffee()[60:340, 180:460], "rocket": data.rocket()}


def small(image: np.ndarray) -> np.ndarray:
    """A picture of a thing, THING pixels a side, by nearest-neighbour interpolation."""
    rows, columns = (np.linspace(0, side - 1, THING).astype(int) for side in image.shape[:2])
    return image[rows][:, columns]


def drawn(frames: int = 90) -> Iterator[tuple[Frame, str]]:
    """The things one after another on a brick wall, at a new position in each frame, with empty frames in between."""
    rng = np.random.default_rng(0)
    wall = np.repeat(data.brick()[:SIDE, :SIDE, None], 3, 2)
    names = [*THINGS, "unknown"]
    for index in range(frames):
        name, image = names[index // 5 % len(names)], wall.copy()
        if name in THINGS:
            top, left = rng.integers(0, SIDE - THING, 2)
            image[top : top + THING, left : left + THING] = small(THINGS[name])
        yield Frame(image, index, index / 5), name


def drawn_run(stream: TeachStream) -> None:
    """Teach each thing from five frames of the thing alone, then ask 90 frames."""
    rng = np.random.default_rng(1)
    for name, image in THINGS.items():
        for _ in range(5):
            ground = rng.integers(90, 160, (SIDE, SIDE, 3)).astype(np.uint8)
            top, left = (int(value) for value in rng.integers(0, SIDE - THING, 2))
            ground[top : top + THING, left : left + THING] = small(image)
            stream.teach(name, ground, box=(left, top, THING, THING))
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for frame, name in drawn():
        asked[name] += 1
        right[name] += stream.push(frame).label == name
    for name in asked:
        print(f"{name}: {right[name]} of {asked[name]} frames")


def video_run(stream: TeachStream, args: argparse.Namespace) -> None:
    """Teach the contents of the boxes, and print the things in view in later frames."""
    todo = [(name, int(index), [float(edge) for edge in box]) for name, index, *box in args.thing]
    for frame in tttstream.open_source(args.source):
        for name, index, box in todo:
            if index == frame.index:
                stream.teach(name, frame, box=box)
        said = stream.push(frame)
        if frame.index % 10 == 0:
            found = (
                ", ".join(f"{thing.label} {100 * thing.probability:.0f}%" for thing in said.found) or "nothing known"
            )
            print(f"frame {frame.index}: {found}")
        if frame.index + 1 >= args.max_frames:
            break


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", help="a video or a camera number; without one the script draws")
    parser.add_argument("--thing", action="append", nargs=6, metavar=("NAME", "FRAME", "X", "Y", "W", "H"), default=[])
    parser.add_argument("--max-frames", type=int, default=300)
    args = parser.parse_args()
    try:
        stream = TeachStream(models.load("teach"))
        drawn_run(stream) if args.source is None else video_run(stream, args)
    except tttstream.TTTStreamError as error:
        print(f"teach: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
