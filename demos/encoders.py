"""Measures frames per second of a pretrained encoder on one thread, by size and kind of arithmetic.

    python demos/encoders.py --encoder efficientnet_lite0 --strides 4 8 16

Frames are 16:9, one at a time or in batches; the median over calls, of the processor time of one core. `likeness` is
the mean cosine of a feature to that of float32, over photographs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream import encoders
from tttstream.sources.photographs import NAMES, photograph

SIZES = (160, 240, 320)


Way = Callable[[Tensor], Any]


def ways(encoder: encoders.Encoder, args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Way]]:
    """The kinds of arithmetic, by name: frames [n, 3, H, W] in 0..1 -> the maps."""

    def plain(frames: Tensor) -> Any:
        return encoders.Encoder.forward(encoder, frames)

    def strided(frames: Tensor) -> Any:  # channels first, PyTorch's default
        x = ((frames - encoder.mean) / encoder.deviation).contiguous()
        every = dict(enumerate(encoder.maps(x)))
        return [every[number] for number in encoder._numbers]

    def half(frames: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(frames)

    yield "float32", plain
    yield "float32, channels first", strided
    yield "bfloat16", half
    if args.compile:
        yield "float32, torch.compile", torch.compile(encoder)
    if args.onnx:
        yield "float32, onnxruntime", by_onnx(encoder, folder, int8=False)
        yield "int8, onnxruntime", by_onnx(encoder, folder, int8=True)


def by_onnx(encoder: encoders.Encoder, folder: Path, int8: bool) -> Way:
    """The encoder as an ONNX file for each shape of frames, on one thread; with int8, calibrated on photographs."""
    import onnxruntime
    from onnxruntime import quantization

    sessions: dict[torch.Size, Any] = {}

    class Shown(quantization.CalibrationDataReader):
        def __init__(self, shape: torch.Size) -> None:
            self.frames = iter([pictures(shape, (name,)) for name in NAMES[::2]])

        def get_next(self) -> Any:
            frame = next(self.frames, None)
            return None if frame is None else {"frames": frame.numpy()}

    def call(frames: Tensor) -> Any:
        if frames.shape not in sessions:
            path = folder / f"{'x'.join(map(str, frames.shape))}.onnx"
            if not path.exists():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    program = torch.onnx.export(encoder, (frames,), dynamo=True, verbose=False, input_names=["frames"])
                program.save(path)
            if int8:
                source, path = path, path.with_suffix(".int8.onnx")
                quantization.quantize_static(source, path, Shown(frames.shape), per_channel=True)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            sessions[frames.shape] = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        return [torch.from_numpy(x) for x in sessions[frames.shape].run(None, {"frames": frames.numpy()})]

    return call


def pictures(shape: torch.Size, names: tuple[str, ...]) -> Tensor:
    """Photographs as frames of this shape [n, 3, H, W]."""
    images = [torch.from_numpy(np.ascontiguousarray(photograph(name))).permute(2, 0, 1)[None] / 255 for name in names]
    sized = torch.cat([F.interpolate(image, shape[2:], mode="bilinear", antialias=True) for image in images])
    return sized.repeat(-(-shape[0] // len(names)), 1, 1, 1)[: shape[0]].contiguous()


def likeness(call: Way, plain: Way, shape: torch.Size) -> float:
    """The mean cosine between the features of two kinds of arithmetic, over all maps of some photographs."""
    found = []
    for name in NAMES[1::4]:
        frames = pictures(shape, (name,))
        found += [
            F.cosine_similarity(x.float(), y, dim=1).mean() for x, y in zip(call(frames), plain(frames), strict=True)
        ]
    return float(torch.stack(found).mean())


def fps(call: Way, frames: Tensor, calls: int) -> float:
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
    parser.add_argument("--onnx", action="store_true", help="onnxruntime too, with float32 and int8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoder = encoders.load(args.encoder, args.strides)
    print(f"| {args.encoder}, strides {args.strides} | {' | '.join(f'{size} px' for size in SIZES)} | likeness |")
    print("| --- |" + " --- |" * (len(SIZES) + 1))
    shapes = [torch.Size((args.batch, 3, size, round(size * 16 / 9 / 32) * 32)) for size in SIZES]
    plain: Way | None = None
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for name, call in ways(encoder, args, Path(folder)):
            plain = plain or call
            rates = [fps(call, torch.rand(shape), args.calls) for shape in shapes]
            alike = likeness(call, plain, shapes[1])
            print(f"| {name} | {' | '.join(f'{rate:.0f}' for rate in rates)} | {alike:.4f} |", flush=True)


if __name__ == "__main__":
    main()
