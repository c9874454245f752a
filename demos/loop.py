"""Runs a tracker on a real sequence in a loop of 10,000 frames, and measures whether it drifts.

    python demos/loop.py DAVIS --sequences dog car-shadow --frames 10000

The mask of the first frame is given once; then the sequence is repeated, with a jump from the last frame to the first
(--there-and-back: without one). The script prints J over several of the loops and the confidence. frames/s: per second
of processor time of one core. With --keep a run continues where it was stopped.
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
from tttstream.streams.windows import usual

KEEP = 250  # frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DAVIS")
    parser.add_argument("--model", default="track", help="a mask model by name or from its folder")
    parser.add_argument("--sequences", nargs="*", help="only these")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--size", type=int, help="short side in pixels; without --crop: of whole frames")
    parser.add_argument("--crop", type=int, help="side of the windows; both by default as in `tttstream track`")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="save the run every 250 frames, or continue it")
    parser.add_argument("--there-and-back", action="store_true", help="every second loop runs backwards")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load(args.model)
    size, crop = usual(model, args.size, args.crop)
    print(
        "| sequence | frames | loops | J, first loop | second | middle | last | confidence, first | last | frames/s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name, images, truths in davis(args.root, args.sequences):
        first, numbers = compact(truths[0])
        stream = MaskStream(model, objects=len(numbers), size=size, crop=crop)
        order = [*range(len(images))]
        order += order[-2:0:-1] if args.there_and_back else []
        loops = max(2, args.frames // len(order))
        every, spent, done = np.zeros((2, loops, len(order))), 0.0, 0
        kept = None if args.keep is None else (args.keep / f"{name}.state", args.keep / f"{name}.npz")
        if kept is not None and kept[1].exists():
            stream.load(kept[0])
            every, spent, done = (np.load(kept[1])[key] for key in ("every", "spent", "done"))
            if every.shape[1:] != (loops, len(order)) or done != stream.frames:
                raise SystemExit(f"{args.keep} has another run of {name}: give another folder")
        began = time.process_time() - spent
        for count in tqdm(range(int(done), loops * len(order)), desc=name, mininterval=5, disable=None):
            loop, place = divmod(count, len(order))
            frame = order[place]
            result = stream.push(images[frame], first if count == 0 else None)
            found = [
                region_similarity(result.mask == n, truths[frame] == number) for n, number in enumerate(numbers, 1)
            ]
            every[:, loop, place] = np.mean(found), result.confidence.mean()
            if kept is not None and (count + 1) % KEEP == 0:
                args.keep.mkdir(parents=True, exist_ok=True)
                stream.save(kept[0])
                np.savez(kept[1], every=every, spent=time.process_time() - began, done=count + 1)
        fps = loops * len(order) / (time.process_time() - began)
        overlap, sure = every
        means, confident = overlap[:, 1:].mean(1), sure[:, 1:].mean(1)
        values = [means[0], means[1], means[loops // 2], means[-1], confident[0], confident[-1]]
        row = " | ".join(f"{value:.3f}" for value in values)
        print(f"| {name} | {loops * len(order)} | {loops} | {row} | {fps:.1f} |", flush=True)


if __name__ == "__main__":
    main()
