"""`tttstream teach`: teach things by name, and find the frames in which they are in view."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, cast

from tttstream.cli import arguments, examples
from tttstream.errors import ConfigError, FrameError, ShapeError
from tttstream.io.addresses import public
from tttstream.io.names import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tttstream.cli.loop import Step
    from tttstream.cli.teach_recorder import TeachRecorder
    from tttstream.frames import Frame
    from tttstream.sources.base import Source
    from tttstream.streams import TeachStream
    from tttstream.streams.teach import Box
    from tttstream.views.overlay import Picture
    from tttstream.views.window import Viewer

OUT = "teach-results"
KEYS = "123456789"
EPILOG = f"""\
SOURCE is any source of `tttstream watch`: a video file or URL, a folder of images, a camera number, - for a pipe.

There are three ways to teach things, and they can be combined:
  DIR contains one folder for each thing, with the name of the thing, and images or videos of it. The thing should fill
  the pictures. Every tenth frame of a video is used. Other files in DIR are ignored, but images and videos beside the
  folders make DIR a source.
  --box FRAME:X,Y,W,H=LABEL is the box of a thing in a frame of SOURCE: left edge, top edge, width and height in pixels.
  The option may be repeated.
  --labels NAME,NAME with --show: hold one of the keys 1 to 9 while you show the thing with this number in the square.

