"""Follows one object with an exported model, by onnxruntime, OpenCV and NumPy alone: no PyTorch, nothing of tttstream.

    tttstream export track out/track --onnx
    python demos/track_onnx.py out/track DAVIS/JPEGImages/480p/dog --masks DAVIS/Annotations/480p/dog --out out/dog

FRAMES is a folder of images. The first image of --masks shows the object; with the others the script prints mean J,
first and last frame left out. The picture of the model is a window around the place where the object was learned last.
A window has the aspect ratio of the picture, so that nothing is distorted, unless it meets two edges of the frame. With
--box x,y,w,h the inside of the box is the first mask. frames/s: per second of processor time of one core, without
reading files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

AROUND, APART, WIDEN = 0.25, 0.06, 0.12  # see tttstream/streams/windows.py
FINEST = 480  # short side of a frame in pixels of the finest window
CLOSER = 1.5


def edges(
    box: Sequence[float], missed: float, frame: Sequence[int], picture: Sequence[int], before: float
) -> tuple[list[int], float]:
    """Top, left, bottom and right of a window in pixels, and its height. box: of the object, in pixels; missed: frames
    since it was learned; frame, picture: height and width; before: the height of the last window, 0 for none."""
    short, aspect = min(frame), picture[1] / picture[0]
    by = AROUND * max(box[2] - box[0], box[3] - box[1]) + (APART + WIDEN * missed) * short
    need = max(box[2] - box[0] + 2 * by, (box[3] - box[1] + 2 * by) / aspect)
    height = max(need, picture[0] * short / FINEST)
    if before / CLOSER <= height <= before:  # features of an object depend on its size
        height = before
    found: list[int] = []
    for axis, wanted in enumerate((height, height * aspect)):
        length = min(round(wanted), frame[axis])
        start = round((box[axis] + box[axis + 2] - length) / 2)
        found.append(min(max(start, 0), frame[axis] - length))
        found.append(found[-1] + length)
    return [found[0], found[2], found[1], found[3]], height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with step.onnx and step.json")
    parser.add_argument("frames", type=Path, metavar="FRAMES")
    parser.add_argument("--masks", type=Path, help="folder of masks, the first of them is given")
    parser.add_argument("--box", type=lambda text: [int(n) for n in text.split(",")], metavar="x,y,w,h")
    parser.add_argument("--out", type=Path, help="write masks here")
    args = parser.parse_args()
    if (args.masks is None) == (args.box is None):
        parser.error("expected either --masks or --box")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(str(args.model / "step.onnx"), options, providers=["CPUExecutionProvider"]).run
    described = json.loads((args.model / "step.json").read_text())["inputs"]
    picture = described["picture"]["shape"][2:]
    state = np.zeros(described["state"]["shape"], np.float32)
    nothing = np.zeros(described["mask"]["shape"], np.float32)
    truths = sorted(args.masks.iterdir()) if args.masks else []
    height, spent, scores = 0.0, 0.0, []
    for number, path in enumerate(sorted(args.frames.iterdir())):
        frame = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        sides = frame.shape[:2]
        truth = cv2.imread(str(truths[number]), cv2.IMREAD_GRAYSCALE) > 0 if truths else None
        began = time.process_time()
        if number == 0:
            first = truth
            if first is None:
                x, y, wide, high = args.box
                first = np.zeros(sides, bool)
                first[y : y + high, x : x + wide] = True
            ys, xs = np.nonzero(first)
            box, missed = [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1], 0.0
        (top, left, bottom, right), height = edges(box, missed, sides, picture, height)
        part = cv2.resize(frame[top:bottom, left:right], picture[::-1], interpolation=cv2.INTER_AREA)
        mask = nothing
        if number == 0:
            shown = first[top:bottom, left:right].astype(np.float32)
            mask = cv2.resize(shown, picture[::-1], interpolation=cv2.INTER_AREA)[None, None]
        middle, short = np.array([*sides, *sides]) / 2, min(sides)
        window = ((np.array([top, left, bottom, right]) - middle) / short)[None].astype(np.float32)
        inputs = {"picture": part.transpose(2, 0, 1)[None], "mask": mask, "given": np.array([number == 0])}
        odds, sure, place, gone, state = run(None, {"state": state, **inputs, "window": window})
        box, missed = place[0] * short + middle, float(gone[0])
        found = np.zeros(sides, bool)
        found[top:bottom, left:right] = cv2.resize(odds[0, 0], (right - left, bottom - top)) > 0
        spent += time.process_time() - began
        if truth is not None:
            scores.append((found & truth).sum() / max(1, (found | truth).sum()) if (found | truth).any() else 1.0)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(args.out / f"{path.stem}.png"), found.astype(np.uint8) * 255)
    overlap = f", J {np.mean(scores[1:-1]):.3f}" if len(scores) > 2 else ""
    fps = (number + 1) / spent
    print(f"{args.frames.name}: {number + 1} frames, {fps:.1f} frames/s, confidence {sure[0]:.2f}{overlap}")


if __name__ == "__main__":
    main()
