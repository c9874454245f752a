"""Frames a second of a pretrained encoder on one thread, by size and kind of arithmetic.

    python demos/encoders.py --encoder efficientnet_lite0 --strides 4 8 16

Frames are 16:9, one at a time or in batches; the median over calls, of the processor time of one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tttstream import encoders

SIZES = (160, 240, 320)


def ways(encoder: encoders.Encoder, compiled: bool) -> dict[str, Callable[[Tensor], object]]:
    """The kinds of arithmetic, by name."""
    plain = encoders.Encoder.forward

    def strided(frames: Tensor) -> object:  # rows of each channel one after another, PyTorch's default
        x = ((frames - encoder.mean) / encoder.deviation).contiguous()
        return list(encoder.maps(x))

    def half(frames: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(encoder, frames)

    every: dict[str, Callable[[Tensor], object]] = {
        "float32": lambda frames: plain(encoder, frames),
        "float32, channels first": strided,
        "bfloat16": half,
    }
    if compiled:
        every["float32, torch.compile"] = torch.compile(encoder)
    return every


def fps(call: Callable[[Tensor], object], frames: Tensor, calls: int) -> float:
    """Frames over the processor time of this thread."""
    for _ in range(3):
        call(frames)
    times = []
    for _ in range(calls):
        began = time.thread_time()
        call(frames)
        times.append(time.thread_time() - began)
    return len(frames) / float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="efficientnet_lite0", help="as tttstream.encoders.load takes it")
    parser.add_argument("--strides", nargs="*", type=int, default=(8, 16))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which needs a C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoder = encoders.load(args.encoder, args.strides)
    print(f"| {args.encoder}, strides {args.strides} | {' | '.join(f'{size} px' for size in SIZES)} |")
    print("| --- |" + " --- |" * len(SIZES))
    with torch.inference_mode():
        for name, call in ways(encoder, args.compile).items():
            shapes = ((args.batch, 3, size, round(size * 16 / 9 / 32) * 32) for size in SIZES)
            rates = [fps(call, torch.rand(shape), args.calls) for shape in shapes]
            print(f"| {name} | {' | '.join(f'{rate:.0f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main()
