"""Measures the gain from one correction in the middle of a stream, on sequences of DAVIS 2016.

    python demos/corrected.py DAVIS

The mask of the first frame is given. In the middle of each sequence the stream is copied: one copy goes on without
help, one is given the true mask of this frame, and one the box around it (`MaskStream.add`). "before": mean J from the
second frame to the corrected one, "there": J of the prediction for the corrected frame. The other columns are mean J
over the frames after it. The last frame is left out, as in DAVIS.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from davis import davis

from tttstream import MaskStream, models
from tttstream.evaluation.davis import region_similarity
from tttstream.streams.windows import usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DAVIS")
    parser.add_argument("--model", default="track", help="a mask model by name or from its folder")
    parser.add_argument("--sequences", nargs="*", help="only these")
    parser.add_argument("--size", type=int, help="short side in pixels; without --crop: of whole frames")
    parser.add_argument("--crop", type=int, help="side of the windows; both by default as in `tttstream track`")
    parser.add_argument("--at", type=float, default=0.5, help="the corrected frame, as a share of the sequence")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load(args.model)
    size, crop = usual(model, args.size, args.crop)
    print("| sequence | corrected frame | before | there | after: no correction | mask | box |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for name, images, truths in davis(args.root, args.sequences):
        masks = [truth > 0 for truth in truths]
        at, last = round(args.at * len(images)), len(images) - 1
        stream = MaskStream(model, size=size, crop=crop)
        stream.push(images[0], masks[0])
        before = [region_similarity(stream.push(images[t]).mask > 0, masks[t]) for t in range(1, at)]
        shown: tuple[dict[str, Any], ...] = ({"mask": masks[at]}, {"box": box(masks[at])})
        after = []
        for given in shown:
            other = stream.copy()
            other.add(frame=images[at], number=1, **given)
            after.append(overlaps(other, images[at + 1 : last], masks[at + 1 : last]))
        there = region_similarity(stream.push(images[at]).mask > 0, masks[at])
        after = [overlaps(stream, images[at + 1 : last], masks[at + 1 : last]), *after]
        rows.append([float(np.mean(before)), there, *after])
        row(f"{name} | {at}", rows[-1])
    row(f"mean of {len(rows)} |", np.mean(rows, 0).tolist())


def overlaps(stream: MaskStream, images: list[Any], masks: list[Any]) -> float:
    """Mean J of a stream that goes on over these frames."""
    return float(np.mean([region_similarity(stream.push(x).mask > 0, y) for x, y in zip(images, masks, strict=True)]))


def box(mask: Any) -> tuple[int, int, int, int]:
    """x, y, width and height of the box around a mask."""
    (top, *_, bottom), (left, *_, right) = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(left), int(top), int(right - left + 1), int(bottom - top + 1)


def row(name: str, values: list[float]) -> None:
    """One row of the table."""
    print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
