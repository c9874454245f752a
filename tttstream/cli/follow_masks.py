"""`tttstream watch --model mask --first-mask FILE`: follow what a mask on the first frame shows, through the stream."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tttstream.cli.loop import Step, follow
from tttstream.cli.progress import Interrupt
from tttstream.cli.recorder import Record, number
from tttstream.errors import ShapeError, SourceError
from tttstream.frames import Frame
from tttstream.masks import MaskResult, MaskStream, load
from tttstream.outputs import OutputFile, TextFile, saving
from tttstream.state import metadata
from tttstream.views.masks import Labels, MaskOverlay, mask_image, palette
from tttstream.views.overlay import Picture, size_text
from tttstream.views.video import VideoWriter

if TYPE_CHECKING:
    from tttstream.sources.base import Source
    from tttstream.views.window import Window

MOST = 32  # objects; an image with more values than that is a picture, not a mask


class FirstMask(NamedTuple):
    """What an image of a mask says: labels [H, W], 1 … for the objects; the number of each object in the image, which
    it keeps in what is written; and the colours of all numbers."""

    labels: Labels
    numbers: list[int]
    colours: NDArray[np.uint8]


def read_mask(path: Path) -> FirstMask:
    """Read a mask: an image with a palette, a grey or a coloured one; every value but black (0) is an object."""
    try:
        with Image.open(path) as image:
            indexed = image.mode == "P"
            colours = palette()
            if indexed:
                own = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
                colours[: len(own)] = own
            pixels = np.array(image if indexed or image.mode in ("L", "1") else image.convert("RGB")).astype(np.int64)
    except FileNotFoundError as error:
        raise SourceError(f"--first-mask: there is no file {path}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(f"--first-mask {path} cannot be read as an image: {error}") from error
    if pixels.ndim == 3:
        pixels = pixels @ np.array([65536, 256, 1])
    values = [int(value) for value in np.unique(pixels) if value != 0]
    if not values:
        raise ShapeError(f"--first-mask {path} shows no object: every pixel is 0 (black)")
    if len(values) > MOST:
        raise ShapeError(
            f"--first-mask {path} has {len(values)} values besides 0, more than {MOST} objects: is it a mask? "
            "Draw it without smoothing, and keep it as PNG"
        )
    labels = (np.searchsorted(values, pixels) + 1) * (pixels != 0)
    return FirstMask(labels.astype(np.uint8), values if indexed else list(range(1, len(values) + 1)), colours)


class MaskFolder(OutputFile):
    """PNG images of masks in a folder that appears when all are there, in the place of one that had its name."""

    def __init__(self, path: Path, colours: NDArray[np.uint8]) -> None:
        super().__init__(path)
        self._colours = colours
        with saving(self.path):
            shutil.rmtree(self.part, ignore_errors=True)
            self.part.mkdir()

    def write(self, index: int, mask: Labels) -> None:
        """Add the mask of a frame."""
        with saving(self.path):
            mask_image(mask, self._colours).save(self.part / f"{index:05d}.png", format="png")

    def publish(self) -> None:
        """See OutputFile."""
        with saving(self.path):
            if self.path.is_dir():
                shutil.rmtree(self.path)
            self.part.replace(self.path)

    def discard(self) -> None:
        """See OutputFile."""
        shutil.rmtree(self.part, ignore_errors=True)

    def _end(self) -> None:
        pass

    def _abandon(self) -> None:
        pass


class MaskRecorder(Record):
    """Takes in frames and results of one source, and writes its folder; without a folder it only keeps count."""

    def __init__(self, folder: Path | None, source: Source, mask: FirstMask, *, video: bool, endless: bool) -> None:
        super().__init__(folder, source)
        self.overlay = MaskOverlay(mask.colours)
        self._numbers = np.array([0, *mask.numbers], np.uint8)
        self._video: VideoWriter | None = None
        if self._folder is None:
            return
        try:
            path = self._folder.path
            self._lines = self._own(TextFile(path / "frames.jsonl"))
            self._masks = self._own(MaskFolder(path / "masks", mask.colours))
            if video:
                self._video = self._own(VideoWriter(path / "overlay.mp4", source.fps or 25.0, endless=endless))
        except BaseException:
            self.discard()
            raise

    def add(self, frame: Frame, result: MaskResult) -> Picture:
        """Take in one frame and its result; the picture drawn of it."""
        self._count(result.latency_ms)
        mask = self._numbers[result.mask]
        picture = self.overlay.draw(frame.image, mask)
        if self._folder is not None:
            self._lines.write_json(
                {
                    "index": result.index,
                    "time_s": round(result.time_s, 6),
                    "objects": [self._object(mask, place, result) for place in range(1, len(self._numbers))],
                    "latency_ms": round(result.latency_ms, 3),
                }
            )
            self._masks.write(result.index, mask)
            if self._video is not None:
                self._video.write(picture, result.time_s)
        return picture

    def _object(self, mask: Labels, place: int, result: MaskResult) -> dict[str, Any]:
        rows, columns = np.nonzero(mask == self._numbers[place])
        box = [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)] if len(rows) else None
        return {
            "object": int(self._numbers[place]),
            "share": number(len(rows) / mask.size),
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
    else:
        stream = MaskStream(model, size=args.size)
        stream.load(args.load_state, source if saved_source(args.load_state) == source.name else None)
        numbers = list(range(1, stream.objects + 1))
        first = FirstMask(np.zeros((0, 0), np.uint8), numbers, palette())
        if args.first_mask is not None:
            first = read_mask(args.first_mask)._replace(labels=first.labels)
        if len(first.numbers) != stream.objects:
            raise ShapeError(f"--first-mask shows {len(first.numbers)} objects, {args.load_state} {stream.objects}")
    stream.learn = not args.no_learn
    return stream, first


def saved_source(path: Path) -> str | None:
    """The name of the source that a saved stream was following objects in."""
    place = json.loads(metadata(path).get("masks", "{}")).get("source")
    return None if place is None else str(place["name"])


def run(args: argparse.Namespace, spec: str, out: Path | None, window: Window | None) -> int:
    """Follow the objects through one source; returns the exit code."""
    import torch

    from tttstream.sources import open_source

    torch.set_num_threads(1)
    with open_source(spec, on_error=args.on_error, size=args.size, seed=args.seed) as source:
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
        f"{spec}: {summary['frames']} frames{', interrupted' if interrupted else ''}, "
        f"{summary['fps']:.1f} fps, latency {latency['p50']:.0f} ms (p95 {latency['p95']:.0f}), "
        f"{len(first.numbers)} object{'s' if len(first.numbers) > 1 else ''}, state {size_text(stream.state_bytes)}"
    )
    if out is not None:
        print(f"results: {out} ({', '.join(recorder.written)})")
    return 0


def step_of(stream: MaskStream, first: FirstMask, recorder: MaskRecorder, args: argparse.Namespace) -> Step:
    """How one frame is taken: with the mask until that was learned, then without."""
    wanted = first.labels.size > 0

    def step(frame: Frame) -> tuple[Picture, None]:
        nonlocal wanted
        if wanted and frame.image.shape[:2] != first.labels.shape:
            height, width = first.labels.shape
            raise ShapeError(
                f"--first-mask {args.first_mask} is {width}x{height} pixels, the frames are "
                f"{frame.image.shape[1]}x{frame.image.shape[0]}: give a mask of the frames' own size"
            )
        result = stream.push(frame, first.labels if wanted else None)
        wanted = False
        return recorder.add(frame, result), None

    return step
