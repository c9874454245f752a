"""Runs a tracker on a real sequence in a loop of 10,000 frames, and measures whether it drifts.

    python demos/loop.py DAVIS --sequences dog car-shadow --frames 10000

The mask of the first frame is given once; then the sequence is repeated, with a jump from the last frame to the first
(--there-and-back: without one). The script prints J over several of the loops, the confidence, and the size of the
state. frames/s: per second of processor time of one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from davis import davis
from tqdm import tqdm

from tttstream import MaskStream, models
from tttstream.evaluation.davis import region_similarity
from tttstream.io.mask_files import compact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DAVIS")
    parser.add_argument("--model", default="track", help="a mask model by name or from its folder")
    parser.add_argument("--sequences", nargs="*", help="only these")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--size", type=int, help="short side in pixels; the model's own unless given")
    parser.add_argument("--crop", type=int, help="look only around the objects, at as many pixels as this square has")
    parser.add_argument("--there-and-back", action="store_true", help="every second loop runs backwards")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load(args.model)
    print(
        "| sequence | frames | loops | J, first loop | second | middle | last | confidence, first | last | frames/s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name, images, truths in davis(args.root, args.sequences):
        first, numbers = compact(truths[0])
        stream = MaskStream(model, objects=len(numbers), size=args.size, crop=args.crop)
        order = [*range(len(images))]
        order += order[-2:0:-1] if args.there_and_back else []
        loops = max(2, args.frames // len(order))
        overlap, sure = np.zeros((2, loops, len(order)))
        began = time.process_time()
        for count in tqdm(range(loops * len(order)), desc=name, mininterval=5, disable=None):
            loop, place = divmod(count, len(order))
            frame = order[place]
            result = stream.push(images[frame], first if count == 0 else None)
            found = [
                region_similarity(result.mask == n, truths[frame] == number) for n, number in enumerate(numbers, 1)
            ]
            overlap[loop, place], sure[loop, place] = np.mean(found), result.confidence.mean()
        fps = loops * len(order) / (time.process_time() - began)
        means, confident = overlap[:, 1:].mean(1), sure[:, 1:].mean(1)
        values = [means[0], means[1], means[loops // 2], means[-1], confident[0], confident[-1]]
        row = " | ".join(f"{value:.3f}" for value in values)
        print(f"| {name} | {loops * len(order)} | {loops} | {row} | {fps:.1f} |", flush=True)


if __name__ == "__main__":
    main()
