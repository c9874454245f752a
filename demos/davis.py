"""J and F of mask propagation on a DAVIS tree, beside repeating the first mask, matching features, a frozen memory.

    python demos/davis.py DAVIS --model mask

Reads DAVIS/JPEGImages/480p/SEQUENCE/*.jpg and DAVIS/Annotations/480p/SEQUENCE/*.png. Of the annotations only the first
of a sequence is shown to the methods. Where a mask has several objects they are followed together and each counts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from tttstream.masks import MaskStream, load
from tttstream.masks.baselines import NAMES, propagate
from tttstream.masks.metrics import evaluate
from tttstream.masks.model import MaskModel

Labels = NDArray[np.uint8]


def read(root: Path, sequence: str, most: int | None) -> tuple[list[NDArray[np.uint8]], list[Labels]]:
    """Frames and masks of a sequence."""
    images, masks = [], []
    for path in sorted((root / "JPEGImages" / "480p" / sequence).glob("*.jpg"))[:most]:
        mask = Image.open(root / "Annotations" / "480p" / sequence / f"{path.stem}.png")
        values = np.asarray(mask if mask.mode == "P" else mask.convert("L"))
        images.append(np.asarray(Image.open(path).convert("RGB")))
        masks.append(values if mask.mode == "P" and values.max() < 128 else (values > 127).astype(np.uint8))
    return images, masks


def streamed(model: MaskModel, images: list[NDArray[np.uint8]], mask: Labels, size: int | None) -> list[Labels]:
    """The model's masks, frame after frame."""
    stream = MaskStream(model, objects=int(mask.max()), size=size)
    return [stream.push(image, mask if index == 0 else None).mask for index, image in enumerate(images)]


def baseline(
    name: str, model: MaskModel, images: list[NDArray[np.uint8]], mask: Labels, size: int | None
) -> list[Labels]:
    """A baseline's masks, at the size at which the model looks."""
    stream = MaskStream(model, objects=int(mask.max()), size=size)
    frames = torch.stack([stream.picture(image) for image in images])[None]
    first = F.interpolate(stream.given(mask, *mask.shape)[None], frames.shape[-2:], mode="area")
    logits = propagate(name, model, frames, first)[0]
    if name == "copy":
        return [mask] * len(images)
    return [F.interpolate(part[None], mask.shape, mode="bilinear")[0].argmax(0).numpy() for part in logits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DAVIS")
    parser.add_argument("--model", default="mask", help="a mask model by name or from its folder")
    parser.add_argument("--sequences", nargs="*", help="only these")
    parser.add_argument("--size", type=int, help="short side in pixels; the model's own unless given")
    parser.add_argument("--frames", type=int, help="only so many of each sequence")
    parser.add_argument("--methods", nargs="*", default=["model", *NAMES], choices=["model", *NAMES])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model)
    names = args.sequences or sorted(path.name for path in (args.root / "JPEGImages" / "480p").iterdir())
    print("| sequence | method | J mean | J recall | J decay | F mean | F recall | F decay | frames/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for sequence in names:
        images, truths = read(args.root, sequence, args.frames)
        for method in args.methods:
            began = time.perf_counter()
            rest = (model, images, truths[0], args.size)
            found = streamed(*rest) if method == "model" else baseline(method, *rest)
            fps = len(images) / (time.perf_counter() - began)
            scores = []
            for number in range(1, int(truths[0].max()) + 1):
                j, f = evaluate([mask == number for mask in found], [truth == number for truth in truths])
                scores.append([*j, *f])
            row = " | ".join(f"{value:.3f}" for value in np.mean(scores, 0))
            print(f"| {sequence} | {method} | {row} | {fps:.1f} |", flush=True)


if __name__ == "__main__":
    main()
