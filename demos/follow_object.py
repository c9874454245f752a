"""Follows a thing from a box in a video or a camera, and writes or shows the result.

    python demos/follow_object.py video.mp4 --box 120 80 60 90 --out out/follow.mp4
    python demos/follow_object.py            a disc that the script draws, without a file or camera

The box is left, top, width and height in pixels of the first frame. --show opens a window (q ends).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tttstream
from tttstream import models
from tttstream.frames import Frame
from tttstream.streams import MaskStream
from tttstream.views.masks import MaskOverlay, palette
from tttstream.views.writer import VideoWriter

SIZE, RADIUS = 160, 18
BOX = (32.0, 62.0, 36.0, 36.0)


def drawn(frames: int = 60) -> Iterator[Frame]:
    """A red disc that wanders over a noise background from the middle of BOX."""
    ground = np.random.default_rng(0).integers(60, 140, (SIZE, SIZE, 3)).astype(np.uint8)
    ground[..., 0] //= 3
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for index in range(frames):
        x, y = 50 + 1.2 * index, 80 + 20 * np.sin(index / 10)
        image = ground.copy()
        image[(rows - y) ** 2 + (columns - x) ** 2 < RADIUS**2] = (220, 40, 40)
        yield Frame(image, index, index / 25)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", help="a video or a camera number; without one the script draws")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X", "Y", "W", "H"), default=BOX)
    parser.add_argument("--out", type=Path, help="a video with the mask over it")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--max-frames", type=int, default=1 << 60)
    args = parser.parse_args()
    try:
        frames = drawn() if args.source is None else iter(tttstream.open_source(args.source))
        follow(frames, args)
    except tttstream.TTTStreamError as error:
        print(f"follow_object: {error}", file=sys.stderr)
        return 2
    return 0


def follow(frames: Iterator[Frame], args: argparse.Namespace) -> None:
    """Follow the object in the box through all frames."""
    stream, overlay, window = MaskStream(models.load("track"), size=480, crop=224), MaskOverlay(palette()), None
    writer = None if args.out is None else VideoWriter(args.out)
    if args.show:
        from tttstream.views.window import Viewer

        window = Viewer("tttstream follow")
    for count, frame in enumerate(frames):
        result = stream.push(frame) if count else stream.add(frame=frame, box=args.box)
        rows, columns = np.nonzero(result.mask)
        where = f"around {columns.mean():.0f}, {rows.mean():.0f}" if len(rows) else "out of sight"
        if count % 10 == 0:
            print(f"frame {frame.index}: {where}, confidence {result.confidence[0]:.2f}, {result.latency_ms:.0f} ms")
        picture = overlay.draw(frame.image, result.mask)
        if writer is not None:
            writer.write(picture, frame.time_s)
        if (window is not None and window.show(picture) == "q") or count + 1 >= args.max_frames:
            break
    if writer is not None:
        writer.close()
        print(args.out)


if __name__ == "__main__":
    sys.exit(main())
