"""Follows several objects in a real video from boxes, and writes a sheet of frames to look at.

    python demos/several_real.py video.mp4 --box 0:1:120,80,60,90 0:2:300,90,70,80 40:3:10,20,30,40 --out out/sheet.png

A box is FRAME:OBJECT:x,y,width,height in pixels. It adds the object, or corrects it if the object is there already. The
settings are those of `tttstream track`. There is no ground truth; look at the sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from tttstream import MaskStream, models, open_source
from tttstream.streams.outlines import from_box
from tttstream.streams.windows import usual
from tttstream.views.masks import MaskOverlay, palette

WIDTH = 480  # pixels of a frame in the sheet


class Given(NamedTuple):
    """A box of an object in a frame. box: x, y, width, height in pixels."""

    frame: int
    number: int
    box: tuple[float, ...]


def given(text: str) -> Given:
    """FRAME:OBJECT:x,y,width,height."""
    frame, number, box = text.split(":")
    return Given(int(frame), int(number), tuple(map(float, box.split(","))))


def shrunk(picture: NDArray[np.uint8], note: str) -> NDArray[np.uint8]:
    """A picture for the sheet, with a note in its corner."""
    height, width = picture.shape[:2]
    small = cv2.resize(picture, (WIDTH, round(WIDTH * height / width)), interpolation=cv2.INTER_AREA)
    for colour, thick in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(small, note, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thick, cv2.LINE_AA)
    return np.asarray(small, np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--box", type=given, nargs="+", required=True, metavar="FRAME:OBJECT:x,y,w,h")
    parser.add_argument("--show", type=int, nargs="*", help="frames in the sheet (default: 18, evenly spaced)")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--size", type=int, help="short side in pixels; without --crop: of whole frames")
    parser.add_argument("--crop", type=int, help="side of the windows; both by default as in `tttstream track`")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load("track")
    size, crop = usual(model, args.size, args.crop)
    stream = MaskStream(model, objects=max(box.number for box in args.box), size=size, crop=crop)
    overlay, pictures, rows = MaskOverlay(palette()), [], []
    with open_source(args.video) as source:
        count = source.frames or 0
        shown = set(args.show or np.linspace(0, count - 1, 18).round().astype(int).tolist())
        for frame in source:
            here = [box for box in args.box if box.frame == frame.index]
            mask = np.zeros(frame.image.shape[:2], np.int64)
            for box in here:
                mask[from_box(frame.pixels(), box.box)] = box.number
            result = stream.push(frame, mask if here else None)
            rows.append((*result.confidence, result.latency_ms))
            if frame.index in shown:
                pictures.append(shrunk(overlay.draw(frame.image, result.mask), f"frame {frame.index}"))
    blank = np.zeros_like(pictures[0])
    pictures += [blank] * (-len(pictures) % args.columns)
    lines = [np.concatenate(pictures[at : at + args.columns], 1) for at in range(0, len(pictures), args.columns)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.out), cv2.cvtColor(np.concatenate(lines), cv2.COLOR_RGB2BGR))
    np.savetxt(args.out.with_suffix(".csv"), rows, "%.3f", ",")
    print(f"{args.out}: {len(rows)} frames, {stream.objects} objects, {np.median(rows, 0)[-1]:.0f} ms a frame")


if __name__ == "__main__":
    main()
