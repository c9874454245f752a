"""Follows objects through generated sequences and draws the masks: one row per sequence, frames from left to right.

    python demos/masks.py --seeds 990001 990002 --out docs/masks.png

The sequences are made of scikit-image's photographs. The first column shows the mask that is given; in the others the
true mask is outlined in white.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tttstream import MaskStream, models
from tttstream.evaluation.davis import contour, region_similarity
from tttstream.train.data import PyAV
from tttstream.train.data.objects import ObjectsClip
from tttstream.views.masks import MaskOverlay, palette


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[990001, 990002])
    parser.add_argument("--frames", type=int, nargs="+", default=[0, 3, 7, 11, 15], help="which frames are shown")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--model", default="mask")
    parser.add_argument("--out", type=Path, default=Path("masks.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, rows = models.load(args.model), []
    for seed in args.seeds:
        clip = ObjectsClip("objects", seed=seed, size=args.size, frames=max(args.frames) + 1)
        shot = clip.open(PyAV()).read(np.arange(max(args.frames) + 1))
        assert shot.masks is not None
        objects = int(shot.masks[0].max())
        stream, overlay, pictures, values = MaskStream(model, objects=objects), MaskOverlay(palette()), [], []
        for t, (frame, truth) in enumerate(zip(shot.frames, shot.masks, strict=True)):
            result = stream.push(frame, truth if t == 0 else None)
            if t:
                values += [region_similarity(result.mask == n, truth == n) for n in range(1, objects + 1)]
            if t in args.frames:
                picture = overlay.draw(frame, result.mask)
                if t:
                    picture[contour(truth == 1) | contour(truth == 2)] = 255
                pictures.append(picture)
        rows.append(np.hstack(pictures))
        print(f"seed {seed}: {objects} objects, mean J {np.mean(values):.3f} over {len(shot.frames) - 1} frames")
    Image.fromarray(np.vstack(rows)).save(args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
