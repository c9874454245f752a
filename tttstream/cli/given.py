"""The masks and boxes of `tttstream track`, each with its frame."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tttstream.cli import arguments
from tttstream.errors import ConfigError, FrameError, ShapeError
from tttstream.io import mask_files

if TYPE_CHECKING:
    from tttstream.frames import Frame
    from tttstream.streams import MaskStream

MOST = 255  # objects of a MaskStream
Box = tuple[float, ...]


@dataclass
class Given:
    """The objects to follow, with their masks and boxes. numbers: the numbers in files of the objects 1, 2 … of the
    stream, sorted. colours: of the numbers, [256, 3], if they have 8 bits. masks: by frame, a file and its labels [H,
    W]: 1 … for the objects, VOID for unknown pixels. boxes: by frame, the object and its box x, y, width, height.
    """

    numbers: list[int]
    colours: NDArray[np.uint8]
    masks: dict[int, tuple[Path, NDArray[np.int16]]] = field(default_factory=dict)
    boxes: dict[int, list[tuple[int, Box]]] = field(default_factory=dict)

    @classmethod
    def saved(cls, stream: MaskStream) -> Given:
        """The objects of a saved stream, without masks and boxes."""
        from tttstream.views.masks import palette

        return cls(list(stream.numbers), palette())

    @classmethod
    def read(cls, files: Sequence[tuple[int, Path]], boxes: Sequence[tuple[int, Box]] = ()) -> Given:
        """Read masks by the rules of `tttstream.io.mask_files`, as masks of one sequence: a number, or a colour, is the
        same object in all of them. Each box adds an object, with the next number.

        Raises ConfigError for a mask without objects, for too many objects, and for two masks of one frame.
        """
        from tttstream.views.masks import palette

        files = sorted(files)
        frames = [frame for frame, _ in files]
        if len(set(frames)) < len(frames):
            twice = next(frame for frame in frames if frames.count(frame) > 1)
            raise ConfigError(f"frame {twice} has two masks: draw the objects in one, --mask {twice}:FILE")
        sequence, colours = mask_files.MaskSequence([path for _, path in files]), palette()
        read, numbers = [], set[int]()
        for index, (_, path) in enumerate(files):
            mask = sequence[index]
            own = {int(number) for number in np.unique(mask.labels) if number > 0}
            void = bool((mask.labels == mask_files.VOID).any())
            if not own:
                end = " or void" if void else ""
                raise ConfigError(f"the mask {path} shows no object: every pixel is 0 (black){end}")
            if void:
                print(f"tttstream: mask {path}: 255 is void (unknown), no object", file=sys.stderr)
            for number, colour in mask.colours.items():
                if number < len(colours):
                    colours[number] = colour
            numbers |= own
            read.append(mask.labels)
        first = max(numbers, default=0) + 1
        every = [*sorted(numbers), *range(first, first + len(boxes))]
        if len(every) > MOST:
            where = files[0][1] if len(files) == 1 and not boxes else "masks and boxes"
            raise ConfigError(f"{where} shows {len(every)} objects, at most {MOST} can be followed")
        given = cls(every, colours)
        for (frame, path), labels in zip(files, read, strict=True):
            places = np.searchsorted(every, labels.clip(min=0)) + 1
            given.masks[frame] = path, np.where(labels > 0, places, labels).astype(np.int16)
        for number, (frame, box) in enumerate(boxes, start=first):
            given.boxes.setdefault(frame, []).append((every.index(number) + 1, box))
        return given

    def after(self, next_: int, path: Path, followed: Sequence[int]) -> Given:
        """What is left for a stream that is resumed from a file: masks and boxes from the frame `next_` on. followed:
        the objects that the stream has seen. Raises ConfigError for a box of one of them."""
        masks = {frame: mask for frame, mask in self.masks.items() if frame >= next_}
        boxes = {frame: here for frame, here in self.boxes.items() if frame >= next_}
        for frame, here in boxes.items():
            if any(place in followed for place, _ in here):
                raise ConfigError(
                    f"--box {frame} adds an object, but {path} has no place for another: correct one with --mask"
                )
        return Given(self.numbers, self.colours, masks, boxes)

    @property
    def last(self) -> int:
        """The last frame with a mask or box, -1 for none."""
        return max([*self.masks, *self.boxes], default=-1)

    def take(self, frame: Frame, number: int | None) -> NDArray[np.int16] | None:
        """The labels [H, W] of the masks and boxes that the user gave for this frame, or None. Each is used once.
        number: the number of the frame in its source, None if it is unknown.

        A mask has precedence over boxes. Raises ShapeError for a mask of another size, ConfigError for a box outside of
        the frame and for an object that others of this frame cover.
        """
        if number is None:
            return None
        mask, boxes = self.masks.pop(number, None), self.boxes.pop(number, [])
        if mask is None and not boxes:
            return None
        size = frame.image.shape[:2]
        path, labels = mask or (None, np.zeros(size, np.int16))
        if labels.shape != size:
            (height, width), turned = labels.shape, ""
            if size[::-1] == labels.shape:
                turned = " (is it from the video before its rotation?)"
            raise ShapeError(
                f"the mask {path} is {width}x{height} pixels, the frames are {size[1]}x{size[0]}: give a mask of the "
                f"frames' own size{turned}"
            )
        for place, box in boxes:
            from tttstream.streams.outlines import from_box

            try:
                found = from_box(frame.pixels(), box)
            except FrameError as error:
                raise ConfigError(f"--box {number}: {error}") from error
            labels = np.where(found & (labels == 0), place, labels).astype(np.int16)
            if not (labels == place).any():
                where = ",".join(f"{value:g}" for value in box)
                raise ConfigError(f"--box {number}:{where}: other objects given in this frame cover the object in it")
        return labels


def mask_at(text: str) -> tuple[int, Path]:
    """Parse FRAME:FILE."""
    frame, colon, name = text.partition(":")
    if not colon or not frame.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected FRAME:FILE, such as 30:mask.png")
    return int(frame), arguments.path(name)


def box_at(text: str) -> tuple[int, Box]:
    """Parse FRAME:x,y,w,h."""
    frame, _, numbers = text.partition(":")
    try:
        box = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        box = ()
    if len(box) != 4 or not frame.isdecimal() or not np.isfinite(box).all():
        raise argparse.ArgumentTypeError(f"{text!r}: expected FRAME:x,y,w,h in pixels, such as 0:120,80,60,40")
    return int(frame), box
