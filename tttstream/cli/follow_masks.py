"""`tttstream watch --model mask --first-mask FILE`: follow what a mask on the first frame shows, through the stream."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttstream.cli.loop import Step, follow, opened
from tttstream.cli.recorder import Record, number, place
from tttstream.errors import ShapeError, SourceError
from tttstream.frames import Frame
from tttstream.io import mask_files
from tttstream.io.interrupt import Interrupt
from tttstream.io.names import shown
from tttstream.io.outputs import OutputFile, TextFile, saving
from tttstream.models.masks import load
from tttstream.state import metadata
from tttstream.streams import MaskResult, MaskStream
from tttstream.views.masks import LARGEST, MaskOverlay, distinct, mask_image, palette
from tttstream.views.overlay import Picture, size_text
from tttstream.views.writer import VideoWriter

if TYPE_CHECKING:
    from tttstream.sources.base import Source
    from tttstream.views.window import Window

MOST = 255  # objects of a MaskStream


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
        return cls(np.zeros((0, 0), np.int16), stream.numbers, palette())


def read_mask(path: Path) -> FirstMask:
    """Read the mask of a first frame, by the rule of `tttstream.io.mask_files`."""
    mask = mask_files.read_mask(path)
    places, numbers = mask_files.compact(mask.labels)
    void = bool((places == mask_files.VOID).any())
    if not numbers:
        raise ShapeError(
            f"--first-mask {path} shows no object: every pixel is 0 (black)" + (" or void" if void else "")
        )
    if len(numbers) > MOST:
        raise ShapeError(f"--first-mask {path} shows {len(numbers)} objects, at most {MOST} can be followed")
    if void:
        print(f"tttstream: --first-mask {path}: 255 is void (unknown), no object", file=sys.stderr)
    colours = palette()
    for own, colour in mask.colours.items():
        if own < len(colours):
            colours[own] = colour
    return FirstMask(places, numbers, colours)


class MaskFolder(OutputFile):
    """Images of masks in a folder that appears when all are there, in the place of one that had its name.

    PNG, and TIFF where a number has more than 16 bits. numbers, colours: those of a FirstMask.
    """

    def __init__(self, path: Path, numbers: list[int], colours: NDArray[np.uint8]) -> None:
        self._colours, self._largest = colours, max(numbers)
        self._kind = "png" if self._largest < 1 << 16 else "tiff"
        super().__init__(path)

    def _begin(self) -> None:
        self._remove()
        self.part.mkdir()

    def write(self, index: int, mask: NDArray[np.int32]) -> None:
        """Add the mask of a frame: the numbers of its objects, [H, W]."""
        with saving(self.path):
            image = mask_image(mask, self._colours, self._largest)
            image.save(self.part / f"{index:05d}.{self._kind}", format=self._kind)

    def _place(self) -> None:
        if self.path.is_dir():
            shutil.rmtree(self.path)
        super()._place()

    def _remove(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)

    def _end(self) -> None:
        pass

    def _abandon(self) -> None:
        pass


class MaskRecorder(Record):
    """Takes in frames and results of one source, and writes its folder; without a folder it only keeps count."""

    def __init__(self, folder: Path | None, source: Source, mask: FirstMask, *, video: bool, endless: bool) -> None:
        super().__init__(folder, source)
        own = [mask.colours[n] if n <= LARGEST else mask.colours[place] for place, n in enumerate(mask.numbers, 1)]
        self.overlay = MaskOverlay(distinct(np.array([(0, 0, 0), *own], np.uint8)))
        self._numbers = np.array([0, *mask.numbers], np.int32)
        self._video: VideoWriter | None = None
        if self._folder is None:
            return
        try:
            path = self._folder.path
            self._lines = self._own(TextFile(path / "frames.jsonl"))
            self._masks = self._own(MaskFolder(path / "masks", mask.numbers, mask.colours))
            if video:
                self._video = self._own(VideoWriter(path / "overlay.mp4", source.fps or 25.0, endless=endless))
        except BaseException:
            self.discard()
            raise

    def add(self, frame: Frame, result: MaskResult) -> Picture:
        """Take in one frame and its result; the picture drawn of it."""
        self._count(result.latency_ms)
        picture = self.overlay.draw(frame.image, result.mask)
        if self._folder is not None:
            self._lines.write_json(
                {
                    "index": result.index,
                    "time_s": round(result.time_s, 6),
                    **place(frame),
                    "objects": [self._object(place, result) for place in range(1, len(self._numbers))],
                    "latency_ms": round(result.latency_ms, 3),
                }
            )
            self._masks.write(result.index, self._numbers[result.mask])
            if self._video is not None:
                self._video.write(picture, result.time_s)
        return picture

    def _object(self, place: int, result: MaskResult) -> dict[str, Any]:
        rows, columns = np.nonzero(result.mask == place)
        box = [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)] if len(rows) else None
        return {
            "object": int(self._numbers[place]),
            "share": number(len(rows) / result.mask.size),
            "box": box,  # left, top, right, bottom, the last two exclusive
            "confidence": number(float(result.confidence[place - 1])),
        }

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, and complete all files under their temporary names."""
        if self._folder is not None:
            self._complete(summary)


