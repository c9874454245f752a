"""`tttstream track`: follows objects from masks and boxes through a video or a camera."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttstream.cli import arguments
from tttstream.cli.given import Box, Given, box_at, mask_at
from tttstream.cli.numbers import whole
from tttstream.errors import ConfigError, FrameError
from tttstream.io.addresses import public
from tttstream.io.names import shown

if TYPE_CHECKING:
    from tttstream.cli.loop import Step
    from tttstream.cli.mask_recorder import MaskRecorder
    from tttstream.frames import Frame
    from tttstream.sources.base import Source
    from tttstream.streams import MaskStream
    from tttstream.views.overlay import Picture

OUT = "track-results"
EPILOG = f"""\
SOURCE is any source of `tttstream watch`: a video file or URL, a folder of images, a camera number, - for a pipe.

Frames are numbered from 0. A mask is more exact than a box, in which the object is segmented by its colours.

The results in DIR are masks (images with the numbers of the given masks), overlay.mp4, frames.jsonl and summary.json.
FILE has the size of its frame and is PNG or another lossless image. In grey and palette images the values are the
numbers of the objects, 0 is the background, and 255 in 8 bits is void (unknown); an image with only 0 and 255 shows one
object. In RGB each colour is an object, and black is the background. Transparent pixels are background. JPEG and
smoothed edges are refused. docs/masks.md has all rules.

--davis writes the masks of all sequences of a tree: to DIR/SEQUENCE/00000.png … for DAVIS, whose masks are read in the
first frame only, and to DIR/Annotations/VIDEO/NAME.png for YouTube-VOS, whose masks can add objects in any frame.

