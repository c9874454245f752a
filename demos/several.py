"""Follow several objects at the same time: J of each, frames a second and bytes of the state, with windows and without.

    python demos/several.py DAVIS --sequences car-shadow dog libby soapbox --crop 224

The sequences are composites: the objects of all named sequences, cut out by their true masks, are pasted over the
frames of the first one, where they were in their own frames, at --scale of their size, the later over the former. So
borders are exact, light does not fit, and things cover each other. frames/s: of the processor time of one core, of all
frames but the first.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from davis import davis
from numpy.typing import NDArray

from tttstream import MaskStream, models
from tttstream.evaluation.davis import region_similarity
from tttstream.io.mask_files import compact
from tttstream.streams.windows import usual


def composite(
    root: Path, names: list[str], frames: int, scale: float
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Frames and labels: object 1 is that of the first sequence, as it is there."""
    (_, images, truths), *others = davis(root, names)
    count = min(frames, len(images), *(len(other[1]) for other in others))
    images, labels = [image.copy() for image in images[:count]], [(t > 0).astype(np.uint8) for t in truths[:count]]
    height, width = labels[0].shape
    for number, (_, theirs, masks) in enumerate(others, start=2):
        middle = np.argwhere(masks[0] > 0).mean(0)[::-1]  # a pasted object shrinks towards its own centre
        matrix = np.array([[scale, 0, (1 - scale) * middle[0]], [0, scale, (1 - scale) * middle[1]]])
        for t in range(count):
            image = cv2.warpAffine(theirs[t], matrix, (width, height), flags=cv2.INTER_AREA)
            inside = cv2.warpAffine((masks[t] > 0).astype(np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST)
            images[t][inside > 0], labels[t][inside > 0] = image[inside > 0], number
    return images, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DAVIS")
    parser.add_argument("--model", default="track", help="a mask model by name or from its folder")
    parser.add_argument("--sequences", nargs="+", default=["car-shadow", "dog", "libby", "soapbox"])
    parser.add_argument("--crop", type=int, nargs="+", default=[224, 384], help="sides of windows; whole frames first")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--scale", type=float, default=0.6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load(args.model)
    images, labels = composite(args.root, args.sequences, args.frames, args.scale)
    first, numbers = compact(labels[0].astype(np.int32))
    print("| objects | crop | J of each | mean | windows | frames/s | state, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for crop in (None, *args.crop):
        size = None if crop is None else usual(model, None, crop)[0]
        stream, overlap, windows = MaskStream(model, objects=len(numbers), size=size, crop=crop), [], []
        stream.push(images[0], first)
        spent = 0.0
        for image, label in zip(images[1:], labels[1:], strict=True):
            began = time.thread_time()
            result = stream.push(image)
            spent += time.thread_time() - began
            windows.append(stream.windows)
            overlap.append(
                [region_similarity(result.mask == n, label == number) for n, number in enumerate(numbers, 1)]
            )
        each = np.mean(overlap, 0)
        print(
            f"| {len(numbers)} | {crop or 'whole'} | {' '.join(f'{j:.3f}' for j in each)} | {each.mean():.3f} | "
            f"{np.mean(windows):.1f} | {len(windows) / spent:.1f} | {stream.state_bytes / 1e6:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