def check(args: argparse.Namespace, specs: list[str]) -> None:
    """Refuse what does not go with a mask model."""
    if args.first_mask is None and args.load_state is None:
        raise ShapeError(
            f"--model {args.model} follows what a mask shows: give --first-mask FILE, an image as large as the first "
            "frame"
        )
    if len(specs) > 1:
        raise ShapeError(f"--first-mask belongs to one source, {len(specs)} came: run them one by one")
    for option in ("embeddings", "carry"):
        if getattr(args, option):
            raise ShapeError(f"--{option} is for models of surprise, not for masks: leave it out")


def start(args: argparse.Namespace, source: Source) -> tuple[MaskStream, FirstMask]:
    """The stream, fresh or as it was saved, and what it is to follow."""
    model = load(args.model)
    if args.load_state is None:
        first = read_mask(args.first_mask)
        stream = MaskStream(model, objects=len(first.numbers), size=args.size)
        stream.numbers = first.numbers
    else:
        stream = MaskStream(model, size=args.size)
        stream.load(args.load_state, source if saved_source(args.load_state) == source.name else None)
        first = FirstMask.saved(stream)
        if args.first_mask is not None:
            first = read_mask(args.first_mask)._replace(labels=first.labels)
        if first.numbers != stream.numbers:
            raise ShapeError(
                f"--first-mask shows the objects {first.numbers}, the stream in {args.load_state} follows "
                f"{stream.numbers}: give the mask it began with, or leave it out"
            )
    stream.learn = not args.no_learn
    return stream, first


def saved_source(path: Path) -> str | None:
    """The name of the source that a saved stream was following objects in."""
    place = json.loads(metadata(path).get("masks", "{}")).get("source")
    return None if place is None else str(place["name"])


def run(args: argparse.Namespace, spec: str, out: Path | None, window: Window | None) -> int:
    """Follow the objects through one source; returns the exit code."""
    import torch

    torch.set_num_threads(1)
    with opened(spec, args) as source:
        stream, first = start(args, source)
        endless = source.frames is None and args.max_frames is None
        recorder = MaskRecorder(out, source, first, video=not args.no_overlay, endless=endless)
        try:
            with Interrupt() as interrupt:
                step = step_of(stream, first, recorder, args)
                interrupted = follow(source, stream, step, recorder, window, interrupt, args)
            if not recorder.frames:
                if interrupted:
                    raise KeyboardInterrupt
                raise SourceError(f"{spec}: no readable frame")
            summary = {
                "source": spec,
                "model": args.model,
                "first_mask": None if args.first_mask is None else str(args.first_mask),
                "size": stream.size,
                "objects": first.numbers,
                "learn": not args.no_learn,
                "interrupted": interrupted,
                "state_bytes": stream.state_bytes,
                **recorder.summary(),
            }
            recorder.finish(summary)
            if args.save_state is not None:
                stream.save(args.save_state, source)
            recorder.publish()
        except BaseException:
            recorder.discard()
            raise
    latency = summary["latency_ms"]
    print(
        f"{shown(spec)}: {summary['frames']} frames{', interrupted' if interrupted else ''}, "
        f"{summary['fps']:.1f} fps, latency {latency['p50']:.0f} ms (p95 {latency['p95']:.0f}), "
        f"{len(first.numbers)} object{'s' if len(first.numbers) > 1 else ''}, state {size_text(stream.state_bytes)}"
    )
    if out is not None:
        print(shown(f"results: {out} ({', '.join(recorder.written)})"))
    return 0


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
