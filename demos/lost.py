"""Measures trackers on objects that leave the view: whether the confidence is low, and whether they are found again.

    python demos/lost.py --davis DAVIS
    python demos/lost.py --generated 48 --videos FOLDER …

--davis: frames of the next sequence, without the object, are inserted in the middle of each sequence, as after a cut.
--generated: objects leave the picture for some time and return elsewhere; --videos: the material of the scenes. The
script prints the AUROC of the confidence for frames with J below 0.5 (or without the object), its mean error as a
prediction of J, and J just before the object leaves and after it has returned.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from davis import Sequence, davis, read
from numpy.typing import NDArray

from tttstream import MaskStream, models
from tttstream.evaluation.davis import region_similarity
from tttstream.evaluation.detection import auroc
from tttstream.io.mask_files import compact
from tttstream.streams.windows import usual
from tttstream.train.data.objects import MovingObjects

GAP, AROUND = 12, 5  # frames: of the other sequence; before it and after it that are looked at
Rows = NDArray[np.float64]


def cut_up(root: Path, names: list[str] | None) -> Iterator[Sequence]:
    """DAVIS sequences with GAP frames of the next one in their middle."""
    every = list(davis(root, names))
    for place, (name, images, truths) in enumerate(every):
        other = every[(place + 1) % len(every)][1][:GAP]
        middle, nothing = len(images) // 2, np.zeros_like(truths[0])
        yield name, [*images[:middle], *other, *images[middle:]], [*truths[:middle], *[nothing] * GAP, *truths[middle:]]


def generated(count: int, videos: list[str] | None) -> Iterator[Sequence]:
    """Generated sequences in each of which an object is lost."""
    index = MovingObjects(count=count, frames=32, size=240, seed=920_000, folders=videos, unrest=0.5, short=300, lost=1)
    for clip in index.clips():
        yield clip.name, *read(clip, 32)


def followed(stream: MaskStream, images: list[NDArray[np.uint8]], truths: list[NDArray[np.int32]]) -> list[Rows]:
    """For each object, its frames after the first: J, 0 if it is out of sight, confidence, whether it is there."""
    first, numbers = compact(truths[0])
    rows: list[list[tuple[float, float, bool]]] = []
    for image, truth in zip(images, truths, strict=True):
        result = stream.push(image, first if not rows else None)
        here = [(result.mask == place, truth == number) for place, number in enumerate(numbers, 1)]
        values = [region_similarity(*pair) if pair[1].any() else 0.0 for pair in here]
        rows.append([(j, sure, pair[1].any()) for j, sure, pair in zip(values, result.confidence, here, strict=True)])
    return list(np.array(rows, float).transpose(1, 0, 2)[:, 1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", type=Path, metavar="DAVIS")
    parser.add_argument("--generated", type=int, metavar="COUNT")
    parser.add_argument("--videos", nargs="*", help="folders of videos, or videos")
    parser.add_argument("--sequences", nargs="*", help="only these of DAVIS")
    parser.add_argument("--model", default="track", help="a mask model by name or from its folder")
    parser.add_argument("--size", type=int, help="short side in pixels; without --crop: of whole frames")
    parser.add_argument("--crop", type=int, help="side of the windows; both by default as in `tttstream track`")
    args = parser.parse_args()
    if (args.davis is None) == (args.generated is None):
        parser.error("expected either --davis DAVIS or --generated COUNT")
    torch.set_num_threads(1)
    model = models.load(args.model)
    size, crop = usual(model, args.size, args.crop)
    every: list[Rows] = []
    source = cut_up(args.davis, args.sequences) if args.davis else generated(args.generated, args.videos)
    for _, images, truths in source:
        objects = len(compact(truths[0])[1])
        every += followed(MaskStream(model, objects=objects, size=size, crop=crop), images, truths)
    overlap, sure, there = np.concatenate(every).T
    bad, away = overlap < 0.5, there == 0
    print(f"{len(overlap)} frames of {len(every)} objects, {away.sum()} of them out of sight, {bad.sum()} with J < 0.5")
    print(f"AUROC of a low confidence: J < 0.5 {auroc(-sure[bad], -sure[~bad]):.3f}, ", end="")
    print(f"out of sight {auroc(-sure[away], -sure[~away]):.3f}")
    print(f"mean |confidence - J| {np.abs(sure - overlap).mean():.3f}")
    before, after = [], []
    for rows in every:
        gone = np.flatnonzero(rows[:, 2] == 0)
        back = gone[-1] + 1 if len(gone) else 0
        if len(gone) and gone[0] >= 1 and len(rows) - back >= AROUND and rows[back:, 2].all():
            before.append(rows[max(0, gone[0] - AROUND) : gone[0], 0].mean())
            after.append(rows[back + 1 : back + 1 + AROUND, 0].mean())
    found = np.array(after) > 0.5 * np.array(before)
    print(f"{len(before)} objects come back: J before {np.mean(before):.3f}, from the second frame after ", end="")
    print(f"{np.mean(after):.3f}; found again (half of J before): {found.sum()} of {len(found)}")


if __name__ == "__main__":
    main()