--show without --out writes nothing. Keys in the window: q quit, f forget, l learning on/off, space pause.
Exit codes: 0 success; 2 an error, reported in one line, and no file is written. The default for --out is {OUT}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream track`."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a video, a folder of images or a camera")
    add("--first-mask", metavar="FILE", type=arguments.path, help="the objects to follow: short for --mask 0:FILE")
    known = "a mask of a frame, which adds or corrects objects; may be repeated"
    add("--mask", metavar="FRAME:FILE", type=mask_at, action="append", help=known)
    known = "a box of a frame in pixels, which adds an object; may be repeated"
    add("--box", metavar="FRAME:x,y,w,h", type=box_at, action="append", help=known)
    known = "a mask model by name or from its folder (default: track)"
    add("--model", metavar="DIR|NAME", type=arguments.model, default="track", help=known)
    known = "process only regions around the objects, with the pixels of a square of side PX (model track: 384, or "
    known += "whole frames if --size is given)"
    add("--crop", metavar="PX", type=whole, help=known)
    known = "SOURCE is a DAVIS or YouTube-VOS tree: write only masks, in the format of the evaluation server"
    add("--davis", action="store_true", help=known)
    add("--sequences", metavar="NAME", nargs="+", help="with --davis: these sequences (default: all)")
    arguments.add_run(parser, size="short side in pixels of the scaled frames (model track: 480)")


def run(args: argparse.Namespace) -> int:
    """Follow the objects. Returns the exit code."""
    arguments.check_run(args)
    for name in ("crop", "size"):
        if getattr(args, name) is not None and args.load_state is not None:
            raise ConfigError(f"--{name} belongs to a new stream: that of --load-state keeps its setting")
    if args.davis:
        from tttstream.cli import benchmark

        return benchmark.run(args, Path(args.source), args.out or Path(OUT))
    if args.sequences:
        raise ConfigError("--sequences belongs to --davis")
    return track(args, args.source, arguments.out_folder(args, OUT))


def track(args: argparse.Namespace, spec: str, out: Path | None) -> int:
    """Follow the objects through one source; returns the exit code."""
    files, boxes = masks_of(args), args.box or []
    if not files and not boxes and args.load_state is None:
        raise ConfigError(
            "which objects? Give --first-mask FILE, an image as large as the first frame, or --box 0:x,y,w,h"
        )
    import torch

    from tttstream.cli.loop import Run, claimed, described, opened
    from tttstream.cli.mask_recorder import MaskRecorder
    from tttstream.io.interrupt import Interrupt
    from tttstream.views.overlay import size_text

    torch.set_num_threads(1)
    with ExitStack() as stack:
        window = claimed(args, stack)
        source = stack.enter_context(opened(spec, args))
        stream, given = start(args, source, files, boxes)
        if source.ends_before(given.last):
            known = f"{public(spec)} has {source.frames} frames, from 0 on"
            raise ConfigError(f"frame {given.last} has a mask or box, but {known}")
        recorder = MaskRecorder(out, source, given.numbers, given.colours, video=not args.no_overlay)
        interrupt = stack.enter_context(Interrupt())
        step = step_of(stream, given, recorder, source)
        first = next((str(path) for frame, path in files if frame == 0), None)
        more = {
            "first_mask": first,
            "masks": {str(frame): str(path) for frame, path in files},
            "boxes": [[frame, *box] for frame, box in boxes],
            "objects": given.numbers,
            "crop": stream.crop,
        }
        summary = Run(spec, source, stream, step, recorder, window, interrupt, args).recorded(more)
    objects = f"{len(given.numbers)} object{'s' if len(given.numbers) > 1 else ''}"
    print(f"{described(summary)}, {objects}, state {size_text(stream.state_bytes)}")
    if given.last >= 0:
        print(f"tttstream: frame {given.last} was not read: its mask or box was not used", file=sys.stderr)
    if out is not None:
        print(shown(f"results: {out} ({', '.join(recorder.written)})"))
    return 0


def masks_of(args: argparse.Namespace) -> list[tuple[int, Path]]:
    """The files of masks and their frames, including --first-mask."""
    first = [] if args.first_mask is None else [(0, args.first_mask)]
    return [*first, *(args.mask or [])]


def start(
    args: argparse.Namespace, source: Source, files: list[tuple[int, Path]], boxes: list[tuple[int, Box]]
) -> tuple[MaskStream, Given]:
    """A fresh or loaded stream, and the objects to follow."""
    from tttstream.models import load_as
    from tttstream.models.masks import Propagator
    from tttstream.streams import MaskStream, Saved
    from tttstream.streams.windows import usual

    model: Propagator[Any] = load_as(Propagator, args.model)  # type: ignore[type-abstract]
    given = Given.read(files, boxes) if files or boxes else None
    if args.load_state is None:
        assert given is not None
        size, crop = usual(model, args.size, args.crop)
        stream = MaskStream(model, objects=len(given.numbers), size=size, crop=crop)
        stream.numbers = given.numbers
    else:
        stream = MaskStream(model)
        stream.load(args.load_state, source if Saved(args.load_state).source == source.name else None)
        if given is not None and given.numbers != stream.numbers:
            raise ConfigError(
                f"the masks and boxes show the objects {given.numbers}, the stream in {args.load_state} follows "
                f"{stream.numbers}: give the same objects, or leave them out"
            )
        position, followed = source.position(), (stream.state.seen[0] > 0).nonzero().flatten() + 1
        next_ = position.get("place", position["index"])
        given = Given.saved(stream) if given is None else given.after(next_, args.load_state, followed.tolist())
    stream.learn = not args.no_learn
    return stream, given


def step_of(stream: MaskStream, given: Given, recorder: MaskRecorder, source: Source) -> Step:
    """The function that processes one frame, with its mask and boxes."""

    def step(frame: Frame) -> tuple[Picture, None]:
        number = source.place(frame)
        mask = given.take(frame, number)
        try:
            result = stream.push(frame, mask)
        except FrameError as error:
            if mask is None:
                raise
            raise ConfigError(f"the mask or box of frame {number} cannot be used: {error}") from error
        return recorder.add(frame, result), None

    return step
