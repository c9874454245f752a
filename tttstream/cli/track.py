"""`tttstream track`: follow the objects that a mask on the first frame shows, through a video or a camera."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttstream.cli import arguments
from tttstream.errors import ConfigError, ShapeError
from tttstream.io import mask_files
from tttstream.io.names import shown

if TYPE_CHECKING:
    from tttstream.cli.loop import Step
    from tttstream.cli.mask_recorder import MaskRecorder
    from tttstream.frames import Frame
    from tttstream.sources.base import Source
    from tttstream.streams import MaskStream
    from tttstream.views.overlay import Picture

OUT = "track-results"
MOST = 255  # objects of a MaskStream
EPILOG = f"""\
SOURCE is what `tttstream watch` takes: a video file or URL, a folder of images, a camera number, - for a pipe.

DIR holds masks (images with the numbers of the first mask), overlay.mp4, frames.jsonl and summary.json. FILE is as
large as the first frame, PNG or another image without loss. Grey and palette images number the objects, 0 is the
background, and 255 in 8 bits is void (unknown) unless 0 and 255 are all there is: then it is the object. In RGB each
colour is an object, black the background. What is transparent is background. JPEG and smoothed edges are refused. All
of it: docs/masks.md.

--show without --out writes nothing. Keys in the window: q quit, f forget, l learning on/off, space pause.
Exit codes: 0 done, 2 something in the way, said in one line; no file is left behind. The default for --out is {OUT}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream track`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a video, a folder of images or a camera")
    add("--first-mask", metavar="FILE", type=arguments.path, help="an image of the objects to follow")
    known = "a mask model by name or from its folder (default: mask)"
    add("--model", metavar="DIR|NAME", type=arguments.model, default="mask", help=known)
    arguments.add_run(parser, size="short side in pixels at which the model sees the frames")


def run(args: argparse.Namespace) -> int:
    """Follow the objects; returns the exit code."""
    arguments.check_run(args)
    return track(args, args.source, arguments.out_folder(args, OUT))


def track(args: argparse.Namespace, spec: str, out: Path | None) -> int:
    """Follow the objects through one source; returns the exit code."""
    if args.first_mask is None and args.load_state is None:
        raise ConfigError("which objects? Give --first-mask FILE, an image as large as the first frame")
    import torch

    from tttstream.cli.loop import claimed, opened, recorded
    from tttstream.cli.mask_recorder import MaskRecorder
    from tttstream.io.interrupt import Interrupt
    from tttstream.views.overlay import size_text

    torch.set_num_threads(1)
    with ExitStack() as stack:
        window = claimed(args, stack)
        source = stack.enter_context(opened(spec, args))
        stream, first = start(args, source)
        endless = source.frames is None and args.max_frames is None
        recorder = MaskRecorder(out, source, first.numbers, first.colours, video=not args.no_overlay, endless=endless)
        interrupt = stack.enter_context(Interrupt())
        step = step_of(stream, first, recorder, args)
        more = {"first_mask": None if args.first_mask is None else str(args.first_mask), "objects": first.numbers}
        summary = recorded(spec, source, stream, step, recorder, window, interrupt, args, more)
    latency = summary["latency_ms"]
    print(
        f"{shown(spec)}: {summary['frames']} frames{', interrupted' if summary['interrupted'] else ''}, "
        f"{summary['fps']:.1f} fps, latency {latency['p50']:.0f} ms (p95 {latency['p95']:.0f}), "
        f"{len(first.numbers)} object{'s' if len(first.numbers) > 1 else ''}, state {size_text(stream.state_bytes)}"
    )
    if out is not None:
        print(shown(f"results: {out} ({', '.join(recorder.written)})"))
    return 0


class FirstMask(NamedTuple):
    """What a mask says: labels [H, W], 1 … for the objects, VOID where nobody knows; the number of each object in the
    file, which it keeps in what is written; and the colours of numbers, [256, 3], as far as they are written in 8 bits.
    """

    labels: NDArray[np.int16]
    numbers: list[int]
    colours: NDArray[np.uint8]

    @classmethod
    def saved(cls, stream: MaskStream) -> FirstMask:
        """Of a stream that was saved: its objects, and no pixels."""
        from tttstream.views.masks import palette

        return cls(np.zeros((0, 0), np.int16), stream.numbers, palette())


def read_mask(path: Path) -> FirstMask:
    """Read the mask of a first frame, by the rule of `tttstream.io.mask_files`."""
    from tttstream.views.masks import palette

    mask = mask_files.read_mask(path)
    places, numbers = mask_files.compact(mask.labels)
    void = bool((places == mask_files.VOID).any())
    if not numbers:
        raise ConfigError(
            f"--first-mask {path} shows no object: every pixel is 0 (black)" + (" or void" if void else "")
        )
    if len(numbers) > MOST:
        raise ConfigError(f"--first-mask {path} shows {len(numbers)} objects, at most {MOST} can be followed")
    if void:
        print(f"tttstream: --first-mask {path}: 255 is void (unknown), no object", file=sys.stderr)
    colours = palette()
    for own, colour in mask.colours.items():
        if own < len(colours):
            colours[own] = colour
    return FirstMask(places, numbers, colours)


def start(args: argparse.Namespace, source: Source) -> tuple[MaskStream, FirstMask]:
    """The stream, fresh or as it was saved, and what it is to follow."""
    from tttstream.models import load_as
    from tttstream.models.masks import MixtureModel
    from tttstream.streams import MaskStream, Saved

    model = load_as(MixtureModel, args.model)
    if args.load_state is None:
        first = read_mask(args.first_mask)
        stream = MaskStream(model, objects=len(first.numbers), size=args.size)
        stream.numbers = first.numbers
    else:
        stream = MaskStream(model, size=args.size)
        stream.load(args.load_state, source if Saved(args.load_state).source == source.name else None)
        first = FirstMask.saved(stream)
        if args.first_mask is not None:
            first = read_mask(args.first_mask)._replace(labels=first.labels)
        if first.numbers != stream.numbers:
            raise ConfigError(
                f"--first-mask shows the objects {first.numbers}, the stream in {args.load_state} follows "
                f"{stream.numbers}: give the mask it began with, or leave it out"
            )
    stream.learn = not args.no_learn
    return stream, first


def step_of(stream: MaskStream, first: FirstMask, recorder: MaskRecorder, args: argparse.Namespace) -> Step:
    """How one frame is taken: with the mask until that was learned, then without."""
    wanted = first.labels.size > 0

    def step(frame: Frame) -> tuple[Picture, None]:
        nonlocal wanted
        if wanted and frame.image.shape[:2] != first.labels.shape:
            height, width = first.labels.shape
            turned = (
                " (is it of the video before it was turned upright?)"
                if frame.image.shape[1::-1] == (height, width)
                else ""
            )
            raise ShapeError(
                f"--first-mask {args.first_mask} is {width}x{height} pixels, the frames are "
                f"{frame.image.shape[1]}x{frame.image.shape[0]}: give a mask of the frames' own size{turned}"
            )
        result = stream.push(frame, first.labels if wanted else None)
        wanted = False
        return recorder.add(frame, result), None

    return step