Results: frames.jsonl lists for each frame the things in view with rough boxes and probabilities, overlay.mp4 shows
them, and summary.json counts them. `teach DIR --save-state FILE` without a SOURCE only teaches. --show without --out
writes nothing. Keys in the window: 1 to 9 teach, q quit, f forget all, l learning on/off, space pause.
Exit codes: 0 success; 2 an error, reported in one line, and no file is written. The default for --out is {OUT}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream teach`."""
    add = parser.add_argument
    add("what", nargs="+", metavar="DIR|SOURCE", help="folders of examples, and at most one video, folder or camera")
    known = "names for the keys 1 to 9 of the window, such as mug,keys"
    add("--labels", metavar="NAMES", type=_names, default=[], help=known)
    where = "box of a thing in a frame of SOURCE, such as 0:120,80,60,70=mug"
    add("--box", metavar="FRAME:X,Y,W,H=LABEL", type=Told.parse, action="append", default=[], dest="boxes", help=where)
    add("--forget", metavar="LABEL", action="append", default=[], help="remove this thing of --load-state")
    add("--certain", metavar="P", type=float, help="least probability of a thing in view")
    known = "a model by name or from its folder (default: teach)"
    add("--model", metavar="DIR|NAME", type=arguments.model, default="teach", help=known)
    arguments.add_run(parser, size="short side in pixels of the model's input")


class Told(NamedTuple):
    """One --box: the box of a thing in the frame with this number."""

    frame: int
    box: Box
    label: str

    @classmethod
    def parse(cls, text: str) -> Told:
        """Parse FRAME:X,Y,W,H=LABEL."""
        number = r"\s*(-?\d+(?:\.\d+)?)\s*"
        found = re.fullmatch(rf"\s*(\d+)\s*:{number},{number},{number},{number}=(.+)", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r}: expected FRAME:X,Y,W,H=LABEL, such as 0:120,80,60,70=mug")
        left, top, width, height = (float(found[place]) for place in range(2, 6))
        return cls(int(found[1]), (left, top, width, height), found[6].strip())


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names) or len(names) > len(KEYS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to {len(KEYS)} names that differ, such as mug,keys")
    return names


def run(args: argparse.Namespace) -> int:
    """Teach, and find the taught things. Returns the exit code."""
    arguments.check_run(args)
    folders = [what for what in args.what if examples.holds(what)]
    specs = [what for what in args.what if what not in folders]
    if len(specs) > 1:
        came = ", ".join(map(public, specs))
        raise ConfigError(
            f"teach takes one source, got {len(specs)}: {came}; run them one by one; a folder of examples has one "
            f"folder for each thing{examples.hint(specs)}"
        )
    if args.labels and not args.show:
        raise ConfigError("--labels needs --show, because the keys belong to the window")
    if not specs and (args.boxes or args.show):
        raise ConfigError("--box and --show need a SOURCE in addition to folders of examples")
    if not specs and args.save_state is None:
        raise ConfigError("give a SOURCE, or --save-state FILE to save the taught things")
    if args.no_learn and args.boxes:
        raise ConfigError("--box teaches, and --no-learn forbids it: leave one of them out")
    if not (folders or args.boxes or args.labels or args.load_state):
        hint = examples.hint(specs)
        raise ConfigError(f"nothing to find: give a folder of examples, --box, --labels or --load-state{hint}")
    import torch

    torch.set_num_threads(1)
    return look(args, folders, specs[0]) if specs else teach(args, folders)


def teach(args: argparse.Namespace, folders: list[str]) -> int:
    """Teach from folders and save the state. Returns the exit code."""
    from tttstream.cli.loop import claimed

    with ExitStack() as stack:
        claimed(args, stack)
        stream = start(args, folders, None)
        stream.save(args.save_state)
    print(f"taught: {said(stream)}")
    print(shown(f"state: {args.save_state}"))
    return 0


def look(args: argparse.Namespace, folders: list[str], spec: str) -> int:
    """Teach, then process a source. Returns the exit code."""
    from tttstream.cli.loop import Run, claimed, described, opened
    from tttstream.cli.teach_recorder import TeachRecorder
    from tttstream.io.interrupt import Interrupt
    from tttstream.views.overlay import size_text

    out = arguments.out_folder(args, OUT)
    with ExitStack() as stack:
        window = claimed(args, stack)
        keys = None if window is None else Keys(window, args.labels)
        source = stack.enter_context(opened(spec, args))
        last = max((told.frame for told in args.boxes), default=-1)
        if source.ends_before(last):
            raise ConfigError(f"--box {last}: {public(spec)} has {source.frames} frames, from 0 on")
        stream = start(args, folders, source)
        known = args.labels if keys is not None else []
        recorder = TeachRecorder(out, source, video=not args.no_overlay, keys=known)
        interrupt = stack.enter_context(Interrupt())
        boxes = list(args.boxes)
        step = step_of(stream, recorder, boxes, keys, source)
        more = {"certain": stream.certain}
        summary = Run(spec, source, stream, step, recorder, cast("Viewer | None", keys), interrupt, args).recorded(more)
    in_view = ", ".join(f"{label} in {count}" for label, count in summary["in_view"].items()) or "nothing taught"
    print(f"{described(summary)}, state {size_text(stream.state_bytes)}; {in_view}")
    if boxes and args.load_state is None:
        print(f"tttstream: frame {boxes[0].frame} was not read: its --box was not used", file=sys.stderr)
    if out is not None:
        print(shown(f"results: {out} ({', '.join(recorder.written)})"))
    return 0


def start(args: argparse.Namespace, folders: list[str], source: Source | None) -> TeachStream:
    """A fresh or loaded stream, with the examples of the folders."""
    from tttstream.cli.progress import Progress
    from tttstream.evaluation.measures import Rate
    from tttstream.models import load_as
    from tttstream.models.teach import TeachModel
    from tttstream.streams import Saved, TeachStream
    from tttstream.views.overlay import size_text

    stream = TeachStream(load_as(TeachModel, args.model), size=args.size, certain=args.certain)
    if args.load_state is not None:
        resumed = source is not None and Saved(args.load_state).source == source.name
        stream.load(args.load_state, source if resumed else None)
        stream.size = stream.size if args.size is None else args.size
        stream.certain = stream.certain if args.certain is None else args.certain
    for label in args.forget:
        stream.forget(label)
    for folder in folders:
        progress, rate = Progress(folder, None), Rate()
        try:
            for label, frame in examples.read(folder, args.on_error):
                stream.teach(label, frame)
                rate.tick()
                progress.update(rate.late, None, size_text(stream.state_bytes))
        finally:
            progress.close()
    stream.learn = not args.no_learn
    return stream


def said(stream: TeachStream) -> str:
    """The taught labels, with the number of examples of each."""
    return ", ".join(f"{label} ({stream.examples(label)})" for label in stream.labels)


class Keys:
    """A window that also keeps the last key. names: labels of the keys 1, 2 …."""

    def __init__(self, window: Viewer, names: list[str]) -> None:
        self._window = window
        self._names = dict(zip(KEYS, names, strict=False))
        self._pressed = ""

    def show(self, picture: NDArray[np.uint8], wait_ms: int = 1) -> str:
        """Show a picture, as Viewer does, and keep the key."""
        self._pressed = self._window.show(picture, wait_ms)
        return self._pressed

    def key(self, wait_ms: int = 30) -> str:
        """The key pressed within `wait_ms`, "" for none."""
        return self._window.key(wait_ms)

    @property
    def name(self) -> str | None:
        """The label of the key that was pressed at the last picture."""
        return self._names.get(self._pressed)


def step_of(stream: TeachStream, recorder: TeachRecorder, boxes: list[Told], keys: Keys | None, source: Source) -> Step:
    """Process one frame: teach its labels first, then look for taught things in it. Taught boxes leave the list."""
    from tttstream.views.teach import guide

    def step(frame: Frame) -> tuple[Picture, None]:
        told = []
        if stream.learn:
            for one in [one for one in boxes if one.frame == source.place(frame)]:
                try:
                    stream.teach(one.label, frame, one.box)
                except (FrameError, ShapeError) as error:
                    raise ConfigError(f"--box {one.frame}:…={one.label}: {error}") from error
                boxes.remove(one)
                told.append(one.label)
            if keys is not None and keys.name is not None:
                stream.teach(keys.name, frame, guide(*frame.image.shape[:2]))
                told.append(keys.name)
        result = stream.push(frame)
        return recorder.add(frame, result, stream, told), None

    return step
