"""J and F of mask propagation on a DAVIS tree, compared with a repeated first mask, matching, and a frozen memory.

    python demos/davis.py DAVIS

Reads DAVIS/JPEGImages/480p/SEQUENCE/*.jpg and DAVIS/Annotations/480p/SEQUENCE/*.png. The methods read only the first
annotation of a sequence. Several objects of a mask are followed together, and each has its own score; void pixels are
ignored (docs/masks.md). frames/s: per second of processor time of one core, without reading files.

    python demos/davis.py --generated 24 --videos FOLDER

does the same on generated sequences of 24 frames of 112 pixels, made from your own videos.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tttstream import models
from tttstream.evaluation.davis import evaluate
from tttstream.evaluation.mask_baselines import METHODS, follow
from tttstream.io.mask_files import VOID, Labels, compact
from tttstream.streams.windows import usual
from tttstream.train.data import ImagesClip, PyAV
from tttstream.train.data.clips import Clip
from tttstream.train.data.objects import SIZE, MovingObjects

Sequence = tuple[str, list[NDArray[np.uint8]], list[Labels]]
"""Name, frames and masks."""
SEED = 910_000


def read(clip: Clip, frames: int) -> tuple[list[NDArray[np.uint8]], list[Labels]]:
    """Frames and masks of a sequence."""
    reader = clip.open(PyAV())
    shot = reader.read(np.arange(frames))
    if shot.masks is None or reader.damage is not None:
        raise SystemExit(reader.damage)
    return list(shot.frames), list(shot.masks.astype(np.int32))


def davis(root: Path, names: list[str] | None) -> Iterator[Sequence]:
    """Sequences of a DAVIS tree."""
    images, masks = (root / kind / "480p" for kind in ("JPEGImages", "Annotations"))
    for name in names or sorted(path.name for path in images.iterdir()):
        clip = ImagesClip(str(images / name), masked=True, masks=str(masks / name))
        yield name, *read(clip, clip.count(PyAV()) or 0)


def generated(count: int, videos: list[str] | None) -> Iterator[Sequence]:
    """Generated sequences of objects that move over frames of these videos and over photographs."""
    for clip in MovingObjects(count=count, frames=24, size=SIZE, seed=SEED, folders=videos).clips():
        yield clip.name, *read(clip, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", metavar="DAVIS")
    parser.add_argument("--model", default="track", help="a mask model by name or from its folder")
    parser.add_argument("--sequences", nargs="*", help="only these")
    parser.add_argument("--size", type=int, help="short side in pixels; without --crop: of whole frames")
    parser.add_argument("--crop", type=int, help="side of the windows; both by default as in `tttstream track`")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--generated", type=int, metavar="COUNT", help="so many generated sequences")
    parser.add_argument("--videos", nargs="*", help="folders of videos, or videos, that these are made of")
    args = parser.parse_args()
    if (args.root is None) == (args.generated is None):
        parser.error("expected either a DAVIS tree or --generated COUNT")
    torch.set_num_threads(1)
    model = models.load(args.model)
    size, crop = usual(model, args.size, args.crop)
    if args.generated is None:
        sequences = davis(args.root, args.sequences)
    else:
        sequences = generated(args.generated, args.videos)
    print("| sequence | method | J mean | J recall | J decay | F mean | F recall | F decay | frames/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    every: dict[str, list[list[float]]] = {method: [] for method in args.methods}
    for name, images, truths in sequences:
        first, numbers = compact(truths[0])
        voids = [truth == VOID for truth in truths]
        for method in args.methods:
            began = time.thread_time()
            found = follow(method, model, images, first, size, crop)
            fps = len(images) / (time.thread_time() - began)
            scores = []
            for place, number in enumerate(numbers, start=1):
                j, f = evaluate([m == place for m in found], [truth == number for truth in truths], voids)
                scores.append([*j, *f, fps])
            every[method] += scores
            if args.root is not None:
                row(name, method, scores)
    for method, scores in every.items():
        if len(scores) > 1:
            row(f"mean of {len(scores)} objects", method, scores)


def row(name: str, method: str, scores: list[list[float]]) -> None:
    """One row of the table, the mean over objects."""
    *values, fps = np.mean(scores, 0)
    print(f"| {name} | {method} | {' | '.join(f'{value:.3f}' for value in values)} | {fps:.1f} |", flush=True)


if __name__ == "__main__":
    main()
